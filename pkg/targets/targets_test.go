package targets_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/pkg/targets"
)

func policy(t *testing.T, config targets.Config) *targets.Policy {
	t.Helper()
	p, err := targets.New(config)
	require.NoError(t, err)
	return p
}

func TestURLsRefusedByForm(t *testing.T) {
	p := policy(t, targets.Config{})
	for raw, want := range map[string]string{
		"":                                             "scheme",
		"shop.example.com/api":                         "scheme",
		"//shop.example.com/api":                       "scheme",
		"file:///etc/passwd":                           "scheme",
		"gopher://shop.example.com/":                   "scheme",
		"ftp://shop.example.com/":                      "scheme",
		"javascript:alert(1)":                          "scheme",
		"http:shop.example.com":                        "no host",
		"http://":                                      "no host",
		"http:///api":                                  "no host",
		"https://user:pw@shop.example.com/":            "use a Secret",
		"https://user@shop.example.com/":               "use a Secret",
		"https://@shop.example.com/":                   "use a Secret",
		"http://shop.example.com:/":                    "port is empty",
		"http://shop.example.com:0/":                   "not one of 1 to 65535",
		"http://shop.example.com:65536/":               "not one of 1 to 65535",
		"http://shop.example.com:0080/":                "not one of 1 to 65535",
		"http://shop.example.com:http/":                "cannot be read",
		"http://shop .example.com/":                    "cannot be read",
		"http://shop.example.com\r\n/":                 "cannot be read",
		`http://shop.example.com\@evil/`:               "cannot be read",
		"http://sh%6Fp.example.com/":                   "cannot be read",
		"http://sh*p.example.com/":                     "neither a host name",
		"http://-shop.example.com/":                    "neither a host name",
		"http://shop..example.com/":                    "neither a host name",
		"http://ｓｈｏｐ.example.com/":                     "neither a host name",
		"http://１２７.0.0.1/":                            "neither a host name",
		"http://127。0。0。1/":                            "neither a host name",
		"http://[fe80::1%25eth0]/":                     "zone",
		"http://[::1/":                                 "cannot be read",
		"http://" + strings.Repeat("a.", 127) + "com/": "neither a host name",
	} {
		t.Run(raw, func(t *testing.T) {
			err := p.CheckURL(raw)
			require.ErrorContains(t, err, want)
			require.True(t, targets.IsRefused(err))
			require.NotContains(t, err.Error(), "pw")
		})
	}
}

