package envoy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	cachetypes "github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/meshconfig/ads"
	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/meshconfig/output"
	"github.com/lambdamesh/lambdamesh/meshconfig/translate"
	"github.com/lambdamesh/lambdamesh/meshconfig/xds"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// absenceGrace is how long a gateway may be without nodes before rules that
// were programmed say so: a proxy or a control plane that restarts is back by
// then.
const absenceGrace = 10 * time.Second

// Config of an [Output].
type Config struct {
	// ADS server; its NodeIdentity and OnChange are set here.
	ADS ads.Config
	// Cache and Reader find the object a data-plane node stands for: a Gateway, a
	// Pod or a WorkloadEntry. Reader is asked about those that the cache does not
	// have yet. Required.
	Cache, Reader client.Reader
	// GatewayServiceAccount that gateway nodes run as; default
	// lambdamesh-system/gateway.
	GatewayServiceAccount types.NamespacedName
	// Peers are the other replicas; nil: there are none.
	Peers *PeersConfig
}

// Output serves the mesh over ADS.
type Output struct {
	config Config
	server *ads.Server
	peers  *peers // nil: none
	log    *slog.Logger

	mu      sync.Mutex
	changed func()
	// seen is when nodes of a gateway were there for the last time.
	seen map[string]time.Time
	// closed are the refusals because of which hosts of gateways answer 503.
	closed map[string][]ads.Nack
	// states of targets; those that may have changed are not in it.
	states map[string]output.Programmed

	// Used by the caller of Update and Programmed only.
	last     output.Update
	versions map[string]string // by target; empty: nothing could be served yet
	gateways map[string]*gateway
	failed   map[string]error
	// leftOut namespaces and why, by target.
	leftOut map[string]map[string]string
	// sidecars by workload.
	sidecars map[string][]string
	// certificates that gateways were served last, by target and Secret: they
	// outlive a Secret that is deleted or broken.
	certificates map[string]map[string]cachetypes.Resource
}

// New makes the output and its ADS server, which the caller runs
// once the controller is ready.
func New(config Config) (*Output, error) {
	if config.Cache == nil || config.Reader == nil {
		return nil, errors.New("configure the Envoy output: Cache and Reader are required")
	}
	if config.GatewayServiceAccount == (types.NamespacedName{}) {
		config.GatewayServiceAccount = types.NamespacedName{Namespace: v1alpha1.SystemNamespace, Name: v1alpha1.ServiceAccountGateway}
	}
	o := &Output{
		config:  config,
		changed: func() {},
		seen:    map[string]time.Time{}, closed: map[string][]ads.Nack{}, states: map[string]output.Programmed{},
		versions: map[string]string{}, gateways: map[string]*gateway{}, failed: map[string]error{}, leftOut: map[string]map[string]string{},
		certificates: map[string]map[string]cachetypes.Resource{},
	}
	config.ADS.NodeIdentity = o.nodeIdentity
	config.ADS.OnChange = o.onChange
	server, err := ads.New(config.ADS)
	if err != nil {
		return nil, fmt.Errorf("configure the Envoy output: %w", err)
	}
	o.server = server
	if o.log = config.ADS.Log; o.log == nil {
		o.log = slog.Default()
	}
	if config.Peers != nil {
		if o.peers, err = newPeers(*config.Peers, o.log); err != nil {
			return nil, fmt.Errorf("configure the Envoy output: %w", err)
		}
	}
	return o, nil
}

// Name implements [Output].
func (o *Output) Name() string { return "envoy" }

// Needs implements [Output].
func (o *Output) Needs() output.Needs { return output.Needs{Members: true} }

// Server is the ADS server, a component to be run after the controller.
func (o *Output) Server() *ads.Server { return o.server }

// Run implements [Output].
func (o *Output) Run(ctx context.Context, changed func()) error {
	o.mu.Lock()
	o.changed = changed
	o.mu.Unlock()
	if o.peers != nil {
		o.peers.run(ctx, o.gatewayNodes, o.onChange)
	}
	<-ctx.Done()
	return nil
}

