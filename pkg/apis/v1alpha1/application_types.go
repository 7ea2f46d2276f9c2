package v1alpha1

import (
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Application is a third-party system: the APIs it offers, the events it
// sends, its webhooks.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=app,categories=lambdamesh
// +kubebuilder:printcolumn:name="Display name",type=string,JSONPath=`.spec.displayName`
// +kubebuilder:printcolumn:name="Services",type=string,JSONPath=`.spec.services[*].name`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Message",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Ready")].message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="!(self.metadata.name in ['v1', 'publish', 'webhooks', 'admin'])",message="v1, publish, webhooks and admin are paths of the event bus: choose another name"
// +kubebuilder:validation:XValidation:rule="size(self.metadata.name) <= 63 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",message="metadata.name becomes the source of events and a path: use at most 63 of a-z, 0-9 and '-'"
type Application struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Spec ApplicationSpec `json:"spec,omitempty"`
	// +optional
	Status ApplicationStatus `json:"status,omitempty"`
}

// ApplicationList is a list of applications.
// +kubebuilder:object:root=true
type ApplicationList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Application `json:"items"`
}

// ApplicationSpec describes a third-party system.
type ApplicationSpec struct {
	// DisplayName for people.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	DisplayName string `json:"displayName,omitempty"`
	// Description for people.
	// +optional
	// +kubebuilder:validation:MaxLength=4096
	Description string `json:"description,omitempty"`
	// Labels for people and consoles.
	// +optional
	// +kubebuilder:validation:MaxProperties=64
	Labels map[string]string `json:"labels,omitempty"`
	// Services it offers.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=64
	Services []ApplicationService `json:"services,omitempty"`
	// Webhooks it sends.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=32
	Webhooks []Webhook `json:"webhooks,omitempty"`
	// Publishers are workloads inside the mesh that may publish events in this
	// application's name, such as an adapter for a system that cannot pair. The
	// namespace is required: an Application is cluster-scoped.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:XValidation:rule="has(self.namespace)",message="a publisher names its namespace"
	Publishers []LambdaAccess `json:"publishers,omitempty"`
	// Sources are CloudEvents sources this application speaks for besides its
	// name, such as https://shop.example.com: who may publish and read its events
	// may those of these sources. A source belongs to the oldest application that
	// names it.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=1024
	// +kubebuilder:validation:items:XValidation:rule="!self.matches('[\\\\s*]')",message="a source is a URI reference without blanks and '*', such as https://shop.example.com"
	// +kubebuilder:validation:items:XValidation:rule="!self.matches('^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$')",message="that is the name of an application, whose source it is: make an Application of that name"
	// +kubebuilder:validation:items:XValidation:rule="!self.matches('^/[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?/[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?$')",message="/<namespace>/<name> is the source of a workload: no application speaks for it; name the workload in publishers"
	Sources []string `json:"sources,omitempty"`
	// RevokedCertificates are the serial numbers of client certificates of this
	// application, as in status.certificates, that are no longer good, such as
	// those of a system that was broken into. A paired system revokes its own over
	// HTTP.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=40
	// +kubebuilder:validation:items:XValidation:rule="self.matches('^[0-9a-f]+$')",message="write the serial number as in status.certificates: lower-case hexadecimal digits"
	RevokedCertificates []string `json:"revokedCertificates,omitempty"`
}

// ApplicationService is an API, a set of events, or both.
// +kubebuilder:validation:XValidation:rule="has(self.api) || has(self.events)",message="a service needs api, events or both"
type ApplicationService struct {
	// Name in URLs: http://connector-outbound/<application>/<name>/<path>.
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",message="a service name is lower-case letters, digits and '-'"
	Name string `json:"name"`
	// ID as in the registry; made by it when absent.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	ID string `json:"id,omitempty"`
	// Provider of the service, for people.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	Provider string `json:"provider,omitempty"`
	// Description for people.
	// +optional
	// +kubebuilder:validation:MaxLength=4096
	Description string `json:"description,omitempty"`
	// Labels for people and consoles.
	// +optional
	// +kubebuilder:validation:MaxProperties=64
	Labels map[string]string `json:"labels,omitempty"`
	// API it serves.
	// +optional
	API *ServiceAPI `json:"api,omitempty"`
	// Events it sends.
	// +optional
	Events *ServiceEvents `json:"events,omitempty"`
}

