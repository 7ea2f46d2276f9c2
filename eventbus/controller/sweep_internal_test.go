package controller

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/kube"
)

// kept is a store of consumers.
type kept struct {
	Dispatcher
	mu      sync.Mutex // a bubble's time tells the race detector of no order
	names   []string
	err     error
	removed []string
}

func (k *kept) Consumers(context.Context) ([]string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.names, k.err
}

func (k *kept) Remove(_ context.Context, uid string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.removed = append(k.removed, uid)
	return nil
}

// holds makes the store hold consumers, or fail.
func (k *kept) holds(err error, names ...string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.names, k.err = names, err
}

func (k *kept) gone() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.removed)
}

func TestConsumersWithoutASubscriptionAreRemoved(t *testing.T) {
	scheme, err := kube.Scheme()
	require.NoError(t, err)
	sub := func(uid types.UID) *v1alpha1.Subscription {
		return &v1alpha1.Subscription{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: string(uid), UID: uid}}
	}
	synctest.Test(t, func(t *testing.T) {
		api := fake.NewClientBuilder().WithScheme(scheme).WithObjects(sub("stays")).Build()
		store := &kept{}
		store.holds(nil, "stays", "orphan", "late")
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- (&sweeper{reader: api, consumers: store, dispatcher: store}).Start(ctx) }()
		look := func() {
			time.Sleep(sweepEvery)
			synctest.Wait()
		}
		synctest.Wait()
		require.Empty(t, store.gone(), "its Subscription may just have been made")
		require.NoError(t, api.Create(ctx, sub("late")))
		look()
		require.Equal(t, []string{"orphan"}, store.gone())
		store.holds(errors.New("NATS is away"), "stays", "late", "another")
		look()
		store.holds(nil, "stays", "late", "another")
		look()
		look()
		require.Equal(t, []string{"orphan", "another"}, store.gone())
		cancel()
		require.NoError(t, <-done)
	})
}
