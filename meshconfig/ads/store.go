package ads

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// Key names a resource of a target.
type Key struct {
	Type resource.Type
	Name string
}

// Item is a resource that was checked and serialized. It never changes, and may
// be served to any number of targets.
type Item struct {
	key Key
	item
}

// Key of the item.
func (i *Item) Key() Key { return i.key }

// Hash of its content.
func (i *Item) Hash() string { return i.hash }

// Prepare checks a resource and serializes it. A table of routes becomes a table
// without hosts and an item for each of its hosts, which clients of delta xDS
// take one by one (VHDS); to others the server sends the table as it was.
func Prepare(r types.Resource) ([]*Item, error) {
	name := cache.GetResourceName(r)
	if host, ok := r.(*routev3.VirtualHost); ok { // which cache does not know
		name = host.GetName()
	}
	typeURL := "type.googleapis.com/" + string(proto.MessageName(r))
	if err := checkResource(typeURL, name, r); err != nil {
		return nil, err
	}
	config, ok := r.(*routev3.RouteConfiguration)
	if !ok {
		it, err := newItem(r)
		if err != nil {
			return nil, fmt.Errorf("%s %q: %w", shortType(typeURL), name, err)
		}
		return []*Item{{Key{typeURL, name}, it}}, nil
	}
	items := make([]*Item, 0, 1+len(config.GetVirtualHosts()))
	table, err := newItem(tableOf(config))
	if err != nil {
		return nil, fmt.Errorf("%s %q: %w", shortType(typeURL), name, err)
	}
	items = append(items, &Item{Key{typeURL, name}, table})
	for _, host := range config.GetVirtualHosts() {
		it, err := PrepareHost(name, host)
		if err != nil {
			return nil, err
		}
		items = append(items, it)
	}
	return items, nil
}

// PrepareHost checks and serializes a host of a table of routes.
func PrepareHost(table string, host *routev3.VirtualHost) (*Item, error) {
	if err := host.ValidateAll(); err != nil {
		return nil, fmt.Errorf("VirtualHost %q is invalid: %w", host.GetName(), err)
	}
	it, err := newItem(host)
	if err != nil {
		return nil, fmt.Errorf("VirtualHost %q: %w", host.GetName(), err)
	}
	return &Item{Key{resource.VirtualHostType, HostName(table, host.GetName())}, it}, nil
}

// HostName is the name of a table's host as a resource: the table, a slash, and
// no other slash (VHDS: <route configuration name>/<host entry>).
func HostName(table, host string) string { return table + "/" + strings.ReplaceAll(host, "/", "|") }

// tableOfHost is the table that a host's resource is of.
func tableOfHost(name string) string { return name[:max(0, strings.LastIndexByte(name, '/'))] }

// tableOf a RouteConfiguration without its hosts.
func tableOf(config *routev3.RouteConfiguration) *routev3.RouteConfiguration {
	out := &routev3.RouteConfiguration{}
	reflected, into := config.ProtoReflect(), out.ProtoReflect()
	for i := range reflected.Descriptor().Fields().Len() {
		if field := reflected.Descriptor().Fields().Get(i); field.Name() != "virtual_hosts" && reflected.Has(field) {
			into.Set(field, reflected.Get(field))
		}
	}
	return out
}

// change of a resource; of a store's log.
type change = Key

// maxLog are the changes that a store remembers. A stream that is further behind
// looks at everything.
const maxLog = 1 << 14

// store is what a target is served, and how that came about: streams follow its
// log. It is guarded by the server's lock.
type store struct {
	items map[resource.Type]map[string]*Item
	// bytes of a response with all items of a type, and of each table of routes
	// with its hosts.
	bytes  map[resource.Type]int
	tables map[string]int
	hosts  map[string]int // of each table
	sum    digest
	// log of changes; the first has the number first.
	log   []change
	first uint64
	// whole is the set for clients that know state of the world only; nil until one
	// asks, and after each change.
	whole *set
}

func newStore() *store {
	s := &store{items: map[resource.Type]map[string]*Item{}, bytes: map[resource.Type]int{}, tables: map[string]int{}, hosts: map[string]int{}}
	for _, typeURL := range storedTypes {
		s.items[typeURL] = map[string]*Item{}
	}
	return s
}

// digest is a hash of a set, whatever the order in which it came to be: the sum
// of its elements' hashes.
type digest [4]uint64

func (d *digest) add(i *Item, times uint64) {
	h := sha256.New()
	fmt.Fprintf(h, "%s|%d:%s%s", i.key.Type, len(i.key.Name), i.key.Name, i.hash)
	sum := h.Sum(nil)
	for n := range d {
		d[n] += times * binary.LittleEndian.Uint64(sum[8*n:])
	}
}

// version of what is served.
func (s *store) version() string {
	var raw []byte
	for _, n := range s.sum {
		raw = binary.LittleEndian.AppendUint64(raw, n)
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:12])
}

