package meshtest_test

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/meshconfig/meshtest"
	"github.com/lambdamesh/lambdamesh/meshconfig/reference"
	"github.com/lambdamesh/lambdamesh/meshconfig/translate"
	"github.com/lambdamesh/lambdamesh/pkg/apis/headers"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

const (
	// casesVariable is how many requests the property test sends.
	casesVariable = "LAMBDAMESH_CASES"
	defaultCases  = 20_000
	// worldRules and worldCases are the APIRules of one mesh and the requests it
	// is sent before the next one is drawn.
	worldRules = 60
	worldCases = 10_000
)

func now() time.Time { return time.Now() }

// judged is a mesh of random rules with its data planes and its judge.
type judged struct {
	seed    uint64
	gateway reference.Gateway
	ids     map[reference.Rule]string
	address string
	istio   *model
	bearers []bearer
	// viaIstiod: the address is that of a gateway of Istio's.
	viaIstiod bool

	mu       sync.Mutex
	statuses map[int]int // how often each was answered
}

func newJudged(t testing.TB, seed uint64) *judged {
	t.Helper()
	j, mesh := judge(t, seed, randomRules(rand.New(rand.NewPCG(seed, 0)), worldRules))
	for i := range mesh.Destinations {
		d := mesh.Destinations[i]
		server := httptest.NewServer(judgedBackend(d.Key()))
		t.Cleanup(server.Close)
		host, port, err := net.SplitHostPort(server.Listener.Addr().String())
		require.NoError(t, err)
		number, err := strconv.ParseUint(port, 10, 16)
		require.NoError(t, err)
		d.Endpoints, d.Identities = []ir.Endpoint{{Address: host, Port: uint32(number)}}, nil
	}
	j.address = serve(t, mesh)["lambdamesh-system/gateway 80"]
	require.NotEmpty(t, j.address)
	return j
}

// judgeCase is whose objects the rules stand among.
func judgeCase(t testing.TB) meshtest.Case {
	t.Helper()
	cases := meshtest.Cases(t)
	return cases[slices.IndexFunc(cases, func(c meshtest.Case) bool { return c.Name == "spellings" })]
}

// judge of rules, which nobody serves yet, and their mesh.
func judge(t testing.TB, seed uint64, rules []*v1alpha1.APIRule) (*judged, *ir.Mesh) {
	t.Helper()
	s := judgeCase(t).Snapshot(t)
	s.APIRules = rules
	mesh, problems := translate.Translate(s)
	require.NoError(t, mesh.Validate())
	for _, p := range problems {
		require.True(t, p.Warning || p.Reason == translate.ReasonHostConflict, "a rule that admission takes has a problem: %+v", p)
	}
	j := &judged{
		seed: seed, gateway: reference.Gateway{Domain: "lambdas.localhost", Rules: s.APIRules}, ids: map[reference.Rule]string{}, istio: newModel(&mesh), bearers: bearers(t), statuses: map[int]int{},
	}
	for _, vh := range mesh.Gateways[0].VirtualHosts {
		for _, rule := range vh.Rules {
			j.ids[reference.Rule{Namespace: vh.Owner.Namespace, Name: vh.Owner.Name, Index: rule.Index}] = rule.ID
		}
	}
	return j, &mesh
}

func judgedBackend(key string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Backend", key)
		h.Set("X-Rule", strings.Join(r.Header.Values(headers.Rule), ","))
		h.Set("X-Path", r.RequestURI)
		h["Date"] = nil
	})
}

// client sends requests as they are over a connection that it keeps.
type client struct {
	address string
	conn    net.Conn
	reader  *bufio.Reader
}

// exchanged is what a client got, and what the backend told of the request.
type exchanged struct {
	status              int
	backend, rule, path string
}

func (c *client) send(r reference.Request, bearer string) (exchanged, error) {
	for fresh := false; ; {
		if c.conn == nil {
			conn, err := net.Dial("tcp", c.address)
			if err != nil {
				return exchanged{}, err
			}
			c.conn, c.reader, fresh = conn, bufio.NewReader(conn), true
		}
		got, keep, err := c.roundTrip(r, bearer)
		if err != nil || !keep {
			c.conn.Close()
			c.conn = nil
		}
		if err == nil || fresh {
			return got, err
		}
	}
}

func (c *client) roundTrip(r reference.Request, bearer string) (got exchanged, keep bool, err error) {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\n", r.Method, r.Target, r.Host)
	for name, lines := range r.Header {
		for _, line := range lines {
			b.WriteString(name + ": " + line + "\r\n")
		}
	}
	if bearer != "" {
		b.WriteString("Authorization: Bearer " + bearer + "\r\n")
	}
	b.WriteString("\r\n")
	if err := c.conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return got, false, err
	}
	if _, err := c.conn.Write([]byte(b.String())); err != nil {
		return got, false, err
	}
	response, err := http.ReadResponse(c.reader, &http.Request{Method: r.Method})
	if err != nil {
		return got, false, err
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return got, false, err
	}
	h := response.Header
	return exchanged{response.StatusCode, h.Get("X-Backend"), h.Get("X-Rule"), h.Get("X-Path")}, !response.Close, nil
}

