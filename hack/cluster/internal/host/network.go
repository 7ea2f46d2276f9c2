package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/lambdamesh/lambdamesh/hack/cluster/internal/state"
)

// FreeBlock finds a /16 that no route of this machine and no other cluster uses.
func FreeBlock(taken []netip.Prefix) (netip.Prefix, error) {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{}, 0)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("list the routes: %w", err)
	}
	for _, route := range routes {
		if route.Dst == nil {
			continue
		}
		address, ok := netip.AddrFromSlice(route.Dst.IP.To4())
		if ones, _ := route.Dst.Mask.Size(); ok && ones > 0 {
			taken = append(taken, netip.PrefixFrom(address, ones))
		}
	}
	return firstFree(taken)
}

func firstFree(taken []netip.Prefix) (netip.Prefix, error) {
	// Few use the upper part of 10/8; the other ranges are for machines with a
	// route to all of it, as a VPN makes.
	var candidates [][2]byte
	for second := byte(210); second < 250; second++ {
		candidates = append(candidates, [2]byte{10, second})
	}
	for second := byte(20); second < 32; second++ {
		candidates = append(candidates, [2]byte{172, second})
	}
	candidates = append(candidates, [2]byte{198, 18}, [2]byte{198, 19})
	for _, c := range candidates {
		block := netip.PrefixFrom(netip.AddrFrom4([4]byte{c[0], c[1]}), 16)
		free := true
		for _, other := range taken {
			free = free && !block.Overlaps(other)
		}
		if free {
			return block, nil
		}
	}
	return netip.Prefix{}, errors.New("no /16 is free among 10.210-249, 172.20-31 and 198.18-19: this machine has routes to all of them; name one with --network")
}

// Nameservers are those of this machine that others can reach too.
func Nameservers() []netip.Addr {
	// Where the first one names systemd-resolved, the second has what it asks.
	for _, file := range []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"} {
		data, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		if found := nameservers(string(data)); found != nil {
			return found
		}
	}
	return nil
}

func nameservers(resolvConf string) (found []netip.Addr) {
	for line := range strings.Lines(resolvConf) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		// The nodes have no IPv6.
		if a, err := netip.ParseAddr(fields[1]); err == nil && a.Is4() && !a.IsLoopback() && !a.IsUnspecified() && len(found) < 3 {
			found = append(found, a)
		}
	}
	return found
}

// Connect makes the machine's interface into the switch's namespace, and lets
// nodes out through the machine.
func Connect(ctx context.Context, s *state.State, switchPID int) error {
	if err := Join(s.Link(), s.Machine(), 0, "machine", switchPID); err != nil {
		return err
	}
	link, err := netlink.LinkByName(s.Link())
	if err != nil {
		return err
	}
	if err := Address(link, netip.PrefixFrom(s.Machine(), s.NodeNetwork().Bits())); err != nil {
		return err
	}
	if err := nft(ctx, fmt.Sprintf(`table ip %s {
		chain postrouting {
			type nat hook postrouting priority srcnat
			ip saddr %s oifname != %q masquerade
		}
	}`, s.Table(), s.NodeNetwork(), s.Link())); err != nil {
		return fmt.Errorf("make the table %s: %w", s.Table(), err)
	}
	if err := change("/proc/sys/net/ipv4/ip_forward", "1"); err != nil {
		return err
	}
	return openFirewall(ctx, s)
}

// openFirewall lets nodes out where something, Docker mostly, drops what is forwarded.
func openFirewall(ctx context.Context, s *state.State) error {
	policy, err := exec.CommandContext(ctx, Look("iptables"), "-w", "-S", "FORWARD").Output()
	if err != nil || !strings.Contains(string(policy), "-P FORWARD DROP") {
		return nil //nolint:nilerr // without iptables in the kernel it drops nothing
	}
	s.Firewall = true
	if err := s.Save(); err != nil {
		return err
	}
	for _, rule := range forwardRules(s) {
		if out, err := iptables(ctx, "-I", rule); err != nil {
			return fmt.Errorf("let nodes through the chain FORWARD: %s: %w", out, err)
		}
	}
	return nil
}

