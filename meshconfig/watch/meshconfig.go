package watch

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"
)

const (
	// meshConfigKey of the ConfigMap that istiod reads.
	meshConfigKey = "mesh"
	// meshConfigInterval between two looks at Istio's MeshConfig: one object,
	// which changes about never, and whose change heals or closes every rule.
	meshConfigInterval = 5 * time.Second
)

// meshConfig looks after Istio's MeshConfig: what a path means is decided by
// the gateway's proxy before it looks at our objects.
type meshConfig struct {
	reader client.Reader
	key    types.NamespacedName
	// problem is what the MeshConfig lacks, nil before it was looked at.
	problem atomic.Pointer[string]
}

func newMeshConfig(reader client.Reader, key types.NamespacedName) *meshConfig {
	m := &meshConfig{reader: reader, key: key}
	if key.Name == "" {
		m.problem.Store(new(string)) // not Istio's mesh
	}
	return m
}

// run looks every interval and calls changed when the answer is another.
func (m *meshConfig) run(ctx context.Context, changed func()) error {
	if m.key.Name == "" {
		return nil
	}
	ticker := time.NewTicker(meshConfigInterval)
	defer ticker.Stop()
	for {
		if m.look(ctx) {
			changed()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// look says whether the answer has changed. While the API server does not
// answer, what it last said holds.
func (m *meshConfig) look(ctx context.Context) (changed bool) {
	problem, err := m.read(ctx)
	if err != nil {
		return false
	}
	last := m.problem.Swap(&problem)
	return last == nil || *last != problem
}

func (m *meshConfig) read(ctx context.Context) (problem string, err error) {
	const want = "; set pathNormalization.normalization to MERGE_SLASHES there, without which //private is another path than /private to the gateway and the same one to a backend"
	where := fmt.Sprintf("Istio's MeshConfig (ConfigMap %s, key %s)", m.key, meshConfigKey)
	var object corev1.ConfigMap
	switch err := m.reader.Get(ctx, m.key, &object); {
	case apierrors.IsNotFound(err):
		return where + " is not there" + want, nil
	case apierrors.IsForbidden(err):
		return where + " is forbidden to the control plane: let its service account get it", nil
	case err != nil:
		return "", err
	}
	var config struct {
		PathNormalization struct{ Normalization string }
	}
	if err := yaml.Unmarshal([]byte(object.Data[meshConfigKey]), &config); err != nil {
		return where + " cannot be read: " + err.Error(), nil //nolint:nilerr // it is an answer for the rules' statuses; trying again would not help
	}
	switch n := config.PathNormalization.Normalization; n {
	case "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES":
		return "", nil
	case "":
		return where + " does not merge slashes" + want, nil
	default:
		return where + " has the path normalization " + n + want, nil
	}
}

// lacks says what the MeshConfig lacks; it is an error before the first look.
func (m *meshConfig) lacks() (string, error) {
	problem := m.problem.Load()
	if problem == nil {
		return "", errors.New("Istio's MeshConfig could not be read yet (ConfigMap " + m.key.String() + ")")
	}
	return *problem, nil
}
