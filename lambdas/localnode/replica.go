package localnode

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/lambdamesh/lambdamesh/lambdas/activator"
	"github.com/lambdamesh/lambdamesh/lambdas/deploy"
	"github.com/lambdamesh/lambdamesh/lambdas/source"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/process"
	"github.com/lambdamesh/lambdamesh/pkg/proxyauth"
)

const (
	appSocket   = "app.sock"
	adminSocket = "admin.sock"
	// gatedSocket is the process's where a gate has appSocket.
	gatedSocket = "own.sock"

	// maxGrace bounds the time between SIGTERM and SIGKILL: by then the
	// requests have drained.
	maxGrace = 10 * time.Second

	readyPoll = 25 * time.Millisecond
	// tellAfter is how long a start may take before its status tells what it
	// waits for.
	tellAfter = 10 * time.Second
	// livePoll and liveMisses: how often a ready process is asked, and how many
	// failures in a row take it out.
	livePoll   = 2 * time.Second
	liveMisses = 3
	// hungGrace is the time between SIGTERM and SIGKILL for a process that is
	// replaced.
	hungGrace = 2 * time.Second
)

// Reasons of the ReplicaFailure condition.
const (
	reasonCrash       = "CrashLoopBackOff"
	reasonStartFailed = "StartFailed"
	reasonUnready     = "Unready"
	reasonHung        = "Hung"
)

// replica is one pod's worth: an identity in the mesh that outlives the crashes
// of its process.
type replica struct {
	workload   *workload
	name       string
	revision   string
	deployment *appsv1.Deployment // as it was when the replica was made
	log        *slog.Logger

	// gate stands before the process where it may sleep, and nil elsewhere.
	gate      *activator.Gate
	idleAfter time.Duration
	wake      chan struct{} // a request waits at the gate

	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	state   replicaState
	sidecar Sidecar // while it runs
}

type replicaState struct {
	ready, stopping        bool
	asleep                 bool // ready, and without a process until a request comes
	failureReason, failure string
	socket                 string // of the process, for who may pass the sidecar by
	// lastFailure is why the process was started again last; it outlives the
	// recovery, which may take less time than a look at the status.
	lastFailure string
}

func newReplica(ctx context.Context, w *workload, deployment *appsv1.Deployment, revision string) *replica {
	// A replica's name becomes a label's value: 63 characters at most.
	name := fmt.Sprintf("%.40s-%.6s-%s", deployment.Name, revision, newID()[:6])
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // stop ends it, in the workload's order
	r := &replica{
		workload: w, name: name, revision: revision, deployment: deployment, cancel: cancel, done: make(chan struct{}),
		log: w.node.config.Log.With("lambda", w.key.String(), "replica", name), wake: make(chan struct{}, 1),
	}
	if scale, known := deploy.ScaleOf(deployment); known && scale.Min == 0 {
		r.idleAfter = scale.IdleAfter.Duration
		r.gate = activator.New(activator.Config{Log: r.log, Wake: func() {
			select {
			case r.wake <- struct{}{}:
			default: // it is being woken
			}
		}})
	}
	go r.run(ctx)
	return r
}

// stop begins to take the replica out; done is closed when nothing is left.
func (r *replica) stop() {
	r.change(func(s *replicaState) { s.stopping = true })
	r.cancel()
}

// activeRequests counts those in flight.
func (r *replica) activeRequests() int {
	r.mu.Lock()
	sidecar := r.sidecar
	r.mu.Unlock()
	if sidecar == nil {
		return 0
	}
	return sidecar.ActiveRequests()
}

func (r *replica) observe() replicaState {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state
}

func (r *replica) change(change func(*replicaState)) {
	r.mu.Lock()
	before := r.state
	change(&r.state)
	changed := before != r.state
	r.mu.Unlock()
	if changed {
		r.workload.changed()
	}
}

// maxStartPause bounds the pause between attempts to begin at all: what is
// missing, such as a Secret, is looked for again soon, because it costs little.
const maxStartPause = 5 * time.Second

