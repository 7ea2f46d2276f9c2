package stream

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

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
	done chan outcome // buffered: the committer never waits
}

type outcome struct {
	receipts []event.Receipt
	err      error
}

// Publish stores events and returns when all of them are on disk. When it fails,
// some may be stored: publishing them again is safe inside the dedup window.
func (s *Store) Publish(ctx context.Context, events []event.Event) ([]event.Receipt, error) {
	if len(events) == 0 {
		return []event.Receipt{}, nil
	}
	l, err := s.connected()
	if err != nil {
		return nil, err
	}
	r := &request{done: make(chan outcome, 1), msgs: make([]*nats.Msg, len(events))}
	for i := range events {
		e := &events[i]
		msg := encode(eventPrefix+event.SubjectOf(e.Source, e.Type), e)
		if msg.Size()+headroom > int(l.nc.MaxPayload()) {
			return nil, fmt.Errorf("%w: NATS takes %d bytes", event.ErrTooLarge, l.nc.MaxPayload()-headroom)
		}
		msg.Header.Set(jetstream.MsgIDHeader, e.Key())
		r.msgs[i] = msg
	}
	select {
	case s.requests <- r:
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", event.ErrUnavailable, ctx.Err())
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
		return nil, fmt.Errorf("%w: %w", event.ErrUnavailable, ctx.Err())
	}
}

// commitLoop writes one group of requests after the other. While one is being
// written the next gathers, so groups grow with the load by themselves.
func (s *Store) commitLoop(ctx context.Context) {
	var next *request // did not fit into the group before
	for {
		if next == nil {
			select {
			case next = <-s.requests:
			case <-ctx.Done():
				s.refuseRest()
				return
			}
		}
		var group []*request
		for count, bytes := 0, 0; next != nil; {
			count, bytes = count+len(next.msgs), bytes+size(next)
			if len(group) > 0 && (count > maxBatch || bytes > maxBatchBytes) {
				break
			}
			group, next = append(group, next), nil
			select {
			case next = <-s.requests:
			default:
			}
		}
		s.commit(ctx, group)
	}
}

// refuseRest answers those that came too late to be stored.
func (s *Store) refuseRest() {
	for {
		select {
		case r := <-s.requests:
			r.done <- outcome{err: fmt.Errorf("%w: shutting down", event.ErrUnavailable)}
		default:
			return
		}
	}
}

func size(r *request) int {
	n := 0
	for _, m := range r.msgs {
		n += m.Size()
	}
	return n
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
	var msgs []*nats.Msg
	index := map[string]int{}
	for _, r := range group {
		for _, m := range r.msgs {
			id := m.Header.Get(jetstream.MsgIDHeader)
			if _, ok := index[id]; !ok {
				index[id] = len(msgs)
				msgs = append(msgs, m)
			}
		}
	}

	// A group that began is finished when we are told to stop meanwhile.
	ctx = context.WithoutCancel(ctx)
	results := make([]result, len(msgs))
	if len(msgs) < batchThreshold || len(msgs) > maxBatch || !s.publishBatch(ctx, l, msgs, results) {
		s.publishEach(l, msgs, results)
	}

	s.learn(results)

	answered := make([]bool, len(msgs))
	for _, r := range group {
		out := outcome{receipts: make([]event.Receipt, len(r.msgs))}
		for i, m := range r.msgs {
			at := index[m.Header.Get(jetstream.MsgIDHeader)]
			if results[at].err != nil {
				out.err = results[at].err
				break
			}
			out.receipts[i] = results[at].receipt
			out.receipts[i].Duplicate = out.receipts[i].Duplicate || answered[at]
			answered[at] = true
		}
		r.done <- out
	}
}

type result struct {
	receipt event.Receipt
	err     error
}

// publishEach sends all messages and then waits for each acknowledgement.
func (s *Store) publishEach(l *link, msgs []*nats.Msg, results []result) {
	acks := make([]jetstream.PubAckFuture, len(msgs))
	for i, m := range msgs {
		// A new header each time: the client library adds its own to it.
		ack, err := l.js.PublishMsgAsync(m, jetstream.WithExpectStream(EventStream))
		if err != nil {
			results[i].err = translate(err)
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
			results[i].receipt = event.Receipt{Sequence: ok.Sequence, Duplicate: ok.Duplicate}
		case err := <-ack.Err():
			results[i].err = translate(err)
		}
	}
}

// Headers of an atomic batch (NATS ADR-50).
const (
	headerBatchID       = "Nats-Batch-Id"
	headerBatchSequence = "Nats-Batch-Sequence"
	headerBatchCommit   = "Nats-Batch-Commit"
)

// publishBatch stores the messages as one atomic batch. It returns false when
// nothing was stored and the messages should be published one by one: because
// one of them is stored already, or the server does not take the batch.
func (s *Store) publishBatch(ctx context.Context, l *link, msgs []*nats.Msg, results []result) bool {
	id := rand.Text()
	defer func() {
		for _, m := range msgs {
			m.Header.Del(headerBatchID)
			m.Header.Del(headerBatchSequence)
			m.Header.Del(headerBatchCommit)
		}
	}()
	fail := func(err error) bool {
		for i := range results {
			results[i].err = err
		}
		return true
	}
	for i, m := range msgs {
		m.Header.Set(headerBatchID, id)
		m.Header.Set(headerBatchSequence, strconv.Itoa(i+1))
		if i < len(msgs)-1 {
			if err := l.nc.PublishMsg(m); err != nil {
				return fail(translate(err))
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, s.config.PublishTimeout)
	defer cancel()
	last := msgs[len(msgs)-1]
	last.Header.Set(headerBatchCommit, "1")
	reply, err := l.nc.RequestMsgWithContext(ctx, last)
	if err != nil {
		return fail(translate(err))
	}
	var ack struct {
		Error    *jetstream.APIError `json:"error"`
		Sequence uint64              `json:"seq"`
		Count    int                 `json:"count"`
	}
	if err := json.Unmarshal(reply.Data, &ack); err != nil {
		return fail(translate(fmt.Errorf("answer to a batch: %w", err)))
	}
	if ack.Error != nil {
		if err := translate(ack.Error); errors.Is(err, event.ErrFull) {
			return fail(err)
		}
		if ack.Error.ErrorCode != codeBatchHoldsDuplicates {
			s.log.Debug("a batch was refused; publishing one by one", "error", ack.Error)
		}
		return false
	}
	if ack.Sequence == 0 || ack.Count != len(msgs) {
		return fail(fmt.Errorf("%w: a batch of %d was acknowledged as %d", event.ErrUnavailable, len(msgs), ack.Count))
	}
	for i := range results {
		results[i].receipt.Sequence = ack.Sequence - uint64(len(msgs)-1-i)
	}
	return true
}
