package compile

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/request"
	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/strict"
)

// Secret is a compiled Secret: a certificate or what to verify against.
type Secret struct {
	certificate *tls.Certificate
	validation  *validation
}

// validation is a compiled CertificateValidationContext.
type validation struct {
	roots *x509.CertPool
	sans  []sanMatch
}

type sanMatch struct {
	uri   bool // else DNS
	match request.StringMatch
}

func compileSecret(s *tlsv3.Secret) (*Secret, error) {
	at := fmt.Sprintf("Secret %q", s.GetName())
	switch t := s.GetType().(type) {
	case *tlsv3.Secret_TlsCertificate:
		cert, err := compileCertificate(at+".tls_certificate", t.TlsCertificate)
		return &Secret{certificate: cert}, err
	case *tlsv3.Secret_ValidationContext:
		v, err := compileValidation(at+".validation_context", t.ValidationContext)
		return &Secret{validation: v}, err
	default:
		return nil, fmt.Errorf("%s: only tls_certificate and validation_context are supported", at)
	}
}

func compileCertificate(at string, c *tlsv3.TlsCertificate) (*tls.Certificate, error) {
	if err := strict.Allow(at, c, "certificate_chain", "private_key"); err != nil {
		return nil, err
	}
	chain, err := strict.Inline(at+".certificate_chain", c.GetCertificateChain())
	if err != nil {
		return nil, err
	}
	key, err := strict.Inline(at+".private_key", c.GetPrivateKey())
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", at, err)
	}
	return &cert, nil
}

func compileValidation(at string, c *tlsv3.CertificateValidationContext) (*validation, error) {
	if err := strict.Allow(at, c, "trusted_ca", "match_typed_subject_alt_names", "match_subject_alt_names", "crl"); err != nil {
		return nil, err
	}
	if err := emptyCRL(at+".crl", c.GetCrl()); err != nil {
		return nil, err
	}
	v := &validation{}
	ca, err := strict.Inline(at+".trusted_ca", c.GetTrustedCa())
	if err != nil {
		return nil, err
	}
	if len(ca) > 0 {
		v.roots = x509.NewCertPool()
		if !v.roots.AppendCertsFromPEM(ca) {
			return nil, fmt.Errorf("%s.trusted_ca: holds no certificate", at)
		}
	}
	// The older field, which istiod fills: names of any type.
	for _, m := range c.GetMatchSubjectAltNames() {
		match, err := request.CompileString(at+".match_subject_alt_names", m)
		if err != nil {
			return nil, err
		}
		v.sans = append(v.sans, sanMatch{uri: true, match: match}, sanMatch{match: match})
	}
	for _, m := range c.GetMatchTypedSubjectAltNames() {
		where := at + ".match_typed_subject_alt_names"
		match, err := request.CompileString(where, m.GetMatcher())
		if err != nil {
			return nil, err
		}
		switch m.GetSanType() {
		case tlsv3.SubjectAltNameMatcher_URI:
			v.sans = append(v.sans, sanMatch{uri: true, match: match})
		case tlsv3.SubjectAltNameMatcher_DNS:
			v.sans = append(v.sans, sanMatch{match: match})
		default:
			return nil, fmt.Errorf("%s: san_type %s is not supported", where, m.GetSanType())
		}
	}
	return v, nil
}

