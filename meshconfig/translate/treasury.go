package translate

import (
	"fmt"
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// listenerWeight of a byte that goes to a Gateway's listeners: they travel
// together in half of the room that other messages have.
const listenerWeight = 2

// quotedTwice is what a key set, which is JSON, may grow by as a text in JSON.
const quotedTwice = 2

// account is what was taken of a budget.
type account struct {
	budget                 Budget
	bytes, matchers, hosts int
	// keySets and keyCopies, by how many APIRules.
	keySets, keyCopies map[string]int
	// servers of the Gateway, each of which repeats key sets; 0 where none is concerned.
	servers int
	// keySetBytes and keyCopyBytes are what a key set and its copy at a backend may
	// grow to: they grow without an edit.
	keySetBytes, keyCopyBytes int
}

func newAccount(b Budget) *account {
	return &account{budget: b, keySets: map[string]int{}, keyCopies: map[string]int{}}
}

// missing says how many of the cost are not paid for yet.
func missing(paid map[string]int, of map[string]bool) int {
	n := 0
	for key := range of {
		if paid[key] == 0 {
			n++
		}
	}
	return n
}

// ownBytes of a cost are those that it shares with no other.
func (a *account) ownBytes(c cost) int {
	return c.bytes + max(0, c.servers-1)*c.routes + listenerWeight*a.servers*c.listener
}

// keyBytes are what these numbers of key sets, and of their copies, may take.
func (a *account) keyBytes(sets, copies int) int {
	return listenerWeight*a.servers*sets*a.keySetBytes + copies*a.keyCopyBytes
}

// excess says what of the cost does not fit: how much it needs, how much is
// taken and how much there may be.
func (a *account) excess(c cost) (what string, needs, taken, limit int, exceeds bool) {
	more := missing(a.keySets, c.keySets)
	for _, e := range []struct {
		what                string
		needs, taken, limit int
	}{
		{"matchers", c.matchers, a.matchers, a.budget.Matchers},
		{
			"bytes", a.ownBytes(c) + a.keyBytes(more, missing(a.keyCopies, c.keyCopies)),
			a.bytes + a.keyBytes(len(a.keySets), len(a.keyCopies)), a.budget.Bytes,
		},
		{"key sets", more, len(a.keySets), a.budget.KeySets},
		{"hosts", c.hosts, a.hosts, a.budget.Hosts},
	} {
		if e.needs > e.limit-e.taken {
			return e.what, e.needs, e.taken, e.limit, true
		}
	}
	return "", 0, 0, 0, false
}

func (a *account) charge(c cost) { a.add(c, 1) }

func (a *account) release(c cost) { a.add(c, -1) }

func (a *account) add(c cost, times int) {
	a.bytes, a.matchers, a.hosts = a.bytes+times*a.ownBytes(c), a.matchers+times*c.matchers, a.hosts+times*c.hosts
	count := func(paid map[string]int, of map[string]bool) {
		for key := range of {
			if paid[key] += times; paid[key] == 0 {
				delete(paid, key)
			}
		}
	}
	count(a.keySets, c.keySets)
	count(a.keyCopies, c.keyCopies)
}

// upTo is the part of the cost that a former one covers.
func (c cost) upTo(former *v1alpha1.Charge) cost {
	first := func(all map[string]bool, n int64) map[string]bool {
		out := map[string]bool{}
		for _, key := range slices.Sorted(maps.Keys(all))[:min(len(all), int(n))] {
			out[key] = true
		}
		return out
	}
	return cost{
		bytes: min(c.bytes, int(former.Bytes)), routes: min(c.routes, int(former.RouteBytes)), listener: min(c.listener, int(former.ListenerBytes)),
		servers: c.servers, matchers: min(c.matchers, int(former.Matchers)), hosts: min(c.hosts, int(former.Hosts)),
		keySets: first(c.keySets, former.KeySets), keyCopies: first(c.keyCopies, former.KeyCopies),
	}
}

// treasury charges APIRules to budgets.
type treasury struct {
	limits Limits
	costs  map[types.NamespacedName]cost
	// inOrder: those accepted as they are before those new or changed, each by age.
	inOrder []*v1alpha1.APIRule
	// refused APIRules and why; unclaimed are those whose hosts were too many.
	refused   map[types.NamespacedName]string
	unclaimed map[types.NamespacedName]bool
	// kept on their Gateway by who is refused: what it was charged before.
	kept map[types.NamespacedName]cost
}

// newTreasury charges the APIRules to their own budgets and to those of their
// namespaces. Who was let in keeps its place, up to what it was charged for
// then: only what it has grown by counts as new, and the older comes before the
// younger. So nobody is pushed out by who comes later or grows, or by an edit.
func newTreasury(settings Settings, rules []*v1alpha1.APIRule) *treasury {
	limits := settings.Limits
	t := &treasury{
		limits: limits, costs: make(map[types.NamespacedName]cost, len(rules)),
		refused: map[types.NamespacedName]string{}, unclaimed: map[types.NamespacedName]bool{},
		kept: map[types.NamespacedName]cost{},
	}
	t.inOrder = slices.SortedFunc(slices.Values(rules), func(a, b *v1alpha1.APIRule) int {
		if x, y := holds(a), holds(b); x != y {
			if x {
				return -1
			}
			return 1
		}
		return compareAge(a, b)
	})
	for _, r := range t.inOrder {
		key, c := name(r), costOf(r)
		t.costs[key] = c
		if c.tooLarge != "" {
			t.refuse(key, "regex", c.tooLarge)
			continue
		}
		if what, needs, _, limit, exceeds := newAccount(limits.APIRule).excess(c); exceeds {
			t.refuse(key, what, fmt.Sprintf("it needs %d %s and an APIRule may have %d; make it smaller or split it", needs, what, limit))
		}
	}
	t.share(t.inOrder, t.reserved,
		func(r *v1alpha1.APIRule) (string, *account) {
			a := newAccount(limits.Namespace)
			if settings.TokensAtSidecars {
				a.keyCopyBytes = quotedTwice * limits.KeySetBytes
			}
			return r.Namespace, a
		},
		"it needs %d %s, and other APIRules of namespace %s have %d of the %d there are for it; remove some of them")
	return t
}

func (t *treasury) refuse(key types.NamespacedName, what, why string) {
	t.refused[key] = why
	t.unclaimed[key] = what == "hosts"
}

// holds says whether the APIRule, as it is now, was let in before.
func holds(r *v1alpha1.APIRule) bool {
	c := meta.FindStatusCondition(r.Status.Conditions, v1alpha1.ConditionAccepted)
	return c != nil && c.ObservedGeneration == r.Generation && c.Reason != ReasonTooLarge
}

// reserved is the part of an APIRule's cost that it has a place for.
func (t *treasury) reserved(r *v1alpha1.APIRule) (cost, bool) {
	c := t.costs[name(r)]
	switch {
	case holds(r):
		return c, true
	case r.Status.Charged != nil:
		return c.upTo(r.Status.Charged), true
	}
	return cost{}, false
}

// reservedAtGateway is the same for the Gateway that it was charged to: who
// moves to another one is new there.
func (t *treasury) reservedAtGateway(r *v1alpha1.APIRule) (cost, bool) {
	if r.Status.Charged != nil && r.Status.Charged.Gateway != gatewayKey(r) {
		return cost{}, false
	}
	return t.reserved(r)
}

// share charges rules to the accounts they share: first all that have a place,
// then what is new. It returns what those who were refused keep.
func (t *treasury) share(rules []*v1alpha1.APIRule, reserved func(*v1alpha1.APIRule) (cost, bool),
	open func(*v1alpha1.APIRule) (string, *account), why string,
) map[types.NamespacedName]cost {
	accounts := map[string]*account{}
	keyOf := func(r *v1alpha1.APIRule) (string, *account) {
		shared, fresh := open(r)
		if accounts[shared] == nil {
			accounts[shared] = fresh
		}
		return shared, accounts[shared]
	}
	kept := map[types.NamespacedName]cost{}
	for _, r := range rules {
		if part, has := reserved(r); has {
			_, account := keyOf(r)
			if _, _, _, _, exceeds := account.excess(part); !exceeds {
				account.charge(part)
				kept[name(r)] = part
			}
		}
	}
	for _, r := range rules {
		key := name(r)
		if t.refused[key] != "" {
			continue
		}
		shared, account := keyOf(r)
		part, has := kept[key]
		if has {
			account.release(part)
		}
		c := t.costs[key]
		if what, needs, taken, limit, exceeds := account.excess(c); exceeds {
			t.refuse(key, what, fmt.Sprintf(why, needs, what, shared, taken, limit))
			if has {
				account.charge(part)
			}
			continue
		}
		account.charge(c)
		delete(kept, key)
	}
	return kept
}

// serving are the servers of a Gateway, and those among them that serve an
// APIRule.
type serving struct{ all, own int }

// chargeGateways charges those that their Gateway serves, with what its servers
// repeat: to the part that a namespace may have of a Gateway, and to the Gateway.
func (t *treasury) chargeGateways(servers map[*v1alpha1.APIRule]serving) {
	served := slices.DeleteFunc(slices.Clone(t.inOrder), func(r *v1alpha1.APIRule) bool { return servers[r].own == 0 })
	for _, r := range served {
		c := t.costs[name(r)]
		c.servers = servers[r].own
		t.costs[name(r)] = c
	}
	open := func(r *v1alpha1.APIRule, b Budget) *account {
		a := newAccount(b)
		a.servers, a.keySetBytes = servers[r].all, t.limits.KeySetBytes
		return a
	}
	t.share(served, t.reservedAtGateway, func(r *v1alpha1.APIRule) (string, *account) {
		return r.Namespace + " at Gateway " + gatewayKey(r), open(r, t.limits.Namespace)
	}, "it needs %d %s, and other APIRules of namespace %s have %d of the %d there are for it; remove some of them")
	t.kept = t.share(served, t.reservedAtGateway, func(r *v1alpha1.APIRule) (string, *account) {
		return gatewayKey(r), open(r, t.limits.Gateway)
	}, "it needs %d %s, and other APIRules of Gateway %s have %d of the %d there are for it")
}

// chargeOf is what the status of an APIRule shall remember: what it is charged
// for, and of who is refused what it had.
func chargeOf(r *v1alpha1.APIRule, served bool, problems Problems) *v1alpha1.Charge {
	if slices.ContainsFunc(problems, func(p Problem) bool {
		return p.Condition == v1alpha1.ConditionAccepted && p.Reason == ReasonTooLarge
	}) {
		return r.Status.Charged
	}
	c := costOf(r)
	out := &v1alpha1.Charge{
		Bytes: int64(c.bytes), RouteBytes: int64(c.routes), ListenerBytes: int64(c.listener), Matchers: int64(c.matchers),
		KeySets: int64(len(c.keySets)), KeyCopies: int64(len(c.keyCopies)), Hosts: int64(c.hosts),
	}
	if served {
		out.Gateway = gatewayKey(r)
	}
	return out
}

// withinBudgets are the rules that are neither too large themselves nor too much
// for their namespaces: nothing is fetched for others.
func withinBudgets(settings Settings, rules []*v1alpha1.APIRule) []*v1alpha1.APIRule {
	t := newTreasury(settings.withDefaults(), rules)
	return slices.DeleteFunc(slices.Clone(rules), func(r *v1alpha1.APIRule) bool { return t.refused[name(r)] != "" })
}
