package controller

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
)

// The cluster's own addresses are reached as Services, under the rules of their
// namespaces, and never as URIs: not by a name, and not by an address.

// byAddress indexes Services and EndpointSlices by their addresses.
const byAddress = "address"

// sliceController manages the EndpointSlices of Services with a selector. Who
// writes others under its name has them put right by it.
const sliceController = "endpointslice-controller.k8s.io"

func managed(slice *discoveryv1.EndpointSlice) bool {
	return slice.Labels[discoveryv1.LabelManagedBy] == sliceController
}

// IndexAddresses prepares a cache for [DirectDial] and for the controller.
func IndexAddresses(ctx context.Context, indexer client.FieldIndexer) error {
	return errors.Join(
		indexer.IndexField(ctx, &corev1.Service{}, byAddress, func(o client.Object) []string {
			service, ok := o.(*corev1.Service)
			if !ok {
				return nil
			}
			return slices.DeleteFunc(slices.Clone(service.Spec.ClusterIPs), func(ip string) bool { return ip == corev1.ClusterIPNone })
		}),
		indexer.IndexField(ctx, &discoveryv1.EndpointSlice{}, byAddress, func(o client.Object) []string {
			slice, ok := o.(*discoveryv1.EndpointSlice)
			if !ok || !managed(slice) { // a tenant's own would claim the addresses of others
				return nil
			}
			var all []string
			for i := range slice.Endpoints {
				all = append(all, slice.Endpoints[i].Addresses...)
			}
			return all
		}),
	)
}

// namespaceOf returns the namespace of the Service or the pod that has the
// address; "" when it is none of the cluster's.
func namespaceOf(ctx context.Context, c client.Reader, addr netip.Addr) (string, error) {
	match := client.MatchingFields{byAddress: addr.Unmap().String()}
	var services corev1.ServiceList
	if err := c.List(ctx, &services, match, client.UnsafeDisableDeepCopy); err != nil {
		return "", fmt.Errorf("look for the Service with the address %s: %w", addr, err)
	}
	for i := range services.Items {
		return services.Items[i].Namespace, nil
	}
	var pods discoveryv1.EndpointSliceList
	if err := c.List(ctx, &pods, match, client.UnsafeDisableDeepCopy); err != nil {
		return "", fmt.Errorf("look for the endpoint with the address %s: %w", addr, err)
	}
	for i := range pods.Items {
		return pods.Items[i].Namespace, nil
	}
	return "", nil
}

const dialTimeout = 5 * time.Second

// DirectDial dials addresses that are not the cluster's own; it goes under a
// policy, which has resolved and checked them.
func DirectDial(c client.Reader) targets.DialFunc {
	base := (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		at, err := netip.ParseAddrPort(address)
		if err != nil {
			return nil, fmt.Errorf("dial %s: %w", address, err)
		}
		switch namespace, err := namespaceOf(ctx, c, at.Addr()); {
		case err != nil:
			return nil, err
		case namespace != "":
			return nil, &targets.RefusedError{Target: address, Why: "it is in namespace " + namespace + " of the cluster: name its Service as sink.service"}
		}
		return base(ctx, network, address)
	}
}

// MeshDial dials Services by the address that the API server gave them, and not
// by what DNS makes of their names: an ExternalName leads anywhere. It is for a
// bus whose traffic is captured by its sidecar.
func MeshDial(c client.Reader, base targets.DialFunc) targets.DialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, fmt.Errorf("dial %s: %w", address, err)
		}
		name, namespace, ok := serviceName(host)
		if !ok {
			return nil, &targets.RefusedError{Target: address, Why: "it is no Service"}
		}
		addresses, err := addressesOf(ctx, c, namespace, name)
		if err != nil {
			return nil, err
		}
		if len(addresses) == 0 {
			return nil, fmt.Errorf("dial %s: the Service has no address", address)
		}
		var errs []error
		for _, ip := range addresses {
			conn, err := base(ctx, network, net.JoinHostPort(ip, port))
			if err == nil {
				return conn, nil
			}
			errs = append(errs, err)
		}
		return nil, errors.Join(errs...)
	}
}

