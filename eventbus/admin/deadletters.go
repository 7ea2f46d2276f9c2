package admin

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
)

func (c *Config) listDeadLetters(w http.ResponseWriter, r *http.Request) {
	p := parameters{values: r.URL.Query()}
	after := p.number("after", 0, 1<<62)
	limit := p.number("limit", defaultLimit, maxLimit)
	subscription, namespace := p.values.Get("subscription"), r.PathValue("namespace")
	if subscription != "" && strings.Count(subscription, "/") != 1 {
		p.refuse("subscription", "must be NAMESPACE/NAME")
	}
	if p.refused(w) {
		return
	}
	letters, err := c.DeadLetters.DeadLetters(r.Context(), "", after, defaultLimit)
	if err != nil {
		httpserver.Problem(w, http.StatusServiceUnavailable, "", "the event store is not available")
		return
	}
	page, full := newPage(w, limit), false
	for len(letters) > 0 && !full {
		for i := range letters {
			letter := &letters[i]
			after = letter.ID
			if subscription != "" && letter.Subscription != subscription || namespace != "" && !c.owns(r, letter) {
				continue
			}
			bytes := len(letter.Event.Data)
			if letter.Raw != nil {
				letter.Raw.Cut()
				bytes += len(letter.Raw.Data)
			}
			if full = page.item(letter, bytes); full {
				break
			}
		}
		if !full {
			if letters, err = c.DeadLetters.DeadLetters(r.Context(), "", after, defaultLimit); err != nil {
				panic(http.ErrAbortHandler) // half an answer must not look like a whole one
			}
		}
	}
	if !full {
		after = 0
	}
	page.end(after)
}

// owns reports whether a dead letter is one of the request's namespace, which may
// still read its source.
func (c *Config) owns(r *http.Request, letter *broker.DeadLetter) bool {
	namespace, _, _ := strings.Cut(letter.Subscription, "/")
	if own := r.PathValue("namespace"); own != "" && namespace != own {
		return false
	}
	may, err := c.mayRead(r, letter.Event.Source)
	return err == nil && may
}

// find returns the dead letter that a request names, or answers.
func (c *Config) find(w http.ResponseWriter, r *http.Request) (*broker.DeadLetter, bool) {
	id, err := strconv.ParseUint(r.PathValue("id"), 10, 63)
	if err != nil || id == 0 {
		httpserver.Problem(w, http.StatusBadRequest, "", "the ID of a dead letter is a number, as the list shows it")
		return nil, false
	}
	letter, err := c.Store.DeadLetter(r.Context(), id)
	if err == nil && !c.owns(r, letter) {
		err = broker.ErrNotFound
	}
	if err != nil {
		failed(w, err)
		return nil, false
	}
	return letter, true
}

func (c *Config) showDeadLetter(w http.ResponseWriter, r *http.Request) {
	if letter, ok := c.find(w, r); ok {
		if letter.Raw != nil {
			letter.Raw.Cut()
		}
		answer(w, letter)
	}
}

// redrive delivers the event of a dead letter once more: it goes behind what its
// subscription has to deliver, and the dead letter goes when it is there.
func (c *Config) redrive(w http.ResponseWriter, r *http.Request) {
	letter, ok := c.find(w, r)
	if !ok {
		return
	}
	if letter.Raw != nil {
		httpserver.Problem(w, http.StatusConflict, "", "what cannot be read as an event cannot be delivered")
		return
	}
	if _, err := c.Store.Consumer(r.Context(), letter.Consumer); err != nil {
		if problem := fmt.Sprintf("the Subscription %s is not there any more", letter.Subscription); isNotFound(err) {
			httpserver.Problem(w, http.StatusConflict, "", problem)
			return
		}
		failed(w, err)
		return
	}
	replay := broker.Replay{Consumer: letter.Consumer, Name: fmt.Sprintf("redrive-%d", letter.ID), Sequence: letter.Sequence, Event: &letter.Event}
	if err := c.Store.Replay(r.Context(), replay); err != nil {
		failed(w, err)
		return
	}
	c.delete(w, r, letter)
}

func (c *Config) purge(w http.ResponseWriter, r *http.Request) {
	if letter, ok := c.find(w, r); ok {
		c.delete(w, r, letter)
	}
}

func (c *Config) delete(w http.ResponseWriter, r *http.Request, letter *broker.DeadLetter) {
	if err := c.Store.DeleteDeadLetter(r.Context(), letter.ID); err != nil {
		failed(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}
