package examples_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"go/format"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/manifests"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/kube"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// read returns the objects of the files; a field that no kind has is an error.
func read(t *testing.T, pattern string) []client.Object {
	t.Helper()
	scheme, err := kube.Scheme()
	require.NoError(t, err)
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	files, err := filepath.Glob(pattern)
	require.NoError(t, err)
	require.NotEmpty(t, files)
	var objects []client.Object
	for _, file := range files {
		raw, err := os.ReadFile(file)
		require.NoError(t, err)
		documents := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(raw)))
		for {
			document, err := documents.Read()
			if errors.Is(err, io.EOF) {
				break
			}
			require.NoError(t, err)
			decoded, _, err := decoder.Decode(document, nil, nil)
			require.NoError(t, err, file)
			object, ok := decoded.(client.Object)
			require.True(t, ok)
			objects = append(objects, object)
		}
	}
	return objects
}

func all(t *testing.T) []client.Object {
	t.Helper()
	return slices.Concat(read(t, "commerce/*.yaml"), read(t, "hello/*.yaml"), read(t, "webshop/*.yaml"))
}

// find returns the object of a name, or fails the test.
func find[T client.Object](t *testing.T, objects []client.Object, namespace, name string) T {
	t.Helper()
	for _, object := range objects {
		if found, ok := object.(T); ok && object.GetNamespace() == namespace && object.GetName() == name {
			return found
		}
	}
	var none T
	t.Fatalf("there is no %T %s/%s", none, namespace, name)
	return none
}

func TestTheAPIServerTakesTheExamples(t *testing.T) {
	config := testkit.KubeAPI(t, manifests.CRDs)
	scheme, err := kube.Scheme()
	require.NoError(t, err)
	c, err := client.New(config, client.Options{Scheme: scheme, FieldValidation: metav1.FieldValidationStrict})
	require.NoError(t, err)
	for _, namespace := range []string{"commerce", "shop", "webshop", v1alpha1.SystemNamespace} {
		err := c.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}})
		require.True(t, err == nil || apierrors.IsAlreadyExists(err), "%v", err)
	}
	for _, object := range all(t) {
		if _, ok := object.(*corev1.Namespace); !ok {
			require.NoError(t, c.Create(t.Context(), object, client.DryRunAll), object.GetName())
		}
	}
}

func TestWhatTheExamplesNameIsThere(t *testing.T) {
	objects := all(t)
	for _, object := range objects {
		switch o := object.(type) {
		case *v1alpha1.Subscription:
			find[*v1alpha1.Lambda](t, objects, o.Namespace, o.Spec.Sink.Lambda)
			if o.Spec.Source != "*" {
				find[*v1alpha1.Application](t, objects, "", o.Spec.Source)
			}
		case *v1alpha1.APIRule:
			for _, rule := range o.Spec.Rules {
				find[*v1alpha1.Lambda](t, objects, o.Namespace, rule.Lambda)
				if rule.JWT != nil {
					find[*corev1.Secret](t, objects, o.Namespace, rule.JWT.Authentications[0].JWKSSecret)
				}
			}
		case *v1alpha1.ApplicationBinding:
			find[*v1alpha1.Application](t, objects, "", o.Spec.Application)
			for _, name := range o.Spec.Lambdas.Names {
				find[*v1alpha1.Lambda](t, objects, o.Namespace, name)
			}
			for _, name := range o.Spec.Services {
				if o.Spec.Application == "webshop" {
					continue // it registers its services itself
				}
				find[*v1alpha1.ApplicationService](t, objects, "", v1alpha1.ServiceObjectName(o.Spec.Application, name))
			}
		case *v1alpha1.TokenRequest:
			find[*v1alpha1.Application](t, objects, "", o.Spec.Application)
		case *v1alpha1.ApplicationService:
			find[*v1alpha1.Application](t, objects, "", o.Spec.Application)
			find[*corev1.Secret](t, objects, v1alpha1.SystemNamespace, o.Spec.API.Auth.OAuth2.Secret.Name)
		}
	}
}

// TestTheCodeCompiles asks the compilers that are here; the runtimes' own tests
// and e2e run the code.
func TestTheCodeCompiles(t *testing.T) {
	for _, object := range all(t) {
		lambda, ok := object.(*v1alpha1.Lambda)
		if !ok {
			continue
		}
		t.Run(lambda.Name, func(t *testing.T) {
			code, dir := lambda.Spec.Source.Inline.Code, t.TempDir()
			write := func(name, text string) string {
				path := filepath.Join(dir, name)
				require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
				return path
			}
			var compile *exec.Cmd
			switch lambda.Spec.Runtime {
			case v1alpha1.RuntimeGo:
				formatted, err := format.Source([]byte(code))
				require.NoError(t, err)
				require.Equal(t, string(formatted), code, "gofmt")
				overlay := inThisModule(t, map[string]string{"lambda.go": write("lambda.go", code)})
				compile = exec.Command("go", "build", "-overlay", overlay, "./compiled")
			case v1alpha1.RuntimeNodeJS:
				compile = exec.Command("node", "--check", write("lambda.mjs", code))
			case v1alpha1.RuntimePython:
				compile = exec.Command("python3", "-c", "import ast, sys; ast.parse(open(sys.argv[1]).read())", write("lambda.py", code))
			default:
				t.Fatalf("no compiler for %s", lambda.Spec.Runtime)
			}
			if compile.Err != nil {
				t.Skipf("%s is not installed", compile.Args[0])
			}
			compile.Env = append(os.Environ(), "CGO_ENABLED=0") // as the toolchain builds lambdas
			output, err := compile.CombinedOutput()
			require.NoError(t, err, string(output))
		})
	}
}

