package controller_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// tenant is a service account that may look into one namespace.
type tenant struct {
	w                *world
	namespace, token string
}

func (w *world) tenant(namespace string) *tenant {
	t := w.t
	t.Helper()
	clientset, err := kubernetes.NewForConfig(w.rest)
	require.NoError(t, err)
	w.create(
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "owner"}},
		&rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "owner"}, Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{v1alpha1.Group}, Resources: []string{"subscriptions/events", "subscriptions/deadletters"}, Verbs: []string{"*"}},
		}},
		&rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "owner"},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "owner"},
			Subjects:   []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: namespace, Name: "owner"}},
		},
	)
	answer, err := clientset.CoreV1().ServiceAccounts(namespace).CreateToken(t.Context(), "owner", &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{Audiences: []string{v1alpha1.EventBusTokenAudience}},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	return &tenant{w: w, namespace: namespace, token: answer.Status.Token}
}

// call asks about a namespace and reads the answer, unless into is nil.
func (o *tenant) call(method, namespace, path string, body, into any) int {
	o.w.t.Helper()
	raw, err := json.Marshal(body)
	require.NoError(o.w.t, err)
	r, err := http.NewRequestWithContext(o.w.t.Context(), method, o.w.admin+"/admin/v1/namespaces/"+namespace+path, bytes.NewReader(raw))
	require.NoError(o.w.t, err)
	r.Header.Set("Authorization", "Bearer "+o.token)
	resp, err := http.DefaultClient.Do(r)
	require.NoError(o.w.t, err)
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	require.NoError(o.w.t, err)
	if into != nil && resp.StatusCode == http.StatusOK {
		require.NoError(o.w.t, json.Unmarshal(answer, into), string(answer))
	}
	return resp.StatusCode
}

type explained struct {
	Items []struct {
		Subscriptions []struct {
			Subscription, State, Detail string
			Matched                     bool
			DeadLetter                  uint64
			Attempts                    []struct {
				Number, Status    int
				Decision, Replica string
			}
		}
	}
}

// fate waits until an event has a state for a subscription, and returns the answers
// to its attempts.
func (o *tenant) fate(id, subscription, state string) (answers []int, detail string, deadLetter uint64) {
	o.w.t.Helper()
	testkit.Eventually(o.w.t, patience, func() error {
		var e explained
		if status := o.call(http.MethodGet, o.namespace, "/explain?id="+id, nil, &e); status != http.StatusOK {
			return fmt.Errorf("explain answers %d", status)
		}
		for _, s := range e.Items[0].Subscriptions {
			if s.Subscription != o.namespace+"/"+subscription {
				continue
			}
			if s.State != state {
				return fmt.Errorf("%+v", s)
			}
			answers, detail, deadLetter = []int{}, s.Detail, s.DeadLetter
			for _, a := range s.Attempts {
				require.NotEmpty(o.w.t, a.Replica)
				answers = append(answers, a.Status)
			}
			return nil
		}
		return fmt.Errorf("no word of it in %+v", e)
	}, "event "+id)
	return answers, detail, deadLetter
}

