package source

import (
	"errors"
	"fmt"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// Reasons of the SourceReady condition, besides NotSupported.
const (
	ReasonBuilt          = "Built"
	ReasonBuildFailed    = "BuildFailed"
	ReasonRuntimeMissing = "RuntimeMissing"
	ReasonNeedsBuild     = "NeedsBuild"
)

// Error is a reason why a source cannot run that the user can do something
// about.
type Error struct {
	// Reason for the SourceReady condition.
	Reason string
	// Message tells what is wrong, with file and line of the user's source
	// where there is one, and what to do.
	Message string
	// Passing tells that the same source may build later: a download failed, a
	// program was missing, the time ran out.
	Passing bool
}

func (e *Error) Error() string { return e.Message }

// Failed is an error of the source itself: it stays until the source changes.
func Failed(format string, args ...any) error {
	return &Error{Reason: ReasonBuildFailed, Message: fmt.Sprintf(format, args...)}
}

// FailedForNow is an error that may pass by itself.
func FailedForNow(format string, args ...any) error {
	return &Error{Reason: ReasonBuildFailed, Message: fmt.Sprintf(format, args...), Passing: true}
}

// NotSupported is what this version does not implement.
func NotSupported(format string, args ...any) error {
	return &Error{Reason: v1alpha1.ReasonNotSupported, Message: fmt.Sprintf(format, args...)}
}

// Passing tells whether trying again may help: so with every error that is not
// the user's.
func Passing(err error) bool {
	failed := (*Error)(nil)
	return !errors.As(err, &failed) || failed.Passing
}

// ReasonOf returns the condition reason of an error.
func ReasonOf(err error) string {
	if failed := (*Error)(nil); errors.As(err, &failed) {
		return failed.Reason
	}
	return ReasonBuildFailed
}
