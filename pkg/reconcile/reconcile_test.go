package reconcile_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/reconcile"
)

func TestSummarize(t *testing.T) {
	tests := map[string]struct {
		set        func(*v1alpha1.Lambda)
		wantStatus metav1.ConditionStatus
		wantReason string
	}{
		"ready when all conditions are true": {
			set: func(l *v1alpha1.Lambda) {
				reconcile.True(l, "A", "Fine", "")
				reconcile.True(l, "B", "Fine", "")
			},
			wantStatus: metav1.ConditionTrue, wantReason: v1alpha1.ReasonReady,
		},
		"the first condition that is not true gives the reason": {
			set: func(l *v1alpha1.Lambda) {
				reconcile.False(l, "A", "First", "")
				reconcile.False(l, "B", "Second", "")
			},
			wantStatus: metav1.ConditionFalse, wantReason: "First",
		},
		"a missing condition is unknown, not true": {
			set:        func(l *v1alpha1.Lambda) { reconcile.True(l, "A", "Fine", "") },
			wantStatus: metav1.ConditionUnknown, wantReason: v1alpha1.ReasonPending,
		},
		"a condition of an older generation is unknown": {
			set: func(l *v1alpha1.Lambda) {
				reconcile.True(l, "A", "Fine", "")
				reconcile.True(l, "B", "Fine", "")
				l.Generation++
			},
			wantStatus: metav1.ConditionUnknown, wantReason: v1alpha1.ReasonPending,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			l := &v1alpha1.Lambda{ObjectMeta: metav1.ObjectMeta{Generation: 3}}
			tt.set(l)
			reconcile.Summarize(l, "A", "B")
			c := meta.FindStatusCondition(*l.Conditions(), v1alpha1.ConditionReady)
			require.NotNil(t, c)
			require.Equal(t, tt.wantStatus, c.Status)
			require.Equal(t, tt.wantReason, c.Reason)
			require.Equal(t, l.Generation, l.Status.ObservedGeneration)
		})
	}
}

func TestALongMessageIsCutBelowTheServersLimit(t *testing.T) {
	l := &v1alpha1.Lambda{}
	reconcile.False(l, "A", "Compile", strings.Repeat("x", 100_000))
	require.Less(t, len((*l.Conditions())[0].Message), 32768)
	require.Contains(t, (*l.Conditions())[0].Message, "[cut]")
}
