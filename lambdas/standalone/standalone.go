package standalone

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lambdamesh/lambdamesh/lambdas/activator"
	"github.com/lambdamesh/lambdamesh/lambdas/build"
	"github.com/lambdamesh/lambdamesh/lambdas/place"
	"github.com/lambdamesh/lambdamesh/lambdas/project"
	"github.com/lambdamesh/lambdamesh/lambdas/source"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
)

// Config configures [Run].
type Config struct {
	// Dir is the project.
	Dir string
	// Listener on loopback for requests and events; Run closes it.
	Listener  net.Listener
	Toolchain *build.Toolchain
	// Inspect is where a debugger of Node.js may attach, host:port; empty: nowhere.
	Inspect string
	// Env of the process besides lambda.yaml's, NAME=VALUE; goes before it.
	Env []string
	// Out gets a line for each thing that happens, and Logs what the lambda writes.
	Out, Logs io.Writer
	Log       *slog.Logger
}

// Validate tells what is missing.
func (c Config) Validate() error {
	var problems []error
	if c.Listener == nil {
		problems = append(problems, errors.New("Listener is missing"))
	}
	if c.Toolchain == nil {
		problems = append(problems, errors.New("Toolchain is missing"))
	}
	for _, variable := range c.Env {
		if name, _, ok := strings.Cut(variable, "="); !ok || name == "" || strings.HasPrefix(name, "LAMBDAMESH_") {
			problems = append(problems, fmt.Errorf("env %q: write NAME=VALUE; names that begin with LAMBDAMESH_ are the runtime's", name))
		}
	}
	if c.Inspect != "" {
		if _, _, err := net.SplitHostPort(c.Inspect); err != nil {
			problems = append(problems, fmt.Errorf("inspect %q: write host:port, such as 127.0.0.1:9229", c.Inspect))
		}
	}
	return errors.Join(problems...)
}

// startTimeout bounds the wait for a process to be ready.
const startTimeout = time.Minute

// Run runs the project until ctx ends. A project that does not build or start
// leaves the version before in its place and is told on Out.
func Run(ctx context.Context, config Config) error {
	if err := config.Validate(); err != nil {
		return err
	}
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	watcher, err := project.NewWatcher()
	if err != nil {
		return err
	}
	defer func() { _ = watcher.Close() }() // nothing is watched any more either way
	root, err := os.MkdirTemp("", "lambdamesh-run-")
	if err != nil {
		return fmt.Errorf("make a directory for sockets: %w", err)
	}
	defer func() { _ = os.RemoveAll(root) }() // sockets only
	sockets, err := place.SocketDir(filepath.Join(root, "s"), "00000-admin.sock")
	if err != nil {
		return err
	}
	bus, err := httpserver.Listen(ctx, "127.0.0.1:0", "")
	if err != nil {
		return err
	}
	gate := activator.New(activator.Config{MaxWait: startTimeout, Log: config.Log})
	r := &runner{config: config, gate: gate, sockets: sockets, busURL: "http://" + bus.Addr().String()}
	group, ctx := errgroup.WithContext(ctx)
	for _, server := range []*httpserver.Server{
		httpserver.New(httpserver.Config{
			Name: "lambda", Listener: config.Listener, Log: config.Log, DrainTimeout: time.Second,
			Handler: httpserver.BrowserGuard(httpserver.GuardConfig{}, place.AsTheMesh(gate)),
		}),
		httpserver.New(httpserver.Config{
			Name: "event bus", Listener: bus, Log: config.Log, DrainTimeout: time.Second,
			Handler: httpserver.BrowserGuard(httpserver.GuardConfig{}, printEvents(config.Out)),
		}),
	} {
		group.Go(func() error { return server.Run(ctx) })
	}
	group.Go(func() error { return r.follow(ctx, watcher) })
	return group.Wait()
}

// runner keeps the newest version that starts behind the gate.
type runner struct {
	config  Config
	gate    *activator.Gate
	sockets string
	busURL  string
	started int    // versions so far
	running *child // behind the gate
	warned  bool
}

