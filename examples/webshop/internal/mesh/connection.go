package mesh

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	neturl "net/url"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	callTimeout = 30 * time.Second
	maxAnswer   = 4 << 20
)

// Files of a connection.
const (
	keyFile         = "client.key"
	certificateFile = "client.crt"
	caFile          = "ca.crt"
	connectionFile  = "connection.json"
)

// ErrNotPaired says that a directory holds no connection.
var ErrNotPaired = errors.New("not paired yet")

// Connection of a paired system.
type Connection struct {
	dir     string
	ca      []byte // PEM; none: the authorities of this machine
	infoURL string

	mu                  sync.Mutex
	application         string
	urls                map[string]string
	client              *http.Client
	certificate         *x509.Certificate
	certificatePEM, key []byte
}

// file is connection.json.
type file struct {
	Application string            `json:"application"`
	URLs        map[string]string `json:"urls"`
}

// Open continues with the connection in a directory. [ErrNotPaired] when there is
// none.
func Open(dir string) (*Connection, error) {
	raw, err := os.ReadFile(filepath.Join(dir, connectionFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotPaired
	}
	var f file
	if err == nil {
		err = json.Unmarshal(raw, &f)
	}
	if err != nil {
		return nil, fmt.Errorf("read the connection: %w", err)
	}
	c := &Connection{dir: dir, application: f.Application, urls: f.URLs, infoURL: f.URLs["infoUrl"]}
	if c.ca, err = os.ReadFile(filepath.Join(dir, caFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the connection: %w", err)
	}
	certificate, err := os.ReadFile(filepath.Join(dir, certificateFile))
	if err != nil {
		return nil, fmt.Errorf("read the connection: %w", err)
	}
	key, err := os.ReadFile(filepath.Join(dir, keyFile))
	if err != nil {
		return nil, fmt.Errorf("read the connection: %w", err)
	}
	return c, c.use(certificate, key)
}

// use goes on with a certificate; nil: without one. Connections that were opened
// with the one before are closed when they are idle.
func (c *Connection) use(certificate, key []byte) error {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if len(c.ca) > 0 {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(c.ca) {
			return errors.New("what verifies the connector holds no certificate (PEM)")
		}
	}
	var leaf *x509.Certificate
	if certificate != nil {
		pair, err := tls.X509KeyPair(certificate, key)
		if err != nil {
			return fmt.Errorf("read the client certificate: %w", err)
		}
		config.Certificates, leaf = []tls.Certificate{pair}, pair.Leaf
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.client != nil {
		c.client.CloseIdleConnections()
	}
	c.client = &http.Client{Timeout: callTimeout, Transport: &http.Transport{TLSClientConfig: config, IdleConnTimeout: time.Minute}}
	c.certificate, c.certificatePEM, c.key = leaf, certificate, key
	return nil
}

// keep writes the connection into its directory, for its owner only. The key comes
// first: it fits no older certificate, and a certificate without its key is lost.
func (c *Connection) keep(told management) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.application, c.urls = told.ClientIdentity.Application, told.URLs
	c.urls["infoUrl"] = c.infoURL
	about, err := json.MarshalIndent(file{Application: c.application, URLs: c.urls}, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the connection: %w", err)
	}
	for _, file := range []struct {
		name    string
		content []byte
	}{{keyFile, c.key}, {certificateFile, c.certificatePEM}, {caFile, c.ca}, {connectionFile, append(about, '\n')}} {
		if len(file.content) == 0 {
			continue
		}
		path := filepath.Join(c.dir, file.name)
		if err := os.WriteFile(path+".new", file.content, 0o600); err != nil {
			return fmt.Errorf("keep the connection: %w", err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			return fmt.Errorf("keep the connection: %w", err)
		}
	}
	return nil
}

// Application that the system is in the mesh.
func (c *Connection) Application() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.application
}

// CA is what verifies the mesh (PEM); empty: the authorities of this machine do.
func (c *Connection) CA() []byte { return c.ca }

// Life of the certificate.
func (c *Connection) Life() (from, until time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.certificate.NotBefore, c.certificate.NotAfter
}

// RenewAt is when the certificate has a third of its life left.
func (c *Connection) RenewAt() time.Time {
	from, until := c.Life()
	return until.Add(-until.Sub(from) / 3)
}

func (c *Connection) url(name string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.urls[name]
}

// Refused is an answer that is no success.
type Refused struct {
	Status int
	Why    string
}

// Error implements error.
func (r *Refused) Error() string { return fmt.Sprintf("the mesh answered %d: %s", r.Status, r.Why) }

// call asks the connector. body and into may be nil.
func (c *Connection) call(ctx context.Context, method, to string, body, into any) error {
	var encoded []byte
	if body != nil {
		var err error
		if encoded, err = json.Marshal(body); err != nil {
			return fmt.Errorf("encode the request: %w", err)
		}
	}
	request, err := http.NewRequestWithContext(ctx, method, to, bytes.NewReader(encoded))
	if err != nil {
		return errors.New("the URL of the mesh cannot be read")
	}
	request.Header.Set("Content-Type", "application/json")
	c.mu.Lock()
	client := c.client
	c.mu.Unlock()
	response, err := client.Do(request)
	if err != nil {
		if inner, ok := errors.AsType[*neturl.Error](err); ok {
			err = inner.Err // the URL may hold the token
		}
		if alert, ok := errors.AsType[*net.OpError](err); ok && alert.Op == "remote error" { // of TLS
			return fmt.Errorf("the mesh refuses the certificate: %w", alert.Err)
		}
		return fmt.Errorf("reach the mesh at %s: %w", request.URL.Host, err)
	}
	defer response.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("read the answer of the mesh: %w", err)
	}
	if response.StatusCode/100 != 2 {
		// Pairing and the registry answer error, the event bus message.
		var why struct{ Error, Message string }
		_ = json.Unmarshal(raw, &why) // without a reason the status says enough
		return &Refused{Status: response.StatusCode, Why: why.Error + why.Message}
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("read the answer of the mesh: %w", err)
	}
	return nil
}
