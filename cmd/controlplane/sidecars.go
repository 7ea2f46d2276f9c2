package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/lambdamesh/lambdamesh/meshconfig/members"
	"github.com/lambdamesh/lambdamesh/pkg/component"
	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
	"github.com/lambdamesh/lambdamesh/pkg/sidecar"
)

// sidecarOptions are for the proxies in pods of a mesh without Istio.
type sidecarOptions struct {
	image            string
	requests, limits map[string]string
	xdsAddress       string
	webhookAddress   string
}

func (o *sidecarOptions) flags(f *pflag.FlagSet) {
	// What git describe says is no valid tag only where it holds a '+'.
	image := "ghcr.io/lambdamesh/proxy:" + strings.ReplaceAll(version, "+", "-")
	f.StringVar(&o.image, "proxy-image", image, "image of the sidecars of pods: ours, or Envoy's; --mesh=envoy only")
	f.StringToStringVar(&o.requests, "proxy-requests", nil, "resources that a sidecar requests (default cpu=10m,memory=32Mi)")
	f.StringToStringVar(&o.limits, "proxy-limits", nil, "resources that a sidecar is limited to (default memory=256Mi)")
	f.StringVar(&o.webhookAddress, "webhook-address", "", "where the API server asks for sidecars of pods with the label lambdamesh.dev/sidecar (HTTPS); empty: nowhere; --mesh=envoy only")
	f.StringVar(&o.xdsAddress, "proxy-xds-address", "", "host:port at which sidecars of every namespace find --xds-address (default controlplane.<namespace>.svc:15010); its host must be a name of the ADS server's certificate")
}

// config of all sidecars.
func (o *sidecarOptions) config() (*sidecar.Config, error) {
	config := &sidecar.Config{Image: o.image, Resources: sidecar.DefaultResources()}
	if o.image == "" {
		return nil, errors.New("--proxy-image: name the image of sidecars")
	}
	for _, set := range []struct {
		flag   string
		values map[string]string
		to     corev1.ResourceList
	}{{"--proxy-requests", o.requests, config.Resources.Requests}, {"--proxy-limits", o.limits, config.Resources.Limits}} {
		for name, text := range set.values {
			quantity, err := resource.ParseQuantity(text)
			if err != nil {
				return nil, fmt.Errorf("%s %s=%s: %w", set.flag, name, text, err)
			}
			set.to[corev1.ResourceName(name)] = quantity
		}
	}
	return config, nil
}

// addMembers has pods given what they need to be members, and returns what serves
// for that. names are those of the control plane's certificates.
func addMembers(ctx context.Context, p *parts, names []string) ([]component.Component, error) {
	address := p.sidecars.xdsAddress
	if address == "" {
		address = "controlplane." + p.namespace + ".svc:15010"
	}
	maps := members.ConfigMaps{CA: p.authority, XDSAddress: address, SystemNamespace: p.namespace}
	if err := maps.Add(p.manager); err != nil || p.sidecars.webhookAddress == "" {
		return nil, err
	}
	if err := members.AddTrust(p.manager, p.authority); err != nil {
		return nil, err
	}
	listener, err := httpserver.Listen(ctx, p.sidecars.webhookAddress, "--webhook-address")
	if err != nil {
		return nil, err
	}
	server, err := members.Webhook{Listener: listener, CA: p.authority, ServerNames: names, Sidecar: *p.sidecar, Log: p.log}.Server()
	if err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	return []component.Component{server}, nil
}