// emptyCRL refuses lists of revoked certificates, which are not looked at. Istio's
// agent names a file that is empty unless its CA has one.
func emptyCRL(at string, source *corev3.DataSource) error {
	var content []byte
	var err error
	if name := source.GetFilename(); name == "" {
		content, err = strict.Inline(at, source)
	} else {
		var file *os.File
		if file, err = os.Open(name); err == nil {
			content, err = io.ReadAll(io.LimitReader(file, 1))
			_ = file.Close()
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", at, err)
	}
	if len(content) > 0 {
		return fmt.Errorf("%s: lists of revoked certificates are not supported", at)
	}
	return nil
}

// tlsContext is a compiled CommonTlsContext: names of secrets and what came
// inline.
type tlsContext struct {
	certificateSecrets []string
	servers            []string // of secrets, besides the control plane
	certificates       []*tls.Certificate
	ValidationSecret   string
	Validation         *validation
	MinVersion         uint16
	MaxVersion         uint16
	CipherSuites       []uint16      // of TLS 1.2; nil: Go's
	Curves             []tls.CurveID // nil: Go's
	FetchTimeout       time.Duration // to wait for a certificate; 0: as long as it takes
	Alpn               []string
}

var tlsVersions = map[tlsv3.TlsParameters_TlsProtocol]uint16{ //nolint:gochecknoglobals // read only
	tlsv3.TlsParameters_TLS_AUTO: 0, tlsv3.TlsParameters_TLSv1_2: tls.VersionTLS12, tlsv3.TlsParameters_TLSv1_3: tls.VersionTLS13,
}

// tlsCipherSuites of TLS 1.2 in OpenSSL's words, which Envoy takes. Those without
// forward secrecy are offered only to who names them, as istiod does.
var tlsCipherSuites = map[string]uint16{ //nolint:gochecknoglobals // read only
	"ECDHE-ECDSA-AES128-GCM-SHA256": tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
	"ECDHE-RSA-AES128-GCM-SHA256":   tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	"ECDHE-ECDSA-AES256-GCM-SHA384": tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
	"ECDHE-RSA-AES256-GCM-SHA384":   tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	"ECDHE-ECDSA-CHACHA20-POLY1305": tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
	"ECDHE-RSA-CHACHA20-POLY1305":   tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
	"ECDHE-ECDSA-AES128-SHA":        tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA,
	"ECDHE-RSA-AES128-SHA":          tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA,
	"ECDHE-ECDSA-AES256-SHA":        tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA,
	"ECDHE-RSA-AES256-SHA":          tls.TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA,
	"AES128-GCM-SHA256":             tls.TLS_RSA_WITH_AES_128_GCM_SHA256,
	"AES256-GCM-SHA384":             tls.TLS_RSA_WITH_AES_256_GCM_SHA384,
	"AES128-SHA":                    tls.TLS_RSA_WITH_AES_128_CBC_SHA,
	"AES256-SHA":                    tls.TLS_RSA_WITH_AES_256_CBC_SHA,
}

var tlsCurves = map[string]tls.CurveID{ //nolint:gochecknoglobals // read only
	"X25519": tls.X25519, "P-256": tls.CurveP256, "P-384": tls.CurveP384, "P-521": tls.CurveP521, "X25519MLKEM768": tls.X25519MLKEM768,
}

func compileTLSContext(at string, c *tlsv3.CommonTlsContext) (*tlsContext, error) {
	if err := strict.Allow(at, c, "tls_params", "tls_certificates", "tls_certificate_sds_secret_configs", "validation_context",
		"validation_context_sds_secret_config", "combined_validation_context", "alpn_protocols"); err != nil {
		return nil, err
	}
	if err := strict.Allow(at+".tls_params", c.GetTlsParams(), "tls_minimum_protocol_version", "tls_maximum_protocol_version", "cipher_suites", "ecdh_curves"); err != nil {
		return nil, err
	}
	t := &tlsContext{MinVersion: tls.VersionTLS12, Alpn: c.GetAlpnProtocols()}
	low, lowOK := tlsVersions[c.GetTlsParams().GetTlsMinimumProtocolVersion()]
	high, highOK := tlsVersions[c.GetTlsParams().GetTlsMaximumProtocolVersion()]
	if !lowOK || !highOK {
		return nil, fmt.Errorf("%s.tls_params: TLS before 1.2 is not supported", at)
	}
	t.MinVersion, t.MaxVersion = max(t.MinVersion, low), high
	if t.MaxVersion != 0 && t.MaxVersion < t.MinVersion {
		return nil, fmt.Errorf("%s.tls_params: the maximum version is below the minimum", at)
	}
	if err := t.ciphers(at+".tls_params", c.GetTlsParams()); err != nil {
		return nil, err
	}
	for i, cert := range c.GetTlsCertificates() {
		compiled, err := compileCertificate(fmt.Sprintf("%s.tls_certificates[%d]", at, i), cert)
		if err != nil {
			return nil, err
		}
		t.certificates = append(t.certificates, compiled)
	}
	for _, sds := range c.GetTlsCertificateSdsSecretConfigs() {
		name, err := t.sdsName(at+".tls_certificate_sds_secret_configs", sds)
		if err != nil {
			return nil, err
		}
		t.certificateSecrets = append(t.certificateSecrets, name)
		t.FetchTimeout = max(t.FetchTimeout, strict.Duration(sds.GetSdsConfig().GetInitialFetchTimeout(), 0))
	}
	var err error
	switch v := c.GetValidationContextType().(type) {
	case nil:
	case *tlsv3.CommonTlsContext_ValidationContext:
		t.Validation, err = compileValidation(at+".validation_context", v.ValidationContext)
	case *tlsv3.CommonTlsContext_ValidationContextSdsSecretConfig:
		t.ValidationSecret, err = t.sdsName(at+".validation_context_sds_secret_config", v.ValidationContextSdsSecretConfig)
	case *tlsv3.CommonTlsContext_CombinedValidationContext:
		where := at + ".combined_validation_context"
		if err := strict.Allow(where, v.CombinedValidationContext, "default_validation_context", "validation_context_sds_secret_config"); err != nil {
			return nil, err
		}
		if t.Validation, err = compileValidation(where+".default_validation_context", v.CombinedValidationContext.GetDefaultValidationContext()); err != nil {
			return nil, err
		}
		t.ValidationSecret, err = t.sdsName(where+".validation_context_sds_secret_config", v.CombinedValidationContext.GetValidationContextSdsSecretConfig())
	}
	return t, err
}

// ciphers obeys the lists; Go decides about the order.
func (t *tlsContext) ciphers(at string, params *tlsv3.TlsParameters) error {
	for _, entry := range params.GetCipherSuites() {
		// [A|B] are equal in preference.
		for name := range strings.SplitSeq(strings.Trim(entry, "[]"), "|") {
			suite, known := tlsCipherSuites[name]
			if !known {
				return fmt.Errorf("%s.cipher_suites: %q is not supported", at, name)
			}
			t.CipherSuites = append(t.CipherSuites, suite)
		}
	}
	for _, name := range params.GetEcdhCurves() {
		curve, known := tlsCurves[name]
		if !known {
			return fmt.Errorf("%s.ecdh_curves: %q is not supported", at, name)
		}
		t.Curves = append(t.Curves, curve)
	}
	return nil
}

// secretNames are the secrets the context needs.
func (t *tlsContext) secretNames() []string {
	if t == nil {
		return nil
	}
	names := append([]string(nil), t.certificateSecrets...)
	if t.ValidationSecret != "" {
		names = append(names, t.ValidationSecret)
	}
	return names
}

// Material is a context with its secrets; missing names the first that is not
// there yet.
type Material struct {
	Certificates []tls.Certificate
	Validation   *validation
}

func (t *tlsContext) Resolve(secrets map[string]*Secret) (m *Material, missing string) {
	m = &Material{}
	for _, c := range t.certificates {
		m.Certificates = append(m.Certificates, *c)
	}
	for _, name := range t.certificateSecrets {
		s := secrets[name]
		if s == nil || s.certificate == nil {
			return nil, name
		}
		m.Certificates = append(m.Certificates, *s.certificate)
	}
	m.Validation = t.Validation
	if t.ValidationSecret != "" {
		s := secrets[t.ValidationSecret]
		if s == nil || s.validation == nil {
			return nil, t.ValidationSecret
		}
		merged := validation{roots: s.validation.roots, sans: s.validation.sans}
		if t.Validation != nil {
			merged.sans = append(append([]sanMatch(nil), t.Validation.sans...), s.validation.sans...)
			if t.Validation.roots != nil && merged.roots == nil {
				merged.roots = t.Validation.roots
			}
		}
		m.Validation = &merged
	}
	return m, ""
}

var errNoRoots = errors.New("there is no trusted CA to verify the peer's certificate against")

// Verify checks the peer's chain for the usage and its names.
func (v *validation) Verify(state tls.ConnectionState, usage x509.ExtKeyUsage) error {
	if v == nil || v.roots == nil {
		return errNoRoots
	}
	if len(state.PeerCertificates) == 0 {
		return errors.New("the peer sent no certificate")
	}
	leaf := state.PeerCertificates[0]
	intermediates := x509.NewCertPool()
	for _, c := range state.PeerCertificates[1:] {
		intermediates.AddCert(c)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: v.roots, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
		return err
	}
	if len(v.sans) == 0 {
		return nil
	}
	for _, m := range v.sans {
		if m.uri {
			for _, uri := range leaf.URIs {
				if m.match(uri.String()) {
					return nil
				}
			}
			continue
		}
		for _, name := range leaf.DNSNames {
			if m.match(strings.ToLower(name)) {
				return nil
			}
		}
	}
	return fmt.Errorf("none of the peer's names %s is expected", request.URISANs(leaf))
}
