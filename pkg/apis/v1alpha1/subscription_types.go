package v1alpha1

import (
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Subscription has events pushed to a sink, each at least once, until the sink
// answered 2xx or the event lies in the dead-letter store.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=sub,categories=lambdamesh
// +kubebuilder:printcolumn:name="Source",type=string,JSONPath=`.spec.source`
// +kubebuilder:printcolumn:name="Types",type=string,JSONPath=`.spec.types`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Pending",type=integer,JSONPath=`.status.pending`
// +kubebuilder:printcolumn:name="Delivered",type=integer,JSONPath=`.status.delivered`
// +kubebuilder:printcolumn:name="Dead",type=integer,JSONPath=`.status.deadLettered`
// +kubebuilder:printcolumn:name="Message",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Ready")].message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Subscription struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec SubscriptionSpec `json:"spec"`
	// +optional
	Status SubscriptionStatus `json:"status,omitempty"`
}

// SubscriptionList is a list of subscriptions.
// +kubebuilder:object:root=true
type SubscriptionList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Subscription `json:"items"`
}

// SubscriptionSpec says which events go where and how hard to try.
type SubscriptionSpec struct {
	// Source: an application bound in this namespace, whose further sources come
	// with it; /<namespace>/<lambda>; another CloudEvents source, one that an
	// application bound here speaks for, or, where the operator leaves them open,
	// one that nobody owns; or "*" for all that this namespace may read.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	// +kubebuilder:validation:XValidation:rule="self == '*' || self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$') || self.matches('^(/[^*/\\\\s]+){2,}$') || self.matches('^[a-z][-a-z0-9+.]*:[^*\\\\s]+$')",message="source is an application's name, /<namespace>/<lambda>, or *; other CloudEvents sources are URIs such as https://shop.example.com"
	Source string `json:"source"`
	// Types of events: dot-separated tokens, `*` for one token, `**` last for
	// the rest. Overlapping patterns deliver an event once.
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=253
	// +kubebuilder:validation:items:XValidation:rule="self.matches('^([*][*]|([*]|[^.*>\\\\s]+)([.]([*]|[^.*>\\\\s]+))*([.][*][*])?)$')",message="a type is dot-separated tokens such as order.created.v1; * stands for one token and ** for the rest, at the end only"
	Types []string `json:"types"`
	// Filters of the CloudEvents Subscriptions API, section 3.2.4.1: objects with
	// one of exact, prefix, suffix, all, any, not, sql; or data. All must hold. They
	// have 64 KiB together, and are nested 8 deep at most.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=16
	Filters []Filter `json:"filters,omitempty"`
	// Sink that the events are pushed to.
	Sink Sink `json:"sink"`
	// Delivery: format, concurrency, retry and dead letters.
	// +optional
	// +kubebuilder:default={}
	Delivery Delivery `json:"delivery,omitempty"`
	// Start: where a new subscription begins.
	// +optional
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="start is where the subscription began and cannot change; to begin elsewhere make a new Subscription"
	Start *Start `json:"start,omitempty"`
	// Paused stops deliveries; events wait.
	// +optional
	Paused bool `json:"paused,omitempty"`
}

// Filter is exactly one of its fields.
// +kubebuilder:validation:MinProperties=1
// +kubebuilder:validation:MaxProperties=1
type Filter struct {
	// Exact: attributes that have these values.
	// +optional
	// +kubebuilder:validation:MinProperties=1
	// +kubebuilder:validation:MaxProperties=64
	Exact map[string]string `json:"exact,omitempty"`
	// Prefix: attributes that begin so.
	// +optional
	// +kubebuilder:validation:MinProperties=1
	// +kubebuilder:validation:MaxProperties=64
	Prefix map[string]string `json:"prefix,omitempty"`
	// Suffix: attributes that end so.
	// +optional
	// +kubebuilder:validation:MinProperties=1
	// +kubebuilder:validation:MaxProperties=64
	Suffix map[string]string `json:"suffix,omitempty"`
	// All: filters that must all hold.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	All []apiextensionsv1.JSON `json:"all,omitempty"`
	// Any: filters of which one must hold.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	Any []apiextensionsv1.JSON `json:"any,omitempty"`
	// Not: a filter that must not hold.
	// +optional
	// +kubebuilder:validation:Type=object
	Not *apiextensionsv1.JSON `json:"not,omitempty"`
	// SQL: a CloudEvents SQL expression.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=4096
	SQL string `json:"sql,omitempty"`
	// Data: conditions on the JSON data, all of which must hold. Data that is not
	// JSON fulfills none.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	Data []DataCondition `json:"data,omitempty"`
}

