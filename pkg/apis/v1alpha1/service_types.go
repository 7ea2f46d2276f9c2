package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// InlineService is a service of a small catalog, written in the Application
// itself. [ApplicationService] is the kind for large ones.
// +kubebuilder:validation:XValidation:rule="has(self.api) || has(self.events)",message="a service needs api, events or both"
type InlineService struct {
	// Name in URLs: http://connector-outbound/<application>/<name>/<path>.
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",message="a service name is lower-case letters, digits and '-'"
	Name string `json:"name"`

	ServiceDefinition `json:",inline"`
}

// ServiceDefinition is an API, a set of events, or both.
type ServiceDefinition struct {
	// ID as in the registry; made by it when absent.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	ID string `json:"id,omitempty"`
	// DisplayName for people; the registry's name of the service.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	DisplayName string `json:"displayName,omitempty"`
	// Provider of the service, for people.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	Provider string `json:"provider,omitempty"`
	// Description for people.
	// +optional
	// +kubebuilder:validation:MaxLength=4096
	Description string `json:"description,omitempty"`
	// ShortDescription for people and consoles.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	ShortDescription string `json:"shortDescription,omitempty"`
	// Identifier of the service in the third-party system.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	Identifier string `json:"identifier,omitempty"`
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
	// OpenAPI document (3.x, or Swagger 2.0; JSON or YAML), which is checked, or a
	// URL of it, which is for people.
	// +optional
	// +kubebuilder:validation:MaxLength=524288
	OpenAPI string `json:"openapi,omitempty"`
	// OData metadata document (EDMX) of an OData service.
	// +optional
	// +kubebuilder:validation:MaxLength=524288
	OData string `json:"odata,omitempty"`
	// CA: certificates that the target's and the token URLs' are verified by,
	// instead of the system's authorities. They are always verified.
	// +optional
	CA *SecretKeyRef `json:"ca,omitempty"`
	// RateLimit of the calls of each lambda; beyond it they are answered 429. Each
	// replica of the connector counts for itself.
	// +optional
	RateLimit *ServiceRateLimit `json:"rateLimit,omitempty"`
	// Probe asks the target from time to time whether it is there; the condition
	// TargetReachable tells. Absent: it is not asked.
	// +optional
	Probe *TargetProbe `json:"probe,omitempty"`
	// Auth: credentials the connector adds. Absent: none.
	// +optional
	Auth *APIAuth `json:"auth,omitempty"`
	// Timeout of a call.
	// +optional
	// +kubebuilder:default="30s"
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('100ms') && duration(self) <= duration('3900s')",message="timeout must be between 100ms and 3900s, such as 30s"
	Timeout *metav1.Duration `json:"timeout,omitempty"`
}

// ServiceRateLimit is how often a lambda may call.
type ServiceRateLimit struct {
	// Requests in each period.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000000
	Requests int32 `json:"requests"`
	// Per is the period.
	// +optional
	// +kubebuilder:default="1s"
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1s') && duration(self) <= duration('1h')",message="per must be between 1s and 1h, such as 1s"
	Per *metav1.Duration `json:"per,omitempty"`
	// Burst of requests at once; default requests.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000000
	Burst int32 `json:"burst,omitempty"`
}

// TargetProbe is how a target is asked whether it is there: by a GET, without
// credentials; every answer but a 5xx says that it is.
type TargetProbe struct {
	// Path below the target's URL.
	// +optional
	// +kubebuilder:default="/"
	// +kubebuilder:validation:MaxLength=1024
	// +kubebuilder:validation:XValidation:rule="self.startsWith('/') && !self.contains('..') && !self.contains('?') && !self.contains('#') && !self.contains('%')",message="path begins with '/', without '..', escapes, query and fragment, such as /health"
	Path string `json:"path,omitempty"`
	// Interval between probes.
	// +optional
	// +kubebuilder:default="1m"
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('10s') && duration(self) <= duration('1h')",message="interval must be between 10s and 1h, such as 1m"
	Interval *metav1.Duration `json:"interval,omitempty"`
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
// +kubebuilder:validation:XValidation:rule="!has(self.authStyle) || self.authStyle != 'mtls' || has(self.mtls)",message="authStyle mtls needs mtls: {secret: {name: ...}}"
type OAuth2Auth struct {
	// TokenURL of the authorization server.
	// +kubebuilder:validation:MaxLength=2048
	// +kubebuilder:validation:XValidation:rule="isURL(self) && url(self).getScheme() in ['http', 'https'] && url(self).getHostname() != '' && !self.contains('@')",message="tokenUrl is an http(s) URL without user information"
	// +kubebuilder:validation:XValidation:rule="!isURL(self) || self.matches(r'^[^/]*//([^:/?#[]*|[[][^]/]*])(:([1-9]\\d{0,3}|[1-5]\\d{4}|6[0-4]\\d{3}|65[0-4]\\d\\d|655[0-2]\\d|6553[0-5]))?([/?#]|$)')",message="the port of a URL is one of 1 to 65535"
	TokenURL string `json:"tokenUrl"`
	// Secret with the keys clientId and clientSecret; with authStyle mtls clientId is
	// enough.
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
	// AuthStyle: how the client authenticates to the token URL: by basic
	// authentication, by parameters, or by its certificate (RFC 8705, section 2.1).
	// +optional
	// +kubebuilder:default=header
	// +kubebuilder:validation:Enum=header;params;mtls
	AuthStyle string `json:"authStyle,omitempty"`
	// MTLS: client certificate for the token URL and the API, such as the one that
	// access tokens are bound to (RFC 8705, section 3). Both URLs must be https.
	// +optional
	MTLS *MTLSAuth `json:"mtls,omitempty"`
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

// CSRFAuth is a token fetched before a call: a GET with the same credentials and
// the header X-CSRF-Token: fetch answers it in that header. Calls carry it and the
// cookies that came with it.
type CSRFAuth struct {
	// TokenURL that the token is fetched from, with the same credentials; it has the
	// scheme, host and port of targetUrl.
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
	// AsyncAPI document (1.x, 2.x or 3.x; JSON or YAML). Its event types become
	// EventTypes.
	// +optional
	// +kubebuilder:validation:MaxLength=524288
	AsyncAPI string `json:"asyncapi,omitempty"`
}
