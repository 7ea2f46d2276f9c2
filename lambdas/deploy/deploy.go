package deploy

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/lambdas/build"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/sidecar"
)

const (
	// ContainerName of the lambda in its pod template.
	ContainerName = "lambda"
	// ConditionRestarted of a Deployment tells why processes of replicas that run
	// were started again. The local node writes it; in a cluster, pods tell.
	ConditionRestarted appsv1.DeploymentConditionType = "ReplicaRestarted"
	// AdminPortName names the container port of /healthz, /readyz and /metrics.
	AdminPortName = "http-admin"

	appPort   = 8080
	adminPort = 8081
	uid       = 1000

	// injectedAnnotation is what Istio's injector writes into a pod that it gave
	// a sidecar, and nobody else writes into ours.
	injectedAnnotation = "sidecar.istio.io/status"
	// envPrefix of what the runtimes are told by us and by nobody else.
	envPrefix = "LAMBDAMESH_"

	defaultTimeout      = 180 * time.Second
	defaultMaxBodyBytes = 1 << 20

	// preStopSeconds let the endpoint's removal reach every proxy before the
	// process is told to stop.
	preStopSeconds = 5
)

// Options are the same for all lambdas of an installation.
type Options struct {
	// PublishURL and ConnectorURL default to the Services of the system
	// namespace.
	PublishURL, ConnectorURL string
	// Applications whose APIs the lambda may call, sorted; it finds them by
	// [v1alpha1.EnvApplicationURL].
	Applications []string
	// SystemNamespace of the gateway, the event bus and the connector; default
	// [v1alpha1.SystemNamespace].
	SystemNamespace string
	// TrustDomain and Gateways (service accounts) are how a lambda tells its
	// callers apart; unset, they are those of wellknown.go.
	TrustDomain string
	Gateways    []types.NamespacedName
	// ToZero tells that somebody runs lambdas who starts one at zero when it is
	// called.
	ToZero bool
	// Sidecar of every pod, in a mesh without Istio; nil: Istio injects one.
	Sidecar *sidecar.Config
}

// Objects run one lambda.
type Objects struct {
	ServiceAccount *corev1.ServiceAccount
	// ConfigMap with the source; nil when the image holds it.
	ConfigMap  *corev1.ConfigMap
	Service    *corev1.Service
	Deployment *appsv1.Deployment
}

// All returns the objects in the order in which to apply them.
func (o Objects) All() []client.Object {
	all := []client.Object{o.ServiceAccount, o.Service}
	if o.ConfigMap != nil {
		all = append(all, o.ConfigMap)
	}
	return append(all, o.Deployment)
}

// Check tells what of the lambda this version does not deploy, or "" .
func Check(lambda *v1alpha1.Lambda, options Options) (reason, message string) {
	if scale := lambda.Spec.Scale; scale.Min != nil && *scale.Min == 0 && !options.ToZero {
		return v1alpha1.ReasonNotSupported, "scale.min: 0 (to zero) is not supported in a cluster by this version; write 1 or more"
	}
	for _, env := range lambda.Spec.Env {
		if strings.HasPrefix(env.Name, envPrefix) {
			return v1alpha1.ReasonInvalid, fmt.Sprintf("env %s: names that begin with LAMBDAMESH_ are the runtime's; use another one", env.Name)
		}
	}
	return "", ""
}

// New returns the objects that run the artifact as the lambda says.
func New(lambda *v1alpha1.Lambda, artifact build.Artifact, options Options) Objects {
	objects := Objects{
		ServiceAccount: &corev1.ServiceAccount{ObjectMeta: objectMeta(lambda, lambda.Name), AutomountServiceAccountToken: new(false)},
		Service: &corev1.Service{
			ObjectMeta: objectMeta(lambda, lambda.Name),
			Spec: corev1.ServiceSpec{
				Selector: selector(lambda),
				Ports: []corev1.ServicePort{{
					Name: v1alpha1.ServiceHTTPPort, Port: v1alpha1.ServicePort, Protocol: corev1.ProtocolTCP,
					TargetPort: intstr.FromString(v1alpha1.ServiceHTTPPort),
				}},
			},
		},
		Deployment: deployment(lambda, artifact, options),
	}
	if len(artifact.Mounts) == 0 {
		return objects
	}
	objects.ConfigMap = &corev1.ConfigMap{ObjectMeta: objectMeta(lambda, sourceName(lambda, artifact)), Data: map[string]string{}, BinaryData: map[string][]byte{}}
	for _, mount := range artifact.Mounts {
		for name, key := range keysOf(mount) {
			if content := mount.Files[name]; utf8.Valid(content) {
				objects.ConfigMap.Data[key] = string(content)
			} else {
				objects.ConfigMap.BinaryData[key] = content
			}
		}
	}
	return objects
}

