package ads

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
)

type adsStream = discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer

// stream is one connected node. Its watches belong to the goroutine of run;
// what Status reads is copied under mu.
type stream struct {
	server  *Server
	id      uint64
	nodeID  string
	target  string
	secrets *secrets
	wake    chan struct{}   // something to send may have changed; holds one
	gone    context.Context //nolint:containedctx // ends when the stream must, and its cause says why
	leave   context.CancelCauseFunc

	// Of state of the world; a stream of delta xDS has its own.
	grpc    adsStream
	watches map[string]*watch
	nonce   uint64

	mu     sync.Mutex
	status NodeStatus
	// delta is set for a client of delta xDS.
	delta     *delta
	evaluated string // the version of the set that status was made for
}

func (s *stream) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// handle takes a request: a subscription, an ACK or a NACK.
func (s *stream) handle(req *discoveryv3.DiscoveryRequest) error {
	if id := req.GetNode().GetId(); id != "" && id != s.nodeID {
		return status.Error(codes.InvalidArgument, "the node id changed within a stream")
	}
	typeURL := req.GetTypeUrl()
	if !slices.Contains(servedTypes, typeURL) {
		// Envoy subscribes to types that nobody configured in some set-ups; not
		// answering is what a server without them does.
		s.server.log.Debug("ignoring a subscription", "node", s.nodeID, "type", typeURL)
		return nil
	}
	w := s.watches[typeURL]
	if w == nil {
		w = &watch{typeURL: typeURL, held: map[string]item{}, refusedItems: map[string]string{}, maxBytes: s.server.config.MaxResponseBytes}
		s.watches[typeURL] = w
	}
	answered, before := w.pending, w.held
	if !w.answer(req, s.server.now()) {
		return nil
	}
	w.subscribe(req.GetResourceNames(), s.served(typeURL))
	if answered == nil || w.pending != nil {
		return nil
	}
	if req.GetErrorDetail() != nil {
		s.server.metrics.answers.WithLabelValues(shortType(typeURL), "nack").Inc()
		s.server.log.Warn("a node refused its configuration", "node", s.nodeID, "type", shortType(typeURL), "version", answered.version, "message", req.GetErrorDetail().GetMessage())
		return nil
	}
	s.server.metrics.answers.WithLabelValues(shortType(typeURL), "ack").Inc()
	// Envoy warms a changed cluster or listener anew and waits for the endpoints
	// or routes it names, even when it has them: send those again.
	switch typeURL {
	case resource.ClusterType:
		s.forget(resource.EndpointType, before, w.held)
	case resource.ListenerType:
		s.forget(resource.RouteType, before, w.held)
	}
	return nil
}

// served are the items of a type that the target has now. The node's own secrets
// are not among them.
func (s *stream) served(typeURL string) map[string]item {
	if current := s.server.current(s.target); current != nil {
		return current.types[typeURL]
	}
	return nil
}

func (s *stream) forget(typeURL string, before, after map[string]item) {
	dependents := s.watches[typeURL]
	if dependents == nil {
		return
	}
	for name, it := range after {
		if old, ok := before[name]; ok && old.hash == it.hash {
			continue
		}
		for _, ref := range it.refs {
			delete(dependents.held, ref)
		}
	}
}

// push sends what is due, in the order that breaks nothing: clusters, their
// endpoints, then listeners, then routes; clusters that go last of all.
func (s *stream) push() error {
	current := s.server.current(s.target)
	defer s.report(current)
	if current == nil {
		return nil // never empty
	}
	clusters, endpoints := s.watches[resource.ClusterType], s.watches[resource.EndpointType]
	listeners, routes := s.watches[resource.ListenerType], s.watches[resource.RouteType]

	secrets := s.secretItems(current)
	wanted := current.types[resource.ClusterType]
	if clusters != nil && clusters.wildcard &&
		!(listeners.settled(current.types[resource.ListenerType]) && routes.settled(current.types[resource.RouteType])) {
		wanted = maps.Clone(wanted)
		for name, it := range clusters.held {
			if _, ok := wanted[name]; !ok {
				wanted[name] = it
			}
		}
		if size := sizeOf(wanted); size > s.server.config.MaxResponseBytes {
			// They pile up while listeners or routes are refused. A request to one that
			// goes fails; a response that nobody can receive fails all.
			s.server.log.Warn("clusters go before the routes to them, together they are too large for a response", "node", s.nodeID, "bytes", size)
			wanted = current.types[resource.ClusterType]
		}
	}
	endpointItems := current.types[resource.EndpointType]
	clusters.settle(wanted)
	endpoints.settle(endpointItems)
	listeners.settle(current.types[resource.ListenerType])
	routes.settle(current.types[resource.RouteType])
	s.watches[resource.SecretType].settle(secrets)

	if err := s.send(s.watches[resource.SecretType], secrets); err != nil {
		return err
	}
	if err := s.send(clusters, wanted); err != nil {
		return err
	}
	if err := s.send(endpoints, endpointItems); err != nil {
		return err
	}

	// Clients that take all clusters get listeners and routes when the clusters
	// are there. Others (grpc) ask for clusters because of their routes.
	if clusters != nil && clusters.wildcard {
		if !clusters.settled(wanted) {
			return nil
		}
		for _, it := range current.types[resource.ClusterType] {
			if !endpoints.holds(it.refs, endpointItems) && !(endpoints != nil && endpoints.nack != nil) {
				return nil
			}
		}
	}
	if err := s.send(listeners, current.types[resource.ListenerType]); err != nil {
		return err
	}
	if listeners != nil && listeners.wildcard && !listeners.settled(current.types[resource.ListenerType]) {
		return nil
	}
	return s.send(routes, current.types[resource.RouteType])
}

