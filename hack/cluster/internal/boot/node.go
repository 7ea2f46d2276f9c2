package boot

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/template"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lambdamesh/lambdamesh/hack/cluster/internal/host"
	"github.com/lambdamesh/lambdamesh/hack/cluster/internal/kube"
	"github.com/lambdamesh/lambdamesh/hack/cluster/internal/state"
)

// PauseImage is the first container of each pod. As any name, nodes look for it
// in the cluster's own registry first.
const PauseImage = "registry.k8s.io/pause:3.10"

const (
	containerdSocket = "/run/containerd/containerd.sock"
	cniDir           = "/etc/cni/net.d"
)

func runNode(ctx context.Context, s *state.State, n int, logger *slog.Logger) error {
	name := NodeName(n)
	root, err := newRoot(s, name)
	if err != nil {
		return err
	}
	if err := copyFiles(s.Path("pki"), root.dir+kubernetesDir,
		"ca.crt", name+".crt", name+".key", name+".kubeconfig", "kube-proxy.crt", "kube-proxy.key", "kube-proxy.kubeconfig", "volumes.crt", "volumes.key"); err != nil {
		return err
	}
	for file, content := range map[string]string{
		"/etc/containerd/config.toml":                 containerdConfig(),
		"/etc/containerd/certs.d/_default/hosts.toml": mirror(s),
	} {
		if err := root.write(file, content); err != nil {
			return err
		}
	}
	for file, config := range map[string]any{
		kubernetesDir + "kubelet.json":    kubeletConfig(s, n),
		kubernetesDir + "kube-proxy.json": kubeProxyConfig(s, n),
	} {
		data, err := json.MarshalIndent(config, "", "  ")
		if err != nil {
			return err
		}
		if err := root.write(file, string(data)); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(root.dir+cniDir, 0o755); err != nil {
		return err
	}
	if err := root.enter(); err != nil {
		return err
	}
	if err := network(s, s.Node(n)); err != nil {
		return err
	}
	if err := masquerade(ctx, s); err != nil {
		return err
	}
	v := newSupervisor("/var/log", logger)
	v.start("containerd", "--config=/etc/containerd/config.toml")
	client, err := kube.New(s.Server(), kubernetesDir, "kube-proxy")
	if err != nil {
		return err
	}
	// The kubelet ends when it finds no containerd, and waits seconds before it
	// tries an API server again.
	awaitSocket(ctx, containerdSocket)
	awaitAPI(ctx, client, logger)
	v.start("kubelet", "--config="+kubernetesDir+"kubelet.json", "--kubeconfig="+kubernetesDir+name+".kubeconfig",
		"--hostname-override="+name, "--node-ip="+s.Node(n).String(), "--root-dir=/var/lib/kubelet", "--cert-dir=/var/lib/kubelet/pki")
	v.start("kube-proxy", "--config="+kubernetesDir+"kube-proxy.json")
	volumes, err := kube.New(s.Server(), kubernetesDir, "volumes")
	if err != nil {
		return err
	}
	go provideVolumes(ctx, volumes, name, logger)
	route(ctx, client, name, logger, func(pods netip.Prefix) {
		if written, err := writeCNI(pods); err != nil {
			logger.Error("cannot write the network of pods", "error", err)
		} else if written {
			logger.Info("pods get addresses", "of", pods)
		}
	})
	return fmt.Errorf("%s ends: %w", name, context.Cause(ctx))
}

// masquerade gives what pods send out of the cluster the node's address; among
// pods their own stays.
func masquerade(ctx context.Context, s *state.State) error {
	nft := exec.CommandContext(ctx, host.Look("nft"), "-f", "-")
	nft.Stdin = strings.NewReader(fmt.Sprintf(`table ip lambdamesh-pods {
		chain postrouting {
			type nat hook postrouting priority srcnat
			ip saddr %[1]s ip daddr != %[1]s masquerade
		}
	}`, s.Pods()))
	if out, err := nft.CombinedOutput(); err != nil {
		return fmt.Errorf("masquerade pods: %s: %w", out, err)
	}
	return nil
}

func awaitSocket(ctx context.Context, path string) {
	for ctx.Err() == nil {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
		if err == nil {
			conn.Close()
			return
		}
		kube.Pause(ctx, 50*time.Millisecond)
	}
}

// writeCNI tells containerd the network of the node's pods, unless it knows it.
func writeCNI(pods netip.Prefix) (written bool, err error) {
	type object = map[string]any
	data, err := json.MarshalIndent(object{
		"cniVersion": "1.0.0",
		"name":       "pods",
		"plugins": []object{
			{"type": "ptp", "mtu": 1500, "ipam": object{
				"type": "host-local", "dataDir": "/run/cni-ipam", // a power cut frees all addresses
				"ranges": [][]object{{{"subnet": pods.String()}}}, "routes": []object{{"dst": "0.0.0.0/0"}},
			}},
			{"type": "portmap", "capabilities": object{"portMappings": true}},
		},
	}, "", "  ")
	if err != nil {
		return false, err
	}
	file := filepath.Join(cniDir, "10-pods.conflist")
	if known, err := os.ReadFile(file); err == nil && string(known) == string(data) {
		return false, nil
	}
	if err := os.WriteFile(file+".tmp", data, 0o600); err != nil {
		return false, err
	}
	return true, os.Rename(file+".tmp", file)
}

// mirror lets the cluster's registry answer for every registry's name, so that
// manifests keep the names that their images have elsewhere. What it lacks,
// containerd asks the named registry for.
func mirror(s *state.State) string {
	return fmt.Sprintf("[host.\"http://%s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", netip.AddrPortFrom(s.Switch(), RegistryPort))
}

func containerdConfig() string {
	var out strings.Builder
	err := template.Must(template.New("").Parse(containerdTemplate)).Execute(&out, map[string]any{
		"Socket": containerdSocket, "Pause": PauseImage, "CNI": cniDir, "Runc": host.Look("runc"),
		"RestrictOOM": !mayRaise(),
	})
	if err != nil {
		panic(err) // the template is a constant
	}
	return out.String()
}

// mayRaise says whether this root may make a process less likely to be killed
// than itself. Where it may not, runc fails unless containerd does not ask it to.
func mayRaise() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&header, &data[0]) == nil && data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

