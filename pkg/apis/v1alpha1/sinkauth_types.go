package v1alpha1

// SinkAuth is at most one of signing, oauth2, basic, mtls, and headers. What is
// secret is in Secrets of the Subscription's namespace, which lends each of them to
// the event bus by a Role with the verb get and its name.
// +kubebuilder:validation:XValidation:rule="[has(self.signing), has(self.oauth2), has(self.basic), has(self.mtls)].filter(x, x).size() <= 1",message="auth takes at most one of signing, oauth2, basic, mtls"
// +kubebuilder:validation:XValidation:rule="has(self.signing) || has(self.oauth2) || has(self.basic) || has(self.mtls) || (has(self.headers) && self.headers.size() > 0)",message="auth needs one of signing, oauth2, basic, mtls, or headers"
// +kubebuilder:validation:XValidation:rule="!(has(self.oauth2) || has(self.basic)) || !has(self.headers) || self.headers.all(h, h.name.lowerAscii() != 'authorization')",message="oauth2 and basic set the header Authorization: remove it from headers"
type SinkAuth struct {
	// Signing of each request as in Standard Webhooks 1.0, by the headers webhook-id,
	// webhook-timestamp and webhook-signature.
	// +optional
	Signing *SinkSigning `json:"signing,omitempty"`
	// OAuth2 client credentials (RFC 6749, section 4.4).
	// +optional
	OAuth2 *SinkOAuth2 `json:"oauth2,omitempty"`
	// Basic authentication (RFC 7617).
	// +optional
	Basic *SinkBasic `json:"basic,omitempty"`
	// MTLS: a client certificate.
	// +optional
	MTLS *SinkMTLS `json:"mtls,omitempty"`
	// Headers of each request.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=16
	Headers []SinkHeader `json:"headers,omitempty"`
}

// SinkSigning signs with HMAC-SHA256 (v1).
type SinkSigning struct {
	// Secrets that sign, each adding a signature: two of them while one is replaced
	// by the other.
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=4
	Secrets []SigningSecret `json:"secrets"`
}

// SigningSecret is a key of a Secret whose value is 24 to 64 random bytes in
// base64, with or without the prefix whsec_.
type SigningSecret struct {
	// Name of a Secret of the Subscription's namespace.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
	// Key in its data.
	// +optional
	// +kubebuilder:default=secret
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Key string `json:"key,omitempty"`
}

// SinkOAuth2 is the client credentials grant. A token serves all requests until
// shortly before it ends, and is replaced when the sink answers 401.
type SinkOAuth2 struct {
	// TokenURL of the authorization server, outside of the cluster and where
	// allowedTargets allow it.
	// +kubebuilder:validation:MaxLength=2048
	// +kubebuilder:validation:XValidation:rule="isURL(self) && url(self).getScheme() in ['http', 'https'] && url(self).getHostname() != '' && !self.contains('@')",message="tokenUrl is an http(s) URL without user information"
	// +kubebuilder:validation:XValidation:rule="!isURL(self) || self.matches(r'^[^/]*//([^:/?#[]*|[[][^]/]*])(:([1-9]\\d{0,3}|[1-5]\\d{4}|6[0-4]\\d{3}|65[0-4]\\d\\d|655[0-2]\\d|6553[0-5]))?([/?#]|$)')",message="the port of a URL is one of 1 to 65535"
	TokenURL string `json:"tokenUrl"`
	// Secret with the keys clientId and clientSecret.
	Secret SinkSecret `json:"secret"`
	// Scopes to ask for; default those the server gives.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:MaxLength=256
	Scopes []string `json:"scopes,omitempty"`
	// Audience parameter, where the server wants one.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Audience string `json:"audience,omitempty"`
	// AuthStyle: how the client authenticates to the token URL: by basic
	// authentication, or by parameters.
	// +optional
	// +kubebuilder:default=header
	// +kubebuilder:validation:Enum=header;params
	AuthStyle string `json:"authStyle,omitempty"`
}

// SinkBasic is a user name and a password.
type SinkBasic struct {
	// Secret with the keys username and password.
	Secret SinkSecret `json:"secret"`
}

// SinkMTLS is a client certificate.
type SinkMTLS struct {
	// Secret with the keys tls.crt and tls.key, and ca.crt where the sink's CA is
	// private.
	Secret SinkSecret `json:"secret"`
}

// SinkHeader is a header, its value here or in a Secret.
// +kubebuilder:validation:XValidation:rule="has(self.value) != has(self.secret)",message="write either value or secret"
// +kubebuilder:validation:XValidation:rule="!(self.name.lowerAscii() in ['connection', 'content-length', 'content-type', 'expect', 'host', 'keep-alive', 'proxy-connection', 'te', 'trailer', 'transfer-encoding', 'upgrade', 'user-agent', 'traceparent', 'tracestate']) && !['ce-', 'kyma-', 'webhook-', 'lambdamesh-'].exists(p, self.name.lowerAscii().startsWith(p))",message="the event bus sets this header itself: remove it"
type SinkHeader struct {
	// Name of the header.
	// +kubebuilder:validation:MaxLength=128
	// +kubebuilder:validation:Pattern=`^[A-Za-z0-9_.-]+$`
	Name string `json:"name"`
	// Value, where it is no secret.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=4096
	// +kubebuilder:validation:XValidation:rule="!self.matches(r'[\\x00-\\x08\\x0a-\\x1f\\x7f]')",message="the value of a header has no control characters"
	Value string `json:"value,omitempty"`
	// Secret with the value.
	// +optional
	Secret *SinkSecretKey `json:"secret,omitempty"`
}

// SinkSecret names a Secret of the Subscription's namespace.
type SinkSecret struct {
	// Name of the Secret.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
}

// SinkSecretKey names a key of a Secret of the Subscription's namespace.
type SinkSecretKey struct {
	// Name of the Secret.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
	// Key in its data.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Key string `json:"key"`
}
