// Package boot is the first process of each part of a cluster, and so what an
// init system is to a machine: it makes the root file system and the network,
// starts the daemons, starts them again when they end, and takes the exit codes
// of orphans. Killing it kills the part.
//
// The parts are the switch (a bridge that joins the others, and the registry),
// the control plane and the nodes. Each has a network, a PID, a mount, an IPC
// and a UTS namespace of its own; the control plane and the nodes see of the
// machine's file system only its programs and libraries.
package boot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/lambdamesh/lambdamesh/hack/cluster/internal/host"
	"github.com/lambdamesh/lambdamesh/hack/cluster/internal/kube"
	"github.com/lambdamesh/lambdamesh/hack/cluster/internal/state"
)

// The parts that are no nodes.
const (
	Switch       = "switch"
	ControlPlane = "control-plane"
)

// NodeName is the name of node n, of the part and of its Node alike.
func NodeName(n int) string { return "node" + strconv.Itoa(n) }

// Address is the address of the control plane or a node.
func Address(s *state.State, part string) netip.Addr {
	if n, err := strconv.Atoi(strings.TrimPrefix(part, "node")); err == nil {
		return s.Node(n)
	}
	return s.ControlPlane()
}

// Files that a part gets from whoever starts it.
const (
	startPipe        = 3 // one byte says that its network is there; its end without one, that its starter died
	registryListener = 4 // the switch's: on the machine's loopback, which its own network is not
)

// Eth is the interface of the control plane and of nodes.
const Eth = "eth0"

// Namespaces are those a part is started in.
const Namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS

// Run is the first process of a part. It returns only what went wrong.
func Run(ctx context.Context, dir, part string) error {
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	unix.CloseOnExec(startPipe)
	s, err := state.Open(dir)
	if err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(part)); err != nil {
		return err
	}
	if part == Switch {
		return runSwitch(ctx, s)
	}
	if err := awaitStart(); err != nil {
		return err
	}
	n, node := strings.CutPrefix(part, "node")
	if !node {
		return runControlPlane(ctx, s, logger)
	}
	number, err := strconv.Atoi(n)
	if err != nil || number < 1 {
		return fmt.Errorf("%q is no part of a cluster", part)
	}
	return runNode(ctx, s, number, logger)
}

func awaitStart() error {
	pipe := os.NewFile(startPipe, "start")
	defer pipe.Close()
	if _, err := io.ReadFull(pipe, make([]byte, 1)); err != nil {
		return errors.New("whoever started this ended before it was connected")
	}
	return nil
}

// runSwitch makes the bridge before it waits: the starter joins others to it.
func runSwitch(ctx context.Context, s *state.State) error {
	unix.CloseOnExec(registryListener)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = host.Bridge
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return err
	}
	bridge, err := netlink.LinkByName(host.Bridge)
	if err != nil {
		return err
	}
	if err := host.Address(bridge, netip.PrefixFrom(s.Switch(), s.NodeNetwork().Bits())); err != nil {
		return err
	}
	loopback, err := net.FileListener(os.NewFile(registryListener, "registry"))
	if err != nil {
		return fmt.Errorf("take the registry's listener: %w", err)
	}
	inside, err := (&net.ListenConfig{}).Listen(ctx, "tcp", netip.AddrPortFrom(s.Switch(), RegistryPort).String())
	if err != nil {
		return err
	}
	handler, err := newRegistry(s)
	if err != nil {
		return err
	}
	failed := make(chan error, 2)
	for _, listener := range []net.Listener{loopback, inside} {
		go func() { failed <- serveRegistry(listener, handler) }()
	}
	if err := awaitStart(); err != nil {
		return err
	}
	return <-failed
}

// network gives the part its address and the way out through the machine.
func network(s *state.State, address netip.Addr) error {
	for name, prefix := range map[string]netip.Prefix{
		"lo": netip.MustParsePrefix("127.0.0.1/8"),
		Eth:  netip.PrefixFrom(address, s.NodeNetwork().Bits()),
	} {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find the interface %s: %w", name, err)
		}
		if err := host.Address(link, prefix); err != nil {
			return err
		}
	}
	if err := netlink.RouteReplace(&netlink.Route{Gw: s.Machine().AsSlice()}); err != nil {
		return fmt.Errorf("set the default route: %w", err)
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644)
}

// route keeps the routes to the pods of the other nodes; it calls back with the
// part's own Node whenever it has a range of pods.
func route(ctx context.Context, client *kube.Client, self string, logger *slog.Logger, own func(netip.Prefix)) {
	known := map[netip.Prefix]netip.Addr{}
	client.EachChange(ctx, func(nodes []kube.Node) {
		wanted := map[netip.Prefix]netip.Addr{}
		for _, node := range nodes {
			address, ok := node.Address()
			switch pods := node.Spec.PodCIDR; {
			case !ok || !pods.IsValid():
			case node.Metadata.Name == self:
				own(pods)
			default:
				wanted[pods] = address
			}
		}
		for pods, address := range wanted {
			if known[pods] == address {
				continue
			}
			if err := netlink.RouteReplace(&netlink.Route{Dst: ipNet(pods), Gw: address.AsSlice()}); err != nil {
				logger.Error("cannot route to the pods of a node", "pods", pods, "node", address, "error", err)
				continue
			}
			known[pods] = address
		}
		for pods := range known {
			if _, ok := wanted[pods]; !ok {
				if err := netlink.RouteDel(&netlink.Route{Dst: ipNet(pods)}); err != nil && !errors.Is(err, syscall.ESRCH) {
					logger.Error("cannot remove the route to the pods of a node", "pods", pods, "error", err)
				}
				delete(known, pods)
			}
		}
	})
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}
}

// copyFiles copies files from one folder to another.
func copyFiles(from, to string, names ...string) error {
	if err := os.MkdirAll(to, 0o700); err != nil {
		return err
	}
	for _, name := range names {
		data, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(to, name), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}
