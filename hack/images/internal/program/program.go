// Package program builds the programs of cmd/ for images: static, and with the
// same bytes in every checkout of a commit.
package program

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/lambdamesh/lambdamesh/hack/images/internal/layer"
	"github.com/lambdamesh/lambdamesh/hack/images/internal/progress"
)

// Dir is where the program lies in its image.
const Dir = "/usr/local/bin"

// Builder builds the programs of one checkout.
type Builder struct {
	Root    string // of the checkout
	Version string // that the programs print
	Report  *progress.Reporter
}

// Build builds the programs for a platform into files of its own and returns
// them by name. What did not change is not linked again.
func (b Builder) Build(ctx context.Context, platform v1.Platform, names []string) (map[string]string, error) {
	out := filepath.Join(b.Root, "dist", "programs", platform.OS+"_"+platform.Architecture)
	if err := os.MkdirAll(out, 0o750); err != nil {
		return nil, err
	}
	arguments := []string{
		"build", "-v", "-buildvcs=false", "-trimpath",
		"-ldflags", "-s -w -X main.version=" + b.Version, "-o", out + string(filepath.Separator),
	}
	programs := map[string]string{}
	for _, name := range names {
		arguments = append(arguments, "./cmd/"+name)
		programs[name] = filepath.Join(out, name)
	}
	command := exec.CommandContext(ctx, "go", arguments...)
	command.Dir = b.Root
	// What the machine sets for its own builds is none of the images'.
	command.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+platform.OS, "GOARCH="+platform.Architecture,
		"GOAMD64=v1", "GOARM64=v8.0", "GOEXPERIMENT=", "GOFLAGS=", "GOWORK=off")
	log := &buildLog{}
	command.Stderr = log
	detail := func() string {
		return fmt.Sprintf("%d packages compiled; the first time takes some minutes", log.packages.Load())
	}
	name := fmt.Sprintf("compile %s for %s", strings.Join(names, ", "), platform)
	if err := b.Report.Step(name, detail, command.Run); err != nil {
		return nil, fmt.Errorf("%s: %w\n%s", name, err, log.complaints())
	}
	return programs, nil
}

// Layer has the program at file as /usr/local/bin/NAME.
func Layer(cache *layer.Cache, name, file string) (v1.Layer, error) {
	sum, err := layer.HashFile(file)
	if err != nil {
		return nil, err
	}
	return cache.Layer([]string{"program", name, sum}, func(w *layer.Writer) error {
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		return w.File(Dir+"/"+name, 0o755, data)
	})
}

// Module is one that a program was built of.
type Module struct{ Path, Version, Sum string }

// Modules of the program at file, as its build information names them.
func Modules(file string) ([]Module, error) {
	info, err := buildinfo.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read what %s was built of: %w", file, err)
	}
	modules := []Module{{Path: "stdlib", Version: strings.TrimPrefix(info.GoVersion, "go")}}
	for _, dependency := range info.Deps {
		if dependency.Replace != nil {
			dependency = dependency.Replace
		}
		modules = append(modules, Module{Path: dependency.Path, Version: dependency.Version, Sum: dependency.Sum})
	}
	return modules, nil
}

// buildLog counts the packages that go build -v names, and keeps what is no
// package's name: what went wrong.
type buildLog struct {
	packages atomic.Int64

	mu   sync.Mutex
	rest bytes.Buffer
	kept bytes.Buffer
}

func (l *buildLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest.Write(p)
	for {
		line, err := l.rest.ReadBytes('\n')
		if err != nil {
			l.rest.Write(line) // the beginning of the next one
			return len(p), nil
		}
		l.take(line)
	}
}

func (l *buildLog) take(line []byte) {
	switch {
	case bytes.HasPrefix(line, []byte("go: downloading")):
	case bytes.ContainsAny(line, " #"):
		l.kept.Write(line)
	default:
		l.packages.Add(1)
	}
}

func (l *buildLog) complaints() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.TrimSpace(l.kept.String() + l.rest.String())
}
