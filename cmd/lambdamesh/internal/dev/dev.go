package dev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/lambdamesh/lambdamesh/cmd/lambdamesh/internal/localkube"
	"github.com/lambdamesh/lambdamesh/manifests"
	"github.com/lambdamesh/lambdamesh/pkg/component"
)

// Run runs the local mesh until ctx ends, then drains and stops all of it. It
// returns an error of one line when something cannot start or fails.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	dataDir, err := filepath.Abs(cfg.DataDir)
	if err != nil {
		return fmt.Errorf("find the data directory %s: %w", cfg.DataDir, err)
	}
	cfg.DataDir = dataDir
	if err := refuseTwice(dataDir); err != nil {
		return err
	}
	// A process that was killed has left its own.
	if err := removeEndpoints(dataDir); err != nil {
		return err
	}
	objects, _, err := readObjects(cfg.Apply)
	if err != nil {
		return err
	}
	sockets, err := bind(ctx, &cfg)
	if err != nil {
		return err
	}
	defer sockets.close()

	kubernetes, err := localkube.New(localkube.Config{
		DataDir: cfg.DataDir, BinDir: cfg.BinDir, Address: cfg.KubernetesAddress,
		CRDs: []fs.FS{manifests.CRDs, manifests.IstioCRDs}, Log: cfg.Log,
	})
	if err != nil {
		return err
	}
	progress := &progress{out: cfg.Out, begin: time.Now()}
	fmt.Fprintf(cfg.Out, "lambdamesh: starting with the data in %s\n", cfg.DataDir)
	mesh := component.New("mesh", func(ctx context.Context, ready func()) error {
		// The control plane holds the lock on the data directory by now.
		private, err := socketDir(cfg.DataDir)
		if err != nil {
			return err
		}
		defer os.RemoveAll(private)
		m, err := newMesh(ctx, cfg, sockets, private, kubernetes.RESTConfig())
		if err != nil {
			return err
		}
		group := component.NewGroup("mesh", progress.config(), m.components...)
		go func() {
			select {
			case <-group.Ready():
				ready()
				m.afterStart(ctx, objects, progress)
			case <-ctx.Done():
			}
		}()
		defer func() { _ = removeEndpoints(cfg.DataDir) }()
		return group.Run(ctx)
	})
	err = component.NewGroup("dev", progress.config("mesh"), kubernetes, patient{mesh}).Run(ctx)
	if err == nil {
		fmt.Fprintf(cfg.Out, "lambdamesh: stopped; the data is kept in %s\n", cfg.DataDir)
	}
	return oneLine(err)
}

// patient lets the mesh take as long to stop as its parts may, one by one.
type patient struct{ component.Component }

func (patient) StopTimeout() time.Duration { return 2 * time.Minute }

// refuseTwice gives the reason when another process runs with the data
// directory, before the addresses that it occupies hide the reason. What makes
// it safe is the lock that the control plane takes.
func refuseTwice(dataDir string) error {
	e, err := ReadEndpoints(dataDir)
	if err == nil && e.PID != os.Getpid() && alive(e.PID) {
		return fmt.Errorf("the data directory %s is in use by process %d: stop it, or pass another --data-dir", dataDir, e.PID)
	}
	return nil // what cannot be read here, the lock decides
}

func alive(pid int) bool {
	if pid <= 0 {
		return false
	}
	process, err := os.FindProcess(pid)
	return err == nil && process.Signal(syscall.Signal(0)) == nil
}

// oneLine makes a multi-line error one line: the details are in the logs.
func oneLine(err error) error {
	if err == nil || !strings.Contains(err.Error(), "\n") {
		return err
	}
	return errors.New(strings.ReplaceAll(err.Error(), "\n", "; "))
}

// progress prints a line for each part that becomes ready.
type progress struct {
	out   io.Writer
	begin time.Time
}

// config is a group's; parts whose names are given are not printed, they print
// their own.
func (p *progress) config(silent ...string) component.GroupConfig {
	return component.GroupConfig{OnReady: func(name string, elapsed time.Duration) {
		for _, s := range silent {
			if s == name {
				return
			}
		}
		fmt.Fprintf(p.out, "  ready   %-40s %5.1fs\n", name, elapsed.Seconds())
	}}
}

// afterStart applies the files, writes the endpoints and prints the addresses:
// who waits for the endpoints finds the objects too.
func (m *mesh) afterStart(ctx context.Context, objects []object, p *progress) {
	cfg, e := m.cfg, m.endpoints()
	if len(objects) > 0 {
		fmt.Fprintf(cfg.Out, "applying %s (%d objects)\n", strings.Join(cfg.Apply, ", "), len(objects))
	}
	applied := applyObjects(ctx, m.client, objects, cfg.Out)
	if len(cfg.Apply) > 0 {
		if follower, err := newFollower(cfg.Apply, m.client, cfg.Out); err != nil {
			fmt.Fprintf(cfg.Out, "lambdamesh: changed files will not be applied: %v\n", err)
		} else {
			follower.remember(objects)
			go follower.run(ctx)
		}
	}
	if err := e.write(cfg.DataDir); err != nil {
		fmt.Fprintf(cfg.Out, "lambdamesh: %v\n", err)
	}
	fmt.Fprintf(cfg.Out, `
serving after %.1fs:
  gateway     http://<host>.%s:%s  (%s, %s)
  event bus   %s/publish
  connector   %s
  webhooks    %s/webhooks/<application>/<name>
  Kubernetes  %s

  export KUBECONFIG=%s

`, time.Since(p.begin).Seconds(), Domain, port(m.sockets.gateway), e.Gateway, e.GatewayTLS, e.EventBus, e.Connector, e.Webhooks, e.Kubernetes, cfg.path(KubeconfigFile))
	awaitReady(ctx, m.client, applied, cfg.Out)
	printExposed(ctx, m.client, applied, cfg.Out)
	if ctx.Err() == nil {
		fmt.Fprint(cfg.Out, "\nCtrl-C stops everything and keeps the data.\n")
	}
}
