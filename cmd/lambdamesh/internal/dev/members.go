package dev

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/lambdas/place"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/component"
	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
	"github.com/lambdamesh/lambdamesh/pkg/kube"
	"github.com/lambdamesh/lambdamesh/pkg/proxyauth"
)

// member is a workload of the system that stands behind a sidecar as lambdas
// do: the event bus, the connector.
type member struct {
	// name is its service account, and the value of the label that service
	// selects by.
	name, service   string
	inbound, egress net.Listener
	// secret is what egress asks for: through it everything has the identity of
	// the member.
	secret proxyauth.Secret
	// app is the socket that the workload serves: only its sidecar and this
	// user reach it, so what the sidecar says of the caller can be trusted.
	app net.Listener
}

func newMember(ctx context.Context, name, service, privateDir string) (*member, error) {
	m := &member{name: name, service: service, secret: proxyauth.NewSecret()}
	var err error
	if m.inbound, err = httpserver.Listen(ctx, "127.0.0.1:0", ""); err != nil {
		return nil, err
	}
	if m.egress, err = httpserver.Listen(ctx, "127.0.0.1:0", ""); err != nil {
		return nil, errors.Join(err, m.inbound.Close())
	}
	m.egress = proxyauth.Listen(m.egress, m.secret)
	if m.app, err = httpserver.Listen(ctx, "unix:"+filepath.Join(privateDir, name+".sock"), ""); err != nil {
		return nil, errors.Join(err, m.inbound.Close(), m.egress.Close())
	}
	return m, nil
}

// proxyURL is the workload's way into the mesh; it holds the secret.
func (m *member) proxyURL() string { return m.secret.URL(m.egress.Addr()).String() }

// announce makes the objects by which the control plane knows the member.
func (m *member) announce(ctx context.Context, c client.Client) error {
	service := &corev1.Service{
		ObjectMeta: systemMeta(m.service),
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{v1alpha1.LabelMember: m.name},
			Ports: []corev1.ServicePort{{
				Name: v1alpha1.ServiceHTTPPort, Port: v1alpha1.ServicePort, Protocol: corev1.ProtocolTCP,
				TargetPort: intstr.FromString(v1alpha1.ServiceHTTPPort),
			}},
		},
	}
	if err := kube.Apply(ctx, c, systemOwner, service); err != nil {
		return err
	}
	here := place.Place{
		Name: m.name, Namespace: v1alpha1.SystemNamespace, ServiceAccount: m.name, Labels: map[string]string{v1alpha1.LabelMember: m.name},
		Inbound: portNumber(m.inbound), Egress: portNumber(m.egress), Socket: m.app.Addr().String(),
	}
	for _, o := range []client.Object{here.Entry(), here.Sidecar()} {
		if err := kube.Apply(ctx, c, systemOwner, o); err != nil {
			return err
		}
	}
	return nil
}

// sidecar is the member's proxy as a component.
func (m *member) sidecar(c client.Client, start func(m *member) (component.Component, error)) component.Component {
	return component.New(m.name+"-sidecar", func(ctx context.Context, ready func()) error {
		if err := m.announce(ctx, c); err != nil {
			return fmt.Errorf("announce %s: %w", m.name, err)
		}
		proxy, err := start(m)
		if err != nil {
			return err
		}
		go func() {
			select {
			case <-proxy.Ready():
				ready()
			case <-ctx.Done():
			}
		}()
		return proxy.Run(ctx)
	})
}
