package build

import (
	"context"
	"fmt"
	"testing/fstest"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// Images is the builder of clusters: interpreted source is mounted into a
// runtime image; compiled source needs the image builder.
type Images struct {
	// Registry and repository prefix of the runtime images; the image is
	// <Prefix><runtime>:<tag>.
	Prefix string
	// Tag of the runtime images, used when a lambda names no version; with one
	// the tag is <version>-<Tag>.
	Tag string
}

// Build returns the runtime image and the files to mount.
func (i Images) Build(_ context.Context, lambda *v1alpha1.Lambda) (Artifact, error) {
	source, err := inline(lambda)
	if err != nil {
		return Artifact{}, err
	}
	var name string
	switch lambda.Spec.Runtime {
	case v1alpha1.RuntimeNodeJS:
		name = nodeFile(source.Code)
	case v1alpha1.RuntimePython:
		name = pythonFile
	default:
		return Artifact{}, &Error{Reason: ReasonNeedsBuild, Message: fmt.Sprintf(
			"runtime %s is compiled into an image, and this version has no image builder for clusters; use nodejs or python there", lambda.Spec.Runtime)}
	}
	tag := i.Tag
	if lambda.Spec.Version != "" {
		tag = lambda.Spec.Version + "-" + tag
	}
	hash, err := hashOf(fstest.MapFS{}, string(lambda.Spec.Runtime), handlerOf(lambda), source.Code)
	if err != nil {
		return Artifact{}, err
	}
	return Artifact{Image: i.Prefix + string(lambda.Spec.Runtime) + ":" + tag, SourceHash: hash, Files: map[string]string{name: source.Code}}, nil
}
