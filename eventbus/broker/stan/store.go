package stan

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/stan.go"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
)

// The server is taken for lost, and the connection made anew, when it answers
// none of so many pings.
const (
	pingSeconds = 2
	pingsLost   = 5
)

// Store is the event store in NATS Streaming. It is a component; its methods
// answer [broker.ErrUnavailable] until it is ready and while the server is away.
type Store struct {
	config Config
	log    *slog.Logger
	ready  chan struct{}
	events *channel
	dead   *channel

	link    atomic.Pointer[link] // for publishing and reading along
	failing atomic.Bool          // the server is there and does not store
	held    atomic.Int64         // bytes of events in the memory of the consumers

	// subscribing serializes what changes consumers at the server.
	subscribing sync.Mutex
	consuming   *link // with the client ID that owns the positions; made when needed
	consumers   map[string]*consumer
	stopped     bool
}

// link is an established connection. It ends with the first interruption, also
// when NATS was reached again: what the server sent meanwhile is lost until its
// ack wait is over, and it may be another server.
type link struct {
	stan.Conn
	maxPayload int
	lost       chan struct{}
	lose       func() // closes lost
}

// isLost tells that the connection was interrupted, also before the client has
// called anybody about it: what is sent between that and the end of the link may
// be stored, and its answer goes with the link.
func (l *link) isLost() bool {
	select {
	case <-l.lost:
		return true
	default:
		nc := l.NatsConn()
		return nc == nil || nc.Stats().Reconnects > 0
	}
}

// New prepares a store; Run connects it.
func New(config Config) (*Store, error) {
	config = config.Defaults()
	if err := config.Validate(); err != nil {
		return nil, err
	}
	return &Store{
		config:    config,
		log:       config.Logger,
		ready:     make(chan struct{}),
		events:    newChannel(EventChannel, &config),
		dead:      newChannel(DeadLetterChannel, &config),
		consumers: map[string]*consumer{},
	}, nil
}

// Name returns "event-stan".
func (s *Store) Name() string { return "event-stan" }

// Ready is closed when both channels were read along with for the first time.
func (s *Store) Ready() <-chan struct{} { return s.ready }

// Check returns nil when events can be published and consumed now.
func (s *Store) Check() error {
	if _, err := s.connected(); err != nil {
		return err
	}
	if s.failing.Load() {
		return fmt.Errorf("%w: NATS Streaming does not store events: look at its log and its disk", broker.ErrUnavailable)
	}
	return nil
}

// connected returns the link, or ErrUnavailable.
func (s *Store) connected() (*link, error) {
	if l := s.link.Load(); l != nil {
		if nc := l.NatsConn(); nc != nil && nc.IsConnected() && !l.isLost() {
			return l, nil
		}
	}
	return nil, fmt.Errorf("%w: not connected to NATS Streaming", broker.ErrUnavailable)
}

// Run connects, reads along, and connects again when the server was lost, until
// ctx ends. The server being away is no failure: Run goes on trying.
func (s *Store) Run(ctx context.Context) error {
	var reattaching sync.WaitGroup
	reattaching.Go(func() { s.reattachLoop(ctx) })
	defer reattaching.Wait()

	isReady := false
	var last string
	for ctx.Err() == nil {
		l, err := s.establish(ctx)
		if err != nil {
			if err.Error() != last && ctx.Err() == nil { // one line per fact, not per attempt
				s.log.Warn("NATS Streaming is not reached; trying again", "error", err)
				last = err.Error()
			}
			select {
			case <-time.After(500 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		last = ""
		s.link.Store(l)
		if limit := s.MaxEventBytes(); limit < event.MaxEventBytes {
			s.log.Warn("NATS takes smaller messages than the bus: events are limited accordingly", "bytes", limit)
		}
		if !isReady {
			close(s.ready)
			isReady = true
		}
		s.watch(ctx, l)
		s.link.Store(nil)
		s.close(l)
	}
	s.subscribing.Lock()
	defer s.subscribing.Unlock()
	s.stopped = true
	if s.consuming != nil {
		s.close(s.consuming)
	}
	for _, c := range s.consumers {
		c.end()
	}
	return nil
}

func (s *Store) establish(ctx context.Context) (*link, error) {
	l, err := s.connect(s.config.ClientID + "-" + rand.Text())
	if err != nil {
		return nil, err
	}
	for _, c := range []*channel{s.events, s.dead} {
		if err := c.follow(ctx, l); err != nil {
			s.close(l)
			return nil, err
		}
	}
	return l, nil
}

// watch returns when the link is lost or ctx ends. A server that failed to store
// is asked again, so that a bus that is not ready, and gets no events therefore,
// becomes ready again.
func (s *Store) watch(ctx context.Context, l *link) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if s.failing.Load() {
				if _, err := s.events.sync(ctx, l); err == nil {
					s.failing.Store(false)
				}
			}
		case <-l.lost:
			return
		case <-ctx.Done():
			return
		}
	}
}