// inThisModule returns an overlay for the go command that puts files into a
// package ./compiled of this module, where the SDK is.
func inThisModule(t *testing.T, files map[string]string) (overlay string) {
	t.Helper()
	here, err := os.Getwd()
	require.NoError(t, err)
	replace := map[string]string{}
	for name, file := range files {
		replace[filepath.Join(here, "compiled", name)] = file
	}
	raw, err := json.Marshal(map[string]any{"Replace": replace})
	require.NoError(t, err)
	overlay = filepath.Join(t.TempDir(), "overlay.json")
	require.NoError(t, os.WriteFile(overlay, raw, 0o600))
	return overlay
}

// TestTheCommerceSystem runs testdata/commerce_system_test.go against the code
// in the YAML.
func TestTheCommerceSystem(t *testing.T) {
	lambda := find[*v1alpha1.Lambda](t, all(t), "commerce", "commerce-system")
	code := filepath.Join(t.TempDir(), "lambda.go")
	require.NoError(t, os.WriteFile(code, []byte(lambda.Spec.Source.Inline.Code), 0o600))
	tests, err := filepath.Abs("testdata/commerce_system_test.go")
	require.NoError(t, err)
	// -vet=off: vet looks for the directory of the overlay, which is not there.
	program, overlay := filepath.Join(t.TempDir(), "commerce.test"), inThisModule(t, map[string]string{"lambda.go": code, "lambda_test.go": tests})
	compile := exec.Command("go", "test", "-c", "-vet=off", "-o", program, "-overlay", overlay, "./compiled")
	compile.Env = append(os.Environ(), "CGO_ENABLED=0")
	output, err := compile.CombinedOutput()
	require.NoError(t, err, string(output))
	run := exec.Command(program)
	run.Env = append(os.Environ(), "CLIENT_ID=id", "CLIENT_SECRET=secret")
	output, err = run.CombinedOutput()
	require.NoError(t, err, string(output))
}

func TestTheDemoKeySignsWhatTheRulesTake(t *testing.T) {
	objects := all(t)
	secret := find[*corev1.Secret](t, objects, "shop", "demo-jwks")
	require.Equal(t, secret.StringData, find[*corev1.Secret](t, objects, "webshop", "demo-jwks").StringData)
	var set jwkset.JWKSMarshal
	require.NoError(t, json.Unmarshal([]byte(secret.StringData["jwks.json"]), &set))
	require.Len(t, set.Keys, 1)
	require.Empty(t, set.Keys[0].D, "the private half is not for the cluster")
	public, err := jwkset.NewJWKFromMarshal(set.Keys[0], jwkset.JWKMarshalOptions{}, jwkset.JWKValidateOptions{})
	require.NoError(t, err)

	raw, err := os.ReadFile("commerce/keys/demo.jwk")
	require.NoError(t, err)
	var marshaled jwkset.JWKMarshal
	require.NoError(t, json.Unmarshal(raw, &marshaled))
	private, err := jwkset.NewJWKFromMarshal(marshaled, jwkset.JWKMarshalOptions{Private: true}, jwkset.JWKValidateOptions{})
	require.NoError(t, err)
	require.Equal(t, set.Keys[0].KID, marshaled.KID)

	signed, err := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims{"sub": "alice", "exp": time.Now().Add(time.Minute).Unix()}).SignedString(private.Key())
	require.NoError(t, err)
	_, err = jwt.Parse(signed, func(*jwt.Token) (any, error) { return public.Key(), nil })
	require.NoError(t, err)
}

func TestTheCommerceSystemTakesTheConnector(t *testing.T) {
	objects := all(t)
	lambda := find[*v1alpha1.Lambda](t, objects, "commerce", "commerce-system")
	require.Contains(t, lambda.Spec.Access, v1alpha1.LambdaAccess{Namespace: v1alpha1.SystemNamespace, ServiceAccount: v1alpha1.ServiceAccountConnector})
	application := find[*v1alpha1.Application](t, objects, "", "commerce")
	require.Contains(t, application.Spec.Publishers, v1alpha1.LambdaAccess{Namespace: lambda.Namespace, Lambda: lambda.Name})
	api, host := find[*v1alpha1.ApplicationService](t, objects, "", "commerce.orders").Spec.API, "http://"+lambda.Name+"."+lambda.Namespace+".svc/"
	require.Equal(t, []string{host + "api", host + "oauth/token"}, []string{api.TargetURL, api.Auth.OAuth2.TokenURL})
	require.Equal(t,
		find[*corev1.Secret](t, objects, v1alpha1.SystemNamespace, "commerce-oauth").StringData,
		find[*corev1.Secret](t, objects, "commerce", "oauth-client").StringData, "the connector's credentials are the client's")
}
