package stan

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"time"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
)

// headerRawBytes is there when the data of a dead letter is a message that could
// not be read: its size, which may be more than what did fit.
const headerRawBytes = "lambdamesh-raw-bytes"

// maxPageBytes bounds the data of the dead letters that are in memory at once.
const maxPageBytes = 4 << 20

// StoreDeadLetter returns when the dead letter is on disk. The same event of the
// same consumer is stored once inside the dedup window.
func (s *Store) StoreDeadLetter(ctx context.Context, letter *broker.DeadLetter) error {
	l, err := s.connected()
	if err != nil {
		return err
	}
	m := eventMessage(&letter.Event)
	if raw := letter.Raw; raw != nil {
		data, err := rawData(raw)
		if err != nil {
			return err
		}
		m.header = map[string]string{headerRawBytes: strconv.Itoa(max(raw.Bytes, len(data)))}
		m.data = data[:min(len(data), l.maxPayload-headroom)]
	}
	m.kind = kindDeadLetter
	maps.Copy(m.header, letter.Headers())
	k := m.key()
	if err := s.dead.settle(ctx, l, k); err != nil {
		return err
	}
	p, _ := s.dead.publish(l, k, m.encode())
	if _, err := s.dead.wait(ctx, k, p); err != nil {
		return fmt.Errorf("dead letter %s-%d: %w", letter.Consumer, letter.Sequence, err)
	}
	return nil
}

// rawData is what is kept of a message that could not be read. One that came from
// a store whose messages have headers is kept in JSON, with them.
func rawData(raw *broker.Raw) ([]byte, error) {
	if len(raw.Header) == 0 {
		return raw.Data, nil
	}
	data, err := json.Marshal(raw)
	if err != nil {
		return nil, fmt.Errorf("headers of an unreadable message: %w", err)
	}
	return data, nil
}

// DeadLetters returns at most limit dead letters with an ID of after+1 or
// higher, oldest first; of one consumer, or of all when consumer is empty. It
// returns fewer when they are large, and none only when there are no more.
func (s *Store) DeadLetters(ctx context.Context, consumer string, after uint64, limit int) ([]broker.DeadLetter, error) {
	l, err := s.connected()
	if err != nil {
		return nil, err
	}
	letters := []broker.DeadLetter{}
	if limit <= 0 {
		return letters, nil
	}
	bytes := 0
	err = s.dead.read(ctx, l, after+1, func(sequence uint64, stored time.Time, payload []byte) error {
		letter := decodeDeadLetter(payload)
		letter.ID, letter.Died = sequence, stored
		if consumer == "" || letter.Consumer == consumer {
			letters = append(letters, letter)
			bytes += len(payload)
		}
		if len(letters) == limit || bytes >= maxPageBytes {
			return errEnough
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("dead letters: %w", err)
	}
	return letters, nil
}

// decodeDeadLetter reads a dead letter. One that cannot be read is shown as it is:
// it is all that is left of an event.
func decodeDeadLetter(payload []byte) broker.DeadLetter {
	m, err := decode(payload)
	var letter broker.DeadLetter
	errs := []error{err, letter.ReadHeaders(func(name string) (string, error) { return m.header[name], nil })}
	if m.kind != kindDeadLetter {
		errs = append(errs, fmt.Errorf("it is a message of kind %q", m.kind))
	}
	if size, ok := m.header[headerRawBytes]; ok {
		letter.Raw = &broker.Raw{Data: m.data}
		if n, err := strconv.Atoi(size); err == nil && n > len(m.data) {
			letter.Raw.Bytes = n
		}
		// What could not be read when it died may be readable now.
		letter.Event, _, _ = readEvent(m.data)
	} else {
		letter.Event, err = m.event()
	}
	if err := errors.Join(append(errs, err)...); err != nil {
		letter.Reason, letter.LastError = broker.ReasonUnreadable, err.Error()
		letter.Raw = &broker.Raw{Data: payload}
	}
	if letter.Raw != nil {
		letter.Event.Data = nil
	}
	return letter
}