// run lives until it is stopped; when the node cannot give the replica its
// place in the mesh it tries again.
func (r *replica) run(ctx context.Context) {
	defer r.workload.changed()
	defer close(r.done)
	config := r.workload.node.config
	for pause := config.MinBackoff; ; pause = min(2*pause, config.MaxBackoff, maxStartPause) {
		err := r.live(ctx)
		if ctx.Err() != nil {
			if err != nil && !errors.Is(err, context.Canceled) {
				r.log.Warn("stopping a replica left something behind", "error", err)
			}
			return
		}
		r.log.Warn("cannot start a replica; will try again", "error", err, "pause", pause)
		r.fail(reasonStartFailed, err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

func (r *replica) fail(reason string, err error) {
	message := err.Error()
	if exit := (*process.ExitError)(nil); errors.As(err, &exit) {
		message = "the process ended with code " + fmt.Sprint(exit.Code)
		if exit.Signal != 0 {
			message = "the process was ended by " + exit.Signal.String()
		}
		if len(exit.Tail) > 0 {
			message += ": " + exit.Tail[len(exit.Tail)-1]
		}
	}
	r.change(func(s *replicaState) {
		s.ready, s.failureReason, s.failure = false, reason, message
		if reason == reasonHung || reason == reasonCrash {
			s.lastFailure = fmt.Sprintf("%s started again at %s, %s: %s", r.name, time.Now().UTC().Format(time.TimeOnly+"Z"), reason, message)
		}
	})
}

// hungError is the end of a process that was replaced because it hung.
type hungError struct{ why string }

func (e *hungError) Error() string { return "the process hung and was ended: " + e.why }

// live is one life: everything is made in order, and unmade in reverse.
func (r *replica) live(ctx context.Context) (err error) {
	node := r.workload.node
	dir := filepath.Join(node.runDir, newID())
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("make the replica's directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	inbound, err := listenLoopback(ctx)
	if err != nil {
		return fmt.Errorf("bind the inbound listener: %w", err)
	}
	defer inbound.Close() // the sidecar has closed it already, unless it never started
	egress, err := listenLoopback(ctx)
	if err != nil {
		return fmt.Errorf("bind the egress listener: %w", err)
	}
	defer egress.Close()
	// Whoever may use it has the replica's identity: the process alone.
	secret := proxyauth.NewSecret()

	membership := newMembership(node.client, node.cached, r.name, r.deployment, portOf(inbound), portOf(egress), filepath.Join(dir, appSocket))
	if err := membership.join(ctx); err != nil {
		return errors.Join(err, membership.leave(ctx))
	}
	defer func() { err = errors.Join(err, membership.leave(ctx)) }()

	sidecar, err := node.config.Sidecars.Start(ctx, Replica{
		Name: r.name, Namespace: r.deployment.Namespace, ServiceAccount: r.deployment.Spec.Template.Spec.ServiceAccountName,
		Labels: membership.entry.Labels, InboundListener: inbound, EgressListener: proxyauth.Listen(egress, secret), AppSocket: filepath.Join(dir, appSocket),
	})
	if err != nil {
		return fmt.Errorf("start the sidecar: %w", err)
	}
	r.mu.Lock()
	r.sidecar = sidecar
	r.mu.Unlock()
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), apiTimeout)
		defer cancel()
		err = errors.Join(err, sidecar.Stop(ctx))
		r.mu.Lock()
		r.sidecar = nil
		r.mu.Unlock()
	}()
	if r.gate != nil {
		close, err := r.serveGate(ctx, filepath.Join(dir, appSocket))
		if err != nil {
			return err
		}
		defer close()
	}

	logFile, err := process.OpenLog(node.logPath(r), node.config.LogBytes)
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	defer func() { err = errors.Join(err, logFile.Close()) }()
	pruneLogs(filepath.Dir(node.logPath(r)))

	return r.runProcess(ctx, dir, secret.URL(egress.Addr()), sidecar, membership, logFile)
}

// serveGate serves the gate on a socket until close is called.
func (r *replica) serveGate(ctx context.Context, socket string) (close func(), err error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("bind the gate's socket: %w", err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	served := make(chan struct{})
	go func() {
		defer func() { served <- struct{}{} }()
		if err := r.gate.Serve(ctx, listener); err != nil {
			r.log.Error("a lambda's gate ended", "error", err)
		}
	}()
	return func() { cancel(); <-served }, nil
}

// runProcess keeps the process running, or asleep, until the replica is to go and
// has drained.
func (r *replica) runProcess(ctx context.Context, dir string, egress *url.URL, sidecar Sidecar, membership *membership, logFile *process.Log) error {
	drained := make(chan error, 1)
	go func() {
		<-ctx.Done()
		wasEndpoint, err := membership.withdraw(ctx, true)
		r.change(func(s *replicaState) { s.ready = false })
		if wasEndpoint {
			r.drain(sidecar)
		}
		drained <- err
	}()
	for {
		slept, err := r.stayAwake(ctx, dir, egress, sidecar, membership, logFile, drained)
		if !slept {
			return err
		}
		if err != nil {
			r.log.Warn("a lambda that goes to sleep had to be killed", "error", err)
		}
		r.log.Info("a lambda has nothing to do and sleeps")
		r.change(func(s *replicaState) { s.asleep, s.failureReason, s.failure = true, "", "" })
		for r.gate.Waiting() == 0 { // whom a signal was for may be answered
			select {
			case err := <-drained:
				return err
			case <-r.wake:
			}
		}
		r.change(func(s *replicaState) { s.asleep = false })
	}
}

// stayAwake keeps the process running until the replica has drained, or, then
// slept is true, until there is nothing to do for it.
func (r *replica) stayAwake(ctx context.Context, dir string, egress *url.URL, sidecar Sidecar, membership *membership, logFile *process.Log, drained <-chan error) (slept bool, err error) {
	config := r.workload.node.config
	processCtx, endProcess := context.WithCancel(context.WithoutCancel(ctx))
	defer endProcess()
	var watchers sync.WaitGroup
	var hung atomic.Pointer[hungError] // of the process that ends
	idle := make(chan struct{}, 1)
	restarter := process.Restarter{
		Min: config.MinBackoff, Max: config.MaxBackoff,
		Next: func(ctx context.Context) (process.Spec, error) {
			spec, err := r.spec(ctx, dir, egress)
			spec.Stdout, spec.Stderr = logFile, logFile
			return spec, err
		},
		OnStart: func(p *process.Process) {
			watchers.Go(func() {
				err := r.watch(ctx, processCtx, p, dir, sidecar, membership)
				var found *hungError
				switch {
				case errors.Is(err, errIdle):
					idle <- struct{}{}
				case errors.As(err, &found):
					hung.Store(found)
					stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), hungGrace)
					defer cancel()
					_ = p.Stop(stop) // that it was killed is nothing new
				}
			})
		},
		OnFailure: func(err error, pause time.Duration) {
			reason := reasonStartFailed
			if found := hung.Swap(nil); found != nil {
				reason, err = reasonHung, found
			} else if exit := (*process.ExitError)(nil); errors.As(err, &exit) {
				reason = reasonCrash
			} else if told := (*source.Error)(nil); errors.As(err, &told) {
				reason = told.Reason
			}
			r.log.Warn("a lambda's process failed; it starts again", "error", err, "pause", pause)
			r.fail(reason, err)
			if r.gate != nil && pause > maxHeld {
				watchers.Wait() // what they say of the gate comes before
				r.gate.Fail(err, pause)
			}
		},
	}
	ended := make(chan error, 1)
	go func() { ended <- restarter.Run(processCtx) }()
	select {
	case err = <-drained:
	case <-idle:
		slept = true
	}
	endProcess()
	err = errors.Join(err, <-ended)
	watchers.Wait()
	return slept, err
}

