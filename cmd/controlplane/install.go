package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/lambdamesh/lambdamesh/cmd/controlplane/internal/authority"
	"github.com/lambdamesh/lambdamesh/cmd/controlplane/internal/install"
	applications "github.com/lambdamesh/lambdamesh/connector/authority"
	"github.com/lambdamesh/lambdamesh/meshconfig/ca"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// Secrets that an installation needs besides the mesh's CA.
const (
	natsSecret        = "nats"
	natsTLSSecret     = "nats-tls"
	eventBusTLSSecret = "eventbus-tls"
	gatewayTLSSecret  = "gateway-tls"
	connectorTLS      = v1alpha1.SecretConnectorTLS
	webhooksTLS       = v1alpha1.SecretWebhooksTLS
	connectorCA       = v1alpha1.SecretConnectorCA
)

// serverTTL is how long the certificates of servers live that are kept in
// Secrets: twice the time in which they are renewed.
const serverTTL = 90 * 24 * time.Hour

// minOverlap is what kubelets take to bring a changed Secret to its pods.
const minOverlap = 2 * time.Minute

// openAuthority opens the mesh's CA, where anything is signed by it, and has it
// kept as its Secret says.
func (p *parts) openAuthority(ctx context.Context) error {
	if p.mesh != "envoy" && len(p.secrets) == 0 {
		return nil
	}
	if p.overlap < minOverlap {
		return fmt.Errorf("--rotation-overlap %s: at least %s, which it takes until pods have seen a Secret that changed", p.overlap, minOverlap)
	}
	clients, err := kubernetes.NewForConfig(p.manager.GetConfig())
	if err != nil {
		return fmt.Errorf("connect to the API server: %w", err)
	}
	p.authority, err = ca.Open(ctx, ca.Secret(clients.CoreV1().Secrets(p.namespace), ca.SecretName), ca.Config{})
	if err != nil {
		return err
	}
	return authority.Add(p.manager, authority.Config{Namespace: p.namespace, CA: p.authority, Overlap: p.overlap, Log: p.log})
}

// addInstall has the leader keep what --make-secret and --default-gateway-domain
// name.
func addInstall(p *parts) error {
	if len(p.secrets) == 0 && p.domain == "" {
		return nil
	}
	config := install.Config{
		Namespace: p.namespace, Certificates: map[string][]string{}, Authorities: map[string]install.Authority{}, Watched: []string{ca.SecretName},
		Overlap: p.overlap, Log: p.log, Registry: p.registry,
	}
	if p.authority != nil {
		signer := p.authority.Lasting(serverTTL)
		config.Root, config.Changed = signer.Root, signer.Changed
		config.Sign = func(secret string, names ...string) (install.Certificate, error) {
			issue := signer.IssueServer
			if secret == natsTLSSecret {
				issue = signer.IssuePeer // its servers call each other
			}
			leaf, err := issue(names...)
			return install.Certificate{ChainPEM: leaf.ChainPEM, KeyPEM: leaf.KeyPEM}, err
		}
	}
	known := map[string][]string{
		natsTLSSecret:     append(serviceNames("nats", p.namespace), headlessNames("nats-headless", p.namespace)...),
		connectorTLS:      append(serviceNames(v1alpha1.ServiceConnectorPublic, p.namespace), below("connector", p.domain)...),
		webhooksTLS:       append(serviceNames(v1alpha1.ServiceConnectorWebhooks, p.namespace), below("webhooks", p.domain)...),
		eventBusTLSSecret: append(serviceNames("eventbus-public", p.namespace), below("eventbus", p.domain)...),
		gatewayTLSSecret:  append(serviceNames("gateway", p.namespace), below("*", p.domain)...),
	}
	for _, name := range p.secrets {
		names, isCertificate := known[name]
		switch {
		case name == natsSecret:
			config.Credentials = name
		case name == connectorCA:
			config.Authorities[name] = applications.Renew
		case isCertificate:
			config.Certificates[name] = names
		default:
			return fmt.Errorf("--make-secret %q: use some of nats, nats-tls, eventbus-tls, gateway-tls, connector-tls, connector-ca, webhooks-tls", name)
		}
	}
	if p.domain != "" {
		namespace, name, _ := strings.Cut(v1alpha1.DefaultGateway, "/")
		if namespace != p.namespace {
			return fmt.Errorf("--default-gateway-domain: the default Gateway is one of the namespace %s, and --namespace is %s", namespace, p.namespace)
		}
		config.Gateway = &install.Gateway{
			Name: name, Domain: p.domain, Selector: map[string]string{"istio": "lambdamesh-gateway"}, Secret: gatewayTLSSecret,
		}
	}
	return install.Add(p.manager, config)
}

// serviceNames are the names of a Service in a cluster.
func serviceNames(service, namespace string) []string {
	name := service + "." + namespace
	return []string{name + ".svc", name, name + ".svc.cluster.local"}
}

// headlessNames are the names of each pod behind a headless Service.
func headlessNames(service, namespace string) []string {
	names := slices.Clone(serviceNames(service, namespace))
	for i, name := range names {
		names[i] = "*." + name
	}
	return names
}

// below is name.domain, if there is a domain.
func below(name, domain string) []string {
	if domain == "" {
		return nil
	}
	return []string{name + "." + domain}
}
