package client

import (
	"context"
	"fmt"
	"slices"
	"sync"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
)

// secretStreams follow the secrets of further servers, each on a stream of its
// own, as Envoy does.
type secretStreams struct {
	client  *Client
	ctx     context.Context //nolint:containedctx // of Run, whose streams these are
	servers map[string]*grpc.ClientConn
	running map[secretName]context.CancelFunc
	ended   sync.WaitGroup
}

type secretName struct{ server, name string }

// newSecretStreams has none yet; they end with ctx, and close waits for that.
func newSecretStreams(ctx context.Context, c *Client) (*secretStreams, error) {
	s := &secretStreams{client: c, ctx: ctx, servers: map[string]*grpc.ClientConn{}, running: map[secretName]context.CancelFunc{}}
	for server, address := range c.config.SecretServers {
		connection, err := connect(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			s.close()
			return nil, fmt.Errorf("prepare the connection to the SDS server %s at %s: %w", server, address, err)
		}
		s.servers[server] = connection
	}
	return s, nil
}

func (s *secretStreams) close() {
	for _, cancel := range s.running {
		cancel()
	}
	s.ended.Wait()
	for _, connection := range s.servers {
		_ = connection.Close()
	}
}

// follow starts what is wanted now, by server, and ends what is not any more.
func (s *secretStreams) follow(wanted map[string][]string) {
	for of, cancel := range s.running {
		if !slices.Contains(wanted[of.server], of.name) {
			cancel()
			delete(s.running, of)
		}
	}
	for server, names := range wanted {
		for _, name := range names {
			of := secretName{server, name}
			if s.running[of] != nil {
				continue
			}
			ctx, cancel := context.WithCancel(s.ctx)
			s.running[of] = cancel
			s.ended.Go(func() {
				s.client.repeat(ctx, "the SDS server "+server+" for "+name, func() (bool, error) {
					return s.run(ctx, of)
				})
			})
		}
	}
}

// run serves one stream.
func (s *secretStreams) run(ctx context.Context, of secretName) (progress bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := secretv3.NewSecretDiscoveryServiceClient(s.servers[of.server]).StreamSecrets(ctx, grpc.WaitForReady(true))
	if err != nil {
		return false, err
	}
	request := &discoveryv3.DiscoveryRequest{Node: s.client.node(), TypeUrl: resource.SecretType, ResourceNames: []string{of.name}}
	for {
		if err := stream.Send(request); err != nil {
			_, reason := stream.Recv() // what the server said
			return progress, reason
		}
		response, err := stream.Recv()
		if err != nil {
			return progress, err
		}
		progress = true
		request = &discoveryv3.DiscoveryRequest{
			TypeUrl: resource.SecretType, ResourceNames: []string{of.name}, VersionInfo: request.GetVersionInfo(), ResponseNonce: response.GetNonce(),
		}
		err = s.client.sink.AcceptSecrets(of.server, response.GetResources())
		s.client.count("Secret", err)
		if err != nil {
			s.client.config.Log.Error("refused a secret; the last good one stays", "server", of.server, "secret", of.name, "error", err)
			request.ErrorDetail = &rpcstatus.Status{Code: int32(codes.InvalidArgument), Message: err.Error()}
			continue
		}
		request.VersionInfo = response.GetVersionInfo()
	}
}
