package jetstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
)

// heartbeat is how often the server says that a fetch still waits. Two of them
// missing end it: a server that was restarted does not know of it any more.
const heartbeat = 2 * time.Second

// Statuses that a server sends in place of a message (NATS ADR-37).
const (
	headerStatus          = "Status"
	headerDescription     = "Description"
	headerPendingMessages = "Nats-Pending-Messages"

	statusHeartbeat = "100"
	statusNoEvents  = "404"
	statusExpired   = "408"
	statusConflict  = "409"

	// Descriptions of a conflict that is none: the request has what it asked for.
	batchCompleted     = "batch completed"
	exceedsMaxBytes    = "message size exceeds maxbytes"
	apiNext            = "$JS.API.CONSUMER.MSG.NEXT."
	fetchHeadroom      = 64 // statuses among a fetch's messages
	expiresThousandths = 900
)

// pull is a request for messages (NATS ADR-13); times are in nanoseconds.
type pull struct {
	Batch     int           `json:"batch"`
	MaxBytes  int           `json:"max_bytes"`
	Expires   time.Duration `json:"expires"`
	Heartbeat time.Duration `json:"idle_heartbeat,omitempty"`
}

// Fetch implements [broker.Consumer]. It does not use the client library's, which
// ends with the status that ends the request: where a consumer has replicas, the
// server sends messages once these know of them, and the status at once. What
// comes after it would be lost until it is sent again, and with a backlog that
// would be every fetch.
func (c *consumer) Fetch(ctx context.Context, window broker.Window, wait time.Duration, handle func(broker.Delivery)) (more bool, err error) {
	l, err := c.store.connected()
	if err != nil {
		return false, err
	}
	info := c.CachedInfo()
	messages := make(chan *nats.Msg, window.Events+fetchHeadroom)
	inbox := l.nc.NewInbox()
	sub, err := l.nc.ChanSubscribe(inbox, messages)
	if err != nil {
		return false, translate(err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	request := pull{Batch: window.Events, MaxBytes: window.Bytes, Expires: wait / 1000 * expiresThousandths}
	// The server ends the request; on a busy machine what it has sent comes later.
	patience := wait + c.store.config.PublishTimeout
	if wait > 4*heartbeat {
		request.Heartbeat, patience = heartbeat, 2*heartbeat
	}
	asked, err := json.Marshal(request)
	if err != nil {
		return false, fmt.Errorf("ask for events: %w", err)
	}
	if err := l.nc.PublishRequest(apiNext+info.Stream+"."+info.Name, inbox, asked); err != nil {
		return false, translate(err)
	}

	silent := time.NewTimer(patience)
	defer silent.Stop()
	// What the server has sent or will send for this request; known when it ends.
	wanted, ended := window.Events, false
	for got := 0; got < wanted; {
		select {
		case msg := <-messages:
			end, err := parseEnd(msg)
			if err != nil {
				return false, err
			}
			switch {
			case end == nil:
				d, err := newDelivery(msg)
				if err != nil {
					return false, fmt.Errorf("%w: %w", broker.ErrUnavailable, err) // it comes again
				}
				got++
				handle(d)
			case end.heartbeat:
			default:
				wanted, more, ended = window.Events-end.pending, end.full, true
				patience = c.store.config.PublishTimeout // for the replicas to agree
			}
			silent.Reset(patience)
		case <-silent.C:
			if len(messages) > 0 { // it was we who took so long
				silent.Reset(patience)
				continue
			}
			if ended || request.Heartbeat == 0 {
				return more, nil // what is missing comes again
			}
			return false, fmt.Errorf("%w: NATS has forgotten a request for events", broker.ErrUnavailable)
		case <-ctx.Done():
			return false, nil
		}
	}
	return more, nil
}

// end is what a status says of a request for messages.
type end struct {
	heartbeat bool // it goes on
	pending   int  // messages of the request that are not sent
	full      bool // the next one is larger than what is left of its bytes
}

// parseEnd reads a status, which is no error when it is how a request ends; nil
// for a message.
func parseEnd(msg *nats.Msg) (*end, error) {
	status, description := msg.Header.Get(headerStatus), msg.Header.Get(headerDescription)
	if status == "" || len(msg.Data) > 0 {
		return nil, nil //nolint:nilnil // it is a message
	}
	reason := strings.ToLower(description)
	switch {
	case status == statusHeartbeat:
		return &end{heartbeat: true}, nil
	case status == statusNoEvents, status == statusExpired,
		status == statusConflict && (strings.Contains(reason, batchCompleted) || strings.Contains(reason, exceedsMaxBytes)):
		pending, err := strconv.Atoi(msg.Header.Get(headerPendingMessages))
		if err != nil {
			pending = 0 // it does not say: all of them may have been sent
		}
		return &end{pending: max(0, pending), full: strings.Contains(reason, exceedsMaxBytes)}, nil
	case strings.Contains(reason, "consumer deleted"):
		return nil, fmt.Errorf("%w: %s", broker.ErrNotFound, description)
	}
	return nil, translate(errors.New("nats: " + strings.TrimSpace(status+" "+description)))
}