// keysOf are the keys of a mount's files in the ConfigMap, where keys have no
// slashes and few characters: a name that cannot be told so has a digest there.
func keysOf(mount build.Mount) map[string]string {
	plain := regexp.MustCompile(`^[-._a-zA-Z0-9/]{1,200}$`)
	keys, taken := map[string]string{}, map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(mount.Files)) {
		key := strings.ReplaceAll(name, "/", ".")
		if !plain.MatchString(name) || taken[key] {
			sum := sha256.Sum256([]byte(name))
			key = hex.EncodeToString(sum[:16])
		}
		taken[key] = true
		keys[name] = mount.Name + "." + key
	}
	return keys
}

func items(mount build.Mount) []corev1.KeyToPath {
	var items []corev1.KeyToPath
	keys := keysOf(mount)
	for _, name := range slices.Sorted(maps.Keys(keys)) {
		items = append(items, corev1.KeyToPath{Key: keys[name], Path: name})
	}
	return items
}

func deployment(lambda *v1alpha1.Lambda, artifact build.Artifact, options Options) *appsv1.Deployment {
	timeout := defaultTimeout
	if lambda.Spec.Timeout != nil {
		timeout = lambda.Spec.Timeout.Duration
	}
	container := corev1.Container{
		Name: ContainerName, Image: artifact.Image, Command: artifact.Command,
		Env:   append(runtimeEnv(lambda, timeout, options), lambda.Spec.Env...),
		Ports: []corev1.ContainerPort{{Name: v1alpha1.ServiceHTTPPort, ContainerPort: appPort, Protocol: corev1.ProtocolTCP}, {Name: AdminPortName, ContainerPort: adminPort, Protocol: corev1.ProtocolTCP}},
		// The runtimes answer from off the handler's thread, and fail the liveness
		// probe only once a handler has blocked it beyond an invocation's time.
		// The start may take as long as loading the user's code takes.
		StartupProbe:   probe("/readyz", 1, 120),
		ReadinessProbe: probe("/readyz", 2, 2),
		LivenessProbe:  probe("/healthz", 10, 3),
		Resources:      resources(lambda.Spec.Resources),
		Lifecycle:      &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: preStopSeconds}}},
		SecurityContext: &corev1.SecurityContext{
			AllowPrivilegeEscalation: new(false), ReadOnlyRootFilesystem: new(true), RunAsNonRoot: new(true),
			RunAsUser: new(int64(uid)), RunAsGroup: new(int64(uid)),
			Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
		VolumeMounts: []corev1.VolumeMount{{Name: "tmp", MountPath: "/tmp"}},
		// What a lambda said last tells in its conditions why it ended.
		TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
	}
	volumes := []corev1.Volume{{Name: "tmp", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
	var proxies []corev1.Container
	if options.Sidecar != nil {
		proxies = []corev1.Container{options.Sidecar.Container(new(int64(uid)), new(int64(uid)))}
		volumes = append(volumes, sidecar.Volumes()...)
		addSidecarTo(&container)
	}
	for _, part := range artifact.Mounts {
		volumes = append(volumes, corev1.Volume{Name: part.Name, VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
			LocalObjectReference: corev1.LocalObjectReference{Name: sourceName(lambda, artifact)}, Items: items(part),
		}}})
		container.VolumeMounts = append(container.VolumeMounts, corev1.VolumeMount{Name: part.Name, MountPath: part.Dir, ReadOnly: true})
	}
	for i, mount := range lambda.Spec.SecretMounts {
		name := "secret-" + strconv.Itoa(i)
		volumes = append(volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: mount.SecretName}}})
		container.VolumeMounts = append(container.VolumeMounts, corev1.VolumeMount{Name: name, MountPath: mount.MountPath, ReadOnly: true})
	}
	meta, scale := objectMeta(lambda, lambda.Name), NewScale(lambda)
	meta.Annotations = map[string]string{v1alpha1.AnnotationScale: scale.String()}
	return &appsv1.Deployment{
		ObjectMeta: meta,
		Spec: appsv1.DeploymentSpec{
			Replicas: scale.fixed(),
			Selector: &metav1.LabelSelector{MatchLabels: selector(lambda)},
			Strategy: appsv1.DeploymentStrategy{
				Type:          appsv1.RollingUpdateDeploymentStrategyType,
				RollingUpdate: &appsv1.RollingUpdateDeployment{MaxUnavailable: new(intstr.FromInt32(0)), MaxSurge: new(intstr.FromInt32(1))},
			},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{
					Labels: podLabels(lambda, options),
					Annotations: map[string]string{
						v1alpha1.AnnotationRuntime:    string(lambda.Spec.Runtime),
						v1alpha1.AnnotationSourceHash: artifact.SourceHash,
					},
				},
				Spec: corev1.PodSpec{
					ServiceAccountName: lambda.Name, AutomountServiceAccountToken: new(false),
					TerminationGracePeriodSeconds: new(int64(timeout.Seconds()) + preStopSeconds + 10),
					InitContainers:                proxies,
					Containers:                    []corev1.Container{container},
					Volumes:                       volumes,
				},
			},
		},
	}
}

