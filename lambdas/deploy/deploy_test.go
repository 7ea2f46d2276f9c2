package deploy_test

import (
	"bytes"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/lambdamesh/lambdamesh/lambdas/build"
	"github.com/lambdamesh/lambdamesh/lambdas/deploy"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/sidecar"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

func newLambda() *v1alpha1.Lambda {
	lambda := &v1alpha1.Lambda{}
	lambda.Name, lambda.Namespace, lambda.UID = "last-order", "shop", "0000"
	lambda.Spec.Runtime = v1alpha1.RuntimeGo
	return lambda
}

func TestObjects(t *testing.T) {
	local := build.Artifact{Image: "lambdamesh.local/go:0123", SourceHash: "0123"}
	tests := map[string]struct {
		change   func(*v1alpha1.Lambda)
		artifact build.Artifact
		options  deploy.Options
	}{
		"defaults": {func(*v1alpha1.Lambda) {}, local, deploy.Options{}},
		"sidecar": {func(l *v1alpha1.Lambda) {
			l.Spec.Env = []corev1.EnvVar{{Name: "HTTP_PROXY", Value: "http://proxy.corp.example:3128"}}
		}, local, deploy.Options{Sidecar: &sidecar.Config{Image: "registry.example/proxy:v1"}}},
		"everything": {func(l *v1alpha1.Lambda) {
			l.Spec.Runtime = v1alpha1.RuntimePython
			l.Spec.Handler = "handle"
			l.Spec.Env = []corev1.EnvVar{
				{Name: "PLAIN", Value: "1"},
				{Name: "PASSWORD", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "db"}, Key: "password"}}},
			}
			l.Spec.SecretMounts = []v1alpha1.SecretMount{{SecretName: "keys", MountPath: "/keys"}}
			l.Spec.Resources = &v1alpha1.LambdaResources{Profile: "XL"}
			l.Spec.Timeout = &metav1.Duration{Duration: 30 * time.Second}
			l.Spec.MaxBodyBytes = new(int64(4096))
			l.Spec.Scale = v1alpha1.LambdaScale{Min: new(int32(3))}
		}, build.Artifact{Image: "registry.example/python:v1", SourceHash: "4567", Mounts: []build.Mount{
			{Name: "source", Dir: build.SourceDir, Files: map[string][]byte{"main.py": []byte("def handle(event, context): pass\n")}},
			{Name: "runtime", Dir: build.Dir + "/runtime", Files: map[string][]byte{"server.py": []byte("import sys\n"), "lambdamesh_runtime/server.py": []byte("\n")}},
		}, Command: []string{"python3", "/lambda/runtime/server.py"}}, deploy.Options{}},
		"own-resources": {func(l *v1alpha1.Lambda) {
			l.Spec.Resources = &v1alpha1.LambdaResources{Limits: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Gi")}}
		}, local, deploy.Options{}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			lambda := newLambda()
			test.change(lambda)
			var out bytes.Buffer
			for _, object := range deploy.New(lambda, test.artifact, test.options).All() {
				text, err := yaml.Marshal(object)
				require.NoError(t, err)
				out.WriteString("---\n")
				out.Write(text)
			}
			testkit.Golden(t, filepath.Join("testdata", name+".yaml"), out.Bytes())
		})
	}
}

func TestProfilesDouble(t *testing.T) {
	var before *corev1.ResourceRequirements
	for _, profile := range []string{"XS", "S", "M", "L", "XL"} {
		lambda := newLambda()
		lambda.Spec.Resources = &v1alpha1.LambdaResources{Profile: profile}
		got := deploy.New(lambda, build.Artifact{}, deploy.Options{}).Deployment.Spec.Template.Spec.Containers[0].Resources
		if before == nil {
			require.Equal(t, "50m 64Mi 150m 256Mi", got.Requests.Cpu().String()+" "+got.Requests.Memory().String()+" "+got.Limits.Cpu().String()+" "+got.Limits.Memory().String())
		} else {
			require.Equal(t, 2*before.Limits.Cpu().MilliValue(), got.Limits.Cpu().MilliValue())
			require.Equal(t, 2*before.Requests.Memory().Value(), got.Requests.Memory().Value())
		}
		before = &got
	}
}

func TestWhatIsNotDeployedIsTold(t *testing.T) {
	lambda := newLambda()
	reason, _ := deploy.Check(lambda, deploy.Options{})
	require.Empty(t, reason)
	lambda.Spec.Scale.Min = new(int32(0))
	reason, message := deploy.Check(lambda, deploy.Options{})
	require.Equal(t, v1alpha1.ReasonNotSupported, reason)
	require.Contains(t, message, "scale.min: 0")
	lambda = newLambda()
	lambda.Spec.Env = []corev1.EnvVar{{Name: "LAMBDAMESH_LISTEN", Value: "x"}}
	reason, _ = deploy.Check(lambda, deploy.Options{})
	require.Equal(t, v1alpha1.ReasonInvalid, reason)
}

func TestNetworkPolicy(t *testing.T) {
	access := []v1alpha1.LambdaAccess{{Lambda: "report"}, {Namespace: "bank", Lambda: "ledger"}, {Namespace: "tools", ServiceAccount: "cron"}}
	for name, test := range map[string]struct {
		access  []v1alpha1.LambdaAccess
		callers deploy.Callers
		options deploy.Options
	}{
		"nobody":   {},
		"gateway":  {callers: deploy.Callers{Gateway: true}},
		"eventbus": {callers: deploy.Callers{EventBus: true}, options: deploy.Options{SystemNamespace: "mesh"}},
		"all":      {access, deploy.Callers{Gateway: true, EventBus: true}, deploy.Options{}},
		"sidecar":  {access, deploy.Callers{Gateway: true, EventBus: true}, deploy.Options{Sidecar: &sidecar.Config{}}},
	} {
		t.Run(name, func(t *testing.T) {
			lambda := newLambda()
			lambda.Spec.Access = test.access
			text, err := yaml.Marshal(deploy.NetworkPolicy(lambda, test.callers, test.options))
			require.NoError(t, err)
			testkit.Golden(t, filepath.Join("testdata", "policy-"+name+".yaml"), text)
		})
	}
}