func (s *stream) send(w *watch, items map[string]item) error {
	due := w.due(items)
	if due == nil {
		return nil
	}
	s.nonce++
	w.nonce, w.pending = strconv.FormatUint(s.nonce, 10), due
	resources := make([]*anypb.Any, 0, len(due.items))
	for _, name := range slices.Sorted(maps.Keys(due.items)) {
		resources = append(resources, due.items[name].any)
	}
	s.server.metrics.pushes.WithLabelValues(shortType(w.typeURL)).Inc()
	err := s.grpc.Send(&discoveryv3.DiscoveryResponse{
		VersionInfo: due.version, TypeUrl: w.typeURL, Nonce: w.nonce, Resources: resources,
	})
	if err != nil {
		return fmt.Errorf("send %s to %s: %w", shortType(w.typeURL), s.nodeID, err)
	}
	return nil
}

// secretItems are the secrets the node may ask for.
func (s *stream) secretItems(current *set) map[string]item {
	items := maps.Clone(current.types[resource.SecretType])
	own, err := s.secrets.items()
	if err != nil {
		s.server.log.Error("no certificate for a node", "node", s.nodeID, "error", err)
		return items
	}
	maps.Copy(items, own)
	return items
}

// complete tells whether the client acknowledged all of the set, including the
// routes and endpoints that its listeners and clusters name.
func (s *stream) complete(current *set) bool {
	clusters, listeners := s.watches[resource.ClusterType], s.watches[resource.ListenerType]
	if clusters == nil || listeners == nil {
		return false
	}
	for _, typeURL := range servedTypes[:4] {
		if !s.watches[typeURL].settled(current.types[typeURL]) {
			return false
		}
	}
	for parent, child := range map[string]string{
		resource.ClusterType: resource.EndpointType, resource.ListenerType: resource.RouteType,
	} {
		for _, it := range current.types[parent] {
			if !s.watches[child].holds(it.refs, current.types[child]) {
				return false
			}
		}
	}
	return true
}

// lacks says whether the node has not acknowledged resources of these hashes, and
// what it refused of them.
func (s *stream) lacks(version string, hashes map[Key]string) (NodeStatus, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.status
	if version == "" || s.delta == nil {
		return out, version == "" || out.Version != version
	}
	out.Nacks = nil
	lacks := false
	for key, hash := range hashes {
		if w := s.delta.watches[key.Type]; w.hash(key.Name) != hash {
			lacks = true
			if nack := w.refusal(key.Name, hash); nack != nil {
				out.Nacks = append(out.Nacks, *nack)
			}
		}
	}
	return out, lacks
}

// report publishes what Status tells about the node.
func (s *stream) report(current *set) {
	next := NodeStatus{NodeID: s.nodeID}
	for _, typeURL := range servedTypes {
		if w := s.watches[typeURL]; w != nil && w.nack != nil {
			next.Nacks = append(next.Nacks, *w.nack)
		}
	}
	s.mu.Lock()
	next.ConnectedAt, next.Version = s.status.ConnectedAt, s.status.Version
	if current != nil && s.complete(current) {
		next.Version = current.version
	}
	changed := next.Version != s.status.Version || !slices.Equal(next.Nacks, s.status.Nacks)
	if current != nil && s.evaluated != current.version {
		s.evaluated, changed = current.version, true
	}
	s.status = next
	s.mu.Unlock()
	if changed {
		s.server.config.OnChange(s.target)
	}
}
