package registry

import (
	"encoding/json"
)

// mask stands where a credential is; in an update it means the one that is there.
const mask = "********"

// details is a service as the client writes and reads it.
type details struct {
	Provider         string            `json:"provider"`
	Name             string            `json:"name"`
	Description      string            `json:"description"`
	ShortDescription string            `json:"shortDescription,omitempty"`
	Identifier       string            `json:"identifier,omitempty"`
	Labels           map[string]string `json:"labels,omitempty"`
	API              *api              `json:"api,omitempty"`
	Events           *events           `json:"events,omitempty"`
}

type api struct {
	TargetURL        string          `json:"targetUrl"`
	Spec             json.RawMessage `json:"spec,omitempty"`
	SpecificationURL string          `json:"specificationUrl,omitempty"`
	APIType          string          `json:"apiType,omitempty"`
	Credentials      *credentials    `json:"credentials,omitempty"`
	parameters
	RequestParameters *parameters `json:"requestParameters,omitempty"`
}

// parameters are added to every call.
type parameters struct {
	Headers         map[string][]string `json:"headers,omitempty"`
	QueryParameters map[string][]string `json:"queryParameters,omitempty"`
}

type credentials struct {
	OAuth          *oauth       `json:"oauth,omitempty"`
	Basic          *basic       `json:"basic,omitempty"`
	CertificateGen *certificate `json:"certificateGen,omitempty"`
}

type oauth struct {
	URL          string `json:"url"`
	ClientID     string `json:"clientId"`
	ClientSecret string `json:"clientSecret"`
	CSRF         *csrf  `json:"csrfInfo,omitempty"`
}

type basic struct {
	Username string `json:"username"`
	Password string `json:"password"`
	CSRF     *csrf  `json:"csrfInfo,omitempty"`
}

// certificate asks for a key pair; Certificate, base64 of PEM, is what the client
// reads.
type certificate struct {
	CommonName  string `json:"commonName"`
	Certificate string `json:"certificate,omitempty"`
	CSRF        *csrf  `json:"csrfInfo,omitempty"`
}

type csrf struct {
	TokenEndpointURL string `json:"tokenEndpointURL"`
}

type events struct {
	Spec json.RawMessage `json:"spec,omitempty"`
}

// summary is a service in a list.
type summary struct {
	ID          string            `json:"id"`
	Provider    string            `json:"provider"`
	Name        string            `json:"name"`
	Description string            `json:"description"`
	Identifier  string            `json:"identifier,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
}
