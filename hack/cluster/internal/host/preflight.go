// Package host is all that a cluster changes on the machine outside of its own
// namespaces and folder, and how that is undone: one interface, one table of
// nftables, forwarding, cgroups, and the processes.
package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/lambdamesh/lambdamesh/hack/cluster/internal/state"
)

// Path finds programs that an administrator's shell finds.
const Path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// ProbeCommand is the argument with which the program runs Probe.
const ProbeCommand = "probe"

// Lack is what a machine cannot do for nodes, and what nobody mends from here: a
// privilege, or a part of the kernel. Whatever else goes wrong is none.
type Lack struct{ error }

// Unwrap gives way to the cause.
func (l Lack) Unwrap() error { return l.error }

func lack(format string, args ...any) error { return Lack{fmt.Errorf(format, args...)} }

// ExitLack is the exit code of the program for a Lack.
const ExitLack = 77

// Check says in one line why nodes cannot run here. A Lack comes first: what else
// is missing matters where it can be mended.
func Check(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return lack("real nodes need root: run it as root, or `sudo env \"PATH=$PATH\" make cluster`")
	}
	if err := checkCgroups(); err != nil {
		return err
	}
	if err := checkDisk(state.Root()); err != nil {
		return err
	}
	if err := probe(ctx); err != nil {
		return err
	}
	var missing []string
	for _, p := range []struct{ program, pkg string }{
		{"runc", "runc"}, {"nft", "nftables"}, {"iptables", "iptables"}, {"mount", "mount"}, {"nsenter", "util-linux"},
	} {
		if Look(p.program) == "" {
			missing = append(missing, p.pkg)
		}
	}
	if CNI() == "" {
		missing = append(missing, "containernetworking-plugins")
	}
	if missing != nil {
		return fmt.Errorf("missing packages: %[1]s (Debian, Ubuntu: apt-get install --no-install-recommends %[1]s)", strings.Join(missing, " "))
	}
	return nil
}

// probe runs Probe in namespaces of its own, so that trying changes nothing.
func probe(ctx context.Context) error {
	probe := exec.CommandContext(ctx, "/proc/self/exe", ProbeCommand)
	probe.Env = []string{"PATH=" + Path}
	probe.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC}
	out, err := probe.CombinedOutput()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		said := strings.TrimPrefix(strings.TrimSpace(string(out)), "cluster: ")
		if exit.ExitCode() == ExitLack {
			return lack("%s", said)
		}
		return fmt.Errorf("try the kernel: %w: %s", err, said)
	}
	// EINVAL: a kernel without one of the namespaces; ENOSPC: no more of them allowed.
	for _, refusal := range []error{unix.EPERM, unix.EACCES, unix.EINVAL, unix.ENOSYS, unix.ENOSPC} {
		if errors.Is(err, refusal) {
			return lack("this root may not make namespaces (%w): inside a container it has to be a privileged one", err)
		}
	}
	if err != nil {
		return fmt.Errorf("try the kernel: %w", err)
	}
	return nil
}

// checkDisk says whether images can be unpacked where clusters will be: layers of
// an overlay cannot lie on an overlay, as the root of a container is.
func checkDisk(dir string) error {
	for {
		var info unix.Statfs_t
		err := unix.Statfs(dir, &info)
		if err == nil && info.Type == unix.OVERLAYFS_SUPER_MAGIC {
			return lack("%s is on overlayfs, which holds no image layers: set LAMBDAMESH_CLUSTERS to a folder on a disk or a volume", dir)
		}
		if err == nil || dir == "/" {
			return err
		}
		dir = filepath.Dir(dir) // it is not there yet
	}
}

// Probe tries what nodes do with the kernel. It runs in namespaces of its own.
func Probe(ctx context.Context) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return lack("the kernel refuses mounts: %w", err)
	}
	if err := unix.Mount("tmpfs", "/tmp", "tmpfs", 0, ""); err != nil {
		return lack("the kernel lacks tmpfs: %w", err)
	}
	for _, dir := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join("/tmp", dir), 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("overlay", "/tmp/merged", "overlay", 0, "lowerdir=/tmp/lower,upperdir=/tmp/upper,workdir=/tmp/work"); err != nil {
		return lack("the kernel lacks overlayfs (modprobe overlay): %w", err)
	}
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "b"}}); err != nil {
		return lack("the kernel lacks bridges (modprobe bridge): %w", err)
	}
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "v"}, PeerName: "w"}); err != nil {
		return lack("the kernel lacks veth pairs (modprobe veth): %w", err)
	}
	if Look("nft") == "" {
		return nil // a package: Check says so
	}
	// The kinds of rules that kube-proxy writes.
	err := nft(ctx, `table ip probe {
		map services { type ipv4_addr . inet_proto . inet_service : verdict; }
		chain endpoints { meta l4proto tcp dnat to 10.0.0.1:80; }
		chain prerouting { type nat hook prerouting priority dstnat; fib daddr type local numgen random mod 2 vmap { 0 : goto endpoints, 1 : goto endpoints }; ip daddr . meta l4proto . th dport vmap @services; }
		chain postrouting { type nat hook postrouting priority srcnat; ct state new masquerade fully-random; }
	}`)
	if err != nil && strings.Contains(err.Error(), "syntax error") {
		return err // ours, or nft's: it was not the kernel that was asked
	}
	if err != nil {
		return lack("the kernel lacks nftables with NAT (nf_tables, nft_nat, nft_fib, nft_masq, nft_numgen): %w", err)
	}
	return nil
}

// Look is where a program is, or "".
func Look(program string) string {
	for _, dir := range filepath.SplitList(Path) {
		path := filepath.Join(dir, program)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path
		}
	}
	return ""
}

// CNI is the folder of the CNI plugins, or "".
func CNI() string {
	for _, dir := range []string{"/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"} {
		complete := true
		for _, plugin := range []string{"ptp", "host-local", "portmap", "loopback"} {
			_, err := os.Stat(filepath.Join(dir, plugin))
			complete = complete && err == nil
		}
		if complete {
			return dir
		}
	}
	return ""
}

// nft runs a script: all of it or nothing.
func nft(ctx context.Context, script string) error {
	cmd := exec.CommandContext(ctx, Look("nft"), "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		first, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		return fmt.Errorf("nft: %s", first)
	}
	return nil
}
