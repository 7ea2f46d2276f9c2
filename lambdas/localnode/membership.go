package localnode

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"sync"

	istioapi "istio.io/api/networking/v1"
	istionetworking "istio.io/client-go/pkg/apis/networking/v1"
	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// membership is a replica's place in the mesh, as Istio objects: a
// WorkloadEntry, which is its identity and its endpoint, and a Sidecar, which
// describes its proxy.
type membership struct {
	client  client.Client
	cached  client.Reader // of the same objects, for looking often
	entry   *istionetworking.WorkloadEntry
	sidecar *istionetworking.Sidecar
	// labels make the entry an endpoint: those of the pod template, which the
	// Service selects.
	labels map[string]string

	mu        sync.Mutex
	announced bool
	closed    bool // no announcing any more
}

func newMembership(c client.Client, cached client.Reader, name string, deployment *appsv1.Deployment, inbound, egress uint32, socket string) *membership {
	identity := map[string]string{
		v1alpha1.LabelManagedBy:      v1alpha1.ManagedBy,
		v1alpha1.LabelReplica:        name,
		v1alpha1.LabelOwnerNamespace: deployment.Namespace,
		v1alpha1.LabelOwnerName:      deployment.Name,
		v1alpha1.LabelIstioTLSMode:   "istio",
	}
	meta := metav1.ObjectMeta{
		Name: name, Namespace: deployment.Namespace, Labels: identity,
		OwnerReferences: []metav1.OwnerReference{{APIVersion: appsv1.SchemeGroupVersion.String(), Kind: "Deployment", Name: deployment.Name, UID: deployment.UID}},
	}
	withheld := maps.Clone(deployment.Spec.Template.Labels)
	maps.DeleteFunc(withheld, func(key, _ string) bool { _, known := identity[key]; return known })
	const loopback = "127.0.0.1"
	return &membership{
		client: c, cached: cached, labels: withheld,
		entry: &istionetworking.WorkloadEntry{
			ObjectMeta: *meta.DeepCopy(),
			Spec: istioapi.WorkloadEntry{
				Address: loopback, Ports: map[string]uint32{v1alpha1.ServiceHTTPPort: inbound},
				Labels: maps.Clone(identity), ServiceAccount: deployment.Spec.Template.Spec.ServiceAccountName,
			},
		},
		sidecar: &istionetworking.Sidecar{
			ObjectMeta: *meta.DeepCopy(),
			Spec: istioapi.Sidecar{
				WorkloadSelector: &istioapi.WorkloadSelector{Labels: map[string]string{v1alpha1.LabelReplica: name}},
				Ingress: []*istioapi.IstioIngressListener{{
					Port: &istioapi.SidecarPort{Number: inbound, Name: v1alpha1.ServiceHTTPPort, Protocol: "HTTP"},
					Bind: loopback, CaptureMode: istioapi.CaptureMode_NONE, DefaultEndpoint: "unix://" + socket,
				}},
				Egress: []*istioapi.IstioEgressListener{{
					Port: &istioapi.SidecarPort{Number: egress, Name: "http-proxy", Protocol: "HTTP_PROXY"},
					Bind: loopback, CaptureMode: istioapi.CaptureMode_NONE, Hosts: []string{"*/*"},
				}},
			},
		},
	}
}

// join makes the objects that are not there; the entry is no endpoint yet.
func (m *membership) join(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	if err := m.client.Create(ctx, m.sidecar.DeepCopy()); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create Sidecar %s: %w", m.sidecar.Name, err)
	}
	if err := m.client.Create(ctx, m.entry.DeepCopy()); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create WorkloadEntry %s: %w", m.entry.Name, err)
	}
	return nil
}

// intact tells whether the objects are as an announced replica's should be. It
// reads the cache: ask it when the last change is a while ago.
func (m *membership) intact(ctx context.Context) bool {
	entry := &istionetworking.WorkloadEntry{}
	key := client.ObjectKeyFromObject(m.entry)
	if m.cached.Get(ctx, key, entry) != nil || m.cached.Get(ctx, key, &istionetworking.Sidecar{}) != nil {
		return false
	}
	for name, value := range m.labels {
		if entry.Labels[name] != value || entry.Spec.Labels[name] != value {
			return false
		}
	}
	return true
}

// announce makes the entry an endpoint of the lambda's Service.
func (m *membership) announce(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return errors.New("the replica is stopping")
	}
	labels := map[string]any{}
	for key, value := range m.labels {
		labels[key] = value
	}
	m.announced = true // even when the answer is lost
	return m.patch(ctx, labels)
}

// withdraw takes the endpoint out and leaves the identity, also when ctx has
// ended; final is for good.
// It tells whether there was one to take out.
func (m *membership) withdraw(ctx context.Context, final bool) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = m.closed || final
	if !m.announced {
		return false, nil
	}
	labels := map[string]any{}
	for key := range m.labels {
		labels[key] = nil
	}
	if err := m.patch(context.WithoutCancel(ctx), labels); err != nil && !apierrors.IsNotFound(err) { // it may be deleted with the Deployment
		return true, err
	}
	m.announced = false
	return true, nil
}

// patch sets labels of the entry; Istio selects by those of the spec, a Service
// by either.
func (m *membership) patch(ctx context.Context, labels map[string]any) error {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": labels}, "spec": map[string]any{"labels": labels}})
	if err != nil {
		return fmt.Errorf("encode labels: %w", err)
	}
	target := &istionetworking.WorkloadEntry{ObjectMeta: metav1.ObjectMeta{Name: m.entry.Name, Namespace: m.entry.Namespace}}
	if err := m.client.Patch(ctx, target, client.RawPatch(types.MergePatchType, body)); err != nil {
		return fmt.Errorf("label WorkloadEntry %s: %w", m.entry.Name, err)
	}
	return nil
}

// leave deletes the objects, also when ctx has ended.
func (m *membership) leave(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), apiTimeout)
	defer cancel()
	return errors.Join(
		client.IgnoreNotFound(m.client.Delete(ctx, m.entry)),
		client.IgnoreNotFound(m.client.Delete(ctx, m.sidecar)),
	)
}
