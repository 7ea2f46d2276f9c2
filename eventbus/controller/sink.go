package controller

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/eventbus/dispatch"
	"github.com/lambdamesh/lambdamesh/eventbus/sinkauth"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// ReasonNoReplicas: the lambda of a sink has no replica that answers.
const ReasonNoReplicas = "NoReplicas"

// URLPolicy says which URLs may be called.
type URLPolicy interface {
	CheckURL(url string) error
}

// Auths make what the requests to a sink are known by; *sinkauth.Resolver does.
type Auths interface {
	Resolve(ctx context.Context, sink, namespace string, auth *v1alpha1.SinkAuth) (*sinkauth.Auth, error)
	Forget(sink string)
}

// Names of the two sinks of a Subscription, after its uid.
const (
	sinkOfEvents      = "/sink"
	sinkOfDeadLetters = "/deadLetter"
)

// authorized is resolveSink with what the sink of a Subscription knows the bus by.
func (r *Reconciler) authorized(ctx context.Context, sub *v1alpha1.Subscription, which string, sink v1alpha1.Sink) (dispatch.Sink, error) {
	resolved, err := resolveSink(ctx, r.client, r.policy, sub.Namespace, sink)
	if err != nil {
		return resolved, err
	}
	if sink.Auth == nil {
		r.auths.Forget(string(sub.UID) + which)
		return resolved, nil
	}
	auth, err := r.auths.Resolve(ctx, string(sub.UID)+which, sub.Namespace, sink.Auth)
	if unusable, ok := sinkauth.IsUnusable(err); ok {
		return dispatch.Sink{}, refuse(unusable.Reason, "%s", unusable.Message)
	}
	if err != nil {
		return dispatch.Sink{}, err
	}
	resolved.Auth = auth
	return resolved, nil
}

// lends reports whether Secrets of the namespace are part of a Subscription. They
// are read by name and not watched, so they are read again now and then.
func lends(sub *v1alpha1.Subscription) bool {
	dead := sub.Spec.Delivery.DeadLetter
	return sub.Spec.Sink.Auth != nil || dead != nil && dead.Sink.Auth != nil
}

// resolveSink turns a sink into a URL. It fails with a [*refusal] when the sink
// is not there or not allowed.
func resolveSink(ctx context.Context, c client.Reader, policy URLPolicy, namespace string, sink v1alpha1.Sink) (dispatch.Sink, error) {
	switch {
	case sink.Lambda != "":
		return lambdaSink(ctx, c, policy, namespace, sink.Lambda)
	case sink.Service != nil:
		return serviceSink(ctx, c, policy, namespace, sink.Service)
	}
	return uriSink(ctx, c, policy, namespace, sink.URI)
}

// uriSink holds a URI into the cluster to the rules of the service form, however
// it is spelled.
func uriSink(ctx context.Context, c client.Reader, policy URLPolicy, namespace, uri string) (dispatch.Sink, error) {
	u, err := url.Parse(uri)
	if err != nil || u.Hostname() == "" || u.User != nil {
		return dispatch.Sink{}, refuse(v1alpha1.ReasonTargetRefused, "sink uri: it is refused: it is no URL, or holds user information")
	}
	host := v1alpha1.ClusterHost(u.Hostname())
	if addr, err := netip.ParseAddr(host); err == nil {
		switch owner, err := whoseIs(ctx, c, namespace, addr); {
		case err != nil:
			return dispatch.Sink{}, err
		case owner == anothers:
			return dispatch.Sink{}, refuse(v1alpha1.ReasonNotPermitted, "sink uri: %s is refused: it is in another namespace, and a sink must be in the Subscription's own", host)
		case owner != nobodys:
			return dispatch.Sink{}, refuse(v1alpha1.ReasonTargetRefused, "sink uri: %s is refused: it is an address in the cluster: name its Service as sink.service", host)
		}
	}
	service, inCluster := v1alpha1.ParseServiceURI(uri)
	if inCluster && !service.Qualified {
		if inCluster, err = exists(ctx, c, service.Namespace, service.Name); err != nil {
			return dispatch.Sink{}, err
		}
	}
	switch {
	case inCluster && service.Namespace != namespace:
		return dispatch.Sink{}, refuse(v1alpha1.ReasonNotPermitted, "sink uri: Service %s/%s is in another namespace: a sink must be in the Subscription's own", service.Namespace, service.Name)
	case inCluster && service.Encrypted:
		return dispatch.Sink{}, refuse(v1alpha1.ReasonTargetRefused, "sink uri: it is refused: Services of the cluster are called through the mesh, which encrypts; write http")
	case inCluster && service.Port == 0:
		return dispatch.Sink{}, refuse(v1alpha1.ReasonTargetRefused, "sink uri: the port %q is not one of 1 to 65535", u.Port())
	case inCluster:
		return serviceSink(ctx, c, policy, namespace, &v1alpha1.SinkService{ServiceRef: service.ServiceRef, Path: service.Path})
	case strings.HasSuffix(host, ".svc"), host != strings.ToLower(strings.TrimSuffix(u.Hostname(), ".")): // a pod's name, and whatever else ends in the cluster's domain
		return dispatch.Sink{}, refuse(v1alpha1.ReasonTargetRefused, "sink uri: %s is refused: it is a name in the cluster: name its Service as sink.service", u.Hostname())
	}
	if err := policy.CheckURL(uri); err != nil {
		return dispatch.Sink{}, refuse(v1alpha1.ReasonTargetRefused, "sink uri: %v", err)
	}
	return dispatch.Sink{URL: uri}, nil
}

