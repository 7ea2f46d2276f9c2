package targets

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Config of a [Policy]. The zero value allows public addresses only.
type Config struct {
	// ServiceCIDRs are the ranges of the cluster's Service addresses.
	ServiceCIDRs []string
	// Allow adds targets: an address or range (10.1.0.0/16), a host name
	// (erp.corp.example) or all names under one (*.corp.example), each with or
	// without a port (127.0.0.1:8180, [::1]:8180, 10.1.0.0/16:443). A name allows
	// private addresses that it resolves to; loopback needs an address or the
	// name localhost.
	Allow []string
	// Deny takes targets away, in the same forms; it wins over everything.
	Deny []string
	// Resolver of host names; default [net.DefaultResolver].
	Resolver Resolver
}

// Resolver looks up the addresses of a host name. *net.Resolver is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// Policy says which targets may be called. It does not change and may be shared.
type Policy struct {
	services []netip.Prefix
	allow    []entry
	deny     []entry
	resolver Resolver
	// byName: addresses of services are called by the names of Services only.
	byName bool
	// serviceProxy leads to the cluster's Services; nil: they are dialed.
	serviceProxy *url.URL
}

// RefusedError says which target the policy refused and what to do about it.
type RefusedError struct {
	// Target as it was written, without user information and query.
	Target string
	// Why it was refused.
	Why string
}

// Error implements error.
func (e *RefusedError) Error() string { return e.Target + " is refused: " + e.Why }

// IsRefused reports whether err is a refusal by a policy, and not, for example,
// a target that is down.
func IsRefused(err error) bool {
	var refused *RefusedError
	return errors.As(err, &refused)
}

// New makes a policy. The error names the entry that cannot be read.
func New(config Config) (*Policy, error) {
	p := &Policy{resolver: config.Resolver}
	if p.resolver == nil {
		p.resolver = net.DefaultResolver
	}
	for _, text := range config.ServiceCIDRs {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("service CIDR %q: write a range such as 10.96.0.0/12", text)
		}
		p.services = append(p.services, prefix.Masked())
	}
	var err error
	if p.allow, err = parseEntries(config.Allow); err != nil {
		return nil, fmt.Errorf("allowed target: %w", err)
	}
	if p.deny, err = parseEntries(config.Deny); err != nil {
		return nil, fmt.Errorf("denied target: %w", err)
	}
	return p, nil
}

// WithServiceProxy returns a policy that is the same but for the cluster's
// Services, see [IsService]: its transports call them through an HTTP proxy, the
// egress listener of the caller's own sidecar, and its dialers refuse them. So
// they see the caller's identity and decide themselves who may call. The sidecar
// does the encryption: a URL of a Service must be http.
func (p *Policy) WithServiceProxy(proxy *url.URL) *Policy {
	through := *p
	through.serviceProxy = proxy
	return &through
}

// Without returns a policy that denies these targets, too, in the forms of
// [Config.Deny].
func (p *Policy) Without(targets ...string) (*Policy, error) {
	deny, err := parseEntries(targets)
	if err != nil {
		return nil, fmt.Errorf("denied target: %w", err)
	}
	narrow := *p
	narrow.deny = slices.Concat(p.deny, deny)
	return &narrow, nil
}

// WithServicesByName returns a policy that refuses addresses of
// [Config.ServiceCIDRs], whatever is allowed, unless a name of a Service (see
// [IsService]) resolved to them: written as an address, or behind any other name,
// a Service escapes what is denied by name.
func (p *Policy) WithServicesByName() *Policy {
	narrow := *p
	narrow.byName = true
	return &narrow
}

// IsService reports whether a host name is one of the cluster's own: every name
// under svc and svc.cluster.local, such as orders.shop.svc, in any case and with
// or without the final dot. No public name ends so.
func IsService(host string) bool {
	name, why := canonicalName(host)
	return why == "" && (strings.HasSuffix(name, ".svc") || strings.HasSuffix(name, ".svc.cluster.local"))
}

