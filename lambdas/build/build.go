package build

import (
	"errors"
	"fmt"
	"strings"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// Artifact is built source.
type Artifact struct {
	// Image for the Deployment: an image reference, or
	// lambdamesh.local/<runtime>:<hash> for one in the local store.
	Image string
	// SourceHash changes when what runs changes.
	SourceHash string
	// Files to mount as the source directory, by name; nil when the image holds
	// the source.
	Files map[string]string
	// Server are files to mount as [ServerDir], by path: the runtime server, for
	// an image that has only the language. Nil when the image holds it.
	Server map[string]string
	// Command starts it; nil for the image's own.
	Command []string
	// Note is worth telling although the build went well, such as another
	// language version than the one asked for.
	Note string
}

// ServerDir is where a pod finds the files of Artifact.Server.
const ServerDir = "/lambda/runtime"

// Reasons of the SourceReady condition, besides NotSupported.
const (
	ReasonBuilt          = "Built"
	ReasonBuildFailed    = "BuildFailed"
	ReasonRuntimeMissing = "RuntimeMissing"
	ReasonNeedsBuild     = "NeedsBuild"
)

// Error is a build that failed for a reason the user can do something about.
type Error struct {
	// Reason for the SourceReady condition.
	Reason string
	// Message tells what is wrong, with file and line of the user's source
	// where there is one, and what to do.
	Message string
}

func (e *Error) Error() string { return e.Message }

// Permanent tells that building the same source again gives the same error.
func (e *Error) Permanent() bool { return e.Reason != ReasonRuntimeMissing }

// ReasonOf returns the condition reason of a build error.
func ReasonOf(err error) string {
	if failed := (*Error)(nil); errors.As(err, &failed) {
		return failed.Reason
	}
	return ReasonBuildFailed
}

func failed(format string, args ...any) error {
	return &Error{Reason: ReasonBuildFailed, Message: fmt.Sprintf(format, args...)}
}

func notSupported(format string, args ...any) error {
	return &Error{Reason: v1alpha1.ReasonNotSupported, Message: fmt.Sprintf(format, args...)}
}

// inline returns the lambda's inline source, or why this version cannot build
// it.
func inline(lambda *v1alpha1.Lambda) (*v1alpha1.InlineSource, error) {
	spec := &lambda.Spec
	switch spec.Runtime {
	case v1alpha1.RuntimeGo, v1alpha1.RuntimeNodeJS, v1alpha1.RuntimePython:
	default:
		return nil, notSupported("runtime %q is not supported by this version; use go, nodejs or python", spec.Runtime)
	}
	switch {
	case spec.Source.Git != nil:
		return nil, notSupported("source.git is not supported by this version; write the code into source.inline.code")
	case spec.Source.Image != nil:
		return nil, notSupported("source.image is not supported by this version; write the code into source.inline.code")
	case spec.Source.Inline == nil:
		return nil, failed("the lambda has no source; write the code into source.inline.code")
	}
	if strings.TrimSpace(spec.Source.Inline.Dependencies) != "" && spec.Runtime != v1alpha1.RuntimeGo {
		return nil, notSupported("source.inline.dependencies for %s are not supported by this version; use what comes with the language", spec.Runtime)
	}
	return spec.Source.Inline, nil
}

func handlerOf(lambda *v1alpha1.Lambda) string {
	if lambda.Spec.Handler == "" {
		return "main"
	}
	return lambda.Spec.Handler
}
