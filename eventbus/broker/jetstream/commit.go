package jetstream

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
)

// The server syncs its file once per message, or once per atomic batch. So many
// waiting publishers share one batch (a group commit), while few are faster with
// plain publishes: a batch has a fixed cost of some milliseconds, about that of
// ten of those.
const (
	batchThreshold = 10
	maxBatch       = 1000    // the server's limit
	maxBatchBytes  = 4 << 20 // memory a commit may hold in the server
)

// request is a call of Publish on its way to the committer.
type request struct {
	msgs []*nats.Msg
	size int          // bytes of them all
	done chan outcome // buffered: the committer never waits
}

type outcome struct {
	receipts []broker.Receipt
	err      error
}

// Publish stores events and returns when all of them are on disk. When it fails,
// some may be stored: publishing them again is safe inside the dedup window.
func (s *Store) Publish(ctx context.Context, events []event.Event) ([]broker.Receipt, error) {
	if len(events) == 0 {
		return []broker.Receipt{}, nil
	}
	l, err := s.connected()
	if err != nil {
		return nil, err
	}
	r := &request{done: make(chan outcome, 1), msgs: make([]*nats.Msg, len(events))}
	for i := range events {
		e := &events[i]
		msg := encode(eventPrefix+broker.SubjectOf(e.Source, e.Type), e)
		if msg.Size()+headroom > int(l.nc.MaxPayload()) {
			return nil, fmt.Errorf("%w: NATS takes %d bytes", event.ErrTooLarge, l.nc.MaxPayload()-headroom)
		}
		msg.Header.Set(jetstream.MsgIDHeader, e.Key())
		r.msgs[i] = msg
		r.size += msg.Size()
	}
	if err := s.queue.add(events[0].Source, r); err != nil {
		return nil, err
	}
	select {
	case out := <-r.done:
		if out.err != nil {
			return nil, out.err
		}
		for i := range events {
			out.receipts[i].ID = events[i].ID
		}
		return out.receipts, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", broker.ErrUnavailable, ctx.Err())
	}
}

// commitLoop writes one group of requests after the other. While one is being
// written the next gathers, so groups grow with the load by themselves.
func (s *Store) commitLoop(ctx context.Context) {
	for {
		select {
		case <-s.queue.wake:
		case <-s.renew:
			s.reconnect(ctx)
		case <-ctx.Done():
		}
		for ctx.Err() == nil {
			select {
			case <-s.renew:
				s.reconnect(ctx)
			default:
			}
			group := s.queue.take()
			if group == nil {
				break
			}
			s.commit(ctx, group)
		}
		if ctx.Err() != nil {
			break
		}
	}
	for _, r := range s.queue.close() { // came too late to be stored
		r.done <- outcome{err: fmt.Errorf("%w: shutting down", broker.ErrUnavailable)}
	}
}

// pending is a message of a group and what became of it.
type pending struct {
	msg      *nats.Msg
	receipt  broker.Receipt
	err      error
	answered bool // somebody was told that it is stored
}

// commit stores the messages of a group and answers each request.
func (s *Store) commit(ctx context.Context, group []*request) {
	l, err := s.connected()
	if err != nil {
		for _, r := range group {
			r.done <- outcome{err: err}
		}
		return
	}

	// Two publishers may send one event at the same time; a batch must not hold
	// it twice.
	var events []*pending
	index := map[string]*pending{}
	for _, r := range group {
		for _, m := range r.msgs {
			id := m.Header.Get(jetstream.MsgIDHeader)
			if index[id] == nil {
				index[id] = &pending{msg: m}
				events = append(events, index[id])
			}
		}
	}

	// A group that began is finished when we are told to stop meanwhile.
	s.store(context.WithoutCancel(ctx), l, events)
	s.learn(events)

	for _, r := range group {
		out := outcome{receipts: make([]broker.Receipt, len(r.msgs))}
		for i, m := range r.msgs {
			p := index[m.Header.Get(jetstream.MsgIDHeader)]
			if p.err != nil {
				out.err = p.err
				break
			}
			out.receipts[i] = p.receipt
			out.receipts[i].Duplicate = p.receipt.Duplicate || p.answered
			p.answered = true
		}
		r.done <- out
	}
}

// Refusals of a batch, of which nothing was stored.
var (
	errHoldsDuplicates = errors.New("some of the batch are stored already")
	errNoBatch         = errors.New("the server does not take the batch")
)

// maxRounds is how often a group is tried as a batch without what is stored
// already, until it is stored one by one. One round finds all of them, unless
// another replica of the bus stores some in between.
const maxRounds = 3

// store stores events and notes what became of each. Its cost must not depend on
// what publishers send: a batch that holds duplicates is a batch without them, and
// not a thousand messages one by one.
func (s *Store) store(ctx context.Context, l *link, events []*pending) {
	for range maxRounds {
		if len(events) < batchThreshold || len(events) > maxBatch {
			s.publishEach(l, events)
			return
		}
		err := s.publishBatch(ctx, l, events)
		switch {
		case errors.Is(err, errNoBatch):
			s.publishEach(l, events)
			return
		case errors.Is(err, errHoldsDuplicates):
			if events, err = s.withoutStored(l, events); err == nil {
				continue
			}
		}
		if err != nil {
			fail(events, err)
		}
		return
	}
	// Another replica is storing the same events just now: one by one each of them
	// is stored once, whoever comes first.
	s.publishEach(l, events)
}