// CheckURL returns a [*RefusedError] when raw is not a URL that may be called,
// as far as that can be seen without resolving its host name.
func (p *Policy) CheckURL(raw string) error {
	u, err := url.Parse(raw)
	if err != nil {
		var parse *url.Error
		if errors.As(err, &parse) {
			err = parse.Err // without the URL, which may hold a password
		}
		return &RefusedError{Target: "the URL", Why: "it cannot be read: " + err.Error()}
	}
	return p.check(u)
}

// CheckPod returns a [*RefusedError] when addr is none that a pod has, so that
// who names it means something else: loopback, link-local and metadata
// addresses, and others that stand for no single machine.
func CheckPod(addr netip.Addr) error {
	refuse := func(why string) error {
		return &RefusedError{Target: addr.String(), Why: why + ", which no pod has"}
	}
	switch plain := addr.Unmap(); {
	case addr.Zone() != "":
		return refuse("it is an address with a zone")
	case !plain.IsValid(), plain != addr:
		return refuse("it is no plain IP address")
	case netip.MustParsePrefix("240.0.0.0/4").Contains(addr) && addr != netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return nil // reserved, and in use as pods' ranges
	default:
		if what, kind := classify(addr); kind == never || kind == loopback {
			return refuse("it is " + what)
		}
		return nil
	}
}

func (p *Policy) check(u *url.URL) error {
	refuse := func(format string, args ...any) error {
		shown := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, Opaque: u.Opaque}
		return &RefusedError{Target: shown.String(), Why: fmt.Sprintf(format, args...)}
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return refuse("the scheme must be http or https")
	case u.User != nil:
		return refuse("user information does not belong in a URL; use a Secret")
	case u.Hostname() == "":
		return refuse("it has no host")
	case strings.Contains(u.Hostname(), "%"):
		return refuse("an address with a zone is not allowed")
	}
	port, err := portOf(u)
	if err != nil {
		return refuse("%v", err)
	}
	if why := p.checkHost(u.Hostname(), port); why != "" {
		return refuse("%s", why)
	}
	if p.serviceProxy != nil && u.Scheme != "http" && IsService(u.Hostname()) {
		return refuse("Services of the cluster are called through the mesh, which encrypts; write http")
	}
	return nil
}

func portOf(u *url.URL) (uint16, error) {
	text := u.Port()
	switch {
	case text != "":
	case strings.HasSuffix(u.Host, ":"):
		return 0, errors.New("the port is empty")
	case u.Scheme == "https":
		return 443, nil
	default:
		return 80, nil
	}
	return parsePort(text)
}

func parsePort(text string) (uint16, error) {
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 || text[0] == '0' || text[0] == '+' {
		return 0, fmt.Errorf("the port %q is not one of 1 to 65535", text)
	}
	return uint16(port), nil
}

// checkHost returns why a host must not be called, or "". Host names that are
// not resolved yet pass unless the name alone decides.
func (p *Policy) checkHost(host string, port uint16) string {
	if addr, err := netip.ParseAddr(host); err == nil {
		if addr.Is4In6() {
			return "write the IPv4 address as " + addr.Unmap().String()
		}
		return p.checkAddr("", addr, port)
	}
	name, why := canonicalName(host)
	if why != "" {
		return why
	}
	if matchesName(p.deny, name, port) {
		return "this installation denies it"
	}
	if isLocalhost(name) && !matchesName(p.allow, name, port) {
		return hint(name, port, "it is this machine itself")
	}
	return ""
}

// checkAddr returns why addr, which name resolved to unless it is empty, must
// not be called, or "".
func (p *Policy) checkAddr(name string, addr netip.Addr, port uint16) string {
	if addr.Zone() != "" {
		return "an address with a zone is not allowed"
	}
	addr = Canonical(addr)
	if matchesAddr(p.deny, addr, port) {
		return "this installation denies it"
	}
	what, kind := classify(addr)
	switch {
	case kind == never:
		return addr.String() + " is " + what + ", which is never called"
	case p.byName && matchesPrefix(p.services, addr) && !IsService(name):
		return addr.String() + " is an address of the cluster's Services: write the Service's name, such as orders.shop.svc"
	case kind == public, matchesPrefix(p.services, addr):
		return ""
	case matchesAddr(p.allow, addr, port):
		return ""
	case name != "" && kind == private && matchesName(p.allow, name, port):
		return ""
	case isLocalhost(name) && kind == loopback && matchesName(p.allow, name, port):
		return ""
	default:
		return hint(addr.String(), port, addr.String()+" is "+what)
	}
}

