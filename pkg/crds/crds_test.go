package crds_test

import (
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/pkg/crds"
)

const document = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: `

func TestLoadFindsDefinitionsInEveryYAMLFileOfEveryTree(t *testing.T) {
	first := fstest.MapFS{
		"a/one.yaml":         {Data: []byte("# head\n---" + document + "one\n---\n---" + document + "two\n")},
		"kustomization.yaml": {Data: []byte("resources: [a/one.yaml]\n")},
		"notes.md":           {Data: []byte("---" + document + "not this\n")},
	}
	second := fstest.MapFS{"three.yml": {Data: []byte(document + "three\n")}}

	found, err := crds.Load(first, second)
	require.NoError(t, err)
	var names []string
	for _, definition := range found {
		names = append(names, definition.GetName())
	}
	require.Equal(t, []string{"one", "two", "three"}, names)
}

func TestLoadNamesTheFileThatIsNoYAML(t *testing.T) {
	_, err := crds.Load(fstest.MapFS{"bad.yaml": {Data: []byte("kind: [")}})
	require.ErrorContains(t, err, "bad.yaml")
}
