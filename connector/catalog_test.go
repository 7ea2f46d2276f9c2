package connector_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

const events = `
asyncapi: 2.0.0
channels:
  order.created.v1: {subscribe: {message: {summary: An order was made, payload: {$ref: '#/components/schemas/Order'}}}}
  order.paid.v1: {}
components: {schemas: {Order: {type: object, required: [orderCode], properties: {parent: {$ref: '#/components/schemas/Order'}}}}}
`

func object(application, name string, definition v1alpha1.ServiceDefinition) *v1alpha1.ApplicationService {
	return &v1alpha1.ApplicationService{
		ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.ServiceObjectName(application, name)},
		Spec:       v1alpha1.ApplicationServiceSpec{Application: application, Name: name, ServiceDefinition: definition},
	}
}

// eventTypes are the event types of an application, by type.
func (w *world) eventTypes(application string) map[string]v1alpha1.EventType {
	w.t.Helper()
	var list v1alpha1.EventTypeList
	require.NoError(w.t, w.client.List(w.t.Context(), &list, client.InNamespace(v1alpha1.SystemNamespace), client.MatchingLabels{v1alpha1.LabelApplication: application}))
	all := map[string]v1alpha1.EventType{}
	for _, t := range list.Items {
		all[t.Spec.Type] = t
	}
	return all
}

func (w *world) eventually(what string, check func() error) {
	w.t.Helper()
	testkit.Eventually(w.t, 30*time.Second, check, what)
}

// counts waits for the counters of an application.
func (w *world) counts(app *v1alpha1.Application, services, notReady, types int) {
	w.t.Helper()
	w.eventually("the application counts", func() error {
		if err := w.client.Get(w.t.Context(), client.ObjectKeyFromObject(app), app); err != nil {
			return err
		}
		got := []int32{app.Status.Services, app.Status.ServicesNotReady, app.Status.EventTypes}
		if fmt.Sprint(got) != fmt.Sprint([]int{services, notReady, types}) {
			return fmt.Errorf("services, not ready, event types: %v", got)
		}
		return nil
	})
}

func TestEventTypesFollowTheDocuments(t *testing.T) {
	w := start(t)
	app := &v1alpha1.Application{ObjectMeta: metav1.ObjectMeta{Name: "typed"}, Spec: v1alpha1.ApplicationSpec{
		Services: []v1alpha1.InlineService{{Name: "inline", ServiceDefinition: v1alpha1.ServiceDefinition{
			Events: &v1alpha1.ServiceEvents{AsyncAPI: `{"asyncapi":"1.0.0","topics":{"stock.changed.v1":{}}}`},
		}}},
	}}
	service := object("typed", "orders", v1alpha1.ServiceDefinition{
		API:    &v1alpha1.ServiceAPI{TargetURL: "https://shop.example.com", OpenAPI: "openapi: 3.0.3\ninfo: {title: Orders, version: '7'}\npaths: {}"},
		Events: &v1alpha1.ServiceEvents{AsyncAPI: events},
	})
	w.create(service)
	w.becomes(service, v1alpha1.ReasonNotFound, "there is no Application typed")
	w.create(app)
	w.becomes(service, v1alpha1.ReasonReady, "")
	require.Equal(t, &v1alpha1.DocumentStatus{Format: "openapi", Title: "Orders", Version: "7"}, service.Status.Document)
	w.counts(app, 2, 0, 3)
	types := w.eventTypes("typed")
	require.Len(t, types, 3)
	created := types["order.created.v1"]
	require.Equal(t, []string{"typed", "orders", "An order was made"}, []string{created.Spec.Source, created.Spec.Service, created.Spec.Description})
	require.True(t, meta.IsStatusConditionTrue(created.Status.Conditions, v1alpha1.ConditionReady))
	require.True(t, metav1.IsControlledBy(&created, service))
	var schema map[string]any
	require.NoError(t, json.Unmarshal(created.Spec.Schema.Raw, &schema))
	require.Contains(t, schema, "$defs", "it stands by itself")
	require.Nil(t, types["order.paid.v1"].Spec.Schema)

	// What somebody changes is put right, and what somebody deletes comes again.
	created.Spec.Description = "changed"
	require.NoError(t, w.client.Update(t.Context(), &created))
	paid := types["order.paid.v1"]
	require.NoError(t, w.client.Delete(t.Context(), &paid))
	w.eventually("the event types are put right", func() error {
		types := w.eventTypes("typed")
		if len(types) != 3 || types["order.created.v1"].Spec.Description != "An order was made" || types["order.created.v1"].Spec.Schema == nil {
			return fmt.Errorf("%v", types)
		}
		return nil
	})

	// They change with the document; one that cannot be used names none.
	require.NoError(t, w.client.Get(t.Context(), client.ObjectKeyFromObject(service), service))
	service.Spec.Events.AsyncAPI = strings.Replace(events, "order.paid.v1", "order.shipped.v1", 1)
	require.NoError(t, w.client.Update(t.Context(), service))
	w.eventually("the event types follow", func() error {
		types := w.eventTypes("typed")
		if _, ok := types["order.shipped.v1"]; !ok || len(types) != 3 {
			return fmt.Errorf("%v", types)
		}
		return nil
	})
	w.becomes(service, v1alpha1.ReasonReady, "")
	service.Spec.Events.AsyncAPI = "asyncapi: none"
	require.NoError(t, w.client.Update(t.Context(), service))
	w.becomes(service, "DocumentInvalid", "the AsyncAPI document cannot be used")
	w.counts(app, 2, 1, 1)
	require.Len(t, w.eventTypes("typed"), 1)
	app.Spec.Services[0].Events.AsyncAPI = "nothing"
	require.NoError(t, w.client.Update(t.Context(), app))
	w.becomes(app, "DocumentInvalid", "service inline: the AsyncAPI document cannot be used")
	require.Empty(t, w.eventTypes("typed"))
}

