package localnode

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"sync"

	"google.golang.org/protobuf/proto"
	istionetworking "istio.io/client-go/pkg/apis/networking/v1"
	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/lambdas/place"
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
	here := place.Place{
		Name: name, Namespace: deployment.Namespace, ServiceAccount: deployment.Spec.Template.Spec.ServiceAccountName,
		Labels:  map[string]string{v1alpha1.LabelOwnerNamespace: deployment.Namespace, v1alpha1.LabelOwnerName: deployment.Name},
		Owners:  []metav1.OwnerReference{{APIVersion: appsv1.SchemeGroupVersion.String(), Kind: "Deployment", Name: deployment.Name, UID: deployment.UID}},
		Inbound: inbound, Egress: egress, Socket: socket,
	}
	withheld, identity := maps.Clone(deployment.Spec.Template.Labels), here.Identity()
	maps.DeleteFunc(withheld, func(key, _ string) bool { _, known := identity[key]; return known })
	return &membership{client: c, cached: cached, labels: withheld, entry: here.Entry(), sidecar: here.Sidecar()}
}

// join makes the objects that are not there; the entry is no endpoint yet. Those
// of an earlier life of the replica, which could not be deleted when it ended,
// lead to ports that are gone: they are replaced.
func (m *membership) join(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	sidecar, entry := &istionetworking.Sidecar{}, &istionetworking.WorkloadEntry{}
	return errors.Join(
		m.create(ctx, m.sidecar.DeepCopy(), sidecar, func() bool {
			return proto.Equal(&sidecar.Spec, &m.sidecar.Spec)
		}),
		m.create(ctx, m.entry.DeepCopy(), entry, func() bool {
			return maps.Equal(entry.Spec.Ports, m.entry.Spec.Ports) && entry.Spec.Address == m.entry.Spec.Address && entry.Spec.ServiceAccount == m.entry.Spec.ServiceAccount
		}),
	)
}

// create makes an object, in place of one that is there and not the same.
func (m *membership) create(ctx context.Context, object, there client.Object, same func() bool) error {
	err := m.client.Create(ctx, object)
	if apierrors.IsAlreadyExists(err) {
		if err = m.client.Get(ctx, client.ObjectKeyFromObject(object), there); err == nil && !same() {
			object.SetResourceVersion(there.GetResourceVersion())
			err = m.client.Update(ctx, object)
		}
	}
	if err != nil {
		return fmt.Errorf("create %T %s: %w", object, object.GetName(), err)
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
