package cli

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// Files of a paired system.
const (
	pairKey         = "client.key"
	pairCertificate = "client.crt"
	pairServerCA    = "ca.crt"
	pairConnection  = "connection.json"
)

const (
	// pairWait is how long a token may take to be made.
	pairWait = time.Minute
	// pairTimeout bounds pairing as a whole.
	pairTimeout = 3 * time.Minute
)

type pairOptions struct {
	out, namespace, url, ca, key string
	renew                        bool
}

// connection is what connection.json holds: who the system is and what it may
// call.
type connection struct {
	Application string            `json:"application"`
	ExpiresAt   time.Time         `json:"expiresAt"`
	URLs        map[string]string `json:"urls"`
}

func newPairCommand(g *globals) *cobra.Command {
	var o pairOptions
	var out output
	cmd := &cobra.Command{
		Use:   "pair APPLICATION --out DIR",
		Short: "Get a third-party system its client certificate",
		Long: `pair asks for a token for the Application, makes a key on this machine, and
exchanges both for a client certificate, good for 90 days. It writes to DIR:

  client.key        the private key, which only you can read and nobody else has
  client.crt        the certificate, with what it is signed by
  ca.crt            what verifies the connector's own certificate
  connection.json   the URLs to call with them

With --renew it replaces the certificate and the key in DIR by new ones, with
nothing but them. With --url it needs no cluster, only a token's URL that somebody
else has made with a TokenRequest.`,
		Example: `  lambdamesh pair commerce --out commerce
  curl --cacert commerce/ca.crt --cert commerce/client.crt --key commerce/client.key \
    https://127.0.0.1:8083/commerce/v1/events/subscribed
  lambdamesh pair commerce --out commerce --renew
  lambdamesh pair commerce --out commerce --url 'https://connector.example.com/v1/applications/signingRequests/info?token=...' --ca ca.crt`,
		Args: exactArgs("APPLICATION"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.out == "" {
				return usagef("pair needs --out DIR (see `lambdamesh pair --help`)")
			}
			if o.renew && (o.url != "" || o.ca != "") {
				return usagef("--renew takes what is in --out: leave --url and --ca out")
			}
			if err := out.validate(); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), pairTimeout)
			defer cancel()
			pair := o.pair
			if o.renew {
				pair = o.renewed
			}
			c, err := pair(ctx, g.target(), args[0])
			if err != nil {
				return err
			}
			if out.format != tableFormat {
				return out.print(cmd.OutOrStdout(), c, nil, nil)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s is paired until %s: %s\n", c.Application, c.ExpiresAt.Format(time.RFC3339), o.out)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.out, "out", "", "`directory` to write to; it is made when there is none")
	f.BoolVar(&o.renew, "renew", false, "replace the certificate in --out before it expires")
	f.StringVarP(&o.namespace, "namespace", "n", "", "where the TokenRequest is made for a moment (default: the context's)")
	f.StringVar(&o.url, "url", "", "a token's `URL`, in the place of a token of the cluster")
	f.StringVar(&o.ca, "ca", "", "`file` with the certificates (PEM) that verify the connector's (default: what comes with the token; with --url those of this machine)")
	f.StringVar(&o.key, "key", "rsa2048", "kind of key: rsa2048, rsa4096 or ecdsa-p256")
	out.register(cmd)
	return cmd
}

// pair gets a token, unless there is a URL, and exchanges it.
func (o *pairOptions) pair(ctx context.Context, t target, application string) (connection, error) {
	key, err := o.newKey()
	if err != nil {
		return connection{}, err
	}
	roots, dial := []byte(nil), (&net.Dialer{Timeout: 10 * time.Second}).DialContext
	if o.ca != "" {
		if roots, err = os.ReadFile(o.ca); err != nil {
			return connection{}, fmt.Errorf("read --ca: %w", err)
		}
	}
	from := o.url
	if from == "" {
		secret, end, err := o.token(ctx, t, application)
		if err != nil {
			return connection{}, err
		}
		defer end()
		from = string(secret.Data["url"])
		if roots == nil {
			roots = secret.Data[caKey]
		}
		if dial, err = connectorDialer(ctx, t, from); err != nil {
			return connection{}, err
		}
	}
	p := &paired{dial: dial, roots: roots}
	var info struct {
		CSRURL      string          `json:"csrUrl"`
		API         json.RawMessage `json:"api"`
		Certificate struct {
			Subject string `json:"subject"`
		} `json:"certificate"`
	}
	if err := p.call(ctx, http.MethodGet, from, nil, &info); err != nil {
		return connection{}, err
	}
	var api map[string]string
	if err := json.Unmarshal(info.API, &api); err != nil {
		return connection{}, fmt.Errorf("read the connector's answer: %w", err)
	}
	if of := commonName(info.Certificate.Subject); of != application {
		return connection{}, fmt.Errorf("the token is for the application %q, not for %q", of, application)
	}
	if err := p.request(ctx, info.CSRURL, info.Certificate.Subject, key); err != nil {
		return connection{}, err
	}
	return o.finish(ctx, p, application, api["infoUrl"])
}

// renewed exchanges what is in the directory for another.
func (o *pairOptions) renewed(ctx context.Context, t target, application string) (connection, error) {
	var before connection
	raw, err := os.ReadFile(filepath.Join(o.out, pairConnection))
	if err == nil {
		err = json.Unmarshal(raw, &before)
	}
	if err != nil {
		return before, fmt.Errorf("read what was paired (pair without --renew first): %w", err)
	}
	if before.Application != application {
		return before, fmt.Errorf("%s is paired as %s, not as %s", o.out, before.Application, application)
	}
	p := &paired{}
	if p.certificate, err = os.ReadFile(filepath.Join(o.out, pairCertificate)); err != nil {
		return before, fmt.Errorf("read the certificate: %w", err)
	}
	if p.key, err = os.ReadFile(filepath.Join(o.out, pairKey)); err != nil {
		return before, fmt.Errorf("read the key: %w", err)
	}
	if p.roots, err = os.ReadFile(filepath.Join(o.out, pairServerCA)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return before, fmt.Errorf("read the connector's CA: %w", err)
	}
	if p.dial, err = connectorDialer(ctx, t, before.URLs["renewCertUrl"]); err != nil {
		return before, err
	}
	var told management
	if err := p.call(ctx, http.MethodGet, before.URLs["infoUrl"], nil, &told); err != nil {
		return before, err
	}
	key, err := o.newKey()
	if err != nil {
		return before, err
	}
	if err := p.request(ctx, told.URLs["renewCertUrl"], told.Certificate.Subject, key); err != nil {
		return before, err
	}
	return o.finish(ctx, p, application, before.URLs["infoUrl"])
}

// management is the connector's answer to a paired system.
type management struct {
	URLs        map[string]string `json:"urls"`
	Certificate struct {
		Subject string `json:"subject"`
	} `json:"certificate"`
}

// finish tries the certificate and writes the files.
func (o *pairOptions) finish(ctx context.Context, p *paired, application, infoURL string) (connection, error) {
	var told management
	if err := p.call(ctx, http.MethodGet, infoURL, nil, &told); err != nil {
		return connection{}, fmt.Errorf("try the new certificate: %w", err)
	}
	pair, err := tls.X509KeyPair(p.certificate, p.key)
	if err != nil {
		return connection{}, fmt.Errorf("read the new certificate: %w", err)
	}
	c := connection{Application: application, ExpiresAt: pair.Leaf.NotAfter, URLs: told.URLs}
	c.URLs["infoUrl"] = infoURL
	about, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return c, fmt.Errorf("encode the connection: %w", err)
	}
	if err := os.MkdirAll(o.out, 0o700); err != nil {
		return c, fmt.Errorf("make --out: %w", err)
	}
	// The key first: with the old certificate it is no pair, and that is told;
	// a new certificate without its key is lost.
	for _, file := range []struct {
		name    string
		content []byte
	}{{pairKey, p.key}, {pairCertificate, p.certificate}, {pairServerCA, p.roots}, {pairConnection, append(about, '\n')}} {
		if len(file.content) == 0 {
			continue
		}
		if err := writePrivate(filepath.Join(o.out, file.name), file.content); err != nil {
			return c, err
		}
	}
	return c, nil
}

