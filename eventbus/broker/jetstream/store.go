package jetstream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/natsclient"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
)

// Names of the streams and the prefixes of their subjects.
const (
	EventStream      = "LAMBDAMESH_EVENTS"
	DeadLetterStream = "LAMBDAMESH_DEADLETTERS"

	eventPrefix      = "lambdamesh.events."
	deadLetterPrefix = "lambdamesh.deadletters."
)

// headroom is what a dead letter adds to the message of its event.
const headroom = 4 << 10

// Config says which NATS to use and how much it keeps.
type Config struct {
	// URL of the NATS servers, such as nats://nats.lambdamesh-system.svc:4222.
	// Unused when InProcess is set.
	URL string
	// InProcess connects to an embedded server without the network.
	InProcess interface {
		InProcessConn() (net.Conn, error)
	}
	// Access says how NATS and the bus know each other.
	Access natsclient.Access

	// MaxAge is how long events are kept that every subscription is done with;
	// default 7 days. Others stay until they are delivered or dead letters.
	MaxAge time.Duration
	// MaxBytes is the space for events; default 1 GiB.
	MaxBytes int64
	// DeadLetterMaxBytes is the space for dead letters; default 256 MiB.
	DeadLetterMaxBytes int64
	// DedupWindow is how long a repeated source+id is recognized; default 10
	// minutes.
	DedupWindow time.Duration
	// LongDedupWindow is the same for events that are published once (PublishOnce);
	// default 7 days.
	LongDedupWindow time.Duration
	// Replicas of the streams, 1 to 5; default 1.
	Replicas int

	// AckWait is when an unanswered delivery comes again; default 10 s.
	AckWait time.Duration
	// PublishTimeout bounds the wait for the broker to store; default 5 s.
	PublishTimeout time.Duration

	// Logger is told about connection changes; nil means slog.Default.
	Logger *slog.Logger
}

// Defaults fills in what is not set.
func (c Config) Defaults() Config {
	c.MaxAge = cmp.Or(c.MaxAge, 7*24*time.Hour)
	c.MaxBytes = cmp.Or(c.MaxBytes, 1<<30)
	c.DeadLetterMaxBytes = cmp.Or(c.DeadLetterMaxBytes, 256<<20)
	c.DedupWindow = cmp.Or(c.DedupWindow, 10*time.Minute)
	c.LongDedupWindow = cmp.Or(c.LongDedupWindow, 7*24*time.Hour)
	c.Replicas = cmp.Or(c.Replicas, 1)
	c.AckWait = cmp.Or(c.AckWait, 10*time.Second)
	c.PublishTimeout = cmp.Or(c.PublishTimeout, 5*time.Second)
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c
}

// Servers names the NATS servers for people: without the passwords in the URL.
func (c Config) Servers() string {
	servers := strings.Split(c.URL, ",")
	for i, server := range servers {
		u, err := url.Parse(strings.TrimSpace(server))
		if err != nil {
			servers[i] = "a URL that cannot be read"
			continue
		}
		servers[i] = u.Redacted()
	}
	return strings.Join(servers, ",")
}

// Validate names every wrong setting.
func (c Config) Validate() error {
	errs := []error{c.Access.Validate()}
	if c.URL == "" && c.InProcess == nil {
		errs = append(errs, errors.New("event stream: no NATS server: set its URL"))
	}
	if c.DedupWindow > c.MaxAge {
		errs = append(errs, fmt.Errorf("event stream: the dedup window %s must not exceed the age %s that events are kept to", c.DedupWindow, c.MaxAge))
	}
	if c.LongDedupWindow < c.DedupWindow {
		errs = append(errs, fmt.Errorf("event stream: the long dedup window %s must not be shorter than the dedup window %s", c.LongDedupWindow, c.DedupWindow))
	}
	if c.MaxBytes < 0 || c.DeadLetterMaxBytes < 0 {
		errs = append(errs, errors.New("event stream: the space for events and dead letters must be limited"))
	}
	if c.Replicas < 1 || c.Replicas > 5 {
		errs = append(errs, fmt.Errorf("event stream: %d replicas: must be 1 to 5", c.Replicas))
	}
	if c.AckWait < time.Second {
		errs = append(errs, fmt.Errorf("event stream: ack wait %s: must be at least 1s", c.AckWait))
	}
	return errors.Join(errs...)
}

