package targets

import "net/netip"

// kind of an address, by who may call it.
type kind int

const (
	// never is called, whatever is allowed.
	never kind = iota
	// public addresses are allowed unless denied.
	public
	// private addresses, loopback ones and others that are not public are
	// allowed when an entry names them.
	private
	loopback
	special
)

// ranges are what is not public, after the IANA special-purpose registries
// (RFC 6890) and the addresses of cloud metadata services. The first that
// contains an address decides.
//
//nolint:gochecknoglobals // a table
var ranges = []struct {
	prefix netip.Prefix
	what   string
	kind   kind
}{
	{netip.MustParsePrefix("100.100.100.200/32"), "a metadata service", never},
	{netip.MustParsePrefix("168.63.129.16/32"), "a metadata service", never},
	{netip.MustParsePrefix("192.0.0.192/32"), "a metadata service", never},
	{netip.MustParsePrefix("fd00:ec2::254/128"), "a metadata service", never},
	{netip.MustParsePrefix("fd20:ce::254/128"), "a metadata service", never},
	{netip.MustParsePrefix("169.254.169.254/32"), "a metadata service", never},

	{netip.MustParsePrefix("0.0.0.0/8"), "an unspecified address", never},
	{netip.MustParsePrefix("169.254.0.0/16"), "a link-local address", never},
	{netip.MustParsePrefix("224.0.0.0/4"), "a multicast address", never},
	{netip.MustParsePrefix("240.0.0.0/4"), "a reserved or broadcast address", never},
	{netip.MustParsePrefix("127.0.0.0/8"), "a loopback address", loopback},
	{netip.MustParsePrefix("10.0.0.0/8"), "a private address", private},
	{netip.MustParsePrefix("172.16.0.0/12"), "a private address", private},
	{netip.MustParsePrefix("192.168.0.0/16"), "a private address", private},
	{netip.MustParsePrefix("100.64.0.0/10"), "a shared (carrier) address", private},
	{netip.MustParsePrefix("192.0.0.0/24"), "a special-purpose address", special},
	{netip.MustParsePrefix("192.0.2.0/24"), "a documentation address", special},
	{netip.MustParsePrefix("192.88.99.0/24"), "a 6to4 relay", special},
	{netip.MustParsePrefix("198.18.0.0/15"), "a benchmarking address", special},
	{netip.MustParsePrefix("198.51.100.0/24"), "a documentation address", special},
	{netip.MustParsePrefix("203.0.113.0/24"), "a documentation address", special},
	{netip.MustParsePrefix("0.0.0.0/0"), "", public},

	{netip.MustParsePrefix("::/128"), "an unspecified address", never},
	{netip.MustParsePrefix("::1/128"), "a loopback address", loopback},
	{netip.MustParsePrefix("fe80::/10"), "a link-local address", never},
	{netip.MustParsePrefix("ff00::/8"), "a multicast address", never},
	{netip.MustParsePrefix("fc00::/7"), "a private address", private},
	// Addresses that stand for IPv4 ones, which a tunnel on the way would reach.
	{netip.MustParsePrefix("2002::/16"), "a 6to4 address", never},
	{netip.MustParsePrefix("2001::/32"), "a Teredo address", never},
	{netip.MustParsePrefix("2001::/23"), "a special-purpose address", special},
	{netip.MustParsePrefix("2001:db8::/32"), "a documentation address", special},
	{netip.MustParsePrefix("3fff::/20"), "a documentation address", special},
	{netip.MustParsePrefix("2000::/3"), "", public},
	{netip.MustParsePrefix("::/0"), "no public address", never},
}

// classify says what a [Canonical] address is.
func classify(addr netip.Addr) (what string, k kind) {
	for _, r := range ranges {
		if r.prefix.Contains(addr) {
			return r.what, r.kind
		}
	}
	return "no address", never
}

// nat64 is the well-known prefix of NAT64 gateways (RFC 6052): DNS64 resolvers
// answer so for public hosts.
//
//nolint:gochecknoglobals // a constant
var nat64 = netip.MustParsePrefix("64:ff9b::/96")

// Canonical returns the address that is reached by calling addr: the IPv4 one
// that an IPv4-mapped or a NAT64 one stands for, and addr itself otherwise,
// without its zone. Whatever is decided about an address is decided about this
// one.
func Canonical(addr netip.Addr) netip.Addr {
	addr = addr.WithZone("").Unmap()
	if !nat64.Contains(addr) {
		return addr
	}
	b := addr.As16()
	return netip.AddrFrom4([4]byte(b[12:]))
}
