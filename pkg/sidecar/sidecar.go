package sidecar

import (
	"fmt"
	"net/netip"
	"path"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

const (
	// ContainerName of the proxy.
	ContainerName = "mesh-proxy"
	// InboundPort takes mutual TLS from others; in the pod it is named http.
	InboundPort = 15006
	// EgressPort on loopback is the application's HTTP proxy.
	EgressPort = 15001
	// ReadyPort answers /ready and /stats/prometheus.
	ReadyPort = 15021
	// AdminPort on loopback is the proxy's own.
	AdminPort = 15000
	// ReadyPortName names ReadyPort.
	ReadyPortName = "mesh-ready"

	// AppDir is where the application's socket is, in both containers.
	AppDir = "/var/run/lambdamesh/app"
	// AppSocket is where the application listens unless an annotation says
	// otherwise.
	AppSocket = AppDir + "/app.sock"
	// MeshDir is where the proxy finds its bootstrap, token and CA.
	MeshDir = "/var/run/lambdamesh/mesh"

	// readySeconds is how long a proxy may wait for the control plane before its
	// container is started again.
	readySeconds = 600
	// tokenSeconds is a token's life; the kubelet renews it at 80%.
	tokenSeconds = 3600
)

// Keys of the ConfigMap, and with the token the files of MeshDir.
const (
	CAFile        = "ca.crt"
	BootstrapFile = "envoy.yaml"
	SecretFile    = "xds-token.yaml"
	TokenFile     = "token"
)

// Names of the volumes.
const (
	VolumeApp  = "mesh-app"
	VolumeMesh = "mesh-identity"
)

// Config is the same for all pods.
type Config struct {
	// Image of the proxy: ours or Envoy's. Required.
	Image string
	// Resources of its container; default [DefaultResources].
	Resources corev1.ResourceRequirements
	// DrainSeconds that requests may take when the pod goes; default 30.
	DrainSeconds int
}

// DefaultResources are for a few hundred requests a second.
func DefaultResources() corev1.ResourceRequirements {
	return corev1.ResourceRequirements{
		Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("10m"), corev1.ResourceMemory: resource.MustParse("32Mi")},
		Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("256Mi")},
	}
}

// NodeID of a pod's proxy, which its token must be bound to.
func NodeID(namespace, pod string) string { return "pod~" + namespace + "~" + pod }

// Container is the native sidecar: it starts before the application and ends
// after it. It runs as user and group, which must be the application's where that
// listens on a Unix socket; nil is the image's.
func (c Config) Container(user, group *int64) corev1.Container {
	resources, drain := c.Resources, c.DrainSeconds
	if resources.Requests == nil && resources.Limits == nil {
		resources = DefaultResources()
	}
	if drain <= 0 {
		drain = 30
	}
	field := func(name, path string) corev1.EnvVar {
		return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: path}}}
	}
	env := []corev1.EnvVar{field("POD_NAME", "metadata.name"), field("POD_NAMESPACE", "metadata.namespace")}
	if limit := resources.Limits.Memory(); !limit.IsZero() {
		// Of ours; Envoy does not know it.
		env = append(env, corev1.EnvVar{Name: "GOMEMLIMIT", Value: strconv.FormatInt(limit.Value()*9/10, 10)})
	}
	return corev1.Container{
		Name: ContainerName, Image: c.Image, RestartPolicy: new(corev1.ContainerRestartPolicyAlways),
		Args: []string{
			"--config-path", path.Join(MeshDir, BootstrapFile), "--service-cluster", "$(POD_NAMESPACE)",
			"--service-node", NodeID("$(POD_NAMESPACE)", "$(POD_NAME)"), "--drain-time-s", strconv.Itoa(drain),
		},
		Env: env,
		Ports: []corev1.ContainerPort{
			{Name: v1alpha1.ServiceHTTPPort, ContainerPort: InboundPort, Protocol: corev1.ProtocolTCP},
			{Name: ReadyPortName, ContainerPort: ReadyPort, Protocol: corev1.ProtocolTCP},
		},
		StartupProbe:   ready(1, readySeconds),
		ReadinessProbe: ready(5, 2),
		Resources:      resources,
		SecurityContext: &corev1.SecurityContext{
			AllowPrivilegeEscalation: new(false), ReadOnlyRootFilesystem: new(true), RunAsNonRoot: new(true),
			RunAsUser: user, RunAsGroup: group,
			Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
		VolumeMounts: []corev1.VolumeMount{Mount(), {Name: VolumeMesh, MountPath: MeshDir, ReadOnly: true}},
	}
}

func ready(period, failures int32) *corev1.Probe {
	return &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/ready", Port: intstr.FromString(ReadyPortName), Scheme: corev1.URISchemeHTTP}},
		PeriodSeconds: period, FailureThreshold: failures, TimeoutSeconds: 2,
	}
}

// Mount is where the application finds its directory.
func Mount() corev1.VolumeMount { return corev1.VolumeMount{Name: VolumeApp, MountPath: AppDir} }

// Volumes of a pod with a sidecar.
func Volumes() []corev1.Volume {
	return []corev1.Volume{
		{Name: VolumeApp, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		{Name: VolumeMesh, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{
				Audience: v1alpha1.XDSTokenAudience, ExpirationSeconds: new(int64(tokenSeconds)), Path: TokenFile,
			}},
			{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: v1alpha1.ConfigMapMesh}}},
		}}}},
	}
}

// Env tells the application where to listen and through what to call.
func Env() []corev1.EnvVar {
	proxy := "http://127.0.0.1:" + strconv.Itoa(EgressPort)
	const itself = "localhost,127.0.0.1,::1"
	return []corev1.EnvVar{
		{Name: v1alpha1.EnvListen, Value: "unix:" + AppSocket},
		{Name: v1alpha1.EnvSidecar, Value: ContainerName},
		{Name: v1alpha1.EnvHTTPProxy, Value: proxy},
		{Name: strings.ToLower(v1alpha1.EnvHTTPProxy), Value: proxy},
		{Name: v1alpha1.EnvNoProxy, Value: itself},
		{Name: strings.ToLower(v1alpha1.EnvNoProxy), Value: itself},
	}
}

// AppEndpoint is where the proxy of a pod with these annotations finds the
// application, "unix:///path" or "address:port".
func AppEndpoint(annotations map[string]string) (string, error) {
	text, found := annotations[v1alpha1.AnnotationAppAddress]
	if !found {
		return "unix://" + AppSocket, nil
	}
	invalid := func(why string) (string, error) {
		return "", fmt.Errorf("annotation %s: %q %s; write unix:%s/<name> or 127.0.0.1:<port>", v1alpha1.AnnotationAppAddress, text, why, AppDir)
	}
	if socket, ok := strings.CutPrefix(text, "unix:"); ok {
		socket = "/" + strings.TrimLeft(socket, "/")
		if path.Dir(socket) != AppDir || path.Clean(socket) != socket {
			return invalid("is not in the directory that the sidecar shares")
		}
		return "unix://" + socket, nil
	}
	address, err := netip.ParseAddrPort(text)
	switch {
	case err != nil:
		return invalid("is no address")
	case !address.Addr().IsLoopback():
		return invalid("is not on loopback, where others would reach it past the sidecar")
	}
	switch address.Port() {
	case 0, InboundPort, EgressPort, ReadyPort, AdminPort:
		return invalid("is the sidecar's own port")
	}
	return address.String(), nil
}
