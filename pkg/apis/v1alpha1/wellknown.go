package v1alpha1

import "strings"

// SystemNamespace is where the control plane, the event bus and the connector
// live, in a cluster and locally.
const SystemNamespace = "lambdamesh-system"

// DefaultTrustDomain is the SPIFFE trust domain of workload identities; it is
// Istio's default too.
const DefaultTrustDomain = "cluster.local"

// Service accounts of the system's own workloads. With the trust domain they
// make their SPIFFE identities, see [SPIFFEID].
const (
	ServiceAccountControlPlane = "controlplane"
	ServiceAccountGateway      = "gateway"
	ServiceAccountEventBus     = "eventbus"
	ServiceAccountConnector    = "connector"
)

// Services of the system namespace that lambdas call.
const (
	ServiceEventBus          = "eventbus"
	ServiceConnectorOutbound = "connector-outbound"
	// ServiceHTTPPort is the name of the port of every Service that the mesh
	// programs; Service, WorkloadEntry and Sidecar agree on it.
	ServiceHTTPPort = "http"
	// ServicePort is the port number under that name.
	ServicePort = 80
)

// ServiceConnectorPublic of the system namespace is where third-party systems
// reach the connector, which ends TLS itself.
const ServiceConnectorPublic = "connector-public"

// ServiceConnectorWebhooks of the system namespace is the same port, under the name
// that takes webhooks.
const ServiceConnectorWebhooks = "connector-webhooks"

// Secrets of the system namespace for the connector.
const (
	// SecretWebhooksTLS is the certificate of its public port under the names that
	// take webhooks.
	SecretWebhooksTLS = "webhooks-tls"
	// SecretConnectorTLS is the certificate (tls.crt, tls.key, ca.crt) of its
	// public port.
	SecretConnectorTLS = "connector-tls"
	// SecretConnectorCA is the authority that signs the certificates of paired
	// systems: tls.crt and tls.key sign, ca.crt holds all whose signatures are good.
	SecretConnectorCA = "connector-ca"
)

// SecretTypePairing is the type of Secrets with a pairing token: the connector may
// make and remove no others.
const SecretTypePairing = Group + "/pairing"

// DefaultGateway is the networking.istio.io/v1 Gateway that an APIRule uses
// when it names none, as namespace/name.
const DefaultGateway = SystemNamespace + "/gateway"

// Labels.
const (
	// LabelManagedBy with [ManagedBy] marks every object we generate, so that
	// stale ones can be found and pruned.
	LabelManagedBy = "app.kubernetes.io/managed-by"
	// ManagedBy is the value of [LabelManagedBy] and the prefix of our field
	// managers.
	ManagedBy = "lambdamesh"
	// LabelLambda carries the Lambda's name on its Deployment, pods, Service
	// and WorkloadEntries; the Service selects by it.
	LabelLambda = Group + "/lambda"
	// LabelReplica is unique per replica; a Sidecar object selects by it.
	LabelReplica = Group + "/replica"
	// LabelMember names a system workload (eventbus, connector) on its
	// WorkloadEntries.
	LabelMember = Group + "/member"
	// LabelOwnerNamespace and LabelOwnerName tie a generated object to the
	// object of ours it was made from where an owner reference cannot (other
	// namespace).
	LabelOwnerNamespace = Group + "/owner-namespace"
	LabelOwnerName      = Group + "/owner-name"
	// LabelApplication names the application on what the connector makes for it:
	// ApplicationServices, EventTypes, Secrets.
	LabelApplication = Group + "/application"
	// LabelService names the service there.
	LabelService = Group + "/service"
	// LabelServiceID carries the registry's id of an ApplicationService.
	LabelServiceID = Group + "/service-id"
	// LabelSidecar set to "true" on a pod asks for a sidecar, in a mesh without
	// Istio, and tells that there is one. A pod can get none later.
	LabelSidecar = Group + "/sidecar"
	// LabelIstioTLSMode set to "istio" tells a client proxy that this endpoint
	// speaks mutual TLS.
	LabelIstioTLSMode = "security.istio.io/tlsMode"
)

// Annotations.
const (
	// AnnotationDomain on a networking.istio.io/v1 Gateway completes host
	// labels of APIRules ("last-order" becomes "last-order.<domain>").
	AnnotationDomain = Group + "/domain"
	// AnnotationRotate on a Secret that the installation made, with any value, has
	// what is in it replaced.
	AnnotationRotate = Group + "/rotate"
	// AnnotationTrustedProxies on a networking.istio.io/v1 Gateway says how many
	// proxies stand before it and append to X-Forwarded-For the address they were
	// called from: that many from its right end the client's address is taken.
	// Whoever reaches the gateway past them can write any address there.
	AnnotationTrustedProxies = Group + "/trusted-proxies"
	// AnnotationProxyProtocol on a networking.istio.io/v1 Gateway with the value
	// "v2": each connection begins with a header of the PROXY protocol, version 2,
	// that tells the client's address; others are closed.
	AnnotationProxyProtocol = Group + "/proxy-protocol"
	// AnnotationAppAddress on a pod with a sidecar tells where its application
	// listens, "127.0.0.1:8080" or "unix:/var/run/lambdamesh/app/<name>"; unset:
	// what EnvListen says there.
	AnnotationAppAddress = Group + "/app-address"
	// AnnotationRuntime on a Deployment's pod template tells which runtime
	// server it runs.
	AnnotationRuntime = Group + "/runtime"
	// AnnotationScale on a lambda's Deployment tells who scales it between which
	// bounds, as JSON.
	AnnotationScale = Group + "/scale"
	// AnnotationSourceHash on a Deployment's pod template changes with the
	// source, so that a change rolls out.
	AnnotationSourceHash = Group + "/source-hash"
)

