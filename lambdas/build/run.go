package build

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/lambdamesh/lambdamesh/lambdas/source"
	"github.com/lambdamesh/lambdamesh/pkg/process"
)

// maxOutput bounds what a compiler may say.
const maxOutput = 16 << 10

// run runs a tool to its end and returns what it wrote, bounded. The error
// tells how it ended; canceling ctx ends it and its children.
func run(ctx context.Context, dir, path string, env []string, args ...string) (string, error) {
	output := &boundedOutput{}
	child, err := process.Start(ctx, process.Spec{
		Name: filepath.Base(path), Path: path, Args: args, Env: env, Dir: dir,
		Stdout: output, Stderr: output, Grace: 2 * time.Second,
	})
	if err != nil {
		return "", err
	}
	select {
	case <-child.Done():
		return output.String(), child.Err()
	case <-ctx.Done():
		// Its own context: this one has ended and the group must too.
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		return output.String(), errors.Join(ctx.Err(), child.Stop(stop))
	}
}

type boundedOutput struct {
	mu   sync.Mutex
	text strings.Builder
	cut  bool
}

var _ io.Writer = (*boundedOutput)(nil)

func (o *boundedOutput) Write(data []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if room := maxOutput - o.text.Len(); room < len(data) {
		o.cut = true
		o.text.Write(data[:max(room, 0)])
	} else {
		o.text.Write(data)
	}
	return len(data), nil
}

func (o *boundedOutput) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.cut {
		return o.text.String() + "\n[cut]"
	}
	return o.text.String()
}

// ended tells of a deadline or a cancellation; neither is a line's fault, and
// both may pass.
func ended(ctx context.Context, what string) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return source.FailedForNow("%s did not end in time", what)
	}
	return ctx.Err()
}