// Store is the event store in JetStream. It is a component; its methods answer
// [broker.ErrUnavailable] until it is ready and while NATS is away.
type Store struct {
	config Config
	log    *slog.Logger
	ready  chan struct{}

	queue *queue // to the committer, see batch.go
	link  atomic.Pointer[link]

	// failing is why NATS is there and does not store: JetStream is disabled after
	// a disk was full, a write failed, the space is used up. Nil while it stores.
	failing atomic.Pointer[error]

	reconnected chan struct{}
	renew       chan struct{} // the credentials have changed
	full        chan struct{} // something was refused for lack of space
	doubt       chan struct{} // whether events can be stored
	holder      string        // the consumer that keeps old events; of the trim loop
}

// link is an established connection whose streams exist.
type link struct {
	nc     *nats.Conn
	js     jetstream.JetStream
	events jetstream.Stream
	dead   jetstream.Stream
}

// New prepares a store; Run connects it.
func New(config Config) (*Store, error) {
	config = config.Defaults()
	if err := config.Validate(); err != nil {
		return nil, err
	}
	return &Store{
		config:      config,
		log:         config.Logger,
		ready:       make(chan struct{}),
		queue:       newQueue(),
		reconnected: make(chan struct{}, 1),
		renew:       make(chan struct{}, 1),
		full:        make(chan struct{}, 1),
		doubt:       make(chan struct{}, 1),
	}, nil
}

// Name returns "event-stream".
func (s *Store) Name() string { return "event-stream" }

// Ready is closed when the streams exist for the first time.
func (s *Store) Ready() <-chan struct{} { return s.ready }

// Check returns nil when events can be published and consumed now.
func (s *Store) Check() error {
	if _, err := s.connected(); err != nil {
		return err
	}
	if why := s.failing.Load(); why != nil {
		return fmt.Errorf("JetStream does not store events: look at the log and the disk of NATS: %w", *why)
	}
	return nil
}

// MaxEventBytes is how much data of an event the store takes: as much as the
// bus, or less when NATS takes smaller messages.
func (s *Store) MaxEventBytes() int {
	l := s.link.Load()
	if l == nil {
		return event.MaxEventBytes
	}
	return min(event.MaxEventBytes, int(l.nc.MaxPayload())-headroom)
}

// Run connects, keeps the streams in place, and publishes until ctx ends. NATS
// being away is no failure: Run goes on trying.
func (s *Store) Run(ctx context.Context) error {
	nc, err := s.connect()
	if err != nil {
		return fmt.Errorf("event stream: %w", err)
	}
	defer nc.Close()

	var loops sync.WaitGroup
	loops.Go(func() { s.commitLoop(ctx) })
	loops.Go(func() { s.trimLoop(ctx) })
	loops.Go(func() { s.probeLoop(ctx) })
	loops.Go(func() { s.renewLoop(ctx) })
	defer loops.Wait()

	js, err := jetstream.New(nc, jetstream.WithPublishAsyncTimeout(s.config.PublishTimeout), jetstream.WithDefaultTimeout(s.config.PublishTimeout))
	if err != nil {
		return fmt.Errorf("event stream: %w", err)
	}
	for isReady := false; ; {
		if !s.establish(ctx, nc, js) {
			break
		}
		if !isReady {
			close(s.ready)
			isReady = true
		}
		select {
		case <-s.reconnected: // perhaps to a server that lost its data
			continue
		case <-ctx.Done():
		}
		break
	}
	// Acks of deliveries are sent without waiting for an answer.
	flushCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := nc.FlushWithContext(flushCtx); err != nil && nc.IsConnected() {
		s.log.Warn("flushing acknowledgements failed: some events will be delivered again", "error", err)
	}
	return nil
}

func (s *Store) connect() (*nats.Conn, error) {
	opts := []nats.Option{
		nats.Name("lambdamesh-eventbus"),
		nats.RetryOnFailedConnect(true),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(250 * time.Millisecond),
		nats.ReconnectJitter(250*time.Millisecond, time.Second),
		nats.ReconnectBufSize(-1), // publishers are told at once, not after a buffer has gone stale
		nats.PingInterval(10 * time.Second),
		nats.MaxPingsOutstanding(2),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				s.log.Warn("disconnected from NATS; trying again", "error", err)
			}
		}),
		nats.ConnectHandler(func(*nats.Conn) { signal(s.reconnected) }),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			s.log.Info("connected to NATS again", "server", nc.ConnectedUrlRedacted())
			signal(s.reconnected)
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			s.log.Warn("NATS reports an error", "error", err)
		}),
	}
	opts = append(opts, s.config.Access.Options(s.log)...)
	if s.config.InProcess != nil {
		opts = append(opts, nats.InProcessServer(s.config.InProcess))
	}
	nc, err := nats.Connect(s.config.URL, opts...)
	if err != nil {
		return nil, fmt.Errorf("connect to NATS at %s: %w", s.config.Servers(), err)
	}
	return nc, nil
}

