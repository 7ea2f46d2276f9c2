package ads

import (
	"context"
	"io"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// request is a message of a client, of either protocol.
type request interface{ GetNode() *corev3.Node }

// protocol is what differs between delta xDS and state of the world. One goroutine
// calls it.
type protocol[R request] interface {
	// handle takes a request: of resources, an ACK or a NACK.
	handle(req R) error
	// push sends what the client asked for and does not have.
	push() error
}

// serve lets a client in and serves it.
func serve[R request](ctx context.Context, s *Server, receive func(maxBytes int) (R, error), begin func(*stream) protocol[R]) error {
	identity, err := authenticate(ctx, s.config.Authenticator)
	if err != nil {
		return err
	}
	first, err := receiveFirst(ctx, s.first, identity.Namespace, func() (R, error) { return receive(maxFirstBytes) })
	if err != nil {
		return err
	}
	st, leave, err := s.enter(ctx, identity, first.GetNode().GetId())
	if err != nil {
		return err
	}
	defer leave()
	return run(ctx, st, begin(st), first, receive)
}

// run serves the stream until the client goes, its target is removed or the server
// stops.
func run[R request](ctx context.Context, s *stream, p protocol[R], first R, receive func(maxBytes int) (R, error)) error {
	requests, ended := make(chan R), make(chan error, 1)
	go func() {
		for {
			req, err := receive(maxRequestBytes)
			if err != nil {
				ended <- err
				return
			}
			select {
			case requests <- req:
			case <-ctx.Done():
				return
			}
		}
	}()
	if err := p.handle(first); err != nil {
		return err
	}
	renew := time.NewTimer(time.Hour)
	defer renew.Stop()
	for {
		if err := p.push(); err != nil {
			return err
		}
		renew.Reset(s.secrets.untilRenewal())
		select {
		case req := <-requests:
			if err := p.handle(req); err != nil {
				return err
			}
		case <-s.wake:
		case <-renew.C:
		case <-s.secrets.changed:
			s.secrets.look()
		case <-s.gone.Done():
			return context.Cause(s.gone)
		case <-s.server.stopping:
			return status.Error(codes.Unavailable, "the server stops")
		case err := <-ended:
			if err == io.EOF { //nolint:errorlint // Recv returns it bare.
				return nil
			}
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
