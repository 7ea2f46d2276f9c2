package build

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"path"

	"github.com/lambdamesh/lambdamesh/lambdas/runtimes"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// Images is the builder of clusters: an interpreted language runs from an image
// that has it, with the source and the runtime server mounted; compiled source
// needs the image builder.
type Images struct {
	// Prefix of the images, which are <Prefix><runtime>:<tag>. Empty: the
	// official ones, docker.io/library/node and python, in their slim variant.
	Prefix string
	// Tag of the images when Prefix is set; with a version in the lambda the tag
	// is <version>-<Tag>.
	Tag string
}

// interpreter is how an interpreted language runs.
type interpreter struct {
	official, version string // image and its tag without a version in the lambda
	program, entry    string
	server            fs.FS
	sourceFile        string
}

// Build returns the image, and the files to mount into it.
func (i Images) Build(_ context.Context, lambda *v1alpha1.Lambda) (Artifact, error) {
	source, err := inline(lambda)
	if err != nil {
		return Artifact{}, err
	}
	var language interpreter
	switch lambda.Spec.Runtime {
	case v1alpha1.RuntimeNodeJS:
		language = interpreter{"docker.io/library/node", "22", "node", "server.mjs", runtimes.NodeJS(), nodeFile(source.Code)}
	case v1alpha1.RuntimePython:
		language = interpreter{"docker.io/library/python", "3.13", "python3", "server.py", runtimes.Python(), pythonFile}
	default:
		return Artifact{}, &Error{Reason: ReasonNeedsBuild, Message: fmt.Sprintf(
			"runtime %s is compiled into an image, and this version has no image builder for clusters; use nodejs or python there", lambda.Spec.Runtime)}
	}
	hash, err := hashOf(language.server, string(lambda.Spec.Runtime), handlerOf(lambda), source.Code)
	if err != nil {
		return Artifact{}, err
	}
	server, err := filesOf(language.server)
	if err != nil {
		return Artifact{}, err
	}
	return Artifact{
		Image: i.image(lambda, language), SourceHash: hash,
		Files: map[string]string{language.sourceFile: source.Code}, Server: server,
		Command: []string{language.program, path.Join(ServerDir, language.entry)},
	}, nil
}

func (i Images) image(lambda *v1alpha1.Lambda, language interpreter) string {
	version := lambda.Spec.Version
	switch {
	case i.Prefix == "":
		return language.official + ":" + cmp.Or(version, language.version) + "-slim"
	case version == "":
		return i.Prefix + string(lambda.Spec.Runtime) + ":" + i.Tag
	}
	return i.Prefix + string(lambda.Spec.Runtime) + ":" + version + "-" + i.Tag
}

func filesOf(tree fs.FS) (map[string]string, error) {
	files := map[string]string{}
	err := fs.WalkDir(tree, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := fs.ReadFile(tree, name)
		files[name] = string(data)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the embedded runtime: %w", err)
	}
	return files, nil
}
