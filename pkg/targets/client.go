package targets

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"time"
)

// DialFunc makes a connection, as net.Dialer.DialContext does.
type DialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// Timeouts of connections, and what one may hold.
const (
	dialTimeout            = 5 * time.Second
	tlsTimeout             = 5 * time.Second
	idleTimeout            = 90 * time.Second
	maxIdlePerHost         = 32
	maxResponseHeaderBytes = 64 << 10
)

// DialContext returns a dial function that resolves a host name once, and dials
// those of its addresses that the policy allows, in the resolver's order, until
// one answers. Base dials an address; nil stands for a net.Dialer with a timeout
// of five seconds.
func (p *Policy) DialContext(base DialFunc) DialFunc {
	if base == nil {
		base = (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext
	}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		host, port, addrs, err := p.resolve(ctx, address)
		if err != nil {
			return nil, err
		}
		var errs []error
		for _, addr := range addrs {
			if why := p.checkAddr(host, addr, port); why != "" {
				errs = append(errs, &RefusedError{Target: address, Why: why})
				continue
			}
			conn, err := base(ctx, network, netip.AddrPortFrom(addr.Unmap(), port).String())
			if err == nil {
				return conn, nil
			}
			errs = append(errs, err)
			if ctx.Err() != nil {
				break
			}
		}
		return nil, errors.Join(errs...)
	}
}

// resolve returns the addresses of "host:port"; host is empty when it is an
// address itself.
func (p *Policy) resolve(ctx context.Context, address string) (host string, port uint16, addrs []netip.Addr, err error) {
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, nil, &RefusedError{Target: address, Why: err.Error()}
	}
	if port, err = parsePort(text); err != nil {
		return "", 0, nil, &RefusedError{Target: address, Why: err.Error()}
	}
	if why := p.checkHost(host, port); why != "" {
		return "", 0, nil, &RefusedError{Target: address, Why: why}
	}
	if p.serviceProxy != nil && IsService(host) {
		return "", 0, nil, &RefusedError{Target: address, Why: "Services of the cluster are called through the mesh only"}
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		return "", port, []netip.Addr{addr}, nil
	}
	host, _ = canonicalName(host) // checkHost has found it fine
	if addrs, err = p.resolver.LookupNetIP(ctx, "ip", host); err != nil {
		return "", 0, nil, fmt.Errorf("resolving %s: %w", net.JoinHostPort(host, strconv.Itoa(int(port))), err)
	}
	if len(addrs) == 0 {
		return "", 0, nil, fmt.Errorf("resolving %s: it has no address", host)
	}
	return host, port, addrs, nil
}

// ClientOptions shape what [Policy.Transport] and [Policy.HTTPClient] make.
type ClientOptions struct {
	// TLS configuration; default the system's roots and TLS 1.2 or newer.
	TLS *tls.Config
	// ResponseHeaderTimeout bounds the wait for a response's headers after the
	// request was sent; default none, the request's context decides.
	ResponseHeaderTimeout time.Duration
	// Dial replaces the dialer under the policy, see [Policy.DialContext].
	Dial DialFunc
}

// Transport returns a transport that makes no request and no connection that
// the policy refuses, and uses no proxy of the environment: a proxy would
// resolve names on its own. It does not follow redirects, no transport does.
func (p *Policy) Transport(options ClientOptions) *Transport {
	config := options.TLS.Clone()
	if config == nil {
		config = &tls.Config{}
	}
	config.MinVersion = max(config.MinVersion, tls.VersionTLS12)
	t := &Transport{policy: p, base: &http.Transport{
		DialContext:            p.DialContext(options.Dial),
		TLSClientConfig:        config,
		TLSHandshakeTimeout:    tlsTimeout,
		ResponseHeaderTimeout:  options.ResponseHeaderTimeout,
		MaxResponseHeaderBytes: maxResponseHeaderBytes,
		MaxIdleConnsPerHost:    maxIdlePerHost,
		IdleConnTimeout:        idleTimeout,
		ForceAttemptHTTP2:      true,
		DisableCompression:     true, // a body's size is what the peer sent
	}}
	if p.serviceProxy != nil {
		t.services = &http.Transport{
			Proxy:                  http.ProxyURL(p.serviceProxy),
			DialContext:            (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext,
			ResponseHeaderTimeout:  options.ResponseHeaderTimeout,
			MaxResponseHeaderBytes: maxResponseHeaderBytes,
			MaxIdleConnsPerHost:    maxIdlePerHost,
			IdleConnTimeout:        idleTimeout,
			DisableCompression:     true,
		}
	}
	return t
}

// Transport is an http.RoundTripper that keeps to a policy.
type Transport struct {
	policy   *Policy
	base     *http.Transport
	services *http.Transport // nil: base calls them, too
}

// RoundTrip checks the URL and sends the request.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := t.policy.check(r.URL); err != nil {
		if r.Body != nil {
			r.Body.Close()
		}
		return nil, err
	}
	if t.services != nil && IsService(r.URL.Hostname()) {
		return t.services.RoundTrip(toService(r))
	}
	return t.base.RoundTrip(r)
}

// toService spells the host as the proxy knows it. What the request calls its
// host must not lead to another one: a proxy goes by that.
func toService(r *http.Request) *http.Request {
	out, u := *r, *r.URL
	u.Host, _ = canonicalName(u.Hostname())
	if port := r.URL.Port(); port != "" {
		u.Host = net.JoinHostPort(u.Host, port)
	}
	out.URL, out.Host = &u, ""
	return &out
}

// CloseIdleConnections is what http.Client.CloseIdleConnections calls.
func (t *Transport) CloseIdleConnections() {
	t.base.CloseIdleConnections()
	if t.services != nil {
		t.services.CloseIdleConnections()
	}
}

// maxRedirects is enough for a key set or a document that has moved.
const maxRedirects = 3

// HTTPClient returns a client on [Policy.Transport]. It follows up to three
// redirects, each checked like the first URL, and none from https to http or
// from outside to a Service of the cluster. The caller bounds the time, by the request's context, and what it reads.
func (p *Policy) HTTPClient(options ClientOptions) *http.Client {
	return &http.Client{
		Transport: p.Transport(options),
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			if len(via) > maxRedirects {
				return fmt.Errorf("stopped after %d redirects", maxRedirects)
			}
			from := via[len(via)-1].URL
			if downgrade(from, r.URL) {
				return &RefusedError{Target: r.URL.Redacted(), Why: "a redirect from https to http is not followed"}
			}
			if IsService(r.URL.Hostname()) && !IsService(from.Hostname()) {
				return &RefusedError{Target: r.URL.Redacted(), Why: "a redirect from outside into the cluster is not followed"}
			}
			return nil
		},
	}
}

func downgrade(from, to *url.URL) bool { return from.Scheme == "https" && to.Scheme != "https" }
