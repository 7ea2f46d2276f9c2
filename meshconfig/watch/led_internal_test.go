package watch

import (
	"testing"

	"github.com/stretchr/testify/require"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
)

func sliceOf(service, version string) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{
		Namespace: "shop", Name: service + "-x", ResourceVersion: version, Labels: map[string]string{discoveryv1.LabelServiceName: service},
	}}
}

// Of a cluster's EndpointSlices, those that nothing leads to make no snapshot; and
// none is missed of a Service that something leads to from the next mesh on.
func TestSlicesOfOtherServicesMakeNoSnapshot(t *testing.T) {
	dirty := 0
	s := &Source{config: Config{Changed: func() { dirty++ }}, led: newLed()}
	handler := s.onSlice()
	handler.OnAdd(sliceOf("orders", "1"), true)
	require.Equal(t, 1, dirty, "before there is a mesh all may concern it")

	s.LeadsTo([]*ir.Destination{{Namespace: "shop", Name: "orders", Port: 80}})
	for range 1000 {
		handler.OnUpdate(sliceOf("other", "1"), sliceOf("other", "2"))
	}
	require.Equal(t, 1, dirty)
	handler.OnUpdate(sliceOf("orders", "1"), sliceOf("orders", "2"))
	require.Equal(t, 3, dirty, "the former and the new one may be of two Services")
	handler.OnDelete(sliceOf("orders", "2"))
	handler.OnUpdate(sliceOf("orders", "2"), sliceOf("orders", "2"))
	require.Equal(t, 4, dirty, "the same version is no change")

	// A snapshot is under way that does not have this event; its mesh leads there.
	s.led.begin()
	handler.OnUpdate(sliceOf("new", "1"), sliceOf("new", "2"))
	require.Equal(t, 4, dirty)
	s.LeadsTo([]*ir.Destination{{Namespace: "shop", Name: "new", Port: 80}})
	require.Equal(t, 5, dirty)
}