// gatewayNodes are the connected nodes of all gateways.
func (o *Output) gatewayNodes() map[string][]ads.NodeStatus {
	o.mu.Lock()
	targets := slices.Collect(maps.Keys(o.seen))
	o.mu.Unlock()
	all := make(map[string][]ads.NodeStatus, len(targets))
	for _, target := range targets {
		nodes := o.server.Status(target).Nodes
		if len(nodes) == 0 {
			continue
		}
		o.mu.Lock()
		nodes[0].Nacks = append(nodes[0].Nacks, o.closed[target]...)
		o.mu.Unlock()
		all[target] = nodes
	}
	return all
}

func (o *Output) notify() {
	o.mu.Lock()
	changed := o.changed
	o.mu.Unlock()
	changed()
}

// onChange passes on what data planes acknowledge, refuse, and that they come
// and go.
func (o *Output) onChange(target string) {
	o.forgetState(target)
	o.notify()
}

func (o *Output) forgetState(target string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.states, target)
}

// nodeIdentity is who may be a node: what its Gateway or WorkloadEntry says, and
// of a pod's node the pod itself.
func (o *Output) nodeIdentity(ctx context.Context, nodeID string) (ads.Identity, bool) {
	node, ok := ads.ParseNode(nodeID)
	if !ok {
		return ads.Identity{}, false
	}
	key := types.NamespacedName{Namespace: node.Namespace, Name: node.Name}
	if node.Gateway {
		if !o.find(ctx, key, &networkingv1.Gateway{}) {
			return ads.Identity{}, false
		}
		account := o.config.GatewayServiceAccount
		return ads.Identity{Namespace: account.Namespace, ServiceAccount: account.Name}, true
	}
	if node.Pod {
		pod := &corev1.Pod{}
		if !o.find(ctx, key, pod) || !translate.IsMember(pod) {
			return ads.Identity{}, false
		}
		return ads.Identity{
			Namespace: pod.Namespace, ServiceAccount: translate.ServiceAccountOf(pod), Pod: pod.Name, PodUID: string(pod.UID),
		}, true
	}
	entry := &networkingv1.WorkloadEntry{}
	if !o.find(ctx, key, entry) {
		return ads.Identity{}, false
	}
	account := entry.Spec.GetServiceAccount()
	if account == "" {
		account = "default"
	}
	return ads.Identity{Namespace: node.Namespace, ServiceAccount: account}, true
}

// find looks in the cache, then asks: a replica connects right after its
// WorkloadEntry was made.
func (o *Output) find(ctx context.Context, key types.NamespacedName, into client.Object) bool {
	err := o.config.Cache.Get(ctx, key, into)
	if apierrors.IsNotFound(err) {
		err = o.config.Reader.Get(ctx, key, into)
	}
	if err != nil && !apierrors.IsNotFound(err) {
		o.log.Warn("cannot look up a data-plane node's object", "object", key.String(), "error", err)
	}
	return err == nil
}

// Update implements [Output]: sidecars first, so that a gateway sends nobody to
// a sidecar that has not been told about it.
func (o *Output) Update(_ context.Context, update output.Update) {
	previous := o.last
	if previous.Mesh == nil {
		previous.Mesh = &ir.Mesh{}
	}
	update.Mesh = settled(previous.Mesh, update.Mesh)
	o.last = update
	changed := differences(previous.Mesh, update.Mesh)
	o.updateSidecars(changed, update.Mesh)
	current := map[string]bool{}
	for i := range update.Mesh.Gateways {
		gateway := &update.Mesh.Gateways[i]
		target := ads.GatewayTarget(gateway.Namespace, gateway.Name)
		current[target] = true
		o.noteGateway(target)
		o.updateGateway(target, gateway, changed.destinations, update)
	}
	for i := range previous.Mesh.Gateways {
		gateway := &previous.Mesh.Gateways[i]
		if target := ads.GatewayTarget(gateway.Namespace, gateway.Name); !current[target] {
			delete(o.gateways, target)
			o.remove(target)
		}
	}
}