// addSidecarTo has the lambda listen where only its sidecar reaches it, and call
// through it. Its port is the sidecar's then: past that there is none to call. What
// the user's env says about proxies stays.
func addSidecarTo(container *corev1.Container) {
	container.VolumeMounts = append(container.VolumeMounts, sidecar.Mount())
	container.Ports = slices.DeleteFunc(container.Ports, func(p corev1.ContainerPort) bool { return p.Name == v1alpha1.ServiceHTTPPort })
	for _, variable := range sidecar.Env() {
		i := slices.IndexFunc(container.Env, func(e corev1.EnvVar) bool { return e.Name == variable.Name })
		switch {
		case i < 0:
			container.Env = append(container.Env, variable)
		case strings.HasPrefix(variable.Name, envPrefix):
			container.Env[i] = variable
		}
	}
}

// runtimeEnv is the runtime servers' contract, pkg/apis/v1alpha1/wellknown.go.
func runtimeEnv(lambda *v1alpha1.Lambda, timeout time.Duration, options Options) []corev1.EnvVar {
	handler := lambda.Spec.Handler
	if handler == "" {
		handler = "main"
	}
	limit := int64(defaultMaxBodyBytes)
	if lambda.Spec.MaxBodyBytes != nil {
		limit = *lambda.Spec.MaxBodyBytes
	}
	system := cmp.Or(options.SystemNamespace, v1alpha1.SystemNamespace)
	gateways := system + "/" + v1alpha1.ServiceAccountGateway
	if len(options.Gateways) > 0 {
		accounts := make([]string, 0, len(options.Gateways))
		for _, account := range options.Gateways {
			accounts = append(accounts, account.String())
		}
		gateways = strings.Join(accounts, ",")
	}
	connector := cmp.Or(options.ConnectorURL, "http://"+v1alpha1.ServiceConnectorOutbound+"."+system+".svc")
	env := []corev1.EnvVar{
		{Name: v1alpha1.EnvListen, Value: "tcp::" + strconv.Itoa(appPort)},
		{Name: v1alpha1.EnvAdminListen, Value: "tcp::" + strconv.Itoa(adminPort)},
		{Name: v1alpha1.EnvLambda, Value: lambda.Name},
		{Name: v1alpha1.EnvNamespace, Value: lambda.Namespace},
		{Name: v1alpha1.EnvHandler, Value: handler},
		{Name: v1alpha1.EnvTimeout, Value: timeout.String()},
		{Name: v1alpha1.EnvMaxBodyBytes, Value: strconv.FormatInt(limit, 10)},
		{Name: v1alpha1.EnvConcurrency, Value: strconv.Itoa(int(NewScale(lambda).Concurrency))},
		{Name: v1alpha1.EnvSource, Value: build.SourceDir},
		{Name: v1alpha1.EnvPublishURL, Value: cmp.Or(options.PublishURL, "http://"+v1alpha1.ServiceEventBus+"."+system+".svc/publish")},
		{Name: v1alpha1.EnvConnectorURL, Value: connector},
		// Empty without a sidecar: then a runtime believes nobody who says who
		// calls. It needs no knowledge of namespaces' labels or of the mesh.
		{Name: v1alpha1.EnvSidecar, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.annotations['" + injectedAnnotation + "']"}}},
		{Name: v1alpha1.EnvTrustDomain, Value: cmp.Or(options.TrustDomain, v1alpha1.DefaultTrustDomain)},
		{Name: v1alpha1.EnvSystemNamespace, Value: system},
		{Name: v1alpha1.EnvGateways, Value: gateways},
	}
	for _, application := range options.Applications {
		name := v1alpha1.EnvApplicationURL(application)
		if !slices.ContainsFunc(lambda.Spec.Env, func(e corev1.EnvVar) bool { return e.Name == name }) { // what the user says goes before
			env = append(env, corev1.EnvVar{Name: name, Value: connector + "/" + application})
		}
	}
	return env
}

func objectMeta(lambda *v1alpha1.Lambda, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name: name, Namespace: lambda.Namespace, Labels: labels(lambda),
		OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(lambda, v1alpha1.GroupVersion().WithKind("Lambda"))},
	}
}

