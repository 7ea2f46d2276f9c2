package boot

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"

	"github.com/lambdamesh/lambdamesh/hack/cluster/internal/kube"
)

const (
	// StorageClass is the default one: folders on the disk of the node that the
	// scheduler chose for the first pod of a claim. They outlive the node's kill.
	StorageClass = "local"
	// Provisioner is what the class names, and what volumes say made them.
	Provisioner = "lambdamesh.dev/local"

	volumesDir         = "/var/lib/volumes"
	selectedAnnotation = "volume.kubernetes.io/selected-node"
	provisionedBy      = "pv.kubernetes.io/provisioned-by"
	hostnameLabel      = "kubernetes.io/hostname"
)

// provideVolumes makes the volumes whose claims were given to this node, and
// removes those that were released. Folders have no limit of size: the disk is
// the machine's.
func provideVolumes(ctx context.Context, client *kube.Client, node string, logger *slog.Logger) {
	go client.EachClaim(ctx, func(claims []kube.Claim) {
		for _, claim := range claims {
			if claim.Spec.StorageClassName != StorageClass || claim.Spec.VolumeName != "" || claim.Metadata.Annotations[selectedAnnotation] != node {
				continue
			}
			if err := provide(ctx, client, node, claim); err != nil {
				logger.Error("cannot make the volume of a claim", "namespace", claim.Metadata.Namespace, "claim", claim.Metadata.Name, "error", err)
			}
		}
	})
	client.EachVolume(ctx, func(volumes []kube.Volume) {
		for _, volume := range volumes {
			if volume.Status.Phase != "Released" || volume.Spec.ReclaimPolicy != "Delete" || volume.Metadata.Labels[hostnameLabel] != node || volume.Metadata.Annotations[provisionedBy] != Provisioner {
				continue
			}
			if err := removeVolume(ctx, client, volume); err != nil {
				logger.Error("cannot remove a released volume", "volume", volume.Metadata.Name, "error", err)
			}
		}
	})
}

func provide(ctx context.Context, client *kube.Client, node string, claim kube.Claim) error {
	if mode := claim.Spec.VolumeMode; mode != "" && mode != "Filesystem" {
		return fmt.Errorf("a volume of mode %s is no folder", mode)
	}
	volume := kube.Volume{
		Metadata: kube.ObjectMeta{
			Name:        "pvc-" + claim.Metadata.UID,
			Labels:      map[string]string{hostnameLabel: node},
			Annotations: map[string]string{provisionedBy: Provisioner},
		},
		Spec: kube.VolumeSpec{
			Capacity: maps.Clone(claim.Spec.Resources.Requests), AccessModes: claim.Spec.AccessModes, VolumeMode: "Filesystem",
			StorageClassName: StorageClass, ReclaimPolicy: "Delete",
			ClaimRef: map[string]string{
				"apiVersion": "v1", "kind": "PersistentVolumeClaim",
				"namespace": claim.Metadata.Namespace, "name": claim.Metadata.Name, "uid": claim.Metadata.UID,
			},
			NodeAffinity: map[string]any{"required": map[string]any{"nodeSelectorTerms": []any{
				map[string]any{"matchExpressions": []any{map[string]any{"key": hostnameLabel, "operator": "In", "values": []string{node}}}},
			}}},
		},
	}
	volume.Spec.Local.Path = folder(volume)
	if err := os.MkdirAll(volume.Spec.Local.Path, 0o755); err != nil {
		return err
	}
	// As a new disk would be: pods that run as nobody in particular write to it.
	if err := os.Chmod(volume.Spec.Local.Path, 0o777); err != nil {
		return err
	}
	return client.CreateVolume(ctx, volume)
}

func removeVolume(ctx context.Context, client *kube.Client, volume kube.Volume) error {
	// The name is what an object says: it must not lead out of our folder.
	if !regexp.MustCompile(`^pvc-[0-9a-f-]+$`).MatchString(volume.Metadata.Name) {
		return fmt.Errorf("%s is no name of ours", volume.Metadata.Name)
	}
	if err := os.RemoveAll(folder(volume)); err != nil {
		return err
	}
	return client.DeleteVolume(ctx, volume.Metadata.Name)
}

func folder(volume kube.Volume) string { return filepath.Join(volumesDir, volume.Metadata.Name) }
