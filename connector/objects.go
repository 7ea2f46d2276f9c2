package connector

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	toolscache "k8s.io/client-go/tools/cache"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/lambdamesh/lambdamesh/connector/authority"
	"github.com/lambdamesh/lambdamesh/connector/catalog"
	"github.com/lambdamesh/lambdamesh/connector/public"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/component"
	"github.com/lambdamesh/lambdamesh/pkg/kube"
	"github.com/lambdamesh/lambdamesh/pkg/telemetry"
)

// candidateAgain is how soon a connector that lost the leadership stands again.
const candidateAgain = time.Second

// objects are what the connector knows of the API server. They outlive it: while
// it is away, and when the leadership is lost, all go on serving what was read.
type objects struct {
	cache  cache.Cache
	client client.Client // reads from the cache
	live   client.Reader // past it
	scheme *runtime.Scheme
	synced []func() bool // what was told of the objects
}

func newObjects(c Config) (*objects, error) {
	scheme, err := kube.Scheme()
	if err != nil {
		return nil, err
	}
	o := &objects{scheme: scheme}
	o.cache, err = cache.New(c.REST, cache.Options{
		Scheme:           scheme,
		DefaultTransform: catalog.Slim(),
		ByObject: map[client.Object]cache.ByObject{
			// Credentials are not the tenants', so neither are their Secrets.
			&corev1.Secret{}:      {Namespaces: map[string]cache.Config{v1alpha1.SystemNamespace: {}}},
			&v1alpha1.EventType{}: {Namespaces: map[string]cache.Config{v1alpha1.SystemNamespace: {}}},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("connector: watching the API server: %w", err)
	}
	o.client, err = client.New(c.REST, client.Options{Scheme: scheme, Cache: &client.CacheOptions{Reader: o.cache}})
	if err != nil {
		return nil, fmt.Errorf("connector: connecting to the API server: %w", err)
	}
	if o.live, err = client.New(c.REST, client.Options{Scheme: scheme}); err != nil {
		return nil, fmt.Errorf("connector: connecting to the API server: %w", err)
	}
	if err := catalog.Index(context.Background(), o.cache); err != nil {
		return nil, fmt.Errorf("connector: %w", err)
	}
	// These are read from the start, also where another connector is the leader
	// and no controller watches them here.
	lambdas := &metav1.PartialObjectMetadata{}
	lambdas.SetGroupVersionKind(v1alpha1.GroupVersion().WithKind("Lambda"))
	for _, kind := range []client.Object{
		&v1alpha1.Application{}, &v1alpha1.ApplicationService{}, &v1alpha1.EventType{},
		&v1alpha1.ApplicationBinding{}, &v1alpha1.TokenRequest{}, &corev1.Secret{}, lambdas,
	} {
		if _, err := o.informer(kind); err != nil {
			return nil, err
		}
	}
	return o, nil
}

func (o *objects) informer(kind client.Object) (cache.Informer, error) {
	informer, err := o.cache.GetInformer(context.Background(), kind, cache.BlockUntilSynced(false))
	if err != nil {
		return nil, fmt.Errorf("connector: watching %T: %w", kind, err)
	}
	return informer, nil
}

// tell calls changed with each object of a kind, and gone with each that is
// deleted.
func tell[T client.Object](o *objects, kind T, changed, gone func(T)) error {
	informer, err := o.informer(kind)
	if err != nil {
		return err
	}
	handle := func(object any, do func(T)) {
		if unknown, ok := object.(toolscache.DeletedFinalStateUnknown); ok {
			object = unknown.Obj
		}
		if object, ok := object.(T); ok {
			do(object)
		}
	}
	registration, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { handle(object, changed) },
		UpdateFunc: func(_, object any) { handle(object, changed) },
		DeleteFunc: func(object any) { handle(object, gone) },
	})
	if err != nil {
		return fmt.Errorf("connector: watching %T: %w", kind, err)
	}
	o.synced = append(o.synced, registration.HasSynced)
	return nil
}

// inform has clients know which certificates are good, and sign by which
// authority.
func (o *objects) inform(c Config, clients *public.Clients, sign func(*authority.Authority)) error {
	set := func(a *authority.Authority) {
		clients.SetAuthority(a)
		sign(a)
	}
	ours := func(secret *corev1.Secret) bool {
		return secret.Namespace == v1alpha1.SystemNamespace && secret.Name == v1alpha1.SecretConnectorCA
	}
	err := tell(o, &corev1.Secret{}, func(secret *corev1.Secret) {
		if !ours(secret) {
			return
		}
		a, err := authority.Parse(secret.Data)
		if err != nil {
			// Who is paired stays paired: the one before it is still in memory.
			c.Log.Error("the Secret with the authority of applications cannot be used", "secret", secret.Name, "error", err)
			return
		}
		set(a)
	}, func(secret *corev1.Secret) {
		if ours(secret) {
			set(nil)
		}
	})
	if err != nil {
		return err
	}
	return tell(o, &v1alpha1.Application{}, clients.SetApplication,
		func(app *v1alpha1.Application) { clients.RemoveApplication(app.Name) })
}

// component keeps the objects current. It is ready when they are all here.
func (o *objects) component() component.Component {
	return component.New("connector objects", func(ctx context.Context, ready func()) error {
		go func() {
			if !o.cache.WaitForCacheSync(ctx) {
				return
			}
			if toolscache.WaitForCacheSync(ctx.Done(), waits(o.synced)...) {
				ready()
			}
		}()
		return o.cache.Start(ctx)
	})
}

func waits(synced []func() bool) (all []toolscache.InformerSynced) {
	for _, s := range synced {
		all = append(all, s)
	}
	return all
}

// controllers write statuses, in one of several connectors. Who loses the
// leadership, as all do while the API server is away, goes on serving and stands
// for it again.
func (o *objects) controllers(c Config, setup func(ctrl.Manager) error) component.Component {
	return component.New("connector controllers", func(ctx context.Context, ready func()) error {
		for {
			err := o.lead(ctx, c, setup, ready)
			if ctx.Err() != nil || !c.LeaderElection {
				return err
			}
			c.Log.Warn("the controllers stopped and stand for election again", "error", err)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(candidateAgain):
			}
		}
	})
}

// lead runs the controllers until ctx ends or the leadership is lost.
func (o *objects) lead(ctx context.Context, c Config, setup func(ctrl.Manager) error, ready func()) error {
	borrowed := &borrowed{Cache: o.cache}
	defer borrowed.giveBack()
	stopWithin := 10 * time.Second // the group's limit is higher
	skip := true                   // two connectors may live in one process, each with these names
	mgr, err := ctrl.NewManager(c.REST, ctrl.Options{
		Scheme:                        o.scheme,
		Logger:                        telemetry.Logr(c.Log),
		Metrics:                       metricsserver.Options{BindAddress: "0"},
		Controller:                    config.Controller{SkipNameValidation: &skip},
		GracefulShutdownTimeout:       &stopWithin,
		LeaderElection:                c.LeaderElection,
		LeaderElectionID:              "connector." + v1alpha1.Group,
		LeaderElectionNamespace:       v1alpha1.SystemNamespace,
		LeaderElectionReleaseOnCancel: true, // writers have stopped by then
		NewCache:                      borrowed.lend,
	})
	if err != nil {
		return fmt.Errorf("connector: making the controllers: %w", err)
	}
	if err := setup(mgr); err != nil {
		return fmt.Errorf("connector: making the controllers: %w", err)
	}
	ready()
	return mgr.Start(ctx)
}
