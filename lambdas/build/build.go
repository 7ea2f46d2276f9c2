package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/lambdamesh/lambdamesh/lambdas/source"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// Input is all of a Lambda that its build depends on.
type Input struct {
	Runtime v1alpha1.Runtime
	// Version of the language that was asked for; may be empty.
	Version string
	// Handler as the Lambda names it.
	Handler string
	Tree    source.Tree
}

// Product is built code.
type Product struct {
	Runtime v1alpha1.Runtime
	// Version of the language that was asked for; may be empty.
	Version string
	// Hash changes when what runs changes.
	Hash string
	// Dir has the directory source, what the runtime server loads, and with an
	// interpreted language runtime, the server, and packages, what it imports
	// besides; with a compiled one the program lambda.
	Dir string
}

const (
	sourceFolder  = "source"
	runtimeFolder = "runtime"
	program       = "lambda"
)

// Artifact is a product as a pod template needs it.
type Artifact struct {
	// Image for the Deployment.
	Image string
	// SourceHash changes when what runs changes.
	SourceHash string
	// Mounts are directories of files that the image does not hold.
	Mounts []Mount
	// Command starts it; nil for the image's own.
	Command []string
	// Refresh is when to look for a newer state of the source; zero: it does not
	// move.
	Refresh time.Duration
	// Note is worth telling although the build went well, such as another
	// language version than the one asked for.
	Note string
}

// Mount is a directory of a pod.
type Mount struct {
	// Name of the volume.
	Name string
	// Dir is where the container finds it.
	Dir string
	// Files by path.
	Files map[string][]byte
}

// Dir is where a pod finds a product.
const Dir = "/lambda"

// SourceDir is where a pod finds the source that its runtime server loads.
const SourceDir = Dir + "/" + sourceFolder

// interpreter is how an interpreted language starts.
type interpreter struct{ program, entry string }

func interpreterOf(runtime v1alpha1.Runtime) (interpreter, bool) {
	known, interpreted := map[v1alpha1.Runtime]interpreter{
		v1alpha1.RuntimeNodeJS: {"node", "server.mjs"},
		v1alpha1.RuntimePython: {"python3", "server.py"},
	}[runtime]
	return known, interpreted
}

// commandOf starts a product in a pod.
func commandOf(runtime v1alpha1.Runtime) []string {
	if known, interpreted := interpreterOf(runtime); interpreted {
		return []string{known.program, path.Join(Dir, runtimeFolder, known.entry)}
	}
	return []string{path.Join(Dir, program)}
}

// Store makes products available to those who run them.
type Store interface {
	// Takes tells whether products of a runtime can be stored and run at all; asked
	// before anything is built.
	Takes(ctx context.Context, runtime v1alpha1.Runtime) error
	// Put stores a product, unless it is there already.
	Put(ctx context.Context, product Product) (Artifact, error)
}

// Pipeline builds Lambdas.
type Pipeline struct {
	Toolchain *Toolchain
	Store     Store
	// Git reads git sources; nil: they are not supported.
	Git *source.Git
	// Poll is how often git sources are asked for newer commits.
	Poll time.Duration
}

// Build returns the artifact of a Lambda. What the user can put right is a
// [*source.Error].
func (p *Pipeline) Build(ctx context.Context, lambda *v1alpha1.Lambda) (artifact Artifact, err error) {
	if err := p.Store.Takes(ctx, lambda.Spec.Runtime); err != nil {
		return Artifact{}, err
	}
	if lambda.Spec.Source.Git != nil {
		defer func() { artifact.Refresh = p.Poll }()
	}
	tree, note, err := p.tree(ctx, lambda)
	if err != nil {
		return Artifact{}, err
	}
	product, err := p.Toolchain.Build(ctx, Input{Runtime: lambda.Spec.Runtime, Version: lambda.Spec.Version, Handler: handlerOf(lambda), Tree: tree})
	if err != nil {
		return Artifact{}, err
	}
	if artifact, err = p.Store.Put(ctx, product); err == nil {
		artifact.Note = strings.Join(slices.DeleteFunc([]string{note, artifact.Note}, func(note string) bool { return note == "" }), "; ")
	}
	return artifact, err
}

// tree reads the source, and notes which state of it that is.
func (p *Pipeline) tree(ctx context.Context, lambda *v1alpha1.Lambda) (source.Tree, string, error) {
	spec := &lambda.Spec
	switch {
	case spec.Source.Git != nil && p.Git != nil:
		return p.gitTree(ctx, lambda.Namespace, spec.Source.Git)
	case spec.Source.Git != nil:
		return source.Tree{}, "", source.NotSupported("source.git is not supported here; write the code into source.inline.code")
	case spec.Source.Image != nil:
		return source.Tree{}, "", source.NotSupported("source.image is not supported by this version; write the code into source.inline.code")
	case spec.Source.Inline == nil:
		return source.Tree{}, "", source.Failed("the lambda has no source; write the code into source.inline.code")
	}
	tree, err := source.Inline(spec.Runtime, spec.Source.Inline)
	return tree, "", err
}

// gitTimeout bounds reading a repository.
const gitTimeout = 2 * time.Minute

// gitTree reads a commit once. Whether this lambda may read it at all, the
// repository is asked every time.
func (p *Pipeline) gitTree(ctx context.Context, namespace string, spec *v1alpha1.GitSource) (source.Tree, string, error) {
	ctx, cancel := context.WithTimeout(ctx, gitTimeout)
	defer cancel()
	repository, err := p.Git.Open(ctx, namespace, spec)
	if err != nil {
		return source.Tree{}, "", err
	}
	defer repository.Close()
	sum := sha256.Sum256([]byte(spec.URL + "\n" + repository.Commit + "\n" + spec.Directory))
	dir, err := p.Toolchain.cached(ctx, "git", hex.EncodeToString(sum[:])[:20], func(ctx context.Context, dir string) error {
		tree, err := repository.Tree(ctx)
		if err != nil {
			return err
		}
		return tree.Write(dir)
	})
	if err != nil {
		return source.Tree{}, "", err
	}
	tree, err := source.Directory(dir)
	tree.Revision = repository.Commit
	return tree, fmt.Sprintf("commit %.12s", repository.Commit), err
}

func handlerOf(lambda *v1alpha1.Lambda) string {
	if lambda.Spec.Handler == "" {
		return "main"
	}
	return lambda.Spec.Handler
}
