package v1alpha1

import (
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// Application is a third-party system: the APIs it offers, the events it
// sends, its webhooks.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=app,categories=lambdamesh
// +kubebuilder:printcolumn:name="Display name",type=string,JSONPath=`.spec.displayName`
// +kubebuilder:printcolumn:name="Services",type=integer,JSONPath=`.status.services`
// +kubebuilder:printcolumn:name="Event types",type=integer,JSONPath=`.status.eventTypes`
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
	// Services it offers, for small catalogs. Each service of a large one is an
	// ApplicationService; the registry makes those.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=64
	Services []InlineService `json:"services,omitempty"`
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

// Webhook is a signed call of the third-party system that becomes an event of the
// application's. It comes to https://<connector's webhook name>/webhooks/<application>/<name>.
// +kubebuilder:validation:XValidation:rule="!has(self.hmac) || self.provider == 'hmac'",message="hmac is for the provider hmac: the schemes of the others are known"
type Webhook struct {
	// Name in the URL: /webhooks/<application>/<name>.
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",message="a webhook name is lower-case letters, digits and '-'"
	Name string `json:"name"`
	// Provider whose signature scheme is checked. hmac without the field of that
	// name is Standard Webhooks (webhook-id, webhook-timestamp, webhook-signature).
	// +kubebuilder:validation:Enum=shopify;stripe;commercetools;github;hmac
	Provider string `json:"provider"`
	// SecretName of a Secret of the system namespace with the key secret, and,
	// while the secret is being replaced, the key previous: both are good then. For
	// commercetools it is the value of the header Authorization.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	SecretName string `json:"secretName"`
	// Types: the provider's topics that are taken, such as orders/create of Shopify,
	// charge.succeeded of Stripe, pull_request of GitHub, OrderCreated of
	// commercetools; empty: all. Others are answered 200 and not stored.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=128
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=253
	Types []string `json:"types,omitempty"`
	// HMAC says how a system signs that does not as Standard Webhooks has it.
	// +optional
	HMAC *HMACScheme `json:"hmac,omitempty"`
}

// Encodings of signatures and algorithms of [HMACScheme].
const (
	EncodingHex     = "hex"
	EncodingBase64  = "base64"
	AlgorithmSHA256 = "sha256"
	AlgorithmSHA512 = "sha512"
)

// HMACScheme is how a request is signed: the HMAC of its body, or of
// <timestamp>.<body>, in a header.
type HMACScheme struct {
	// Header with the signature, such as X-Signature.
	// +kubebuilder:validation:MaxLength=128
	// +kubebuilder:validation:XValidation:rule="self.matches('^[A-Za-z0-9-]+$')",message="write the name of a header, such as X-Signature"
	Header string `json:"header"`
	// Prefix of the signature in the header, such as sha256=.
	// +optional
	// +kubebuilder:validation:MaxLength=32
	Prefix string `json:"prefix,omitempty"`
	// Encoding of the signature.
	// +optional
	// +kubebuilder:validation:Enum=hex;base64
	// +kubebuilder:default=hex
	Encoding string `json:"encoding,omitempty"`
	// Algorithm of the hash.
	// +optional
	// +kubebuilder:validation:Enum=sha256;sha512
	// +kubebuilder:default=sha256
	Algorithm string `json:"algorithm,omitempty"`
	// TimestampHeader holds when the request was signed, in Unix seconds. What is
	// signed is then <timestamp>.<body>, and what is older than five minutes is
	// refused. Absent: the body alone is signed, and a request that somebody has
	// recorded is told apart from a new one by its body only.
	// +optional
	// +kubebuilder:validation:MaxLength=128
	// +kubebuilder:validation:XValidation:rule="self.matches('^[A-Za-z0-9-]+$')",message="write the name of a header, such as X-Timestamp"
	TimestampHeader string `json:"timestampHeader,omitempty"`
	// TypePointer is where the body, JSON, says the type of the event (RFC 6901);
	// where there is none the type is the webhook's name.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	// +kubebuilder:validation:XValidation:rule="self.startsWith('/')",message="write a JSON pointer, such as /type"
	// +kubebuilder:default=/type
	TypePointer string `json:"typePointer,omitempty"`
	// IDPointer is where the body says the id of the event; where there is none two
	// requests with the same body are one event.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	// +kubebuilder:validation:XValidation:rule="self.startsWith('/')",message="write a JSON pointer, such as /id"
	IDPointer string `json:"idPointer,omitempty"`
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
	// there is another. What has expired is removed when there are others.
	// +optional
	// +listType=map
	// +listMapKey=serial
	// +kubebuilder:validation:MaxItems=64
	Certificates []ClientCertificate `json:"certificates,omitempty"`
	// Services it offers, in its spec and as ApplicationServices.
	// +optional
	Services int32 `json:"services,omitempty"`
	// ServicesNotReady are those of them that cannot be used as they are.
	// +optional
	ServicesNotReady int32 `json:"servicesNotReady,omitempty"`
	// EventTypes known of it.
	// +optional
	EventTypes int32 `json:"eventTypes,omitempty"`
	// EventTypesOfServices are those of them that ApplicationServices name.
	// +optional
	EventTypesOfServices int32 `json:"eventTypesOfServices,omitempty"`
	// Calls of lambdas to its APIs.
	// +optional
	Calls *CallStatus `json:"calls,omitempty"`
	// Events it has sent, with its certificate and by webhooks.
	// +optional
	Events *EventStatus `json:"events,omitempty"`
	// Webhooks of it that were called.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=32
	Webhooks []WebhookStatus `json:"webhooks,omitempty"`
}

// EventStatus counts events that a third-party system sent. It lags behind by up
// to half a minute.
type EventStatus struct {
	// Requests with events that the event bus has stored; a repeated one counts.
	// +optional
	Total int64 `json:"total,omitempty"`
	// LastEvent is when the last one was.
	// +optional
	LastEvent *metav1.Time `json:"lastEvent,omitempty"`
}

// WebhookStatus is what came to a webhook. It lags behind by up to half a minute.
type WebhookStatus struct {
	// Name of the webhook.
	// +kubebuilder:validation:MaxLength=63
	Name string `json:"name"`
	// Events: requests that became events; a repeated one counts.
	// +optional
	Events int64 `json:"events,omitempty"`
	// LastEvent is when the last one was.
	// +optional
	LastEvent *metav1.Time `json:"lastEvent,omitempty"`
	// Refused requests.
	// +optional
	Refused int64 `json:"refused,omitempty"`
	// LastRefused is when the last one was.
	// +optional
	LastRefused *metav1.Time `json:"lastRefused,omitempty"`
	// LastRefusedReason says why: Signature, Stale, NoSecret, Malformed, TooLarge,
	// TooMany or EventBus. The caller is not told.
	// +optional
	LastRefusedReason string `json:"lastRefusedReason,omitempty"`
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

// CallStatus counts calls. It lags behind by up to half a minute.
type CallStatus struct {
	// Total of calls.
	// +optional
	Total int64 `json:"total,omitempty"`
	// Errors: calls that were answered 5xx by the target, or not at all.
	// +optional
	Errors int64 `json:"errors,omitempty"`
	// LastCall is when the last one was made.
	// +optional
	LastCall *metav1.Time `json:"lastCall,omitempty"`
	// LastError is when the last error was.
	// +optional
	LastError *metav1.Time `json:"lastError,omitempty"`
	// LastErrorMessage says what it was.
	// +optional
	LastErrorMessage string `json:"lastErrorMessage,omitempty"`
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
	// +kubebuilder:validation:MaxItems=256
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

// Picks reports whether the selection holds the lambda of a name and labels. A
// selector that cannot be read picks nobody.
func (s *LambdaSelection) Picks(name string, of map[string]string) bool {
	if s == nil {
		return false
	}
	if slices.Contains(s.Names, name) {
		return true
	}
	if s.Selector == nil {
		return false
	}
	selector, err := metav1.LabelSelectorAsSelector(s.Selector)
	return err == nil && selector.Matches(labels.Set(of))
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
