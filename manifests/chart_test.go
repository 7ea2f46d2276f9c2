package manifests_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/lambdamesh/lambdamesh/manifests"
	"github.com/lambdamesh/lambdamesh/pkg/sidecar"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

const chart = "charts/lambdamesh"

// helm runs the pinned helm and returns what it prints.
func helm(t *testing.T, kubeconfig string, args ...string) (string, error) {
	t.Helper()
	home := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "../hack/tools/run", append([]string{"helm"}, args...)...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig, "HELM_CACHE_HOME="+home, "HELM_CONFIG_HOME="+home, "HELM_DATA_HOME="+home)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	t.Log(errOut.String())
	if err != nil {
		return errOut.String(), err
	}
	return out.String(), nil
}

// template renders the chart with settings as --set takes them.
func template(t *testing.T, settings ...string) []*unstructured.Unstructured {
	t.Helper()
	args := []string{"template", "lambdamesh", chart, "--kube-version", "1.33.0"}
	for _, s := range settings {
		args = append(args, "--set", s)
	}
	out, err := helm(t, "", args...)
	require.NoError(t, err, out)
	return decode(t, strings.NewReader(out))
}

func TestOverlaysAndCopiesAreWhatTheChartSays(t *testing.T) {
	for _, mesh := range []string{"envoy", "istio"} {
		written, err := os.ReadFile("overlays/" + mesh + "/lambdamesh.yaml")
		require.NoError(t, err)
		require.Equal(t, template(t, "mesh="+mesh), decode(t, bytes.NewReader(written)), "run make generate")
	}
	copies := map[string]string{"crd-all.gen.yaml": "istio.yaml"}
	var original []string
	for _, dir := range []fs.FS{manifests.CRDs, manifests.IstioCRDs} {
		require.NoError(t, fs.WalkDir(dir, ".", func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() {
				return err
			}
			name := filepath.Base(path)
			if other, renamed := copies[name]; renamed {
				name = other
			}
			original = append(original, name)
			want, err := fs.ReadFile(dir, path)
			require.NoError(t, err)
			got, err := os.ReadFile(filepath.Join(chart, "crds", name))
			require.NoError(t, err)
			require.True(t, bytes.Equal(want, got), "%s differs from %s: run make generate", name, path)
			return nil
		}))
	}
	entries, err := os.ReadDir(chart + "/crds")
	require.NoError(t, err)
	require.Len(t, entries, len(original))
}

func TestOneVersionIsInTheChartAndItsImages(t *testing.T) {
	raw, err := os.ReadFile(chart + "/Chart.yaml")
	require.NoError(t, err)
	var about struct{ Version, AppVersion string }
	require.NoError(t, yaml.Unmarshal(raw, &about))
	require.Equal(t, "v"+about.Version, about.AppVersion)
	for tag, settings := range map[string][]string{about.AppVersion: nil, "v9.8.7": {"image.tag=v9.8.7"}} {
		objects := template(t, settings...)
		for _, w := range workloads(t, objects) {
			for _, c := range slices.Concat(w.Spec.Template.Spec.Containers, w.Spec.Template.Spec.InitContainers) {
				require.True(t, strings.HasPrefix(c.Image, "ghcr.io/lambdamesh/"), c.Image)
				require.True(t, strings.HasSuffix(c.Image, ":"+tag), c.Image)
				if c.Name == "controlplane" {
					require.Contains(t, c.Args, "--runtime-image-tag="+tag)
				}
			}
		}
	}
}

func TestWrongValuesAreRefusedByName(t *testing.T) {
	for setting, want := range map[string]string{
		"mesh=linkerd":                        "mesh",
		"gateway.domian=example.com":          "domian",
		"gateway.domain=Shop_1":               "gateway.domain",
		"gateway.service.type=Hostport":       "gateway.service.type",
		"nats.replicas=2":                     "nats.replicas",
		"nats.storage.size=20G":               "nats.storage.size",
		"nats.url=nats://user:pw@nats:4222":   "nats.url",
		"nats.enabled=false":                  "nats.url names no other NATS",
		"eventbus.args={publish}":             "eventbus.args",
		"eventbus.resources.limits.memory=1G": "memory",
	} {
		out, err := helm(t, "", "template", "lambdamesh", chart, "--kube-version", "1.33.0", "--set", setting)
		require.Error(t, err, setting)
		// The schema's messages write gateway.service.type as /gateway/service/type.
		require.Contains(t, strings.ReplaceAll(strings.ReplaceAll(out, "'/", "'"), "/", "."), want, setting)
	}
}

