package controller

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
)

// The cluster's own addresses are reached as Services, under the rules of their
// namespaces, and never as URIs: not by a name, and not by an address.

// byAddress indexes Services, pods and EndpointSlices by their addresses, bySink
// Subscriptions by what their URIs may turn out to be in the cluster.
const (
	byAddress = "address"
	bySink    = "sink"
)

// ConfigureCache keeps of a pod only what tells whose its addresses are.
func ConfigureCache(options *cache.Options) {
	if options.ByObject == nil {
		options.ByObject = map[client.Object]cache.ByObject{}
	}
	options.ByObject[&corev1.Pod{}] = cache.ByObject{Transform: func(obj any) (any, error) {
		pod, ok := obj.(*corev1.Pod)
		if !ok {
			return obj, nil
		}
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, ResourceVersion: pod.ResourceVersion},
			Spec:       corev1.PodSpec{HostNetwork: pod.Spec.HostNetwork},
			Status:     corev1.PodStatus{Phase: pod.Status.Phase, PodIPs: pod.Status.PodIPs},
		}, nil
	}}
}

// IndexAddresses prepares a cache for [DirectDial] and for the controller.
func IndexAddresses(ctx context.Context, indexer client.FieldIndexer) error {
	var errs []error
	for _, object := range []client.Object{&corev1.Service{}, &corev1.Pod{}, &discoveryv1.EndpointSlice{}} {
		errs = append(errs, indexer.IndexField(ctx, object, byAddress, addresses))
	}
	return errors.Join(errs...)
}

// addresses are those that a Service or a pod has, and those that an
// EndpointSlice names.
func addresses(object client.Object) []string {
	var all []string
	add := func(text string) {
		if addr, err := netip.ParseAddr(text); err == nil { // not "None"
			all = append(all, targets.Canonical(addr).String())
		}
	}
	switch o := object.(type) {
	case *corev1.Service:
		for _, ip := range o.Spec.ClusterIPs {
			add(ip)
		}
	case *corev1.Pod:
		// The node's address is no pod's, and one that has ended gave its back.
		if o.Spec.HostNetwork || o.Status.Phase == corev1.PodSucceeded || o.Status.Phase == corev1.PodFailed {
			return nil
		}
		for _, ip := range o.Status.PodIPs {
			add(ip.IP)
		}
	case *discoveryv1.EndpointSlice:
		for i := range o.Endpoints {
			for _, ip := range o.Endpoints[i].Addresses {
				add(ip)
			}
		}
	}
	return all
}

// sinks are the addresses and the Services that a Subscription's URIs name, also
// those that are not there yet: a Service may take a name that led elsewhere.
func sinks(object client.Object) []string {
	sub, ok := object.(*v1alpha1.Subscription)
	if !ok {
		return nil
	}
	uris := []string{sub.Spec.Sink.URI}
	if dead := sub.Spec.Delivery.DeadLetter; dead != nil {
		uris = append(uris, dead.Sink.URI)
	}
	var all []string
	for _, uri := range uris {
		u, err := url.Parse(uri)
		if err != nil || u.Hostname() == "" {
			continue
		}
		host := v1alpha1.ClusterHost(u.Hostname())
		if addr, err := netip.ParseAddr(host); err == nil {
			all = append(all, targets.Canonical(addr).String())
			continue
		}
		if name, namespace, _, ok := v1alpha1.ServiceHost(host); ok {
			all = append(all, name+"."+namespace)
		}
	}
	return all
}

func having(addr netip.Addr) client.MatchingFields {
	return client.MatchingFields{byAddress: targets.Canonical(addr).String()}
}

// owners are the Services and the pods that have an address; none when it is not
// the cluster's. EndpointSlices are not asked: whoever may write one may name any
// address in it, under any label.
type owners struct{ services, pods []types.NamespacedName }

func ownersOf(ctx context.Context, c client.Reader, addr netip.Addr) (owners, error) {
	var services corev1.ServiceList
	if err := c.List(ctx, &services, having(addr), client.UnsafeDisableDeepCopy); err != nil {
		return owners{}, fmt.Errorf("look for the Service with the address %s: %w", addr, err)
	}
	var pods corev1.PodList
	if err := c.List(ctx, &pods, having(addr), client.UnsafeDisableDeepCopy); err != nil {
		return owners{}, fmt.Errorf("look for the pod with the address %s: %w", addr, err)
	}
	var found owners
	for i := range services.Items {
		found.services = append(found.services, client.ObjectKeyFromObject(&services.Items[i]))
	}
	for i := range pods.Items {
		found.pods = append(found.pods, client.ObjectKeyFromObject(&pods.Items[i]))
	}
	return found, nil
}

