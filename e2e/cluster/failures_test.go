package cluster

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// testFailures: a Lambda says itself why its pods do not serve.
func testFailures(t *testing.T, c *cluster) {
	const works = "export const main = () => 'works';"
	lambdas := map[string]struct {
		yaml    string
		reasons []string
		words   string
	}{
		// What does not build gets no pod.
		"broken": {lambda("failures", "broken", "nodejs", "export const main = (", ""), []string{"SourceNotReady"}, "nothing is deployed until the source builds"},
		"crash":  {lambda("failures", "crash", "nodejs", "throw new Error('no tea, no work');\nexport const main = () => 1;", ""), []string{"CrashLoopBackOff", "Error"}, "no tea, no work"},
		"image":  {lambda("failures", "image", "nodejs", works, "  version: \"99\"\n"), []string{"ErrImagePull", "ImagePullBackOff"}, "runtime-nodejs:99-"},
		"greedy": {
			lambda("failures", "greedy", "nodejs", "const all = [];\nfor (;;) all.push(Buffer.alloc(1 << 20, 1));\nexport const main = () => 1;", "  resources: {requests: {memory: 64Mi}, limits: {memory: 96Mi}}\n"),
			[]string{"OOMKilled"},
			"more memory than its limit",
		},
		"large":  {lambda("failures", "large", "nodejs", works, "  resources: {requests: {memory: 4Ti}, limits: {memory: 4Ti}}\n"), []string{"Unschedulable"}, "Insufficient memory"},
		"secret": {lambda("failures", "secret", "nodejs", works, "  env: [{name: KEY, valueFrom: {secretKeyRef: {name: nosuch, key: key}}}]\n"), []string{"CreateContainerConfigError"}, `secret "nosuch" not found`},
	}
	yaml := namespaces("failures")
	for _, l := range lambdas {
		yaml += l.yaml
	}
	c.apply(t, yaml)
	for name, l := range lambdas {
		t.Run(name, func(t *testing.T) {
			eventually(t, patience, func() error {
				var got v1alpha1.Lambda
				if err := c.client.Get(t.Context(), client.ObjectKey{Namespace: "failures", Name: name}, &got); err != nil {
					return err
				}
				condition := meta.FindStatusCondition(got.Status.Conditions, v1alpha1.ConditionDeployed)
				if condition == nil || condition.Status != metav1.ConditionFalse || !strings.Contains(condition.Message, l.words) {
					return fmt.Errorf("%+v", condition)
				}
				if !slices.Contains(l.reasons, condition.Reason) {
					return fmt.Errorf("none of %v: %+v", l.reasons, condition)
				}
				return nil
			})
		})
	}
	t.Run("by the command line", func(t *testing.T) {
		out, _ := c.cli(t, "status", "-n", "failures")
		require.Contains(t, out, "no tea, no work")
		require.Contains(t, out, "main.js:2:1: Unexpected end of file")
		// What a container wrote before it crashed, of the lambda's and not of its
		// sidecar's, and in the namespace that is named.
		out, err := c.cli(t, "logs", "crash", "-n", "failures", "--previous")
		require.NoError(t, err)
		require.Contains(t, out, "no tea, no work")
		require.NotContains(t, out, "xds")
		_, err = c.cli(t, "logs", "crash", "-n", "hello")
		require.ErrorContains(t, err, "crash")
	})
	c.mustKubectl(t, "", "delete", "namespace", "failures", "--wait=false")
}