func TestAddressesRefusedByDefault(t *testing.T) {
	p := policy(t, targets.Config{})
	for host, want := range map[string]string{
		"localhost":                     "this machine itself; if that is meant, add it with --allow-target localhost:80",
		"LOCALHOST.":                    "this machine itself",
		"api.localhost":                 "this machine itself",
		"127.0.0.1":                     "a loopback address; if that is meant, add it with --allow-target 127.0.0.1:80",
		"127.8.9.10":                    "a loopback address",
		"[::1]":                         "add it with --allow-target [::1]:80",
		"0.0.0.0":                       "unspecified",
		"0.1.2.3":                       "unspecified",
		"[::]":                          "unspecified",
		"10.0.0.1":                      "private",
		"172.16.0.1":                    "private",
		"172.31.255.255":                "private",
		"192.168.1.1":                   "private",
		"100.64.0.1":                    "shared",
		"169.254.169.254":               "metadata",
		"169.254.1.1":                   "link-local",
		"100.100.100.200":               "metadata",
		"168.63.129.16":                 "metadata",
		"192.0.0.192":                   "metadata",
		"[fd00:ec2::254]":               "metadata",
		"192.0.2.1":                     "documentation",
		"198.18.0.1":                    "benchmarking",
		"203.0.113.9":                   "documentation",
		"224.0.0.1":                     "multicast",
		"239.255.255.255":               "multicast",
		"240.0.0.1":                     "reserved",
		"255.255.255.255":               "broadcast",
		"[fe80::1]":                     "link-local",
		"[fd12:3456::1]":                "private",
		"[ff02::1]":                     "multicast",
		"[::ffff:127.0.0.1]":            "write the IPv4 address as 127.0.0.1",
		"[::ffff:7f00:1]":               "write the IPv4 address as 127.0.0.1",
		"[::ffff:93.184.216.34]":        "write the IPv4 address as 93.184.216.34",
		"[::127.0.0.1]":                 "no public address",
		"[64:ff9b::7f00:1]":             "loopback",
		"[64:ff9b::a9fe:a9fe]":          "metadata",
		"[64:ff9b:1::1]":                "no public address",
		"[2002:7f00:1::]":               "6to4",
		"[2001:0:1::1]":                 "Teredo",
		"[2001:db8::1]":                 "documentation",
		"[fec0::1]":                     "no public address",
		"2130706433":                    "unusual spelling",
		"127.1":                         "unusual spelling",
		"127.0.1":                       "unusual spelling",
		"0x7f000001":                    "unusual spelling",
		"0x7f.0.0.1":                    "unusual spelling",
		"0177.0.0.1":                    "unusual spelling",
		"127.0.0.01":                    "unusual spelling",
		"127.0.0.1.":                    "unusual spelling",
		"1.2.3.4.5":                     "unusual spelling",
		"256.256.256.256":               "unusual spelling",
		"127.0.0.0x1":                   "unusual spelling",
		"example.0x":                    "unusual spelling",
		"99999999999999999999999999999": "unusual spelling",
	} {
		t.Run(host, func(t *testing.T) {
			err := p.CheckURL("http://" + host + "/x")
			require.ErrorContains(t, err, want)
			require.True(t, targets.IsRefused(err))
		})
	}
}

func TestURLsAllowedByDefault(t *testing.T) {
	p := policy(t, targets.Config{ServiceCIDRs: []string{"10.96.0.0/12"}})
	for _, raw := range []string{
		"https://shop.example.com/api", "http://shop.example.com:8080", "HTTPS://SHOP.example.com.", "https://xn--bcher-kva.example/",
		"https://93.184.216.34/", "https://[2606:2800:220:1:248:1893:25c8:1946]/", "https://[64:ff9b::5db8:d822]/",
		"http://orders.shop.svc/", "http://orders.shop.svc.cluster.local:8080/", "http://10.96.0.10/", "http://10.111.255.255/",
		"https://shop.example.com/?redirect=http://127.0.0.1#f", "http://my_service.example.com/", "http://1and1.example.com/",
	} {
		require.NoError(t, p.CheckURL(raw), raw)
	}
	require.Error(t, p.CheckURL("http://10.112.0.1/"), "outside the Services' range")
}

