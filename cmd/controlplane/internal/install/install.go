package install

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	istioapi "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// Annotations by which we know again what we made.
const (
	// AnnotationMadeBy names who made the object.
	AnnotationMadeBy = v1alpha1.Group + "/made-by"
	// AnnotationMadeDigest is a digest of what was made: another content is
	// somebody else's.
	AnnotationMadeDigest = v1alpha1.Group + "/made-digest"

	madeBy = v1alpha1.ServiceAccountControlPlane
)

// lookAgain is how long nothing is looked at when nothing changes: for Events
// about what others let expire.
const lookAgain = 12 * time.Hour

// Kinds of what is made, as the controller's requests tell them apart: by the
// namespace field, which is otherwise the same for all.
const (
	secretKind  = "Secret"
	gatewayKind = "Gateway"
)

type maker struct {
	config   Config
	client   client.Client
	reader   client.Reader // past the cache: it sees what was made a moment ago
	recorder events.EventRecorder
	expiry   *prometheus.GaugeVec
	// credentials are those of ours as they were seen last; one reconciler runs at a time.
	credentials *corev1.Secret
}

// Add has manager keep what config names.
func Add(manager ctrl.Manager, config Config) error {
	if err := config.Validate(); err != nil {
		return err
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Log == nil {
		config.Log = slog.Default()
	}
	m := &maker{
		config: config, client: manager.GetClient(), reader: manager.GetAPIReader(), recorder: manager.GetEventRecorder("lambdamesh-install"),
		expiry: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lambdamesh_certificate_expiry_timestamp_seconds",
			Help: "When the certificate in a Secret of the system expires, in Unix time.",
		}, []string{"secret"}),
	}
	if config.Registry != nil {
		if err := config.Registry.Register(m.expiry); err != nil {
			return fmt.Errorf("install: %w", err)
		}
	}
	all := m.requests()
	b := builder.ControllerManagedBy(manager).Named("install").
		// Replicas may live in one process, each with this name.
		WithOptions(controller.Options{SkipNameValidation: new(true)}).
		WatchesMetadata(&corev1.Secret{}, asRequest(secretKind), builder.WithPredicates(m.among(secretKind, all))).
		// What is not there sends no event.
		WatchesRawSource(source.Func(func(ctx context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
			go func() {
				for {
					var changed <-chan struct{} // nil, and so never, without certificates
					if m.config.Changed != nil {
						changed = m.config.Changed()
					}
					for _, request := range all {
						queue.Add(request)
					}
					select {
					case <-changed:
					case <-ctx.Done():
						return
					}
				}
			}()
			return nil
		}))
	if config.Gateway != nil {
		b = b.Watches(&networkingv1.Gateway{}, asRequest(gatewayKind), builder.WithPredicates(m.among(gatewayKind, all)))
	}
	if err := b.Complete(reconcile.Func(m.reconcile)); err != nil {
		return fmt.Errorf("install: %w", err)
	}
	return nil
}

// requests are for everything that is kept or watched.
func (m *maker) requests() []reconcile.Request {
	var all []reconcile.Request
	add := func(kind, name string) {
		all = append(all, reconcile.Request{NamespacedName: types.NamespacedName{Namespace: kind, Name: name}})
	}
	for name := range m.config.Certificates {
		add(secretKind, name)
	}
	for name := range m.config.Authorities {
		add(secretKind, name)
	}
	for _, name := range m.config.Watched {
		add(secretKind, name)
	}
	if m.config.Credentials != "" {
		add(secretKind, m.config.Credentials)
	}
	if m.config.Gateway != nil {
		add(gatewayKind, m.config.Gateway.Name)
	}
	return all
}

func asRequest(kind string) handler.EventHandler {
	return handler.EnqueueRequestsFromMapFunc(func(_ context.Context, object client.Object) []reconcile.Request {
		return []reconcile.Request{{NamespacedName: types.NamespacedName{Namespace: kind, Name: object.GetName()}}}
	})
}

func (m *maker) among(kind string, all []reconcile.Request) predicate.Predicate {
	return predicate.NewPredicateFuncs(func(object client.Object) bool {
		return object.GetNamespace() == m.config.Namespace && slices.ContainsFunc(all, func(r reconcile.Request) bool {
			return r.Namespace == kind && r.Name == object.GetName()
		})
	})
}