// ServiceAPI is an HTTP API and the credentials to call it with.
type ServiceAPI struct {
	// TargetURL that paths are appended to.
	// +kubebuilder:validation:MaxLength=2048
	// +kubebuilder:validation:XValidation:rule="isURL(self) && url(self).getScheme() in ['http', 'https'] && url(self).getHostname() != '' && !self.contains('@') && !self.contains('?') && !self.contains('#')",message="targetUrl is an http(s) URL without user information, query or fragment, such as https://shop.example.com/api"
	// +kubebuilder:validation:XValidation:rule="!isURL(self) || self.matches(r'^[^/]*//([^:/?#[]*|[[][^]/]*])(:([1-9]\\d{0,3}|[1-5]\\d{4}|6[0-4]\\d{3}|65[0-4]\\d\\d|655[0-2]\\d|6553[0-5]))?([/?#]|$)')",message="the port of a URL is one of 1 to 65535"
	TargetURL string `json:"targetUrl"`
	// OpenAPI document, or a URL of it.
	// +optional
	// +kubebuilder:validation:MaxLength=262144
	OpenAPI string `json:"openapi,omitempty"`
	// Auth: credentials the connector adds. Absent: none.
	// +optional
	Auth *APIAuth `json:"auth,omitempty"`
	// Timeout of a call.
	// +optional
	// +kubebuilder:default="30s"
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('100ms') && duration(self) <= duration('3900s')",message="timeout must be between 100ms and 3900s, such as 30s"
	Timeout *metav1.Duration `json:"timeout,omitempty"`
}

// APIAuth is at most one of oauth2, basic, mtls, none, and what is added to
// every call.
// +kubebuilder:validation:XValidation:rule="[has(self.oauth2), has(self.basic), has(self.mtls), has(self.none)].filter(x, x).size() <= 1",message="auth takes at most one of oauth2, basic, mtls, none"
type APIAuth struct {
	// OAuth2 client credentials (RFC 6749, section 4.4).
	// +optional
	OAuth2 *OAuth2Auth `json:"oauth2,omitempty"`
	// Basic authentication (RFC 7617).
	// +optional
	Basic *BasicAuth `json:"basic,omitempty"`
	// MTLS client certificate.
	// +optional
	MTLS *MTLSAuth `json:"mtls,omitempty"`
	// None: true says on purpose that there is none.
	// +optional
	// +kubebuilder:validation:XValidation:rule="self",message="none is true or absent"
	None *bool `json:"none,omitempty"`
	// CSRF token fetched before a call.
	// +optional
	CSRF *CSRFAuth `json:"csrf,omitempty"`
	// Headers added to every call.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=32
	Headers []AddedValue `json:"headers,omitempty"`
	// AllowCallerToken lets a lambda bring a token of its own in the header
	// Access-Token, which is then sent instead of the application's credentials.
	// Default: the header is removed.
	// +optional
	AllowCallerToken bool `json:"allowCallerToken,omitempty"`
	// QueryParameters added to every call.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=32
	QueryParameters []AddedValue `json:"queryParameters,omitempty"`
}

// OAuth2Auth is the client credentials grant.
type OAuth2Auth struct {
	// TokenURL of the authorization server.
	// +kubebuilder:validation:MaxLength=2048
	// +kubebuilder:validation:XValidation:rule="isURL(self) && url(self).getScheme() in ['http', 'https'] && url(self).getHostname() != '' && !self.contains('@')",message="tokenUrl is an http(s) URL without user information"
	// +kubebuilder:validation:XValidation:rule="!isURL(self) || self.matches(r'^[^/]*//([^:/?#[]*|[[][^]/]*])(:([1-9]\\d{0,3}|[1-5]\\d{4}|6[0-4]\\d{3}|65[0-4]\\d\\d|655[0-2]\\d|6553[0-5]))?([/?#]|$)')",message="the port of a URL is one of 1 to 65535"
	TokenURL string `json:"tokenUrl"`
	// Secret with the keys clientId and clientSecret.
	Secret SecretRef `json:"secret"`
	// Scopes to ask for; default those the server gives.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=32
	Scopes []string `json:"scopes,omitempty"`
	// Audience parameter, where the server wants one.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Audience string `json:"audience,omitempty"`
	// AuthStyle: how the client authenticates to the token URL.
	// +optional
	// +kubebuilder:default=header
	// +kubebuilder:validation:Enum=header;params
	AuthStyle string `json:"authStyle,omitempty"`
}

// BasicAuth is a user name and a password.
type BasicAuth struct {
	// Secret with the keys username and password.
	Secret SecretRef `json:"secret"`
}

