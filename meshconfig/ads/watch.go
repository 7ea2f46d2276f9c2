package ads

import (
	"maps"
	"slices"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
)

const (
	// maxAbsent names that a client may wait for, of each type.
	maxAbsent = 10_000
	// maxPart is where responses of types that may come in parts are cut, in bytes.
	maxPart = 4 << 20
)

// Nack is a refusal by a node.
type Nack struct {
	// Type is the type URL of what was refused, Version its version.
	Type, Version string
	// Name of the resource, when it is known which of a response was bad.
	Name string
	// Message is what the node says about it.
	Message string
	Time    time.Time
}

// watch is what a stream knows about one type: what the client wants, has been
// sent and holds.
type watch struct {
	typeURL  string
	wildcard bool
	names    map[string]bool

	nonce   string
	pending *sent           // sent and not yet answered
	held    map[string]item // what the client acknowledged
	acked   bool            // one response at least was acknowledged
	nack    *Nack

	// Refused contents are not sent again. Of types that are sent in part, a
	// refused response is repeated one resource at a time, so that one bad
	// resource does not hold the others back.
	refusedVersion string
	refusedItems   map[string]string
	split          bool

	maxBytes int // of a response
}

type sent struct {
	version string
	items   map[string]item
}

// full tells whether a response of the type always holds everything: what is
// not in it is removed by the client.
func (w *watch) full() bool { return isFull(w.typeURL) }

func isFull(typeURL string) bool {
	return typeURL == resource.ClusterType || typeURL == resource.ListenerType
}

// answer notes an ACK or NACK. It returns false for an answer to anything but
// the last response, which is to be ignored.
func (w *watch) answer(req *discoveryv3.DiscoveryRequest, now time.Time) bool {
	if req.GetResponseNonce() != w.nonce {
		// On a new stream, clients may tell the nonce of the stream before.
		return w.nonce == ""
	}
	if w.pending == nil {
		return true // a change of the subscription
	}
	p := w.pending
	w.pending = nil
	if detail := req.GetErrorDetail(); detail != nil {
		w.nack = &Nack{Type: w.typeURL, Version: p.version, Message: detail.GetMessage(), Time: now}
		switch {
		case w.full():
			w.refusedVersion = p.version
		case len(p.items) > 1:
			w.split = true
		default:
			for name, it := range p.items {
				w.refusedItems[name] = it.hash
			}
		}
		return true
	}
	w.acked = true
	if w.full() {
		w.held = p.items
		w.nack, w.refusedVersion = nil, ""
		return true
	}
	for name, it := range p.items {
		w.held[name] = it
		delete(w.refusedItems, name)
	}
	return true
}

// subscribe takes the names of a request. No names mean everything for the
// types that are sent in full (xDS protocol, "How the client specifies what
// resources to return"). Of names that are not served now no more than maxAbsent
// are remembered, so that what a stream holds is bounded by what there is.
func (w *watch) subscribe(names []string, served map[string]item) {
	w.wildcard = w.full() && (len(names) == 0 || slices.Contains(names, "*"))
	w.names = make(map[string]bool, len(names))
	absent := 0
	for _, name := range names {
		if _, ok := served[name]; !ok {
			if absent++; absent > maxAbsent {
				continue
			}
		}
		w.names[name] = true
	}
	if !w.full() {
		maps.DeleteFunc(w.held, func(name string, _ item) bool { return !w.names[name] })
		maps.DeleteFunc(w.refusedItems, func(name, _ string) bool { return !w.names[name] })
	}
}

// wants returns the part of items that the client subscribed to.
func (w *watch) wants(items map[string]item) map[string]item {
	if w.wildcard {
		return items
	}
	out := make(map[string]item, len(w.names))
	for name := range w.names {
		if it, ok := items[name]; ok {
			out[name] = it
		}
	}
	return out
}

// settle forgets a refusal of what is not in items any more.
func (w *watch) settle(items map[string]item) {
	if w == nil || w.nack == nil || w.pending != nil {
		return
	}
	wanted := w.wants(items)
	if w.full() {
		if w.refusedVersion != fingerprint(wanted) {
			w.nack, w.refusedVersion = nil, ""
		}
		return
	}
	maps.DeleteFunc(w.refusedItems, func(name, hash string) bool { return wanted[name].hash != hash })
	if len(w.refusedItems) == 0 && !w.split {
		w.nack = nil
	}
}

// due returns what is to be sent now so that the client comes to hold items, or
// nil.
func (w *watch) due(items map[string]item) *sent {
	if w == nil || w.pending != nil {
		return nil
	}
	wanted := w.wants(items)
	if w.full() {
		if w.acked && sameItems(wanted, w.held) {
			return nil
		}
		version := fingerprint(wanted)
		if version == w.refusedVersion {
			return nil
		}
		return &sent{version: version, items: wanted}
	}
	part := map[string]item{}
	room := min(w.maxBytes, maxPart)
	for _, name := range slices.Sorted(maps.Keys(wanted)) {
		it := wanted[name]
		if w.held[name].hash == it.hash || w.refusedItems[name] == it.hash {
			continue
		}
		if room -= it.size; room < 0 && len(part) > 0 {
			break // the rest when this is answered
		}
		part[name] = it
		if w.split {
			break
		}
	}
	if len(part) == 0 {
		w.split = false
		if len(w.refusedItems) == 0 {
			w.nack = nil
		}
		return nil
	}
	return &sent{version: fingerprint(items), items: part}
}

// settled tells whether the client holds exactly items, as far as it
// subscribed. A type that is not subscribed is settled.
func (w *watch) settled(items map[string]item) bool {
	if w == nil {
		return true
	}
	if w.pending != nil || w.full() && !w.acked {
		return false
	}
	wanted := w.wants(items)
	if w.full() {
		return sameItems(wanted, w.held)
	}
	for name, it := range wanted {
		if w.held[name].hash != it.hash {
			return false
		}
	}
	return true
}

// holds tells whether the client holds these names as they are in items.
func (w *watch) holds(names []string, items map[string]item) bool {
	for _, name := range names {
		it, ok := items[name]
		if !ok {
			continue // not in the set: nothing to hold
		}
		if w == nil || w.held[name].hash != it.hash {
			return false
		}
	}
	return true
}

func sameItems(a, b map[string]item) bool {
	return maps.EqualFunc(a, b, func(x, y item) bool { return x.hash == y.hash })
}