var brokenEscape = regexp.MustCompile(`%(?:$|[^0-9A-Fa-f]|.$|.[^0-9A-Fa-f])`)

// check sends a request to the data planes and says where an answer is not the
// one that the request deserves. The second result is the decision: a status and
// the rule.
func (j *judged) check(c *client, r reference.Request, token bearer) (got exchanged, decision string, err error) {
	r.Token, r.Client = token.is, loopback()
	want := j.gateway.Answer(r)
	if j.viaIstiod {
		if !inIstioObjects(r) {
			return exchanged{status: http.StatusBadRequest}, "", nil
		}
		want = j.asEnvoyReads(r, want)
	}
	got, err = c.send(r, token.text)
	if err != nil {
		return got, "", fmt.Errorf("no answer: %w", err)
	}
	id := ""
	if want.Rule != nil {
		id = j.ids[*want.Rule]
	}
	agree := func(status int, backend, rule string) bool {
		if want.MayRefuse && status == http.StatusBadRequest {
			return true
		}
		return status == want.Status && (status != http.StatusOK || rule == id && slices.Contains(want.Backends, backend))
	}
	if !agree(got.status, got.backend, got.rule) {
		return got, "", fmt.Errorf("the proxy answers %+v, the reference %+v (rule %s)", got, want, id)
	}
	if inIstioObjects(r) && !j.viaIstiod {
		header := r.Header.Clone()
		if token.text != "" {
			header.Set("Authorization", "Bearer "+token.text)
		}
		want = j.asEnvoyReads(r, want)
		if id = ""; want.Rule != nil {
			id = j.ids[*want.Rule]
		}
		host, _, _ := strings.Cut(r.Host, ":")
		answer := j.istio.decide("lambdamesh-system/gateway", r.Method, host, r.Target, header)
		if !agree(answer.status, answer.echo.Backend, answer.echo.Headers.Get(headers.Rule)) {
			return got, "", fmt.Errorf("Istio answers %d by rule %s, the reference %+v (rule %s)", answer.status, answer.echo.Headers.Get(headers.Rule), want, id)
		}
	}
	j.mu.Lock()
	j.statuses[got.status]++
	j.mu.Unlock()
	return got, fmt.Sprint(got.status, " ", got.rule), nil
}

// inIstioObjects: what istiod's Envoy makes of other targets and of a final dot is
// not in our objects.
func inIstioObjects(r reference.Request) bool {
	host, _, _ := strings.Cut(r.Host, ":")
	return strings.HasPrefix(r.Target, "/") && !strings.Contains(r.Target, "#") && !strings.HasSuffix(host, ".")
}

// asEnvoyReads: Envoy lets a % pass that begins no escape, and may make one of it
// (%4%30 becomes %40). What it sends on decides.
func (j *judged) asEnvoyReads(r reference.Request, want reference.Answer) reference.Answer {
	if !brokenEscape.MatchString(r.Target) {
		return want
	}
	raw, query, hasQuery := strings.Cut(r.Target, "?")
	if r.Target, _ = canonicalPath(raw); hasQuery {
		r.Target += "?" + query
	}
	want = j.gateway.Answer(r)
	want.MayRefuse = true
	return want
}

