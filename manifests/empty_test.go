package manifests_test

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/manifests"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/crds"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// emptyCluster is an API server with nothing in it, or with what Istio brings, as
// a user's kubectl and helm see it.
func emptyCluster(t *testing.T, mesh string) (config *rest.Config, kubeconfig string) {
	t.Helper()
	config = testkit.EmptyKubeAPI(t)
	if mesh == "istio" {
		definitions, err := crds.Load(manifests.IstioCRDs)
		require.NoError(t, err)
		require.NoError(t, crds.Install(t.Context(), config, "istio", definitions))
	}
	file := clientcmdapi.NewConfig()
	file.Clusters["c"] = &clientcmdapi.Cluster{Server: config.Host, CertificateAuthorityData: config.CAData}
	file.AuthInfos["u"] = &clientcmdapi.AuthInfo{ClientCertificateData: config.CertData, ClientKeyData: config.KeyData}
	file.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	file.CurrentContext = "x"
	kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, clientcmd.WriteToFile(*file, kubeconfig))
	return config, kubeconfig
}

func TestKubectlInstallsOnAnEmptyClusterAtTheFirstTry(t *testing.T) {
	for _, mesh := range []string{"envoy", "istio"} {
		t.Run(mesh, func(t *testing.T) {
			config, kubeconfig := emptyCluster(t, mesh)
			for range 2 {
				// The command of docs/cluster.md, and no more.
				out, err := kubectl(t.Context(), t, kubeconfig, "apply", "-k", "overlays/"+mesh, "--validate=strict")
				require.NoError(t, err, out)
				require.NotContains(t, out, "Warning")
			}
			installed(t, config)
		})
	}
}

func TestHelmInstallsUpgradesAndLeavesWhatItSays(t *testing.T) {
	for _, tt := range []struct {
		mesh  string
		flags []string
	}{
		{"envoy", nil},
		{"istio", []string{"--namespace", v1alpha1.SystemNamespace, "--create-namespace"}},
	} {
		t.Run(tt.mesh, func(t *testing.T) {
			config, kubeconfig := emptyCluster(t, tt.mesh)
			var before []string
			testkit.Eventually(t, patience, func() error {
				before = everything(t, config)
				// The last that an API server makes for itself.
				for _, own := range []string{"services default/kubernetes", "namespaces kube-node-lease", "namespaces kube-public"} {
					if !slices.Contains(before, own) {
						return errors.New("no " + own + " yet")
					}
				}
				return nil
			}, "the API server is not complete")
			run := func(args ...string) string {
				out, err := helm(t, kubeconfig, append(args, tt.flags...)...)
				require.NoError(t, err, out)
				return out
			}
			// The command of docs/cluster.md, and no more.
			notes := run("upgrade", "--install", "lambdamesh", chart, "--set", "mesh="+tt.mesh)
			for _, said := range []string{"lambdamesh publish", "https://hello.", "What helm uninstall keeps"} {
				require.Contains(t, notes, said)
			}
			installed(t, config)
			run("upgrade", "--install", "lambdamesh", chart, "--set", "mesh="+tt.mesh, "--set", "nats.replicas=1")
			installed(t, config)

			uninstall := slices.Clone(tt.flags)
			uninstall = slices.DeleteFunc(uninstall, func(flag string) bool { return flag == "--create-namespace" })
			out, err := helm(t, kubeconfig, append([]string{"uninstall", "lambdamesh"}, uninstall...)...)
			require.NoError(t, err, out)
			var left []string
			for _, object := range everything(t, config) {
				if !slices.Contains(before, object) {
					left = append(left, object)
				}
			}
			for _, object := range left {
				definition := strings.HasPrefix(object, "customresourcedefinitions ")
				if !definition && object != "namespaces "+v1alpha1.SystemNamespace {
					t.Errorf("%s is left, and NOTES.txt does not say so", object)
				}
			}
			require.Contains(t, left, "customresourcedefinitions lambdas.lambdamesh.dev")
			run("upgrade", "--install", "lambdamesh", chart, "--set", "mesh="+tt.mesh)
			installed(t, config)
		})
	}
}

// installed looks for every workload that the chart promises.
func installed(t *testing.T, config *rest.Config) {
	t.Helper()
	api, err := client.New(config, client.Options{})
	require.NoError(t, err)
	var namespace corev1.Namespace
	require.NoError(t, api.Get(t.Context(), client.ObjectKey{Name: v1alpha1.SystemNamespace}, &namespace))
	for kind, names := range map[string][]string{"Deployment": {"controlplane", "eventbus", "connector", "gateway"}, "StatefulSet": {"nats"}} {
		for _, name := range names {
			object := &metav1.PartialObjectMetadata{}
			object.SetGroupVersionKind(schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: kind})
			require.NoError(t, api.Get(t.Context(), client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: name}, object))
		}
	}
}

// everything names all objects of the cluster but those that its API server keeps
// for itself.
func everything(t *testing.T, config *rest.Config) []string {
	t.Helper()
	resources, err := discovery.NewDiscoveryClientForConfigOrDie(config).ServerPreferredResources()
	require.NoError(t, err)
	objects, err := dynamic.NewForConfig(config)
	require.NoError(t, err)
	var all []string
	for _, group := range resources {
		version, err := schema.ParseGroupVersion(group.GroupVersion)
		require.NoError(t, err)
		for _, resource := range group.APIResources {
			if !slices.Contains(resource.Verbs, "list") || slices.Contains([]string{"leases", "events", "endpoints", "endpointslices", "ipaddresses", "componentstatuses", "apiservices"}, resource.Name) {
				continue
			}
			list, err := objects.Resource(version.WithResource(resource.Name)).List(t.Context(), metav1.ListOptions{})
			require.NoError(t, err, resource.Name)
			for _, object := range list.Items {
				all = append(all, resource.Name+" "+strings.TrimPrefix(object.GetNamespace()+"/"+object.GetName(), "/"))
			}
		}
	}
	return all
}
