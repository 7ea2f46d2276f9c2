package members

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/sidecar"
)

// inject gives a pod its sidecar. One that has it already is left as it is. The
// error is for whoever made the pod.
func inject(pod *corev1.Pod, config sidecar.Config) error {
	spec := &pod.Spec
	if slices.ContainsFunc(spec.InitContainers, func(c corev1.Container) bool { return c.Name == sidecar.ContainerName }) {
		return nil
	}
	endpoint, err := sidecar.AppEndpoint(pod.Annotations)
	if err != nil {
		return err
	}
	user, group, root := userOf(spec)
	if err := fits(spec, root && strings.HasPrefix(endpoint, "unix:")); err != nil {
		return err
	}
	for _, container := range running(spec) {
		container.VolumeMounts = append(container.VolumeMounts, sidecar.Mount())
		for _, variable := range sidecar.Env() {
			if slices.ContainsFunc(container.Env, func(e corev1.EnvVar) bool { return e.Name == variable.Name }) {
				continue // whoever wrote the pod knows better
			}
			if variable.Name == v1alpha1.EnvListen {
				variable.Value = listenAt(endpoint)
			}
			container.Env = append(container.Env, variable)
		}
	}
	spec.InitContainers = append([]corev1.Container{config.Container(&user, &group)}, spec.InitContainers...)
	spec.Volumes = append(spec.Volumes, sidecar.Volumes()...)
	return nil
}

// running are the containers that run beside the sidecar for all of a pod's life:
// the pod's own sidecars too, to whose ports Services lead as well.
func running(spec *corev1.PodSpec) []*corev1.Container {
	var all []*corev1.Container
	for i := range spec.InitContainers {
		if policy := spec.InitContainers[i].RestartPolicy; policy != nil && *policy == corev1.ContainerRestartPolicyAlways {
			all = append(all, &spec.InitContainers[i])
		}
	}
	for i := range spec.Containers {
		all = append(all, &spec.Containers[i])
	}
	return all
}

// fits says what in a pod the sidecar cannot be beside. rootSocket tells that the
// application is root and listens on a Unix socket.
func fits(spec *corev1.PodSpec, rootSocket bool) error {
	var errs []error
	if rootSocket {
		errs = append(errs, fmt.Errorf("runAsUser 0: the sidecar is never root, and cannot reach a socket of root's; give another user, or listen on loopback and say so with the annotation %s: 127.0.0.1:<port>", v1alpha1.AnnotationAppAddress))
	}
	if spec.HostNetwork {
		errs = append(errs, errors.New("hostNetwork: everybody on the node would call with the pod's identity; leave it out, or the label"))
	}
	for _, container := range running(spec) {
		for _, port := range container.Ports {
			if port.Name == v1alpha1.ServiceHTTPPort {
				errs = append(errs, fmt.Errorf("container %s: the port named %s is the sidecar's, to which Services lead; give yours another name", container.Name, port.Name))
			}
			switch port.ContainerPort {
			case sidecar.InboundPort, sidecar.EgressPort, sidecar.ReadyPort, sidecar.AdminPort:
				errs = append(errs, fmt.Errorf("container %s: port %d is the sidecar's; take another one", container.Name, port.ContainerPort))
			}
		}
		for _, mount := range container.VolumeMounts {
			if mount.MountPath == sidecar.AppDir {
				errs = append(errs, fmt.Errorf("container %s: %s is where the sidecar shares a directory; mount elsewhere", container.Name, mount.MountPath))
			}
		}
	}
	for _, volume := range spec.Volumes {
		if volume.Name == sidecar.VolumeApp || volume.Name == sidecar.VolumeMesh {
			errs = append(errs, fmt.Errorf("volume %s: the name is the sidecar's; take another one", volume.Name))
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