// namespaces of the owners, sorted.
func (o owners) namespaces() []string {
	var all []string
	for _, key := range slices.Concat(o.services, o.pods) {
		all = append(all, key.Namespace)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// whose says who has an address, seen from a namespace.
type whose int

const (
	// nobodys: it is not the cluster's.
	nobodys whose = iota
	// ownPods: only pods of the namespace have it.
	ownPods
	// ownServices: only the namespace has it, for a Service. Behind that there may
	// be anything.
	ownServices
	// anothers: another namespace has it, if not alone.
	anothers
)

func whoseIs(ctx context.Context, c client.Reader, namespace string, addr netip.Addr) (whose, error) {
	found, err := ownersOf(ctx, c, addr)
	if err != nil {
		return anothers, err
	}
	switch namespaces := found.namespaces(); {
	case len(namespaces) == 0:
		return nobodys, nil
	case len(namespaces) > 1 || namespaces[0] != namespace:
		return anothers, nil
	case len(found.services) > 0:
		return ownServices, nil
	}
	return ownPods, nil
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
		found, err := ownersOf(ctx, c, at.Addr())
		if err != nil {
			return nil, err
		}
		if namespaces := found.namespaces(); len(namespaces) > 0 {
			return nil, &targets.RefusedError{Target: address, Why: "it is in namespace " + strings.Join(namespaces, ", ") + " of the cluster: name its Service as sink.service"}
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
		name, namespace, qualified, ok := v1alpha1.ServiceHost(host)
		if !ok || !qualified {
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
	list, err := slicesOf(ctx, c, &service)
	if err != nil {
		return nil, err
	}
	var all []string
	for i := range list {
		for _, endpoint := range list[i].Endpoints {
			if endpoint.Conditions.Ready != nil && !*endpoint.Conditions.Ready {
				continue
			}
			for _, address := range endpoint.Addresses {
				addr, err := netip.ParseAddr(address)
				if err != nil {
					continue
				}
				owner, err := whoseIs(ctx, c, namespace, addr)
				if err != nil {
					return nil, err
				}
				if owner == ownPods {
					all = append(all, address)
				}
			}
		}
	}
	return all, nil
}

func slicesOf(ctx context.Context, c client.Reader, service *corev1.Service) ([]discoveryv1.EndpointSlice, error) {
	var list discoveryv1.EndpointSliceList
	err := c.List(ctx, &list, client.InNamespace(service.Namespace), client.MatchingLabels{discoveryv1.LabelServiceName: service.Name}, client.UnsafeDisableDeepCopy)
	if err != nil {
		return nil, fmt.Errorf("list the endpoints of service %s/%s: %w", service.Namespace, service.Name, err)
	}
	return list.Items, nil
}

// checkService refuses a Service that leads out of its namespace: each of its
// endpoints must be a pod in its namespace, or what a URI may name, too.
func checkService(ctx context.Context, c client.Reader, policy URLPolicy, service *corev1.Service) error {
	if service.Spec.Type == corev1.ServiceTypeExternalName {
		return refuse(v1alpha1.ReasonTargetRefused, "Service %s is an ExternalName: write the URL as sink.uri, so that the allowed targets decide", service.Name)
	}
	list, err := slicesOf(ctx, c, service)
	if err != nil {
		return err
	}
	for i := range list {
		for j := range list[i].Endpoints {
			if !mayServe(&list[i].Endpoints[j]) {
				continue
			}
			for _, address := range list[i].Endpoints[j].Addresses {
				if err := checkEndpoint(ctx, c, policy, service, &list[i], address); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// mayServe tells endpoints that may get traffic: those that are ready, and where
// none is, those that are ending and still serve. One that does neither outlives
// its pod for a moment.
func mayServe(endpoint *discoveryv1.Endpoint) bool {
	ready, serving := endpoint.Conditions.Ready, endpoint.Conditions.Serving
	return ready == nil || *ready || serving == nil || *serving
}

func checkEndpoint(ctx context.Context, c client.Reader, policy URLPolicy, service *corev1.Service, slice *discoveryv1.EndpointSlice, address string) error {
	addr, err := netip.ParseAddr(address)
	if err != nil {
		return refuse(v1alpha1.ReasonTargetRefused, "Service %s: the EndpointSlice %s names %s, which is no IP address", service.Name, slice.Name, address)
	}
	switch owner, err := whoseIs(ctx, c, service.Namespace, addr); {
	case err != nil:
		return err
	case owner == anothers:
		return refuse(v1alpha1.ReasonNotPermitted, "Service %s: the EndpointSlice %s leads to %s in another namespace: a sink must be in the Subscription's own", service.Name, slice.Name, address)
	case owner == ownServices:
		return refuse(v1alpha1.ReasonTargetRefused, "Service %s: the EndpointSlice %s leads to %s, the address of another Service, and whatever is behind it: name that Service as the sink", service.Name, slice.Name, address)
	case owner == ownPods:
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
