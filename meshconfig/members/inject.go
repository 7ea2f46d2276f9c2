package members

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/sidecar"
)

// operation of a JSON Patch (RFC 6902).
type operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value"`
}

// inject is what to change in a pod to give it its sidecar: nothing in one that has
// it already. The operations grow with the number of containers, and nothing else.
// The error is for whoever made the pod.
func inject(pod *corev1.Pod, config sidecar.Config) ([]operation, error) {
	spec := &pod.Spec
	if slices.ContainsFunc(spec.InitContainers, func(c corev1.Container) bool { return c.Name == sidecar.ContainerName }) {
		return nil, nil
	}
	endpoint, err := sidecar.AppEndpoint(pod.Annotations)
	if err != nil {
		return nil, err
	}
	user, group, root := userOf(spec)
	if err := fits(spec, root && strings.HasPrefix(endpoint, "unix:")); err != nil {
		return nil, err
	}
	var out []operation
	for path, container := range running(spec) {
		out = add(out, path+"/volumeMounts", len(container.VolumeMounts), sidecar.Mount())
		var variables []corev1.EnvVar
		for _, variable := range sidecar.Env() {
			if slices.ContainsFunc(container.Env, func(e corev1.EnvVar) bool { return e.Name == variable.Name }) {
				continue // whoever wrote the pod knows better
			}
			if variable.Name == v1alpha1.EnvListen {
				variable.Value = listenAt(endpoint)
			}
			variables = append(variables, variable)
		}
		out = add(out, path+"/env", len(container.Env), variables...)
	}
	out = add(out, "/spec/volumes", len(spec.Volumes), sidecar.Volumes()...)
	// Last, because it moves the others, and before the pod's own, which may call.
	container := config.Container(&user, &group)
	if len(spec.InitContainers) > 0 {
		return append(out, operation{Op: "add", Path: "/spec/initContainers/0", Value: container}), nil
	}
	return add(out, "/spec/initContainers", 0, container), nil
}

// add values at the end of a list that has so many items; an empty one may not be
// there yet.
func add[T any](out []operation, list string, has int, values ...T) []operation {
	switch {
	case len(values) == 0:
		return out
	case has == 0:
		return append(out, operation{Op: "add", Path: list, Value: values})
	}
	for _, value := range values {
		out = append(out, operation{Op: "add", Path: list + "/-", Value: value})
	}
	return out
}

// running are the containers that run beside the sidecar for all of a pod's life:
// the pod's own sidecars too, to whose ports Services lead as well. Each comes with
// its JSON Pointer in the pod.
func running(spec *corev1.PodSpec) iter.Seq2[string, *corev1.Container] {
	return func(yield func(path string, container *corev1.Container) bool) {
		for i := range spec.InitContainers {
			policy := spec.InitContainers[i].RestartPolicy
			if policy != nil && *policy == corev1.ContainerRestartPolicyAlways && !yield(fmt.Sprint("/spec/initContainers/", i), &spec.InitContainers[i]) {
				return
			}
		}
		for i := range spec.Containers {
			if !yield(fmt.Sprint("/spec/containers/", i), &spec.Containers[i]) {
				return
			}
		}
	}
}

// maxReasons are told at once of why no sidecar fits.
const maxReasons = 8

// fits says what in a pod the sidecar cannot be beside. rootSocket tells that the
// application is root and listens on a Unix socket.
func fits(spec *corev1.PodSpec, rootSocket bool) error {
	var errs []error
	refuse := func(format string, args ...any) {
		if len(errs) < maxReasons {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	if rootSocket {
		refuse("runAsUser 0: the sidecar is never root, and cannot reach a socket of root's; give another user, or listen on loopback and say so with the annotation %s: 127.0.0.1:<port>", v1alpha1.AnnotationAppAddress)
	}
	if spec.HostNetwork {
		refuse("hostNetwork: everybody on the node would call with the pod's identity; leave it out, or the label")
	}
	if spec.ShareProcessNamespace != nil && *spec.ShareProcessNamespace {
		refuse("shareProcessNamespace: the application would read the sidecar's token and keys in /proc; leave it out, or the label")
	}
	for _, container := range running(spec) {
		for _, port := range container.Ports {
			if port.Name == v1alpha1.ServiceHTTPPort {
				refuse("container %.63s: the port named %s is the sidecar's, to which Services lead; give yours another name", container.Name, port.Name)
			}
			switch port.ContainerPort {
			case sidecar.InboundPort, sidecar.EgressPort, sidecar.ReadyPort, sidecar.AdminPort:
				refuse("container %.63s: port %d is the sidecar's; take another one", container.Name, port.ContainerPort)
			}
		}
		for _, mount := range container.VolumeMounts {
			if mount.MountPath == sidecar.AppDir {
				refuse("container %.63s: %s is where the sidecar shares a directory; mount elsewhere", container.Name, mount.MountPath)
			}
		}
	}
	for _, volume := range spec.Volumes {
		if volume.Name == sidecar.VolumeApp || volume.Name == sidecar.VolumeMesh {
			refuse("volume %.63s: the name is the sidecar's; take another one", volume.Name)
		}
	}
	return errors.Join(errs...)
}

// nonRoot is as whom the sidecar runs where the pod does not say, or says root: the
// user of our images. What the proxy's image says does not count where the pod
// itself names root.
const nonRoot = 65532

// userOf the first container, as whom the sidecar runs as well: a socket is its
// owner's. Root's it is never; root tells that the application is.
func userOf(spec *corev1.PodSpec) (user, group int64, root bool) {
	var pod corev1.PodSecurityContext
	var own corev1.SecurityContext
	if spec.SecurityContext != nil {
		pod = *spec.SecurityContext
	}
	if len(spec.Containers) > 0 && spec.Containers[0].SecurityContext != nil {
		own = *spec.Containers[0].SecurityContext
	}
	named := cmp.Or(own.RunAsUser, pod.RunAsUser)
	user, group = nonRoot, nonRoot
	if named != nil && *named != 0 {
		user = *named
	}
	if named := cmp.Or(own.RunAsGroup, pod.RunAsGroup); named != nil && *named != 0 {
		group = *named
	}
	return user, group, named != nil && *named == 0
}

// listenAt is an endpoint in the form of the variable.
func listenAt(endpoint string) string {
	if path, ok := strings.CutPrefix(endpoint, "unix://"); ok {
		return "unix:" + path
	}
	return "tcp:" + endpoint
}
