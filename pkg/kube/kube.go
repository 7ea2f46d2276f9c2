package kube

import (
	"errors"
	"fmt"
	"os"

	istionetworking "istio.io/client-go/pkg/apis/networking/v1"
	istionetworkingalpha "istio.io/client-go/pkg/apis/networking/v1alpha3"
	istiosecurity "istio.io/client-go/pkg/apis/security/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// Scheme returns a new scheme with Kubernetes' own kinds, ours, and Istio's
// networking and security kinds.
func Scheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		clientgoscheme.AddToScheme,
		apiextensionsv1.AddToScheme,
		v1alpha1.AddToScheme,
		istionetworking.AddToScheme,
		istionetworkingalpha.AddToScheme,
		istiosecurity.AddToScheme,
	} {
		if err := add(s); err != nil {
			return nil, fmt.Errorf("build the scheme: %w", err)
		}
	}
	return s, nil
}

// RESTConfig returns how to reach the API server: the kubeconfig file given,
// else $KUBECONFIG and ~/.kube/config, else the pod's service account. Clients
// made from it are not rate limited on their side: the API server's priority
// and fairness does that, and does it fairly.
func RESTConfig(kubeconfig string) (*rest.Config, error) {
	cfg, err := restConfig(kubeconfig)
	if err != nil {
		return nil, err
	}
	cfg.QPS = -1
	return cfg, nil
}

func restConfig(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" && os.Getenv(clientcmd.RecommendedConfigPathEnvVar) == "" {
		cfg, err := rest.InClusterConfig()
		if err == nil {
			return cfg, nil
		}
		if !errors.Is(err, rest.ErrNotInCluster) {
			return nil, fmt.Errorf("use the pod's service account: %w", err)
		}
	}
	cfg, err := loader(kubeconfig).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("find the API server (pass --kubeconfig, set KUBECONFIG, or run in a pod): %w", err)
	}
	return cfg, nil
}

// Namespace returns the one that the kubeconfig's current context names, else
// "default". The kubeconfig is found as for [RESTConfig].
func Namespace(kubeconfig string) (string, error) {
	namespace, _, err := loader(kubeconfig).Namespace()
	if err != nil {
		return "", fmt.Errorf("find the context's namespace: %w", err)
	}
	return namespace, nil
}

func loader(kubeconfig string) clientcmd.ClientConfig {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{})
}
