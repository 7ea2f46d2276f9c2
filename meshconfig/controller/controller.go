package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/meshconfig/jwks"
	"github.com/lambdamesh/lambdamesh/meshconfig/translate"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// fieldManager of all that the controller applies.
const fieldManager = v1alpha1.ManagedBy + "-meshconfig"

const (
	// minInterval between the beginnings of two rebuilds.
	minInterval = 20 * time.Millisecond
	// settleTime is how long statuses wait for the data plane after a rebuild,
	// so that a rule that is acknowledged in time is written once, not twice.
	settleTime = 25 * time.Millisecond
	// coalesceTime gathers changes that outputs report.
	coalesceTime = 2 * time.Millisecond
	// retryInterval after objects could not be read.
	retryInterval = time.Second
)

// Config of a [Controller].
type Config struct {
	// Cache is where objects are watched; whoever made it starts it. Prepare its
	// options with [ConfigureCache]. Required.
	Cache cache.Cache
	// Client writes statuses. Required.
	Client client.Client
	// Reader reads Secrets, past the cache. Required.
	Reader client.Reader
	// Outputs that the mesh is handed to. Required.
	Outputs []Output
	// JWKS says how key sets are fetched; its Policy is required, its OnChange
	// and Log are set here.
	JWKS jwks.Config
	// MeshConfig is the ConfigMap of Istio's MeshConfig, without whose path
	// normalization no rule is accepted. Empty: the mesh is not Istio's.
	MeshConfig types.NamespacedName
	// Elected is closed when this process may write to the API server: a
	// manager's Elected(). Nil: it may at once.
	Elected <-chan struct{}
	// Settings of the translation.
	Settings translate.Settings
	// Log; default slog.Default().
	Log *slog.Logger
	// Registry takes the metrics. Optional.
	Registry prometheus.Registerer
}

// Validate tells what is missing.
func (c *Config) Validate() error {
	var errs []error
	if c.Cache == nil {
		errs = append(errs, errors.New("Cache is required"))
	}
	if c.Client == nil {
		errs = append(errs, errors.New("Client is required"))
	}
	if c.Reader == nil {
		errs = append(errs, errors.New("Reader is required"))
	}
	if len(c.Outputs) == 0 {
		errs = append(errs, errors.New("Outputs are required"))
	}
	errs = append(errs, c.Settings.Limits.Validate())
	return errors.Join(errs...)
}

// Controller is a component; it is ready when the outputs have the first mesh.
type Controller struct {
	config  Config
	log     *slog.Logger
	metrics *metrics
	ready   chan struct{}

	// dirty and progress hold at most one token each.
	dirty    chan struct{}
	progress chan struct{}

	keySets    *jwks.Fetcher
	secrets    *secrets
	meshConfig *meshConfig
	writer     *statusWriter
	objects    *objectWriter

	// members: pods have sidecars that an output of ours programs.
	members bool

	// statuses of the last rebuild; used by the loop only.
	statuses []translate.APIRuleStatus
}

type metrics struct {
	rebuilds prometheus.Histogram
	rules    prometheus.Gauge
	writes   *prometheus.CounterVec
}

func newMetrics(registry prometheus.Registerer) *metrics {
	m := &metrics{
		rebuilds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "lambdamesh_mesh_rebuild_seconds", Help: "Time from reading all objects to handing the mesh to the outputs.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 12),
		}),
		rules:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "lambdamesh_apirules", Help: "APIRules in the mesh."}),
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "lambdamesh_apirule_status_writes_total", Help: "Statuses written, by result (ok, error)."}, []string{"result"}),
	}
	if registry != nil {
		registry.MustRegister(m.rebuilds, m.rules, m.writes)
	}
	return m
}

// New makes a Controller; it works from Run on.
func New(config Config) (*Controller, error) {
	if err := config.Validate(); err != nil {
		return nil, fmt.Errorf("configure the mesh controller: %w", err)
	}
	if config.Elected == nil {
		elected := make(chan struct{})
		close(elected)
		config.Elected = elected
	}
	if config.Log == nil {
		config.Log = slog.Default()
	}
	c := &Controller{
		config:   config,
		log:      config.Log.With("component", "meshconfig"),
		metrics:  newMetrics(config.Registry),
		ready:    make(chan struct{}),
		dirty:    make(chan struct{}, 1),
		progress: make(chan struct{}, 1),
	}
	for _, output := range config.Outputs {
		switch output.(type) {
		case *IstioOutput: // Istio's gateways look into no token
			c.config.Settings.TokensAtSidecars = true
		case *EnvoyOutput:
			c.members = true
		}
	}
	config.JWKS.OnChange = c.markDirty
	config.JWKS.Log = c.log
	var err error
	if c.keySets, err = jwks.New(config.JWKS); err != nil {
		return nil, fmt.Errorf("configure the mesh controller: %w", err)
	}
	c.secrets = newSecrets(config.Reader)
	c.meshConfig = newMeshConfig(config.Reader, config.MeshConfig)
	c.writer = newStatusWriter(config.Cache, config.Client, c.metrics, c.log)
	c.objects = newObjectWriter(config.Cache, config.Client, c.log)
	return c, nil
}