// run sends requests in groups that differ in nothing but the spelling of a few
// paths. Beside the reference, each group is held to what backends decode: of
// two requests that one of them reads alike, none is decided otherwise.
func (j *judged) run(seed uint64, cases int) error {
	r := rand.New(rand.NewPCG(j.seed, seed))
	c := &client{address: j.address}
	defer func() {
		if c.conn != nil {
			c.conn.Close()
		}
	}()
	for cases > 0 {
		host := randomHost(r, len(j.gateway.Rules))
		base := reference.Request{Method: pick(r, methods()...), Header: randomHeader(r)}
		token := pick(r, j.bearers...)
		type read struct{ decoder, path string }
		decisions := map[read]string{}
		by := map[read]string{}
		for range 3 {
			path := j.path(r, host)
			for range 4 {
				cases--
				request := base
				request.Host, request.Target = spellHost(r, host), spell(r, path, one(r, 2))
				if one(r, 20) {
					request.Host, request.Target = "nobody.example", "http://"+request.Host+request.Target
				}
				got, decision, err := j.check(c, request, token)
				if err != nil {
					return fmt.Errorf("world %d: %s %q of %q with %v and %+v: %w", j.seed, request.Method, request.Target, request.Host, request.Header, token.is, err)
				}
				if got.status == http.StatusBadRequest {
					continue
				}
				seen := got.path // of a request that was let in, else what a backend would have seen
				if seen == "" {
					raw := request.Target[strings.IndexByte(request.Target, '/'):]
					if rest, absolute := strings.CutPrefix(raw, "//"); absolute && !strings.HasPrefix(request.Target, "/") {
						raw = rest[strings.IndexByte(rest, '/'):]
					}
					raw, _, _ = strings.Cut(raw, "?")
					seen, _ = canonicalPath(raw)
				}
				for decoder, decodes := range decoders {
					text, ok := decodes(seen)
					if !ok && got.status == http.StatusNotFound {
						continue // a host that nobody has
					}
					if !ok {
						return fmt.Errorf("world %d: %s cannot read %q, which was let in as %q", j.seed, decoder, request.Target, seen)
					}
					key := read{decoder, text}
					if other, known := decisions[key]; known && other != decision {
						return fmt.Errorf("world %d: %s reads %q as it does %q (%q), but one is decided %q and the other %q", j.seed, decoder, request.Target, by[key], text, decision, other)
					}
					decisions[key], by[key] = decision, request.Target
				}
			}
		}
	}
	return nil
}

// path that a request may have: often one that a rule of the host is for.
func (j *judged) path(r *rand.Rand, host string) string {
	rules := pick(r, j.gateway.Rules...)
	for _, candidate := range j.gateway.Rules {
		if strings.HasPrefix(host, candidate.Spec.Hosts[0]+".") {
			rules = candidate
		}
	}
	if one(r, 3) {
		return randomPath(r)
	}
	segments := strings.Split(pick(r, rules.Spec.Rules...).Path, "/")
	for i, s := range segments {
		switch s {
		case "{*}", "{**}", "*":
			segments[i] = pick(r, append(words(), "")...)
		default:
			segments[i], _ = unquote(s, false)
		}
	}
	return strings.Join(segments, "/")
}

func TestRandomRequestsGetTheAnswersTheyDeserve(t *testing.T) {
	cases := defaultCases
	if text := os.Getenv(casesVariable); text != "" {
		var err error
		cases, err = strconv.Atoi(text)
		require.NoError(t, err, casesVariable)
	}
	began := time.Now()
	for seed := range uint64((cases + worldCases - 1) / worldCases) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			j := newJudged(t, seed)
			var group sync.WaitGroup
			for part := range uint64(4) {
				group.Go(func() {
					if err := j.run(part+1, min(cases, worldCases)/4); err != nil {
						t.Error(err)
					}
				})
			}
			group.Wait()
			for _, status := range []int{200, 400, 401, 403, 404} {
				require.Greater(t, j.statuses[status], min(cases, worldCases)/100, "too few answers %d to show anything: %v", status, j.statuses)
			}
			t.Log(j.statuses)
		})
	}
	t.Logf("%d cases in %s", cases, time.Since(began).Round(time.Second))
}

// FuzzRequestsGetTheAnswersTheyDeserve mutates targets, which is where parsers
// differ; the rules are those of one random mesh.
func FuzzRequestsGetTheAnswersTheyDeserve(f *testing.F) {
	for i, target := range []string{
		"/orders:cancel", "/orders%3acancel", "/gr%C3%B6%c3%9fe", "/größe", "/a%20b/../x%7Cy", `/a\b`, "//a//b", "/a;x", "/a%00", "/%c0%af", "/%e0%80%af",
		"/%zz", "/a?x=/../b%2f", "http://h1/a", "/..;/a", "/%2e%2E/@me", "/a%3Fb", "/\xff", "/%25", "/%ed%a0%80",
	} {
		f.Add(uint16(i), uint8(i), target, "secret")
	}
	j := newJudged(f, 1)
	c := &client{address: j.address}
	f.Fuzz(func(t *testing.T, which uint16, how uint8, target, key string) {
		if strings.ContainsFunc(target+key, func(c rune) bool { return c <= ' ' || c == 0x7f || c == '@' }) || target == "" || len(target) > 8<<10 || len(key) > 8<<10 {
			t.Skip("blanks and control characters end a request line or a header")
		}
		request := reference.Request{
			Method: methods()[int(how)%len(methods())], Host: fmt.Sprintf("h%d.lambdas.localhost", int(which)%worldRules), Target: target,
			Header: http.Header{"X-Key": {key}},
		}
		if _, _, err := j.check(c, request, j.bearers[int(how)%len(j.bearers)]); err != nil {
			t.Fatalf("%+v: %v", request, err)
		}
	})
}