func TestEntries(t *testing.T) {
	for _, tc := range []struct {
		allow, deny string
		url         string
		ok          bool
	}{
		{"127.0.0.1:8180", "", "http://127.0.0.1:8180/", true},
		{"127.0.0.1:8180", "", "http://127.0.0.1:8181/", false},
		{"127.0.0.1:8180", "", "http://127.0.0.1/", false},
		{"127.0.0.1:80", "", "http://127.0.0.1/", true},
		{"127.0.0.1:443", "", "https://127.0.0.1/", true},
		{"127.0.0.1:8180", "", "http://127.0.0.2:8180/", false},
		{"127.0.0.1", "", "http://127.0.0.1:9/", true},
		{"127.0.0.0/8:8180", "", "http://127.9.9.9:8180/", true},
		{"[::1]:8180", "", "http://[::1]:8180/", true},
		{"::1", "", "http://[::1]:8180/", true},
		{"fd00::/8", "", "http://[fd00::1]/", true},
		{"[fd00::/8]:443", "", "https://[fd00::1]/", true},
		{"10.0.0.0/8", "", "http://10.255.0.1/", true},
		{"0.0.0.0/0", "", "http://192.168.1.1/", true},
		{"0.0.0.0/0", "", "http://169.254.169.254/", false},
		{"169.254.169.254", "", "http://169.254.169.254/", false},
		{"0.0.0.0", "", "http://0.0.0.0/", false},
		{"localhost:8180", "", "http://localhost:8180/", true},
		{"localhost:8180", "", "http://localhost:8181/", false},
		{"*.localhost", "", "http://api.localhost/", true},
		{"", "evil.example", "https://evil.example/", false},
		{"", "evil.example", "https://EVIL.example./", false},
		{"", "evil.example", "https://www.evil.example/", true},
		{"", "*.evil.example", "https://www.evil.example/", false},
		{"", "*.evil.example", "https://notevil.example/", true},
		{"", "evil.example:25", "https://evil.example/", true},
		{"127.0.0.1", "127.0.0.1:2379", "http://127.0.0.1:2379/", false},
		{"127.0.0.1:2379", "127.0.0.0/8:2379", "http://127.0.0.1:2379/", false},
		{"127.0.0.1", "127.0.0.1:2379", "http://127.0.0.1:2380/", true},
		{"", "93.184.216.34", "http://93.184.216.34/", false},
		{"", "93.184.216.34", "http://[64:ff9b::5db8:d822]/", false},
	} {
		t.Run(fmt.Sprint(tc), func(t *testing.T) {
			var config targets.Config
			if tc.allow != "" {
				config.Allow = []string{tc.allow}
			}
			if tc.deny != "" {
				config.Deny = []string{tc.deny}
			}
			err := policy(t, config).CheckURL(tc.url)
			require.Equal(t, tc.ok, err == nil, "%v", err)
		})
	}
}

func TestUnreadableEntriesAreNamed(t *testing.T) {
	for _, text := range []string{
		"", ":80", "127.0.0.1:0", "127.0.0.1:http", "127.1", "10.0.0.0/33", "http://x", "a b", "*", "*.", "[::1", "[::1]x", "fe80::1%eth0", "x:65536",
	} {
		_, err := targets.New(targets.Config{Allow: []string{text}})
		require.ErrorContains(t, err, fmt.Sprintf("%q", text))
		_, err = targets.New(targets.Config{Deny: []string{text}})
		require.ErrorContains(t, err, "denied target")
	}
	_, err := targets.New(targets.Config{ServiceCIDRs: []string{"10.96.0.0"}})
	require.ErrorContains(t, err, "write a range such as 10.96.0.0/12")
}

// resolver answers each look-up with the next of its lists, and the last again.
type resolver struct{ answers [][]string }

func (r *resolver) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	if len(r.answers) == 0 {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	var addrs []netip.Addr
	for _, text := range r.answers[0] {
		addrs = append(addrs, netip.MustParseAddr(text))
	}
	if len(r.answers) > 1 {
		r.answers = r.answers[1:]
	}
	return addrs, nil
}

var errDown = errors.New("connection refused")