// settings are the ways to install that values.yaml tells of.
func settings() map[string][]string {
	return map[string][]string{
		"one server, Envoy's proxy": {"nats.replicas=1", "nats.storage.class=fast", "proxy.image=envoyproxy/envoy:distroless-v1.37.0", "image.pullSecrets={login}"},
		"node ports":                {"gateway.service.type=NodePort", "gateway.service.nodePorts.https=30443", "eventbus.public.service.type=NodePort", "eventbus.public.service.nodePort=30444"},
		"host ports":                {"gateway.hostPort=true", "gateway.service.type=ClusterIP"},
		"Istio, one of each":        {"mesh=istio", "controlplane.replicas=1", "eventbus.replicas=1", "connector.replicas=1", "gateway.replicas=1", "nats.replicas=1"},
		"another NATS": {
			"nats.enabled=false", "nats.url=tls://nats.example.com:4222", "nats.credentialsSecret=login", "nats.caSecret=ca", "eventbus.public.enabled=false",
			"targets.serviceCIDRs={10.96.0.0/12}", "targets.allow={erp.corp.example:443}", "eventbus.args={--max-age=24h}",
		},
	}
}

func TestEveryWayToInstallIsTakenByTheAPIServer(t *testing.T) {
	config := testkit.KubeAPI(t, manifests.CRDs, manifests.IstioCRDs)
	warned := &warnings{}
	config.WarningHandler = warned
	api, err := client.New(config, client.Options{})
	require.NoError(t, err)
	for name, set := range settings() {
		t.Run(name, func(t *testing.T) {
			objects := template(t, set...)
			for _, object := range kinds(objects, "Namespace", "PriorityClass", "ServiceAccount") {
				require.NoError(t, apply(t.Context(), api, object))
			}
			for _, object := range objects {
				require.NoError(t, apply(t.Context(), api, object, client.DryRunAll), describe(object))
				require.Empty(t, warned.take(), describe(object))
			}
			admitted(t, api, objects)
		})
	}
}

// admitted creates a pod of each workload, for show: pod security and priorities
// decide about pods alone.
func admitted(t *testing.T, api client.Client, objects []*unstructured.Unstructured) {
	t.Helper()
	for _, w := range workloads(t, objects) {
		pod := &corev1.Pod{ObjectMeta: w.Spec.Template.ObjectMeta, Spec: w.Spec.Template.Spec}
		pod.Namespace, pod.Name = w.Namespace, w.Name+"-test"
		for _, claim := range w.Spec.VolumeClaimTemplates {
			pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: claim.Name, VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim.Name},
			}})
		}
		require.NoError(t, api.Create(t.Context(), pod, client.DryRunAll), w.Name)
	}
}

func describe(object *unstructured.Unstructured) string {
	raw, err := json.Marshal(object)
	if err != nil {
		return name(object)
	}
	return name(object) + " " + string(raw)
}

func TestTheSystemsOwnPartsTrustOnlyTheirSidecar(t *testing.T) {
	members := 0
	for _, w := range workloads(t, template(t)) {
		if w.Spec.Template.Labels["lambdamesh.dev/sidecar"] != "true" {
			continue
		}
		members++
		require.Equal(t, w.Name, w.Spec.Template.Labels["lambdamesh.dev/member"])
		spec := w.Spec.Template.Spec
		require.Len(t, spec.InitContainers, 1)
		proxy := spec.InitContainers[0]
		require.Equal(t, corev1.ContainerRestartPolicyAlways, *proxy.RestartPolicy)
		require.NotNil(t, proxy.StartupProbe, "the application waits for it")
		asLambdas := sidecar.Config{Image: proxy.Image}.Container(nil, nil)
		asLambdas.ImagePullPolicy = proxy.ImagePullPolicy
		require.Equal(t, inJSON(t, asLambdas), inJSON(t, proxy))
		for _, volume := range sidecar.Volumes() {
			require.True(t, slices.ContainsFunc(spec.Volumes, func(v corev1.Volume) bool { return inJSON(t, v) == inJSON(t, volume) }), volume.Name)
		}
		args := strings.Join(spec.Containers[0].Args, " ")
		require.Contains(t, args, "=unix:/var/run/lambdamesh/app/app.sock")
		require.Contains(t, args, "--mesh-proxy-url=http://127.0.0.1:15001")
		for _, c := range spec.Containers {
			require.False(t, slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == sidecar.VolumeMesh }), "the mesh's token is the sidecar's")
		}
	}
	require.Equal(t, 2, members)
}

func inJSON(t *testing.T, value any) string {
	t.Helper()
	raw, err := json.Marshal(value)
	require.NoError(t, err)
	return string(raw)
}

// kubectl runs kubectl and returns what it prints, warnings included.
func kubectl(ctx context.Context, t *testing.T, kubeconfig string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(ctx, filepath.Join(testkit.KubernetesBinDir(t), "kubectl"), append([]string{"--kubeconfig", kubeconfig}, args...)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}
