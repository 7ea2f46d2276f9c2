package members

import (
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
	if err := fits(spec); err != nil {
		return err
	}
	user, group := userOf(spec)
	spec.InitContainers = append([]corev1.Container{config.Container(user, group)}, spec.InitContainers...)
	spec.Volumes = append(spec.Volumes, sidecar.Volumes()...)
	for i := range spec.Containers {
		container := &spec.Containers[i]
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
	return nil
}

// fits says what in a pod the sidecar cannot be beside.
func fits(spec *corev1.PodSpec) error {
	var errs []error
	if spec.HostNetwork {
		errs = append(errs, errors.New("hostNetwork: everybody on the node would call with the pod's identity; leave it out, or the label"))
	}
	for _, container := range spec.Containers {
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

// userOf the first container, as whom the sidecar runs as well: a socket is its
// owner's. Root's it is never; nil is what the proxy's image says.
func userOf(spec *corev1.PodSpec) (user, group *int64) {
	if pod := spec.SecurityContext; pod != nil {
		user, group = pod.RunAsUser, pod.RunAsGroup
	}
	if len(spec.Containers) > 0 && spec.Containers[0].SecurityContext != nil {
		own := spec.Containers[0].SecurityContext
		if own.RunAsUser != nil {
			user = own.RunAsUser
		}
		if own.RunAsGroup != nil {
			group = own.RunAsGroup
		}
	}
	if user == nil || *user == 0 {
		return nil, nil
	}
	return user, group
}

// listenAt is an endpoint in the form of the variable.
func listenAt(endpoint string) string {
	if path, ok := strings.CutPrefix(endpoint, "unix://"); ok {
		return "unix:" + path
	}
	return "tcp:" + endpoint
}