func TestDialing(t *testing.T) {
	for name, tc := range map[string]struct {
		address  string
		resolved []string
		allow    string
		down     string
		want     string // the address that is dialed last, or
		err      string // what the error says
	}{
		"a public address":                                   {"x.example:80", []string{"93.184.216.34"}, "", "", "93.184.216.34:80", ""},
		"the next address when one is down":                  {"x.example:80", []string{"93.184.216.34", "93.184.216.35"}, "", "93.184.216.34:80", "93.184.216.35:80", ""},
		"a name that resolves to loopback":                   {"x.example:80", []string{"127.0.0.1"}, "", "", "", "127.0.0.1 is a loopback address"},
		"to loopback mapped into IPv6":                       {"x.example:80", []string{"::ffff:127.0.0.1"}, "", "", "", "127.0.0.1 is a loopback address"},
		"to loopback behind NAT64":                           {"x.example:80", []string{"64:ff9b::7f00:1"}, "", "", "", "127.0.0.1 is a loopback address"},
		"to a metadata service":                              {"x.example:80", []string{"169.254.169.254"}, "", "", "", "metadata"},
		"to a link-local address with a zone":                {"x.example:80", []string{"fe80::1%eth0"}, "", "", "", "zone"},
		"to a private address":                               {"x.example:80", []string{"10.0.0.7"}, "", "", "", "add it with --allow-target 10.0.0.7:80"},
		"only the allowed ones of several":                   {"x.example:80", []string{"127.0.0.1", "93.184.216.34", "10.0.0.1"}, "", "", "93.184.216.34:80", ""},
		"an allowed range":                                   {"x.example:80", []string{"10.0.0.7"}, "10.0.0.0/8", "", "10.0.0.7:80", ""},
		"an allowed name at a private address":               {"erp.example:80", []string{"10.0.0.7"}, "erp.example", "", "10.0.0.7:80", ""},
		"an allowed name on another port":                    {"erp.example:80", []string{"10.0.0.7"}, "erp.example:443", "", "", "private"},
		"an allowed name at loopback":                        {"erp.example:80", []string{"127.0.0.1"}, "erp.example", "", "", "loopback"},
		"an allowed name at a metadata service":              {"erp.example:80", []string{"169.254.169.254"}, "erp.example", "", "", "metadata"},
		"localhost when it is allowed":                       {"localhost:80", []string{"127.0.0.1"}, "localhost:80", "", "127.0.0.1:80", ""},
		"localhost when it is not":                           {"localhost:80", []string{"127.0.0.1"}, "", "", "", "this machine itself"},
		"an address":                                         {"93.184.216.34:80", nil, "", "", "93.184.216.34:80", ""},
		"a loopback address":                                 {"127.0.0.1:80", nil, "", "", "", "loopback"},
		"an unknown name":                                    {"x.example:80", nil, "", "", "", "no such host"},
		"a name without an address":                          {"x.example:80", []string{}, "", "", "", "no address"},
		"an unusual spelling that the resolver would accept": {"0x7f.1:80", []string{"127.0.0.1"}, "", "", "", "unusual spelling"},
		"no port": {"x.example", []string{"93.184.216.34"}, "", "", "", "missing port"},
		"down":    {"x.example:80", []string{"93.184.216.34"}, "", "93.184.216.34:80", "", "connection refused"},
	} {
		t.Run(name, func(t *testing.T) {
			config := targets.Config{Resolver: &resolver{}}
			if tc.resolved != nil {
				config.Resolver = &resolver{answers: [][]string{tc.resolved}}
			}
			if tc.allow != "" {
				config.Allow = []string{tc.allow}
			}
			var dialed string
			dial := policy(t, config).DialContext(func(_ context.Context, _, address string) (net.Conn, error) {
				if address == tc.down {
					return nil, errDown
				}
				dialed = address
				client, server := net.Pipe()
				server.Close()
				return client, nil
			})
			conn, err := dial(t.Context(), "tcp", tc.address)
			if tc.err != "" {
				require.ErrorContains(t, err, tc.err)
				require.Empty(t, dialed)
				return
			}
			require.NoError(t, err)
			conn.Close()
			require.Equal(t, tc.want, dialed)
		})
	}
}

func TestARefusalCanBeToldFromATargetThatIsDown(t *testing.T) {
	p := policy(t, targets.Config{Resolver: &resolver{answers: [][]string{{"127.0.0.1"}, {"93.184.216.34"}}}})
	client := p.HTTPClient(targets.ClientOptions{Dial: func(context.Context, string, string) (net.Conn, error) { return nil, errDown }})
	call := func() error {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://x.example/", nil)
		require.NoError(t, err)
		_, err = client.Do(request)
		return err
	}
	require.True(t, targets.IsRefused(call()), "the first look-up gives loopback")
	err := call()
	require.ErrorIs(t, err, errDown)
	require.False(t, targets.IsRefused(err))
}

