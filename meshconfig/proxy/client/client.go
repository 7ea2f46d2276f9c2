package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/prometheus/client_golang/prometheus"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
)

const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = 5 * time.Second
	// maxMessage bounds a response; a gateway with thousands of routes exceeds
	// gRPC's default of 4 MiB.
	maxMessage = 64 << 20
)

// Sink takes what the control plane serves.
type Sink interface {
	// Accept takes a response whole or not at all; the error is told to the
	// control plane.
	Accept(ctx context.Context, typeURL string, list []*anypb.Any) error
	// AcceptChanges takes a response of delta xDS in the same way: resources that are
	// new or changed, and names of those that are gone.
	AcceptChanges(ctx context.Context, typeURL string, changed []*discoveryv3.Resource, gone []string) error
	// Wanted are the names to subscribe to, by type, because of what was accepted.
	Wanted() map[string][]string
	// AcceptSecrets takes secrets of another server in the same way, and
	// WantedSecrets are their names by server.
	AcceptSecrets(server string, list []*anypb.Any) error
	WantedSecrets() map[string][]string
}

// UnixScheme begins the address of a Unix socket, as gRPC writes it.
const UnixScheme = "unix:"

// Config of a Client. All fields are required but where they say otherwise.
type Config struct {
	// NodeID is who asks.
	NodeID string
	// NodeMetadata and NodeLocality are told with it. Optional.
	NodeMetadata *structpb.Struct
	NodeLocality *corev3.Locality
	// Address is the host:port of the ADS server, ServerName the name in its
	// certificate. A Unix socket (unix:PATH) without RootCAs is an agent of this
	// machine, which is spoken to in plain text and shown no token.
	Address, ServerName string
	// WholeState: the control plane is asked for state of the world; otherwise for
	// changes (delta xDS).
	WholeState bool
	// SecretServers are further servers of secrets (SDS), agents as well, by name:
	// unix:PATH. Optional.
	SecretServers map[string]string
	// RootCAs returns what verifies the ADS server; it is asked for each
	// connection.
	RootCAs func() (*x509.CertPool, error)
	// Token returns the service-account token to authenticate with; it is asked
	// for each new stream.
	Token func(ctx context.Context) (string, error)
	// Log is where the client writes.
	Log *slog.Logger
	// Registry takes the metrics. Optional.
	Registry prometheus.Registerer
}

// Client asks a control plane for configuration and tells it what became of it.
type Client struct {
	config  Config
	sink    Sink
	updates *prometheus.CounterVec

	mu      sync.Mutex
	results map[string]Updates // by type
}

// Updates are how many responses with a type of resource came.
type Updates struct{ Accepted, Refused int }

// Updates of a type: Cluster, Listener, Secret...
func (c *Client) Updates(kind string) Updates {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.results[kind]
}

// count a response and what became of it.
func (c *Client) count(kind string, refusal error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	u, result := c.results[kind], "ack"
	if refusal == nil {
		u.Accepted++
	} else {
		u.Refused++
		result = "nack"
	}
	c.results[kind] = u
	c.updates.WithLabelValues(kind, result).Inc()
}

// New makes a Client, which connects from Run on.
func New(config Config, sink Sink) *Client {
	c := &Client{config: config, sink: sink, results: map[string]Updates{}, updates: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "lambdamesh_proxy_updates_total", Help: "Responses of the control plane, by type and result (ack, nack).",
		ConstLabels: prometheus.Labels{"node": config.NodeID},
	}, []string{"type", "result"})}
	if config.Registry != nil {
		config.Registry.MustRegister(c.updates)
	}
	return c
}

// token sends the service-account token with each stream.
type token func(ctx context.Context) (string, error)

func (t token) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	text, err := t(ctx)
	if err != nil {
		return nil, fmt.Errorf("get a token: %w", err)
	}
	return map[string]string{"authorization": "Bearer " + text}, nil
}

func (token) RequireTransportSecurity() bool { return true }

// channel is TLS to the control plane, with the roots of the moment: what is
// trusted may change while the proxy runs.
type channel struct {
	credentials.TransportCredentials
	roots func() (*x509.CertPool, error)
	name  string
}

func newChannel(config *Config) *channel {
	return &channel{credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12, ServerName: config.ServerName}), config.RootCAs, config.ServerName}
}

// ClientHandshake implements credentials.TransportCredentials.
func (c *channel) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	roots, err := c.roots()
	if err != nil {
		return nil, nil, fmt.Errorf("find what the control plane is verified by: %w", err)
	}
	return credentials.NewClientTLSFromCert(roots, c.name).ClientHandshake(ctx, authority, conn)
}

// Clone implements credentials.TransportCredentials.
func (c *channel) Clone() credentials.TransportCredentials {
	return &channel{c.TransportCredentials.Clone(), c.roots, c.name}
}

// connect prepares a connection; it is made when it is needed.
func connect(address string, options ...grpc.DialOption) (*grpc.ClientConn, error) {
	if !strings.HasPrefix(address, UnixScheme) {
		address = "passthrough:///" + address
		// The kernel tells when another process of this machine is gone, and Istio's
		// agent takes pings for an attack.
		options = append(options, grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}))
	}
	return grpc.NewClient(address, append(options,
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: minBackoff, Multiplier: 1.6, Jitter: 0.2, MaxDelay: maxBackoff},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithDisableServiceConfig(),
	)...)
}

