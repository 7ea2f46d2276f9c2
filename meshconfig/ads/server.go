package ads

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// How long a connection has for its handshakes, and then without a stream.
const (
	handshakeTimeout = 5 * time.Second
	idleTimeout      = 20 * time.Second
)

// maxHeaderBytes of a stream, a token among them.
const maxHeaderBytes = 64 << 10

// maxStreamsPerNode are open at once: those of a client that comes again before its
// last connection is known to be gone. Beyond it the oldest ends.
const maxStreamsPerNode = 8

// stopTimeout is how long clients have to take what is being sent to them.
const stopTimeout = 3 * time.Second

// Server serves resources to data planes. It is a component.
type Server struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer

	config   Config
	log      *slog.Logger
	metrics  *metrics
	now      func() time.Time
	ready    chan struct{}
	stopping chan struct{}

	mu      sync.Mutex
	stores  map[string]*store
	streams map[string]map[uint64]*stream // by target
	nextID  uint64

	door        *door
	first       *firstPlaces
	certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
}

// Status is what is known about a target.
type Status struct {
	// Version of the resources that are served; empty when there are none yet.
	Version string
	// Nodes are the connected nodes by id.
	Nodes []NodeStatus
}

// NodeStatus is what is known about a connected node.
type NodeStatus struct {
	NodeID      string
	ConnectedAt time.Time
	// Version is the newest version, as SetResources returned it, that the node
	// acknowledged completely; empty when none yet.
	Version string
	// Nacks are the refusals of the resources that are served now: at most one a
	// type of a client of state of the world, and some of each of others.
	Nacks []Nack
}

// Acknowledged tells whether at least one node is connected and all of them
// acknowledged the version.
func (s Status) Acknowledged(version string) bool {
	for _, node := range s.Nodes {
		if node.Version != version {
			return false
		}
	}
	return len(s.Nodes) > 0 && version != ""
}

// New makes a Server; it serves from Run on.
func New(config Config) (*Server, error) {
	config.setDefaults()
	if err := config.Validate(); err != nil {
		return nil, fmt.Errorf("configure the ADS server: %w", err)
	}
	s := &Server{
		config:   config,
		log:      config.Log.With("component", "ads"),
		metrics:  newMetrics(config.Registry),
		now:      time.Now,
		ready:    make(chan struct{}),
		stopping: make(chan struct{}),
		stores:   map[string]*store{},
		streams:  map[string]map[uint64]*stream{},
		first:    newFirstPlaces(),

		certificate: config.CA.ServerCertificate(config.ServerNames...),
	}
	s.door = newDoor(config.Listener, config, func(reason string) { s.metrics.closed.WithLabelValues(reason).Inc() })
	return s, nil
}

// Name implements component.Component.
func (s *Server) Name() string { return "ads" }

// Ready is closed when the server listens; it implements component.Component.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Addr is the address the server listens on.
func (s *Server) Addr() string { return s.config.Listener.Addr().String() }

// Run serves until ctx ends; it implements component.Component.
func (s *Server) Run(ctx context.Context) error {
	if _, err := s.certificate(nil); err != nil {
		s.config.Listener.Close()
		return err
	}
	server := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(&tls.Config{
			MinVersion: tls.VersionTLS13, GetCertificate: s.certificate, NextProtos: []string{"h2"},
		})),
		grpc.MaxConcurrentStreams(streamsPerConn),
		grpc.StaticStreamWindowSize(windowBytes),
		grpc.MaxRecvMsgSize(maxRequestBytes),
		grpc.ForceServerCodecV2(codec{encoding.GetCodecV2(proto.Name)}),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time: 30 * time.Second, Timeout: 20 * time.Second,
			MaxConnectionIdle: idleTimeout, // without a stream, and so without a token
			MaxConnectionAge:  s.config.MaxConnectionAge, MaxConnectionAgeGrace: 5 * time.Second,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
	)
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(server, s)
	served := make(chan error, 1)
	go func() { served <- server.Serve(s.door) }()
	close(s.ready)
	select {
	case <-ctx.Done():
		close(s.stopping) // the streams end by themselves, clients reconnect
		// A client that reads nothing cannot hold the server up.
		stop := time.AfterFunc(stopTimeout, server.Stop)
		defer stop.Stop()
		server.GracefulStop()
		if err := <-served; !errors.Is(err, grpc.ErrServerStopped) { // stopped before it had begun
			return err
		}
		return nil
	case err := <-served:
		return fmt.Errorf("serve ADS on %s: %w", s.config.Listener.Addr(), err)
	}
}