func TestTheClientChecksEveryRedirect(t *testing.T) {
	forbidden := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the refused target was called") }))
	defer forbidden.Close()
	hops := 0
	var location string
	allowed := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hops++
		if r.URL.Path == "/end" {
			return
		}
		http.Redirect(w, r, location, http.StatusFound)
	}))
	defer allowed.Close()
	address, err := url.Parse(allowed.URL)
	require.NoError(t, err)
	client := policy(t, targets.Config{Allow: []string{address.Host}}).HTTPClient(targets.ClientOptions{})
	get := func(to string) error {
		hops, location = 0, to
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, allowed.URL, nil)
		require.NoError(t, err)
		response, err := client.Do(request)
		if err == nil {
			response.Body.Close()
		}
		return err
	}

	require.NoError(t, get("/end"))
	require.Equal(t, 2, hops)
	for _, to := range []string{forbidden.URL, "file:///etc/passwd", "http://user:pw@" + address.Host + "/end", "http://2130706433:" + address.Port()} {
		require.True(t, targets.IsRefused(get(to)), to)
	}
	require.ErrorContains(t, get("/again"), "stopped after 3 redirects")
	require.Equal(t, 4, hops)
}

func TestTheClientFollowsNoRedirectAwayFromTLS(t *testing.T) {
	var plain *httptest.Server
	secure := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, plain.URL, http.StatusFound)
	}))
	defer secure.Close()
	plain = httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("called without TLS") }))
	defer plain.Close()
	transport, ok := secure.Client().Transport.(*http.Transport)
	require.True(t, ok)
	client := policy(t, targets.Config{Allow: []string{"127.0.0.1"}}).HTTPClient(targets.ClientOptions{TLS: transport.TLSClientConfig})
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, secure.URL, nil)
	require.NoError(t, err)
	_, err = client.Do(request)
	require.ErrorContains(t, err, "from https to http")
}

func TestTheEnvironmentsProxyIsNotUsed(t *testing.T) {
	proxy := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the proxy was called") }))
	defer proxy.Close()
	t.Setenv("HTTP_PROXY", proxy.URL)
	t.Setenv("http_proxy", proxy.URL)
	client := policy(t, targets.Config{Resolver: &resolver{}}).HTTPClient(targets.ClientOptions{})
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://x.example/", nil)
	require.NoError(t, err)
	_, err = client.Do(request)
	require.ErrorContains(t, err, "no such host")
}

// meshProxy is a sidecar's egress listener: it answers what it was asked for.
func meshProxy(t *testing.T) *url.URL {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if to := r.URL.Query().Get("to"); to != "" {
			http.Redirect(w, r, to, http.StatusFound)
			return
		}
		fmt.Fprintf(w, "%s %s host %s", r.Method, r.RequestURI, r.Host)
	}))
	t.Cleanup(server.Close)
	proxy, err := url.Parse(server.URL)
	require.NoError(t, err)
	return proxy
}

