package ads

import (
	"crypto/sha256"
	"encoding/hex"
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

// item is a resource ready to be sent.
type item struct {
	hash string
	any  *anypb.Any
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

// newSet checks and serializes resources.
func newSet(resources Resources, gateway bool) (*set, error) {
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
		whole.Write([]byte(t.version))
	}
	s.version = hex.EncodeToString(whole.Sum(nil)[:12])
	return s, nil
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