// ConfigMapMesh of a namespace holds what sidecars there read before they can be
// told anything: the mesh's CA and how to reach the control plane. The control
// plane keeps it, in a mesh without Istio.
const ConfigMapMesh = "lambdamesh-mesh"

// LocalImagePrefix begins the image of a Deployment whose artifact lies in the
// local artifact store of `lambdamesh dev`: lambdamesh.local/<runtime>:<hash>.
const LocalImagePrefix = "lambdamesh.local/"

// XDSTokenAudience is the audience of the service-account tokens with which
// data planes authenticate to the ADS server.
const XDSTokenAudience = "lambdamesh-xds"

// EventBusTokenAudience is the audience of the service-account tokens with which
// publishers outside the mesh, and users of the admin port, authenticate to the
// event bus. A token for the API server is not taken: who is shown one could use
// it there.
const EventBusTokenAudience = "lambdamesh-eventbus"

// Environment of a lambda's process: the contract between the Deployment and
// the runtime servers.
const (
	// EnvListen is where the runtime serves invocations: "unix:/path" or
	// "tcp:host:port". Unset: tcp on $PORT, else 8080.
	EnvListen = "LAMBDAMESH_LISTEN"
	// EnvAdminListen is where it serves /healthz, /readyz and /metrics, in the
	// same form. Unset: tcp::8081.
	EnvAdminListen  = "LAMBDAMESH_ADMIN_LISTEN"
	EnvLambda       = "LAMBDAMESH_LAMBDA"
	EnvNamespace    = "LAMBDAMESH_NAMESPACE"
	EnvHandler      = "LAMBDAMESH_HANDLER"
	EnvTimeout      = "LAMBDAMESH_TIMEOUT"        // a Go duration, "180s"
	EnvMaxBodyBytes = "LAMBDAMESH_MAX_BODY_BYTES" // decimal bytes
	// EnvConcurrency is how many invocations a replica takes at once. Ten times as
	// many wait, and who comes then is answered 503. Unset: any number at once.
	EnvConcurrency = "LAMBDAMESH_CONCURRENCY"
	// EnvSource is the directory with the lambda's source (or binary).
	EnvSource = "LAMBDAMESH_SOURCE"
	// EnvPublishURL is where context.publish posts CloudEvents.
	EnvPublishURL = "LAMBDAMESH_PUBLISH_URL"
	// EnvConnectorURL is the base for context.application(name).fetch:
	// <url>/<application>/<service>/<path>.
	EnvConnectorURL = "LAMBDAMESH_CONNECTOR_URL"
	// EnvSidecar is not empty when a sidecar of the mesh stands before EnvListen
	// and nothing else reaches that listener. Only then does a runtime believe
	// the headers that tell who calls; otherwise nobody is known and no call is
	// an event. Under Istio it is what the sidecar injector wrote into the pod.
	EnvSidecar = "LAMBDAMESH_SIDECAR"
	// EnvTrustDomain of the mesh's identities; unset: [DefaultTrustDomain].
	EnvTrustDomain = "LAMBDAMESH_TRUST_DOMAIN"
	// EnvSystemNamespace of event bus and connector; unset: [SystemNamespace].
	EnvSystemNamespace = "LAMBDAMESH_SYSTEM_NAMESPACE"
	// EnvGateways are the service accounts of the gateways, "namespace/name",
	// separated by commas; unset: the account gateway of the system namespace.
	EnvGateways = "LAMBDAMESH_GATEWAYS"
	// EnvHTTPProxy is the sidecar's egress listener; runtimes use it for both
	// URLs and as the default proxy for http. Locally its userinfo holds the
	// secret without which the listener answers 407.
	EnvHTTPProxy = "HTTP_PROXY"
	EnvNoProxy   = "NO_PROXY"
)

// EnvApplicationURL is the variable by which a bound lambda finds an application:
// APPLICATION_<NAME>_URL, the base for <url>/<service>/<path>. A name's '-' is '_'
// there.
func EnvApplicationURL(application string) string {
	return "APPLICATION_" + strings.ToUpper(strings.ReplaceAll(application, "-", "_")) + "_URL"
}

// SPIFFEID returns the identity of a service account, the URI SAN of its
// workload certificate (SPIFFE-ID, section 2; the path is Istio's).
func SPIFFEID(trustDomain, namespace, serviceAccount string) string {
	return "spiffe://" + trustDomain + "/ns/" + namespace + "/sa/" + serviceAccount
}

// LambdaSource is the CloudEvents source of a lambda's own events.
func LambdaSource(namespace, lambda string) string { return "/" + namespace + "/" + lambda }