// MTLSAuth is a client certificate.
type MTLSAuth struct {
	// Secret with the keys tls.crt and tls.key, and ca.crt where the server's
	// CA is private.
	Secret SecretRef `json:"secret"`
}

// CSRFAuth is a token fetched before a call.
type CSRFAuth struct {
	// TokenURL that the token is fetched from, with the same credentials.
	// +kubebuilder:validation:MaxLength=2048
	// +kubebuilder:validation:XValidation:rule="isURL(self) && url(self).getScheme() in ['http', 'https'] && url(self).getHostname() != '' && !self.contains('@')",message="tokenUrl is an http(s) URL without user information"
	// +kubebuilder:validation:XValidation:rule="!isURL(self) || self.matches(r'^[^/]*//([^:/?#[]*|[[][^]/]*])(:([1-9]\\d{0,3}|[1-5]\\d{4}|6[0-4]\\d{3}|65[0-4]\\d\\d|655[0-2]\\d|6553[0-5]))?([/?#]|$)')",message="the port of a URL is one of 1 to 65535"
	TokenURL string `json:"tokenUrl"`
}

// AddedValue is a header or query parameter, its value here or in a Secret.
// +kubebuilder:validation:XValidation:rule="has(self.value) != has(self.secret)",message="write either value or secret"
type AddedValue struct {
	// Name of the header or query parameter.
	// +kubebuilder:validation:MaxLength=128
	// +kubebuilder:validation:Pattern=`^[A-Za-z0-9_.-]+$`
	Name string `json:"name"`
	// Value, where it is no secret.
	// +optional
	// +kubebuilder:validation:MaxLength=4096
	Value string `json:"value,omitempty"`
	// Secret with the value.
	// +optional
	Secret *SecretKeyRef `json:"secret,omitempty"`
}

// SecretRef names a Secret of the system namespace; an Application is
// cluster-scoped, and its credentials are not the tenants'.
type SecretRef struct {
	// Name of the Secret.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
}

// SecretKeyRef names a key of a Secret of the system namespace.
type SecretKeyRef struct {
	// Name of the Secret.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
	// Key in its data.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Key string `json:"key"`
}

// ServiceEvents is a catalog of events.
type ServiceEvents struct {
	// AsyncAPI document.
	// +optional
	// +kubebuilder:validation:MaxLength=262144
	AsyncAPI string `json:"asyncapi,omitempty"`
}

// Webhook is a signed call of the third-party system that becomes events.
type Webhook struct {
	// Name in the URL: /webhooks/<application>/<name>.
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",message="a webhook name is lower-case letters, digits and '-'"
	Name string `json:"name"`
	// Provider whose signature scheme is checked.
	// +kubebuilder:validation:Enum=shopify;stripe;commercetools;github;hmac
	Provider string `json:"provider"`
	// SecretName of a Secret of the system namespace with the key secret.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	SecretName string `json:"secretName"`
	// Types: the provider's topics that are taken; empty: all.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=128
	Types []string `json:"types,omitempty"`
}

// SourceOwner returns the application that speaks for a source: the one of that
// name, or the oldest that names it in spec.sources. False: none does.
func SourceOwner(applications []Application, source string) (owner *Application, ok bool) {
	for i := range applications {
		app := &applications[i]
		if !app.DeletionTimestamp.IsZero() {
			continue
		}
		if app.Name == source {
			return app, true
		}
		if slices.Contains(app.Spec.Sources, source) && (owner == nil || app.olderThan(owner)) {
			owner = app
		}
	}
	return owner, owner != nil
}

// olderThan orders by creation, then by name, so that everybody who asks gets
// the same answer.
func (a *Application) olderThan(b *Application) bool {
	if !a.CreationTimestamp.Equal(&b.CreationTimestamp) {
		return a.CreationTimestamp.Before(&b.CreationTimestamp)
	}
	return a.Name < b.Name
}

// ApplicationStatus is what was observed.
type ApplicationStatus struct {
	CommonStatus `json:",inline"`
	// Certificates with which the application is let in, the youngest last: the
	// connector takes no other. At most 32 are good at a time, the oldest goes when
	// there is another. What has expired is removed.
	// +optional
	// +listType=map
	// +listMapKey=serial
	// +kubebuilder:validation:MaxItems=64
	Certificates []ClientCertificate `json:"certificates,omitempty"`
}

