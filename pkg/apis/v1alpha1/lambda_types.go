package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Runtime is a language server that a lambda's source runs in.
// +kubebuilder:validation:Enum=nodejs;python;go;rust;container
type Runtime string

// The runtimes.
const (
	RuntimeNodeJS    Runtime = "nodejs"
	RuntimePython    Runtime = "python"
	RuntimeGo        Runtime = "go"
	RuntimeRust      Runtime = "rust"
	RuntimeContainer Runtime = "container"
)

// Lambda is a function that the mesh runs: reachable by nobody until an
// APIRule, a Subscription or its access list names a caller.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:subresource:scale:specpath=.spec.scale.min,statuspath=.status.replicas
// +kubebuilder:resource:path=lambdas,shortName=lam,categories=lambdamesh
// +kubebuilder:printcolumn:name="Runtime",type=string,JSONPath=`.spec.runtime`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Replicas",type=integer,JSONPath=`.status.readyReplicas`
// +kubebuilder:printcolumn:name="Address",type=string,JSONPath=`.status.address`
// +kubebuilder:printcolumn:name="Message",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Ready")].message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="size(self.metadata.name) <= 63 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",message="metadata.name becomes a Service name: use at most 63 of a-z, 0-9 and '-', beginning with a letter and not ending with '-'"
type Lambda struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec LambdaSpec `json:"spec"`
	// +optional
	Status LambdaStatus `json:"status,omitempty"`
}

// LambdaList is a list of lambdas.
// +kubebuilder:object:root=true
type LambdaList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Lambda `json:"items"`
}

// LambdaSpec says what to run and how much of it.
// +kubebuilder:validation:XValidation:rule="self.runtime == 'container' ? has(self.source.image) : !has(self.source.image)",message="source.image goes with runtime: container, and runtime: container needs source.image; for other runtimes write source.inline or source.git"
type LambdaSpec struct {
	// Runtime is the language: nodejs, python, go, rust; or container for an
	// image that speaks HTTP on $PORT.
	Runtime Runtime `json:"runtime"`
	// Version of the language ("22" for Node.js 22). In a cluster it is the
	// runtime image's tag; locally the installed one runs, and SourceReady says
	// so when they differ.
	// +optional
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^[0-9]+(\.[0-9]+)*$`
	Version string `json:"version,omitempty"`
	// Source is the code: exactly one of inline, git, image.
	Source SourceSpec `json:"source"`
	// Handler is the exported function that is called.
	// +optional
	// +kubebuilder:default=main
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:Pattern=`^[A-Za-z_][A-Za-z0-9_]*$`
	Handler string `json:"handler,omitempty"`
	// Env of the process; secretKeyRef and configMapKeyRef included.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=128
	Env []corev1.EnvVar `json:"env,omitempty"`
	// SecretMounts are Secrets of this namespace mounted as files.
	// +optional
	// +listType=map
	// +listMapKey=mountPath
	// +kubebuilder:validation:MaxItems=16
	SecretMounts []SecretMount `json:"secretMounts,omitempty"`
	// Resources of one replica: a profile or explicit requests and limits. The
	// local mesh runs replicas as processes and enforces none.
	// +optional
	Resources *LambdaResources `json:"resources,omitempty"`
	// Timeout of one invocation, 1s to 3900s.
	// +optional
	// +kubebuilder:default="180s"
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1s') && duration(self) <= duration('3900s')",message="timeout must be between 1s and 3900s, such as 30s"
	Timeout *metav1.Duration `json:"timeout,omitempty"`
	// MaxBodyBytes bounds an invocation's request body; a larger one is 413.
	// +optional
	// +kubebuilder:default=1048576
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=104857600
	MaxBodyBytes *int64 `json:"maxBodyBytes,omitempty"`
	// Scale bounds the number of replicas.
	// +optional
	// +kubebuilder:default={}
	Scale LambdaScale `json:"scale,omitempty"`
	// Access names further callers inside the mesh. Default none: only the
	// gateway (when an APIRule exposes the lambda) and the event bus (when a
	// Subscription names it) reach it.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	Access []LambdaAccess `json:"access,omitempty"`
}

// SourceSpec is where the code comes from. It is applied as a whole: who writes
// another source leaves nothing of the one before.
// +structType=atomic
// +kubebuilder:validation:XValidation:rule="[has(self.inline), has(self.git), has(self.image)].filter(x, x).size() == 1",message="source needs exactly one of inline, git, image"
type SourceSpec struct {
	// Inline code in this object.
	// +optional
	Inline *InlineSource `json:"inline,omitempty"`
	// Git repository to fetch the code from; a push is seen within seconds.
	// +optional
	Git *GitSource `json:"git,omitempty"`
	// Image that speaks HTTP on $PORT, pinned by digest if you can; only with
	// runtime: container.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=512
	Image *string `json:"image,omitempty"`
}

// InlineSource is code and its dependencies, written into the object.
// +kubebuilder:validation:XValidation:rule="has(self.code) || has(self.files)",message="source.inline needs code, or files with the handler's file among them"
type InlineSource struct {
	// Code of the handler's file: main.js (JavaScript or TypeScript), main.py or
	// main.go. Left out, that file is among the files.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=524288
	Code string `json:"code,omitempty"`
	// Dependencies: package.json (nodejs), requirements.txt (python), the
	// require lines of go.mod (go), the [dependencies] of Cargo.toml (rust).
	// +optional
	// +kubebuilder:validation:MaxLength=65536
	Dependencies string `json:"dependencies,omitempty"`
	// Files of the source, by path: {"lib/tax.ts": "..."}; those beside the
	// handler's when code has that one. Code, dependencies and files have 512 KiB
	// together. `lambdamesh lambda deploy` writes a directory here.
	// +optional
	// +kubebuilder:validation:MaxProperties=256
	Files map[string]string `json:"files,omitempty"`
}

// GitSource is a directory of a git repository.
type GitSource struct {
	// URL of the repository, https:// or ssh://.
	// +kubebuilder:validation:MaxLength=2048
	// +kubebuilder:validation:Pattern=`^(https|ssh)://[^\s]+$`
	URL string `json:"url"`
	// Reference is a branch, tag or commit.
	// +optional
	// +kubebuilder:default=main
	// +kubebuilder:validation:MaxLength=255
	Reference string `json:"reference,omitempty"`
	// Directory of the source in the repository.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	// +kubebuilder:validation:XValidation:rule="!self.startsWith('/') && !self.contains('..')",message="directory is relative to the repository's root and has no '..'"
	Directory string `json:"directory,omitempty"`
	// Auth is how to read a private repository.
	// +optional
	Auth *GitAuth `json:"auth,omitempty"`
}