func (o *Output) remove(target string) {
	o.server.Remove(target)
	delete(o.versions, target)
	delete(o.failed, target)
	delete(o.certificates, target)
	delete(o.leftOut, target)
	o.forgetTarget(target)
}

// updateSidecars gives those their resources that may differ: they follow from the
// sidecar, its workload and its destinations.
func (o *Output) updateSidecars(changed difference, mesh *ir.Mesh) {
	for _, gone := range changed.sidecarsGone {
		o.remove(gone.Node)
	}
	if len(changed.sidecars)+len(changed.sidecarsGone) > 0 {
		o.sidecars = make(map[string][]string, len(mesh.Workloads))
		for _, s := range mesh.Sidecars {
			o.sidecars[s.Workload] = append(o.sidecars[s.Workload], s.Node)
		}
	}
	for _, s := range changed.concerned(mesh) {
		o.set(s.Node, nil, mesh, func(mesh *ir.Mesh) (xds.Resources, error) { return xds.SidecarResources(mesh, s.Node) })
	}
}

// updateGateway gives the server what differs. When that is more than a message
// carries, all of it is looked at again, without the largest namespaces.
func (o *Output) updateGateway(target string, to *ir.Gateway, changed []*ir.Destination, update output.Update) {
	secrets := o.gatewaySecrets(to, update.Secrets)
	g, serve := o.gateways[target], o.server.Update
	if g == nil {
		g, serve = newGateway(), o.server.Replace
	}
	changes, err := g.update(to, update.Mesh, changed, secrets)
	if err == nil && len(changes) == 0 && o.gateways[target] != nil {
		return
	}
	version := ""
	if err == nil {
		version, err = serve(target, changes)
	}
	o.forgetState(target)
	if err == nil {
		o.noteClosed(target, g)
		o.gateways[target], o.versions[target] = g, version
		delete(o.failed, target)
		delete(o.leftOut, target)
		return
	}
	delete(o.gateways, target) // what is served is not what it is made of
	o.set(target, secrets, update.Mesh, func(mesh *ir.Mesh) (xds.Resources, error) {
		return xds.GatewayResources(mesh, to.Namespace, to.Name)
	})
}

// set serves a target its resources; when no message could carry them all, those
// without the largest namespaces. When that fails, what it was served before stays.
func (o *Output) set(target string, secrets []cachetypes.Resource, mesh *ir.Mesh, of func(*ir.Mesh) (xds.Resources, error)) {
	o.forgetState(target)
	serve := func(mesh *ir.Mesh) (string, error) {
		resources, err := of(mesh)
		if err != nil {
			return "", err
		}
		byType := resources.ByType()
		byType[resource.SecretType] = secrets
		return o.server.SetResources(target, byType)
	}
	version, err := serve(mesh)
	without := map[string]string{}
	for errors.Is(err, ads.ErrTooLarge) {
		namespace := largest(mesh, target, without)
		if namespace == "" {
			break
		}
		without[namespace] = err.Error()
		if _, before := o.leftOut[target][namespace]; !before {
			o.log.Error("a data plane is given more than it can take; the largest namespace is left out", "target", target, "namespace", namespace, "error", err)
		}
		version, err = serve(leaveOut(mesh, target, without))
	}
	o.leftOut[target] = without
	if err != nil {
		if before := o.failed[target]; before == nil || before.Error() != err.Error() {
			o.log.Error("cannot serve a data plane; it keeps what it has", "target", target, "error", err)
		}
		o.failed[target] = err
		return
	}
	delete(o.failed, target)
	o.versions[target] = version
}