// exists reports whether there is a Service.
func exists(ctx context.Context, c client.Reader, namespace, name string) (bool, error) {
	var service corev1.Service
	err := c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &service)
	if client.IgnoreNotFound(err) != nil {
		return false, fmt.Errorf("read service %s/%s: %w", namespace, name, err)
	}
	return err == nil, nil
}

func lambdaSink(ctx context.Context, c client.Reader, policy URLPolicy, namespace, name string) (dispatch.Sink, error) {
	var lambda v1alpha1.Lambda
	err := c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &lambda)
	if apierrors.IsNotFound(err) {
		return dispatch.Sink{}, refuse(v1alpha1.ReasonNotFound, "there is no Lambda %s in namespace %s", name, namespace)
	}
	if err != nil {
		return dispatch.Sink{}, fmt.Errorf("read lambda %s/%s: %w", namespace, name, err)
	}
	// Attempts against a lambda that never came up would only use them up.
	// One that scales to zero is woken by the push.
	scalesToZero := lambda.Spec.Scale.Min != nil && *lambda.Spec.Scale.Min == 0
	if lambda.Status.ReadyReplicas == 0 && !scalesToZero {
		return dispatch.Sink{}, refuse(ReasonNoReplicas, "Lambda %s has no ready replica; its events wait", name)
	}
	var service corev1.Service
	switch err := c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &service); {
	case client.IgnoreNotFound(err) != nil:
		return dispatch.Sink{}, fmt.Errorf("read service %s/%s: %w", namespace, name, err)
	case err == nil:
		if err := checkService(ctx, c, policy, &service); err != nil {
			return dispatch.Sink{}, err
		}
	}
	return dispatch.Sink{URL: "http://" + name + "." + namespace + ".svc/", Mesh: true}, nil
}

func serviceSink(ctx context.Context, c client.Reader, policy URLPolicy, namespace string, sink *v1alpha1.SinkService) (dispatch.Sink, error) {
	if sink.Namespace != "" && sink.Namespace != namespace {
		return dispatch.Sink{}, refuse(v1alpha1.ReasonNotPermitted,
			"Service %s/%s is in another namespace: a sink must be in the Subscription's own", sink.Namespace, sink.Name)
	}
	var service corev1.Service
	err := c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: sink.Name}, &service)
	if apierrors.IsNotFound(err) {
		return dispatch.Sink{}, refuse(v1alpha1.ReasonNotFound, "there is no Service %s in namespace %s", sink.Name, namespace)
	}
	if err != nil {
		return dispatch.Sink{}, fmt.Errorf("read service %s/%s: %w", namespace, sink.Name, err)
	}
	if err := checkService(ctx, c, policy, &service); err != nil {
		return dispatch.Sink{}, err
	}
	port := sink.Port
	if port == 0 {
		port = v1alpha1.ServicePort
	}
	if !slices.ContainsFunc(service.Spec.Ports, func(p corev1.ServicePort) bool { return p.Port == port }) {
		return dispatch.Sink{}, refuse(v1alpha1.ReasonNotFound, "Service %s has no port %d", sink.Name, port)
	}
	host := sink.Name + "." + namespace + ".svc"
	if port != 80 {
		host = net.JoinHostPort(host, strconv.Itoa(int(port)))
	}
	path := sink.Path
	if path == "" {
		path = "/"
	}
	return dispatch.Sink{URL: "http://" + host + path, Mesh: true}, nil
}
