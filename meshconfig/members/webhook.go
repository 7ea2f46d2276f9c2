package members

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/fields"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/lambdamesh/lambdamesh/meshconfig/ca"
	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
	"github.com/lambdamesh/lambdamesh/pkg/sidecar"
)

const (
	// WebhookConfiguration is the name of the MutatingWebhookConfiguration that an
	// installation brings; we keep the certificate in it that the API server
	// verifies us by.
	WebhookConfiguration = "lambdamesh-sidecars"
	// WebhookPath is where it calls.
	WebhookPath = "/inject"
)

// Webhook puts sidecars into pods that ask for one.
type Webhook struct {
	// Listener is where the API server calls; it is closed when the server stops.
	// Required.
	Listener net.Listener
	// CA issues the certificate for ServerNames. Required.
	CA          *ca.CA
	ServerNames []string
	// Sidecar that pods get. Required.
	Sidecar sidecar.Config
	// Log; default none.
	Log *slog.Logger
}

// Server is a component; every replica serves.
func (w Webhook) Server() (*httpserver.Server, error) {
	if w.Listener == nil || w.CA == nil || len(w.ServerNames) == 0 {
		return nil, errors.New("configure the webhook: Listener, CA and ServerNames are required")
	}
	mux := http.NewServeMux()
	mux.Handle("POST "+WebhookPath, newBounds().bounded(newReviewer(w.Sidecar)))
	mux.HandleFunc("/", httpserver.NotFound)
	return httpserver.New(httpserver.Config{
		Name: "webhook", Listener: w.Listener, Handler: mux, Log: w.Log,
		TLS:               &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: w.CA.ServerCertificate(w.ServerNames...)},
		ReadHeaderTimeout: readTimeout, ReadTimeout: readTimeout, MaxHeaderBytes: maxHeaderBytes, MaxConns: maxConns, MaxConnsPerRemote: maxConnsPerRemote,
	}), nil
}

// ConfigureCache keeps of all webhook configurations the one that is ours.
func ConfigureCache(options *cache.Options) {
	if options.ByObject == nil {
		options.ByObject = map[client.Object]cache.ByObject{}
	}
	options.ByObject[&admissionregistrationv1.MutatingWebhookConfiguration{}] = cache.ByObject{
		Field: fields.OneTermEqualSelector("metadata.name", WebhookConfiguration),
	}
}

// AddTrust has the leader tell the API server what the webhook is verified by.
// The manager's cache options should have been through [ConfigureCache].
func AddTrust(mgr ctrl.Manager, authority *ca.CA) error {
	configuration := reconcile.Request{NamespacedName: client.ObjectKey{Name: WebhookConfiguration}}
	err := ctrl.NewControllerManagedBy(mgr).
		Named("mesh-webhook").
		For(&admissionregistrationv1.MutatingWebhookConfiguration{}, builder.WithPredicates(predicate.NewPredicateFuncs(func(o client.Object) bool { return o.GetName() == WebhookConfiguration }))).
		WatchesRawSource(whenChanged(authority, func(context.Context) []reconcile.Request { return []reconcile.Request{configuration} })).
		WithOptions(controller.Options{SkipNameValidation: new(true)}).
		Complete(&trust{client: mgr.GetClient(), ca: authority})
	if err != nil {
		return fmt.Errorf("add the controller of the webhook's certificate: %w", err)
	}
	return nil
}

type trust struct {
	client client.Client
	ca     *ca.CA
}

// Reconcile implements reconcile.Reconciler.
func (t *trust) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	object := &admissionregistrationv1.MutatingWebhookConfiguration{}
	if err := t.client.Get(ctx, request.NamespacedName, object); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	changed := object.DeepCopy()
	for i := range changed.Webhooks {
		changed.Webhooks[i].ClientConfig.CABundle = t.ca.Root()
	}
	// By the name of each webhook, so that what an installation writes stays.
	patch := client.StrategicMergeFrom(object)
	if data, err := patch.Data(changed); err != nil || string(data) == "{}" {
		return reconcile.Result{}, err
	}
	if err := t.client.Patch(ctx, changed, patch, client.FieldOwner(fieldManager)); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(fmt.Errorf("write the certificate of MutatingWebhookConfiguration %s: %w", object.Name, err))
	}
	return reconcile.Result{}, nil
}