func TestATenantSeesAndRepairsItsOwnAndNothingElse(t *testing.T) {
	w := newWorld(t)
	refuse := func(r *http.Request) int {
		if r.Header.Get("Ce-Id") == "poison" {
			return http.StatusUnprocessableEntity
		}
		return http.StatusOK
	}
	w.refuse.Store(&refuse)
	orders := subscription("orders", w.ns, nil)
	invoices := subscription("invoices", w.ns, func(s *v1alpha1.SubscriptionSpec) { s.Types = []string{"invoice.**"} })
	paused := subscription("paused", w.ns, func(s *v1alpha1.SubscriptionSpec) { s.Paused = true })
	w.create(service("orders", 8080), binding(w.ns), orders, invoices, paused)
	w.expect(orders, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady)
	w.expect(invoices, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady)
	w.expect(paused, v1alpha1.ConditionSubscribed, metav1.ConditionTrue, "Subscribed")
	w.publish(w.ns, "order.created.v1", "fine", "poison")
	owner, stranger := w.tenant(w.ns), w.tenant(testkit.Namespace(t, w.rest))

	answers, _, _ := owner.fate("fine", "orders", "Delivered")
	require.Equal(t, []int{200}, answers)
	answers, why, _ := owner.fate("fine", "invoices", "NotSelected")
	require.Empty(t, answers)
	require.Contains(t, why, "spec.types")
	_, why, _ = owner.fate("fine", "paused", "Pending")
	require.Contains(t, why, "spec.paused")
	answers, why, letter := owner.fate("poison", "orders", "DeadLetter")
	require.Equal(t, []int{422}, answers)
	require.Equal(t, "Rejected", why)
	require.NotZero(t, letter)
	require.Equal(t, 404, owner.call(http.MethodGet, w.ns, "/explain?id=none", nil, nil))

	var events struct{ Items []struct{ Sequence uint64 } }
	require.Equal(t, 200, owner.call(http.MethodGet, w.ns, "/events", nil, &events))
	require.Len(t, events.Items, 2)
	var letters struct{ Items []struct{ ID uint64 } }
	require.Equal(t, 200, owner.call(http.MethodGet, w.ns, "/dead-letters", nil, &letters))
	require.Len(t, letters.Items, 1)

	// Whoever owns another namespace reaches nothing of this one, by either way.
	path := fmt.Sprintf("/dead-letters/%d", letter)
	for _, request := range [][2]string{
		{http.MethodGet, "/events"},
		{http.MethodGet, "/events?source=" + w.ns},
		{http.MethodGet, "/explain?id=fine"},
		{http.MethodGet, "/dead-letters"},
		{http.MethodGet, path},
		{http.MethodPost, path + "/redrive"},
		{http.MethodDelete, path},
		{http.MethodPost, "/subscriptions/orders/replay"},
	} {
		require.Equal(t, 403, stranger.call(request[0], w.ns, request[1], nil, nil), request)
	}
	for _, request := range [][2]string{
		{http.MethodGet, "/explain?id=fine"},
		{http.MethodGet, "/explain?id=fine&source=" + w.ns},
		{http.MethodGet, path},
		{http.MethodPost, path + "/redrive"},
		{http.MethodDelete, path},
	} {
		require.Equal(t, 404, stranger.call(request[0], stranger.namespace, request[1], nil, nil), request)
	}
	replay := map[string]any{"name": "again", "sequence": events.Items[0].Sequence}
	require.Equal(t, 404, stranger.call(http.MethodPost, stranger.namespace, "/subscriptions/orders/replay", replay, nil))
	for _, path := range []string{"/events", "/events?source=" + w.ns, "/dead-letters"} {
		events.Items = nil
		require.Equal(t, 200, stranger.call(http.MethodGet, stranger.namespace, path, nil, &events))
		require.Empty(t, events.Items, path)
	}

	w.refuse.Store(nil)
	for len(w.pushed) > 0 {
		<-w.pushed
	}
	require.Equal(t, 204, owner.call(http.MethodPost, w.ns, path+"/redrive", nil, nil))
	require.Equal(t, "poison", w.nextPush().id)
	require.Equal(t, 404, owner.call(http.MethodGet, w.ns, path, nil, nil), "a dead letter that was redriven is none any more")
	answers, _, _ = owner.fate("poison", "orders", "Delivered")
	require.Equal(t, []int{422, 200}, answers)

	var replayed struct{ Events []struct{ Sequence uint64 } }
	replay["dryRun"] = true
	require.Equal(t, 200, owner.call(http.MethodPost, w.ns, "/subscriptions/orders/replay", replay, &replayed))
	require.Len(t, replayed.Events, 2)
	require.Empty(t, w.pushed)
	marked := make(chan string, 10)
	note := func(r *http.Request) int { marked <- r.Header.Get("Ce-Replay"); return http.StatusOK }
	w.refuse.Store(&note)
	delete(replay, "dryRun")
	replay["filters"] = []any{map[string]any{"exact": map[string]string{"id": "fine"}}}
	for range 2 { // under one name once, as after an answer that was lost
		require.Equal(t, 200, owner.call(http.MethodPost, w.ns, "/subscriptions/orders/replay", replay, &replayed))
		require.Len(t, replayed.Events, 1)
	}
	require.Equal(t, "fine", w.nextPush().id)
	require.Equal(t, "again", <-marked)
	w.done(orders)
	require.Empty(t, w.pushed)
	require.Equal(t, 400, owner.call(http.MethodPost, w.ns, "/subscriptions/orders/replay", map[string]any{"filters": []any{1}}, nil))
}

// A sink that is gone pauses its subscription, over a restart too, until it is
// changed.
func TestASinkThatIsGonePausesItsSubscription(t *testing.T) {
	w := newWorld(t)
	gone := func(*http.Request) int { return http.StatusGone }
	w.refuse.Store(&gone)
	sub := subscription("orders", w.ns, nil)
	w.create(service("orders", 8080), binding(w.ns), sub)
	w.expect(sub, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady)
	w.publish(w.ns, "order.created.v1", "1")
	require.Equal(t, "1", w.nextPush().id)
	w.expect(sub, v1alpha1.ConditionDelivering, metav1.ConditionFalse, "Gone")
	w.stop()
	w.refuse.Store(nil)
	w.start()
	other := subscription("other", w.ns, func(s *v1alpha1.SubscriptionSpec) { s.Sink.Service.Path = "/other" })
	w.create(other)
	w.expect(other, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady)
	w.publish(w.ns, "order.created.v1", "2")
	require.Equal(t, pushed{url: "http://orders." + w.ns + ".svc:8080/other", id: "2"}, w.nextPush(), "nothing goes to what is gone")
	w.expect(sub, v1alpha1.ConditionDelivering, metav1.ConditionFalse, "Gone")
	w.update(sub, func() { sub.Spec.Sink.Service.Path = "/new" })
	got := []string{w.nextPush().id, w.nextPush().id}
	require.ElementsMatch(t, []string{"1", "2"}, got)
}
