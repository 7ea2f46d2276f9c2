package watch

import (
	"sync"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
)

// led are the Services that the mesh leads to. It knows no others, so that events
// of theirs are kept until the next mesh tells whether it leads to them.
type led struct {
	mu       sync.Mutex
	services map[types.NamespacedName]bool // nil: no mesh yet
	// missed are Services that had an event since the last snapshot was begun, and
	// were none of these.
	missed map[types.NamespacedName]bool
}

func newLed() *led { return &led{missed: map[types.NamespacedName]bool{}} }

func serviceOf(slice *discoveryv1.EndpointSlice) types.NamespacedName {
	return types.NamespacedName{Namespace: slice.Namespace, Name: slice.Labels[discoveryv1.LabelServiceName]}
}

// concerns tells whether an event of a Service's slice concerns the mesh.
func (l *led) concerns(service types.NamespacedName) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.services == nil || l.services[service] {
		return true
	}
	l.missed[service] = true
	return false
}

// begin a snapshot: it has what was missed until now.
func (l *led) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.missed)
}

// LeadsTo tells where the mesh of the last snapshot leads. Changes of other
// Services' endpoints make no new snapshot.
func (s *Source) LeadsTo(destinations []*ir.Destination) {
	services := make(map[types.NamespacedName]bool, len(destinations))
	for _, d := range destinations {
		services[types.NamespacedName{Namespace: d.Namespace, Name: d.Name}] = true
	}
	s.led.mu.Lock()
	s.led.services = services
	missed := false
	for service := range s.led.missed {
		missed = missed || services[service]
	}
	s.led.mu.Unlock()
	if missed {
		s.config.Changed()
	}
}
