package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/lambdamesh/lambdamesh/meshconfig/ca"
	"github.com/lambdamesh/lambdamesh/meshconfig/members"
	"github.com/lambdamesh/lambdamesh/pkg/sidecar"
)

// sidecarOptions are for the proxies in pods of a mesh without Istio.
type sidecarOptions struct {
	image            string
	requests, limits map[string]string
	xdsAddress       string
}

func (o *sidecarOptions) flags(f *pflag.FlagSet) {
	// What git describe says is no valid tag only where it holds a '+'.
	image := "ghcr.io/lambdamesh/proxy:" + strings.ReplaceAll(version, "+", "-")
	f.StringVar(&o.image, "proxy-image", image, "image of the sidecars of pods: ours, or Envoy's; --mesh=envoy only")
	f.StringToStringVar(&o.requests, "proxy-requests", nil, "resources that a sidecar requests (default cpu=10m,memory=32Mi)")
	f.StringToStringVar(&o.limits, "proxy-limits", nil, "resources that a sidecar is limited to (default memory=256Mi)")
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

// addMembers has pods given what they need to be members.
func addMembers(p *parts, authority *ca.CA) error {
	address := p.sidecars.xdsAddress
	if address == "" {
		address = "controlplane." + p.namespace + ".svc:15010"
	}
	return members.ConfigMaps{Root: authority.Root(), XDSAddress: address, SystemNamespace: p.namespace}.Add(p.manager)
}