// writePrivate puts a file in place at once, which only its owner can read.
func writePrivate(path string, content []byte) error {
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-") // mode 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = file.Write(content)
	if err = errors.Join(err, file.Sync(), file.Close()); err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, errors.Join(err, os.Remove(file.Name())))
	}
	return nil
}

func (o *pairOptions) newKey() (key crypto.Signer, err error) {
	switch o.key {
	case "rsa2048":
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	case "rsa4096":
		key, err = rsa.GenerateKey(rand.Reader, 4096)
	case "ecdsa-p256":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	default:
		return nil, usagef("--key %q: use rsa2048, rsa4096 or ecdsa-p256", o.key)
	}
	if err != nil {
		return nil, fmt.Errorf("generate a key: %w", err)
	}
	return key, nil
}

// token makes a TokenRequest and returns the Secret with its token. end removes
// both.
func (o *pairOptions) token(ctx context.Context, t target, application string) (secret *corev1.Secret, end func(), err error) {
	c, err := t.client()
	if err != nil {
		return nil, nil, err
	}
	namespace, err := t.namespace(o.namespace)
	if err != nil {
		return nil, nil, err
	}
	request := &v1alpha1.TokenRequest{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, GenerateName: "pair-" + application + "-"},
		Spec:       v1alpha1.TokenRequestSpec{Application: application},
	}
	if err := c.Create(ctx, request); err != nil {
		return nil, nil, fmt.Errorf("make a TokenRequest for %s in the namespace %s: %w", application, namespace, err)
	}
	end = func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		_ = c.Delete(ctx, request) // used or not, it expires
	}
	waiting, cancel := context.WithTimeout(ctx, pairWait)
	defer cancel()
	for {
		if err := c.Get(waiting, client.ObjectKeyFromObject(request), request); err != nil {
			end()
			return nil, nil, fmt.Errorf("wait for the token: %w", err)
		}
		ready := meta.FindStatusCondition(request.Status.CommonStatus.Conditions, v1alpha1.ConditionReady)
		switch {
		case ready != nil && ready.Status == metav1.ConditionTrue:
			secret = &corev1.Secret{}
			if err := c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: request.Status.SecretName}, secret); err != nil {
				end()
				return nil, nil, fmt.Errorf("read the token: %w", err)
			}
			return secret, end, nil
		case ready != nil && ready.Reason != v1alpha1.ReasonPending:
			end()
			return nil, nil, fmt.Errorf("no token was made: %s: %s", ready.Reason, ready.Message)
		}
		select {
		case <-waiting.Done():
			end()
			return nil, nil, fmt.Errorf("no token was made within %s: is the connector running?", pairWait)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// connectorDialer reaches the connector: where its URL leads, or, when that is the
// Service's name, which is known in the cluster only, through the API server.
func connectorDialer(ctx context.Context, t target, at string) (func(context.Context, string, string) (net.Conn, error), error) {
	dialer := &net.Dialer{Timeout: 10 * time.Second}
	u, err := url.Parse(at)
	if err != nil || u.Hostname() != v1alpha1.ServiceConnectorPublic+"."+v1alpha1.SystemNamespace+".svc" {
		return dialer.DialContext, nil //nolint:nilerr // the call says what is wrong with it
	}
	cfg, err := t.restConfig()
	if err != nil {
		return nil, err
	}
	clientset, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to the API server %s: %w", cfg.Host, err)
	}
	address, err := forwardPort(ctx, cfg, clientset, v1alpha1.ServiceConnectorPublic, publicPort)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		return dialer.DialContext(ctx, network, address)
	}, nil
}