const containerdTemplate = `version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.erofs",
  "io.containerd.tracing.processor.v1.otlp", "io.containerd.nri.v1.nri",
]
[grpc]
  address = "{{.Socket}}"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{{.Pause}}"
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = "/etc/containerd/certs.d"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = {{.RestrictOOM}}
  enable_unprivileged_ports = true
  enable_unprivileged_icmp = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/opt/cni/bin"]
    conf_dir = "{{.CNI}}"
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
        BinaryName = "{{.Runc}}"
        SystemdCgroup = false
`

func kubeletConfig(s *state.State, n int) map[string]any {
	type object = map[string]any
	return object{
		"apiVersion":         "kubelet.config.k8s.io/v1beta1",
		"kind":               "KubeletConfiguration",
		"address":            s.Node(n).String(),
		"port":               10250,
		"healthzBindAddress": "127.0.0.1",
		"healthzPort":        10248,
		"tlsCertFile":        kubernetesDir + NodeName(n) + ".crt",
		"tlsPrivateKeyFile":  kubernetesDir + NodeName(n) + ".key",
		"authentication": object{
			"anonymous": object{"enabled": false}, "webhook": object{"enabled": true}, "x509": object{"clientCAFile": kubernetesDir + "ca.crt"},
		},
		"authorization": object{"mode": "Webhook"},
		"clusterDNS":    []string{s.DNS().String()},
		"clusterDomain": "cluster.local",
		"resolvConf":    "/etc/resolv.conf",

		"volumePluginDir": "/var/lib/kubelet/volumeplugins", // its default is in /usr

		"containerRuntimeEndpoint": "unix://" + containerdSocket,
		"cgroupDriver":             "cgroupfs",
		"cgroupRoot":               filepath.Join(s.Cgroup(), NodeName(n)),
		"failCgroupV1":             false,
		"failSwapOn":               false,
		"makeIPTablesUtilChains":   false,
		"seccompDefault":           true,
		// The disk and the memory are the machine's: a node that evicts pods for
		// want of them has the wrong idea.
		"evictionHard":                              object{"memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%"},
		"imageGCHighThresholdPercent":               100,
		"imageGCLowThresholdPercent":                99,
		"localStorageCapacityIsolation":             true,
		"serializeImagePulls":                       false,
		"registryPullQPS":                           0,
		"kubeAPIQPS":                                100,
		"kubeAPIBurst":                              200,
		"nodeStatusUpdateFrequency":                 "5s",
		"nodeLeaseDurationSeconds":                  12, // renewed every 3 s
		"syncFrequency":                             "10s",
		"shutdownGracePeriod":                       "0s",
		"configMapAndSecretChangeDetectionStrategy": "Watch",
	}
}

func kubeProxyConfig(s *state.State, n int) map[string]any {
	type object = map[string]any
	return object{
		"apiVersion":         "kubeproxy.config.k8s.io/v1alpha1",
		"kind":               "KubeProxyConfiguration",
		"mode":               "nftables",
		"clientConnection":   object{"kubeconfig": kubernetesDir + "kube-proxy.kubeconfig"},
		"hostnameOverride":   NodeName(n),
		"clusterCIDR":        s.Pods().String(),
		"detectLocalMode":    "ClusterCIDR",
		"bindAddress":        s.Node(n).String(),
		"nodePortAddresses":  []string{"primary"},
		"healthzBindAddress": "127.0.0.1:10256",
		"metricsBindAddress": "127.0.0.1:10249",
		// These settings belong to the machine, not to a namespace of it.
		"conntrack": object{"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
		"nftables":  object{"minSyncPeriod": "100ms", "syncPeriod": "30s"},
	}
}
