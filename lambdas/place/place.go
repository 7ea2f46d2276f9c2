package place

import (
	"maps"

	istioapi "istio.io/api/networking/v1"
	istionetworking "istio.io/client-go/pkg/apis/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

const loopback = "127.0.0.1"

// Place is one process's.
type Place struct {
	// Name of both objects; the sidecar is selected by it.
	Name, Namespace string
	// ServiceAccount whose identity the process has.
	ServiceAccount string
	// Labels of both objects, besides those that every place has.
	Labels map[string]string
	Owners []metav1.OwnerReference
	// Inbound and Egress are the ports of the sidecar's listeners on loopback.
	Inbound, Egress uint32
	// Socket is the path of the Unix socket that the process serves.
	Socket string
}

// Identity are the labels of the objects.
func (p Place) Identity() map[string]string {
	labels := map[string]string{
		v1alpha1.LabelManagedBy:    v1alpha1.ManagedBy,
		v1alpha1.LabelReplica:      p.Name,
		v1alpha1.LabelIstioTLSMode: "istio",
	}
	maps.Copy(labels, p.Labels)
	return labels
}

func (p Place) meta() metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: p.Name, Namespace: p.Namespace, Labels: p.Identity(), OwnerReferences: p.Owners}
}

// Entry is the identity, and the endpoint of those Services that select it.
func (p Place) Entry() *istionetworking.WorkloadEntry {
	return &istionetworking.WorkloadEntry{
		ObjectMeta: p.meta(),
		Spec: istioapi.WorkloadEntry{
			Address: loopback, Ports: map[string]uint32{v1alpha1.ServiceHTTPPort: p.Inbound},
			Labels: p.Identity(), ServiceAccount: p.ServiceAccount,
		},
	}
}

// Sidecar is the proxy.
func (p Place) Sidecar() *istionetworking.Sidecar {
	return &istionetworking.Sidecar{
		ObjectMeta: p.meta(),
		Spec: istioapi.Sidecar{
			WorkloadSelector: &istioapi.WorkloadSelector{Labels: map[string]string{v1alpha1.LabelReplica: p.Name}},
			Ingress: []*istioapi.IstioIngressListener{{
				Port: &istioapi.SidecarPort{Number: p.Inbound, Name: v1alpha1.ServiceHTTPPort, Protocol: "HTTP"},
				Bind: loopback, CaptureMode: istioapi.CaptureMode_NONE, DefaultEndpoint: "unix://" + p.Socket,
			}},
			Egress: []*istioapi.IstioEgressListener{{
				Port: &istioapi.SidecarPort{Number: p.Egress, Name: "http-proxy", Protocol: "HTTP_PROXY"},
				Bind: loopback, CaptureMode: istioapi.CaptureMode_NONE, Hosts: []string{"*/*"},
			}},
		},
	}
}