// follow runs what the project is, again and again.
func (r *runner) follow(ctx context.Context, watcher *project.Watcher) error {
	defer func() {
		if r.running != nil {
			r.running.stop(context.WithoutCancel(ctx))
		}
	}()
	for {
		begin := time.Now()
		p, err := r.read(watcher)
		if err == nil {
			err = r.replace(ctx, p)
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && r.running == nil && r.started == 0 && !toldUser(err):
			return err
		case err != nil:
			r.told(err)
		default:
			fmt.Fprintf(r.config.Out, "  ready   %-40s %5.1fs\n", p.Lambda.Name, time.Since(begin).Seconds())
		}
		if err := r.await(ctx, watcher); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
}

func toldUser(err error) bool {
	told := (*source.Error)(nil)
	return errors.As(err, &told)
}

func (r *runner) told(err error) {
	after := "save a file to try again"
	if r.running != nil {
		after = "the version before goes on running"
	} else {
		r.gate.Fail(err, time.Second)
	}
	fmt.Fprintf(r.config.Out, "  failed  %s\n          (%s)\n", strings.ReplaceAll(err.Error(), "\n", "\n          "), after)
}

// read reads the project, and again when a directory was added meanwhile.
func (r *runner) read(watcher *project.Watcher) (*project.Project, error) {
	for {
		p, err := project.Read(r.config.Dir)
		dirs := []string{r.config.Dir}
		if err == nil {
			dirs = p.Dirs
		}
		news, watchErr := watcher.Watch(dirs)
		if watchErr != nil {
			return nil, errors.Join(err, watchErr)
		}
		if err != nil || !news {
			return p, err
		}
	}
}

// await returns when a file was saved or the process has ended by itself, with a
// growing pause after that.
func (r *runner) await(ctx context.Context, watcher *project.Watcher) error {
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	if r.running != nil {
		crashed := r.running
		go func() {
			select {
			case <-crashed.process.Done():
				cancel()
			case <-waiting.Done():
			}
		}()
	}
	err := watcher.Wait(waiting)
	if r.running == nil || err == nil {
		return err
	}
	select {
	case <-r.running.process.Done():
		if ctx.Err() != nil {
			return ctx.Err()
		}
		r.gate.Shut(r.running.backend)
		err := r.running.process.Err()
		r.running = nil
		r.told(fmt.Errorf("the process ended: %w", orEnded(err)))
		// What it did once it may do again: the developer sees to it.
		return watcher.Wait(ctx)
	default:
		return err
	}
}

func orEnded(err error) error {
	if err == nil {
		return errors.New("exit code 0")
	}
	return err
}

// replace builds a version, starts it, and has it take over when it is ready.
func (r *runner) replace(ctx context.Context, p *project.Project) error {
	lambda := p.Lambda
	if lambda.Spec.Runtime == v1alpha1.RuntimeContainer {
		return source.NotSupported("runtime: container needs a cluster: its image is not run on this machine; see docs/lambdas.md")
	}
	store := build.Directory{Toolchain: r.config.Toolchain}
	artifact, err := (&build.Pipeline{Toolchain: r.config.Toolchain, Store: store}).Build(ctx, lambda)
	if err != nil {
		return err
	}
	command, err := store.Command(ctx, artifact.Image)
	if err != nil {
		return err
	}
	old := r.running
	if r.config.Inspect != "" && old != nil {
		// Two processes cannot listen at the debugger's address.
		r.gate.Shut(old.backend)
		old.stop(ctx)
		r.running, old = nil, nil
	}
	next, err := r.start(ctx, lambda, artifact, command)
	if err != nil {
		return err
	}
	r.running = next
	var before *activator.Backend
	next.backend, before = r.gate.Open(next.socket)
	if old != nil {
		go func() {
			if before != nil {
				select {
				case <-before.Drained():
				case <-time.After(drainTimeout):
				}
			}
			old.stop(context.WithoutCancel(ctx))
		}()
	}
	if artifact.Note != "" {
		fmt.Fprintf(r.config.Out, "  note    %s\n", artifact.Note)
	}
	return nil
}

// drainTimeout is how long a version that was replaced may answer what it got.
const drainTimeout = 15 * time.Second