func fail(events []*pending, err error) {
	for _, p := range events {
		p.err = err
	}
}

// withoutStored notes which events are stored already and returns the others. It
// asks the server, which knows them by their id: a message that expects an
// impossible one before it is answered as a duplicate or refused, and costs no
// sync. When it fails it returns those that nothing is known about.
func (s *Store) withoutStored(l *link, events []*pending) ([]*pending, error) {
	impossible := rand.Text()
	acks := make([]jetstream.PubAckFuture, len(events))
	var failed error
	for i, p := range events {
		question := nats.NewMsg(p.msg.Subject)
		question.Header.Set(jetstream.MsgIDHeader, p.msg.Header.Get(jetstream.MsgIDHeader))
		acks[i], failed = l.js.PublishMsgAsync(question, jetstream.WithExpectStream(EventStream), jetstream.WithExpectLastMsgID(impossible))
		if failed != nil {
			break
		}
	}
	var rest []*pending
	for i, p := range events {
		if acks[i] == nil {
			rest = append(rest, p)
			continue
		}
		select {
		case ok := <-acks[i].Ok():
			if ok.Duplicate {
				p.receipt = broker.Receipt{Sequence: ok.Sequence, Duplicate: true}
				continue
			}
			failed = errors.New("the server stored a question")
		case err := <-acks[i].Err():
			if api, ok := errors.AsType[*jetstream.APIError](err); !ok || api.ErrorCode != codeOtherLastID {
				failed = err
			}
		}
		rest = append(rest, p)
	}
	if failed != nil {
		failed = translate(fmt.Errorf("ask which events are stored: %w", failed))
	}
	return rest, failed
}

// publishEach sends all messages and then waits for each acknowledgement.
func (s *Store) publishEach(l *link, events []*pending) {
	acks := make([]jetstream.PubAckFuture, len(events))
	for i, p := range events {
		// A new header each time: the client library adds its own to it.
		ack, err := l.js.PublishMsgAsync(p.msg, jetstream.WithExpectStream(EventStream))
		if err != nil {
			p.err = translate(err)
			continue
		}
		acks[i] = ack
	}
	for i, ack := range acks {
		if ack == nil {
			continue
		}
		select {
		case ok := <-ack.Ok():
			events[i].receipt = broker.Receipt{Sequence: ok.Sequence, Duplicate: ok.Duplicate}
		case err := <-ack.Err():
			events[i].err = translate(err)
		}
	}
}

// Headers of an atomic batch (NATS ADR-50).
const (
	headerBatchID       = "Nats-Batch-Id"
	headerBatchSequence = "Nats-Batch-Sequence"
	headerBatchCommit   = "Nats-Batch-Commit"
)

// publishBatch stores events as one atomic batch, all or none.
func (s *Store) publishBatch(ctx context.Context, l *link, events []*pending) error {
	id := rand.Text()
	defer func() {
		for _, p := range events {
			p.msg.Header.Del(headerBatchID)
			p.msg.Header.Del(headerBatchSequence)
			p.msg.Header.Del(headerBatchCommit)
		}
	}()
	for i, p := range events {
		p.msg.Header.Set(headerBatchID, id)
		p.msg.Header.Set(headerBatchSequence, strconv.Itoa(i+1))
		if i < len(events)-1 {
			if err := l.nc.PublishMsg(p.msg); err != nil {
				return translate(err)
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, s.config.PublishTimeout)
	defer cancel()
	last := events[len(events)-1].msg
	last.Header.Set(headerBatchCommit, "1")
	reply, err := l.nc.RequestMsgWithContext(ctx, last)
	if err != nil {
		return translate(err)
	}
	var ack struct {
		Error    *jetstream.APIError `json:"error"`
		Sequence uint64              `json:"seq"`
		Count    int                 `json:"count"`
	}
	if err := json.Unmarshal(reply.Data, &ack); err != nil {
		return translate(fmt.Errorf("answer to a batch: %w", err))
	}
	if ack.Error != nil {
		if ack.Error.ErrorCode == codeBatchHoldsDuplicates {
			return errHoldsDuplicates
		}
		if err := translate(ack.Error); errors.Is(err, broker.ErrFull) {
			return err
		}
		s.log.Debug("a batch was refused; publishing one by one", "error", ack.Error)
		return errNoBatch
	}
	if ack.Sequence == 0 || ack.Count != len(events) {
		return fmt.Errorf("%w: a batch of %d was acknowledged as %d", broker.ErrUnavailable, len(events), ack.Count)
	}
	for i, p := range events {
		p.receipt.Sequence = ack.Sequence - uint64(len(events)-1-i)
	}
	return nil
}