// ClientCertificate is one that was issued to an application.
type ClientCertificate struct {
	// Serial number, in lower-case hexadecimal digits.
	// +kubebuilder:validation:MaxLength=40
	Serial string `json:"serial"`
	// IssuedAt is when it was signed.
	IssuedAt metav1.Time `json:"issuedAt"`
	// ExpiresAt is the end of its life.
	ExpiresAt metav1.Time `json:"expiresAt"`
	// RevokedAt is when the paired system revoked it.
	// +optional
	RevokedAt *metav1.Time `json:"revokedAt,omitempty"`
}

// ApplicationBinding lets lambdas of a namespace call an application's APIs
// and subscribe to its events.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=apb,categories=lambdamesh
// +kubebuilder:printcolumn:name="Application",type=string,JSONPath=`.spec.application`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Message",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Ready")].message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type ApplicationBinding struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec ApplicationBindingSpec `json:"spec"`
	// +optional
	Status ApplicationBindingStatus `json:"status,omitempty"`
}

// ApplicationBindingList is a list of application bindings.
// +kubebuilder:object:root=true
type ApplicationBindingList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ApplicationBinding `json:"items"`
}

// ApplicationBindingSpec says which services which lambdas may use.
type ApplicationBindingSpec struct {
	// Application that is bound.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Application string `json:"application"`
	// Services of it; empty: all.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=63
	Services []string `json:"services,omitempty"`
	// Lambdas that may call its APIs. Absent: none; events may be subscribed in
	// this namespace all the same.
	// +optional
	Lambdas *LambdaSelection `json:"lambdas,omitempty"`
}

// LambdaSelection picks lambdas of the namespace by name or by label.
// +kubebuilder:validation:XValidation:rule="has(self.names) || has(self.selector)",message="write names, selector or both; a lambda that either picks is bound"
type LambdaSelection struct {
	// Names of lambdas of this namespace.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MaxLength=63
	Names []string `json:"names,omitempty"`
	// Selector over the lambdas' labels; {} picks all.
	// +optional
	Selector *metav1.LabelSelector `json:"selector,omitempty"`
}

// ApplicationBindingStatus is what was observed.
type ApplicationBindingStatus struct {
	CommonStatus `json:",inline"`
}

// TokenRequest asks for a one-time token with which an application pairs.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=tkr,categories=lambdamesh
// +kubebuilder:printcolumn:name="Application",type=string,JSONPath=`.spec.application`
// +kubebuilder:printcolumn:name="Secret",type=string,JSONPath=`.status.secretName`
// +kubebuilder:printcolumn:name="Expires",type=date,JSONPath=`.status.expiresAt`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type TokenRequest struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec TokenRequestSpec `json:"spec"`
	// +optional
	Status TokenRequestStatus `json:"status,omitempty"`
}

// TokenRequestList is a list of token requests.
// +kubebuilder:object:root=true
type TokenRequestList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []TokenRequest `json:"items"`
}

// TokenRequestSpec names the application.
type TokenRequestSpec struct {
	// Application that will pair.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a TokenRequest cannot change: make a new one"
	Application string `json:"application"`
}

// TokenRequestStatus names the Secret with the token.
type TokenRequestStatus struct {
	CommonStatus `json:",inline"`
	// SecretName of a Secret with token and url; it goes on use or expiry.
	// +optional
	SecretName string `json:"secretName,omitempty"`
	// ExpiresAt is when the token can no longer be used.
	// +optional
	ExpiresAt *metav1.Time `json:"expiresAt,omitempty"`
	// TokenHash is the SHA-256 of the token, as hexadecimal digits: what the
	// connector knows it by. It goes with the token.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	TokenHash string `json:"tokenHash,omitempty"`
	// UsedAt is when a certificate was issued for the token.
	// +optional
	UsedAt *metav1.Time `json:"usedAt,omitempty"`
}

// Conditions implements [Object].
func (a *Application) Conditions() *[]metav1.Condition { return &a.Status.CommonStatus.Conditions }

// SetObservedGeneration implements [Object].
func (a *Application) SetObservedGeneration(g int64) { a.Status.ObservedGeneration = g }

// Conditions implements [Object].
func (b *ApplicationBinding) Conditions() *[]metav1.Condition {
	return &b.Status.CommonStatus.Conditions
}

// SetObservedGeneration implements [Object].
func (b *ApplicationBinding) SetObservedGeneration(g int64) { b.Status.ObservedGeneration = g }

// Conditions implements [Object].
func (t *TokenRequest) Conditions() *[]metav1.Condition { return &t.Status.CommonStatus.Conditions }

// SetObservedGeneration implements [Object].
func (t *TokenRequest) SetObservedGeneration(g int64) { t.Status.ObservedGeneration = g }
