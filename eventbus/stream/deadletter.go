package stream

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

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
	msg := encode(deadLetterPrefix+letter.Consumer, &letter.Event)
	for name, value := range map[string]string{
		headerSubscription: letter.Subscription,
		headerConsumer:     letter.Consumer,
		headerSequence:     strconv.FormatUint(letter.Sequence, 10),
		headerStored:       letter.Stored.Format(time.RFC3339Nano),
		headerReason:       letter.Reason,
		headerAttempts:     strconv.Itoa(letter.Attempts),
		headerLastStatus:   strconv.Itoa(letter.LastStatus),
		headerLastError:    strings.ToValidUTF8(letter.LastError[:min(len(letter.LastError), 512)], ""),
	} {
		msg.Header[name] = []string{event.EncodeHeaderValue(value)}
	}
	// With the key of the event, as one that was migrated has the sequence it had
	// in another store.
	id := fmt.Sprintf("%s-%d-%s", letter.Consumer, letter.Sequence, letter.Event.Key())
	if _, err := l.js.PublishMsg(ctx, msg, jetstream.WithMsgID(id), jetstream.WithExpectStream(DeadLetterStream)); err != nil {
		return fmt.Errorf("dead letter %s: %w", id, translate(err))
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
	filter := deadLetterPrefix + ">"
	if consumer != "" {
		filter = deadLetterPrefix + consumer
	}
	letters := []event.DeadLetter{}
	for len(letters) < limit {
		msg, err := l.dead.GetMsg(ctx, after+1, jetstream.WithGetMsgSubject(filter))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("dead letters: %w", translate(err))
		}
		after = msg.Sequence
		letter, err := decodeDeadLetter(msg)
		if err != nil {
			s.log.Error("a message in the dead-letter stream is no dead letter: skipped", "sequence", msg.Sequence, "error", err)
			continue
		}
		letters = append(letters, letter)
	}
	return letters, nil
}

func decodeDeadLetter(msg *jetstream.RawStreamMsg) (event.DeadLetter, error) {
	letter := event.DeadLetter{ID: msg.Sequence, Died: msg.Time}
	var errs []error
	text := func(name string) string {
		value, err := event.DecodeHeaderValue(msg.Header.Get(name))
		if err != nil {
			errs = append(errs, fmt.Errorf("header %s %w", name, err))
		}
		return value
	}
	number := func(name string) int {
		n, err := strconv.Atoi(text(name))
		if err != nil {
			errs = append(errs, fmt.Errorf("header %s: %w", name, err))
		}
		return n
	}
	var err error
	letter.Event, err = decode(msg.Header, msg.Data)
	errs = append(errs, err)
	letter.Subscription = text(headerSubscription)
	letter.Consumer = text(headerConsumer)
	letter.Sequence = uint64(max(0, number(headerSequence)))
	letter.Reason = text(headerReason)
	letter.Attempts = number(headerAttempts)
	letter.LastStatus = number(headerLastStatus)
	letter.LastError = text(headerLastError)
	letter.Stored, err = time.Parse(time.RFC3339Nano, text(headerStored))
	errs = append(errs, err)
	return letter, errors.Join(errs...)
}