// SetResources replaces what a target ([GatewayTarget], [SidecarTarget], [PodTarget]) is
// served and returns the version of the set, a hash of its content: the same
// resources have the same version and are not sent again. A set with an invalid
// resource, or one that no message could carry, is refused as a whole with an
// error that names the resource (the latter's is [ErrTooLarge]), and what was served
// before stays. The resources must not be changed afterwards.
func (s *Server) SetResources(target string, resources Resources) (string, error) {
	all := map[Key]*Item{}
	for typeURL, list := range resources {
		if !slices.Contains(servedTypes, typeURL) {
			return "", fmt.Errorf("set the resources of %s: resources of type %s are not served", target, typeURL)
		}
		for _, r := range list {
			items, err := Prepare(r)
			if err != nil {
				return "", fmt.Errorf("set the resources of %s: %w", target, err)
			}
			for i, it := range items {
				if i == 0 && it.key.Type != typeURL {
					return "", fmt.Errorf("set the resources of %s: %q is a %s and stands under %s", target, it.key.Name, shortType(it.key.Type), shortType(typeURL))
				}
				if all[it.key] != nil {
					return "", fmt.Errorf("set the resources of %s: %s %q is given twice", target, shortType(it.key.Type), it.key.Name)
				}
				all[it.key] = it
			}
		}
	}
	return s.Replace(target, all)
}

// Replace serves a target these items and no others. It returns what
// [Server.SetResources] returns.
func (s *Server) Replace(target string, items map[Key]*Item) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := maps.Clone(items)
	if old := s.stores[target]; old != nil {
		for typeURL, of := range old.items {
			for name := range of {
				if key := (Key{typeURL, name}); all[key] == nil {
					all[key] = nil
				}
			}
		}
	}
	return s.update(target, all)
}

// Update changes what a target is served: each key is served the item from now on,
// or with nil no more. It returns what [Server.SetResources] returns.
func (s *Server) Update(target string, items map[Key]*Item) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.update(target, items)
}

// update with the lock held.
func (s *Server) update(target string, items map[Key]*Item) (string, error) {
	of := s.stores[target]
	if of == nil {
		of = newStore()
	}
	before, touched := map[Key]*Item{}, map[Key]bool{}
	for key, it := range items {
		if it != nil && key.Type == resource.SecretType && !isGatewayTarget(target) {
			return "", fmt.Errorf("set the resources of %s: the secret %q is for gateways only", target, key.Name)
		}
	}
	for key, it := range items {
		if old := of.items[key.Type][key.Name]; of.put(key, it) {
			before[key], touched[key] = old, true
		}
	}
	if err := of.checkSize(touched, s.config.MaxResponseBytes); err != nil {
		for key, old := range before {
			of.put(key, old)
		}
		return "", fmt.Errorf("set the resources of %s: %w", target, err)
	}
	s.stores[target] = of
	if len(touched) > 0 || of.end() == 0 {
		for _, st := range s.streams[target] {
			st.poke()
		}
	}
	return of.version(), nil
}

// Remove forgets a target and ends the streams of its nodes.
func (s *Server) Remove(target string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.stores, target)
	for _, st := range s.streams[target] {
		st.leave(status.Errorf(codes.PermissionDenied, "the node %q is no longer known", st.nodeID))
	}
}

// Status tells which nodes of a target are connected and what they acknowledged
// and refused.
func (s *Server) Status(target string) Status {
	s.mu.Lock()
	var out Status
	if current := s.stores[target]; current != nil {
		out.Version = current.version()
	}
	nodes := s.nodes(target)
	s.mu.Unlock()
	for _, st := range nodes {
		st.mu.Lock()
		status := st.status
		if st.evaluated != out.Version {
			status.Nacks = nil // they were about resources that are not served any more
		}
		st.mu.Unlock()
		out.Nodes = append(out.Nodes, status)
	}
	return out
}

// nodes are the newest streams of each connected node of a target, by node id.
// Call it with the lock held.
func (s *Server) nodes(target string) []*stream {
	newest := map[string]*stream{}
	for _, st := range s.streams[target] {
		if old := newest[st.nodeID]; old == nil || old.id < st.id {
			newest[st.nodeID] = st
		}
	}
	return slices.SortedFunc(maps.Values(newest), func(a, b *stream) int { return cmp.Compare(a.nodeID, b.nodeID) })
}

// Lacking lists the connected nodes of a target that have not acknowledged these
// resources as they are served now, with what they refused of them. Of a node
// that knows state of the world only it is told when it has not acknowledged all.
func (s *Server) Lacking(target string, keys []Key) []NodeStatus {
	s.mu.Lock()
	version, hashes := "", make(map[Key]string, len(keys))
	if of := s.stores[target]; of != nil {
		version = of.version()
		for _, key := range keys {
			if it := of.items[key.Type][key.Name]; it != nil {
				hashes[key] = it.hash
			}
		}
	}
	nodes := s.nodes(target)
	s.mu.Unlock()
	var all []NodeStatus
	for _, st := range nodes {
		if one, lacks := st.lacks(version, hashes); lacks {
			all = append(all, one)
		}
	}
	return all
}

func (s *Server) current(target string) *set {
	s.mu.Lock()
	defer s.mu.Unlock()
	if of := s.stores[target]; of != nil {
		return of.set()
	}
	return nil
}