func (m *maker) reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	var next time.Duration
	var err error
	if request.Namespace == gatewayKind {
		next, err = lookAgain, m.keepGateway(ctx)
	} else {
		next, err = m.keepSecret(ctx, request.Name)
	}
	switch {
	case apierrors.IsConflict(err), apierrors.IsAlreadyExists(err):
		// Somebody else was faster: look at what is there now.
		return reconcile.Result{RequeueAfter: time.Second}, nil
	case err != nil:
		return reconcile.Result{}, err
	}
	return reconcile.Result{RequeueAfter: min(max(next, time.Second), lookAgain)}, nil
}

// keepSecret makes, renews or judges a Secret, and returns when to look again.
func (m *maker) keepSecret(ctx context.Context, name string) (time.Duration, error) {
	names, isCertificate := m.config.Certificates[name]
	create := func() (map[string][]byte, error) { return m.certificate(name, names) }
	kind := corev1.SecretTypeTLS
	if name == m.config.Credentials {
		create, kind = credentials, corev1.SecretTypeOpaque
	} else if renew, ok := m.config.Authorities[name]; ok {
		create = func() (map[string][]byte, error) {
			data, _, _, err := renew(nil, false, m.config.Now())
			return data, err
		}
	} else if !isCertificate {
		create = nil // others make it
	}

	secret := &corev1.Secret{}
	err := m.reader.Get(ctx, client.ObjectKey{Namespace: m.config.Namespace, Name: name}, secret)
	switch {
	case apierrors.IsNotFound(err):
		m.expiry.DeleteLabelValues(name)
		if create == nil {
			return lookAgain, nil
		}
		if name == m.config.Credentials && m.credentials != nil {
			return lookAgain, m.restoreCredentials(ctx)
		}
		secret = &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: m.config.Namespace, Name: name, Labels: labels()}, Type: kind}
		if secret.Data, err = create(); err != nil {
			return 0, fmt.Errorf("make Secret %s: %w", name, err)
		}
		if err := sign(secret, secret.Data); err != nil {
			return 0, err
		}
		if err := m.client.Create(ctx, secret); err != nil {
			return 0, fmt.Errorf("make Secret %s: %w", name, err)
		}
		m.say(secret, "Made", "made by the control plane")
	case err != nil:
		return 0, fmt.Errorf("read Secret %s: %w", name, err)
	case create == nil || !ours(secret, secret.Data):
		if name == m.config.Credentials {
			m.credentials = nil // theirs: deleting it asks for new ones
		}
		m.judge(secret)
	case m.config.Authorities[name] != nil:
		return m.renewAuthority(ctx, secret, m.config.Authorities[name])
	case isCertificate:
		reason, _ := m.outdated(secret.Data, names)
		if _, asked := secret.Annotations[v1alpha1.AnnotationRotate]; asked {
			reason = "somebody asked for it"
		}
		if reason == "" {
			break
		}
		if secret.Data, err = create(); err != nil {
			return 0, fmt.Errorf("renew Secret %s: %w", name, err)
		}
		if err := m.renew(ctx, secret); err != nil {
			return 0, err
		}
		m.say(secret, "Renewed", "made anew, because "+reason)
	default:
		next, err := m.rotateCredentials(ctx, secret)
		if err == nil {
			m.credentials = secret
		}
		return next, err
	}
	if name == m.config.Credentials && create != nil && ours(secret, secret.Data) {
		m.credentials = secret // just made
	}
	return m.tellExpiry(secret, names), nil
}

// renew writes a Secret of ours with new content.
func (m *maker) renew(ctx context.Context, secret *corev1.Secret) error {
	delete(secret.Annotations, v1alpha1.AnnotationRotate)
	if err := sign(secret, secret.Data); err != nil {
		return err
	}
	// In the version that was read: a change by somebody else wins.
	if err := m.client.Update(ctx, secret); err != nil {
		return fmt.Errorf("renew Secret %s: %w", secret.Name, err)
	}
	return nil
}

// renewAuthority gives an authority another key when it is time or was asked for.
func (m *maker) renewAuthority(ctx context.Context, secret *corev1.Secret, renew Authority) (time.Duration, error) {
	_, rotate := secret.Annotations[v1alpha1.AnnotationRotate]
	data, reason, until, err := renew(secret.Data, rotate, m.config.Now())
	if err != nil {
		return 0, fmt.Errorf("renew Secret %s: %w", secret.Name, err)
	}
	if data != nil {
		secret.Data = data
		if err := m.renew(ctx, secret); err != nil {
			return 0, err
		}
		m.say(secret, "Renewed", "made anew, because "+reason)
	}
	m.tellExpiry(secret, nil)
	return until.Sub(m.config.Now()), nil
}