// DataCondition is about the value that a pointer leads to: what else it has, one
// or more, must all hold.
// +kubebuilder:validation:MinProperties=2
type DataCondition struct {
	// Pointer to the value (RFC 6901), at most 16 levels deep.
	// +kubebuilder:validation:MaxLength=256
	// +kubebuilder:validation:XValidation:rule="self.matches('^(/([^/~]|~[01])*){0,16}$')",message="pointer is a JSON Pointer of at most 16 levels, such as /order/total"
	Pointer string `json:"pointer"`
	// Exact value: a string, a number, true or false.
	// +optional
	Exact *apiextensionsv1.JSON `json:"exact,omitempty"`
	// Prefix of a string.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Prefix *string `json:"prefix,omitempty"`
	// Suffix of a string.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Suffix *string `json:"suffix,omitempty"`
	// GT: a number greater than this.
	// +optional
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:Type=number
	GT *apiextensionsv1.JSON `json:"gt,omitempty"`
	// GTE: a number at least this.
	// +optional
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:Type=number
	GTE *apiextensionsv1.JSON `json:"gte,omitempty"`
	// LT: a number less than this.
	// +optional
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:Type=number
	LT *apiextensionsv1.JSON `json:"lt,omitempty"`
	// LTE: a number at most this.
	// +optional
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:Type=number
	LTE *apiextensionsv1.JSON `json:"lte,omitempty"`
	// Exists: whether there is such a value, null included.
	// +optional
	Exists *bool `json:"exists,omitempty"`
}

// Sink is exactly one of lambda, service, uri.
// +kubebuilder:validation:XValidation:rule="!has(self.auth) || has(self.uri)",message="auth goes with uri: a lambda and a service know the event bus by its identity in the mesh"
// +kubebuilder:validation:XValidation:rule="!has(self.auth) || !has(self.auth.mtls) || (has(self.uri) && self.uri.startsWith('https://'))",message="auth.mtls needs a uri that begins with https://"
// +kubebuilder:validation:XValidation:rule="[has(self.lambda), has(self.service), has(self.uri)].filter(x, x).size() == 1",message="a sink needs exactly one of lambda, service, uri"
type Sink struct {
	// Lambda of this namespace.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Lambda string `json:"lambda,omitempty"`
	// Service and path.
	// +optional
	Service *SinkService `json:"service,omitempty"`
	// URI that allowedTargets allow, or http://NAME.NAMESPACE.svc:PORT/PATH of a
	// Service in this namespace.
	// +optional
	// +kubebuilder:validation:MaxLength=2048
	// +kubebuilder:validation:XValidation:rule="isURL(self) && url(self).getScheme() in ['http', 'https'] && url(self).getHostname() != '' && !self.contains('@')",message="uri is an http(s) URL without user information, such as https://hooks.example.com/orders"
	// +kubebuilder:validation:XValidation:rule="!isURL(self) || self.matches(r'^[^/]*//([^:/?#[]*|[[][^]/]*])(:([1-9]\\d{0,3}|[1-5]\\d{4}|6[0-4]\\d{3}|65[0-4]\\d\\d|655[0-2]\\d|6553[0-5]))?([/?#]|$)')",message="the port of a URL is one of 1 to 65535"
	URI string `json:"uri,omitempty"`
	// Auth is what the sink behind uri knows the event bus by.
	// +optional
	Auth *SinkAuth `json:"auth,omitempty"`
}

