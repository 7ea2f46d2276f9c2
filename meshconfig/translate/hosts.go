package translate

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/types"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// hostOwners knows which APIRule a host belongs to. APIRules ask in the order
// of their age, so who comes first keeps what it claims.
type hostOwners struct {
	hosts map[string]types.NamespacedName // as written, *.name included
	// below: for each parent domain of a host, the first owner of one below it.
	below map[string]types.NamespacedName
}

func newHostOwners() hostOwners {
	return hostOwners{hosts: map[string]types.NamespacedName{}, below: map[string]types.NamespacedName{}}
}

// other is the APIRule that has host, or a host that overlaps with it.
func (o hostOwners) other(host string) (owner types.NamespacedName, theirs string, found bool) {
	if owner, found = o.hosts[host]; found {
		return owner, host, true
	}
	for _, parent := range parents(host) {
		if owner, found = o.hosts["*."+parent]; found {
			return owner, "*." + parent, true
		}
	}
	if domain, wildcard := strings.CutPrefix(host, "*."); wildcard {
		if owner, found = o.below[domain]; found {
			return owner, "a host below " + domain, true
		}
	}
	return types.NamespacedName{}, "", false
}

func (o hostOwners) claim(hosts []string, owner types.NamespacedName) {
	for _, host := range hosts {
		o.hosts[host] = owner
		for _, parent := range parents(host) {
			if _, found := o.below[parent]; !found {
				o.below[parent] = owner
			}
		}
	}
}

// parents of a.b.c are b.c and c; those of *.b.c are b.c and c too.
func parents(host string) []string {
	var all []string
	for {
		_, parent, found := strings.Cut(host, ".")
		if !found {
			return all
		}
		all = append(all, parent)
		host = parent
	}
}

// hosts of an APIRule that it owns and its gateway serves, as they are written in
// order; g is nil when there
// is no such gateway. A host that the Gateway's servers admit for the namespace
// and that nobody has claimed is its own from here on, also when a server cannot
// be served for now, so that a repair of it never moves a host to another team.
// What the Gateway does not admit is not claimed: it would keep the host from
// those whom it does admit.
func (t *translator) hosts(r *v1alpha1.APIRule, g *gateway) []string {
	var claimed, served []string
	for i, written := range r.Spec.Hosts {
		problem := apiRuleProblem(r, v1alpha1.ConditionAccepted, fmt.Sprintf("spec.hosts[%d]", i))
		host := strings.ToLower(written)
		if !validHost(host) {
			t.report(problem.because(v1alpha1.ReasonInvalid, "%q is no host: write a label (last-order), a full name (orders.example.com) or *.name", written))
			continue
		}
		if g == nil {
			continue // spec.gateway says what is wrong
		}
		if !strings.Contains(host, ".") {
			if g.domain == "" {
				t.report(problem.because(v1alpha1.ReasonInvalid, "%q cannot be completed: Gateway %s has no annotation %s; add it or write the full name", written, g.ir.Key(), v1alpha1.AnnotationDomain))
				continue
			}
			host += "." + g.domain
		}
		accepts := func(s ir.Server) bool { return s.Accepts(r.Namespace, host) }
		if !slices.ContainsFunc(g.declared, accepts) {
			t.reportNotServed(r, problem, g, host)
			continue
		}
		if owner, theirs, taken := t.owners.other(host); taken {
			t.report(problem.because(ReasonHostConflict, "%s belongs to the older APIRule %s (%s); it is served from here when that one gives it up", host, owner, theirs))
			continue
		}
		if slices.Contains(claimed, host) {
			continue
		}
		claimed = append(claimed, host)
		if !slices.ContainsFunc(g.ir.Servers, accepts) {
			t.reportNotServed(r, problem, g, host)
			continue
		}
		served = append(served, host)
	}
	t.owners.claim(claimed, name(r))
	return served
}

func (t *translator) reportNotServed(r *v1alpha1.APIRule, problem Problem, g *gateway, host string) {
	message := fmt.Sprintf("no server of Gateway %s accepts %s for namespace %s", g.ir.Key(), host, r.Namespace)
	if len(g.leftOut) > 0 {
		message += "; left out: " + strings.Join(g.leftOut, "; ")
	}
	t.report(problem.because(ReasonHostNotServed, "%s", message))
}

// validHost says whether host is a DNS name of at most 253 characters (RFC
// 1123, section 2.1), or *. and such a name.
func validHost(host string) bool {
	host = strings.TrimPrefix(host, "*.")
	if host == "" || len(host) > 253 {
		return false
	}
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, "-") != label ||
			strings.ContainsFunc(label, func(c rune) bool { return !(c == '-' || c >= 'a' && c <= 'z' || c >= '0' && c <= '9') }) {
			return false
		}
	}
	return true
}
