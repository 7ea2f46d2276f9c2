package reference

import (
	"cmp"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// Request as a client sends it.
type Request struct {
	Method string
	// Host header, or :authority; an absolute-form Target has its own.
	Host string
	// Target as it stands in the request line, or in :path.
	Target string
	Header http.Header
	// Client is the address that the connection comes from.
	Client netip.Addr
	// Token is what Authorization: Bearer holds; nil: no such header.
	Token *Token
}

// Answer is what the client must get.
type Answer struct {
	// Status: 200 stands for whatever a backend answers.
	Status int
	// Rule that decides, by its APIRule and index; nil for 400 and 404.
	Rule *Rule
	// Backends, one of which answers, as namespace/name:port.
	Backends []string
	// Token is the verdict on the token.
	Token Verdict
	// MayRefuse: a 400 is right as well. Something that backends read in
	// several ways was in a part of the path that dot segments took away, or
	// nobody has the host.
	MayRefuse bool
}

// Rule names a rule.
type Rule struct {
	Namespace, Name string
	Index           int
}

// Gateway is what the answers depend on.
type Gateway struct {
	// Domain completes hosts that are labels.
	Domain string
	Rules  []*v1alpha1.APIRule
}

// Answer says what a request deserves.
func (g Gateway) Answer(r Request) Answer {
	// A question about the server and no resource of it (RFC 9112, section 3.2.4).
	asterisk := r.Target == "*" && r.Method == http.MethodOptions
	host, target, ok := split(r)
	if !ok && !asterisk || strings.ContainsFunc(strings.Join(names(r.Header), ""), func(c rune) bool { return c == '_' }) {
		return Answer{Status: http.StatusBadRequest}
	}
	if asterisk {
		return Answer{Status: http.StatusNotFound}
	}
	path := parseTarget(target)
	if path.malformed {
		return Answer{Status: http.StatusBadRequest}
	}
	answer := g.decide(r, host, path)
	answer.MayRefuse = answer.MayRefuse || path.doubtful
	return answer
}

func (g Gateway) decide(r Request, host string, path requestPath) Answer {
	owner := g.owner(host)
	switch {
	case owner == nil:
		return Answer{Status: http.StatusNotFound, MayRefuse: path.ambiguous}
	case path.ambiguous || strings.ToUpper(r.Method) != r.Method: // which some backends read as another method
		return Answer{Status: http.StatusBadRequest}
	}
	for i := range owner.Spec.Rules {
		rule := &owner.Spec.Rules[i]
		if !matchesPath(rule.Path, path.segments) || !matchesMethod(rule.Methods, r.Method) || !matchesHeaders(rule.Headers, r) {
			continue
		}
		answer := Answer{
			Status: http.StatusOK, Rule: &Rule{owner.Namespace, owner.Name, i}, Token: judge(rule.JWT, r.Token),
			Backends: backends(owner.Namespace, rule),
		}
		switch answer.Token {
		case TokenMissing, TokenInvalid:
			answer.Status = http.StatusUnauthorized
		case TokenForbidden:
			answer.Status = http.StatusForbidden
		}
		if answer.Status == http.StatusOK && !admits(rule.ClientIPs, r.Client) {
			answer.Status = http.StatusForbidden
		}
		if answer.Status == http.StatusOK && rule.Redirect != nil {
			answer.Status = int(cmp.Or(rule.Redirect.Code, http.StatusFound))
		}
		return answer
	}
	return Answer{Status: http.StatusNotFound}
}

// split finds the host and the target in origin form (RFC 9112, section 3.2).
// Letter case, a port and one final dot of the host do not matter.
func split(r Request) (host, target string, ok bool) {
	host, target = r.Host, r.Target
	if scheme, rest, absolute := strings.Cut(target, "://"); absolute && !strings.ContainsAny(scheme, "/?#") {
		end := strings.IndexAny(rest, "/?")
		if end < 0 {
			end = len(rest)
		}
		host, target = rest[:end], rest[end:]
		if !strings.HasPrefix(target, "/") {
			target = "/" + target
		}
	}
	if host == "" || strings.ContainsAny(host, "/\\@?# \t") || !strings.HasPrefix(target, "/") {
		return "", "", false
	}
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
		host = host[:i]
	}
	return strings.ToLower(strings.TrimSuffix(host, ".")), target, true
}

func names(h http.Header) []string {
	var all []string
	for name := range h {
		all = append(all, name)
	}
	return all
}

// owner of a host: of the claims that stand, the one it falls under. A claim
// stands when no older APIRule claims the host or one that overlaps; of one age,
// the name decides.
func (g Gateway) owner(host string) *v1alpha1.APIRule {
	type claim struct {
		host string
		by   *v1alpha1.APIRule
	}
	var standing []claim
	for _, r := range slices.SortedFunc(slices.Values(g.Rules), older) {
		for _, h := range r.Spec.Hosts {
			if !strings.Contains(h, ".") {
				h += "." + g.Domain
			}
			taken := slices.ContainsFunc(standing, func(c claim) bool { return c.by != r && (under(h, c.host) || under(c.host, h)) })
			if !taken {
				standing = append(standing, claim{h, r})
			}
		}
	}
	var best claim
	for _, c := range standing {
		if c.host == host {
			return c.by
		}
		if under(host, c.host) && len(c.host) > len(best.host) {
			best = c
		}
	}
	return best.by
}

func older(a, b *v1alpha1.APIRule) int {
	return cmp.Or(a.CreationTimestamp.Time.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// under says whether a host, or each name of a wildcard, is one that pattern
// stands for: *.name is one label or more before .name.
func under(host, pattern string) bool {
	suffix, wildcard := strings.CutPrefix(pattern, "*")
	if !wildcard || host == pattern {
		return host == pattern
	}
	name := strings.TrimPrefix(host, "*")
	return strings.HasSuffix(name, suffix) && name != suffix
}

// admits says whether clients of that address may come.
func admits(ips *v1alpha1.ClientIPs, client netip.Addr) bool {
	within := func(ranges []v1alpha1.CIDR) bool {
		return slices.ContainsFunc(ranges, func(c v1alpha1.CIDR) bool { return netip.MustParsePrefix(string(c)).Contains(client) })
	}
	return ips == nil || (len(ips.Allow) == 0 || within(ips.Allow)) && !within(ips.Deny)
}

func matchesMethod(methods []v1alpha1.HTTPMethod, method string) bool {
	return len(methods) == 0 || slices.Contains(methods, v1alpha1.HTTPMethod(method))
}

func backends(namespace string, r *v1alpha1.Rule) []string {
	key := func(lambda string, s *v1alpha1.ServiceRef) string {
		if s == nil {
			return namespace + "/" + lambda + ":80"
		}
		return cmp.Or(s.Namespace, namespace) + "/" + s.Name + ":" + strconv.Itoa(int(cmp.Or(s.Port, 80)))
	}
	if r.Redirect != nil {
		return nil
	}
	if len(r.Backends) == 0 {
		return []string{key(r.Lambda, r.Service)}
	}
	var all []string
	for _, b := range r.Backends {
		if b.Weight == nil || *b.Weight > 0 {
			all = append(all, key(b.Lambda, b.Service))
		}
	}
	return all
}
