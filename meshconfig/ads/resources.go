package ads

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// Resources are all resources of a target by type URL. A type that is absent is
// served empty.
type Resources map[resource.Type][]types.Resource

// Names of the secrets that the server makes itself.
const (
	SecretWorkload = "default"
	SecretRoot     = "ROOTCA"
)

// servedTypes are the types of a set in the order they are sent.
var servedTypes = []resource.Type{ //nolint:gochecknoglobals // read only
	resource.ClusterType, resource.EndpointType, resource.ListenerType, resource.RouteType, resource.SecretType,
}

// itemOverhead is the tag and length of a resource in a response.
const itemOverhead = 8

// sizeOf a response with all items, in bytes.
func sizeOf(items map[string]item) int {
	size := 1024 // of the rest of the message
	for _, it := range items {
		size += it.size
	}
	return size
}

// item is a resource ready to be sent.
type item struct {
	hash string
	any  *anypb.Any
	size int // in a response, in bytes
	// refs are the names of the endpoints (for a cluster) or routes (for a
	// listener) it needs, which their own discovery types serve.
	refs []string
}

// set is an immutable, checked set of resources.
type set struct {
	version string
	types   map[resource.Type]*typeSet
}

type typeSet struct {
	version string
	items   map[string]item
}

// newSet checks and serializes resources. What no message of at most maxBytes
// could carry is refused: it would end the stream of every receiver, again and
// again. Clusters and listeners always travel together; of clusters there are,
// for a while, the former ones beside the new.
func newSet(resources Resources, gateway bool, maxBytes int) (*set, error) {
	s := &set{types: make(map[resource.Type]*typeSet, len(servedTypes))}
	for _, typeURL := range servedTypes {
		s.types[typeURL] = &typeSet{items: map[string]item{}}
	}
	for typeURL, list := range resources {
		into, ok := s.types[typeURL]
		if !ok {
			return nil, fmt.Errorf("resources of type %s are not served", typeURL)
		}
		for _, r := range list {
			name := cache.GetResourceName(r)
			if err := checkResource(typeURL, name, r, gateway); err != nil {
				return nil, err
			}
			if _, double := into.items[name]; double {
				return nil, fmt.Errorf("%s %q is given twice", shortType(typeURL), name)
			}
			it, err := newItem(r)
			if err != nil {
				return nil, fmt.Errorf("%s %q: %w", shortType(typeURL), name, err)
			}
			into.items[name] = it
		}
	}
	whole := sha256.New()
	for _, typeURL := range servedTypes {
		t := s.types[typeURL]
		t.version = fingerprint(t.items)
		if err := checkSize(typeURL, t.items, maxBytes); err != nil {
			return nil, err
		}
		whole.Write([]byte(t.version))
	}
	s.version = hex.EncodeToString(whole.Sum(nil)[:12])
	return s, nil
}

// ErrTooLarge is what an error of [Server.SetResources] is when no message could
// carry the resources.
var ErrTooLarge = errors.New("too large")

func checkSize(typeURL string, items map[string]item, maxBytes int) error {
	if isFull(typeURL) {
		if size := sizeOf(items); size > maxBytes/2 {
			return fmt.Errorf("the %d resources of type %s take %d bytes, and a response has room for %d: %w", len(items), shortType(typeURL), size, maxBytes/2, ErrTooLarge)
		}
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(items)) {
		if size := items[name].size; size > maxBytes-1024 {
			return fmt.Errorf("%s %q takes %d bytes, and a response has room for %d: %w", shortType(typeURL), name, size, maxBytes, ErrTooLarge)
		}
	}
	return nil
}

func checkResource(typeURL, name string, r types.Resource, gateway bool) error {
	if name == "" {
		return fmt.Errorf("a %s has no name", shortType(typeURL))
	}
	if got := "type.googleapis.com/" + string(proto.MessageName(r)); got != typeURL {
		return fmt.Errorf("%q is a %s and stands under %s", name, shortType(got), shortType(typeURL))
	}
	if v, ok := r.(interface{ ValidateAll() error }); ok {
		if err := v.ValidateAll(); err != nil {
			return fmt.Errorf("%s %q is invalid: %w", shortType(typeURL), name, err)
		}
	}
	if typeURL == resource.SecretType {
		if name == SecretWorkload || name == SecretRoot {
			return fmt.Errorf("the secret %q is made by the server itself", name)
		}
		if !gateway {
			return fmt.Errorf("the secret %q is for gateways only", name)
		}
	}
	return nil
}

func newItem(r types.Resource) (item, error) {
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(r)
	if err != nil {
		return item{}, err
	}
	sum := sha256.Sum256(value)
	it := item{
		hash: hex.EncodeToString(sum[:12]),
		any:  &anypb.Any{TypeUrl: "type.googleapis.com/" + string(proto.MessageName(r)), Value: value},
	}
	it.size = itemOverhead + proto.Size(it.any)
	references := cache.GetResourceReferences(map[string]types.ResourceWithTTL{"": {Resource: r}})
	switch c := r.(type) {
	case *clusterv3.Cluster:
		if c.GetType() == clusterv3.Cluster_EDS {
			it.refs = slices.Sorted(maps.Keys(references[resource.EndpointType]))
		}
	default:
		it.refs = slices.Sorted(maps.Keys(references[resource.RouteType]))
	}
	return it, nil
}

// fingerprint is the version of a set of items.
func fingerprint(items map[string]item) string {
	sum := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(items)) {
		fmt.Fprintf(sum, "%d:%s%s", len(name), name, items[name].hash)
	}
	return hex.EncodeToString(sum.Sum(nil)[:12])
}

func shortType(typeURL string) string {
	if i := strings.LastIndexByte(typeURL, '.'); i >= 0 {
		return typeURL[i+1:]
	}
	return typeURL
}
