package controller

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// blind reads lists, all of them empty, and no applications.
type blind struct{ client.Client }

var errBlind = errors.New("cannot be read")

func (blind) Get(context.Context, client.ObjectKey, client.Object, ...client.GetOption) error {
	return errBlind
}

func (blind) List(_ context.Context, list client.ObjectList, _ ...client.ListOption) error {
	if _, ok := list.(*v1alpha1.EventGrantList); ok {
		return errBlind
	}
	return nil
}

func TestWhatCannotBeReadPermitsNothing(t *testing.T) {
	r := &Reconciler{client: blind{}, openSources: true}
	for _, source := range []string{"erp", "/other/cart"} {
		ok, err := permitted(r.mayRead(t.Context(), "shop", source))
		require.ErrorIs(t, err, errBlind, source)
		require.False(t, ok, source)
	}
	ok, err := permitted(r.mayRead(t.Context(), "shop", "/shop/cart"))
	require.NoError(t, err)
	require.True(t, ok, "one's own")
}