func TestServicesAreCalledThroughTheProxyAndNeverDialed(t *testing.T) {
	p := policy(t, targets.Config{Allow: []string{"*.svc", "127.0.0.1"}, Deny: []string{"admin.ops.svc", "*.svc:9090"}, Resolver: &resolver{}}).WithServiceProxy(meshProxy(t))
	get := func(raw, host string) (string, error) {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, raw, nil)
		require.NoError(t, err)
		request.Host = host
		response, err := p.Transport(targets.ClientOptions{}).RoundTrip(request)
		if err != nil {
			return "", err
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		return string(body), err
	}
	for raw, want := range map[string]string{
		"http://orders.shop.svc/a?b=c":               "http://orders.shop.svc/a?b=c host orders.shop.svc",
		"http://orders.shop.svc:8080/":               "http://orders.shop.svc:8080/ host orders.shop.svc:8080",
		"http://orders.shop.svc.cluster.local/":      "http://orders.shop.svc.cluster.local/ host orders.shop.svc.cluster.local",
		"http://ORDERS.Shop.sVc./":                   "http://orders.shop.svc/ host orders.shop.svc",
		"http://Orders.shop.svc.Cluster.Local.:8080": "http://orders.shop.svc.cluster.local:8080/ host orders.shop.svc.cluster.local:8080",
		"http://orders-0.orders.shop.svc/":           "http://orders-0.orders.shop.svc/ host orders-0.orders.shop.svc",
		"http://svc.svc/":                            "http://svc.svc/ host svc.svc",
	} {
		got, err := get(raw, "")
		require.NoError(t, err, raw)
		require.Equal(t, "GET "+want, got)
		got, err = get(raw, "secrets.ops.svc")
		require.NoError(t, err, raw)
		require.Equal(t, "GET "+want, got, "the proxy goes by the host of the request, which is the URL's")
	}
	for raw, want := range map[string]string{
		"https://orders.shop.svc/":            "write http",
		"https://orders.shop.svc:80/":         "write http",
		"http://ada@orders.shop.svc/":         "use a Secret",
		"http://evil.example@orders.shop.svc": "use a Secret",
		"http://orders.shop.svc@127.0.0.1/":   "use a Secret",
		"http://orders.shop.svc:080/":         "not one of 1 to 65535",
		"http://orders.shop.svc../":           "neither a host name",
		"http://admin.ops.svc/":               "denies it",
		"http://Admin.ops.svc.:8080/":         "denies it",
		"http://orders.shop.svc:9090/":        "denies it",
	} {
		_, err := get(raw, "")
		require.True(t, targets.IsRefused(err), "%s: %v", raw, err)
		require.ErrorContains(t, err, want, raw)
		require.Error(t, p.CheckURL(raw))
	}
	for _, address := range []string{"orders.shop.svc:80", "orders.shop.SVC.:80", "orders.shop.svc.cluster.local:443"} {
		_, err := p.DialContext(nil)(t.Context(), "tcp", address)
		require.True(t, targets.IsRefused(err), address)
	}
}

func TestAPolicyCanBeNarrowed(t *testing.T) {
	wide := policy(t, targets.Config{Allow: []string{"10.0.0.0/8"}})
	narrow, err := wide.Without("*.ops.svc", "10.1.0.0/16")
	require.NoError(t, err)
	for _, raw := range []string{"http://secrets.ops.svc/", "http://Secrets.OPS.svc.:8080/", "http://10.1.2.3/"} {
		require.NoError(t, wide.CheckURL(raw), "the policy it was made of does not change")
		require.True(t, targets.IsRefused(narrow.CheckURL(raw)), raw)
	}
	require.NoError(t, narrow.CheckURL("http://10.2.0.1/"))
	_, err = wide.Without("a b")
	require.ErrorContains(t, err, `denied target: "a b"`)
}

func TestServicesAreCalledByNameOnlyWhereThePolicySaysSo(t *testing.T) {
	for name, want := range map[string]bool{
		"orders.shop.svc": true, "Orders.shop.SVC.": true, "orders.shop.svc.cluster.local": true,
		"10.96.3.4": false, "[64:ff9b::a60:304]": false, "erp.corp.example": false, "rebound.example.com": false, "event-bus": false, "orders.shop": false,
		"orders.shop.svc.corp.example": false,
	} {
		wide := policy(t, targets.Config{
			ServiceCIDRs: []string{"10.96.0.0/12"}, Allow: []string{"10.0.0.0/8", "erp.corp.example"}, Resolver: &resolver{answers: [][]string{{"10.96.3.4"}}},
		})
		for p, allowed := range map[*targets.Policy]bool{wide: true, wide.WithServicesByName(): want} {
			dialed := ""
			dial := p.DialContext(func(_ context.Context, _, address string) (net.Conn, error) {
				dialed = address
				return nil, errDown
			})
			_, err := dial(t.Context(), "tcp", strings.ToLower(name)+":80")
			if allowed {
				require.ErrorIs(t, err, errDown, name)
				require.NoError(t, p.CheckURL("http://"+name+"/"), name)
				continue
			}
			require.True(t, targets.IsRefused(err), "%s: %v", name, err)
			require.ErrorContains(t, err, "write the Service's name", name)
			require.Empty(t, dialed, name)
			if strings.ContainsAny(name[:2], "1[") {
				require.True(t, targets.IsRefused(p.CheckURL("http://"+name+"/")), name)
			}
		}
	}
	p := policy(t, targets.Config{ServiceCIDRs: []string{"10.96.0.0/12"}, Allow: []string{"10.0.0.0/8"}}).WithServicesByName()
	require.NoError(t, p.CheckURL("http://10.112.0.1/"), "allowed, and no Service's")
}

