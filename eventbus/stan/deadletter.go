package stan

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/lambdamesh/lambdamesh/eventbus/event"
)

// Headers of a dead letter, beside those of its event.
const (
	headerSubscription = "lambdamesh-subscription"
	headerConsumer     = "lambdamesh-consumer"
	headerSequence     = "lambdamesh-sequence"
	headerStored       = "lambdamesh-stored"
	headerReason       = "lambdamesh-reason"
	headerAttempts     = "lambdamesh-attempts"
	headerLastStatus   = "lambdamesh-last-status"
	headerLastError    = "lambdamesh-last-error"
)

// StoreDeadLetter returns when the dead letter is on disk. The same event of the
// same consumer is stored once inside the dedup window.
func (s *Store) StoreDeadLetter(ctx context.Context, letter *event.DeadLetter) error {
	l, err := s.connected()
	if err != nil {
		return err
	}
	m := eventMessage(&letter.Event)
	m.kind = kindDeadLetter
	m.header[headerSubscription] = letter.Subscription
	m.header[headerConsumer] = letter.Consumer
	m.header[headerSequence] = strconv.FormatUint(letter.Sequence, 10)
	m.header[headerStored] = letter.Stored.Format(time.RFC3339Nano)
	m.header[headerReason] = letter.Reason
	m.header[headerAttempts] = strconv.Itoa(letter.Attempts)
	m.header[headerLastStatus] = strconv.Itoa(letter.LastStatus)
	m.header[headerLastError] = strings.ToValidUTF8(letter.LastError[:min(len(letter.LastError), 512)], "")
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

// DeadLetters returns at most limit dead letters with an ID of after+1 or
// higher, oldest first; of one consumer, or of all when consumer is empty.
func (s *Store) DeadLetters(ctx context.Context, consumer string, after uint64, limit int) ([]event.DeadLetter, error) {
	l, err := s.connected()
	if err != nil {
		return nil, err
	}
	letters := []event.DeadLetter{}
	if limit <= 0 {
		return letters, nil
	}
	err = s.dead.read(ctx, l, after+1, func(sequence uint64, stored time.Time, m message) error {
		letter, err := decodeDeadLetter(&m)
		if err != nil {
			s.log.Error("a message in the dead-letter channel is no dead letter: skipped", "sequence", sequence, "error", err)
			return nil
		}
		letter.ID, letter.Died = sequence, stored
		if consumer == "" || letter.Consumer == consumer {
			letters = append(letters, letter)
		}
		if len(letters) == limit {
			return errEnough
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("dead letters: %w", err)
	}
	return letters, nil
}

func decodeDeadLetter(m *message) (event.DeadLetter, error) {
	letter := event.DeadLetter{
		Subscription: m.header[headerSubscription],
		Consumer:     m.header[headerConsumer],
		Reason:       m.header[headerReason],
		LastError:    m.header[headerLastError],
	}
	var errs [6]error
	if m.kind != kindDeadLetter {
		errs[0] = fmt.Errorf("it is a message of kind %q", m.kind)
	}
	letter.Event, errs[1] = m.event()
	letter.Sequence, errs[2] = strconv.ParseUint(m.header[headerSequence], 10, 64)
	letter.Attempts, errs[3] = strconv.Atoi(m.header[headerAttempts])
	letter.LastStatus, errs[4] = strconv.Atoi(m.header[headerLastStatus])
	letter.Stored, errs[5] = time.Parse(time.RFC3339Nano, m.header[headerStored])
	return letter, errors.Join(errs[:]...)
}
