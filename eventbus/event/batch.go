package event

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// maxItemBytes is the most that one event of a batch may take as JSON, which may
// escape or base64-encode its data.
const maxItemBytes = 2*MaxEventBytes + 64<<10

// maxProblems bounds what is said about a batch: the answer must not outgrow it.
const maxProblems = 100

// Batch reads the events of a JSON batch (CloudEvents JSON format, section 4) one
// by one, so that the batch and what became of it are never in memory together.
type Batch struct {
	decoder *json.Decoder
	source  string
	begun   bool
	item    json.RawMessage
	n       int
	all     problems
}

// NewBatch reads from r. source, if set, is what events that name none get.
func NewBatch(r io.Reader, source string) *Batch {
	return &Batch{decoder: json.NewDecoder(r), source: source}
}

// Read returns the next event as JSON, valid until the next call, and how many
// bytes of the batch it had. It fails with io.EOF after the last, an
// [*InvalidError] of all events when one was wrong, or the error of the reader.
func (b *Batch) Read() (raw []byte, size int64, err error) {
	if !b.begun {
		token, err := b.decoder.Token()
		if err != nil {
			return nil, 0, b.failed(err)
		}
		if token != json.Delim('[') {
			return nil, 0, notABatch()
		}
		b.begun = true
	}
	if !b.decoder.More() {
		return nil, 0, b.end()
	}
	if b.n++; b.n > MaxBatchEvents {
		return nil, 0, &InvalidError{Fields: []FieldError{{
			Field: "body", Detail: fmt.Sprintf("a batch holds at most %d events", MaxBatchEvents),
		}}}
	}
	begin := b.decoder.InputOffset()
	if err := b.decoder.Decode(&b.item); err != nil {
		return nil, 0, b.failed(err)
	}
	if len(b.item) > maxItemBytes {
		return nil, 0, fmt.Errorf("%w: [%d] has more than %d bytes", ErrTooLarge, b.n-1, maxItemBytes)
	}
	return b.item, b.decoder.InputOffset() - begin, nil
}

// Parse makes the event of what Read has returned, and keeps nothing of it. When
// one event was wrong nothing will be stored: it returns false for all that
// follow, and Read says in the end what is wrong with any.
func (b *Batch) Parse(raw []byte) (Event, bool) {
	var p problems
	e := readJSON(&p, raw, b.source)
	for _, f := range p {
		if len(b.all) == maxProblems {
			break
		}
		f.Field = "[" + strconv.Itoa(b.n-1) + "]." + f.Field
		b.all = append(b.all, f)
	}
	return e, len(b.all) == 0
}

// end checks that the array ends and that nothing comes after it.
func (b *Batch) end() error {
	if _, err := b.decoder.Token(); err != nil {
		return b.failed(err)
	}
	switch _, err := b.decoder.Token(); {
	case err == nil:
		return notABatch()
	case !errors.Is(err, io.EOF):
		return b.failed(err)
	case len(b.all) > 0:
		return b.all.err()
	}
	return io.EOF
}

// failed tells a body that is no batch from one that could not be read.
func (b *Batch) failed(err error) error {
	if _, ok := errors.AsType[*json.SyntaxError](err); ok || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return notABatch()
	}
	return err
}

func notABatch() error {
	return &InvalidError{Fields: []FieldError{{Field: "body", Detail: "must be a JSON array of events"}}}
}

// parseBatch reads a batch that is in memory.
func parseBatch(body io.Reader, source string) ([]Event, error) {
	batch := NewBatch(body, source)
	events := []Event{}
	for {
		raw, _, err := batch.Read()
		if errors.Is(err, io.EOF) {
			return events, nil
		}
		if err != nil {
			return nil, err
		}
		if e, ok := batch.Parse(raw); ok {
			events = append(events, e)
		}
	}
}