// end is the number of the next change.
func (s *store) end() uint64 { return s.first + uint64(len(s.log)) }

// since returns the changes from a number on; false when they are forgotten.
func (s *store) since(n uint64) ([]change, bool) {
	if n < s.first {
		return nil, false
	}
	return s.log[n-s.first:], true
}

// put an item, or with nil take away what has the key. It says whether that
// changes anything.
func (s *store) put(key Key, it *Item) bool {
	of := s.items[key.Type]
	old := of[key.Name]
	switch {
	case old == nil && it == nil, old != nil && it != nil && old.hash == it.hash:
		return false
	}
	if old != nil {
		s.count(old, -1)
		delete(of, key.Name)
	}
	if it != nil {
		s.count(it, 1)
		of[key.Name] = it
	}
	if len(s.log) >= maxLog {
		half := len(s.log) / 2
		s.log, s.first = slices.Clone(s.log[half:]), s.first+uint64(half)
	}
	s.log = append(s.log, key)
	s.whole = nil
	return true
}

func (s *store) count(it *Item, times int) {
	s.bytes[it.key.Type] += times * it.size
	switch it.key.Type {
	case resource.RouteType:
		s.tables[it.key.Name] += times * it.size
	case resource.VirtualHostType:
		s.tables[tableOfHost(it.key.Name)] += times * it.size
		s.hosts[tableOfHost(it.key.Name)] += times
	}
	s.sum.add(it, uint64(times)) //nolint:gosec // -1 is taken away, as sums of unsigned numbers wrap around
}

func (s *store) hasHosts(table string) bool { return s.hosts[table] > 0 }

// checkSize refuses what no message of at most maxBytes could carry: it would end
// the stream of every receiver, again and again. Clusters and listeners always
// travel together; of clusters there are, for a while, the former ones beside the
// new.
func (s *store) checkSize(touched map[Key]bool, maxBytes int) error {
	for _, typeURL := range []resource.Type{resource.ClusterType, resource.ListenerType} {
		if size := s.bytes[typeURL] + messageOverhead; size > maxBytes/2 {
			return fmt.Errorf("the %d resources of type %s take %d bytes, and a response has room for %d: %w",
				len(s.items[typeURL]), shortType(typeURL), size, maxBytes/2, ErrTooLarge)
		}
	}
	tables := map[string]bool{}
	for key := range touched {
		switch key.Type {
		case resource.RouteType:
			tables[key.Name] = true
		case resource.VirtualHostType:
			tables[tableOfHost(key.Name)] = true
		default:
			if it := s.items[key.Type][key.Name]; it != nil && it.size > maxBytes-messageOverhead {
				return fmt.Errorf("%s %q takes %d bytes, and a response has room for %d: %w", shortType(key.Type), key.Name, it.size, maxBytes, ErrTooLarge)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(tables)) {
		if size := s.tables[name]; size > maxBytes-messageOverhead {
			return fmt.Errorf("%s %q takes %d bytes, and a response has room for %d: %w", shortType(resource.RouteType), name, size, maxBytes, ErrTooLarge)
		}
	}
	return nil
}

// set is what clients of state of the world are served.
func (s *store) set() *set {
	if s.whole != nil {
		return s.whole
	}
	out := &set{version: s.version(), types: make(map[resource.Type]map[string]item, len(servedTypes))}
	for _, typeURL := range servedTypes {
		items := make(map[string]item, len(s.items[typeURL]))
		for name, it := range s.items[typeURL] {
			items[name] = it.item
		}
		out.types[typeURL] = items
	}
	hosts := map[string][]*Item{}
	for name, it := range s.items[resource.VirtualHostType] {
		hosts[tableOfHost(name)] = append(hosts[tableOfHost(name)], it)
	}
	for name, table := range out.types[resource.RouteType] {
		slices.SortFunc(hosts[name], func(a, b *Item) int { return strings.Compare(a.key.Name, b.key.Name) })
		out.types[resource.RouteType][name] = wholeTable(table, hosts[name])
	}
	s.whole = out
	return out
}

// wholeTable is a table with its hosts: a message's fields may come one by one.
func wholeTable(table item, hosts []*Item) item {
	field := (&routev3.RouteConfiguration{}).ProtoReflect().Descriptor().Fields().ByName("virtual_hosts").Number()
	value, sum := slices.Clone(table.any.GetValue()), sha256.New()
	sum.Write([]byte(table.hash))
	for _, host := range hosts {
		value = protowire.AppendTag(value, field, protowire.BytesType)
		value = protowire.AppendBytes(value, host.any.GetValue())
		sum.Write([]byte(host.hash))
	}
	out := item{hash: hex.EncodeToString(sum.Sum(nil)[:12]), any: &anypb.Any{TypeUrl: table.any.GetTypeUrl(), Value: value}, refs: table.refs}
	out.size = itemOverhead + proto.Size(out.any)
	return out
}
