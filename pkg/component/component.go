package component

import (
	"context"
	"sync"
)

// Component is a long-running part of a process.
type Component interface {
	// Name is what people see in logs and errors, such as "gateway".
	Name() string

	// Run works until ctx ends, then stops and returns nil. Any return before
	// ctx ended is a failure, with or without an error. Run is called once.
	Run(ctx context.Context) error

	// Ready is closed when the component does what others rely on. It stays
	// open when the component fails before that.
	Ready() <-chan struct{}
}

// New makes a Component of a function, which calls ready when others may rely
// on it. Calling ready again does nothing.
func New(name string, run func(ctx context.Context, ready func()) error) Component {
	return &function{name: name, run: run, ready: make(chan struct{})}
}

type function struct {
	name  string
	run   func(context.Context, func()) error
	once  sync.Once
	ready chan struct{}
}

func (f *function) Name() string { return f.name }

func (f *function) Run(ctx context.Context) error {
	return f.run(ctx, func() { f.once.Do(func() { close(f.ready) }) })
}

func (f *function) Ready() <-chan struct{} { return f.ready }
