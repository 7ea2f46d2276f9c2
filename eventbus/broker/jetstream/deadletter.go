package jetstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
)

// Headers of a dead letter whose message could not be read.
const (
	// headerRaw says how many bytes of the payload are the headers, in JSON, of
	// that message; its own payload follows. headerRawBytes is their size when that
	// did not fit.
	headerRaw      = "lambdamesh-raw"
	headerRawBytes = "lambdamesh-raw-bytes"
)

// maxPageBytes bounds the data of the dead letters that are in memory at once.
const maxPageBytes = 4 << 20

// StoreDeadLetter returns when the dead letter is on disk. The same event of the
// same consumer is stored once, as long as it is there.
func (s *Store) StoreDeadLetter(ctx context.Context, letter *broker.DeadLetter) error {
	l, err := s.connected()
	if err != nil {
		return err
	}
	msg := &nats.Msg{Subject: deadLetterPrefix + letter.Consumer, Header: nats.Header{}}
	if letter.Raw == nil {
		msg = encode(msg.Subject, &letter.Event)
	} else if err := encodeRaw(msg, letter.Raw, int(l.nc.MaxPayload())-headroom); err != nil {
		return err
	}
	for name, value := range letter.Headers() {
		msg.Header[name] = []string{event.EncodeHeaderValue(value)}
	}
	// With the key of the event, as one that was migrated has the sequence it had
	// in another store.
	msg.Subject = fmt.Sprintf("%s%s.%d-%s", deadLetterPrefix, letter.Consumer, letter.Sequence, letter.Event.Key())
	_, err = l.js.PublishMsg(ctx, msg, jetstream.WithExpectStream(DeadLetterStream), jetstream.WithExpectLastSequencePerSubject(0))
	if api, ok := errors.AsType[*jetstream.APIError](err); ok && (api.ErrorCode == codeOtherLastSequence || api.ErrorCode == codeOtherLastSequenceConstant) {
		return nil // it is there
	}
	if err != nil {
		return fmt.Errorf("dead letter %s: %w", msg.Subject, translate(err))
	}
	return nil
}

// encodeRaw puts a message that could not be read into the payload of another.
func encodeRaw(msg *nats.Msg, raw *broker.Raw, most int) error {
	header, err := json.Marshal(raw.Header)
	if err != nil {
		return fmt.Errorf("headers of an unreadable message: %w", err)
	}
	size := max(raw.Bytes, len(header)+len(raw.Data))
	if len(header) > most {
		header = []byte("{}")
	}
	msg.Data = append(header, raw.Data[:min(len(raw.Data), most-len(header))]...)
	msg.Header.Set(headerRaw, strconv.Itoa(len(header)))
	if size > len(msg.Data) {
		msg.Header.Set(headerRawBytes, strconv.Itoa(size))
	}
	return nil
}

// decodeRaw reverses encodeRaw.
func decodeRaw(header nats.Header, data []byte) (*broker.Raw, error) {
	n, err := strconv.Atoi(header.Get(headerRaw))
	if err != nil || n < 0 || n > len(data) {
		return nil, fmt.Errorf("header %s: %q", headerRaw, header.Get(headerRaw))
	}
	raw := &broker.Raw{Data: data[n:]}
	if size := header.Get(headerRawBytes); size != "" {
		if raw.Bytes, err = strconv.Atoi(size); err != nil {
			return nil, fmt.Errorf("header %s: %w", headerRawBytes, err)
		}
	}
	if err := json.Unmarshal(data[:n], &raw.Header); err != nil {
		return nil, fmt.Errorf("headers of an unreadable message: %w", err)
	}
	return raw, nil
}

// DeadLetters returns at most limit dead letters with an ID of after+1 or
// higher, oldest first; of one consumer, or of all when consumer is empty. It
// returns fewer when they are large, and none only when there are no more.
func (s *Store) DeadLetters(ctx context.Context, consumer string, after uint64, limit int) ([]broker.DeadLetter, error) {
	l, err := s.connected()
	if err != nil {
		return nil, err
	}
	filters := []string{deadLetterPrefix + ">"}
	if consumer != "" {
		// The last are those that were stored before each had a subject of its own.
		filters = []string{deadLetterPrefix + consumer + ".>", deadLetterPrefix + consumer}
	}
	letters := []broker.DeadLetter{}
	for bytes := 0; len(letters) < limit && bytes < maxPageBytes; {
		msg, err := firstOf(ctx, l.dead, after+1, filters)
		if err != nil {
			return nil, fmt.Errorf("dead letters: %w", translate(err))
		}
		if msg == nil {
			break
		}
		after = msg.Sequence
		bytes += len(msg.Data)
		letters = append(letters, decodeDeadLetter(msg))
	}
	return letters, nil
}

// decodeDeadLetter reads a dead letter. One that cannot be read is shown as it is:
// it is all that is left of an event.
func decodeDeadLetter(msg *jetstream.RawStreamMsg) broker.DeadLetter {
	letter := broker.DeadLetter{ID: msg.Sequence, Died: msg.Time}
	headersErr := letter.ReadHeaders(func(name string) (string, error) { return event.DecodeHeaderValue(msg.Header.Get(name)) })
	var err error
	if _, ok := msg.Header[headerRaw]; ok {
		if letter.Raw, err = decodeRaw(msg.Header, msg.Data); err == nil {
			// What could not be read when it died may be readable now.
			letter.Event, _ = decode(letter.Raw.Header, letter.Raw.Data)
			letter.Event.Data = nil
		}
	} else {
		letter.Event, err = decode(msg.Header, msg.Data)
	}
	if err := errors.Join(headersErr, err); err != nil {
		letter.Reason, letter.LastError = broker.ReasonUnreadable, err.Error()
		letter.Raw, letter.Event.Data = &broker.Raw{Header: msg.Header, Data: msg.Data}, nil
	}
	return letter
}

// DeadLetter returns one by its ID, or fails with [broker.ErrNotFound].
func (s *Store) DeadLetter(ctx context.Context, id uint64) (*broker.DeadLetter, error) {
	l, err := s.connected()
	if err != nil {
		return nil, err
	}
	msg, err := l.dead.GetMsg(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("dead letter %d: %w", id, translate(err))
	}
	letter := decodeDeadLetter(msg)
	return &letter, nil
}

// DeleteDeadLetter forgets one and frees its space; one that is not there is no
// error.
func (s *Store) DeleteDeadLetter(ctx context.Context, id uint64) error {
	l, err := s.connected()
	if err != nil {
		return err
	}
	if err := l.dead.DeleteMsg(ctx, id); err != nil {
		if _, missing := l.dead.GetMsg(ctx, id); errors.Is(missing, jetstream.ErrMsgNotFound) {
			return nil
		}
		return fmt.Errorf("delete dead letter %d: %w", id, translate(err))
	}
	return nil
}
