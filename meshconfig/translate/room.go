package translate

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
)

// What rules, Subscriptions and access lists lead to goes to data planes that all
// share, with every endpoint and every identity of it. How much that is, no spec
// tells: a Service may select thousands of WorkloadEntries, at a thousand ports. So
// each namespace has room for its destinations; what is beyond it is closed, and
// nothing of another namespace.

// room is what the destinations of a namespace take.
type room struct{ bytes, endpoints int }

// addressesOf a Service, at each of its ports at most; counted once and before
// any is looked at, since ports multiply them.
func (t *translator) addressesOf(key types.NamespacedName, service *corev1.Service) int {
	if service == nil {
		return 0
	}
	if n, counted := t.addresses[key]; counted {
		return n
	}
	n := t.entries.count(key.Namespace, service.Spec.Selector)
	for _, s := range t.slices[key] {
		for i := range s.Endpoints {
			n += len(s.Endpoints[i].Addresses)
		}
	}
	t.addresses[key] = n
	return n
}

// enter charges a namespace for the endpoints of a destination before they are
// looked at, or says why there is no room.
func (t *translator) enter(namespace string, endpoints int) *refusal {
	limits := t.settings.Limits
	if endpoints > limits.Endpoints {
		return tooLarge("it has %d endpoints and a Service may have %d; remove some of them", endpoints, limits.Endpoints)
	}
	taken := t.rooms[namespace]
	if endpoints > limits.NamespaceEndpoints-taken.endpoints {
		return tooLarge("it has %d endpoints at this port, and what else leads to namespace %s has %d of the %d there are for it; remove some of them",
			endpoints, namespace, taken.endpoints, limits.NamespaceEndpoints)
	}
	t.rooms[namespace] = room{taken.bytes, taken.endpoints + endpoints}
	return nil
}

// take charges a namespace for a destination that has been looked at.
func (t *translator) take(d *ir.Destination) *refusal {
	limits, taken := t.settings.Limits, t.rooms[d.Namespace]
	if n := len(d.Identities); n > limits.Identities {
		return tooLarge("its endpoints have %d identities and those of a Service may have %d; run them as fewer service accounts", n, limits.Identities)
	}
	size := d.Size()
	if size > limits.Namespace.Bytes-taken.bytes {
		return tooLarge("it takes %d bytes of each proxy that leads to it, and what else leads to namespace %s has %d of the %d there are for it; remove some of them",
			size, d.Namespace, taken.bytes, limits.Namespace.Bytes)
	}
	t.rooms[d.Namespace] = room{taken.bytes + size, taken.endpoints}
	return nil
}

func tooLarge(format string, args ...any) *refusal {
	return &refusal{ReasonTooLarge, fmt.Sprintf(format, args...)}
}

// served says whether data planes get a destination; who has no room takes none.
func (t *translator) served(key string) bool {
	refused := t.refused[key]
	return refused == nil || refused.reason != ReasonTooLarge
}
