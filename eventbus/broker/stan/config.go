package stan

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"time"

	"github.com/lambdamesh/lambdamesh/eventbus/broker/natsclient"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
)

// Names of the channels.
const (
	EventChannel      = "lambdamesh.events"
	DeadLetterChannel = "lambdamesh.deadletters"
)

// Config says which NATS Streaming to use. How much it keeps and how long is
// configured at the server.
type Config struct {
	// URL of the NATS servers that NATS Streaming is connected to.
	URL string
	// Access says how NATS and the bus know each other.
	Access natsclient.Access
	// ClusterID of the NATS Streaming server. Required.
	ClusterID string
	// ClientID owns the positions of all subscriptions: with another one they
	// begin anew. Default lambdamesh-eventbus. It is used by the one replica that
	// dispatches; connections that only publish have this ID with a suffix.
	ClientID string

	// DedupWindow is how long a repeated source+id is recognized; default 10
	// minutes. At most a million events are remembered.
	DedupWindow time.Duration
	// MaxInflight is how many events of one consumer may be in flight, wait for
	// their next attempt, or are held ready; default 1000. In memory are at most
	// 32 MiB of them, of all consumers together, and those in flight.
	MaxInflight int
	// AckWait is when an unanswered delivery comes again; default 10 s.
	AckWait time.Duration
	// PublishTimeout bounds the wait for the broker to store; default 5 s.
	PublishTimeout time.Duration

	// Logger is told about connection changes; nil means slog.Default.
	Logger *slog.Logger
}

// Defaults fills in what is not set.
func (c Config) Defaults() Config {
	c.ClientID = cmp.Or(c.ClientID, "lambdamesh-eventbus")
	c.DedupWindow = cmp.Or(c.DedupWindow, 10*time.Minute)
	c.MaxInflight = cmp.Or(c.MaxInflight, 1000)
	c.AckWait = cmp.Or(c.AckWait, 10*time.Second)
	c.PublishTimeout = cmp.Or(c.PublishTimeout, 5*time.Second)
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c
}

// validID is what the server takes for a client ID.
var validID = regexp.MustCompile(`^[a-zA-Z0-9_-]+$`)

// Validate names every wrong setting.
func (c Config) Validate() error {
	var errs []error
	if c.URL == "" {
		errs = append(errs, errors.New("NATS Streaming: no NATS server: set its URL"))
	}
	if c.ClusterID == "" {
		errs = append(errs, errors.New("NATS Streaming: the cluster ID is not set: it is what the server was started with (-cid)"))
	}
	if !validID.MatchString(c.ClientID) {
		errs = append(errs, fmt.Errorf("NATS Streaming: client ID %q: only letters, digits, - and _ are allowed", c.ClientID))
	}
	if c.DedupWindow < 0 {
		errs = append(errs, fmt.Errorf("NATS Streaming: dedup window %s: must not be negative", c.DedupWindow))
	}
	if c.MaxInflight < 1 {
		errs = append(errs, fmt.Errorf("NATS Streaming: max in flight %d: must be at least 1", c.MaxInflight))
	}
	if c.AckWait < time.Second {
		errs = append(errs, fmt.Errorf("NATS Streaming: ack wait %s: must be at least 1s", c.AckWait))
	}
	return errors.Join(errs...)
}

// headroom is what a dead letter, and the protocol, add to the message of its
// event.
const headroom = 4 << 10

// MaxEventBytes is how much data of an event the store takes: as much as the
// bus, or less when NATS takes smaller messages.
func (s *Store) MaxEventBytes() int {
	l, err := s.connected()
	if err != nil {
		return event.MaxEventBytes
	}
	return min(event.MaxEventBytes, l.maxPayload-headroom)
}