// StreamAggregatedResources implements the ADS service.
func (s *Server) StreamAggregatedResources(grpcStream adsStream) error {
	return s.told(s.serveWhole(grpcStream))
}

// DeltaAggregatedResources implements the incremental ADS service.
func (s *Server) DeltaAggregatedResources(grpcStream deltaStream) error {
	return s.told(s.serveDelta(grpcStream))
}

// told of a refusal.
func (s *Server) told(err error) error {
	if code := status.Code(err); code == codes.Unauthenticated || code == codes.PermissionDenied {
		s.metrics.refused.WithLabelValues(code.String()).Inc()
		s.log.Warn("refused a stream", "error", err)
	}
	return err
}

func (s *Server) serveWhole(grpcStream adsStream) error {
	receive := func(maxBytes int) (*discoveryv3.DiscoveryRequest, error) { return receive(grpcStream, maxBytes) }
	return serve(grpcStream.Context(), s, receive, func(st *stream) protocol[*discoveryv3.DiscoveryRequest] {
		st.grpc, st.watches = grpcStream, map[string]*watch{}
		return st
	})
}

func (s *Server) serveDelta(grpcStream deltaStream) error {
	receive := func(maxBytes int) (*discoveryv3.DeltaDiscoveryRequest, error) {
		return receiveDelta(grpcStream, maxBytes)
	}
	return serve(grpcStream.Context(), s, receive, func(st *stream) protocol[*discoveryv3.DeltaDiscoveryRequest] {
		return newDelta(st, grpcStream)
	})
}

// enter makes a stream of a node that the identity may be. leave is to be called
// when it ends.
func (s *Server) enter(ctx context.Context, identity Identity, nodeID string) (st *stream, leave func(), err error) {
	target, ok := TargetOf(nodeID)
	if !ok {
		return nil, nil, status.Errorf(codes.InvalidArgument, "%q is not a node id; write gateway~<namespace>~<name>~<instance>, pod~<namespace>~<name> or <workload entry>.<namespace>", nodeID)
	}
	if err := s.admit(ctx, identity, nodeID); err != nil {
		return nil, nil, err
	}
	if client, ok := peer.FromContext(ctx); ok {
		s.door.prove(client.Addr)
	}
	gone, end := context.WithCancelCause(ctx)
	st = &stream{
		server: s, nodeID: nodeID, target: target, gone: gone, leave: end,
		secrets: &secrets{
			ca: s.config.CA, now: s.now,
			identity: v1alpha1.SPIFFEID(s.config.TrustDomain, identity.Namespace, identity.ServiceAccount),
		},
		wake:   make(chan struct{}, 1),
		status: NodeStatus{NodeID: nodeID, ConnectedAt: s.now()},
	}
	s.mu.Lock()
	s.nextID++
	st.id = s.nextID
	if s.streams[target] == nil {
		s.streams[target] = map[uint64]*stream{}
	}
	s.streams[target][st.id] = st
	s.endOldest(target, nodeID)
	s.mu.Unlock()
	s.metrics.streams.Inc()
	s.log.Info("a node connected", "node", nodeID, "identity", identity.String())
	s.config.OnChange(target)
	return st, func() {
		end(nil)
		s.mu.Lock()
		if delete(s.streams[target], st.id); len(s.streams[target]) == 0 {
			delete(s.streams, target)
		}
		s.mu.Unlock()
		s.metrics.streams.Dec()
		s.log.Info("a node disconnected", "node", nodeID)
		s.config.OnChange(target)
	}, nil
}

// endOldest ends the oldest stream of a node that has too many. Call it with mu held.
func (s *Server) endOldest(target, nodeID string) {
	var oldest *stream
	n := 0
	for _, st := range s.streams[target] {
		if st.nodeID != nodeID || st.gone.Err() != nil {
			continue
		}
		if n++; oldest == nil || st.id < oldest.id {
			oldest = st
		}
	}
	if n > maxStreamsPerNode {
		oldest.leave(status.Errorf(codes.ResourceExhausted, "newer streams of the node %q took the place", nodeID))
	}
}

// admit lets an identity be a node. It answers the same whether the node is
// another's or nobody's, so that nobody learns which nodes exist.
func (s *Server) admit(ctx context.Context, identity Identity, nodeID string) error {
	node, _ := ParseNode(nodeID)
	if node.Pod && identity.Pod == "" {
		return status.Errorf(codes.PermissionDenied, "the token of %s is bound to no pod; the node %q needs one that the kubelet projects into it", identity, nodeID)
	}
	// Who is another pod need not be looked up.
	if !node.Pod || node.Namespace == identity.Namespace && node.Name == identity.Pod {
		if expected, ok := s.config.NodeIdentity(ctx, nodeID); ok && expected.covers(identity) {
			return nil
		}
	}
	return status.Errorf(codes.PermissionDenied, "the service account %s may not be the node %q", identity, nodeID)
}