// gatewaySecrets are the certificates of a gateway's TLS servers: those of the
// Secrets as they are, or the last good ones. A certificate that this process
// never saw is not served; proxies that have it keep it.
func (o *Output) gatewaySecrets(gateway *ir.Gateway, secrets []*corev1.Secret) []cachetypes.Resource {
	before, now := o.certificates[gateway.Key()], map[string]cachetypes.Resource{}
	for i := range gateway.Servers {
		if name := gateway.Servers[i].TLSSecret; before[name] != nil {
			now[name] = before[name]
		} else if name != "" {
			now[name] = nil
		}
	}
	for _, secret := range secrets {
		if _, named := now[secret.Name]; named && secret.Namespace == gateway.Namespace && translate.UsableCertificate(secret) == nil {
			now[secret.Name] = xds.Secret(secret.Name, secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey])
		}
	}
	maps.DeleteFunc(now, func(_ string, r cachetypes.Resource) bool { return r == nil })
	o.certificates[gateway.Key()] = now
	return slices.Collect(maps.Values(now))
}

// Programmed implements [Output]: every node of the rule's gateway, and those
// sidecars of its backends that are connected, have acknowledged it. A sidecar
// that has not would answer 403.
func (o *Output) Programmed() func(*translate.APIRuleStatus) output.Programmed {
	return func(rule *translate.APIRuleStatus) output.Programmed {
		if why, found := o.leftOut[rule.Gateway][rule.Namespace]; found {
			return output.Programmed{Status: metav1.ConditionFalse, Reason: translate.ReasonTooLarge, Message: "namespace " + rule.Namespace +
				" has the largest part of what is too much for the gateway, and is left out; remove some of its rules and of what they lead to: " + why}
		}
		p := o.atGateway(rule)
		for _, sidecar := range o.sidecarsOf(rule) {
			if p.Status != metav1.ConditionTrue {
				break
			}
			if s := o.state(sidecar); s.Reason != output.ReasonNoDataPlane {
				p = s
			}
		}
		return p
	}
}

// atGateway is what can be said of a rule there: it is programmed when all nodes
// hold its hosts, and what those need, as they are served now.
func (o *Output) atGateway(rule *translate.APIRuleStatus) output.Programmed {
	whole := o.state(rule.Gateway)
	g := o.gateways[rule.Gateway]
	if g == nil || whole.Reason == output.ReasonNoDataPlane {
		return whole
	}
	part := g.hosts[rule.Namespace+"/"+rule.Name]
	switch {
	case part == nil:
		return whole
	case part.quarantine != "":
		return output.Programmed{Status: metav1.ConditionFalse, Reason: output.ReasonDataPlaneRefused, Message: part.quarantine + " (its hosts answer 503 until it is changed)"}
	case whole.Status == metav1.ConditionTrue, part.held == g.nodes:
		part.held = g.nodes
		return output.Programmed{Status: metav1.ConditionTrue, Reason: output.ReasonProgrammed}
	}
	// Another replica's nodes tell of all they hold, and of nothing else.
	nodes := append(o.server.Lacking(rule.Gateway, g.keys(part)), o.peers.nodes(rule.Gateway)...)
	p := judge(nodes, o.versions[rule.Gateway])
	if p.Status == metav1.ConditionTrue {
		part.held = g.nodes
	}
	return p
}

// sidecarsOf the workloads that a rule's requests pass.
func (o *Output) sidecarsOf(rule *translate.APIRuleStatus) []string {
	g := o.gateways[rule.Gateway]
	if g == nil {
		return nil
	}
	part := g.hosts[rule.Namespace+"/"+rule.Name]
	if part == nil {
		return nil
	}
	var all []string
	for _, key := range part.destinations {
		if c := g.clusters[key]; c != nil && c.made.Workload != "" {
			all = append(all, o.sidecars[c.made.Workload]...)
		}
	}
	return all
}