// GitAuth names the Secret that opens a private repository.
type GitAuth struct {
	// Type: basic for https (keys username, password) or key for ssh (keys
	// ssh-privatekey, and known_hosts with what ssh-keyscan prints of the host).
	// +kubebuilder:validation:Enum=basic;key
	Type string `json:"type"`
	// SecretName of a Secret in the lambda's namespace.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	SecretName string `json:"secretName"`
}

// SecretMount is a Secret mounted as files.
type SecretMount struct {
	// SecretName of a Secret in the lambda's namespace.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	SecretName string `json:"secretName"`
	// MountPath is an absolute directory.
	// +kubebuilder:validation:MaxLength=1024
	// +kubebuilder:validation:XValidation:rule="self.startsWith('/') && !self.contains('..')",message="mountPath is absolute and has no '..'"
	MountPath string `json:"mountPath"`
}

// LambdaResources is a profile or explicit requests and limits.
// +kubebuilder:validation:XValidation:rule="!(has(self.profile) && (has(self.requests) || has(self.limits)))",message="write either profile or requests/limits"
type LambdaResources struct {
	// Profile: XS 50m/64Mi to 150m/256Mi, S, M, L, XL each twice the one before.
	// +optional
	// +kubebuilder:validation:Enum=XS;S;M;L;XL
	Profile string `json:"profile,omitempty"`
	// Requests as in a container.
	// +optional
	Requests corev1.ResourceList `json:"requests,omitempty"`
	// Limits as in a container.
	// +optional
	Limits corev1.ResourceList `json:"limits,omitempty"`
}

// LambdaScale bounds the number of replicas.
// +kubebuilder:validation:XValidation:rule="!has(self.min) || !has(self.max) || self.min <= self.max",message="scale.min must not be greater than scale.max"
type LambdaScale struct {
	// Min replicas. 0 lets the lambda scale to zero in `lambdamesh dev`; in a
	// cluster it is not supported yet (Deployed=False, NotSupported).
	// +optional
	// +kubebuilder:default=1
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000
	Min *int32 `json:"min,omitempty"`
	// Max replicas. `lambdamesh dev` scales between min and max by the requests in
	// flight. In a cluster that is an autoscaler's or kubectl's to do on the
	// Deployment; between min and max its replicas are left alone.
	// +optional
	// +kubebuilder:default=5
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000
	Max *int32 `json:"max,omitempty"`
	// Concurrency is the number of invocations at once that a replica takes. Ten
	// times as many wait; who comes then is answered 503 with Retry-After.
	// +optional
	// +kubebuilder:default=50
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=10000
	Concurrency *int32 `json:"concurrency,omitempty"`
	// IdleAfter is how long without a call before a lambda with min 0 stops, at
	// least 1s.
	// +optional
	// +kubebuilder:default="5m"
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1s')",message="idleAfter must be at least 1s"
	IdleAfter *metav1.Duration `json:"idleAfter,omitempty"`
}

// LambdaAccess is a caller inside the mesh.
// +kubebuilder:validation:XValidation:rule="has(self.lambda) != has(self.serviceAccount)",message="an access entry names either a lambda or a serviceAccount"
type LambdaAccess struct {
	// Namespace of the caller; default this one.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace,omitempty"`
	// Lambda that may call.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Lambda string `json:"lambda,omitempty"`
	// ServiceAccount that may call.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	ServiceAccount string `json:"serviceAccount,omitempty"`
}

// LambdaStatus is what was observed.
type LambdaStatus struct {
	CommonStatus `json:",inline"`
	// Address inside the mesh.
	// +optional
	Address string `json:"address,omitempty"`
	// Replicas that exist.
	// +optional
	Replicas int32 `json:"replicas"`
	// ReadyReplicas of them answer.
	// +optional
	ReadyReplicas int32 `json:"readyReplicas"`
	// Image that runs.
	// +optional
	Image string `json:"image,omitempty"`
}

// Conditions implements [Object].
func (l *Lambda) Conditions() *[]metav1.Condition { return &l.Status.CommonStatus.Conditions }

// SetObservedGeneration implements [Object].
func (l *Lambda) SetObservedGeneration(g int64) { l.Status.ObservedGeneration = g }
