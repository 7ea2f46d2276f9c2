package controller

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/eventbus/push"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// ReasonNoReplicas: the lambda of a sink has no replica that answers.
const ReasonNoReplicas = "NoReplicas"

// URLPolicy says which URLs may be called.
type URLPolicy interface {
	CheckURL(url string) error
}

// resolveSink turns a sink into a URL. It fails with a [*refusal] when the sink
// is not there or not allowed.
func resolveSink(ctx context.Context, c client.Reader, policy URLPolicy, namespace string, sink v1alpha1.Sink) (push.Sink, error) {
	switch {
	case sink.Lambda != "":
		return lambdaSink(ctx, c, namespace, sink.Lambda)
	case sink.Service != nil:
		return serviceSink(ctx, c, namespace, sink.Service)
	}
	if err := policy.CheckURL(sink.URI); err != nil {
		return push.Sink{}, refuse(v1alpha1.ReasonTargetRefused, "sink uri: %v", err)
	}
	return push.Sink{URL: sink.URI}, nil
}

func lambdaSink(ctx context.Context, c client.Reader, namespace, name string) (push.Sink, error) {
	var lambda v1alpha1.Lambda
	err := c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &lambda)
	if apierrors.IsNotFound(err) {
		return push.Sink{}, refuse(v1alpha1.ReasonNotFound, "there is no Lambda %s in namespace %s", name, namespace)
	}
	if err != nil {
		return push.Sink{}, fmt.Errorf("read lambda %s/%s: %w", namespace, name, err)
	}
	// Attempts against a lambda that never came up would only use them up.
	// One that scales to zero is woken by the push.
	scalesToZero := lambda.Spec.Scale.Min != nil && *lambda.Spec.Scale.Min == 0
	if lambda.Status.ReadyReplicas == 0 && !scalesToZero {
		return push.Sink{}, refuse(ReasonNoReplicas, "Lambda %s has no ready replica; its events wait", name)
	}
	return push.Sink{URL: "http://" + name + "." + namespace + ".svc/", Mesh: true}, nil
}

func serviceSink(ctx context.Context, c client.Reader, namespace string, sink *v1alpha1.SinkService) (push.Sink, error) {
	if sink.Namespace != "" && sink.Namespace != namespace {
		return push.Sink{}, refuse(v1alpha1.ReasonNotPermitted,
			"Service %s/%s is in another namespace: a sink must be in the Subscription's own", sink.Namespace, sink.Name)
	}
	var service corev1.Service
	err := c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: sink.Name}, &service)
	if apierrors.IsNotFound(err) {
		return push.Sink{}, refuse(v1alpha1.ReasonNotFound, "there is no Service %s in namespace %s", sink.Name, namespace)
	}
	if err != nil {
		return push.Sink{}, fmt.Errorf("read service %s/%s: %w", namespace, sink.Name, err)
	}
	port := sink.Port
	if port == 0 {
		port = v1alpha1.ServicePort
	}
	if !slices.ContainsFunc(service.Spec.Ports, func(p corev1.ServicePort) bool { return p.Port == port }) {
		return push.Sink{}, refuse(v1alpha1.ReasonNotFound, "Service %s has no port %d", sink.Name, port)
	}
	host := sink.Name + "." + namespace + ".svc"
	if port != 80 {
		host = net.JoinHostPort(host, strconv.Itoa(int(port)))
	}
	path := sink.Path
	if path == "" {
		path = "/"
	}
	return push.Sink{URL: "http://" + host + path, Mesh: true}, nil
}
