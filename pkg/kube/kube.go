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

// Config says which API server: of a kubeconfig, and of a context in it.
type Config struct {
	// File is a kubeconfig; "": $KUBECONFIG, else ~/.kube/config, else, without a
	// Context, the pod's service account.
	File string
	// Context in it; "": its current one.
	Context string
}

// RESTConfig is [Config.REST] for a kubeconfig's current context.
func RESTConfig(kubeconfig string) (*rest.Config, error) { return Config{File: kubeconfig}.REST() }

// REST returns how to reach the API server. Clients made from it are not rate
// limited on their side: the API server's priority and fairness does that, and does
// it fairly.
func (c Config) REST() (*rest.Config, error) {
	cfg, err := c.rest()
	if err != nil {
		return nil, err
	}
	cfg.QPS = -1
	return cfg, nil
}

func (c Config) rest() (*rest.Config, error) {
	if c == (Config{}) && os.Getenv(clientcmd.RecommendedConfigPathEnvVar) == "" {
		cfg, err := rest.InClusterConfig()
		if err == nil {
			return cfg, nil
		}
		if !errors.Is(err, rest.ErrNotInCluster) {
			return nil, fmt.Errorf("use the pod's service account: %w", err)
		}
	}
	cfg, err := c.loader().ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("find the API server (pass --kubeconfig, set KUBECONFIG, or run in a pod): %w", err)
	}
	return cfg, nil
}

// Namespace returns the one that the context names, else "default".
func (c Config) Namespace() (string, error) {
	namespace, _, err := c.loader().Namespace()
	if err != nil {
		return "", fmt.Errorf("find the context's namespace: %w", err)
	}
	return namespace, nil
}

func (c Config) loader() clientcmd.ClientConfig {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = c.File
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: c.Context})
}
