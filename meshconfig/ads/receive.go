package ads

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	gproto "google.golang.org/protobuf/proto"
)

// Bounds of what is received. A token says who somebody is; whether he may be a
// node is known only when his first request is there.
const (
	// firstRequestTimeout bounds the time to the first request, with the node id.
	firstRequestTimeout = 10 * time.Second
	// maxFirstBytes of the first request: it says what the node is, of which the
	// list of its extensions is most of Envoy's, and asks for all clusters.
	maxFirstBytes = 256 << 10
	// maxRequestBytes of any: the names of all endpoints of a proxy, which are as
	// many as its clusters, at most maxNames. All but the names is bounded as the
	// first request is.
	maxRequestBytes = 8 << 20
	maxNames        = 100_000

	// maxFirst requests are received at once before it is known whether somebody may
	// be the node: 64 MiB, were all as large as any may be. maxFirstPerNamespace of
	// them are of one namespace's accounts; others wait.
	maxFirst             = 8
	maxFirstPerNamespace = 2

	// windowBytes of a stream are received before anybody reads it, and a connection
	// has streamsPerConn of them; clients need one.
	windowBytes    = 64 << 10
	streamsPerConn = 2
)

// received is a request that is judged before it is decoded.
type received struct {
	request gproto.Message
	// names is whether a field of it is a name, or one by name.
	names   func(field protowire.Number) bool
	max     int
	refused error
}

// receive the next request of a stream. The error is a gRPC status, or io.EOF.
func receive(stream adsStream, maxBytes int) (*discoveryv3.DiscoveryRequest, error) {
	request := &discoveryv3.DiscoveryRequest{}
	// resource_names
	return request, receiveInto(stream, &received{request: request, max: maxBytes, names: func(n protowire.Number) bool { return n == 3 }})
}

// receiveDelta is the same for a stream of delta xDS.
func receiveDelta(stream deltaStream, maxBytes int) (*discoveryv3.DeltaDiscoveryRequest, error) {
	request := &discoveryv3.DeltaDiscoveryRequest{}
	// resource_names_subscribe, resource_names_unsubscribe, initial_resource_versions
	return request, receiveInto(stream, &received{request: request, max: maxBytes, names: func(n protowire.Number) bool { return n >= 3 && n <= 5 }})
}

func receiveInto(stream grpc.ServerStream, r *received) error {
	if err := stream.RecvMsg(r); err != nil {
		return err //nolint:wrapcheck // io.EOF, or a status for the client
	}
	if r.refused != nil {
		return status.Error(codes.ResourceExhausted, r.refused.Error())
	}
	return nil
}

// receiveFirst has a place of the namespace for it.
func receiveFirst[R any](ctx context.Context, places *firstPlaces, namespace string, receive func() (R, error)) (first R, err error) {
	ctx, cancel := context.WithTimeout(ctx, firstRequestTimeout)
	defer cancel()
	if !places.enter(ctx, namespace) {
		return first, status.Error(codes.ResourceExhausted, "too many first requests are being received; come again")
	}
	type result struct {
		request R
		err     error
	}
	results := make(chan result, 1)
	go func() {
		defer places.leave(namespace) // not before nothing more is received
		request, err := receive()
		results <- result{request, err}
	}()
	select {
	case r := <-results:
		return r.request, r.err
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return first, status.Error(codes.DeadlineExceeded, "no request came")
		}
		return first, ctx.Err()
	}
}

// codec of the server is proto's, but for requests that are judged first: decoded,
// a message may take a hundred times its bytes.
type codec struct{ encoding.CodecV2 }

// Unmarshal implements encoding.CodecV2.
func (c codec) Unmarshal(data mem.BufferSlice, message any) error {
	r, ok := message.(*received)
	if !ok {
		return c.CodecV2.Unmarshal(data, message)
	}
	if size := data.Len(); size > r.max {
		r.refused = fmt.Errorf("the request has %d bytes, more than %d", size, r.max)
		return nil
	}
	whole := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer whole.Free()
	if r.refused = judge(whole.ReadOnlyData(), r.names); r.refused != nil {
		return nil
	}
	return c.CodecV2.Unmarshal(mem.BufferSlice{whole}, r.request)
}

// judge says what a request has too much of. What is no message it leaves to the
// decoder.
func judge(data []byte, isName func(protowire.Number) bool) error {
	names, others := 0, 0
	for len(data) > 0 {
		number, _, n := protowire.ConsumeField(data)
		if n < 0 {
			return nil
		}
		data = data[n:]
		if isName(number) {
			names++
		} else {
			others += n
		}
	}
	switch {
	case names > maxNames:
		return fmt.Errorf("the request has %d names, more than %d", names, maxNames)
	case others > maxFirstBytes:
		return fmt.Errorf("the request has %d bytes besides names, more than %d", others, maxFirstBytes)
	}
	return nil
}

// firstPlaces are what those share whose first request is received.
type firstPlaces struct {
	all chan struct{} // holds one for each that is taken

	mu         sync.Mutex
	namespaces map[string]*share
}

// share is what a namespace has of them.
type share struct {
	places chan struct{}
	users  int // who have a place or wait for one
}

func newFirstPlaces() *firstPlaces {
	return &firstPlaces{all: make(chan struct{}, maxFirst), namespaces: map[string]*share{}}
}

// enter takes a place, of the namespace's share first: what waits for that takes
// nothing from others. It is false when none is free in time.
func (p *firstPlaces) enter(ctx context.Context, namespace string) bool {
	p.mu.Lock()
	own := p.namespaces[namespace]
	if own == nil {
		own = &share{places: make(chan struct{}, maxFirstPerNamespace)}
		p.namespaces[namespace] = own
	}
	own.users++
	p.mu.Unlock()
	select {
	case own.places <- struct{}{}:
	case <-ctx.Done():
		p.forget(namespace)
		return false
	}
	select {
	case p.all <- struct{}{}:
		return true
	case <-ctx.Done():
		<-own.places
		p.forget(namespace)
		return false
	}
}

// leave returns a place.
func (p *firstPlaces) leave(namespace string) {
	<-p.all
	p.mu.Lock()
	own := p.namespaces[namespace]
	p.mu.Unlock()
	<-own.places
	p.forget(namespace)
}

// forget a namespace that nobody is of any more.
func (p *firstPlaces) forget(namespace string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	own := p.namespaces[namespace]
	if own.users--; own.users == 0 {
		delete(p.namespaces, namespace)
	}
}