func TestOnlyServicesGoThroughTheProxy(t *testing.T) {
	direct := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "direct") }))
	defer direct.Close()
	address, err := url.Parse(direct.URL)
	require.NoError(t, err)
	hosts := []string{"erp.example.com", "orders.svc.example.com", "orders.shop.svc.cluster.local.example.com", "shopsvc", "svc", "orders.shop", "orders.cluster.local"}
	p := policy(t, targets.Config{Resolver: &resolver{answers: [][]string{{"93.184.215.14"}}}}).WithServiceProxy(meshProxy(t))
	client := p.HTTPClient(targets.ClientOptions{Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, address.Host)
	}})
	for _, host := range hosts {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+host+"/", nil)
		require.NoError(t, err)
		response, err := client.Do(request)
		require.NoError(t, err, host)
		body, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		require.Equal(t, "direct", string(body), host)
	}
}

func TestNoRedirectLeadsFromOutsideIntoTheClusterAndThoseOutOfItAreChecked(t *testing.T) {
	outside := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://orders.shop.svc/", http.StatusFound)
	}))
	defer outside.Close()
	p := policy(t, targets.Config{Allow: []string{strings.TrimPrefix(outside.URL, "http://")}}).WithServiceProxy(meshProxy(t))
	for from, want := range map[string]string{
		outside.URL: "from outside into the cluster",
		"http://orders.shop.svc/?to=http://127.0.0.1:1/":             "loopback",
		"http://orders.shop.svc/?to=https://users.shop.svc/":         "write http",
		"http://orders.shop.svc/?to=" + url.QueryEscape(outside.URL): "from outside into the cluster",
	} {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, from, nil)
		require.NoError(t, err)
		_, err = p.HTTPClient(targets.ClientOptions{}).Do(request)
		require.True(t, targets.IsRefused(err), "%s: %v", from, err)
		require.ErrorContains(t, err, want)
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://orders.shop.svc/?to=http://users.shop.svc/", nil)
	require.NoError(t, err)
	response, err := p.HTTPClient(targets.ClientOptions{}).Do(request)
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	require.Equal(t, "users.shop.svc", response.Request.URL.Host)
}

func FuzzCheckURL(f *testing.F) {
	for _, seed := range []string{"http://127.0.0.1", "http://[::1]", "https://x.example:1/", "http://0x7f.1", "http://[::ffff:1.2.3.4]", "http://a@b"} {
		f.Add(seed)
	}
	p, err := targets.New(targets.Config{})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		if p.CheckURL(raw) != nil {
			return
		}
		u, err := url.Parse(raw)
		require.NoError(t, err)
		require.Contains(t, []string{"http", "https"}, u.Scheme)
		require.Nil(t, u.User)
		if addr, err := netip.ParseAddr(u.Hostname()); err == nil {
			require.False(t, addr.IsLoopback() || addr.IsPrivate() || addr.IsLinkLocalUnicast() || addr.IsMulticast() || addr.IsUnspecified())
		}
	})
}

func TestCanonicalIsWhatACallReaches(t *testing.T) {
	for text, want := range map[string]string{
		"10.96.0.7": "10.96.0.7", "::ffff:10.96.0.7": "10.96.0.7", "64:ff9b::a60:7": "10.96.0.7", "64:ff9b::a60:7%eth0": "10.96.0.7",
		"::ffff:10.96.0.7%eth0": "10.96.0.7", "2001:4860::8888": "2001:4860::8888", "64:ff9b:1::a60:7": "64:ff9b:1::a60:7",
	} {
		require.Equal(t, want, targets.Canonical(netip.MustParseAddr(text)).String(), text)
	}
}
