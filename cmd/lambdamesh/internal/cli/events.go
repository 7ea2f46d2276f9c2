package cli

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"golang.org/x/time/rate"
)

// storedEvent is an event as the administrative port shows it.
type storedEvent struct {
	Sequence uint64         `json:"sequence"`
	Accepted time.Time      `json:"accepted"`
	Event    map[string]any `json:"event"`
}

func (e *storedEvent) attribute(name string) string {
	value, _ := e.Event[name].(string)
	return value
}

func (e *storedEvent) row() []string {
	return []string{strconv.FormatUint(e.Sequence, 10), moment(e.Accepted), e.attribute("source"), e.attribute("type"), e.attribute("id"), e.attribute("subject")}
}

// moment is a time as tables show it.
func moment(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

// eventColumns are those of row.
func eventColumns() []string {
	return []string{"SEQUENCE", "ACCEPTED", "SOURCE", "TYPE", "ID", "SUBJECT"}
}

type eventPage struct {
	Items []storedEvent `json:"items"`
	Next  uint64        `json:"next,omitempty"`
}

func newEventsCommand(g *globals) *cobra.Command {
	var o busOptions
	cmd := &cobra.Command{
		Use:   "events",
		Short: "See which events are stored and what became of one, and deliver them again",
		Long: `events looks into the event bus, as one namespace may read it.

A local mesh shows itself to whoever is on this machine. In a cluster the bus is
reached through the API server, and asks for a service-account token that may read
subscriptions/events of lambdamesh.dev in the namespace: that of the service account
"default" unless another is named.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	o.register(cmd)
	cmd.AddCommand(newEventsListCommand(g, &o), newEventsTailCommand(g, &o), newEventsExplainCommand(g, &o), newEventsReplayCommand(g, &o))
	return cmd
}

// eventFilter narrows what is listed.
type eventFilter struct {
	source, eventType, since string
	data                     bool
}

func (f *eventFilter) register(cmd *cobra.Command, since string) {
	cmd.Flags().StringVar(&f.source, "source", "", "only events of this source")
	cmd.Flags().StringVar(&f.eventType, "type", "", "only events of this type; * stands for one part, ** at the end for the rest")
	cmd.Flags().StringVar(&f.since, "since", since, "accepted since then: a time such as 2026-01-31T15:04:05Z, or how long ago, such as 10m")
	cmd.Flags().BoolVar(&f.data, "data", false, "with -o: their data too")
}

func (f *eventFilter) query() (url.Values, error) {
	query := url.Values{}
	if f.source != "" {
		query.Set("source", f.source)
	}
	if f.eventType != "" {
		query.Set("type", f.eventType)
	}
	if f.data {
		query.Set("data", "true")
	}
	if f.since != "" {
		at, err := parseTime(f.since)
		if err != nil {
			return nil, usagef("--since %w", err)
		}
		query.Set("since", at.UTC().Format(time.RFC3339))
	}
	return query, nil
}

// parseTime reads a time, or how long ago it was.
func parseTime(text string) (time.Time, error) {
	if ago, err := time.ParseDuration(text); err == nil {
		return time.Now().Add(-ago), nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return at, fmt.Errorf("%q: write a time such as 2026-01-31T15:04:05Z, or how long ago, such as 10m", text)
	}
	return at, nil
}

func newEventsListCommand(g *globals, o *busOptions) *cobra.Command {
	var out output
	var filter eventFilter
	var limit int
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List stored events, oldest first",
		Example: `  lambdamesh events list -n shop --since 1h
  lambdamesh events list -n shop --source commerce --type 'order.**' --data -o json`,
		Args: noArgs,
		RunE: withBus(g, o, &out, func(cmd *cobra.Command, _ []string, b *busAdmin) error {
			query, err := filter.query()
			if err != nil {
				return err
			}
			events, more, err := b.events(cmd, query, limit)
			if err != nil {
				return err
			}
			if more {
				warn("there are more: raise --limit, or narrow --since, --source and --type")
			}
			rows := make([][]string, len(events))
			for i := range events {
				rows[i] = events[i].row()
			}
			return out.print(cmd.OutOrStdout(), map[string]any{"items": events}, eventColumns(), rows)
		}),
	}
	filter.register(cmd, "")
	cmd.Flags().IntVar(&limit, "limit", 1000, "how many at most")
	out.register(cmd)
	return cmd
}

// pageLimit of one request.
const pageLimit = 1000

// events reads pages until there are no more, or limit is reached.
func (b *busAdmin) events(cmd *cobra.Command, query url.Values, limit int) (all []storedEvent, more bool, err error) {
	all = []storedEvent{}
	for len(all) < limit {
		query.Set("limit", strconv.Itoa(min(pageLimit, limit-len(all))))
		var page eventPage
		if err := b.call(cmd.Context(), http.MethodGet, "/events", query, nil, &page); err != nil {
			return nil, false, err
		}
		all = append(all, page.Items...)
		if page.Next == 0 {
			return all, false, nil
		}
		query.Set("sequence", strconv.FormatUint(page.Next, 10))
		query.Del("since")
	}
	return all, true, nil
}

func newEventsTailCommand(g *globals, o *busOptions) *cobra.Command {
	var out output
	var filter eventFilter
	var lines int
	var follow bool
	cmd := &cobra.Command{
		Use:     "tail",
		Short:   "Print the latest events, and with -f those that come",
		Example: `  lambdamesh events tail -n shop -f`,
		Args:    noArgs,
		RunE: withBus(g, o, &out, func(cmd *cobra.Command, _ []string, b *busAdmin) error {
			if out.format == "yaml" {
				return usagef("tail prints a table, or with -o json one event a line")
			}
			query, err := filter.query()
			if err != nil {
				return err
			}
			begin := time.Now()
			events, _, err := b.events(cmd, query, maxTail)
			if err != nil {
				return err
			}
			query.Del("since")
			query.Del("sequence")
			query.Set("since", begin.Add(-time.Second).UTC().Format(time.RFC3339))
			if n := len(events); n > 0 {
				query.Del("since")
				query.Set("sequence", strconv.FormatUint(events[n-1].Sequence+1, 10))
			}
			for _, e := range events[max(0, len(events)-lines):] {
				if err := printEvent(cmd.OutOrStdout(), &out, &e); err != nil {
					return err
				}
			}
			if !follow {
				return nil
			}
			return b.follow(cmd, query, &out)
		}),
	}
	filter.register(cmd, "15m")
	cmd.Flags().IntVar(&lines, "tail", 10, "how many to begin with")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on printing what comes")
	out.register(cmd)
	return cmd
}

// maxTail bounds what is read to find the latest.
const maxTail = 100_000

func printEvent(w io.Writer, out *output, e *storedEvent) error {
	if out.format == "json" {
		return json.NewEncoder(w).Encode(e)
	}
	_, err := fmt.Fprintln(w, strings.Join(e.row(), "  "))
	return err
}

func (b *busAdmin) follow(cmd *cobra.Command, query url.Values, out *output) error {
	query.Del("limit")
	query.Set("follow", "true")
	resp, err := b.request(cmd.Context(), http.MethodGet, "/events", query, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			if cmd.Context().Err() != nil {
				return nil //nolint:nilerr // the user ended it
			}
			return fmt.Errorf("the event bus ended what it was telling: %w", err)
		}
		var e storedEvent
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("read the event bus's answer: %w", err)
		}
		if err := printEvent(cmd.OutOrStdout(), out, &e); err != nil {
			return err
		}
	}
}

// explained is what became of an event.
type explained struct {
	storedEvent
	Subscriptions []struct {
		Subscription string    `json:"subscription"`
		Matched      bool      `json:"matched"`
		State        string    `json:"state"`
		Detail       string    `json:"detail,omitempty"`
		DeadLetter   uint64    `json:"deadLetter,omitempty"`
		Attempts     []attempt `json:"attempts"`
	} `json:"subscriptions"`
}

type attempt struct {
	Number   int           `json:"number"`
	Probe    bool          `json:"probe,omitempty"`
	Replay   string        `json:"replay,omitempty"`
	At       time.Time     `json:"at"`
	Took     time.Duration `json:"took"`
	Status   int           `json:"status,omitempty"`
	Error    string        `json:"error,omitempty"`
	Replica  string        `json:"replica,omitempty"`
	Decision string        `json:"decision"`
	Reason   string        `json:"reason,omitempty"`
	Next     *time.Time    `json:"next,omitempty"`
}

func newEventsExplainCommand(g *globals, o *busOptions) *cobra.Command {
	var out output
	var source string
	cmd := &cobra.Command{
		Use:   "explain ID",
		Short: "Say for every Subscription whether an event is for it, each attempt to deliver it, and where it is now",
		Example: `  lambdamesh events explain 4711 -n shop
  lambdamesh events explain 4711 -n shop --source commerce -o yaml`,
		Args: exactArgs("ID"),
		RunE: withBus(g, o, &out, func(cmd *cobra.Command, args []string, b *busAdmin) error {
			query := url.Values{"id": {args[0]}}
			if source != "" {
				query.Set("source", source)
			}
			var answer struct {
				Items []explained `json:"items"`
			}
			if err := b.call(cmd.Context(), http.MethodGet, "/explain", query, nil, &answer); err != nil {
				return err
			}
			if out.format != tableFormat {
				return out.print(cmd.OutOrStdout(), answer, nil, nil)
			}
			for i := range answer.Items {
				if err := answer.Items[i].print(cmd.OutOrStdout()); err != nil {
					return err
				}
			}
			return nil
		}),
	}
	cmd.Flags().StringVar(&source, "source", "", "the event's source: faster, and where several have that id")
	out.register(cmd)
	return cmd
}

func (e *explained) print(w io.Writer) error {
	if err := printTable(w, eventColumns(), [][]string{e.row()}); err != nil {
		return err
	}
	var states, attempts [][]string
	for i := range e.Subscriptions {
		s := &e.Subscriptions[i]
		detail := s.Detail
		if s.DeadLetter > 0 {
			detail += fmt.Sprintf(" (dead letter %d)", s.DeadLetter)
		}
		states = append(states, []string{s.Subscription, yesNo(s.Matched), s.State, strconv.Itoa(len(s.Attempts)), detail})
		for j := range s.Attempts {
			attempts = append(attempts, append([]string{s.Subscription}, s.Attempts[j].row()...))
		}
	}
	fmt.Fprintln(w)
	if err := printTable(w, []string{"SUBSCRIPTION", "MATCHED", "STATE", "ATTEMPTS", "DETAIL"}, states); err != nil {
		return err
	}
	if len(attempts) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	return printTable(w, []string{"SUBSCRIPTION", "ATTEMPT", "AT", "ANSWER", "TOOK", "REPLICA", "THEN"}, attempts)
}

func (a *attempt) row() []string {
	number, answer := strconv.Itoa(a.Number), a.Error
	if a.Probe {
		number = "probe"
	}
	if a.Replay != "" {
		number += " of " + a.Replay
	}
	if a.Status > 0 {
		answer = strconv.Itoa(a.Status)
	}
	then := a.Decision
	switch {
	case a.Reason != "":
		then += ": " + a.Reason
	case a.Decision == "again" && a.Next != nil:
		then += ", not before " + moment(*a.Next)
	}
	return []string{number, moment(a.At), answer, a.Took.Round(time.Millisecond).String(), a.Replica, then}
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

type replayOptions struct {
	subscription, from string
	sequence           uint64
	filters            []string
	rate               float64
	dryRun             bool
}

func newEventsReplayCommand(g *globals, o *busOptions) *cobra.Command {
	var out output
	var r replayOptions
	cmd := &cobra.Command{
		Use:   "replay --subscription NAME --from TIME",
		Short: "Deliver stored events to one Subscription once more",
		Long: `replay takes the stored events that a Subscription selects, from a time or a
sequence on until now, and puts them behind what the Subscription has to deliver:
they are delivered, tried again and given up as others are, and carry the extension
"replay". What is new goes on meanwhile.`,
		Example: `  lambdamesh events replay -n shop --subscription orders --from 1h --dry-run
  lambdamesh events replay -n shop --subscription orders --from 1h --filter '{"exact":{"subject":"4711"}}' --rate 10`,
		Args: noArgs,
		RunE: withBus(g, o, &out, func(cmd *cobra.Command, _ []string, b *busAdmin) error {
			if b.namespace == "" {
				return usagef("replay is to one Subscription: give its --namespace")
			}
			return b.replay(cmd, &r, &out)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&r.subscription, "subscription", "", "the Subscription's name")
	f.StringVar(&r.from, "from", "", "accepted since then: a time such as 2026-01-31T15:04:05Z, or how long ago, such as 1h")
	f.Uint64Var(&r.sequence, "sequence", 0, "from this sequence on, instead of --from")
	f.StringArrayVar(&r.filters, "filter", nil, "a filter as in spec.filters, in JSON; repeatable, and all must hold")
	f.Float64Var(&r.rate, "rate", 0, "how many events a second at most (default: as many as can be)")
	f.BoolVar(&r.dryRun, "dry-run", false, "say which events it would be, and deliver none")
	out.register(cmd)
	return cmd
}

func (b *busAdmin) replay(cmd *cobra.Command, r *replayOptions, out *output) error {
	if r.subscription == "" || (r.from == "") == (r.sequence == 0) || r.rate < 0 {
		return usagef("replay needs --subscription, one of --from and --sequence, and a --rate that is not negative")
	}
	request := map[string]any{"name": uuid.NewString(), "dryRun": r.dryRun, "limit": pageLimit}
	var limiter *rate.Limiter
	if r.rate > 0 && !r.dryRun {
		page := min(pageLimit, max(1, int(r.rate)))
		request["limit"], limiter = page, rate.NewLimiter(rate.Limit(r.rate), page)
	}
	if r.from != "" {
		at, err := parseTime(r.from)
		if err != nil {
			return usagef("--from %w", err)
		}
		request["from"] = at.UTC().Format(time.RFC3339Nano)
	} else {
		request["sequence"] = r.sequence
	}
	filters := make([]json.RawMessage, len(r.filters))
	for i, text := range r.filters {
		if !json.Valid([]byte(text)) {
			return usagef("--filter %q is not JSON", text)
		}
		filters[i] = json.RawMessage(text)
	}
	request["filters"] = filters
	all := []storedEvent{}
	for {
		var answer struct {
			Events []storedEvent `json:"events"`
			Next   uint64        `json:"next"`
		}
		if err := b.call(cmd.Context(), http.MethodPost, "/subscriptions/"+url.PathEscape(r.subscription)+"/replay", nil, request, &answer); err != nil {
			return err
		}
		all = append(all, answer.Events...)
		if answer.Next == 0 {
			break
		}
		delete(request, "from")
		request["sequence"] = answer.Next
		if limiter != nil {
			if err := limiter.WaitN(cmd.Context(), len(answer.Events)); err != nil {
				return fmt.Errorf("after %d events: %w", len(all), err)
			}
		}
	}
	if out.format != tableFormat {
		return out.print(cmd.OutOrStdout(), map[string]any{"name": request["name"], "dryRun": r.dryRun, "events": all}, nil, nil)
	}
	rows := make([][]string, len(all))
	for i := range all {
		rows[i] = all[i].row()
	}
	if err := printTable(cmd.OutOrStdout(), eventColumns(), rows); err != nil {
		return err
	}
	verb := "are delivered again"
	if r.dryRun {
		verb = "would be delivered again"
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "%d events %s to %s/%s\n", len(all), verb, b.namespace, r.subscription)
	return err
}
