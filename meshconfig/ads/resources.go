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

// storedTypes are those and the hosts of route tables, which only clients of
// delta xDS ask for by themselves.
var storedTypes = append(slices.Clone(servedTypes), resource.VirtualHostType) //nolint:gochecknoglobals // read only

// itemOverhead is the tag and length of a resource in a response.
const itemOverhead = 8

// messageOverhead is what a response has besides its resources.
const messageOverhead = 1024

// sizeOf a response with all items, in bytes.
func sizeOf(items map[string]item) int {
	size := messageOverhead
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

// set is an immutable set of resources.
type set struct {
	version string
	types   map[resource.Type]map[string]item
}

// ErrTooLarge is what an error of [Server.SetResources] is when no message could
// carry the resources.
var ErrTooLarge = errors.New("too large")

func checkResource(typeURL, name string, r types.Resource) error {
	if name == "" {
		return fmt.Errorf("a %s has no name", shortType(typeURL))
	}
	if v, ok := r.(interface{ ValidateAll() error }); ok {
		if err := v.ValidateAll(); err != nil {
			return fmt.Errorf("%s %q is invalid: %w", shortType(typeURL), name, err)
		}
	}
	if typeURL == resource.SecretType && (name == SecretWorkload || name == SecretRoot) {
		return fmt.Errorf("the secret %q is made by the server itself", name)
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
