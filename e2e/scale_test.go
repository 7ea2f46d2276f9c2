package e2e

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// sleeper notes each of its starts and each event in files, and holds a request
// to /hold until there is a file.
const sleeper = `import fs from 'node:fs';
const dir = process.env.DIR;
if (fs.existsSync(dir + '/broken')) throw new Error('no license');
fs.appendFileSync(dir + '/starts', process.pid + '\n');
export async function main(event) {
  if (event.isEvent) {
    fs.appendFileSync(dir + '/events', event.id + '\n');
    return;
  }
  while (event.path === '/hold' && !fs.existsSync(dir + '/go')) await new Promise((resolve) => setTimeout(resolve, 5));
  return String(process.pid);
}
`

type sleeping struct {
	*mesh
	namespace, name, dir string
}

// newSleeper runs one with a scale, exposed at the host of its name.
func newSleeper(t *testing.T, name, scale string) *sleeping {
	t.Helper()
	needs(t, "node")
	s := &sleeping{mesh: shared(t), namespace: "scale-" + name, name: name, dir: t.TempDir()}
	s.apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Namespace
metadata: {name: scale-%[1]s}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: Lambda
metadata: {name: %[1]s, namespace: scale-%[1]s}
spec:
  runtime: nodejs
  scale: %[2]s
  env: [{name: DIR, value: %[3]q}]
  source:
    inline:
      code: |
%[4]s
---
apiVersion: lambdamesh.dev/v1alpha1
kind: APIRule
metadata: {name: %[1]s, namespace: scale-%[1]s}
spec: {hosts: [%[1]s], rules: [{path: /*, lambda: %[1]s, noAuth: true}]}
`, name, scale, s.dir, indent(sleeper)))
	s.awaitRoute(t, s.namespace, name)
	return s
}

func (s *sleeping) lines(t *testing.T, file string) []string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(s.dir, file))
	if !os.IsNotExist(err) {
		require.NoError(t, err)
	}
	return strings.Fields(string(content))
}

func (s *sleeping) replicas(t *testing.T) int {
	t.Helper()
	out, err := s.kubectl(t, "", "get", "-n", s.namespace, "lambda/"+s.name, "-o", "jsonpath={.status.replicas}")
	require.NoError(t, err)
	n, err := strconv.Atoi(out)
	require.NoError(t, err)
	return n
}

func (s *sleeping) awaitReplicas(t *testing.T, want int) {
	t.Helper()
	eventually(t, 2*time.Minute, func() error {
		if got := s.replicas(t); got != want {
			return errorf("%d replicas", got)
		}
		return nil
	})
}

func (s *sleeping) ask(t *testing.T) {
	t.Helper()
	answer, err := s.get(t.Context(), s.name+".lambdas.localhost", "/")
	if err != nil || answer.status != http.StatusOK {
		t.Errorf("%v: %d %s", err, answer.status, answer.body)
	}
}

func TestToZeroAndBack(t *testing.T) {
	s := newSleeper(t, "sleeper", "{min: 0, max: 2, idleAfter: 1s}")
	const source = "scale"
	s.apply(t, `
apiVersion: lambdamesh.dev/v1alpha1
kind: Subscription
metadata: {name: sleeper, namespace: scale-sleeper}
spec: {source: scale, types: [woken.v1], sink: {lambda: sleeper}}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: APIRule
metadata: {name: guarded, namespace: scale-sleeper}
spec: {hosts: [guarded], rules: [{path: /*, lambda: sleeper, jwt: {authentications: [{issuer: "https://issuer.lambdas.localhost", jwksSecret: jwks, audiences: [shop]}]}}]}
`)
	s.applyObjects(t, object{
		"apiVersion": "v1", "kind": "Secret", "metadata": object{"namespace": s.namespace, "name": "jwks"},
		"stringData": object{"jwks.json": s.mustKubectl(t, "", "get", "secret", "-n", "shop", "demo-jwks", "-o", `go-template={{index .data "jwks.json" | base64decode}}`)},
	})
	s.waitFor(t, s.namespace, "apirule/guarded", "Ready")
	s.waitFor(t, s.namespace, "subscription/sleeper", "Subscribed")
	publish := func(id string) {
		answer := post(t, s.EventBus+"/publish", "application/json", `{}`, "ce-specversion", "1.0", "ce-id", id, "ce-source", source, "ce-type", "woken.v1")
		require.Equal(t, http.StatusAccepted, answer.status, answer.body)
	}

	t.Run("a refused request starts nothing, an allowed one does", func(t *testing.T) {
		s.awaitReplicas(t, 0)
		require.Equal(t, "True", s.mustKubectl(t, "", "get", "-n", s.namespace, "lambda/sleeper", "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`), "it is ready at zero")
		before := len(s.lines(t, "starts"))
		for range 5 {
			answer, err := s.get(t.Context(), "guarded.lambdas.localhost", "/")
			require.NoError(t, err)
			require.Equal(t, http.StatusUnauthorized, answer.status)
			answer, err = s.get(t.Context(), "guarded.lambdas.localhost", "/", "Authorization", "Bearer forged")
			require.NoError(t, err)
			require.Equal(t, http.StatusUnauthorized, answer.status)
		}
		require.Len(t, s.lines(t, "starts"), before)
		begin := time.Now()
		s.ask(t)
		t.Logf("from zero in %s", time.Since(begin))
		require.Len(t, s.lines(t, "starts"), before+1)
	})

	t.Run("an event wakes it", func(t *testing.T) {
		s.awaitReplicas(t, 0)
		publish("wakes")
		eventually(t, time.Minute, func() error {
			if !slices.Contains(s.lines(t, "events"), "wakes") {
				return errorf("it has not come")
			}
			return nil
		})
	})

	t.Run("nothing is lost on the edge of sleep", func(t *testing.T) {
		const rounds = 8
		before := len(s.lines(t, "starts"))
		random := rand.New(rand.NewPCG(7, 7)) //nolint:gosec // a load
		for round := range rounds {
			// The pauses are around idleAfter, so that requests meet it asleep, going to sleep and awake.
			<-time.After(time.Duration(950+random.IntN(600)) * time.Millisecond)
			var clients sync.WaitGroup
			for range 3 {
				clients.Go(func() { s.ask(t) })
			}
			publish(fmt.Sprint("edge-", round))
			clients.Wait()
		}
		eventually(t, time.Minute, func() error {
			events := s.lines(t, "events")
			for round := range rounds {
				if id := fmt.Sprint("edge-", round); !slices.Contains(events, id) {
					return errorf("event %s has not come", id)
				}
			}
			return nil
		})
		t.Logf("it was started %d times", len(s.lines(t, "starts"))-before)
	})

	t.Run("a start that fails is told, and tried again", func(t *testing.T) {
		s.awaitReplicas(t, 0)
		broken := filepath.Join(s.dir, "broken")
		require.NoError(t, os.WriteFile(broken, nil, 0o600))
		answer, err := s.get(t.Context(), "sleeper.lambdas.localhost", "/")
		require.NoError(t, err)
		require.Equal(t, http.StatusServiceUnavailable, answer.status, answer.body)
		require.NotEmpty(t, answer.header.Get("Retry-After"))
		require.NoError(t, os.Remove(broken))
		eventually(t, 2*time.Minute, func() error {
			answer, err := s.get(t.Context(), "sleeper.lambdas.localhost", "/")
			if err == nil && answer.status != http.StatusOK {
				err = errorf("%d %s", answer.status, answer.body)
			}
			return err
		})
	})

	t.Run("a new version takes over from one that sleeps", func(t *testing.T) {
		s.awaitReplicas(t, 0)
		s.mustKubectl(t, "", "patch", "-n", s.namespace, "lambda/sleeper", "--type=merge", "-p", `{"spec":{"timeout":"20s"}}`)
		for range 10 {
			s.ask(t)
		}
		s.awaitReplicas(t, 0)
		s.ask(t)
	})
}

func TestReplicasFollowTheRequestsInFlight(t *testing.T) {
	s := newSleeper(t, "crowd", "{min: 1, max: 3, concurrency: 1}")
	const requests = 6
	statuses := make(chan response, requests)
	for range requests {
		go func() {
			answer, err := s.get(t.Context(), "crowd.lambdas.localhost", "/hold")
			if err != nil {
				answer.body = err.Error()
			}
			statuses <- answer
		}()
	}
	s.awaitReplicas(t, 3)
	require.NoError(t, os.WriteFile(filepath.Join(s.dir, "go"), nil, 0o600))
	for range requests {
		answer := <-statuses
		require.Equal(t, http.StatusOK, answer.status, answer.body)
	}
}