func hint(host string, port uint16, why string) string {
	return fmt.Sprintf("%s; if that is meant, add it with --allow-target %s", why, net.JoinHostPort(host, strconv.Itoa(int(port))))
}

// entry is one allowed or denied target: a range or a name, and a port or 0 for
// all.
type entry struct {
	prefix netip.Prefix
	name   string // "*.x" for all names under x
	port   uint16
}

func parseEntries(texts []string) ([]entry, error) {
	entries := make([]entry, 0, len(texts))
	for _, text := range texts {
		e, err := parseEntry(text)
		if err != nil {
			return nil, fmt.Errorf("%q: %w: write an address (127.0.0.1), a range (10.1.0.0/16), a name (erp.example.com) or *.name, each with or without :port", text, err)
		}
		entries = append(entries, e)
	}
	return entries, nil
}

func parseEntry(text string) (entry, error) {
	var e entry
	host := text
	// A second colon without brackets is an IPv6 address without a port.
	if i := strings.LastIndexByte(text, ':'); i >= 0 && (strings.Count(text, ":") == 1 || strings.HasSuffix(text[:i], "]")) {
		port, err := parsePort(text[i+1:])
		if err != nil {
			return e, err
		}
		host, e.port = text[:i], port
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		if host, ok = strings.CutSuffix(inner, "]"); !ok {
			return e, errors.New("the bracket is not closed")
		}
	}
	if prefix, err := netip.ParsePrefix(host); err == nil {
		e.prefix = prefix.Masked()
		return e, nil
	}
	if addr, err := netip.ParseAddr(host); err == nil && addr.Zone() == "" {
		e.prefix = netip.PrefixFrom(addr.Unmap(), addr.Unmap().BitLen())
		return e, nil
	}
	under, wildcard := strings.CutPrefix(host, "*.")
	name, why := canonicalName(under)
	if why != "" {
		return e, errors.New(why)
	}
	if e.name = name; wildcard {
		e.name = "*." + name
	}
	return e, nil
}

func matchesAddr(entries []entry, addr netip.Addr, port uint16) bool {
	for _, e := range entries {
		if e.name == "" && e.prefix.Contains(addr) && (e.port == 0 || e.port == port) {
			return true
		}
	}
	return false
}

func matchesName(entries []entry, name string, port uint16) bool {
	for _, e := range entries {
		if e.name == "" || (e.port != 0 && e.port != port) {
			continue
		}
		under, wildcard := strings.CutPrefix(e.name, "*")
		if e.name == name || (wildcard && strings.HasSuffix(name, under)) {
			return true
		}
	}
	return false
}

func matchesPrefix(prefixes []netip.Prefix, addr netip.Addr) bool {
	for _, prefix := range prefixes {
		if prefix.Contains(addr) {
			return true
		}
	}
	return false
}

func isLocalhost(name string) bool {
	return name == "localhost" || strings.HasSuffix(name, ".localhost")
}

var (
	// nameForm is a host name (RFC 1123, section 2.1), with the underscore that
	// some names in use have.
	nameForm = regexp.MustCompile(`^[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*$`)
	// numberForm is a last label that makes resolvers and other parsers read the
	// whole as an IPv4 address: 2130706433, 127.1, 0x7f.1, 0177.0.0.1 (WHATWG URL,
	// "ends in a number").
	numberForm = regexp.MustCompile(`(^|\.)(0x[0-9a-f]*|[0-9]+)$`)
)

// canonicalName returns the name in lower case without its final dot, or why it
// is none.
func canonicalName(host string) (name, why string) {
	name = strings.ToLower(strings.TrimSuffix(host, "."))
	switch {
	case len(name) > 253 || !nameForm.MatchString(name):
		return "", "the host is neither a host name (letters, digits, '-' and '.'; others in punycode) nor an IP address"
	case numberForm.MatchString(name):
		return "", "the host is an unusual spelling of an IP address; write four decimal numbers, such as 192.0.2.1"
	}
	return name, ""
}
