package standalone

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/lambdamesh/lambdamesh/lambdas/activator"
	"github.com/lambdamesh/lambdamesh/lambdas/build"
	"github.com/lambdamesh/lambdamesh/lambdas/deploy"
	"github.com/lambdamesh/lambdamesh/lambdas/source"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/process"
)

const (
	grace     = 5 * time.Second
	readyPoll = 10 * time.Millisecond
)

// child is a version's process.
type child struct {
	process *process.Process
	backend *activator.Backend // once it gets requests
	socket  string
	dir     string
}

func (c *child) stop(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*grace)
	defer cancel()
	_ = c.process.Stop(ctx) // that it had to be killed is nothing to do about
	_ = os.RemoveAll(c.dir)
}

// start starts a version and waits until it is ready.
func (r *runner) start(ctx context.Context, lambda *v1alpha1.Lambda, artifact build.Artifact, command build.Command) (*child, error) {
	if lambda.Namespace == "" {
		lambda.Namespace = "default"
	}
	r.started++
	dir := filepath.Join(r.sockets, fmt.Sprint(r.started))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of the process: %w", err)
	}
	app, admin := filepath.Join(dir, "app.sock"), filepath.Join(dir, "admin.sock")
	if r.config.Inspect != "" {
		if lambda.Spec.Runtime != v1alpha1.RuntimeNodeJS {
			return nil, source.NotSupported("--inspect is for runtime nodejs: attach a debugger of %s to the process instead", lambda.Spec.Runtime)
		}
		command.Args = append([]string{"--inspect=" + r.config.Inspect}, command.Args...)
	}
	p, err := process.Start(ctx, process.Spec{
		Name: "lambda " + lambda.Name, Path: command.Path, Args: command.Args, Dir: dir, Grace: grace,
		Env: r.environment(lambda, artifact, command, app, admin, dir), Stdout: r.config.Logs, Stderr: r.config.Logs,
	})
	if err != nil {
		return nil, err
	}
	c := &child{process: p, socket: app, dir: dir}
	if err := ready(ctx, p, admin); err != nil {
		c.stop(context.WithoutCancel(ctx))
		return nil, err
	}
	return c, nil
}

// ready waits until the process answers /readyz.
func ready(ctx context.Context, p *process.Process, admin string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", admin)
	}}
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://admin/readyz", nil)
		if err != nil {
			return err
		}
		if response, err := transport.RoundTrip(request); err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-p.Done():
			if exit := (*process.ExitError)(nil); errors.As(p.Err(), &exit) && len(exit.Tail) > 0 {
				return source.Failed("it does not start: %s", strings.Join(exit.Tail, "\n"))
			}
			return source.Failed("it does not start: %v", orEnded(p.Err()))
		case <-ctx.Done():
			return source.FailedForNow("it was not ready within %s", startTimeout)
		case <-time.After(readyPoll):
		}
	}
}

// environment is that of the pod that would run the lambda, with what is
// different on this machine.
func (r *runner) environment(lambda *v1alpha1.Lambda, artifact build.Artifact, command build.Command, app, admin, dir string) []string {
	values := map[string]string{"HOME": dir, "TMPDIR": dir}
	for _, name := range []string{"PATH", "LANG"} {
		if value, found := os.LookupEnv(name); found {
			values[name] = value
		}
	}
	objects := deploy.New(lambda, artifact, deploy.Options{PublishURL: r.busURL + publishPath, ConnectorURL: r.busURL + connectorPath})
	var missing []string
	for _, variable := range objects.Deployment.Spec.Template.Spec.Containers[0].Env {
		switch {
		case variable.ValueFrom == nil:
			values[variable.Name] = variable.Value
		case variable.ValueFrom.FieldRef == nil && !r.given(variable):
			missing = append(missing, variable.Name)
		}
	}
	for _, variable := range r.config.Env {
		name, value, _ := strings.Cut(variable, "=")
		values[name] = value
	}
	if len(missing) > 0 && !r.warned {
		r.warned = true
		fmt.Fprintf(r.config.Out, "  note    there are no Secrets and ConfigMaps here: pass --env %s=VALUE\n", strings.Join(missing, "=VALUE --env "))
	}
	values[v1alpha1.EnvListen], values[v1alpha1.EnvAdminListen] = "unix:"+app, "unix:"+admin
	values[v1alpha1.EnvSource] = command.SourceDir
	values[v1alpha1.EnvSidecar] = "standalone" // the gate, before a socket of this user's alone
	env := make([]string, 0, len(values))
	for name, value := range values {
		env = append(env, name+"="+value)
	}
	slices.Sort(env)
	return env
}

func (r *runner) given(variable corev1.EnvVar) bool {
	return slices.ContainsFunc(r.config.Env, func(given string) bool { return strings.HasPrefix(given, variable.Name+"=") })
}
