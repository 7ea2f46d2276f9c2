package cli

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// deadLetter is an event that a subscription could not be given.
type deadLetter struct {
	ID           uint64         `json:"id"`
	Subscription string         `json:"subscription"`
	Consumer     string         `json:"consumer"`
	Sequence     uint64         `json:"sequence"`
	Stored       time.Time      `json:"stored"`
	Died         time.Time      `json:"died"`
	Reason       string         `json:"reason"`
	Attempts     int            `json:"attempts"`
	LastStatus   int            `json:"lastStatus,omitempty"`
	LastError    string         `json:"lastError,omitempty"`
	Event        map[string]any `json:"event"`
	Raw          map[string]any `json:"raw,omitempty"`
}

func (d *deadLetter) row() []string {
	id, _ := d.Event["id"].(string)
	eventType, _ := d.Event["type"].(string)
	return []string{strconv.FormatUint(d.ID, 10), d.Subscription, id, eventType, d.Reason, strconv.Itoa(d.Attempts), moment(d.Died), firstLine(d.LastError)}
}

func deadLetterColumns() []string {
	return []string{"DEAD LETTER", "SUBSCRIPTION", "EVENT", "TYPE", "REASON", "ATTEMPTS", "DIED", "LAST ERROR"}
}

func newDeadLettersCommand(g *globals) *cobra.Command {
	var o busOptions
	cmd := &cobra.Command{
		Use:   "dead-letters",
		Short: "See the events that Subscriptions could not be given, deliver them again, or delete them",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	o.register(cmd)
	cmd.AddCommand(newDeadLettersListCommand(g, &o), newDeadLettersShowCommand(g, &o),
		newDeadLettersRepairCommand(g, &o, repair{
			use: "redrive", short: "Deliver the events of dead letters once more", method: http.MethodPost, path: "/redrive", done: "delivered again",
			long: `redrive puts the events of dead letters behind what their Subscriptions have to
deliver, and deletes the dead letters. Events that cannot be delivered this time
either become dead letters again.`,
		}),
		newDeadLettersRepairCommand(g, &o, repair{
			use: "purge", short: "Delete dead letters", method: http.MethodDelete, done: "deleted",
			long: `purge deletes dead letters, and with them what is left of their events, for good.`,
		}))
	return cmd
}

// deadLetters reads all, of one Subscription or of all that may be read.
func (b *busAdmin) deadLetters(cmd *cobra.Command, subscription string, each func([]deadLetter) error) error {
	query := url.Values{"limit": {strconv.Itoa(pageLimit)}}
	if subscription != "" {
		if !strings.Contains(subscription, "/") {
			if b.namespace == "" {
				return usagef("--subscription %q: with --all-namespaces write NAMESPACE/NAME", subscription)
			}
			subscription = b.namespace + "/" + subscription
		}
		query.Set("subscription", subscription)
	}
	for {
		var page struct {
			Items []deadLetter `json:"items"`
			Next  uint64       `json:"next"`
		}
		if err := b.call(cmd.Context(), http.MethodGet, "/dead-letters", query, nil, &page); err != nil {
			return err
		}
		if err := each(page.Items); err != nil || page.Next == 0 {
			return err
		}
		query.Set("after", strconv.FormatUint(page.Next, 10))
	}
}

func newDeadLettersListCommand(g *globals, o *busOptions) *cobra.Command {
	var out output
	var subscription string
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List dead letters, oldest first",
		Example: `  lambdamesh dead-letters list -n shop --subscription orders`,
		Args:    noArgs,
		RunE: withBus(g, o, &out, func(cmd *cobra.Command, _ []string, b *busAdmin) error {
			all, rows := []deadLetter{}, [][]string{}
			err := b.deadLetters(cmd, subscription, func(page []deadLetter) error {
				for i := range page {
					rows = append(rows, page[i].row())
					if out.format != tableFormat {
						all = append(all, page[i])
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), map[string]any{"items": all}, deadLetterColumns(), rows)
		}),
	}
	cmd.Flags().StringVar(&subscription, "subscription", "", "only those of this Subscription")
	out.register(cmd)
	return cmd
}

func newDeadLettersShowCommand(g *globals, o *busOptions) *cobra.Command {
	out := output{}
	cmd := &cobra.Command{
		Use:   "show ID",
		Short: "Show a dead letter with its event",
		Args:  exactArgs("ID"),
		RunE: withBus(g, o, &out, func(cmd *cobra.Command, args []string, b *busAdmin) error {
			var letter deadLetter
			if err := b.call(cmd.Context(), http.MethodGet, "/dead-letters/"+url.PathEscape(args[0]), nil, nil, &letter); err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), letter, deadLetterColumns(), [][]string{letter.row()})
		}),
	}
	out.register(cmd)
	out.format = "yaml" // a table has no place for the event
	cmd.Flag("output").DefValue = "yaml"
	return cmd
}

// repair is what is done to dead letters.
type repair struct{ use, short, long, method, path, done string }

func newDeadLettersRepairCommand(g *globals, o *busOptions, what repair) *cobra.Command {
	var out output
	var subscription string
	var all bool
	cmd := &cobra.Command{
		Use:   what.use + " [ID...]",
		Short: what.short,
		Long:  what.long,
		Example: fmt.Sprintf(`  lambdamesh dead-letters %[1]s 17 18 -n shop
  lambdamesh dead-letters %[1]s -n shop --subscription orders --all`, what.use),
		RunE: withBus(g, o, &out, func(cmd *cobra.Command, args []string, b *busAdmin) error {
			if err := confirmed(args, all, "dead letters"); err != nil {
				return err
			}
			if all {
				// The list is read to its end before anything is done: what dies again
				// meanwhile is not done twice.
				err := b.deadLetters(cmd, subscription, func(page []deadLetter) error {
					for i := range page {
						args = append(args, strconv.FormatUint(page[i].ID, 10))
					}
					return nil
				})
				if err != nil {
					return err
				}
			}
			for i, id := range args {
				if err := b.call(cmd.Context(), what.method, "/dead-letters/"+url.PathEscape(id)+what.path, nil, nil, nil); err != nil {
					return fmt.Errorf("dead letter %s, after %d of %d: %w", id, i, len(args), err)
				}
			}
			if out.format != tableFormat {
				return out.print(cmd.OutOrStdout(), map[string]any{"deadLetters": args}, nil, nil)
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%d dead letters %s\n", len(args), what.done)
			return err
		}),
	}
	cmd.Flags().StringVar(&subscription, "subscription", "", "with --all: only those of this Subscription")
	cmd.Flags().BoolVar(&all, "all", false, "all dead letters that may be read")
	out.register(cmd)
	return cmd
}
