package envoy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/meshconfig/ads"
	"github.com/lambdamesh/lambdamesh/meshconfig/output"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/kube"
)

const (
	// peerInterval is how often replicas tell and ask; what a data plane of
	// another replica acknowledged is seen with this delay.
	peerInterval = 500 * time.Millisecond
	// peerRenewal is how often an unchanged Lease is renewed, peerExpiry when
	// one that is not says nothing any more.
	peerRenewal = 5 * time.Second
	peerExpiry  = 20 * time.Second

	labelPeer      = v1alpha1.Group + "/ads-replica"
	annotationAcks = v1alpha1.Group + "/acknowledged"
)

// PeersConfig lets the replicas of a control plane tell each other what their
// data planes acknowledged, so that the one that writes statuses knows of all:
// each keeps a Lease, lambdamesh-ads-<name>. Versions are hashes of content and
// the same in all replicas. All fields are required.
type PeersConfig struct {
	// Client reads and writes Leases, past the cache.
	Client client.Client
	// Namespace of the Leases.
	Namespace string
	// Name of this replica, such as its pod's.
	Name string
}

// peerNode is what a Lease says of a node.
type peerNode struct {
	ID      string     `json:"id"`
	Version string     `json:"version,omitempty"`
	Nacks   []peerNack `json:"nacks,omitempty"`
}

// peerNack names the resource and the hash of its content, where they are known:
// every replica closes a host that a node of any of them refused, so that all
// serve the same.
type peerNack struct {
	Type    string `json:"type"`
	Name    string `json:"name,omitempty"`
	Version string `json:"version,omitempty"`
	Message string `json:"message"`
}

// maxPeerNacks of a node are told: a Lease holds little.
const maxPeerNacks = 8

// peers knows the gateway nodes of other replicas.
type peers struct {
	config PeersConfig
	log    *slog.Logger

	mu     sync.Mutex
	others map[string][]ads.NodeStatus // by target
}

func newPeers(config PeersConfig, log *slog.Logger) (*peers, error) {
	if config.Client == nil || config.Namespace == "" || config.Name == "" {
		return nil, errors.New("configure the peers: Client, Namespace and Name are required")
	}
	return &peers{config: config, log: log}, nil
}

// nodes of other replicas.
func (p *peers) nodes(target string) []ads.NodeStatus {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.others[target]
}

// run tells what ours returns and calls changed with the targets of which
// others tell something new, until ctx ends. Then it takes its Lease back.
func (p *peers) run(ctx context.Context, ours func() map[string][]ads.NodeStatus, changed func(target string)) {
	ticker := time.NewTicker(peerInterval)
	defer ticker.Stop()
	var last string
	var renewed time.Time
	complained := false
	for {
		text, err := encodeAcks(ours())
		if err == nil && (text != last || time.Since(renewed) >= peerRenewal) {
			if err = p.tell(ctx, text); err == nil {
				last, renewed = text, time.Now()
			}
		}
		err = errors.Join(err, p.ask(ctx, changed))
		if err != nil && !complained && ctx.Err() == nil {
			p.log.Warn("cannot share acknowledgments with other replicas", "error", err)
		}
		complained = err != nil
		select {
		case <-ctx.Done():
			p.takeBack(context.WithoutCancel(ctx))
			return
		case <-ticker.C:
		}
	}
}

func encodeAcks(all map[string][]ads.NodeStatus) (string, error) {
	acks := make(map[string][]peerNode, len(all))
	for target, nodes := range all {
		for _, n := range nodes {
			node := peerNode{ID: n.NodeID, Version: n.Version}
			for _, nack := range n.Nacks[:min(len(n.Nacks), maxPeerNacks)] {
				message := nack.Message
				node.Nacks = append(node.Nacks, peerNack{nack.Type, nack.Name, nack.Version, message[:min(len(message), 1024)]})
			}
			acks[target] = append(acks[target], node)
		}
	}
	text, err := json.Marshal(acks) // sorted by target
	return string(text), err
}

func (p *peers) lease() *coordinationv1.Lease {
	return &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{
		Namespace: p.config.Namespace, Name: "lambdamesh-ads-" + p.config.Name,
		Labels: map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy, labelPeer: "true"},
	}}
}

func (p *peers) tell(ctx context.Context, acks string) error {
	lease := p.lease()
	lease.Annotations = map[string]string{annotationAcks: acks}
	now := metav1.NowMicro()
	lease.Spec.HolderIdentity, lease.Spec.RenewTime = &p.config.Name, &now
	return kube.Apply(ctx, p.config.Client, output.FieldManager, lease)
}

func (p *peers) takeBack(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if err := p.config.Client.Delete(ctx, p.lease()); client.IgnoreNotFound(err) != nil {
		p.log.Warn("cannot delete our Lease; it expires", "error", err)
	}
}

func (p *peers) ask(ctx context.Context, changed func(target string)) error {
	var leases coordinationv1.LeaseList
	if err := p.config.Client.List(ctx, &leases, client.InNamespace(p.config.Namespace), client.MatchingLabels{labelPeer: "true"}); err != nil {
		return fmt.Errorf("list the replicas' Leases: %w", err)
	}
	others := map[string][]ads.NodeStatus{}
	ours := p.lease().Name
	for i := range leases.Items {
		lease := &leases.Items[i]
		if lease.Name == ours || lease.Spec.RenewTime == nil || time.Since(lease.Spec.RenewTime.Time) > peerExpiry {
			continue
		}
		var acks map[string][]peerNode
		if err := json.Unmarshal([]byte(lease.Annotations[annotationAcks]), &acks); err != nil {
			return fmt.Errorf("read the Lease %s: %w", lease.Name, err)
		}
		for target, nodes := range acks {
			for _, n := range nodes {
				status := ads.NodeStatus{NodeID: n.ID, Version: n.Version}
				for _, nack := range n.Nacks {
					status.Nacks = append(status.Nacks, ads.Nack{Type: nack.Type, Name: nack.Name, Version: nack.Version, Message: nack.Message})
				}
				others[target] = append(others[target], status)
			}
		}
	}
	p.mu.Lock()
	before := p.others
	p.others = others
	p.mu.Unlock()
	for _, target := range slices.Sorted(maps.Keys(merge(before, others))) {
		if !reflect.DeepEqual(before[target], others[target]) {
			changed(target)
		}
	}
	return nil
}

func merge[V any](a, b map[string]V) map[string]V {
	all := maps.Clone(b)
	maps.Copy(all, a)
	return all
}
