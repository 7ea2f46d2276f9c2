package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// objectStatus is a row of `lambdamesh status`.
type objectStatus struct {
	Kind      string    `json:"kind"`
	Namespace string    `json:"namespace,omitempty"`
	Name      string    `json:"name"`
	Ready     string    `json:"ready"`
	Detail    string    `json:"detail,omitempty"`
	Message   string    `json:"message,omitempty"`
	Since     time.Time `json:"since"`
}

func newStatusCommand(g *globals) *cobra.Command {
	var out output
	var namespace string
	var everywhere bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show every lambda, rule, subscription and application, and what is wrong with it",
		Long: `status shows what there is in a namespace; with -A in all of them, and the
applications, which are in none.`,
		Example: `  lambdamesh status
  lambdamesh status -A
  lambdamesh status -n shop -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := out.validate(); err != nil {
				return err
			}
			if everywhere && namespace != "" {
				return usagef("give -n or -A, not both")
			}
			t := g.target()
			c, err := t.client()
			if err != nil {
				return err
			}
			if !everywhere {
				if namespace, err = t.namespace(namespace); err != nil {
					return err
				}
			}
			all, err := collectStatus(cmd.Context(), c, namespace)
			if err != nil {
				return err
			}
			if len(all) == 0 && !everywhere {
				fmt.Fprintf(cmd.ErrOrStderr(), "lambdamesh: nothing in namespace %s: pass -n NAMESPACE, or -A for all\n", namespace)
			}
			rows := make([][]string, 0, len(all))
			for _, s := range all {
				rows = append(rows, []string{s.Kind, s.Namespace, s.Name, s.Ready, s.Detail, age(s.Since), s.Message})
			}
			return out.print(cmd.OutOrStdout(), all, []string{"KIND", "NAMESPACE", "NAME", "READY", "DETAIL", "AGE", "MESSAGE"}, rows)
		},
	}
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "`namespace` to show (default: the context's)")
	cmd.Flags().BoolVarP(&everywhere, "all-namespaces", "A", false, "show all namespaces, and applications")
	out.register(cmd)
	return cmd
}

func age(since time.Time) string { return duration.HumanDuration(time.Since(since)) }

// collectStatus lists every object of ours, kind by kind.
func collectStatus(ctx context.Context, c client.Client, namespace string) ([]objectStatus, error) {
	in := client.InNamespace(namespace)
	all := []objectStatus{}
	var lambdas v1alpha1.LambdaList
	var rules v1alpha1.APIRuleList
	var subscriptions v1alpha1.SubscriptionList
	var applications v1alpha1.ApplicationList
	var bindings v1alpha1.ApplicationBindingList
	for _, list := range []client.ObjectList{&lambdas, &rules, &subscriptions, &bindings} {
		if err := c.List(ctx, list, in); err != nil {
			return nil, fmt.Errorf("list %T (is Lambdamesh installed and running there?): %w", list, err)
		}
	}
	if namespace == "" {
		if err := c.List(ctx, &applications); err != nil {
			return nil, fmt.Errorf("list applications: %w", err)
		}
	}
	for i := range lambdas.Items {
		l := &lambdas.Items[i]
		all = append(all, statusOf("Lambda", l, fmt.Sprintf("%s %d/%d", l.Spec.Runtime, l.Status.ReadyReplicas, l.Status.Replicas)))
	}
	for i := range rules.Items {
		r := &rules.Items[i]
		all = append(all, statusOf("APIRule", r, strings.Join(r.Status.URLs, " ")))
	}
	for i := range subscriptions.Items {
		s := &subscriptions.Items[i]
		all = append(all, statusOf("Subscription", s, fmt.Sprintf("delivered %d, pending %d, dead %d", s.Status.Delivered, s.Status.Pending, s.Status.DeadLettered)))
	}
	for i := range applications.Items {
		all = append(all, statusOf("Application", &applications.Items[i], catalogAndCalls(&applications.Items[i].Status)+certificateAndEvents(&applications.Items[i])))
	}
	for i := range bindings.Items {
		all = append(all, statusOf("ApplicationBinding", &bindings.Items[i], bindings.Items[i].Spec.Application))
	}
	return all, nil
}

// catalogAndCalls says what an application offers, and how calls to it went.
func catalogAndCalls(status *v1alpha1.ApplicationStatus) string {
	detail := fmt.Sprintf("services %d, event types %d", status.Services, status.EventTypes)
	if status.ServicesNotReady > 0 {
		detail += fmt.Sprintf(", %d not ready", status.ServicesNotReady)
	}
	calls := status.Calls
	if calls == nil {
		return detail + ", not called yet"
	}
	detail += fmt.Sprintf(", calls %d, errors %d", calls.Total, calls.Errors)
	if calls.LastCall != nil {
		detail += ", last call " + age(calls.LastCall.Time) + " ago"
	}
	if calls.LastError != nil {
		detail += ", last error " + age(calls.LastError.Time) + " ago (" + calls.LastErrorMessage + ")"
	}
	return detail
}

// certificateAndEvents says until when an application is paired, and what it has
// sent.
func certificateAndEvents(app *v1alpha1.Application) (detail string) {
	var last *v1alpha1.ClientCertificate
	for i := range app.Status.Certificates {
		c := &app.Status.Certificates[i]
		if c.RevokedAt == nil && !slices.Contains(app.Spec.RevokedCertificates, c.Serial) && (last == nil || last.ExpiresAt.Before(&c.ExpiresAt)) {
			last = c
		}
	}
	switch {
	case last == nil:
		detail = ", not paired"
	case !last.ExpiresAt.After(time.Now()):
		detail = ", certificate expired " + age(last.ExpiresAt.Time) + " ago"
	default:
		detail = ", certificate until " + last.ExpiresAt.UTC().Format(time.DateOnly)
	}
	if events := app.Status.Events; events != nil && events.LastEvent != nil {
		detail += fmt.Sprintf(", events %d, last event %s ago", events.Total, age(events.LastEvent.Time))
	}
	for _, hook := range app.Status.Webhooks {
		if hook.Refused > 0 && hook.LastRefused != nil {
			detail += fmt.Sprintf(", webhook %s refused %d, the last %s ago (%s)", hook.Name, hook.Refused, age(hook.LastRefused.Time), hook.LastRefusedReason)
		}
	}
	return detail
}

func statusOf(kind string, obj v1alpha1.Object, detail string) objectStatus {
	s := objectStatus{
		Kind: kind, Namespace: obj.GetNamespace(), Name: obj.GetName(), Detail: detail,
		Ready: string(metav1.ConditionUnknown), Since: obj.GetCreationTimestamp().Time,
	}
	if c := meta.FindStatusCondition(*obj.Conditions(), v1alpha1.ConditionReady); c != nil && c.ObservedGeneration == obj.GetGeneration() {
		s.Ready = string(c.Status)
		if c.Status != metav1.ConditionTrue {
			s.Message = c.Reason + ": " + firstLine(c.Message)
		}
	}
	return s
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