// maxHeld is how long a pause after a failed start may be for requests to wait on.
const maxHeld = 2 * time.Second

// errIdle is the end of a process that has nothing to do; its gate is shut.
var errIdle = errors.New("nothing to do")

// drain serves on until every client knows that the endpoint is gone and what
// is in flight has finished.
func (r *replica) drain(sidecar Sidecar) {
	config := r.workload.node.config
	time.Sleep(config.DrainDelay)
	for deadline := time.Now().Add(config.MaxDrain); sidecar.ActiveRequests() > 0; time.Sleep(readyPoll) {
		if time.Now().After(deadline) {
			r.log.Warn("requests are still in flight after the drain time", "requests", sidecar.ActiveRequests())
			return
		}
	}
}

// watch announces the process when it and its sidecar are ready, and takes the
// endpoint out when it ends or stops answering. It returns a *hungError when the
// process must be replaced, and errIdle when it may sleep; where the replica is to
// go, by replicaCtx, it only lets requests to a process that was woken.
func (r *replica) watch(replicaCtx, processCtx context.Context, p *process.Process, dir string, sidecar Sidecar, membership *membership) (result error) {
	// It ends with the process.
	ctx, cancel := context.WithCancel(processCtx)
	defer cancel()
	go func() {
		select {
		case <-p.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	defer func() {
		if replicaCtx.Err() != nil || errors.Is(result, errIdle) {
			return // runProcess takes the endpoint out, or it stays one
		}
		if _, err := membership.withdraw(ctx, false); err != nil {
			r.log.Warn("cannot take the endpoint of an ended process out", "error", err)
		}
		r.change(func(s *replicaState) { s.ready = false })
	}()

	admin := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(dir, adminSocket))
		},
	}}
	begin := time.Now()
	for !statusOK(ctx, admin, "/readyz") {
		if !pause(ctx, readyPoll) {
			return nil
		}
		if time.Since(begin) > tellAfter {
			r.fail(reasonUnready, errors.New("the process does not answer /readyz yet"))
		}
	}
	for ready := false; !ready; {
		select {
		case <-sidecar.Ready():
			ready = true
		case <-ctx.Done():
			return nil
		case <-time.After(tellAfter):
			r.fail(reasonUnready, errors.New("the process is ready; its sidecar waits for the control plane's configuration"))
		}
	}
	poll := livePoll
	if r.gate != nil {
		backend, _ := r.gate.Open(filepath.Join(dir, gatedSocket))
		defer r.gate.Shut(backend)
		poll = min(poll, max(r.idleAfter/4, readyPoll))
	}
	misses, heard, silentMost := 0, time.Now(), r.workload.node.config.SilentMost
	for announced := false; ; {
		switch {
		case replicaCtx.Err() != nil:
			if r.gate == nil {
				return nil
			}
			<-ctx.Done() // the gate is open until then
			return nil
		case misses == 0 && !announced:
			if err := membership.announce(ctx); err != nil {
				if ctx.Err() == nil {
					r.log.Warn("cannot announce a replica; will try again", "error", err)
				}
				break
			}
			announced = true
			r.log.Info("replica is ready")
			r.change(func(s *replicaState) {
				*s = replicaState{ready: true, stopping: s.stopping, socket: filepath.Join(dir, appSocket), lastFailure: s.lastFailure}
			})
		case misses >= liveMisses && announced:
			r.fail(reasonUnready, errors.New("the process does not answer /readyz"))
			if _, err := membership.withdraw(ctx, false); err == nil {
				announced = false
			}
		case announced && !membership.intact(ctx):
			r.log.Warn("a replica's objects were changed; putting them right")
			if err := membership.join(ctx); err == nil {
				announced = membership.announce(ctx) == nil
			}
		}
		if !pause(ctx, poll) {
			return nil
		}
		if r.gate != nil && announced && r.workload.alone(r) && replicaCtx.Err() == nil && r.gate.Sleep(r.idleAfter) {
			return errIdle
		}
		switch trouble, err := health(ctx, admin); {
		case trouble != "":
			return &hungError{trouble}
		case err == nil:
			heard = time.Now()
		case time.Since(heard) > silentMost && ctx.Err() == nil:
			return &hungError{fmt.Sprintf("it has not answered /healthz for %s", silentMost)}
		}
		if statusOK(ctx, admin, "/readyz") {
			misses = 0
		} else {
			misses++
		}
	}
}

