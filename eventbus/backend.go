package eventbus

import (
	"errors"
	"fmt"
	"time"

	"github.com/lambdamesh/lambdamesh/eventbus/admin"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/jetstream"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/stan"
	"github.com/lambdamesh/lambdamesh/eventbus/dispatch"
	"github.com/lambdamesh/lambdamesh/eventbus/ingress"
	"github.com/lambdamesh/lambdamesh/pkg/component"
)

// Backend names a broker that events can be kept in.
type Backend string

// The backends.
const (
	// JetStream is the default.
	JetStream Backend = "jetstream"
	// NATSStreaming is for moving off it: its development has ended.
	NATSStreaming Backend = "stan"
)

// Store is what the parts of the bus ask of a broker, together.
type Store interface {
	component.Component
	ingress.Publisher
	dispatch.Source
	dispatch.DeadLetters
	admin.DeadLetters
}

// attempts are kept by the stores that can; nil: by nobody.
func attempts(store Store) dispatch.Attempts {
	kept, _ := store.(dispatch.Attempts)
	return kept
}

// remembers is a store that knows ids for long; nil: it does not.
func remembers(store Store) ingress.Rememberer {
	can, _ := store.(ingress.Rememberer)
	return can
}

// inspected is a store that can be looked into and repaired; nil: it cannot.
func inspected(store Store) admin.Store {
	can, _ := store.(admin.Store)
	return can
}

// validateBackend names what is wrong with the backend that is chosen; the
// settings of the others do not count.
func (c *Config) validateBackend() error {
	switch c.Backend {
	case JetStream:
		return c.JetStream.Validate()
	case NATSStreaming:
		return c.Stan.Validate()
	}
	return fmt.Errorf("event bus: backend %q: must be %s or %s", c.Backend, JetStream, NATSStreaming)
}

// openBackend makes the store that is chosen, and says when it offers an
// unanswered delivery again. This is the only place that tells backends apart.
func (c *Config) openBackend() (store Store, ackWait time.Duration, err error) {
	switch c.Backend {
	case JetStream:
		store, err = jetstream.New(c.JetStream)
		return store, c.JetStream.AckWait, err
	case NATSStreaming:
		store, err = stan.New(c.Stan)
		return store, c.Stan.AckWait, err
	}
	return nil, 0, errors.New("event bus: the config was not validated")
}
