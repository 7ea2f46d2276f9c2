package component

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"
)

// DefaultStopTimeout is how long a component may take to stop when neither the
// group nor the component says otherwise. It is longer than the drains of our
// servers and shorter than the 30 seconds Kubernetes gives a pod.
const DefaultStopTimeout = 20 * time.Second

// GroupConfig says how a Group treats its components.
type GroupConfig struct {
	// StopTimeout is how long each component may take to return once its
	// context was canceled; 0 means DefaultStopTimeout. A component with a
	// method StopTimeout() time.Duration sets its own.
	StopTimeout time.Duration

	// OnReady, if set, is called when a component is ready, with the time since
	// it was started.
	OnReady func(name string, elapsed time.Duration)

	// OnStopped, if set, is called when a component has returned, with what it
	// returned and, for one that was asked to stop, the time that took.
	OnStopped func(name string, elapsed time.Duration, err error)
}

// Group runs components as one.
type Group struct {
	name       string
	config     GroupConfig
	components []Component
	ready      chan struct{}
	started    chan struct{} // holds one token: Run takes it
}

// NewGroup makes a group of components in the order they start in.
func NewGroup(name string, config GroupConfig, components ...Component) *Group {
	if config.StopTimeout <= 0 {
		config.StopTimeout = DefaultStopTimeout
	}
	g := &Group{
		name:       name,
		config:     config,
		components: components,
		ready:      make(chan struct{}),
		started:    make(chan struct{}, 1),
	}
	g.started <- struct{}{}
	return g
}

// Name returns the name of the group.
func (g *Group) Name() string { return g.name }

// Ready is closed when every component is ready.
func (g *Group) Ready() <-chan struct{} { return g.ready }

// StopTimeout is the time the group needs at most to stop: its components stop
// one after the other.
func (g *Group) StopTimeout() time.Duration {
	// One second is for the group itself, so that its own timeouts fire first
	// and name the component at fault.
	total := time.Second
	for _, c := range g.components {
		total += g.stopTimeout(c)
	}
	return total
}

func (g *Group) stopTimeout(c Component) time.Duration {
	if own, ok := c.(interface{ StopTimeout() time.Duration }); ok {
		return own.StopTimeout()
	}
	return g.config.StopTimeout
}

// member is a component that was started.
type member struct {
	Component
	cancel context.CancelFunc
	done   chan struct{} // closed when Run has returned
	err    error         // what Run returned; read it after done
}

// Run starts the components in order, each when the one before it is ready. When
// ctx ends or one of them returns, those that run are canceled and waited for in
// reverse order, and Run returns. The error names the component that failed
// first; those that failed while stopping are joined after it. A stop that ctx
// asked for and that went well returns nil.
func (g *Group) Run(ctx context.Context) error {
	select {
	case <-g.started:
	default:
		return fmt.Errorf("group %s: already started", g.name)
	}

	// Components do not see the end of ctx directly: all of them would stop at
	// once. Each has its own cancel, called when its turn comes.
	base := context.WithoutCancel(ctx)
	exited := make(chan *member, len(g.components))
	var running []*member

	var failed *member
	for _, c := range g.components {
		if failed != nil || ctx.Err() != nil {
			break
		}
		begin := time.Now()
		m := g.start(base, c, exited)
		running = append(running, m)
		select {
		case <-c.Ready():
			if g.config.OnReady != nil {
				g.config.OnReady(c.Name(), time.Since(begin))
			}
		case failed = <-exited:
		case <-ctx.Done():
		}
	}

	if failed == nil && ctx.Err() == nil {
		close(g.ready)
		select {
		case failed = <-exited:
		case <-ctx.Done():
		}
	}

	var errs []error
	if failed != nil {
		errs = append(errs, g.unexpected(failed))
	}
	for i := len(running) - 1; i >= 0; i-- {
		if m := running[i]; m != failed {
			errs = append(errs, g.stop(m))
		}
	}
	return errors.Join(errs...)
}

func (g *Group) start(base context.Context, c Component, exited chan<- *member) *member {
	ctx, cancel := context.WithCancel(base)
	m := &member{Component: c, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer func() {
			if v := recover(); v != nil {
				m.err = fmt.Errorf("panic: %v\n%s", v, debug.Stack())
			}
			close(m.done)
			exited <- m
		}()
		m.err = c.Run(ctx)
	}()
	return m
}

// unexpected is the failure of a component that returned without being asked.
func (g *Group) unexpected(m *member) error {
	m.cancel()
	err := m.err
	if err == nil {
		err = errors.New("ended without being asked to")
	}
	g.stopped(m, 0)
	return fmt.Errorf("%s: %w", m.Name(), err)
}

// stop cancels a component and waits for it.
func (g *Group) stop(m *member) error {
	begin := time.Now()
	m.cancel()
	timeout := g.stopTimeout(m.Component)
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-m.done:
	case <-timer.C:
		err := fmt.Errorf("%s: did not stop within %s", m.Name(), timeout)
		if g.config.OnStopped != nil {
			g.config.OnStopped(m.Name(), timeout, err)
		}
		return err
	}
	g.stopped(m, time.Since(begin))
	if m.err != nil && !errors.Is(m.err, context.Canceled) {
		return fmt.Errorf("%s: %w", m.Name(), m.err)
	}
	return nil
}

func (g *Group) stopped(m *member, elapsed time.Duration) {
	if g.config.OnStopped != nil {
		g.config.OnStopped(m.Name(), elapsed, m.err)
	}
}
