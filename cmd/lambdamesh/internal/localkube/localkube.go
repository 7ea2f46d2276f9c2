package localkube

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	apiextensions "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/lambdamesh/lambdamesh/pkg/component"
	"github.com/lambdamesh/lambdamesh/pkg/crds"
)

const fieldManager = "lambdamesh-dev"

// ControlPlane is the component that runs etcd, kube-apiserver and
// kube-controller-manager.
type ControlPlane struct {
	component.Component
	config Config
	rest   atomic.Pointer[rest.Config]
}

// New makes a control plane. It is ready when the API server answers, namespaces
// and CustomResourceDefinitions can be listed, the given ones are served and the
// controllers run.
func New(config Config) (*ControlPlane, error) {
	if err := config.complete(); err != nil {
		return nil, err
	}
	c := &ControlPlane{config: config}
	c.Component = component.New("kubernetes", c.run)
	return c, nil
}

// Kubeconfig is the path of the administrator's kubeconfig. The file is there
// once the component is ready.
func (c *ControlPlane) Kubeconfig() string { return c.config.kubeconfig() }

// RESTConfig returns the administrator's client configuration, without limits on
// the client's side, or nil before the component is ready.
func (c *ControlPlane) RESTConfig() *rest.Config {
	if config := c.rest.Load(); config != nil {
		return rest.CopyConfig(config)
	}
	return nil
}

// StopTimeout is how long the component may take to stop: its children's grace
// periods, one after the other.
func (c *ControlPlane) StopTimeout() time.Duration {
	return etcdGrace + apiServerGrace + controllersGrace + 10*time.Second
}

func (c *ControlPlane) run(ctx context.Context, ready func()) error {
	config := &c.config
	if err := config.checkBinaries(); err != nil {
		return err
	}
	unlock, err := config.lock()
	if err != nil {
		return err
	}
	defer unlock()
	r, err := config.prepare(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil // asked to stop while preparing
		}
		return err
	}
	defer r.close()

	group := component.NewGroup("kubernetes", component.GroupConfig{
		OnReady: func(name string, elapsed time.Duration) {
			config.Log.InfoContext(ctx, "ready", "component", name, "elapsed", elapsed.Round(time.Millisecond))
		},
	}, r.etcd(), r.apiServer(), r.definitions(), r.controllers())

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	late := time.AfterFunc(config.StartTimeout, func() {
		cancel(fmt.Errorf("not ready within %s: %s", config.StartTimeout, r.waitingFor()))
	})
	go func() {
		select {
		case <-group.Ready():
		case <-ctx.Done():
			return
		}
		if !late.Stop() {
			return
		}
		// From now on the data is worth keeping.
		if err := writeFile(config.versionFile(), []byte(r.version+"\n")); err != nil {
			cancel(err)
			return
		}
		c.rest.Store(r.admin())
		ready()
	}()
	err = group.Run(ctx)
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return errors.Join(cause, err)
	}
	return err
}

// running is one run of the control plane.
type running struct {
	*Config
	version    string
	pki        *pki
	logs       logs
	port       atomic.Int32 // of the API server; fixed once it was ready
	fixed      atomic.Bool
	waiting    atomic.Pointer[string]
	definition func() ([]*unstructured.Unstructured, error)
}

// prepare brings the data directory into the state that the children start from.
func (c *Config) prepare(ctx context.Context) (*running, error) {
	// Reading the definitions takes as long as etcd's start.
	type loaded struct {
		definitions []*unstructured.Unstructured
		err         error
	}
	loading := make(chan loaded, 1)
	go func() {
		definitions, err := crds.Load(c.CRDs...)
		loading <- loaded{definitions, err}
	}()

	for _, dir := range []string{c.stateDir(), c.runDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("data directory cannot be written: %w", err)
		}
	}
	// Whoever may enter it may connect to etcd, which asks for nothing.
	if err := os.Chmod(c.stateDir(), 0o700); err != nil { //nolint:gosec // a directory
		return nil, fmt.Errorf("data directory cannot be protected: %w", err)
	}
	version, err := c.checkData(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.awaitLeftovers(ctx); err != nil {
		return nil, err
	}
	p, err := ensurePKI(c.pkiDir(), c.host(), time.Now())
	if err != nil {
		return nil, err
	}
	r := &running{
		Config: c, version: version, pki: p,
		definition: func() ([]*unstructured.Unstructured, error) { l := <-loading; return l.definitions, l.err },
	}
	r.wait("its preparations")
	port, err := r.choosePort(ctx)
	if err != nil {
		return nil, err
	}
	r.port.Store(int32(port)) //nolint:gosec // a port
	if err := writeFile(r.authenticationFile(), []byte(authentication)); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *running) close() { r.logs.close() }

// wait remembers what the start waits for, for the error if it takes too long.
func (r *running) wait(what string) { r.waiting.Store(&what) }

func (r *running) waitingFor() string { return "waiting for " + *r.waiting.Load() }

// until calls check until it returns nil or ctx ends, and says every few seconds
// why it still waits.
func (r *running) until(ctx context.Context, what string, check func(context.Context) error) error {
	r.wait(what)
	const chatter = 5 * time.Second
	next := time.Now().Add(chatter)
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		r.wait(fmt.Sprintf("%s: %v", what, err))
		if now := time.Now(); now.After(next) {
			next = now.Add(chatter)
			r.Log.InfoContext(ctx, "still waiting", "for", what, "because", err)
		}
		select {
		case <-time.After(pollInterval):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// definitions is the component that installs the CustomResourceDefinitions. It
// comes before the controllers, whose garbage collector would only find new
// kinds after half a minute.
func (r *running) definitions() component.Component {
	return component.New("custom resource definitions", func(ctx context.Context, ready func()) error {
		client, err := kubernetes.NewForConfig(r.admin())
		if err != nil {
			return err
		}
		extensions, err := apiextensions.NewForConfig(r.admin())
		if err != nil {
			return err
		}
		one := metav1.ListOptions{Limit: 1}
		err = r.until(ctx, "the lists of namespaces and CustomResourceDefinitions", func(ctx context.Context) error {
			if _, err := client.CoreV1().Namespaces().List(ctx, one); err != nil {
				return err
			}
			_, err := extensions.ApiextensionsV1().CustomResourceDefinitions().List(ctx, one)
			return err
		})
		if err != nil {
			return err
		}
		definitions, err := r.definition()
		if err != nil {
			return err
		}
		r.wait("the installation of " + strconv.Itoa(len(definitions)) + " CustomResourceDefinitions")
		if err := crds.Install(ctx, r.admin(), fieldManager, definitions); err != nil {
			return err
		}
		ready()
		<-ctx.Done()
		return nil
	})
}
