package connector_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/connector"
	"github.com/lambdamesh/lambdamesh/connector/authority"
	"github.com/lambdamesh/lambdamesh/manifests"
	"github.com/lambdamesh/lambdamesh/pkg/apis/headers"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// bus is what the connector's sidecar leads to: it tells what it was sent.
type bus struct {
	*httptest.Server
	mu   sync.Mutex
	seen []string
}

func newBus(t *testing.T) *bus {
	t.Helper()
	b := &bus{}
	b.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		b.seen = append(b.seen, fmt.Sprintf("%s %s %s %s", r.Method, r.RequestURI, r.Header.Get("Ce-Type"), body))
		for name := range r.Header {
			if headers.Identity(name) || name == "Authorization" || name == "Cookie" {
				b.seen = append(b.seen, "leaked "+name)
			}
		}
		w.Header().Set("X-Lambdamesh-Secret", "of the mesh")
		w.WriteHeader(http.StatusAccepted)
		_, _ = io.WriteString(w, `{"events":[]}`)
	}))
	t.Cleanup(b.Close)
	return b
}

func (b *bus) last() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.seen) == 0 {
		return ""
	}
	return b.seen[len(b.seen)-1]
}

// startPairing starts a connector that pairs, and has an authority to sign with.
func startPairing(t *testing.T, b *bus) *world {
	t.Helper()
	w := startOn(t, testkit.KubeAPI(t, manifests.CRDs), func(c *connector.Config) {
		c.LeaderElection = true
		if b != nil {
			c.MeshProxyURL = b.URL
		}
	})
	w.makeAuthority()
	return w
}

// makeAuthority makes the authority that signs, as the control plane does.
func (w *world) makeAuthority() {
	w.t.Helper()
	data, _, _, err := authority.Renew(nil, false, time.Now())
	require.NoError(w.t, err)
	w.create(&corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.SystemNamespace, Name: v1alpha1.SecretConnectorCA},
		Type:       corev1.SecretTypeTLS, Data: data,
	})
}

// systemWithout an API or anything else but a name.
func systemOf(name string) *v1alpha1.Application {
	return &v1alpha1.Application{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

// token asks for a token and returns what its Secret holds.
func (w *world) token(application string) (request *v1alpha1.TokenRequest, secret *corev1.Secret) {
	w.t.Helper()
	request = &v1alpha1.TokenRequest{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, GenerateName: "pair.a-"},
		Spec:       v1alpha1.TokenRequestSpec{Application: application},
	}
	w.create(request)
	w.becomes(request, v1alpha1.ReasonReady, "")
	secret = &corev1.Secret{}
	require.NoError(w.t, w.client.Get(w.t.Context(), client.ObjectKey{Namespace: w.namespace, Name: request.Status.SecretName}, secret))
	return request, secret
}

// system is a third-party system: whom it believes, and its certificate.
type system struct {
	*http.Client
	certificate *tls.Certificate
}

func (w *world) system(certificate *tls.Certificate) *system {
	config := &tls.Config{RootCAs: w.roots}
	if certificate != nil {
		config.Certificates = []tls.Certificate{*certificate}
	}
	transport := &http.Transport{TLSClientConfig: config, ExpectContinueTimeout: 30 * time.Second}
	w.t.Cleanup(transport.CloseIdleConnections)
	return &system{Client: &http.Client{Transport: transport, Timeout: 30 * time.Second}, certificate: certificate}
}

// call returns the status and decodes the body, if there is a place for it.
func (s *system) call(t *testing.T, method, url string, body, into any, header ...string) (int, error) {
	t.Helper()
	raw, ok := body.(string)
	if !ok && body != nil {
		encoded, err := json.Marshal(body)
		require.NoError(t, err)
		raw = string(encoded)
	}
	request, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(raw))
	require.NoError(t, err)
	request.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(header); i += 2 {
		request.Header.Set(header[i], header[i+1])
	}
	response, err := s.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.Empty(t, response.Header.Get("X-Lambdamesh-Secret"))
	if into != nil && response.StatusCode < 300 {
		require.NoError(t, json.Unmarshal(answer, into), "%s", answer)
	}
	if response.StatusCode >= 400 {
		var refused struct {
			Code  int
			Error string
		}
		require.NoError(t, json.Unmarshal(answer, &refused), "%s", answer)
		require.Equal(t, response.StatusCode, refused.Code)
		require.NotEmpty(t, refused.Error)
	}
	return response.StatusCode, nil
}

