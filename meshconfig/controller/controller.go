package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/meshconfig/jwks"
	"github.com/lambdamesh/lambdamesh/meshconfig/output"
	"github.com/lambdamesh/lambdamesh/meshconfig/status"
	"github.com/lambdamesh/lambdamesh/meshconfig/translate"
	"github.com/lambdamesh/lambdamesh/meshconfig/watch"
)

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
	// options with [watch.ConfigureCache]. Required.
	Cache cache.Cache
	// Client writes statuses. Required.
	Client client.Client
	// Reader reads Secrets, past the cache. Required.
	Reader client.Reader
	// Outputs that the mesh is handed to. Required.
	Outputs []output.Output
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

	source  *watch.Source
	writer  *status.RuleWriter
	objects *status.ObjectWriter

	// statuses of the last rebuild; used by the loop only.
	statuses []translate.APIRuleStatus
}

type metrics struct {
	rebuilds prometheus.Histogram
	rules    prometheus.Gauge
}

func newMetrics(registry prometheus.Registerer) *metrics {
	m := &metrics{
		rebuilds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "lambdamesh_mesh_rebuild_seconds", Help: "Time from reading all objects to handing the mesh to the outputs.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 12),
		}),
		rules: prometheus.NewGauge(prometheus.GaugeOpts{Name: "lambdamesh_apirules", Help: "APIRules in the mesh."}),
	}
	if registry != nil {
		registry.MustRegister(m.rebuilds, m.rules)
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
	needs := output.Needs{}
	for i, one := range config.Outputs {
		n := one.Needs()
		if i == 0 {
			needs.Lacks = slices.Clone(n.Lacks)
		}
		// What another output carries takes effect there.
		needs.Lacks = slices.DeleteFunc(needs.Lacks, func(f ir.Feature) bool { return !slices.Contains(n.Lacks, f) })
		needs.TokensAtSidecars = needs.TokensAtSidecars || n.TokensAtSidecars
		needs.Members = needs.Members || n.Members
	}
	c.config.Settings.TokensAtSidecars = c.config.Settings.TokensAtSidecars || needs.TokensAtSidecars
	c.config.Settings.Lacks = needs.Lacks
	c.writer = status.NewRuleWriter(config.Cache, config.Client, config.Registry, c.log)
	c.objects = status.NewObjectWriter(config.Cache, config.Client, c.log)
	var err error
	c.source, err = watch.New(watch.Config{
		Cache: config.Cache, Reader: config.Reader, JWKS: config.JWKS, MeshConfig: config.MeshConfig,
		Settings: c.config.Settings, Members: needs.Members, Log: c.log,
		Changed: c.markDirty, RuleTouched: c.writer.Check, ObjectTouched: c.objects.Check,
	})
	if err != nil {
		return nil, fmt.Errorf("configure the mesh controller: %w", err)
	}
	return c, nil
}

// Name implements component.Component.
func (c *Controller) Name() string { return "meshconfig" }

// Ready is closed when every output has been handed a mesh of synced caches.
func (c *Controller) Ready() <-chan struct{} { return c.ready }

// Run works until ctx ends; the cache must be running or be started beside it.
func (c *Controller) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return c.source.Run(ctx) })
	group.Go(func() error { return c.writer.Run(ctx, c.config.Elected) })
	group.Go(func() error { return c.objects.Run(ctx, c.config.Elected) })
	for _, one := range c.config.Outputs {
		group.Go(func() error {
			if err := one.Run(ctx, c.markProgress); err != nil {
				return fmt.Errorf("output %s: %w", one.Name(), err)
			}
			return nil
		})
	}
	group.Go(func() error {
		if err := c.source.Watch(ctx); err != nil {
			return err
		}
		c.source.First(ctx)
		return c.loop(ctx)
	})
	err := group.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func (c *Controller) markDirty()    { output.Poke(c.dirty) }
func (c *Controller) markProgress() { output.Poke(c.progress) }

func (c *Controller) loop(ctx context.Context) error {
	isReady := false
	var last time.Time
	interval := minInterval
	rebuild := time.NewTimer(0)
	rebuildDue := true
	report := newAlarm()
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
			report.within(settleTime)
			if !isReady {
				isReady = true
				close(c.ready)
			}
		case <-c.progress:
			report.within(coalesceTime)
		case <-report.C:
			report.rang()
			c.reportStatuses()
		}
	}
}

// rebuild computes the whole mesh and hands it to the outputs.
func (c *Controller) rebuild(ctx context.Context) error {
	snapshot, err := c.source.Snapshot(ctx)
	if err != nil {
		return err
	}
	mesh, problems := translate.Translate(snapshot)
	// What data planes get comes before what people read.
	for _, one := range c.config.Outputs {
		one.Update(ctx, output.Update{Mesh: &mesh, Secrets: snapshot.Secrets})
	}
	c.source.LeadsTo(mesh.Destinations)
	c.statuses = translate.Statuses(snapshot, mesh, problems)
	c.metrics.rules.Set(float64(len(c.statuses)))
	c.objects.Want(translate.ObjectStatuses(snapshot, problems))
	return nil
}

func (c *Controller) reportStatuses() {
	views := make([]func(*translate.APIRuleStatus) output.Programmed, len(c.config.Outputs))
	for i, one := range c.config.Outputs {
		views[i] = one.Programmed()
	}
	current := make(map[types.NamespacedName]bool, len(c.statuses))
	for i := range c.statuses {
		rule := &c.statuses[i]
		key := types.NamespacedName{Namespace: rule.Namespace, Name: rule.Name}
		current[key] = true
		c.writer.Want(key, status.Wish{Status: rule, Programmed: output.Joined(rule, c.config.Outputs, views)})
	}
	c.writer.ForgetAllBut(current)
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