// SinkService is a path on a port of a Service.
type SinkService struct {
	ServiceRef `json:",inline"`
	// Path; default /.
	// +optional
	// +kubebuilder:default=/
	// +kubebuilder:validation:MaxLength=1024
	// +kubebuilder:validation:Pattern=`^/[^?#\s]*$`
	Path string `json:"path,omitempty"`
}

// DeliveryFormat of a push.
// +kubebuilder:validation:Enum=binary;structured;legacy
type DeliveryFormat string

// Delivery formats.
const (
	// FormatBinary: attributes in ce- headers (CloudEvents HTTP binding 3.1).
	FormatBinary DeliveryFormat = "binary"
	// FormatStructured: application/cloudevents+json (HTTP binding 3.2).
	FormatStructured DeliveryFormat = "structured"
	// FormatLegacy: KYMA-* headers, the body is data.
	FormatLegacy DeliveryFormat = "legacy"
)

// Delivery says how events are pushed.
type Delivery struct {
	// Format of the push.
	// +optional
	// +kubebuilder:default=binary
	Format DeliveryFormat `json:"format,omitempty"`
	// Timeout of one push.
	// +optional
	// +kubebuilder:default="30s"
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('100ms') && duration(self) <= duration('3900s')",message="timeout must be between 100ms and 3900s, such as 30s"
	Timeout *metav1.Duration `json:"timeout,omitempty"`
	// MaxInFlight pushes at once.
	// +optional
	// +kubebuilder:default=100
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=10000
	MaxInFlight *int32 `json:"maxInFlight,omitempty"`
	// OrderBy is an attribute or extension; events of one value are pushed one
	// after another. Unset: no order.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:Pattern=`^[a-z0-9]+$`
	OrderBy string `json:"orderBy,omitempty"`
	// Rate at which events are pushed at most; unset: as fast as the sink takes them.
	// +optional
	Rate *Rate `json:"rate,omitempty"`
	// Retry of a push that was not answered 2xx. 400, 413, 415 and 422 say that the
	// event is wrong: it is a dead letter at once. 410 pauses the subscription until
	// it is changed.
	// +optional
	// +kubebuilder:default={}
	Retry Retry `json:"retry,omitempty"`
	// DeadLetter: where an exhausted event goes besides the dead-letter store.
	// +optional
	DeadLetter *DeadLetter `json:"deadLetter,omitempty"`
}

// Rate is a number of events in a time, evenly spread.
// +kubebuilder:validation:XValidation:rule="!has(self.per) || (duration(self.per) >= duration('1s') && duration(self.per) <= duration('24h'))",message="per must be between 1s and 24h, such as 1s"
type Rate struct {
	// Events in that time.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000000
	Events int32 `json:"events"`
	// Per is the time; default 1s.
	// +optional
	// +kubebuilder:default="1s"
	Per *metav1.Duration `json:"per,omitempty"`
}

// Retry is exponential with jitter; a Retry-After of the sink is honored. While a
// sink is not reachable its events are held back, use up no attempts, and flow when
// it is back.
// +kubebuilder:validation:XValidation:rule="!has(self.minBackoff) || !has(self.maxBackoff) || duration(self.minBackoff) <= duration(self.maxBackoff)",message="minBackoff must not be greater than maxBackoff"
type Retry struct {
	// MaxAttempts in all, the first included; an attempt is a request that was sent.
	// Unset: until maxAge.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	MaxAttempts *int32 `json:"maxAttempts,omitempty"`
	// MinBackoff before the second attempt.
	// +optional
	// +kubebuilder:default="1s"
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('10ms') && duration(self) <= duration('24h')",message="minBackoff must be between 10ms and 24h, such as 1s"
	MinBackoff *metav1.Duration `json:"minBackoff,omitempty"`
	// MaxBackoff between two attempts.
	// +optional
	// +kubebuilder:default="10m"
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('10ms') && duration(self) <= duration('24h')",message="maxBackoff must be between 10ms and 24h, such as 10m"
	MaxBackoff *metav1.Duration `json:"maxBackoff,omitempty"`
	// MaxAge of an event after it was accepted or, if later, the subscription was
	// created; older ones become dead letters, also while nothing is pushed.
	// +optional
	// +kubebuilder:default="24h"
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1s') && duration(self) <= duration('144h')",message="maxAge must be between 1s and 144h, such as 24h"
	MaxAge *metav1.Duration `json:"maxAge,omitempty"`
}