func labels(lambda *v1alpha1.Lambda) map[string]string {
	return map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy, v1alpha1.LabelLambda: lambda.Name}
}

// podLabels ask for Istio's sidecar, where the pod has none of ours: without one
// nobody would check who calls.
func podLabels(lambda *v1alpha1.Lambda, options Options) map[string]string {
	all := labels(lambda)
	all["sidecar.istio.io/inject"] = strconv.FormatBool(options.Sidecar == nil)
	if options.Sidecar != nil {
		all[v1alpha1.LabelSidecar] = "true"
	}
	return all
}

func selector(lambda *v1alpha1.Lambda) map[string]string {
	return map[string]string{v1alpha1.LabelLambda: lambda.Name}
}

// sourceName is one ConfigMap per source: pods of an older version that start
// again in the middle of a rollout must find theirs unchanged.
func sourceName(lambda *v1alpha1.Lambda, artifact build.Artifact) string {
	return lambda.Name + "-source-" + artifact.SourceHash
}

func probe(path string, period, failures int32) *corev1.Probe {
	return &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromString(AdminPortName), Scheme: corev1.URISchemeHTTP}},
		PeriodSeconds: period, FailureThreshold: failures, TimeoutSeconds: 2,
	}
}

// resources of a profile: XS 50m/64Mi to 150m/256Mi, each next twice that.
func resources(wanted *v1alpha1.LambdaResources) corev1.ResourceRequirements {
	if wanted != nil && wanted.Profile == "" && (wanted.Requests != nil || wanted.Limits != nil) {
		return corev1.ResourceRequirements{Requests: wanted.Requests, Limits: wanted.Limits}
	}
	factors := map[string]int64{"XS": 1, "S": 2, "M": 4, "L": 8, "XL": 16}
	factor := factors["S"]
	if wanted != nil && wanted.Profile != "" {
		factor = factors[wanted.Profile]
	}
	list := func(cpuMilli, memoryMi int64) corev1.ResourceList {
		return corev1.ResourceList{
			corev1.ResourceCPU:    *resource.NewMilliQuantity(cpuMilli*factor, resource.DecimalSI),
			corev1.ResourceMemory: *resource.NewQuantity(memoryMi*factor<<20, resource.BinarySI),
		}
	}
	return corev1.ResourceRequirements{Requests: list(50, 64), Limits: list(150, 256)}
}
