package localnode

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// environment is that of the container, with what the node decides in its
// place. Secrets and ConfigMaps are read at every start.
func (n *Node) environment(ctx context.Context, r *replica, container corev1.Container, dir string, egress *url.URL, sourceDir string) ([]string, error) {
	values := map[string]string{"HOME": dir, "TMPDIR": dir}
	for _, name := range []string{"PATH", "LANG"} {
		if value, found := os.LookupEnv(name); found {
			values[name] = value
		}
	}
	if len(container.EnvFrom) > 0 {
		return nil, fmt.Errorf("container %s: envFrom is not supported by the local node; use env", container.Name)
	}
	for _, variable := range container.Env {
		value, found := expand(variable.Value, values), true
		if variable.ValueFrom != nil {
			var err error
			if value, found, err = n.valueFrom(ctx, r, variable.ValueFrom); err != nil {
				return nil, fmt.Errorf("env %s: %w", variable.Name, err)
			}
		}
		if found {
			values[variable.Name] = value
		}
	}
	proxy := egress.String()
	for name, value := range map[string]string{
		v1alpha1.EnvListen:                     "unix:" + filepath.Join(dir, appSocket),
		v1alpha1.EnvAdminListen:                "unix:" + filepath.Join(dir, adminSocket),
		v1alpha1.EnvSource:                     sourceDir,
		v1alpha1.EnvSidecar:                    "localnode", // every replica has one, before a socket of ours alone
		v1alpha1.EnvHTTPProxy:                  proxy,
		strings.ToLower(v1alpha1.EnvHTTPProxy): proxy,
		v1alpha1.EnvNoProxy:                    "",
		strings.ToLower(v1alpha1.EnvNoProxy):   "",
	} {
		values[name] = value
	}
	env := make([]string, 0, len(values))
	for name, value := range values {
		env = append(env, name+"="+value)
	}
	slices.Sort(env)
	return env, nil
}

// valueFrom reads a reference; found is false for an optional one that leads
// nowhere.
func (n *Node) valueFrom(ctx context.Context, r *replica, source *corev1.EnvVarSource) (value string, found bool, err error) {
	namespace := r.deployment.Namespace
	switch {
	case source.SecretKeyRef != nil:
		ref, secret := source.SecretKeyRef, &corev1.Secret{}
		err := n.client.Get(ctx, types.NamespacedName{Namespace: namespace, Name: ref.Name}, secret)
		data, has := secret.Data[ref.Key]
		return pick("Secret", ref.Name, ref.Key, string(data), has, ref.Optional, err)
	case source.ConfigMapKeyRef != nil:
		ref, configMap := source.ConfigMapKeyRef, &corev1.ConfigMap{}
		err := n.client.Get(ctx, types.NamespacedName{Namespace: namespace, Name: ref.Name}, configMap)
		data, has := configMap.Data[ref.Key]
		return pick("ConfigMap", ref.Name, ref.Key, data, has, ref.Optional, err)
	case source.FieldRef != nil:
		if name, found := strings.CutPrefix(source.FieldRef.FieldPath, "metadata.annotations['"); found {
			return r.deployment.Spec.Template.Annotations[strings.TrimSuffix(name, "']")], true, nil
		}
		fields := map[string]string{
			"metadata.name": r.name, "metadata.namespace": namespace,
			"spec.serviceAccountName": r.deployment.Spec.Template.Spec.ServiceAccountName, "status.podIP": "127.0.0.1",
		}
		value, found := fields[source.FieldRef.FieldPath]
		if !found {
			return "", false, fmt.Errorf("fieldRef %s is not supported by the local node", source.FieldRef.FieldPath)
		}
		return value, true, nil
	}
	return "", false, fmt.Errorf("this kind of valueFrom is not supported by the local node; use secretKeyRef, configMapKeyRef or fieldRef")
}

func pick(kind, name, key, value string, has bool, optional *bool, err error) (string, bool, error) {
	missing := apierrors.IsNotFound(err)
	switch {
	case err != nil && !missing:
		return "", false, fmt.Errorf("read %s %s: %w", kind, name, err)
	case !missing && has:
		return value, true, nil
	case optional != nil && *optional:
		return "", false, nil
	case missing:
		return "", false, fmt.Errorf("%s %s does not exist; create it", kind, name)
	}
	return "", false, fmt.Errorf("%s %s has no key %s; add it", kind, name, key)
}

var reference = regexp.MustCompile(`\$\$|\$\([A-Za-z_.-][A-Za-z0-9_.-]*\)`)

// expand replaces $(NAME) by what was defined before, as Kubernetes does; what
// is unknown stays, $$ is a dollar.
func expand(text string, values map[string]string) string {
	return reference.ReplaceAllStringFunc(text, func(found string) string {
		if found == "$$" {
			return "$"
		}
		if value, known := values[found[2:len(found)-1]]; known {
			return value
		}
		return found
	})
}