// spec is the process of the pod template's container.
func (r *replica) spec(ctx context.Context, dir string, egress *url.URL) (process.Spec, error) {
	node := r.workload.node
	pod := r.deployment.Spec.Template.Spec
	for _, container := range pod.Containers {
		if container.Name != deploy.ContainerName {
			continue
		}
		if slices.ContainsFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Secret != nil }) {
			return process.Spec{}, source.NotSupported("secretMounts are not supported by lambdamesh dev, which has no containers to mount into; use env with secretKeyRef")
		}
		command, err := node.config.Artifacts.Command(ctx, container.Image)
		if err != nil {
			return process.Spec{}, err
		}
		env, err := node.environment(ctx, r, container, dir, egress, command.SourceDir)
		if err != nil {
			return process.Spec{}, err
		}
		grace := maxGrace
		if seconds := pod.TerminationGracePeriodSeconds; seconds != nil {
			grace = min(grace, time.Duration(*seconds)*time.Second)
		}
		if r.gate != nil {
			for i, variable := range env {
				if strings.HasPrefix(variable, v1alpha1.EnvListen+"=") {
					env[i] = v1alpha1.EnvListen + "=unix:" + filepath.Join(dir, gatedSocket)
				}
			}
		}
		return process.Spec{Name: "lambda " + r.workload.key.String(), Path: command.Path, Args: command.Args, Env: env, Dir: dir, Grace: grace}, nil
	}
	return process.Spec{}, fmt.Errorf("deployment %s has no container %q", r.workload.key, deploy.ContainerName)
}

func pause(ctx context.Context, duration time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(duration):
		return true
	}
}

func listenLoopback(ctx context.Context) (net.Listener, error) {
	return (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
}

func portOf(listener net.Listener) uint32 {
	if address, ok := listener.Addr().(*net.TCPAddr); ok {
		return uint32(address.Port) //nolint:gosec // a port
	}
	return 0
}

// newID is short because it is part of sockets' paths.
func newID() string {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	return hex.EncodeToString(b[:])
}