// Run keeps streams to the control plane, and to the other servers of secrets,
// until ctx ends.
func (c *Client) Run(ctx context.Context) error {
	options := []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}
	if c.config.RootCAs != nil || !strings.HasPrefix(c.config.Address, UnixScheme) {
		options = []grpc.DialOption{grpc.WithTransportCredentials(newChannel(&c.config)), grpc.WithPerRPCCredentials(token(c.config.Token))}
	}
	connection, err := connect(c.config.Address, options...)
	if err != nil {
		return fmt.Errorf("prepare the connection to the control plane at %s: %w", c.config.Address, err)
	}
	defer func() { _ = connection.Close() }()
	secrets, err := newSecretStreams(ctx, c)
	if err != nil {
		return err
	}
	defer secrets.close()
	if !c.config.WholeState {
		s := &deltaSession{client: c, secrets: secrets, versions: map[string]map[string]string{}}
		c.repeat(ctx, "the control plane", func() (bool, error) { return s.run(ctx, connection) })
		return nil
	}
	s := &session{client: c, secrets: secrets, versions: map[string]string{}}
	c.repeat(ctx, "the control plane", func() (bool, error) { return s.run(ctx, connection) })
	return nil
}

// repeat opens streams to a server, one after another, until ctx ends. A stream
// says whether it made progress.
func (c *Client) repeat(ctx context.Context, server string, stream func() (progress bool, err error)) {
	wait := minBackoff
	for {
		started := time.Now()
		progress, err := stream()
		if ctx.Err() != nil {
			return
		}
		if progress || time.Since(started) > time.Minute {
			wait = minBackoff
		}
		c.config.Log.Warn("the stream to "+server+" ended; the last good configuration stays", "error", err, "againIn", wait)
		timer := time.NewTimer(wait/2 + rand.N(wait))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		wait = min(2*wait, maxBackoff)
	}
}

// node is how the client says who it is.
func (c *Client) node() *corev3.Node {
	return &corev3.Node{
		Id: c.config.NodeID, UserAgentName: "lambdamesh-proxy", Metadata: c.config.NodeMetadata, Locality: c.config.NodeLocality,
	}
}

// session is what outlives a stream: the versions that were accepted.
type session struct {
	client   *Client
	secrets  *secretStreams
	versions map[string]string
	stream   discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesClient
	nonces   map[string]string
	names    map[string][]string
	sent     bool
}

// run serves one stream. progress tells that it brought something.
func (s *session) run(ctx context.Context, client grpc.ClientConnInterface) (progress bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.stream, err = discoveryv3.NewAggregatedDiscoveryServiceClient(client).StreamAggregatedResources(ctx, grpc.WaitForReady(true))
	if err != nil {
		return false, err
	}
	s.nonces, s.names, s.sent = map[string]string{}, map[string][]string{}, false
	for _, typeURL := range []string{resource.ClusterType, resource.ListenerType} {
		if err := s.request(typeURL, nil, nil); err != nil {
			return false, s.reason(err)
		}
	}
	if err := s.subscribe(); err != nil {
		return false, s.reason(err)
	}
	for {
		resp, err := s.stream.Recv()
		if err != nil {
			return progress, err
		}
		progress = true
		if err := s.take(ctx, resp); err != nil {
			return progress, s.reason(err)
		}
	}
}

// reason replaces the io.EOF of a failed Send by what the server said.
func (s *session) reason(err error) error {
	if _, recvErr := s.stream.Recv(); recvErr != nil {
		return recvErr
	}
	return err
}

// request subscribes, acknowledges (problem is nil) or refuses.
func (s *session) request(typeURL string, names []string, problem error) error {
	req := &discoveryv3.DiscoveryRequest{
		TypeUrl: typeURL, ResourceNames: names, VersionInfo: s.versions[typeURL], ResponseNonce: s.nonces[typeURL],
	}
	if !s.sent {
		s.sent = true
		req.Node = s.client.node()
	}
	if problem != nil {
		req.ErrorDetail = &rpcstatus.Status{Code: int32(codes.InvalidArgument), Message: problem.Error()}
	}
	return s.stream.Send(req)
}

// take compiles a response and answers it.
func (s *session) take(ctx context.Context, resp *discoveryv3.DiscoveryResponse) error {
	c, typeURL := s.client, resp.GetTypeUrl()
	s.nonces[typeURL] = resp.GetNonce()
	kind := typeURL[strings.LastIndexByte(typeURL, '.')+1:]
	err := c.sink.Accept(ctx, typeURL, resp.GetResources())
	c.count(kind, err)
	if err != nil {
		c.config.Log.Error("refused a configuration; the last good one stays", "type", kind, "version", resp.GetVersionInfo(), "error", err)
		return s.request(typeURL, s.names[typeURL], err)
	}
	s.versions[typeURL] = resp.GetVersionInfo()
	// New subscriptions first: the server then knows, when it sees that clusters
	// are acknowledged, which endpoints to send before routes.
	if err := s.subscribe(); err != nil {
		return err
	}
	return s.request(typeURL, s.names[typeURL], nil)
}

// subscribe asks for what clusters and listeners name, where that changed.
func (s *session) subscribe() error {
	s.secrets.follow(s.client.sink.WantedSecrets())
	wanted := s.client.sink.Wanted()
	for _, typeURL := range []string{resource.SecretType, resource.EndpointType, resource.RouteType} {
		names := wanted[typeURL]
		if slices.Equal(names, s.names[typeURL]) {
			continue
		}
		s.names[typeURL] = names
		if err := s.request(typeURL, names, nil); err != nil {
			return err
		}
	}
	return nil
}