// state is what can be said of a target.
func (o *Output) state(target string) output.Programmed {
	o.mu.Lock()
	p, known := o.states[target]
	if !known {
		// A mark: a change while we look takes it out again.
		o.states[target] = output.Programmed{}
	}
	o.mu.Unlock()
	if known {
		return p
	}
	p = o.look(target)
	o.mu.Lock()
	defer o.mu.Unlock()
	_, unchanged := o.states[target]
	if unchanged && p.Reason != output.ReasonNoDataPlane {
		o.states[target] = p
	} else {
		// An absence is not remembered: it means another thing after a while.
		delete(o.states, target)
	}
	return p
}

func (o *Output) look(target string) output.Programmed {
	if err := o.failed[target]; err != nil {
		return output.Programmed{Status: metav1.ConditionFalse, Reason: output.ReasonDataPlaneRefused, Message: err.Error(), Keep: o.versions[target] != ""}
	}
	status := o.server.Status(target)
	status.Nodes = append(status.Nodes, o.peers.nodes(target)...)
	if len(status.Nodes) == 0 {
		return output.Programmed{
			Status: metav1.ConditionFalse, Reason: output.ReasonNoDataPlane,
			Message: "no proxy of Gateway " + target + " is connected",
			Keep:    o.recentlySeen(target),
		}
	}
	o.noteNodes(target)
	if g := o.gateways[target]; g != nil {
		g.see(status.Nodes)
		if changes := g.quarantine(status.Nodes); len(changes) > 0 {
			if version, err := o.server.Update(target, changes); err == nil {
				o.log.Error("a proxy refused hosts; they answer 503 until they are changed", "target", target, "resources", len(changes))
				o.versions[target] = version
				o.forgetState(target)
			}
			o.noteClosed(target, g)
		}
	}
	return judge(status.Nodes, o.versions[target])
}

// judge sums up nodes that may lack something of a version.
func judge(nodes []ads.NodeStatus, version string) output.Programmed {
	refused, waiting, keep := "", "", true
	for _, node := range nodes {
		switch {
		case node.Version == version && version != "":
		case len(node.Nacks) > 0:
			nack := node.Nacks[0]
			refused = fmt.Sprintf("%s refused %s: %s", node.NodeID, nack.Type[strings.LastIndexByte(nack.Type, '.')+1:], nack.Message)
			// A node that has acknowledged nothing keeps nothing.
			keep = keep && node.Version != ""
		case waiting == "":
			waiting = node.NodeID + " has not answered yet"
		}
	}
	switch {
	case refused != "":
		return output.Programmed{Status: metav1.ConditionFalse, Reason: output.ReasonDataPlaneRefused, Message: refused, Keep: keep}
	case waiting != "":
		return output.Programmed{Status: metav1.ConditionUnknown, Reason: v1alpha1.ReasonPending, Message: waiting, Keep: true}
	default:
		return output.Programmed{Status: metav1.ConditionTrue, Reason: output.ReasonProgrammed}
	}
}

// noteGateway begins the grace of a gateway that is new here.
func (o *Output) noteGateway(target string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, known := o.seen[target]; !known {
		o.seen[target] = time.Now()
		time.AfterFunc(absenceGrace, o.notify)
	}
}

// noteClosed lets other replicas know.
func (o *Output) noteClosed(target string, g *gateway) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed[target] = slices.Collect(maps.Values(g.closed))
}

func (o *Output) forgetTarget(target string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.closed, target)
	delete(o.seen, target)
	delete(o.states, target)
}

func (o *Output) noteNodes(target string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, gateway := o.seen[target]; gateway {
		o.seen[target] = time.Time{}
	}
}

// recentlySeen tells whether a gateway without nodes had some a moment ago.
func (o *Output) recentlySeen(target string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	at, known := o.seen[target]
	if known && at.IsZero() { // they were there when we last looked
		at = time.Now()
		o.seen[target] = at
		time.AfterFunc(absenceGrace, o.notify)
	}
	return known && time.Since(at) < absenceGrace
}
