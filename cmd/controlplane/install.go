package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/lambdamesh/lambdamesh/cmd/controlplane/internal/install"
	"github.com/lambdamesh/lambdamesh/meshconfig/ca"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// Secrets that an installation needs besides the mesh's CA.
const (
	natsSecret        = "nats"
	natsTLSSecret     = "nats-tls"
	eventBusTLSSecret = "eventbus-tls"
	gatewayTLSSecret  = "gateway-tls"
)

// serverTTL is how long the certificates of servers live that are kept in
// Secrets: twice the time in which they are renewed.
const serverTTL = 90 * 24 * time.Hour

// addInstall has the leader keep what --make-secret and --default-gateway-domain
// name.
func addInstall(ctx context.Context, p *parts) error {
	if len(p.secrets) == 0 && p.domain == "" {
		return nil
	}
	clients, err := kubernetes.NewForConfig(p.manager.GetConfig())
	if err != nil {
		return fmt.Errorf("connect to the API server: %w", err)
	}
	authority, err := ca.Open(ctx, ca.Secret(clients.CoreV1().Secrets(p.namespace), ca.SecretName), ca.Config{LeafTTL: serverTTL})
	if err != nil {
		return err
	}
	config := install.Config{
		Namespace: p.namespace, Root: authority.Root(), Certificates: map[string][]string{}, Watched: []string{ca.SecretName},
		Log: p.log, Registry: p.registry,
		Sign: func(secret string, names ...string) (install.Certificate, error) {
			issue := authority.IssueServer
			if secret == natsTLSSecret {
				issue = authority.IssuePeer // its servers call each other
			}
			leaf, err := issue(names...)
			return install.Certificate{ChainPEM: leaf.ChainPEM, KeyPEM: leaf.KeyPEM}, err
		},
	}
	known := map[string][]string{
		natsTLSSecret:     append(serviceNames("nats", p.namespace), headlessNames("nats-headless", p.namespace)...),
		eventBusTLSSecret: append(serviceNames("eventbus-public", p.namespace), below("eventbus", p.domain)...),
		gatewayTLSSecret:  append(serviceNames("gateway", p.namespace), below("*", p.domain)...),
	}
	for _, name := range p.secrets {
		names, isCertificate := known[name]
		switch {
		case name == natsSecret:
			config.Credentials = name
		case isCertificate:
			config.Certificates[name] = names
		default:
			return fmt.Errorf("--make-secret %q: use some of nats, nats-tls, eventbus-tls, gateway-tls", name)
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
