package dev

import (
	"context"
	"fmt"
	"time"

	istioapi "istio.io/api/networking/v1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/connector/authority"
	"github.com/lambdamesh/lambdamesh/meshconfig/ca"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/component"
	"github.com/lambdamesh/lambdamesh/pkg/kube"
)

// systemOwner is the field manager of the system's own objects.
const systemOwner = v1alpha1.ManagedBy + "-dev"

const (
	gatewayName   = "gateway"
	gatewaySecret = "gateway-tls"
	// The ports of the Gateway's servers, as in a cluster; the sockets behind
	// them are those of GatewayAddress and GatewayTLSAddress.
	gatewayPort    = 80
	gatewayTLSPort = 443
)

func systemMeta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name: name, Namespace: v1alpha1.SystemNamespace,
		Labels: map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy},
	}
}

// applySystem makes what an installation in a cluster would: the namespace,
// the service accounts and the gateway.
func applySystem(ctx context.Context, c client.Client) error {
	namespace := systemMeta(v1alpha1.SystemNamespace)
	namespace.Namespace = ""
	objects := []client.Object{&corev1.Namespace{ObjectMeta: namespace}}
	for _, name := range []string{
		v1alpha1.ServiceAccountControlPlane, v1alpha1.ServiceAccountGateway,
		v1alpha1.ServiceAccountEventBus, v1alpha1.ServiceAccountConnector,
	} {
		objects = append(objects, &corev1.ServiceAccount{ObjectMeta: systemMeta(name)})
	}
	gateway := systemMeta(gatewayName)
	gateway.Annotations = map[string]string{v1alpha1.AnnotationDomain: Domain}
	objects = append(objects, &networkingv1.Gateway{
		ObjectMeta: gateway,
		Spec: istioapi.Gateway{
			Selector: map[string]string{"istio": "ingressgateway"},
			Servers: []*istioapi.Server{
				{
					Port:  &istioapi.Port{Number: gatewayPort, Name: "http", Protocol: "HTTP"},
					Hosts: []string{"*"},
				},
				{
					Port:  &istioapi.Port{Number: gatewayTLSPort, Name: "https", Protocol: "HTTPS"},
					Hosts: []string{"*"},
					Tls:   &istioapi.ServerTLSSettings{Mode: istioapi.ServerTLSSettings_SIMPLE, CredentialName: gatewaySecret},
				},
			},
		},
	})
	for _, o := range objects {
		if err := kube.Apply(ctx, c, systemOwner, o); err != nil {
			return err
		}
	}
	return nil
}

// certificateInterval is half the life of a leaf of ours.
const certificateInterval = 12 * time.Hour

// gatewayCertificate keeps a valid certificate in the gateway's Secret. Trust
// the CA's root (<data-dir>/ca), not the certificate: each start makes another.
func gatewayCertificate(c client.Client, authority *ca.CA) component.Component {
	return component.New("gateway-certificate", func(ctx context.Context, ready func()) error {
		ticker := time.NewTicker(certificateInterval)
		defer ticker.Stop()
		for {
			leaf, err := authority.IssueServer(Domain, "*."+Domain, "localhost", "127.0.0.1")
			if err != nil {
				return fmt.Errorf("issue the gateway's certificate: %w", err)
			}
			err = kube.Apply(ctx, c, systemOwner, &corev1.Secret{
				ObjectMeta: systemMeta(gatewaySecret),
				Type:       corev1.SecretTypeTLS,
				Data:       map[string][]byte{corev1.TLSCertKey: leaf.ChainPEM, corev1.TLSPrivateKeyKey: leaf.KeyPEM},
			})
			if err != nil {
				return err
			}
			ready()
			select {
			case <-ctx.Done():
				return nil
			case <-ticker.C:
			}
		}
	})
}

// applicationsAuthority keeps the authority that signs the certificates of paired
// systems, as the control plane of an installation does.
func applicationsAuthority(c client.Client) component.Component {
	return component.New("applications-authority", func(ctx context.Context, ready func()) error {
		for {
			until, err := keepAuthority(ctx, c)
			if err != nil {
				return err
			}
			ready()
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(min(time.Until(until), certificateInterval)):
			}
		}
	})
}

func keepAuthority(ctx context.Context, c client.Client) (until time.Time, err error) {
	secret := &corev1.Secret{ObjectMeta: systemMeta(v1alpha1.SecretConnectorCA), Type: corev1.SecretTypeTLS}
	var have corev1.Secret
	if err := c.Get(ctx, client.ObjectKeyFromObject(secret), &have); client.IgnoreNotFound(err) != nil {
		return until, fmt.Errorf("read the authority of applications: %w", err)
	}
	want, _, until, err := authority.Renew(have.Data, false, time.Now())
	if err != nil || want == nil {
		return until, err
	}
	secret.Data = want
	return until, kube.Apply(ctx, c, systemOwner, secret)
}
