package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// APIRule exposes lambdas (or Services) through the mesh gateway.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=apir,categories=lambdamesh
// +kubebuilder:printcolumn:name="Hosts",type=string,JSONPath=`.spec.hosts`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Programmed",type=string,JSONPath=`.status.conditions[?(@.type=="Programmed")].status`
// +kubebuilder:printcolumn:name="URLs",type=string,JSONPath=`.status.urls`
// +kubebuilder:printcolumn:name="Message",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Ready")].message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type APIRule struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec APIRuleSpec `json:"spec"`
	// +optional
	Status APIRuleStatus `json:"status,omitempty"`
}

// APIRuleList is a list of API rules.
// +kubebuilder:object:root=true
type APIRuleList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []APIRule `json:"items"`
}

// APIRuleSpec says which requests go where, and who may make them.
type APIRuleSpec struct {
	// Hosts: a label completed with the gateway's domain ("last-order"), a
	// fully qualified name, or *.name. A host belongs to the oldest APIRule that
	// claims it.
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=253
	// +kubebuilder:validation:items:XValidation:rule="self.matches('^([*][.])?[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?([.][a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$')",message="a host is a lower-case label (last-order), a full name (orders.example.com) or *.name, without scheme, port or path"
	Hosts []string `json:"hosts"`
	// Gateway is the networking.istio.io/v1 Gateway as namespace/name.
	// +optional
	// +kubebuilder:default="lambdamesh-system/gateway"
	// +kubebuilder:validation:MaxLength=127
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?/[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')",message="gateway is written namespace/name, such as lambdamesh-system/gateway"
	Gateway string `json:"gateway,omitempty"`
	// CORS answers preflight requests of browsers.
	// +optional
	CORS *CORSPolicy `json:"cors,omitempty"`
	// Timeout of a request, for rules without one of their own.
	// +optional
	// +kubebuilder:default="180s"
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1s') && duration(self) <= duration('3900s')",message="timeout must be between 1s and 3900s, such as 30s"
	Timeout *metav1.Duration `json:"timeout,omitempty"`
	// Rules are tried in order; the first match decides route, backend and
	// auth together. No match: 404.
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	Rules []Rule `json:"rules"`
}

// Rule is one kind of request, its backend and its access strategy.
// +kubebuilder:validation:XValidation:rule="!has(self.methods) || size(self.methods) > 0",message="methods is empty, which reads as no method and would mean every one; list methods or remove the field"
// +kubebuilder:validation:XValidation:rule="!has(self.headers) || size(self.headers) > 0",message="headers is empty and asks nothing; list headers that must match or remove the field"
// +kubebuilder:validation:XValidation:rule="[has(self.noAuth), has(self.jwt), has(self.extAuth), has(self.apiKey)].filter(x, x).size() == 1",message="a rule needs exactly one of noAuth: true, jwt, extAuth, apiKey"
// +kubebuilder:validation:XValidation:rule="[has(self.lambda), has(self.service), has(self.backends), has(self.redirect)].filter(x, x).size() == 1",message="a rule needs exactly one of lambda, service, backends, redirect"
// +kubebuilder:validation:XValidation:rule="!has(self.redirect) || ![has(self.rewrite), has(self.retries), has(self.request), has(self.mirror), has(self.maxBodyBytes)].exists(x, x)",message="a redirect asks no backend; remove rewrite, retries, request, mirror and maxBodyBytes"
// +kubebuilder:validation:XValidation:rule="!has(self.rateLimit) || !has(self.rateLimit.key) || !has(self.rateLimit.key.claim) || has(self.jwt)",message="rateLimit.key.claim needs jwt, whose claims it counts by"
type Rule struct {
	// Path: {*} is one non-empty segment, {**} zero or more and last, /* is
	// everything; otherwise literal. A literal matches every spelling of itself:
	// escaped or not, hex digits in either case. What cannot stand in a path is
	// written as its escape (/a%20b).
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	// +kubebuilder:validation:XValidation:rule="self.startsWith('/') && !self.contains('//') && !self.contains('/../') && !self.contains('/./') && !self.endsWith('/..') && !self.endsWith('/.') && !self.matches('[?#;\\\\\\\\\\\\x00-\\\\x20\\\\x7f]')",message="path begins with / and is written canonically: no //, /./, /../, ?, #, ;, backslash or space (which is %20)"
	// +kubebuilder:validation:XValidation:rule="!self.matches('%([^0-9A-Fa-f]|.[^0-9A-Fa-f]|.?$)') && !self.matches('%([01].|2[3DdEeFf]|3[0-9BbFf]|4[1-9A-Fa-f]|5[0-9AaCcFf]|6[1-9A-Fa-f]|7[0-9AaEeFf])')",message="an escape in path is % and two hex digits; letters, digits and - . _ ~ are written as they are, and requests with an escaped slash, backslash, ; ? # or control character are refused anyway"
	// +kubebuilder:validation:XValidation:rule="self == '/*' || self.matches('^(/([^/{}*]+|[{][*][}]))*(/|/[{][*][*][}])?$')",message="path wildcards stand for whole segments: {*} for one, {**} for the rest and only at the end, or /* alone for everything"
	Path string `json:"path"`
	// Methods; default all.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=16
	Methods []HTTPMethod `json:"methods,omitempty"`
	// Headers that must match, all of them.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=16
	Headers []HeaderMatch `json:"headers,omitempty"`

	// Lambda of this namespace that answers.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Lambda string `json:"lambda,omitempty"`
	// Service that answers.
	// +optional
	Service *ServiceRef `json:"service,omitempty"`
	// Backends share the requests by weight.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=8
	Backends []WeightedBackend `json:"backends,omitempty"`

	// NoAuth: true lets everybody in.
	// +optional
	// +kubebuilder:validation:XValidation:rule="self",message="noAuth is true or absent; use jwt or extAuth to restrict a rule"
	NoAuth *bool `json:"noAuth,omitempty"`
	// JWT lets bearers of a valid token in.
	// +optional
	JWT *JWTAuth `json:"jwt,omitempty"`
	// APIKey lets clients with a key in; the client's name reaches the backend as
	// x-api-client, the key does not.
	// +optional
	APIKey *APIKeyAuth `json:"apiKey,omitempty"`
	// ExtAuth asks an external authorizer.
	// +optional
	ExtAuth *ExtAuth `json:"extAuth,omitempty"`

	// ClientIPs restricts the rule to clients by their addresses, after a token was
	// found to be good; others get 403. The address is that of the connection, or
	// what the trusted proxies of the Gateway tell (its annotations
	// lambdamesh.dev/trusted-proxies and lambdamesh.dev/proxy-protocol), never what
	// a client can write into a header.
	// +optional
	ClientIPs *ClientIPs `json:"clientIPs,omitempty"`

	// Rewrite changes path or host on the way to the backend.
	// +optional
	Rewrite *Rewrite `json:"rewrite,omitempty"`
	// Request headers to set or remove before the backend.
	// +optional
	Request *HeaderEdits `json:"request,omitempty"`
	// Response headers to set or remove before the client.
	// +optional
	Response *HeaderEdits `json:"response,omitempty"`
	// Timeout of a request under this rule.
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1s') && duration(self) <= duration('3900s')",message="timeout must be between 1s and 3900s, such as 10s"
	Timeout *metav1.Duration `json:"timeout,omitempty"`
	// Retries of a failed request, at another endpoint where there is one. Default: 2,
	// of requests that no endpoint has seen. With attempts 0 there are none.
	// +optional
	Retries *Retries `json:"retries,omitempty"`
	// RateLimit of requests under this rule.
	// +optional
	RateLimit *RateLimit `json:"rateLimit,omitempty"`
	// MaxBodyBytes of a request; a larger one is a 413. Default: the backend's own
	// limit.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1073741824
	MaxBodyBytes *int64 `json:"maxBodyBytes,omitempty"`
	// Mirror sends copies of requests elsewhere, whose answers nobody sees.
	// +optional
	Mirror *Mirror `json:"mirror,omitempty"`
	// Redirect answers instead of a backend.
	// +optional
	Redirect *Redirect `json:"redirect,omitempty"`
}

// Mirror is where copies of requests go.
// +kubebuilder:validation:XValidation:rule="has(self.lambda) != has(self.service)",message="a mirror names either a lambda or a service"
type Mirror struct {
	// Lambda of this namespace.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Lambda string `json:"lambda,omitempty"`
	// Service in its place.
	// +optional
	Service *ServiceRef `json:"service,omitempty"`
	// Percent of the requests that are copied.
	// +optional
	// +kubebuilder:default=100
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	Percent *int32 `json:"percent,omitempty"`
}

// Redirect tells the client to ask elsewhere (RFC 9110, section 15.4). What is
// absent stays as it was asked for; the query stays unless path has one.
// +kubebuilder:validation:XValidation:rule="has(self.scheme) || has(self.host) || has(self.port) || has(self.path)",message="a redirect that changes nothing leads to itself; write scheme, host, port or path"
type Redirect struct {
	// Scheme of the new address.
	// +optional
	// +kubebuilder:validation:Enum=http;https
	Scheme string `json:"scheme,omitempty"`
	// Host of the new address.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`
	Host string `json:"host,omitempty"`
	// Port of the new address; default that of the scheme.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port *int32 `json:"port,omitempty"`
	// Path of the new address, in place of the whole path.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	// +kubebuilder:validation:Pattern=`^/[^#\s]*$`
	Path string `json:"path,omitempty"`
	// Code of the answer.
	// +optional
	// +kubebuilder:default=302
	// +kubebuilder:validation:Enum=301;302;303;307;308
	Code int32 `json:"code,omitempty"`
}

// APIKeyAuth lets clients in that have one of the keys of a Secret.
// +kubebuilder:validation:XValidation:rule="has(self.header) != has(self.query)",message="an API key is in exactly one of header and query"
type APIKeyAuth struct {
	// SecretName of a Secret of this namespace: each of its keys is a client's
	// name, the value that client's API key.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	SecretName string `json:"secretName"`
	// Header that the key is in.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	// +kubebuilder:validation:Pattern=`^[A-Za-z0-9-]+$`
	Header string `json:"header,omitempty"`
	// Query parameter that the key is in.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	// +kubebuilder:validation:Pattern=`^[A-Za-z0-9_.-]+$`
	Query string `json:"query,omitempty"`
}

// HTTPMethod of a request (RFC 9110, section 9).
// +kubebuilder:validation:Enum=GET;HEAD;POST;PUT;PATCH;DELETE;OPTIONS;TRACE
type HTTPMethod string

// HeaderMatch is a condition on a request header: exactly one of exact,
// prefix, regex, present.
// +kubebuilder:validation:XValidation:rule="[has(self.exact), has(self.prefix), has(self.regex), has(self.present)].filter(x, x).size() == 1",message="a header match needs exactly one of exact, prefix, regex, present"
// +kubebuilder:validation:XValidation:rule="!has(self.exact) || size(self.exact) > 0",message="an empty exact value cannot be matched; write present: false for a header that must not be there"
type HeaderMatch struct {
	// Name, case-insensitive.
	// +kubebuilder:validation:MaxLength=128
	// +kubebuilder:validation:Pattern=`^[A-Za-z0-9-]+$`
	Name string `json:"name"`
	// Exact value.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Exact *string `json:"exact,omitempty"`
	// Prefix of the value.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	Prefix *string `json:"prefix,omitempty"`
	// Regex (RE2) must match the whole value.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	Regex *string `json:"regex,omitempty"`
	// Present: true when the header must be there, false when it must not.
	// +optional
	Present *bool `json:"present,omitempty"`
}

// ServiceRef is a port of a Kubernetes Service.
type ServiceRef struct {
	// Name of the Service.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Name string `json:"name"`
	// Namespace; default this one.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace,omitempty"`
	// Port number of the Service.
	// +optional
	// +kubebuilder:default=80
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port int32 `json:"port,omitempty"`
}

// WeightedBackend is a lambda or Service with its share of the requests.
// +kubebuilder:validation:XValidation:rule="has(self.lambda) != has(self.service)",message="a backend names either a lambda or a service"
type WeightedBackend struct {
	// Lambda of this namespace.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Lambda string `json:"lambda,omitempty"`
	// Service in its place.
	// +optional
	Service *ServiceRef `json:"service,omitempty"`
	// Weight relative to the sum of all.
	// +optional
	// +kubebuilder:default=1
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000000
	Weight *int32 `json:"weight,omitempty"`
}

// JWTAuth: any of authentications proves who it is, any of authorizations what
// they may.
// +kubebuilder:validation:XValidation:rule="!has(self.authorizations) || size(self.authorizations) > 0",message="authorizations is empty and asks nothing; list what a token must claim, or remove the field to let every valid token in"
type JWTAuth struct {
	// Authentications: issuers whose tokens are taken.
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=8
	Authentications []JWTAuthentication `json:"authentications"`
	// Authorizations: any entry of the list is enough; inside one entry all
	// must hold. Absent: every valid token.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=16
	Authorizations []JWTAuthorization `json:"authorizations,omitempty"`
	// ClaimToHeaders tells the backend claims of the token in headers; the client's
	// copies of these headers are removed.
	// +optional
	// +listType=map
	// +listMapKey=header
	// +kubebuilder:validation:MaxItems=16
	ClaimToHeaders []ClaimHeader `json:"claimToHeaders,omitempty"`
}

// ClaimHeader is a claim and the header that tells it. A claim that is no text,
// number or boolean is told as base64 of its JSON.
type ClaimHeader struct {
	// Claim by name; a dot leads into an object.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	Claim string `json:"claim"`
	// Header that is set.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	// +kubebuilder:validation:Pattern=`^[A-Za-z0-9-]+$`
	Header string `json:"header"`
}

// JWTAuthentication is an issuer and its keys (RFC 7519, RFC 7517).
// +kubebuilder:validation:XValidation:rule="!has(self.audiences) || size(self.audiences) > 0",message="audiences is empty and asks nothing; list the audiences of which the token must name one, or remove the field to take any"
// +kubebuilder:validation:XValidation:rule="!has(self.fromHeaders) || size(self.fromHeaders) > 0",message="fromHeaders is empty; list headers, or remove the field to take the token from Authorization: Bearer"
// +kubebuilder:validation:XValidation:rule="!has(self.fromParams) || size(self.fromParams) > 0",message="fromParams is empty; list query parameters or remove the field"
// +kubebuilder:validation:XValidation:rule="has(self.jwksUri) != has(self.jwksSecret)",message="an authentication needs exactly one of jwksUri (https://...) and jwksSecret (a Secret here with the key jwks.json)"
type JWTAuthentication struct {
	// Issuer: the token's iss, compared as it is.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	// +kubebuilder:validation:XValidation:rule="!self.matches('^[*]|[*]$|[|\\\\pZ\\\\pC]')",message="issuer is the token's iss as it is: without blanks, | and control characters, and * neither first nor last"
	Issuer string `json:"issuer"`
	// JWKSURI of the issuer's key set.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	// +kubebuilder:validation:XValidation:rule="isURL(self) && url(self).getScheme() in ['http', 'https'] && url(self).getHostname() != '' && !self.contains('@')",message="jwksUri is an http(s) URL without user information, such as https://issuer.example.com/.well-known/jwks.json"
	// +kubebuilder:validation:XValidation:rule="!isURL(self) || self.matches(r'^[^/]*//([^:/?#[]*|[[][^]/]*])(:([1-9]\\d{0,3}|[1-5]\\d{4}|6[0-4]\\d{3}|65[0-4]\\d\\d|655[0-2]\\d|6553[0-5]))?([/?#]|$)')",message="the port of a URL is one of 1 to 65535"
	JWKSURI string `json:"jwksUri,omitempty"`
	// JWKSSecret names a Secret of this namespace whose key jwks.json is the set.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	JWKSSecret string `json:"jwksSecret,omitempty"`
	// Audiences: the token's aud must name one. Absent: any.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=1024
	Audiences []string `json:"audiences,omitempty"`
	// FromHeaders: where the token is; default Authorization: Bearer. A token that a
	// request has twice is refused.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=8
	FromHeaders []TokenHeader `json:"fromHeaders,omitempty"`
	// FromParams: query parameters the token may be in, beside the headers.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=8
	// +kubebuilder:validation:items:Pattern=`^[A-Za-z0-9_.-]+$`
	// +kubebuilder:validation:items:MaxLength=128
	FromParams []string `json:"fromParams,omitempty"`
}

// TokenHeader is a request header with a token in it.
type TokenHeader struct {
	// Name of the header, case-insensitive.
	// +kubebuilder:validation:MaxLength=128
	// +kubebuilder:validation:Pattern=`^[A-Za-z0-9-]+$`
	Name string `json:"name"`
	// Prefix before the token, "Bearer " for example.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	Prefix string `json:"prefix,omitempty"`
}

// JWTAuthorization is what a token must claim; all of it.
// +kubebuilder:validation:XValidation:rule="has(self.requiredScopes) || has(self.audiences) || has(self.claims)",message="an authorization that asks nothing lets every valid token in; write requiredScopes, audiences or claims, or remove authorizations"
// +kubebuilder:validation:XValidation:rule="!has(self.requiredScopes) || size(self.requiredScopes) > 0",message="requiredScopes is empty and asks nothing; list the scopes that a token must have or remove the field"
// +kubebuilder:validation:XValidation:rule="!has(self.audiences) || size(self.audiences) > 0",message="audiences is empty and asks nothing; list the audiences that a token must name or remove the field"
// +kubebuilder:validation:XValidation:rule="!has(self.claims) || size(self.claims) > 0",message="claims is empty and asks nothing; list the claims that a token must have or remove the field"
type JWTAuthorization struct {
	// RequiredScopes are looked for in the claims scp, scope and scopes.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=256
	RequiredScopes []string `json:"requiredScopes,omitempty"`
	// Audiences: aud must name all of these.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=1024
	Audiences []string `json:"audiences,omitempty"`
	// Claims: each named claim must have one of its values.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=16
	Claims []ClaimMatch `json:"claims,omitempty"`
}

// ClaimMatch is a claim and the values of which it must have one.
type ClaimMatch struct {
	// Name of the claim.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	Name string `json:"name"`
	// Values, of which the claim must be or contain one.
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=1024
	Values []string `json:"values"`
}

// ExtAuth asks an external authorizer that the operator has configured.
type ExtAuth struct {
	// Provider is a name in the control plane's configuration.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Provider string `json:"provider"`
	// JWT that must hold too.
	// +optional
	JWT *JWTAuth `json:"jwt,omitempty"`
}

// ClientIPs are ranges of addresses. One that is in deny is refused, and with
// allow one that is in none of its ranges.
// +kubebuilder:validation:XValidation:rule="has(self.allow) || has(self.deny)",message="clientIPs that name no range restrict nothing; write allow or deny"
// +kubebuilder:validation:XValidation:rule="!has(self.allow) || size(self.allow) > 0",message="allow is empty and asks nothing; list ranges such as 192.0.2.0/24 or remove the field"
// +kubebuilder:validation:XValidation:rule="!has(self.deny) || size(self.deny) > 0",message="deny is empty and refuses nobody; list ranges such as 192.0.2.0/24 or remove the field"
type ClientIPs struct {
	// Allow these ranges and nobody else.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	Allow []CIDR `json:"allow,omitempty"`
	// Deny these ranges, also where they are within allowed ones.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	Deny []CIDR `json:"deny,omitempty"`
}

// CIDR is a range of addresses (RFC 4632, RFC 4291), such as 192.0.2.0/24 or
// 2001:db8::/32. A single address is written /32 or /128.
// +kubebuilder:validation:MaxLength=49
// +kubebuilder:validation:Pattern=`^[0-9a-fA-F:.]+/[0-9]{1,3}$`
type CIDR string

// CORSPolicy answers preflight requests (WHATWG Fetch, section 3.2). It decides
// alone what pages are told: Access-Control-* headers of a backend are removed.
// +kubebuilder:validation:XValidation:rule="!(has(self.allowCredentials) && self.allowCredentials) || !self.allowOrigins.exists(o, has(o.exact) && o.exact == '*')",message="allowCredentials needs named origins, not *: write exact: https://shop.example.com"
type CORSPolicy struct {
	// AllowOrigins: pages of these origins may read the answers.
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	AllowOrigins []OriginMatch `json:"allowOrigins"`
	// AllowMethods that a page may use.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=16
	AllowMethods []HTTPMethod `json:"allowMethods,omitempty"`
	// AllowHeaders that a page may send.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:Pattern=`^[A-Za-z0-9-]+$`
	// +kubebuilder:validation:items:MaxLength=128
	AllowHeaders []string `json:"allowHeaders,omitempty"`
	// ExposeHeaders that a page may read.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:Pattern=`^[A-Za-z0-9-]+$`
	// +kubebuilder:validation:items:MaxLength=128
	ExposeHeaders []string `json:"exposeHeaders,omitempty"`
	// AllowCredentials: whether a page may send cookies and authorization.
	// +optional
	AllowCredentials *bool `json:"allowCredentials,omitempty"`
	// MaxAge a browser may keep the preflight's answer.
	// +optional
	MaxAge *metav1.Duration `json:"maxAge,omitempty"`
}

// OriginMatch is exactly one of exact, prefix, regex.
// +kubebuilder:validation:XValidation:rule="[has(self.exact), has(self.prefix), has(self.regex)].filter(x, x).size() == 1",message="an origin needs exactly one of exact, prefix, regex"
type OriginMatch struct {
	// Exact origin, such as https://shop.example.com.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	Exact *string `json:"exact,omitempty"`
	// Prefix of the origin. Let it end in what no stranger can go on with:
	// https://shop.example.com is also a prefix of https://shop.example.com.evil.example.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	Prefix *string `json:"prefix,omitempty"`
	// Regex (RE2) that must match the whole origin.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	Regex *string `json:"regex,omitempty"`
}

// Rewrite changes what the backend sees.
// +kubebuilder:validation:XValidation:rule="has(self.path) || has(self.host)",message="a rewrite needs path or host"
type Rewrite struct {
	// Path that replaces the matched one (the literal part before a wildcard).
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	// +kubebuilder:validation:Pattern=`^/[^?#\s]*$`
	Path string `json:"path,omitempty"`
	// Host that replaces the request's.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`
	Host string `json:"host,omitempty"`
}

// HeaderValue of a header (RFC 9110, section 5.5).
// +kubebuilder:validation:MaxLength=4096
// +kubebuilder:validation:Pattern=`^[^\x00\r\n]*$`
type HeaderValue string

// HeaderEdits sets and removes headers.
type HeaderEdits struct {
	// SetHeaders: name to value; replaces what was there. A name that is not
	// letters, digits and '-' is Accepted=False.
	// +optional
	// +kubebuilder:validation:MaxProperties=32
	SetHeaders map[string]HeaderValue `json:"setHeaders,omitempty"`
	// RemoveHeaders by name.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:Pattern=`^[A-Za-z0-9-]+$`
	// +kubebuilder:validation:items:MaxLength=128
	RemoveHeaders []string `json:"removeHeaders,omitempty"`
}

// Retries of a failed request.
type Retries struct {
	// Attempts counts the retries, not the first try.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=10
	Attempts int32 `json:"attempts"`
	// PerTryTimeout of each try; default the rule's timeout.
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1ms')",message="perTryTimeout must be at least 1ms"
	PerTryTimeout *metav1.Duration `json:"perTryTimeout,omitempty"`
	// RetryOn: what counts as a failure; default connect-failure, refused-stream.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=8
	RetryOn []RetryCondition `json:"retryOn,omitempty"`
}

// RetryCondition is what counts as a failure (Envoy's x-envoy-retry-on).
// +kubebuilder:validation:Enum="5xx";"gateway-error";"connect-failure";"refused-stream";"reset";"retriable-4xx"
type RetryCondition string

// RateLimit is a token bucket.
type RateLimit struct {
	// Requests per Per.
	// +kubebuilder:validation:Minimum=1
	Requests int32 `json:"requests"`
	// Per: the interval, 1s for example.
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1s')",message="per must be at least 1s"
	Per metav1.Duration `json:"per"`
	// Burst above the rate; default requests.
	// +optional
	// +kubebuilder:validation:Minimum=1
	Burst *int32 `json:"burst,omitempty"`
	// Key: one bucket per value; default one for all.
	// +optional
	Key *RateLimitKey `json:"key,omitempty"`
}

// RateLimitKey is exactly one of header, claim, clientIP.
// +kubebuilder:validation:XValidation:rule="[has(self.header), has(self.claim), has(self.clientIP)].filter(x, x).size() == 1",message="a key needs exactly one of header, claim, clientIP"
type RateLimitKey struct {
	// Header whose value is counted by.
	// +optional
	// +kubebuilder:validation:Pattern=`^[A-Za-z0-9-]+$`
	// +kubebuilder:validation:MaxLength=128
	Header string `json:"header,omitempty"`
	// Claim of the token whose value is counted by.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	Claim string `json:"claim,omitempty"`
	// ClientIP: true counts by the client's address.
	// +optional
	ClientIP *bool `json:"clientIP,omitempty"`
}

// APIRuleStatus is what was observed.
type APIRuleStatus struct {
	CommonStatus `json:",inline"`
	// URLs at which the hosts answer.
	// +optional
	// +listType=atomic
	URLs []string `json:"urls,omitempty"`
	// Charged is what the rule takes of the budgets it shares. A changed rule
	// keeps its place up to that.
	// +optional
	Charged *Charge `json:"charged,omitempty"`
}

// Charge is what an APIRule was let in with.
type Charge struct {
	// Gateway that it is charged to; none while it is not served.
	// +optional
	Gateway string `json:"gateway,omitempty"`
	// Bytes of resources, an upper estimate.
	// +optional
	Bytes int64 `json:"bytes,omitempty"`
	// RouteBytes are those of them that each server of the Gateway repeats that
	// serves the rule.
	// +optional
	RouteBytes int64 `json:"routeBytes,omitempty"`
	// ListenerBytes are repeated by each server of the Gateway.
	// +optional
	ListenerBytes int64 `json:"listenerBytes,omitempty"`
	// Matchers: conditions that requests are held against.
	// +optional
	Matchers int64 `json:"matchers,omitempty"`
	// KeySets: pairs of an issuer and its keys.
	// +optional
	KeySets int64 `json:"keySets,omitempty"`
	// KeyCopies: pairs of a key set and a backend, which has a copy under Istio.
	// +optional
	KeyCopies int64 `json:"keyCopies,omitempty"`
	// Hosts, as written in spec.hosts.
	// +optional
	Hosts int64 `json:"hosts,omitempty"`
}

// Conditions implements [Object].
func (r *APIRule) Conditions() *[]metav1.Condition { return &r.Status.CommonStatus.Conditions }

// SetObservedGeneration implements [Object].
func (r *APIRule) SetObservedGeneration(g int64) { r.Status.ObservedGeneration = g }