func (s *system) must(t *testing.T, want int, method, url string, body, into any) {
	t.Helper()
	status, err := s.call(t, method, url, body, into)
	require.NoError(t, err)
	require.Equal(t, want, status, url)
}

// info is what a Kyma client reads before it has a certificate.
type info struct {
	CSRURL string `json:"csrUrl"`
	API    struct {
		MetadataURL     string `json:"metadataUrl"`
		EventsURL       string `json:"eventsUrl"`
		InfoURL         string `json:"infoUrl"`
		CertificatesURL string `json:"certificatesUrl"`
	} `json:"api"`
	Certificate struct {
		Subject      string `json:"subject"`
		Extensions   string `json:"extensions"`
		KeyAlgorithm string `json:"key-algorithm"`
	} `json:"certificate"`
}

// management is what it reads with its certificate.
type management struct {
	ClientIdentity struct {
		Application string `json:"application"`
	} `json:"clientIdentity"`
	URLs struct {
		EventsURL     string `json:"eventsUrl"`
		EventsInfoURL string `json:"eventsInfoUrl"`
		MetadataURL   string `json:"metadataUrl"`
		RenewURL      string `json:"renewCertUrl"`
		RevokeURL     string `json:"revokeCertUrl"`
	} `json:"urls"`
	Certificate struct {
		Subject string `json:"subject"`
	} `json:"certificate"`
}

type signed struct {
	CRT       string `json:"crt"`
	ClientCRT string `json:"clientCrt"`
	CACRT     string `json:"caCrt"`
}

func ecdsaKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	return key
}

// csr is a request as `openssl req -subj` makes it of a subject.
func csr(t testing.TB, subject string, key crypto.Signer) map[string]string {
	t.Helper()
	oids := map[string]int{"CN": 3, "C": 6, "L": 7, "ST": 8, "O": 10, "OU": 11}
	var name pkix.RDNSequence
	for part := range strings.SplitSeq(subject, ",") {
		key, value, _ := strings.Cut(part, "=")
		name = append(name, pkix.RelativeDistinguishedNameSET{{Type: asn1.ObjectIdentifier{2, 5, 4, oids[key]}, Value: value}})
	}
	raw, err := asn1.Marshal(name)
	require.NoError(t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{RawSubject: raw, DNSNames: []string{"eventbus.lambdamesh-system.svc"}}, key)
	require.NoError(t, err)
	return map[string]string{"csr": base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))}
}

// pair goes the way of a Kyma client, from the token's URL to a certificate.
func (w *world) pair(application string, key crypto.Signer) *system {
	w.t.Helper()
	_, secret := w.token(application)
	return w.use(string(secret.Data["url"]), key)
}

func (w *world) use(url string, key crypto.Signer) *system {
	w.t.Helper()
	var begin info
	w.system(nil).must(w.t, http.StatusOK, http.MethodGet, url, nil, &begin)
	var answer signed
	w.system(nil).must(w.t, http.StatusCreated, http.MethodPost, begin.CSRURL, csr(w.t, begin.Certificate.Subject, key), &answer)
	return w.holder(answer, key)
}

// holder is a system with the certificate of an answer.
func (w *world) holder(answer signed, key crypto.Signer) *system {
	w.t.Helper()
	decode := func(encoded string) []byte {
		raw, err := base64.StdEncoding.DecodeString(encoded)
		require.NoError(w.t, err)
		return raw
	}
	require.Equal(w.t, string(decode(answer.CRT)), string(decode(answer.ClientCRT))+string(decode(answer.CACRT)))
	certificate := &tls.Certificate{PrivateKey: key}
	for block, rest := pem.Decode(decode(answer.CRT)); block != nil; block, rest = pem.Decode(rest) {
		certificate.Certificate = append(certificate.Certificate, block.Bytes)
	}
	leaf, err := x509.ParseCertificate(certificate.Certificate[0])
	require.NoError(w.t, err)
	certificate.Leaf = leaf
	return w.system(certificate)
}

func (w *world) infoURL() string { return w.public + "/v1/applications/management/info" }

// refused is nil when a system with this certificate is not let in.
func (w *world) refused(certificate *tls.Certificate) error {
	status, err := w.system(certificate).call(w.t, http.MethodGet, w.infoURL(), nil, nil)
	if err == nil && status != http.StatusForbidden {
		return fmt.Errorf("it is answered %d", status)
	}
	return nil
}
