package client

import (
	"context"
	"maps"
	"slices"
	"strings"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

// deltaSession is what outlives a stream of delta xDS: the versions of what was
// accepted, which are told to the next one, so that it brings only what differs.
type deltaSession struct {
	client   *Client
	secrets  *secretStreams
	versions map[string]map[string]string // by type and name
	stream   discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	names    map[string][]string
	begun    map[string]bool
	sent     bool
}

// run serves one stream. progress tells that it brought something.
func (s *deltaSession) run(ctx context.Context, client grpc.ClientConnInterface) (progress bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.stream, err = discoveryv3.NewAggregatedDiscoveryServiceClient(client).DeltaAggregatedResources(ctx, grpc.WaitForReady(true))
	if err != nil {
		return false, err
	}
	s.names, s.begun, s.sent = map[string][]string{}, map[string]bool{}, false
	// Listeners first: the first request is to be small, and they are few.
	for _, typeURL := range []string{resource.ListenerType, resource.ClusterType} {
		if err := s.request(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeURL}); err != nil {
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
func (s *deltaSession) reason(err error) error {
	if _, recvErr := s.stream.Recv(); recvErr != nil {
		return recvErr
	}
	return err
}

// request sends one, with what is to be said once of a stream and of a type.
func (s *deltaSession) request(req *discoveryv3.DeltaDiscoveryRequest) error {
	if !s.sent {
		s.sent = true
		req.Node = s.client.node()
	}
	if !s.begun[req.GetTypeUrl()] {
		s.begun[req.GetTypeUrl()] = true
		req.InitialResourceVersions = s.versions[req.GetTypeUrl()]
	}
	return s.stream.Send(req)
}

// take compiles a response and answers it.
func (s *deltaSession) take(ctx context.Context, resp *discoveryv3.DeltaDiscoveryResponse) error {
	c, typeURL := s.client, resp.GetTypeUrl()
	kind := typeURL[strings.LastIndexByte(typeURL, '.')+1:]
	err := c.sink.AcceptChanges(ctx, typeURL, resp.GetResources(), resp.GetRemovedResources())
	c.count(kind, err)
	answer := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeURL, ResponseNonce: resp.GetNonce()}
	if err != nil {
		c.config.Log.Error("refused a configuration; the last good one stays", "type", kind, "resources", len(resp.GetResources()), "error", err)
		answer.ErrorDetail = &rpcstatus.Status{Code: int32(codes.InvalidArgument), Message: err.Error()}
		return s.request(answer)
	}
	of := s.versions[typeURL]
	if of == nil {
		of = map[string]string{}
		s.versions[typeURL] = of
	}
	for _, r := range resp.GetResources() {
		of[r.GetName()] = r.GetVersion()
	}
	for _, name := range resp.GetRemovedResources() {
		delete(of, name)
	}
	// New subscriptions first: the server then knows, when it sees that clusters
	// are acknowledged, which endpoints to send before routes. Those follow from
	// these types only.
	switch typeURL {
	case resource.ClusterType, resource.ListenerType, resource.RouteType:
		if err := s.subscribe(); err != nil {
			return err
		}
	}
	return s.request(answer)
}

// subscribe asks for what clusters, listeners and tables of routes name, where that
// changed.
func (s *deltaSession) subscribe() error {
	s.secrets.follow(s.client.sink.WantedSecrets())
	wanted := s.client.sink.Wanted()
	for _, typeURL := range []string{resource.SecretType, resource.EndpointType, resource.RouteType, resource.VirtualHostType} {
		names := wanted[typeURL]
		if slices.Equal(names, s.names[typeURL]) {
			continue
		}
		added, gone := difference(names, s.names[typeURL]), difference(s.names[typeURL], names)
		s.names[typeURL] = names
		maps.DeleteFunc(s.versions[typeURL], func(name, _ string) bool {
			if typeURL == resource.VirtualHostType {
				name = name[:max(0, strings.LastIndexByte(name, '/'))]
			}
			_, wanted := slices.BinarySearch(names, name)
			return !wanted
		})
		if err := s.request(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeURL, ResourceNamesSubscribe: added, ResourceNamesUnsubscribe: gone}); err != nil {
			return err
		}
	}
	return nil
}

// difference is what is in a and not in b; both are sorted.
func difference(a, b []string) []string {
	var out []string
	for _, name := range a {
		if _, found := slices.BinarySearch(b, name); !found {
			out = append(out, name)
		}
	}
	return out
}