func forwardRules(s *state.State) [][]string {
	return [][]string{{"-i", s.Link(), "-j", "ACCEPT"}, {"-o", s.Link(), "-j", "ACCEPT"}}
}

func iptables(ctx context.Context, command string, rule []string) ([]byte, error) {
	return exec.CommandContext(ctx, Look("iptables"), append([]string{"-w", command, "FORWARD"}, rule...)...).CombinedOutput()
}

// Disconnect undoes Connect.
func Disconnect(ctx context.Context, s *state.State) error {
	var errs []error
	if s.Firewall {
		for _, rule := range forwardRules(s) {
			if _, err := iptables(ctx, "-C", rule); err != nil {
				continue // it is not there
			}
			if out, err := iptables(ctx, "-D", rule); err != nil {
				errs = append(errs, fmt.Errorf("remove a rule from FORWARD: %s: %w", out, err))
			}
		}
	}
	if exec.CommandContext(ctx, Look("nft"), "list", "table", "ip", s.Table()).Run() == nil {
		errs = append(errs, nft(ctx, "delete table ip "+s.Table()))
	}
	errs = append(errs, removeLink(s.Link()))
	return errors.Join(errs...)
}

func removeLink(name string) error {
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if missing := (netlink.LinkNotFoundError{}); errors.As(err, &missing) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove the interface %s: %w", name, err)
	}
	return nil
}

// Join makes a veth pair: `name` in the namespace of process `pid` (0: here),
// and `port` as a port of the bridge in that of the switch. The one who has it
// gives it the address.
func Join(name string, address netip.Addr, pid int, port string, switchPID int) error {
	handle, err := netns.GetFromPid(switchPID)
	if err != nil {
		return fmt.Errorf("enter the network of the switch: %w", err)
	}
	defer func() { _ = handle.Close() }()
	inside, err := netlink.NewHandleAt(handle, unix.NETLINK_ROUTE) // not every kernel has the other families
	if err != nil {
		return fmt.Errorf("enter the network of the switch: %w", err)
	}
	defer inside.Close()
	bridge, err := inside.LinkByName(Bridge)
	if err != nil {
		return ErrNoBridge
	}
	// One with the same name is of a node that died a moment ago: the kernel
	// removes it, later.
	if old, err := inside.LinkByName(port); err == nil {
		_ = inside.LinkDel(old)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	// The same one after a power cut, as of a real card: others know it still.
	attrs.HardwareAddr = append(net.HardwareAddr{0x02, 0x6c}, address.AsSlice()...)
	if pid != 0 {
		attrs.Namespace = netlink.NsPid(pid)
	}
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: port, PeerNamespace: netlink.NsPid(switchPID)}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("make the interface %s of %s: %w", name, port, err)
	}
	link, err := inside.LinkByName(port)
	if err != nil {
		return fmt.Errorf("find the port %s of the switch: %w", port, err)
	}
	if err := inside.LinkSetMaster(link, bridge); err != nil {
		return fmt.Errorf("join %s to the switch: %w", port, err)
	}
	return inside.LinkSetUp(link)
}

// Bridge is the bridge in the switch's namespace.
const Bridge = "nodes"

// ErrNoBridge says that the switch has not made it yet.
var ErrNoBridge = errors.New("the switch has no bridge")

// Address gives a link its address and sets it up.
func Address(link netlink.Link, prefix netip.Prefix) error {
	address, err := netlink.ParseAddr(prefix.String())
	if err != nil {
		return err
	}
	if err := netlink.AddrReplace(link, address); err != nil {
		return fmt.Errorf("give %s the address %s: %w", link.Attrs().Name, prefix, err)
	}
	return netlink.LinkSetUp(link)
}