// DeadLetter is an extra sink of exhausted events.
type DeadLetter struct {
	// Sink that exhausted events are pushed to as well.
	Sink Sink `json:"sink"`
}

// Start is where a new subscription begins: exactly one of from, time,
// sequence.
// +kubebuilder:validation:XValidation:rule="[has(self.from), has(self.time), has(self.sequence)].filter(x, x).size() == 1",message="start needs exactly one of from: new|earliest, time, sequence"
type Start struct {
	// From new events on, or from the earliest that is stored.
	// +optional
	// +kubebuilder:validation:Enum=new;earliest
	From string `json:"from,omitempty"`
	// Time of acceptance to begin at.
	// +optional
	Time *metav1.Time `json:"time,omitempty"`
	// Sequence to begin at.
	// +optional
	// +kubebuilder:validation:Minimum=1
	Sequence *int64 `json:"sequence,omitempty"`
}

// SubscriptionStatus is what was observed.
type SubscriptionStatus struct {
	CommonStatus `json:",inline"`
	// Pending events that wait for a push.
	// +optional
	Pending int64 `json:"pending"`
	// InFlight pushes, and events that wait for their next attempt.
	// +optional
	InFlight int64 `json:"inFlight"`
	// Delivered events.
	// +optional
	Delivered int64 `json:"delivered"`
	// Redelivered counts attempts after the first.
	// +optional
	Redelivered int64 `json:"redelivered"`
	// DeadLettered events.
	// +optional
	DeadLettered int64 `json:"deadLettered"`
	// LastError of a push.
	// +optional
	LastError string `json:"lastError,omitempty"`
	// OldestPending is when the oldest event that waits was accepted.
	// +optional
	OldestPending *metav1.Time `json:"oldestPending,omitempty"`
}

// EventGrant lets another namespace read events of this one.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=evg,categories=lambdamesh
// +kubebuilder:printcolumn:name="Namespaces",type=string,JSONPath=`.spec.namespaces`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type EventGrant struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec EventGrantSpec `json:"spec"`
	// +optional
	Status EventGrantStatus `json:"status,omitempty"`
}

// EventGrantList is a list of event grants.
// +kubebuilder:object:root=true
type EventGrantList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []EventGrant `json:"items"`
}

// EventGrantSpec says who may read which events of this namespace.
type EventGrantSpec struct {
	// Namespaces that may subscribe.
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=63
	Namespaces []string `json:"namespaces"`
	// Lambdas of this namespace whose events they may read; empty: all.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=63
	Lambdas []string `json:"lambdas,omitempty"`
}

// EventGrantStatus is what was observed.
type EventGrantStatus struct {
	CommonStatus `json:",inline"`
}

// Conditions implements [Object].
func (s *Subscription) Conditions() *[]metav1.Condition { return &s.Status.CommonStatus.Conditions }

// SetObservedGeneration implements [Object].
func (s *Subscription) SetObservedGeneration(g int64) { s.Status.ObservedGeneration = g }

// Conditions implements [Object].
func (g *EventGrant) Conditions() *[]metav1.Condition { return &g.Status.CommonStatus.Conditions }

// SetObservedGeneration implements [Object].
func (g *EventGrant) SetObservedGeneration(n int64) { g.Status.ObservedGeneration = n }
