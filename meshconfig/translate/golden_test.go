package translate_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"github.com/lambdamesh/lambdamesh/meshconfig/meshtest"
	"github.com/lambdamesh/lambdamesh/meshconfig/translate"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

func TestGoldenTranslate(t *testing.T) {
	for _, c := range meshtest.Cases(t) {
		t.Run(c.Name, func(t *testing.T) {
			s := c.Snapshot(t)
			mesh, problems := translate.Translate(s)
			require.NoError(t, mesh.Validate())
			text, err := yaml.Marshal(mesh)
			require.NoError(t, err)
			testkit.Golden(t, c.Path("ir.yaml"), text)

			status, err := yaml.Marshal(map[string]any{
				"apiRules": readable(translate.Statuses(s, mesh, problems)),
				"problems": problems,
			})
			require.NoError(t, err)
			testkit.Golden(t, c.Path("status.yaml"), status)
		})
	}
}

// readable writes a condition in one line.
func readable(statuses []translate.APIRuleStatus) []map[string]any {
	var all []map[string]any
	for _, s := range statuses {
		row := map[string]any{"apiRule": s.Namespace + "/" + s.Name, "gateway": s.Gateway, "served": s.Served, "urls": s.URLs}
		for _, c := range s.Conditions {
			row[c.Type] = strings.TrimSuffix(fmt.Sprintf("%s %s: %s", c.Status, c.Reason, c.Message), ": ")
		}
		all = append(all, row)
	}
	return all
}

func TestTranslateGivesTheSameForObjectsInAnyOrder(t *testing.T) {
	for _, c := range meshtest.Cases(t) {
		t.Run(c.Name, func(t *testing.T) {
			s := c.Snapshot(t)
			mesh, problems := translate.Translate(s)
			for seed := range uint64(5) {
				shuffle(&s, rand.New(rand.NewPCG(seed, seed)))
				again, problemsAgain := translate.Translate(s)
				require.Empty(t, cmp.Diff(mesh, again))
				require.Empty(t, cmp.Diff(problems, problemsAgain))
			}
		})
	}
}

func shuffle(s *translate.Snapshot, r *rand.Rand) {
	shuffleSlice(r, s.APIRules)
	shuffleSlice(r, s.Lambdas)
	shuffleSlice(r, s.Subscriptions)
	shuffleSlice(r, s.ApplicationBindings)
	shuffleSlice(r, s.Members)
	shuffleSlice(r, s.Services)
	shuffleSlice(r, s.EndpointSlices)
	shuffleSlice(r, s.Secrets)
	shuffleSlice(r, s.Gateways)
	shuffleSlice(r, s.Sidecars)
	shuffleSlice(r, s.WorkloadEntries)
}

func shuffleSlice[T any](r *rand.Rand, all []T) {
	r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
}