func TestServicesThatAreObjectsAreCalledAndCounted(t *testing.T) {
	var down atomic.Bool
	shop := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if down.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		user, _, _ := r.BasicAuth()
		fmt.Fprint(w, r.URL.Path, " ", user)
	}))
	defer shop.Close()
	w := start(t, strings.TrimPrefix(shop.URL, "http://"))
	app := &v1alpha1.Application{ObjectMeta: metav1.ObjectMeta{Name: "large"}}
	service := object("large", "orders", v1alpha1.ServiceDefinition{API: &v1alpha1.ServiceAPI{
		TargetURL: shop.URL + "/api", Auth: &v1alpha1.APIAuth{Basic: &v1alpha1.BasicAuth{Secret: v1alpha1.SecretRef{Name: "large"}}},
		Probe: &v1alpha1.TargetProbe{Path: "/health", Interval: &metav1.Duration{Duration: 10 * time.Second}},
	}})
	bound := &v1alpha1.ApplicationBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "large"},
		Spec: v1alpha1.ApplicationBindingSpec{
			Application: "large", Services: []string{"orders"}, Lambdas: &v1alpha1.LambdaSelection{Names: []string{"last-order"}},
		},
	}
	w.create(app, bound)
	w.becomes(bound, v1alpha1.ReasonNotFound, "the Application large has no service orders")
	w.create(service)
	w.becomes(bound, v1alpha1.ReasonReady, "")
	w.becomes(service, "SecretNotFound", "Secret lambdamesh-system/large does not exist")
	w.counts(app, 1, 1, 0)
	w.create(credentials("large"))
	w.becomes(service, v1alpha1.ReasonReady, "")
	w.counts(app, 1, 0, 0)
	w.eventually("a bound lambda calls it", func() error {
		status, body, err := w.get(w.outbound, "http://connector-outbound/large/orders/4", "last-order")
		if err != nil || status != http.StatusOK || body != "/api/4 ada" {
			return fmt.Errorf("%d %s %w", status, body, err)
		}
		return nil
	})
	reachable := func(want metav1.ConditionStatus) {
		t.Helper()
		w.eventually("the probe tells", func() error {
			if err := w.client.Get(t.Context(), client.ObjectKeyFromObject(service), service); err != nil {
				return err
			}
			c := meta.FindStatusCondition(service.Status.Conditions, v1alpha1.ConditionTargetReachable)
			if c == nil || c.Status != want {
				return fmt.Errorf("%v", c)
			}
			return nil
		})
	}
	reachable(metav1.ConditionTrue)
	down.Store(true)
	status, _, err := w.get(w.outbound, "http://connector-outbound/large/orders/4", "last-order")
	require.NoError(t, err)
	require.Equal(t, http.StatusBadGateway, status)
	reachable(metav1.ConditionFalse)
	w.eventually("the application tells of its calls", func() error {
		if err := w.client.Get(t.Context(), client.ObjectKeyFromObject(app), app); err != nil {
			return err
		}
		calls := app.Status.Calls
		if calls == nil || calls.Errors != 1 || calls.Total < 2 || calls.LastCall == nil || calls.LastErrorMessage != "orders: the target answered 503" {
			return fmt.Errorf("%+v", calls)
		}
		return nil
	})

	// One of the Application itself goes before the object.
	require.NoError(t, w.client.Get(t.Context(), client.ObjectKeyFromObject(app), app))
	app.Spec.Services = []v1alpha1.InlineService{{Name: "orders", ServiceDefinition: v1alpha1.ServiceDefinition{API: &v1alpha1.ServiceAPI{TargetURL: shop.URL + "/inline"}}}}
	require.NoError(t, w.client.Update(t.Context(), app))
	w.becomes(service, "NameConflict", "itself has a service orders, which counts")
}

func TestSecretsOfTheRegistryGoWithTheirService(t *testing.T) {
	w := start(t)
	secret := func(name string) *corev1.Secret {
		s := credentials(name)
		s.Labels = map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy, v1alpha1.LabelApplication: "swept", v1alpha1.LabelService: "orders"}
		return s
	}
	used := secret("swept.orders.used")
	w.create(used, secret("swept.orders.young"))
	service := object("swept", "orders", v1alpha1.ServiceDefinition{API: &v1alpha1.ServiceAPI{
		TargetURL: "https://shop.example.com", Auth: &v1alpha1.APIAuth{Basic: &v1alpha1.BasicAuth{Secret: v1alpha1.SecretRef{Name: used.Name}}},
	}})
	w.create(service)
	w.eventually("the Secret goes with its service", func() error {
		if err := w.client.Get(t.Context(), client.ObjectKeyFromObject(used), used); err != nil {
			return err
		}
		if !metav1.IsControlledBy(used, service) {
			return errors.New("it has another owner")
		}
		return nil
	})
	require.NoError(t, w.client.Get(t.Context(), client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: "swept.orders.young"}, &corev1.Secret{}), "its service may be about to come")
}