// Name implements component.Component.
func (c *Controller) Name() string { return "meshconfig" }

// Ready is closed when every output has been handed a mesh of synced caches.
func (c *Controller) Ready() <-chan struct{} { return c.ready }

// Run works until ctx ends; the cache must be running or be started beside it.
func (c *Controller) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return c.keySets.Run(ctx) })
	group.Go(func() error { return c.meshConfig.run(ctx, c.markDirty) })
	group.Go(func() error { return c.writer.run(ctx, c.config.Elected) })
	group.Go(func() error { return c.objects.run(ctx, c.config.Elected) })
	for _, output := range c.config.Outputs {
		group.Go(func() error {
			if err := output.Run(ctx, c.markProgress); err != nil {
				return fmt.Errorf("output %s: %w", output.Name(), err)
			}
			return nil
		})
	}
	group.Go(func() error {
		if err := c.watch(ctx); err != nil {
			return err
		}
		c.first(ctx)
		return c.loop(ctx)
	})
	err := group.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func (c *Controller) markDirty()    { poke(c.dirty) }
func (c *Controller) markProgress() { poke(c.progress) }

func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default: // one token is enough
	}
}

// first waits for the key sets once: data planes may hold good ones, which an
// empty first answer would take from them.
func (c *Controller) first(ctx context.Context) {
	rules, err := c.apiRules(ctx)
	if err != nil {
		return // ctx has ended; the loop will see it
	}
	c.keySets.Keep(translate.JWKSURIs(c.config.Settings, rules))
	timeout := c.config.JWKS.Timeout
	if timeout <= 0 {
		timeout = 5 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout+time.Second)
	defer cancel()
	if err := c.keySets.Settled(ctx); err != nil {
		c.log.Warn("some key sets have not answered; their tokens are refused until they do")
	}
}

func (c *Controller) loop(ctx context.Context) error {
	isReady := false
	var last time.Time
	interval := minInterval
	rebuild := time.NewTimer(0)
	rebuildDue := true
	status := newAlarm()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.dirty:
			if !rebuildDue {
				rebuildDue = true
				rebuild.Reset(time.Until(last.Add(interval)))
			}
		case <-rebuild.C:
			rebuildDue = false
			last = time.Now()
			if err := c.rebuild(ctx); err != nil {
				if ctx.Err() == nil {
					c.log.Error("cannot read the mesh's objects; what is served stays", "error", err)
					time.AfterFunc(retryInterval, c.markDirty)
				}
				continue
			}
			// Never more than half of the time, however large the mesh.
			took := time.Since(last)
			c.metrics.rebuilds.Observe(took.Seconds())
			interval = max(minInterval, 2*took)
			status.within(settleTime)
			if !isReady {
				isReady = true
				close(c.ready)
			}
		case <-c.progress:
			status.within(coalesceTime)
		case <-status.C:
			status.rang()
			c.reportStatuses()
		}
	}
}

// rebuild computes the whole mesh and hands it to the outputs.
func (c *Controller) rebuild(ctx context.Context) error {
	snapshot, err := c.snapshot(ctx)
	if err != nil {
		return err
	}
	mesh, problems := translate.Translate(snapshot)
	c.statuses = translate.Statuses(snapshot, mesh, problems)
	c.metrics.rules.Set(float64(len(c.statuses)))
	c.objects.want(translate.ObjectStatuses(snapshot, problems))
	for _, output := range c.config.Outputs {
		output.Update(ctx, Update{Mesh: &mesh, Secrets: snapshot.Secrets})
	}
	return nil
}

func (c *Controller) reportStatuses() {
	views := make([]func(*translate.APIRuleStatus) Programmed, len(c.config.Outputs))
	for i, output := range c.config.Outputs {
		views[i] = output.Programmed()
	}
	current := make(map[types.NamespacedName]bool, len(c.statuses))
	for i := range c.statuses {
		rule := &c.statuses[i]
		key := types.NamespacedName{Namespace: rule.Namespace, Name: rule.Name}
		current[key] = true
		c.writer.want(key, wanted{status: rule, programmed: programmed(rule, c.config.Outputs, views)})
	}
	c.writer.forgetAllBut(current)
}

// alarm is a timer that only ever comes earlier.
type alarm struct {
	*time.Timer
	at time.Time
}

func newAlarm() *alarm {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return &alarm{Timer: t}
}

func (a *alarm) within(d time.Duration) {
	at := time.Now().Add(d)
	if a.at.IsZero() || at.Before(a.at) {
		a.at = at
		a.Reset(d)
	}
}

func (a *alarm) rang() { a.at = time.Time{} }
