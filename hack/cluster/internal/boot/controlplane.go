package boot

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/lambdamesh/lambdamesh/hack/cluster/internal/kube"
	"github.com/lambdamesh/lambdamesh/hack/cluster/internal/state"
)

// kubernetesDir holds certificates and configurations in every part.
const kubernetesDir = "/etc/kubernetes/"

func runControlPlane(ctx context.Context, s *state.State, logger *slog.Logger) error {
	root, err := newRoot(s, ControlPlane)
	if err != nil {
		return err
	}
	if err := copyFiles(s.Path("pki"), root.dir+kubernetesDir,
		"ca.crt", "ca.key", "apiserver.crt", "apiserver.key", "kubelet-client.crt", "kubelet-client.key",
		"front-proxy.crt", "front-proxy.key", "service-account.key", "kube-proxy.crt", "kube-proxy.key",
		"controller-manager.kubeconfig", "scheduler.kubeconfig"); err != nil {
		return err
	}
	if err := root.enter(); err != nil {
		return err
	}
	if err := network(s, s.ControlPlane()); err != nil {
		return err
	}
	v := newSupervisor("/var/log", logger)
	// Only the processes of this part reach its loopback, so that etcd needs no
	// certificates. A power cut of the part loses nothing that was written; one
	// of the machine ends the cluster anyway: no fsync.
	const etcd, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
	v.start("etcd", "--name=etcd", "--data-dir=/var/lib/etcd", "--unsafe-no-fsync",
		"--listen-client-urls="+etcd, "--advertise-client-urls="+etcd,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=etcd="+peer)
	address := s.ControlPlane().String()
	v.start("kube-apiserver", "--etcd-servers="+etcd,
		"--bind-address="+address, "--advertise-address="+address, "--secure-port=6443",
		"--tls-cert-file="+kubernetesDir+"apiserver.crt", "--tls-private-key-file="+kubernetesDir+"apiserver.key",
		"--client-ca-file="+kubernetesDir+"ca.crt",
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file="+kubernetesDir+"service-account.key", "--service-account-signing-key-file="+kubernetesDir+"service-account.key",
		"--service-cluster-ip-range="+s.Services().String(),
		"--kubelet-client-certificate="+kubernetesDir+"kubelet-client.crt", "--kubelet-client-key="+kubernetesDir+"kubelet-client.key",
		"--kubelet-certificate-authority="+kubernetesDir+"ca.crt", "--kubelet-preferred-address-types=InternalIP",
		"--requestheader-client-ca-file="+kubernetesDir+"ca.crt", "--requestheader-allowed-names=front-proxy",
		"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group", "--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file="+kubernetesDir+"front-proxy.crt", "--proxy-client-key-file="+kubernetesDir+"front-proxy.key",
		// No kube-proxy runs here: webhooks are called at their pods.
		"--enable-aggregator-routing=true", "--profiling=false")
	client, err := kube.New(s.Server(), kubernetesDir, "kube-proxy")
	if err != nil {
		return err
	}
	awaitAPI(ctx, client, logger)
	v.start("kube-controller-manager", "--kubeconfig="+kubernetesDir+"controller-manager.kubeconfig", "--use-service-account-credentials=true",
		"--leader-elect=false", "--bind-address=127.0.0.1", "--profiling=false",
		"--root-ca-file="+kubernetesDir+"ca.crt", "--service-account-private-key-file="+kubernetesDir+"service-account.key",
		"--cluster-signing-cert-file="+kubernetesDir+"ca.crt", "--cluster-signing-key-file="+kubernetesDir+"ca.key",
		"--allocate-node-cidrs=true", "--cluster-cidr="+s.Pods().String(), "--node-cidr-mask-size=24", "--service-cluster-ip-range="+s.Services().String(),
		"--kube-api-qps=200", "--kube-api-burst=400", "--flex-volume-plugin-dir=/var/lib/kubelet/volumeplugins",
		// A node that is away is told so after 20 s and not 50: tests wait for it.
		"--node-monitor-period=2s", "--node-monitor-grace-period=20s")
	v.start("kube-scheduler", "--kubeconfig="+kubernetesDir+"scheduler.kubeconfig",
		"--leader-elect=false", "--bind-address=127.0.0.1", "--profiling=false", "--kube-api-qps=200", "--kube-api-burst=400")
	route(ctx, client, "", logger, func(netip.Prefix) {})
	return fmt.Errorf("the control plane ends: %w", context.Cause(ctx))
}

func awaitAPI(ctx context.Context, client *kube.Client, logger *slog.Logger) {
	for ctx.Err() == nil {
		if client.Healthy(ctx) == nil {
			logger.Info("the API server is ready")
			return
		}
		kube.Pause(ctx, 100*time.Millisecond)
	}
}