// connect makes one connection with a client ID.
func (s *Store) connect(id string) (*link, error) {
	l := &link{lost: make(chan struct{})}
	l.lose = sync.OnceFunc(func() { close(l.lost) })
	opts := []nats.Option{
		nats.Name(id),
		nats.ReconnectWait(250 * time.Millisecond),
		nats.ReconnectJitter(250*time.Millisecond, time.Second),
		nats.ReconnectBufSize(-1), // nobody waits any more for what would be sent later
		nats.PingInterval(10 * time.Second),
		nats.MaxPingsOutstanding(2),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				s.log.Warn("disconnected from NATS; trying again", "error", err)
			}
		}),
		nats.ReconnectHandler(func(*nats.Conn) { l.lose() }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			s.log.Warn("NATS reports an error", "error", err)
		}),
	}
	opts = append(opts, s.config.Access.Options(s.log)...)
	conn, err := stan.Connect(s.config.ClusterID, id,
		stan.NatsURL(s.config.URL), stan.NatsOptions(opts...),
		stan.ConnectWait(s.config.PublishTimeout), stan.PubAckWait(s.config.PublishTimeout),
		stan.Pings(pingSeconds, pingsLost),
		stan.SetConnectionLostHandler(func(_ stan.Conn, err error) {
			s.log.Warn("lost NATS Streaming; connecting anew", "client", id, "error", err)
			l.lose()
		}),
	)
	if err != nil {
		return nil, fmt.Errorf("connect to cluster %s of NATS Streaming as %s: %w", s.config.ClusterID, id, translate(err))
	}
	l.Conn = conn
	if nc := conn.NatsConn(); nc != nil {
		l.maxPayload = int(nc.MaxPayload())
	}
	return l, nil
}

// close ends a connection; acknowledgements on their way get through first.
func (s *Store) close(l *link) {
	nc := l.NatsConn()
	if nc == nil { // closed already
		return
	}
	if nc.IsConnected() {
		if err := nc.FlushTimeout(time.Second); err != nil {
			s.log.Warn("flushing acknowledgements failed: some events will be delivered again", "error", err)
		}
	}
	if err := l.Close(); err != nil {
		s.log.Debug("closing a connection to NATS Streaming failed: the server will find out", "error", err)
	}
}

// reattachLoop subscribes the consumers again when their connection was lost.
func (s *Store) reattachLoop(ctx context.Context) {
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.reattach()
		case <-ctx.Done():
			return
		}
	}
}

func (s *Store) reattach() {
	s.subscribing.Lock()
	defer s.subscribing.Unlock()
	if s.consuming == nil {
		return // nobody subscribed here, which may be another replica's part
	}
	for name, c := range s.consumers {
		if err := s.attach(c); err != nil {
			s.log.Debug("subscribing again failed; trying again", "consumer", name, "error", err)
			return
		}
	}
}

// Publish stores events and returns when all of them are on disk. When it fails,
// some may be stored: publishing them again is safe inside the dedup window.
func (s *Store) Publish(ctx context.Context, events []event.Event) ([]broker.Receipt, error) {
	l, err := s.connected()
	if err != nil {
		return nil, err
	}
	receipts := make([]broker.Receipt, len(events))
	keys, payloads := make([]key, len(events)), make([][]byte, len(events))
	for i := range events {
		m := eventMessage(&events[i])
		keys[i], payloads[i] = m.key(), m.encode()
		if len(payloads[i])+headroom > l.maxPayload {
			return nil, fmt.Errorf("%w: NATS takes %d bytes", event.ErrTooLarge, l.maxPayload-headroom)
		}
	}
	if err := s.events.settle(ctx, l, keys...); err != nil {
		return nil, err
	}
	publications := make([]*publication, len(events))
	for i := range events {
		receipts[i].ID = events[i].ID
		publications[i], receipts[i].Duplicate = s.events.publish(l, keys[i], payloads[i])
	}
	for i, p := range publications {
		sequence, err := s.events.wait(ctx, keys[i], p)
		if err != nil {
			if ctx.Err() == nil && !errors.Is(err, event.ErrTooLarge) {
				s.failing.Store(true)
			}
			return nil, err
		}
		receipts[i].Sequence = sequence
	}
	s.failing.Store(false)
	return receipts, nil
}

// Events calls handle for every event that is stored now, in order.
func (s *Store) Events(ctx context.Context, handle func(*event.Event) error) error {
	l, err := s.connected()
	if err != nil {
		return err
	}
	return s.events.read(ctx, l, 1, func(sequence uint64, _ time.Time, payload []byte) error {
		e, _, err := readEvent(payload)
		if err != nil {
			s.log.Error("a message in the event channel is no event: skipped", "sequence", sequence, "error", err)
			return nil
		}
		return handle(&e)
	})
}

func contains(err error, texts ...string) bool {
	for _, text := range texts {
		if strings.Contains(err.Error(), text) {
			return true
		}
	}
	return false
}
