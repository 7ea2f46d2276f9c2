package controller

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// Reasons of TargetReachable.
const (
	ReasonAnswers  = "Answers"
	ReasonNoAnswer = "NoAnswer"
)

const (
	// probesAtOnce and probeTimeout bound what targets that are down can hold up.
	probesAtOnce = 8
	probeTimeout = 5 * time.Second
	// probeTick is how often it is seen whose turn it is.
	probeTick = time.Second
	// defaultProbeInterval is the kind's.
	defaultProbeInterval = time.Minute
)

// ProbeFunc asks a target whether it is there. The error is for the status.
type ProbeFunc func(ctx context.Context, api *v1alpha1.ServiceAPI) error

// probeKey names what is probed: an ApplicationService, or a service that is
// written in an Application.
type probeKey struct{ object, inline string }

// probes asks the targets that want to be asked, and has those objects looked at
// again of which the answer changed.
type probes struct {
	ask    ProbeFunc
	places *semaphore.Weighted
	// applications and services whose status has to change.
	applications, services chan event.GenericEvent

	mu sync.Mutex
	of map[probeKey]*probed
}

type probed struct {
	api        *v1alpha1.ServiceAPI
	generation int64
	next       time.Time
	running    bool
	result     probeResult
}

// probeResult of a target; at is zero before the first probe.
type probeResult struct {
	wanted  bool
	at      time.Time
	failure string
}

// with is the result of several services: the first that does not answer, else
// one that has not been asked.
func (r probeResult) with(service string, other probeResult) probeResult {
	switch {
	case !other.wanted:
		return r
	case other.failure != "":
		other.failure = "service " + service + ": " + other.failure
		if r.failure != "" {
			other.failure = r.failure + "; " + other.failure
		}
		return other
	case !r.wanted || r.failure == "" && other.at.IsZero():
		return other
	default:
		return r
	}
}

func newProbes(ask ProbeFunc) *probes {
	return &probes{
		ask: ask, places: semaphore.NewWeighted(probesAtOnce), of: map[probeKey]*probed{},
		applications: make(chan event.GenericEvent, 64), services: make(chan event.GenericEvent, 64),
	}
}

// set has a target probed, or no longer where api wants none. A new generation is
// probed at once.
func (p *probes) set(key probeKey, api *v1alpha1.ServiceAPI, generation int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if api == nil || api.Probe == nil {
		delete(p.of, key)
		return
	}
	if known := p.of[key]; known != nil && known.generation == generation {
		return
	}
	p.of[key] = &probed{api: api, generation: generation, result: probeResult{wanted: true}}
}

// keep forgets the inline services of an application that are not among names.
func (p *probes) keep(application string, names map[string]bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key := range p.of {
		if key.object == application && key.inline != "" && !names[key.inline] {
			delete(p.of, key)
		}
	}
}

func (p *probes) result(key probeKey) probeResult {
	p.mu.Lock()
	defer p.mu.Unlock()
	if known := p.of[key]; known != nil {
		return known.result
	}
	return probeResult{}
}

// Start implements manager.Runnable: one leader probes.
func (p *probes) Start(ctx context.Context) error {
	ticker := time.NewTicker(probeTick)
	defer ticker.Stop()
	var running sync.WaitGroup
	defer running.Wait()
	for {
		for key, of := range p.due(time.Now()) {
			if p.places.Acquire(ctx, 1) != nil {
				return nil
			}
			running.Go(func() {
				defer p.places.Release(1)
				p.probe(ctx, key, of)
			})
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

func (p *probes) due(now time.Time) map[probeKey]*probed {
	p.mu.Lock()
	defer p.mu.Unlock()
	due := map[probeKey]*probed{}
	for key, of := range p.of {
		if of.running || now.Before(of.next) {
			continue
		}
		interval := defaultProbeInterval
		if of.api.Probe.Interval != nil {
			interval = of.api.Probe.Interval.Duration
		}
		of.running, of.next = true, now.Add(interval)
		due[key] = of
	}
	return due
}

func (p *probes) probe(ctx context.Context, key probeKey, of *probed) {
	within, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	err := p.ask(within, of.api)
	if ctx.Err() != nil {
		return
	}
	result := probeResult{wanted: true, at: time.Now()}
	if err != nil {
		result.failure = err.Error()
	}
	p.mu.Lock()
	news := p.of[key] == of && (of.result.at.IsZero() || of.result.failure != result.failure)
	of.result, of.running = result, false
	p.mu.Unlock()
	if !news {
		return
	}
	var obj client.Object = &v1alpha1.ApplicationService{}
	changed := p.services
	if key.inline != "" {
		obj, changed = &v1alpha1.Application{}, p.applications
	}
	obj.SetName(key.object)
	select {
	case changed <- event.GenericEvent{Object: obj}:
	case <-ctx.Done():
	}
}