// tellExpiry sets the metric and returns how long the Secret may be left alone.
func (m *maker) tellExpiry(secret *corev1.Secret, names []string) time.Duration {
	certificate, err := parse(secret.Data)
	if err != nil {
		m.expiry.DeleteLabelValues(secret.Name)
		return lookAgain
	}
	m.expiry.WithLabelValues(secret.Name).Set(float64(certificate.NotAfter.Unix()))
	if !ours(secret, secret.Data) {
		return lookAgain
	}
	_, until := m.outdated(secret.Data, names)
	return until.Sub(m.config.Now())
}

// keepGateway makes the default Gateway, and follows a new domain while it is as
// it was made.
func (m *maker) keepGateway(ctx context.Context) error {
	wanted := m.config.Gateway
	existing := &networkingv1.Gateway{}
	err := m.reader.Get(ctx, client.ObjectKey{Namespace: m.config.Namespace, Name: wanted.Name}, existing)
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("read the default Gateway: %w", err)
	}
	missing := err != nil
	if !missing && (!ours(existing, gatewayContent(existing)) || existing.Annotations[v1alpha1.AnnotationDomain] == wanted.Domain) {
		return nil
	}
	object := existing
	if missing {
		object = &networkingv1.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: m.config.Namespace, Name: wanted.Name, Labels: labels()}}
		object.Spec.Selector = wanted.Selector
		object.Spec.Servers = []*istioapi.Server{{
			Port:  &istioapi.Port{Number: 443, Name: "https", Protocol: "HTTPS"},
			Hosts: []string{"*"},
			Tls: &istioapi.ServerTLSSettings{
				Mode: istioapi.ServerTLSSettings_SIMPLE, MinProtocolVersion: istioapi.ServerTLSSettings_TLSV1_2, CredentialName: wanted.Secret,
			},
		}}
	}
	metav1.SetMetaDataAnnotation(&object.ObjectMeta, v1alpha1.AnnotationDomain, wanted.Domain)
	if err := sign(object, gatewayContent(object)); err != nil {
		return err
	}
	if missing {
		err = m.client.Create(ctx, object)
	} else {
		err = m.client.Update(ctx, object)
	}
	if err != nil {
		return fmt.Errorf("make the default Gateway: %w", err)
	}
	m.say(object, "Made", "made by the control plane for the domain "+wanted.Domain)
	return nil
}

// gatewayContent is what makes a Gateway somebody's.
func gatewayContent(g *networkingv1.Gateway) any {
	return map[string]any{"spec": &g.Spec, "domain": g.Annotations[v1alpha1.AnnotationDomain]}
}

func labels() map[string]string {
	return map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy, "app.kubernetes.io/part-of": "lambdamesh"}
}

// sign writes down that we made content.
func sign(object metav1.Object, content any) error {
	digest, err := digest(content)
	if err != nil {
		return err
	}
	annotations := object.GetAnnotations()
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[AnnotationMadeBy], annotations[AnnotationMadeDigest] = madeBy, digest
	object.SetAnnotations(annotations)
	return nil
}

// ours tells whether we made the object as it is.
func ours(object metav1.Object, content any) bool {
	annotations := object.GetAnnotations()
	if annotations[AnnotationMadeBy] != madeBy {
		return false
	}
	digest, err := digest(content)
	return err == nil && annotations[AnnotationMadeDigest] == digest
}

// digest of a content as JSON, whose maps are in order.
func digest(content any) (string, error) {
	raw, err := json.Marshal(content)
	if err != nil {
		return "", fmt.Errorf("digest: %w", err)
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:16]), nil
}

func (m *maker) say(object client.Object, reason, message string) {
	m.config.Log.Info("install: "+message, "name", object.GetName())
	m.recorder.Eventf(object, nil, corev1.EventTypeNormal, reason, "Install", "%s", message)
}

func (m *maker) warn(object client.Object, reason, format string, args ...any) {
	message := fmt.Sprintf(format, args...)
	m.config.Log.Warn("install: "+message, "secret", object.GetName(), "reason", reason)
	m.recorder.Eventf(object, nil, corev1.EventTypeWarning, reason, "Install", "%s", message)
}