// paired is a system on its way to a certificate, or with one.
type paired struct {
	dial             func(context.Context, string, string) (net.Conn, error)
	roots            []byte // PEM; none: those of this machine
	certificate, key []byte // PEM; none yet: no certificate is shown
}

// request exchanges a certificate signing request for a certificate.
func (p *paired) request(ctx context.Context, to, subject string, key crypto.Signer) error {
	raw, err := rawSubject(subject)
	if err != nil {
		return err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{RawSubject: raw}, key)
	if err != nil {
		return fmt.Errorf("make a certificate signing request: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode the key: %w", err)
	}
	csr := base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	var answer struct {
		Chain []byte `json:"crt"` // base64, as encoding/json reads bytes
	}
	if err := p.call(ctx, http.MethodPost, to, map[string]string{"csr": csr}, &answer); err != nil {
		return err
	}
	p.certificate, p.key = answer.Chain, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	return nil
}

// call asks the connector.
func (p *paired) call(ctx context.Context, method, to string, body, into any) error {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if len(p.roots) > 0 {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(p.roots) {
			return errors.New("what verifies the connector's certificate holds no certificate (PEM)")
		}
	}
	if len(p.certificate) > 0 {
		pair, err := tls.X509KeyPair(p.certificate, p.key)
		if err != nil {
			return fmt.Errorf("read the client certificate: %w", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	var encoded []byte
	if body != nil {
		var err error
		if encoded, err = json.Marshal(body); err != nil {
			return fmt.Errorf("encode the request: %w", err)
		}
	}
	request, err := http.NewRequestWithContext(ctx, method, to, bytes.NewReader(encoded))
	if err != nil {
		return usagef("the connector's URL %q: %w", to, err)
	}
	request.Header.Set("Content-Type", jsonType)
	transport := &http.Transport{TLSClientConfig: config, DialContext: p.dial, DisableKeepAlives: true}
	response, err := (&http.Client{Transport: transport, Timeout: publishTimeout}).Do(request)
	if err != nil {
		// The URL may hold the token.
		if inner, ok := errors.AsType[*url.Error](err); ok {
			err = inner.Err
		}
		return fmt.Errorf("reach the connector at %s: %w", request.URL.Host, err)
	}
	defer response.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("read the connector's answer: %w", err)
	}
	if response.StatusCode/100 != 2 {
		var refused struct{ Error string }
		if json.Unmarshal(raw, &refused) == nil && refused.Error != "" {
			return fmt.Errorf("the connector answered %s: %s", response.Status, refused.Error)
		}
		return fmt.Errorf("the connector answered %s", response.Status)
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("read the connector's answer: %w", err)
	}
	return nil
}

// rawSubject encodes a subject such as "O=Lambdamesh,CN=commerce".
func rawSubject(subject string) ([]byte, error) {
	known := map[string]int{"CN": 3, "C": 6, "L": 7, "ST": 8, "O": 10, "OU": 11} // RFC 5280, appendix A.1
	var name pkix.RDNSequence
	for part := range strings.SplitSeq(subject, ",") {
		kind, value, ok := strings.Cut(part, "=")
		last := known[kind]
		if !ok || last == 0 {
			return nil, fmt.Errorf("the connector asks for a subject that is not understood: %q", subject)
		}
		name = append(name, pkix.RelativeDistinguishedNameSET{{Type: asn1.ObjectIdentifier{2, 5, 4, last}, Value: value}})
	}
	raw, err := asn1.Marshal(name)
	if err != nil {
		return nil, fmt.Errorf("encode the subject %q: %w", subject, err)
	}
	return raw, nil
}

// commonName of a subject such as "O=Lambdamesh,CN=commerce".
func commonName(subject string) string {
	for part := range strings.SplitSeq(subject, ",") {
		if name, ok := strings.CutPrefix(part, "CN="); ok {
			return name
		}
	}
	return ""
}
