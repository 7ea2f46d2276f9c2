package v1alpha1

import (
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// ServiceURI is a URI that names a Service by its name in the cluster. Whatever
// lets the event bus in reads a URI as the event bus does.
// +kubebuilder:object:generate=false
type ServiceURI struct {
	// ServiceRef has a namespace always, and port 0 when the URI's is none.
	ServiceRef
	// Encrypted: the scheme is https.
	Encrypted bool
	// Path is escaped, with the query.
	Path string
	// Qualified: the name ends in svc. Others are Services only where there is one.
	Qualified bool
}

// ParseServiceURI reads the host of a URI as a resolver in the cluster does
// before it looks outside: name.namespace.svc, name.namespace, or the name of a
// Service beside the event bus.
func ParseServiceURI(uri string) (ServiceURI, bool) {
	u, err := url.Parse(uri)
	if err != nil || u.User != nil || u.Scheme != "http" && u.Scheme != "https" {
		return ServiceURI{}, false
	}
	name, namespace, qualified, ok := ServiceHost(u.Hostname())
	if !ok {
		return ServiceURI{}, false
	}
	service := ServiceURI{
		ServiceRef: ServiceRef{Namespace: namespace, Name: name, Port: ServicePort},
		Encrypted:  u.Scheme == "https", Path: u.EscapedPath(), Qualified: qualified,
	}
	if text := u.Port(); text != "" {
		port, err := strconv.ParseUint(text, 10, 16)
		if err != nil {
			port = 0
		}
		service.Port = int32(port) //nolint:gosec // 16 bits
	}
	if service.Path == "" {
		service.Path = "/"
	}
	if u.RawQuery != "" {
		service.Path += "?" + u.RawQuery
	}
	return service, true
}

// ServiceHost takes the Service out of a host name; see [ParseServiceURI].
func ServiceHost(host string) (name, namespace string, qualified, ok bool) {
	host = ClusterHost(host)
	if _, err := netip.ParseAddr(host); err == nil {
		return "", "", false, false
	}
	name, namespace, found := strings.Cut(host, ".")
	if !found {
		namespace = SystemNamespace
	}
	namespace, qualified = strings.CutSuffix(namespace, ".svc")
	return name, namespace, qualified, name != "" && namespace != "" && !strings.Contains(namespace, ".")
}

// ClusterHost is a host name in lower case, without its final dot and the
// cluster's domain.
func ClusterHost(host string) string {
	return strings.TrimSuffix(strings.ToLower(strings.TrimSuffix(host, ".")), ".cluster.local")
}

// ServiceIn is the Service of a namespace that a Subscription there names, as
// service or as uri, nil when it names none.
func (s Sink) ServiceIn(namespace string) *ServiceRef {
	ref := ServiceRef{}
	switch service, isService := ParseServiceURI(s.URI); {
	case s.Service != nil:
		ref = s.Service.ServiceRef
	case isService && !service.Encrypted && service.Port > 0:
		ref = service.ServiceRef
	default:
		return nil
	}
	if ref.Namespace != "" && ref.Namespace != namespace {
		return nil
	}
	ref.Namespace = namespace
	if ref.Port == 0 {
		ref.Port = ServicePort
	}
	return &ref
}
