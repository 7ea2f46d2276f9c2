package istio_test

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/testing/protocmp"
	"sigs.k8s.io/yaml"

	"github.com/lambdamesh/lambdamesh/meshconfig/istio"
	"github.com/lambdamesh/lambdamesh/meshconfig/meshtest"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

func TestGoldenIstio(t *testing.T) {
	for _, c := range meshtest.Cases(t) {
		t.Run(c.Name, func(t *testing.T) {
			var out bytes.Buffer
			for _, object := range istio.Objects(c.Mesh(t)) {
				text, err := json.Marshal(object)
				require.NoError(t, err)

				back, ok := reflect.New(reflect.TypeOf(object).Elem()).Interface().(istio.Object)
				require.True(t, ok)
				require.NoError(t, json.Unmarshal(text, back))
				require.Empty(t, cmp.Diff(object, back, protocmp.Transform()))

				document, err := yaml.JSONToYAML(text)
				require.NoError(t, err)
				out.WriteString("---\n")
				out.Write(document)
			}
			testkit.Golden(t, c.Path("istio.yaml"), out.Bytes())
		})
	}
}