// signal marks an event in a channel that holds one.
func signal(to chan<- struct{}) {
	select {
	case to <- struct{}{}:
	default:
	}
}

// establish makes the streams as they should be, however long it takes. It
// returns false when ctx ended.
func (s *Store) establish(ctx context.Context, nc *nats.Conn, js jetstream.JetStream) bool {
	const pause = 500 * time.Millisecond
	var last string
	for {
		l, err := s.ensureStreams(ctx, nc, js)
		if err == nil {
			s.link.Store(l)
			s.probe(ctx, l)
			if limit := s.MaxEventBytes(); limit < event.MaxEventBytes {
				s.log.Warn("NATS takes smaller messages than the bus: events are limited accordingly", "bytes", limit)
			}
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		if err.Error() != last { // one line per fact, not per attempt
			s.log.Warn("event streams are not in place; trying again", "error", err)
			last = err.Error()
		}
		select {
		case <-time.After(pause):
		case <-s.reconnected:
		case <-ctx.Done():
			return false
		}
	}
}

func (s *Store) ensureStreams(ctx context.Context, nc *nats.Conn, js jetstream.JetStream) (*link, error) {
	if !nc.IsConnected() {
		return nil, fmt.Errorf("%w: not connected to NATS", broker.ErrUnavailable)
	}
	ctx, cancel := context.WithTimeout(ctx, s.config.PublishTimeout)
	defer cancel()
	// Limits retention with DiscardNew and without an age: what is accepted stays
	// until trim removes it, what does not fit is refused.
	events, err := ensureStream(ctx, js, jetstream.StreamConfig{
		Name:               EventStream,
		Description:        "Lambdamesh: accepted events",
		Subjects:           []string{eventPrefix + ">"},
		Storage:            jetstream.FileStorage,
		Retention:          jetstream.LimitsPolicy,
		Discard:            jetstream.DiscardNew,
		MaxBytes:           s.config.MaxBytes,
		Duplicates:         s.config.DedupWindow,
		Replicas:           s.config.Replicas,
		AllowDirect:        true,
		AllowAtomicPublish: true,
	})
	if err != nil {
		return nil, err
	}
	dead, err := ensureStream(ctx, js, jetstream.StreamConfig{
		Name:        DeadLetterStream,
		Description: "Lambdamesh: events a subscription could not be given",
		Subjects:    []string{deadLetterPrefix + ">"},
		Storage:     jetstream.FileStorage,
		Retention:   jetstream.LimitsPolicy,
		Discard:     jetstream.DiscardNew,
		MaxBytes:    s.config.DeadLetterMaxBytes,
		Duplicates:  s.config.DedupWindow,
		Replicas:    s.config.Replicas,
		AllowDirect: true,
	})
	if err != nil {
		return nil, err
	}
	// Without it the bus works, and explains and counts less.
	if _, err := ensureStream(ctx, js, s.attemptConfig()); err != nil {
		s.log.Warn("attempts are not kept: they are counted anew after a restart, and cannot be explained", "error", err)
	}
	// Without it the bus works, and refuses events that ask for it.
	if _, err := ensureStream(ctx, js, s.seenConfig()); err != nil {
		s.log.Warn("the keys of webhooks' events are not kept: these are refused", "error", err)
	}
	return &link{nc: nc, js: js, events: events, dead: dead}, nil
}

// ensureStream makes a stream as config says. One that is so already is left
// alone: an update without a change would make NATS write to its disk at every
// connect, while subscriptions make their consumers in the same stream.
func ensureStream(ctx context.Context, js jetstream.JetStream, config jetstream.StreamConfig) (jetstream.Stream, error) {
	s, err := js.CreateStream(ctx, config)
	switch {
	case errors.Is(err, jetstream.ErrStreamNameAlreadyInUse): // by one that differs
		s, err = js.UpdateStream(ctx, config)
	case errors.Is(translate(err), broker.ErrFull):
		// A single server looks for room for another stream of that size before it
		// looks whether there is one of that name.
		if existing, updateErr := js.UpdateStream(ctx, config); !errors.Is(updateErr, jetstream.ErrStreamNotFound) {
			s, err = existing, updateErr
		}
	}
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", config.Name, err)
	}
	return s, nil
}

// connected returns the link, or ErrUnavailable.
func (s *Store) connected() (*link, error) {
	l := s.link.Load()
	if l == nil || !l.nc.IsConnected() {
		return nil, fmt.Errorf("%w: not connected to NATS", broker.ErrUnavailable)
	}
	return l, nil
}