func addressesOf(ctx context.Context, c client.Reader, namespace, name string) ([]string, error) {
	var service corev1.Service
	if err := c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &service); err != nil {
		return nil, fmt.Errorf("read service %s/%s: %w", namespace, name, err)
	}
	switch {
	case service.Spec.Type == corev1.ServiceTypeExternalName:
		return nil, &targets.RefusedError{Target: name + "." + namespace + ".svc", Why: "it is an ExternalName"}
	case service.Spec.ClusterIP != corev1.ClusterIPNone:
		return service.Spec.ClusterIPs, nil
	}
	var list discoveryv1.EndpointSliceList
	err := c.List(ctx, &list, client.InNamespace(namespace), client.MatchingLabels{discoveryv1.LabelServiceName: name}, client.UnsafeDisableDeepCopy)
	if err != nil {
		return nil, fmt.Errorf("list the endpoints of service %s/%s: %w", namespace, name, err)
	}
	var all []string
	for i := range list.Items {
		for _, endpoint := range list.Items[i].Endpoints {
			if managed(&list.Items[i]) && (endpoint.Conditions.Ready == nil || *endpoint.Conditions.Ready) {
				all = append(all, endpoint.Addresses...)
			}
		}
	}
	return all, nil
}

// serviceName takes the Service out of its name in the cluster's DNS: name.namespace.svc.
func serviceName(host string) (name, namespace string, ok bool) {
	parts := strings.Split(clusterName(host), ".")
	if len(parts) != 3 || parts[2] != "svc" {
		return "", "", false
	}
	return parts[0], parts[1], true
}

// clusterName is a host name in lower case, without its final dot and the
// cluster's domain.
func clusterName(host string) string {
	return strings.TrimSuffix(strings.ToLower(strings.TrimSuffix(host, ".")), ".cluster.local")
}

// checkService refuses a Service that leads out of its namespace: its endpoints
// must be pods that it selects, or what a URI may name, too.
func checkService(ctx context.Context, c client.Reader, policy URLPolicy, service *corev1.Service) error {
	if service.Spec.Type == corev1.ServiceTypeExternalName {
		return refuse(v1alpha1.ReasonTargetRefused, "Service %s is an ExternalName: write the URL as sink.uri, so that the allowed targets decide", service.Name)
	}
	var list discoveryv1.EndpointSliceList
	err := c.List(ctx, &list, client.InNamespace(service.Namespace), client.MatchingLabels{discoveryv1.LabelServiceName: service.Name})
	if err != nil {
		return fmt.Errorf("list the endpoints of service %s/%s: %w", service.Namespace, service.Name, err)
	}
	for i := range list.Items {
		slice := &list.Items[i]
		if len(service.Spec.Selector) > 0 && managed(slice) {
			continue
		}
		for _, endpoint := range slice.Endpoints {
			for _, address := range endpoint.Addresses {
				if err := checkEndpoint(ctx, c, policy, service, slice, address); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func checkEndpoint(ctx context.Context, c client.Reader, policy URLPolicy, service *corev1.Service, slice *discoveryv1.EndpointSlice, address string) error {
	addr, err := netip.ParseAddr(address)
	if err != nil {
		return refuse(v1alpha1.ReasonTargetRefused, "Service %s: the EndpointSlice %s names %s, which is no IP address", service.Name, slice.Name, address)
	}
	switch namespace, err := namespaceOf(ctx, c, addr); {
	case err != nil:
		return err
	case namespace != "" && namespace != service.Namespace:
		return refuse(v1alpha1.ReasonNotPermitted, "Service %s: the EndpointSlice %s leads to %s in another namespace: a sink must be in the Subscription's own", service.Name, slice.Name, address)
	case namespace == service.Namespace:
		return nil
	}
	ports := []int32{80}
	if len(slice.Ports) > 0 {
		ports = nil
	}
	for _, p := range slice.Ports {
		if p.Port != nil {
			ports = append(ports, *p.Port)
		}
	}
	for _, port := range ports {
		if err := policy.CheckURL("http://" + net.JoinHostPort(address, strconv.Itoa(int(port)))); err != nil {
			return refuse(v1alpha1.ReasonTargetRefused, "Service %s: the EndpointSlice %s: %v", service.Name, slice.Name, err)
		}
	}
	return nil
}
