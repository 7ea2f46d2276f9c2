package ingress

import (
	"errors"
	"net/http"
	"regexp"
	"slices"

	"github.com/lambdamesh/lambdamesh/eventbus/event"
	"github.com/lambdamesh/lambdamesh/eventbus/tokens"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
)

// errNoVerdict: whoever knows the callers could not be asked.
var errNoVerdict = errors.New("the caller could not be checked")

// Authorizer tells who makes a request. It fails with
// [tokens.ErrUnauthenticated] or [tokens.ErrTooMany], or with another error when it could not find out.
type Authorizer interface {
	Authorize(r *http.Request) (Caller, error)
}

// Caller is somebody who publishes, and what they may publish.
type Caller struct {
	// Name for logs, and of whom the memory counts that requests take.
	Name string
	// Source the caller may publish: its own, /<namespace>/<name>.
	Source string
	// Applications are allowed to the connector: it publishes on their behalf.
	Applications bool
	// PublishesFor tells the sources of applications that name the caller as a
	// publisher; nil: none do.
	PublishesFor func(source string) bool
	// Everything is allowed on an open listener.
	Everything bool
}

// MayPublish reports whether the caller may publish events of source.
func (c Caller) MayPublish(source string) bool {
	switch {
	case c.Everything:
		return true
	case c.Source != "" && c.Source == source, c.Applications && IsApplication(source):
		return true
	}
	// A workload's source is its own, whatever an application says.
	_, _, ofWorkload := event.WorkloadOf(source)
	return !ofWorkload && source != "" && c.PublishesFor != nil && c.PublishesFor(source)
}

var applicationName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// IsApplication reports whether name can be that of an application. The first
// parts of the bus's and the connector's own paths cannot.
func IsApplication(name string) bool {
	return applicationName.MatchString(name) && !slices.Contains([]string{"v1", "publish", "webhooks", "admin"}, name)
}

// Open lets everybody publish everything. Use it on loopback, behind
// [httpserver.BrowserGuard].
type Open struct{}

// Authorize implements [Authorizer].
func (Open) Authorize(*http.Request) (Caller, error) {
	return Caller{Name: "anybody", Everything: true}, nil
}

// Mesh knows callers by the identity their sidecar has proved
// (X-Forwarded-Client-Cert). Use it only behind a sidecar.
type Mesh struct {
	TrustDomain string
	// Everything lists SPIFFE IDs that may publish any source.
	Everything []string
	// Publishers tells whether an application names a workload as a publisher;
	// nil: none do.
	Publishers Publishers
}

// Publishers tells whether the workload with this service account publishes for
// the application that owns the source.
type Publishers func(source, namespace, serviceAccount string) bool

// workload is the caller with this service account.
func workload(name, namespace, account string, publishers Publishers) Caller {
	c := Caller{
		Name:         name,
		Source:       v1alpha1.LambdaSource(namespace, account),
		Applications: namespace == v1alpha1.SystemNamespace && account == v1alpha1.ServiceAccountConnector,
	}
	if publishers != nil {
		c.PublishesFor = func(source string) bool { return publishers(source, namespace, account) }
	}
	return c
}

// Authorize implements [Authorizer].
func (m Mesh) Authorize(r *http.Request) (Caller, error) {
	id, ok := httpserver.ClientIdentity(r)
	if !ok {
		return Caller{}, tokens.ErrUnauthenticated
	}
	namespace, account, ok := httpserver.Workload(m.TrustDomain, id)
	if !ok {
		return Caller{}, tokens.ErrUnauthenticated
	}
	caller := workload(id, namespace, account, m.Publishers)
	caller.Everything = slices.Contains(m.Everything, id)
	return caller, nil
}
