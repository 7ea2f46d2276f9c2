package ingress

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/lambdamesh/lambdamesh/eventbus/event"
)

// A body must bring minProgress within each progressWindow, or end: who is slower
// keeps a connection and memory for nothing. It must be here after maxReading.
const (
	progressWindow = 5 * time.Second
	minProgress    = 32 << 10
	maxReading     = 30 * time.Second
)

// parsing is how many times its size an event of the JSON format takes for the
// moment in which it is parsed: copies of the decoder, of the members, and of the
// data.
const parsing = 4

// perAttribute and perEvent are what an attribute and an event take besides their
// text, in the event and once more in the message to the broker.
const (
	perAttribute = 128
	perEvent     = 1024
)

// cost is the memory that an event takes until the broker has it.
func cost(e *event.Event) int64 {
	n := int64(perEvent + len(e.Data))
	for name, value := range e.Attributes() {
		n += int64(2*(len(name)+len(value)) + perAttribute)
	}
	return n
}

// busy is what who finds no room is told.
func busy() error {
	return &failure{status: http.StatusServiceUnavailable, detail: "too many events are being received at once", retryAfter: retryBusy}
}

func slow() error {
	return &failure{status: http.StatusRequestTimeout, detail: "the body came too slowly"}
}

// body reads a request's body, takes its bytes from the budget as they come, and
// gives up on one that does not come.
type body struct {
	from    io.Reader
	share   *share
	headers int64 // what they take, until the request is answered
	control *http.ResponseController

	begun  time.Time
	window time.Time // when it began
	came   int       // in this window
}

// headersCost is the memory that a request's headers take: their text, as it was
// read and as it was parsed.
func headersCost(header http.Header) (n int64) {
	for name, values := range header {
		n += int64(len(name) + perAttribute)
		for _, v := range values {
			n += int64(2 * len(v))
		}
	}
	return n
}

// newBody reads at most limit bytes for the caller of that name. It fails when
// there is no room for the headers; otherwise who asked closes the share.
func newBody(b *Budget, caller string, w http.ResponseWriter, r *http.Request, limit int64) (*body, error) {
	control := http.NewResponseController(w)
	now := time.Now()
	read := &body{
		from: http.MaxBytesReader(w, r.Body, limit), control: control, begun: now, window: now,
		// Not every writer has deadlines (those of tests do not).
		share:   b.open(caller, func() { _ = control.SetReadDeadline(time.Unix(1, 0)) }),
		headers: headersCost(r.Header),
	}
	if !read.share.take(read.headers) {
		read.share.close()
		read.share.interrupt() // or the answer waits for the body
		return nil, busy()
	}
	return read, nil
}

// Read implements io.Reader. It fails with a [*failure] or with what the body's
// own limit says.
func (b *body) Read(p []byte) (int, error) {
	until := b.window.Add(progressWindow)
	if last := b.begun.Add(maxReading); last.Before(until) {
		until = last
	}
	_ = b.control.SetReadDeadline(until)
	if b.share.lost() { // asked after the deadline was set: the interruption sets another
		return 0, busy()
	}
	n, err := b.from.Read(p)
	if n > 0 && !b.share.take(int64(n)) {
		return 0, busy()
	}
	if b.came += n; b.came >= minProgress {
		b.window, b.came = time.Now(), 0
	}
	switch {
	case err == nil, errors.Is(err, io.EOF):
		return n, err
	case b.share.lost():
		return 0, busy()
	}
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() || errors.Is(err, os.ErrDeadlineExceeded) {
		return 0, slow()
	}
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return 0, tooLarge
	}
	return 0, &failure{status: http.StatusBadRequest, detail: "the body could not be read to its end"}
}

// end says that no more is read. It fails when the share was lost meanwhile.
func (b *body) end() error {
	_ = b.control.SetReadDeadline(time.Time{}) // the next request has its own
	if !b.share.complete() {
		return busy()
	}
	return nil
}

// all reads the body to its end.
func (b *body) all() ([]byte, error) {
	raw, err := io.ReadAll(b)
	if err != nil {
		return nil, err
	}
	return raw, b.end()
}

// one reads a body that is one event and leaves what the event takes in the
// share. parse keeps nothing of raw unless kept is set.
func (b *body) one(kept bool, parse func(raw []byte) (event.Event, error)) (event.Event, error) {
	raw, err := b.all()
	if err != nil {
		return event.Event{}, err
	}
	if !kept && !b.share.take(parsing*int64(len(raw))) {
		return event.Event{}, busy()
	}
	e, err := parse(raw)
	if err != nil {
		return event.Event{}, err
	}
	if !b.share.settle(b.headers + cost(&e)) {
		return event.Event{}, busy()
	}
	return e, nil
}

// batch reads a JSON batch, one event after the other.
func (b *body) batch(source string) ([]event.Event, error) {
	events := []event.Event{}
	batch := event.NewBatch(b, source)
	for {
		raw, size, err := batch.Read()
		if errors.Is(err, io.EOF) {
			return events, b.end()
		}
		if err != nil {
			return nil, err
		}
		if !b.share.take(parsing * size) {
			return nil, busy()
		}
		e, valid := batch.Parse(raw)
		b.share.giveBack(parsing * size)
		if !valid {
			b.share.giveBack(size)
			continue
		}
		// Its bytes are counted already; what became of them may take more.
		if more := cost(&e) - size; more > 0 && !b.share.take(more) {
			return nil, busy()
		}
		events = append(events, e)
	}
}
