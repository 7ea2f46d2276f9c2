package jetstream

import (
	"context"
	"time"

	"github.com/nats-io/nats.go"
)

// renewPoll is how often the files with the bus's credentials are looked at.
const renewPoll = 5 * time.Second

// renewLoop has the bus connect anew when its credentials have changed: with those
// it has, NATS will throw it out some time, with events on their way.
func (s *Store) renewLoop(ctx context.Context) {
	ticks := time.NewTicker(renewPoll)
	defer ticks.Stop()
	last := s.config.Access.Fingerprint()
	for {
		select {
		case <-ticks.C:
		case <-ctx.Done():
			return
		}
		now := s.config.Access.Fingerprint()
		if now == "" || now == last {
			continue
		}
		if last != "" {
			signal(s.renew)
		}
		last = now
	}
}

// reconnect connects anew, between two groups of events: what publishers send
// meanwhile waits for it.
func (s *Store) reconnect(ctx context.Context) {
	l, err := s.connected()
	if err != nil {
		return // it will connect with what the files hold
	}
	s.log.Info("the credentials for NATS have changed; connecting anew")
	connected := l.nc.StatusChanged(nats.CONNECTED)
	defer l.nc.RemoveStatusListener(connected)
	if err := l.nc.ForceReconnect(); err != nil {
		s.log.Warn("connecting to NATS anew failed", "error", err)
		return
	}
	patience := time.NewTimer(s.config.PublishTimeout)
	defer patience.Stop()
	select {
	case <-connected:
	case <-patience.C:
	case <-ctx.Done():
	}
}
