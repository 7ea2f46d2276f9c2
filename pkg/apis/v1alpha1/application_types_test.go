package v1alpha1_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

func TestSourceOwner(t *testing.T) {
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	app := func(name string, age int, sources ...string) v1alpha1.Application {
		return v1alpha1.Application{
			ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.NewTime(begin.Add(-time.Duration(age) * time.Second))},
			Spec:       v1alpha1.ApplicationSpec{Sources: sources},
		}
	}
	deleted := app("deleted", 9, "urn:d")
	deleted.DeletionTimestamp = new(metav1.NewTime(begin))
	all := []v1alpha1.Application{
		app("a-young", 1, "urn:x"), app("z-old", 2, "urn:x"), app("z-twin", 3, "urn:y"), app("a-twin", 3, "urn:y"), deleted,
	}
	for source, want := range map[string]string{
		"a-young": "a-young", "urn:x": "z-old", "urn:y": "a-twin", "urn:d": "", "deleted": "", "urn:z": "",
	} {
		owner, ok := v1alpha1.SourceOwner(all, source)
		require.Equal(t, want != "", ok, source)
		if ok {
			require.Equal(t, want, owner.Name, source)
		}
	}
}
