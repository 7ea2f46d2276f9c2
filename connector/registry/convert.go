package registry

import (
	"bytes"
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/lambdamesh/lambdamesh/connector/documents"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// Keys of a Secret, besides those that the kinds name.
const (
	keyClientID, keyClientSecret = "clientId", "clientSecret"
	keyUsername, keyPassword     = "username", "password"
	prefixHeader, prefixQuery    = "header.", "query."
)

// nameOfValue is what the kind takes as the name of a header or query parameter.
//
//nolint:gochecknoglobals // a constant
var nameOfValue = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,128}$`)

// stored is a service as it is kept.
type stored struct {
	definition v1alpha1.ServiceDefinition
	secret     map[string][]byte // empty: no Secret
}

// previous is what an update replaces; nil where there is nothing.
type previous struct {
	definition *v1alpha1.ServiceDefinition
	secret     map[string][]byte
}

// check finds what is wrong with a service whatever its documents are.
func (d *details) check() error {
	bad := func(text string) error { return refuse(http.StatusBadRequest, "%s", text) }
	switch {
	case d.Provider == "":
		return bad("provider is required")
	case d.Name == "":
		return bad("name is required")
	case d.Description == "":
		return bad("description is required")
	case d.API == nil && d.Events == nil:
		return bad("api, events or both are required")
	case d.API == nil:
		return nil
	case d.API.TargetURL == "":
		return bad("api.targetUrl is required")
	case d.API.Credentials == nil:
		return nil
	}
	c := d.API.Credentials
	methods := 0
	for _, is := range []bool{c.OAuth != nil, c.Basic != nil, c.CertificateGen != nil} {
		if is {
			methods++
		}
	}
	switch {
	case methods > 1:
		return bad("api.credentials: write one of oauth, basic, certificateGen")
	case c.OAuth != nil && (c.OAuth.URL == "" || c.OAuth.ClientID == "" || c.OAuth.ClientSecret == ""):
		return bad("api.credentials.oauth: url, clientId and clientSecret are required")
	case c.Basic != nil && (c.Basic.Username == "" || c.Basic.Password == ""):
		return bad("api.credentials.basic: username and password are required")
	case c.CertificateGen != nil && c.CertificateGen.CommonName == "":
		return bad("api.credentials.certificateGen: commonName is required")
	}
	return nil
}

// convert makes what is stored of a checked service. secretName is that of the
// Secret its credentials will be in.
func (d *details) convert(secretName string, before previous) (stored, error) {
	s := stored{secret: map[string][]byte{}, definition: v1alpha1.ServiceDefinition{
		DisplayName: d.Name, Provider: d.Provider, Description: d.Description, ShortDescription: d.ShortDescription,
		Identifier: d.Identifier, Labels: d.Labels,
	}}
	if d.Events != nil {
		s.definition.Events = &v1alpha1.ServiceEvents{AsyncAPI: document(d.Events.Spec)}
		if text := s.definition.Events.AsyncAPI; text != "" {
			if _, err := documents.AsyncAPI([]byte(text)); err != nil {
				return stored{}, refuse(http.StatusBadRequest, "events.spec: %v", err)
			}
		}
	}
	if d.API == nil {
		return s, nil
	}
	s.definition.API = &v1alpha1.ServiceAPI{TargetURL: d.API.TargetURL}
	if err := d.API.describe(s.definition.API); err != nil {
		return stored{}, err
	}
	auth, err := d.API.auth(secretName, before, s.secret)
	if err != nil {
		return stored{}, err
	}
	s.definition.API.Auth = auth
	if before.definition != nil && before.definition.API != nil {
		keepRest(s.definition.API, before.definition.API)
	}
	return s, nil
}

// keepRest keeps what the registry's format has no words for, and somebody wrote
// into the object.
func keepRest(to, from *v1alpha1.ServiceAPI) {
	to.Timeout, to.CA, to.RateLimit, to.Probe = from.Timeout, from.CA, from.RateLimit, from.Probe
	if from.Auth != nil && from.Auth.AllowCallerToken {
		if to.Auth == nil {
			to.Auth = &v1alpha1.APIAuth{}
		}
		to.Auth.AllowCallerToken = true
	}
}

// document is the text of a document in a body: an object, or a text that holds
// one. An empty one is none.
func document(raw json.RawMessage) string {
	var text string
	if json.Unmarshal(raw, &text) == nil {
		return strings.TrimSpace(text)
	}
	var compact bytes.Buffer
	if json.Compact(&compact, raw) != nil || compact.String() == "{}" {
		return ""
	}
	return compact.String()
}

// describe adds the document.
func (a *api) describe(to *v1alpha1.ServiceAPI) error {
	text := document(a.Spec)
	switch {
	case text == "" && a.SpecificationURL != "":
		if u, err := url.Parse(a.SpecificationURL); err != nil || !documents.IsURL(a.SpecificationURL) || u.Host == "" || u.User != nil {
			return refuse(http.StatusBadRequest, "api.specificationUrl must be an http(s) URL without user information")
		}
		to.OpenAPI = a.SpecificationURL
	case text == "":
	case strings.EqualFold(a.APIType, "odata"):
		if _, err := documents.OData([]byte(text)); err != nil {
			return refuse(http.StatusBadRequest, "api.spec: %v", err)
		}
		to.OData = text
	default:
		if _, err := documents.OpenAPI([]byte(text)); err != nil {
			return refuse(http.StatusBadRequest, "api.spec: %v", err)
		}
		to.OpenAPI = text
	}
	return nil
}

// auth makes the credentials: what is secret goes into secret.
func (a *api) auth(secretName string, before previous, secret map[string][]byte) (*v1alpha1.APIAuth, error) {
	auth := &v1alpha1.APIAuth{}
	ref := v1alpha1.SecretRef{Name: secretName}
	k := keeper{before: before, secret: secret, sameTarget: before.sameTarget(a.TargetURL)}
	var token *csrf
	if c := a.Credentials; c != nil {
		switch {
		case c.OAuth != nil:
			auth.OAuth2, token = &v1alpha1.OAuth2Auth{TokenURL: c.OAuth.URL, Secret: ref}, c.OAuth.CSRF
			same := before.oauth() != nil && before.oauth().TokenURL == c.OAuth.URL
			if same { // what the registry's format has no words for
				auth.OAuth2.Scopes, auth.OAuth2.Audience, auth.OAuth2.AuthStyle = before.oauth().Scopes, before.oauth().Audience, before.oauth().AuthStyle
			}
			k.put("api.credentials.oauth.clientId", keyClientID, c.OAuth.ClientID, same)
			k.put("api.credentials.oauth.clientSecret", keyClientSecret, c.OAuth.ClientSecret, same)
		case c.Basic != nil:
			auth.Basic, token = &v1alpha1.BasicAuth{Secret: ref}, c.Basic.CSRF
			k.put("api.credentials.basic.username", keyUsername, c.Basic.Username, k.sameTarget)
			k.put("api.credentials.basic.password", keyPassword, c.Basic.Password, k.sameTarget)
		case c.CertificateGen != nil:
			auth.MTLS, token = &v1alpha1.MTLSAuth{Secret: ref}, c.CertificateGen.CSRF
			if err := keyPair(c.CertificateGen.CommonName, before.secret, secret); err != nil {
				return nil, err
			}
		}
	}
	if token != nil && token.TokenEndpointURL != "" {
		auth.CSRF = &v1alpha1.CSRFAuth{TokenURL: token.TokenEndpointURL}
	}
	headers, query, err := a.added()
	if err != nil {
		return nil, err
	}
	auth.Headers = k.added("headers", prefixHeader, secretName, headers)
	auth.QueryParameters = k.added("queryParameters", prefixQuery, secretName, query)
	if k.err != nil {
		return nil, k.err
	}
	if auth.OAuth2 == nil && auth.Basic == nil && auth.MTLS == nil && auth.CSRF == nil && len(auth.Headers)+len(auth.QueryParameters) == 0 {
		return nil, nil //nolint:nilnil // no credentials is no error
	}
	return auth, nil
}

// added are the headers and query parameters, which may be written in two places.
func (a *api) added() (headers, query map[string]string, err error) {
	all := []parameters{a.parameters}
	if a.RequestParameters != nil {
		all = append(all, *a.RequestParameters)
	}
	headers, query = map[string]string{}, map[string]string{}
	for _, p := range all {
		for _, kind := range []struct {
			name     string
			from     map[string][]string
			to       map[string]string
			sameName func(string) string
		}{
			{"headers", p.Headers, headers, http.CanonicalHeaderKey},
			{"queryParameters", p.QueryParameters, query, func(s string) string { return s }},
		} {
			for name, values := range kind.from {
				name = kind.sameName(name)
				if !nameOfValue.MatchString(name) {
					return nil, nil, refuse(http.StatusBadRequest, "api.%s: a name is letters, digits, '-', '_' and '.', not %.100q", kind.name, name)
				}
				if _, twice := kind.to[name]; twice || len(values) != 1 {
					return nil, nil, refuse(http.StatusBadRequest, "api.%s: write one value of %q", kind.name, name)
				}
				kind.to[name] = values[0]
			}
		}
	}
	return headers, query, nil
}

// keeper puts credentials into a Secret. Where the mask is written, the value that
// is there stays, but only when it goes where it went before: who may write a
// service must not have its credentials sent elsewhere.
type keeper struct {
	before     previous
	secret     map[string][]byte
	sameTarget bool
	err        error
}

func (k *keeper) put(field, key, value string, same bool) {
	if value != mask {
		k.secret[key] = []byte(value)
		return
	}
	old, ok := k.before.secret[key]
	if !same || !ok {
		k.err = refuse(http.StatusBadRequest, "%s: write the value; %s stands for the one that is stored, while the URL it is sent to stays", field, mask)
		return
	}
	k.secret[key] = old
}

func (k *keeper) added(field, prefix, secretName string, values map[string]string) []v1alpha1.AddedValue {
	var all []v1alpha1.AddedValue
	for _, name := range slices.Sorted(maps.Keys(values)) {
		k.put("api."+field+"."+name, prefix+name, values[name], k.sameTarget)
		all = append(all, v1alpha1.AddedValue{Name: name, Secret: &v1alpha1.SecretKeyRef{Name: secretName, Key: prefix + name}})
	}
	return all
}

func (p previous) oauth() *v1alpha1.OAuth2Auth {
	if p.definition == nil || p.definition.API == nil || p.definition.API.Auth == nil {
		return nil
	}
	return p.definition.API.Auth.OAuth2
}

func (p previous) sameTarget(target string) bool {
	if p.definition == nil || p.definition.API == nil {
		return false
	}
	was, err := url.Parse(p.definition.API.TargetURL)
	is, err2 := url.Parse(target)
	return err == nil && err2 == nil && was.Scheme == is.Scheme && strings.EqualFold(was.Host, is.Host)
}

// tell makes what the client reads of a service.
func tell(definition *v1alpha1.ServiceDefinition, name string, secrets func(name string) map[string][]byte) details {
	d := details{
		Provider: definition.Provider, Name: definition.DisplayName, Description: definition.Description,
		ShortDescription: definition.ShortDescription, Identifier: definition.Identifier, Labels: definition.Labels,
	}
	if d.Name == "" {
		d.Name = name
	}
	if definition.Events != nil {
		d.Events = &events{Spec: spec(definition.Events.AsyncAPI)}
	}
	if definition.API == nil {
		return d
	}
	d.API = &api{TargetURL: definition.API.TargetURL}
	switch from := definition.API; {
	case from.OData != "":
		d.API.APIType, d.API.Spec = "odata", spec(from.OData)
	case documents.IsURL(from.OpenAPI):
		d.API.SpecificationURL = from.OpenAPI
	default:
		d.API.Spec = spec(from.OpenAPI)
	}
	auth := definition.API.Auth
	if auth == nil {
		return d
	}
	var token *csrf
	if auth.CSRF != nil {
		token = &csrf{TokenEndpointURL: auth.CSRF.TokenURL}
	}
	switch {
	case auth.OAuth2 != nil:
		d.API.Credentials = &credentials{OAuth: &oauth{URL: auth.OAuth2.TokenURL, ClientID: mask, ClientSecret: mask, CSRF: token}}
	case auth.Basic != nil:
		d.API.Credentials = &credentials{Basic: &basic{Username: mask, Password: mask, CSRF: token}}
	case auth.MTLS != nil:
		d.API.Credentials = &credentials{CertificateGen: publicPart(secrets(auth.MTLS.Secret.Name)[corev1.TLSCertKey])}
		d.API.Credentials.CertificateGen.CSRF = token
	}
	d.API.Headers, d.API.QueryParameters = masked(auth.Headers), masked(auth.QueryParameters)
	return d
}

func masked(values []v1alpha1.AddedValue) map[string][]string {
	if len(values) == 0 {
		return nil
	}
	all := map[string][]string{}
	for _, v := range values {
		all[v.Name] = []string{mask}
	}
	return all
}

// spec is a document in an answer: an object where it is one, else its text.
func spec(text string) json.RawMessage {
	if text == "" {
		return nil
	}
	if raw := []byte(text); json.Valid(raw) {
		return raw
	}
	if raw, err := yaml.YAMLToJSON([]byte(text)); err == nil && bytes.HasPrefix(raw, []byte("{")) && len(raw) <= 4*documents.MaxBytes {
		return raw
	}
	raw, _ := json.Marshal(text)
	return raw
}
