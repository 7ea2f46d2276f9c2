package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/lambdamesh/lambdamesh/lambdas/runtimes"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/process"
)

// ToolchainConfig configures a [Toolchain].
type ToolchainConfig struct {
	// Dir is where artifacts are kept, such as <data-dir>/artifacts.
	Dir string
	// GoCache is the Go build cache; default the user's own, which is warm.
	GoCache string
	// Timeout of one build; default 5 minutes.
	Timeout time.Duration
	// LookPath finds a program; default [exec.LookPath].
	LookPath func(name string) (string, error)
}

// Validate tells what is missing.
func (c ToolchainConfig) Validate() error {
	if !filepath.IsAbs(c.Dir) {
		return fmt.Errorf("artifact directory %q: want an absolute path", c.Dir)
	}
	return nil
}

// Toolchain builds with the languages installed on this machine. An artifact
// is a directory <Dir>/<runtime>/<hash>; the hash covers all that goes into it,
// so that the same source is built once and a finished directory never changes.
type Toolchain struct {
	config ToolchainConfig

	mu    sync.Mutex
	tools map[v1alpha1.Runtime]tool
}

// tool is a language found on this machine.
type tool struct {
	path    string // the real executable, not a version manager's shim
	version string // "1.26.8"
}

// NewToolchain returns a builder that keeps its artifacts under config.Dir.
func NewToolchain(config ToolchainConfig) (*Toolchain, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	if config.Timeout == 0 {
		config.Timeout = 5 * time.Minute
	}
	if config.LookPath == nil {
		config.LookPath = exec.LookPath
	}
	// What a killed build left behind.
	if err := os.RemoveAll(filepath.Join(config.Dir, "tmp")); err != nil {
		return nil, fmt.Errorf("clear unfinished builds: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(config.Dir, "tmp"), 0o700); err != nil {
		return nil, fmt.Errorf("create the artifact directory: %w", err)
	}
	return &Toolchain{config: config, tools: map[v1alpha1.Runtime]tool{}}, nil
}

// Command is how an artifact is started.
type Command struct {
	Path string
	Args []string
	// SourceDir is the value of LAMBDAMESH_SOURCE.
	SourceDir string
}

// Command returns how to start the artifact of a local image.
func (t *Toolchain) Command(ctx context.Context, image string) (Command, error) {
	runtime, hash, found := strings.Cut(strings.TrimPrefix(image, v1alpha1.LocalImagePrefix), ":")
	if !found || !strings.HasPrefix(image, v1alpha1.LocalImagePrefix) || strings.ContainsAny(runtime+hash, `/\.`) {
		return Command{}, fmt.Errorf("image %q is not one of the local store (%s<runtime>:<hash>)", image, v1alpha1.LocalImagePrefix)
	}
	dir := filepath.Join(t.config.Dir, runtime, hash)
	if _, err := os.Stat(dir); err != nil {
		return Command{}, fmt.Errorf("image %s is not in the artifact store: %w", image, err)
	}
	if v1alpha1.Runtime(runtime) == v1alpha1.RuntimeGo {
		return Command{Path: filepath.Join(dir, "lambda"), SourceDir: filepath.Join(dir, "source")}, nil
	}
	tool, err := t.tool(ctx, v1alpha1.Runtime(runtime))
	if err != nil {
		return Command{}, err
	}
	server := map[v1alpha1.Runtime]string{v1alpha1.RuntimeNodeJS: "server.mjs", v1alpha1.RuntimePython: "server.py"}[v1alpha1.Runtime(runtime)]
	return Command{Path: tool.path, Args: []string{filepath.Join(dir, "runtime", server)}, SourceDir: filepath.Join(dir, "source")}, nil
}

// Build builds the lambda's source unless its artifact is there already. What
// the user can put right is an [*Error].
func (t *Toolchain) Build(ctx context.Context, lambda *v1alpha1.Lambda) (Artifact, error) {
	source, err := inline(lambda)
	if err != nil {
		return Artifact{}, err
	}
	if len(lambda.Spec.SecretMounts) > 0 {
		return Artifact{}, notSupported("secretMounts are not supported by lambdamesh dev, which has no containers to mount into; use env with secretKeyRef")
	}
	runtime := lambda.Spec.Runtime
	tool, err := t.tool(ctx, runtime)
	if err != nil {
		return Artifact{}, err
	}
	var server fs.FS
	switch runtime {
	case v1alpha1.RuntimeGo:
		server, err = runtimes.GoSDK()
	case v1alpha1.RuntimeNodeJS:
		server = runtimes.NodeJS()
	default:
		server = runtimes.Python()
	}
	if err != nil {
		return Artifact{}, err
	}
	hash, err := hashOf(server, string(runtime), tool.version, handlerOf(lambda), source.Code, source.Dependencies)
	if err != nil {
		return Artifact{}, err
	}
	artifact := Artifact{Image: v1alpha1.LocalImagePrefix + string(runtime) + ":" + hash, SourceHash: hash, Note: versionNote(lambda, tool)}
	final := filepath.Join(t.config.Dir, string(runtime), hash)
	if _, err := os.Stat(final); err == nil {
		return artifact, nil
	}
	dir, err := os.MkdirTemp(filepath.Join(t.config.Dir, "tmp"), string(runtime)+"-")
	if err != nil {
		return Artifact{}, fmt.Errorf("build lambda %s: %w", lambda.Name, err)
	}
	defer func() { _ = os.RemoveAll(dir) }() // the next start clears what stays
	ctx, cancel := context.WithTimeout(ctx, t.config.Timeout)
	defer cancel()
	switch runtime {
	case v1alpha1.RuntimeGo:
		err = t.buildGo(ctx, dir, lambda, source, server, tool)
	case v1alpha1.RuntimeNodeJS:
		err = t.buildNodeJS(ctx, dir, source, server, tool)
	default:
		err = t.buildPython(ctx, dir, source, server, tool)
	}
	if err != nil {
		return Artifact{}, err
	}
	return artifact, publish(dir, final)
}

// publish moves a finished artifact to its place, where it appears whole or
// not at all.
func publish(dir, final string) error {
	if err := os.MkdirAll(filepath.Dir(final), 0o700); err != nil {
		return fmt.Errorf("store the artifact: %w", err)
	}
	if err := os.Rename(filepath.Join(dir, "artifact"), final); err != nil {
		if _, there := os.Stat(final); there == nil {
			return nil // another build of the same source was faster
		}
		return fmt.Errorf("store the artifact: %w", err)
	}
	return nil
}

func hashOf(server fs.FS, parts ...string) (string, error) {
	hash := sha256.New()
	write := func(text string) { fmt.Fprintf(hash, "%d:%s", len(text), text) }
	for _, part := range parts {
		write(part)
	}
	err := fs.WalkDir(server, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := fs.ReadFile(server, name)
		write(name)
		write(string(data))
		return err
	})
	if err != nil {
		return "", fmt.Errorf("read the embedded runtime: %w", err)
	}
	return hex.EncodeToString(hash.Sum(nil))[:20], nil
}

// writeArtifact lays out dir/artifact with the runtime server and the source.
func writeArtifact(dir string, server fs.FS, sourceName, code string) error {
	artifact := filepath.Join(dir, "artifact")
	if err := os.MkdirAll(filepath.Join(artifact, "source"), 0o700); err != nil {
		return fmt.Errorf("write the artifact: %w", err)
	}
	if server != nil {
		if err := os.CopyFS(filepath.Join(artifact, "runtime"), server); err != nil {
			return fmt.Errorf("write the artifact: %w", err)
		}
	}
	if err := os.WriteFile(filepath.Join(artifact, "source", sourceName), []byte(code), 0o600); err != nil {
		return fmt.Errorf("write the artifact: %w", err)
	}
	return nil
}

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

// ended tells of a deadline or a cancellation, which is no fault of a line in the
// source did.
func ended(ctx context.Context, what string) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return failed("%s did not end in time", what)
	}
	return ctx.Err()
}
