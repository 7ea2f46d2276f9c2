package ads

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

type deltaStream = discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer

// delta serves one client of delta xDS. What it does after a change follows from
// that change alone: it reads the store's log from where it was, and never looks at
// all resources but when the client comes, or is far behind.
//
// Its fields belong to the goroutine of run. Watches are changed with the stream's
// lock held, since Lacking reads them; the server's lock is taken within it.
type delta struct {
	*stream
	grpc    deltaStream
	watches map[string]*deltaWatch
	nonce   uint64
	// of and next are the store and the number of its first change that was not
	// looked at.
	of   *store
	next uint64
	// awaited are endpoints and tables of routes that an acknowledged cluster or
	// listener needs, and the client does not hold yet.
	awaited map[Key]bool
}

func newDelta(s *stream, grpc deltaStream) *delta {
	d := &delta{stream: s, grpc: grpc, watches: map[string]*deltaWatch{}, awaited: map[Key]bool{}}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.delta = d
	return d
}

// handle takes a request: a change of a subscription, an ACK or a NACK, or both.
func (d *delta) handle(req *discoveryv3.DeltaDiscoveryRequest) error {
	if id := req.GetNode().GetId(); id != "" && id != d.nodeID {
		return status.Error(codes.InvalidArgument, "the node id changed within a stream")
	}
	typeURL := req.GetTypeUrl()
	if !slices.Contains(storedTypes, typeURL) {
		d.server.log.Debug("ignoring a subscription", "node", d.nodeID, "type", typeURL)
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	w := d.watches[typeURL]
	if w == nil {
		w = newDeltaWatch(typeURL)
		d.watches[typeURL] = w
		w.begin(req)
		d.look(w, nil)
	}
	if w.pending != nil && req.GetResponseNonce() == w.pending.nonce {
		d.answered(w, req)
	}
	added, err := w.subscribe(req)
	if err != nil {
		return err
	}
	d.look(w, added)
	return nil
}

// look makes names due, or with nil all that the client may want or holds.
func (d *delta) look(w *deltaWatch, names []string) {
	if names != nil && (len(names) == 0 || w.typeURL != resource.VirtualHostType) {
		for _, name := range names {
			w.due[name] = true
		}
		return
	}
	d.server.mu.Lock()
	defer d.server.mu.Unlock()
	for name := range w.held {
		w.due[name] = true
	}
	for name := range w.names {
		if w.typeURL != resource.VirtualHostType {
			w.due[name] = true
		}
	}
	of := d.server.stores[d.target]
	if of == nil {
		return
	}
	for name := range of.items[w.typeURL] {
		if w.wants(name) {
			w.due[name] = true
		}
	}
	if w.typeURL == resource.VirtualHostType {
		w.absent = nil
		for name := range w.names {
			if !of.hasHosts(name) {
				w.absent = append(w.absent, name)
			}
		}
		slices.Sort(w.absent)
	}
}

// answered takes the answer to the response that w waits for.
func (d *delta) answered(w *deltaWatch, req *discoveryv3.DeltaDiscoveryRequest) {
	sent := w.pending
	w.pending = nil
	if detail := req.GetErrorDetail(); detail != nil {
		d.server.metrics.answers.WithLabelValues(shortType(w.typeURL), "nack").Inc()
		d.server.log.Warn("a node refused its configuration", "node", d.nodeID, "type", shortType(w.typeURL), "resources", len(sent.items), "message", detail.GetMessage())
		w.refuse(sent, detail.GetMessage(), d.server.now())
		return
	}
	d.server.metrics.answers.WithLabelValues(shortType(w.typeURL), "ack").Inc()
	w.told = true
	for name, it := range sent.items {
		before := w.held[name]
		w.held[name] = it.hash
		delete(w.refused, name)
		delete(d.awaited, Key{w.typeURL, name})
		child := map[string]string{resource.ClusterType: resource.EndpointType, resource.ListenerType: resource.RouteType}[w.typeURL]
		if child == "" || before == it.hash {
			continue
		}
		// Envoy warms a changed cluster or listener anew and waits for the endpoints or
		// routes it names, even when it has them: send those again.
		for _, ref := range it.refs {
			d.awaited[Key{child, ref}] = true
			if of := d.watches[child]; of != nil {
				if delete(of.held, ref); !of.sends(ref) {
					of.due[ref] = true
				}
			}
		}
	}
	for _, name := range sent.removed {
		delete(w.held, name)
	}
}

// follow makes due what has changed since the last time.
func (d *delta) follow() (of *store) {
	d.server.mu.Lock()
	of = d.server.stores[d.target]
	var changes []change
	known := of != nil && of == d.of
	if known {
		changes, known = of.since(d.next)
		changes = slices.Clone(changes)
	}
	if of != nil {
		d.next = of.end()
	}
	d.of = of
	d.server.mu.Unlock()
	if of == nil {
		return nil
	}
	if !known {
		for _, w := range d.watches {
			d.look(w, nil)
		}
		return of
	}
	for _, c := range changes {
		if w := d.watches[c.Type]; w != nil && (w.wants(c.Name) || w.held[c.Name] != "") {
			w.due[c.Name] = true
		}
	}
	return of
}

// push sends what is due, in the order that breaks nothing: clusters, their
// endpoints, then listeners, then routes and hosts; clusters that go last of all.
func (d *delta) push() error {
	d.mu.Lock()
	of := d.follow()
	var out []*discoveryv3.DeltaDiscoveryResponse
	if of != nil { // never empty
		own := d.ownSecrets()
		d.server.mu.Lock()
		out = d.responses(of, own)
		d.server.mu.Unlock()
	}
	changed := d.judge(of)
	d.mu.Unlock()
	for _, response := range out {
		d.server.metrics.pushes.WithLabelValues(shortType(response.GetTypeUrl())).Inc()
		if err := d.grpc.Send(response); err != nil {
			return fmt.Errorf("send %s to %s: %w", shortType(response.GetTypeUrl()), d.nodeID, err)
		}
	}
	if changed {
		d.server.config.OnChange(d.target)
	}
	return nil
}

// responses that may be sent now.
func (d *delta) responses(of *store, own map[string]item) (out []*discoveryv3.DeltaDiscoveryResponse) {
	send := func(typeURL string, removals bool) {
		w := d.watches[typeURL]
		if w == nil || w.pending != nil || len(w.due)+len(w.absent) == 0 {
			return
		}
		current := func(name string) (item, bool) {
			if it, found := own[name]; found && typeURL == resource.SecretType {
				return it, true
			}
			it := of.items[typeURL][name]
			if it == nil {
				return item{}, false
			}
			return it.item, true
		}
		d.nonce++
		if response := w.response(current, strconv.FormatUint(d.nonce, 10), removals, d.server.config.MaxResponseBytes); response != nil {
			response.SystemVersionInfo = of.version()
			out = append(out, response)
		}
	}
	idle := func(typeURL string) bool {
		w := d.watches[typeURL]
		return w == nil || w.pending == nil && len(w.due) == 0
	}
	clusters, endpoints, listeners := d.watches[resource.ClusterType], d.watches[resource.EndpointType], d.watches[resource.ListenerType]
	send(resource.SecretType, true)
	send(resource.ClusterType, false)
	send(resource.EndpointType, true)
	// Clients that take all clusters get listeners and routes when the clusters are
	// there. Others (grpc) ask for clusters because of their routes.
	all := clusters != nil && clusters.wildcard || listeners != nil && listeners.wildcard
	if all && (clusters == nil || clusters.pending != nil || clusters.adds(of) || d.waits(resource.EndpointType) && (endpoints == nil || len(endpoints.refused) == 0)) {
		return out
	}
	send(resource.ListenerType, true)
	if listeners != nil && listeners.wildcard && !idle(resource.ListenerType) {
		return out
	}
	send(resource.RouteType, true)
	send(resource.VirtualHostType, true)
	if idle(resource.ListenerType) && idle(resource.RouteType) && idle(resource.VirtualHostType) {
		send(resource.ClusterType, true)
	}
	return out
}

// waits tells whether some of a type are awaited. Call it with the server's lock held.
func (d *delta) waits(typeURL string) bool {
	for key := range d.awaited {
		if key.Type == typeURL && d.of.items[typeURL][key.Name] != nil {
			return true
		}
	}
	return false
}

// ownSecrets are those that the server makes for the node.
func (d *delta) ownSecrets() map[string]item {
	w := d.watches[resource.SecretType]
	if w == nil {
		return nil
	}
	own, err := d.secrets.items()
	if err != nil {
		d.server.log.Error("no certificate for a node", "node", d.nodeID, "error", err)
		return nil
	}
	for name, it := range own {
		if w.names[name] && w.held[name] != it.hash {
			w.due[name] = true
		}
	}
	return own
}

// judge notes what Status tells about the node and says whether that is new. A node
// that may have come to hold a resource is new, too: Lacking tells of which.
func (d *delta) judge(of *store) (changed bool) {
	next := NodeStatus{NodeID: d.nodeID, ConnectedAt: d.status.ConnectedAt, Version: d.status.Version}
	whole := of != nil && d.watches[resource.ClusterType] != nil && d.watches[resource.ListenerType] != nil
	for _, typeURL := range storedTypes {
		w := d.watches[typeURL]
		if w == nil {
			continue
		}
		if of != nil && (w.nack != nil || len(w.refused) > 0) {
			d.server.mu.Lock()
			w.settle(of)
			d.server.mu.Unlock()
		}
		next.Nacks = append(next.Nacks, w.nacks()...)
		whole = whole && w.pending == nil && len(w.due) == 0 && len(w.refused) == 0
		changed = changed || w.told
		w.told = false
	}
	if tables := d.watches[resource.RouteType]; whole && tables != nil {
		for name := range tables.held {
			whole = whole && d.watches[resource.VirtualHostType].hasTable(name)
		}
	}
	version := ""
	if of != nil {
		d.server.mu.Lock()
		version = of.version()
		whole = whole && d.next == of.end() && !d.waits(resource.EndpointType) && !d.waits(resource.RouteType)
		d.server.mu.Unlock()
	}
	if whole {
		next.Version = version
	}
	changed = changed || next.Version != d.status.Version || !slices.Equal(next.Nacks, d.status.Nacks)
	d.status, d.evaluated = next, version
	return changed
}

// deltaWatch is what a stream knows about one type.
type deltaWatch struct {
	typeURL  string
	wildcard bool
	// names that the client asked for; of hosts, the tables they are of.
	names map[string]bool
	bytes int // of names
	// held are the hashes of what the client acknowledged.
	held map[string]string
	// due are names to look at: what is there may differ from what is held.
	due     map[string]bool
	pending *deltaSent
	// refused contents are not sent again. A refused response is halved until the
	// one that is bad is found: limit is how many the next may have; 0: any number.
	refused map[string]refusedItem
	limit   int
	nack    *Nack
	// absent tables, which have no hosts: the client waits for a word about them.
	absent []string
	// told: an answer came since the last look.
	told bool
}

type deltaSent struct {
	nonce   string
	items   map[string]item
	removed []string
}

type refusedItem struct {
	hash string
	nack Nack
}

func newDeltaWatch(typeURL string) *deltaWatch {
	return &deltaWatch{typeURL: typeURL, names: map[string]bool{}, held: map[string]string{}, due: map[string]bool{}, refused: map[string]refusedItem{}}
}

// begin takes the first request of a type: no names mean all of the types of which
// there is an all, and what the client has from another stream need not be sent.
func (w *deltaWatch) begin(req *discoveryv3.DeltaDiscoveryRequest) {
	w.wildcard = isFull(w.typeURL) && len(req.GetResourceNamesSubscribe()) == 0
	w.held = maps.Clone(req.GetInitialResourceVersions())
	if w.held == nil {
		w.held = map[string]string{}
	}
}

// subscribe takes the names of a request and returns those to look at. Of names
// that a client waits for there are no more than one request may have.
func (w *deltaWatch) subscribe(req *discoveryv3.DeltaDiscoveryRequest) ([]string, error) {
	for _, name := range req.GetResourceNamesUnsubscribe() {
		if w.wildcard = w.wildcard && name != "*"; w.typeURL == resource.VirtualHostType {
			maps.DeleteFunc(w.held, func(host, _ string) bool { return tableOfHost(host) == name })
		}
		if w.names[name] {
			w.bytes -= len(name)
		}
		delete(w.names, name)
		delete(w.held, name)
		delete(w.refused, name)
	}
	added := make([]string, 0, len(req.GetResourceNamesSubscribe()))
	for _, name := range req.GetResourceNamesSubscribe() {
		if name == "*" && isFull(w.typeURL) {
			w.wildcard = true
			continue
		}
		if !w.names[name] {
			w.bytes += len(name)
		}
		if w.names[name] = true; len(w.names) > maxNames || w.bytes > maxRequestBytes {
			return nil, status.Errorf(codes.ResourceExhausted, "more than %d names of %s, or of %d bytes", maxNames, shortType(w.typeURL), maxRequestBytes)
		}
		added = append(added, name)
	}
	return added, nil
}

// wants tells whether the client asked for what has the name.
func (w *deltaWatch) wants(name string) bool {
	if w.typeURL == resource.VirtualHostType {
		return w.names[tableOfHost(name)]
	}
	return w.wildcard || w.names[name]
}

// hash of what the client holds by the name.
func (w *deltaWatch) hash(name string) string {
	if w == nil {
		return ""
	}
	return w.held[name]
}

// hasTable tells whether the client asked for the hosts of a table.
func (w *deltaWatch) hasTable(name string) bool { return w != nil && w.names[name] }

// refusal of this content; nil when it was not refused.
func (w *deltaWatch) refusal(name, hash string) *Nack {
	if w == nil {
		return nil
	}
	if r, found := w.refused[name]; found && r.hash == hash {
		return &r.nack
	}
	return nil
}

// removes tells whether clients are told what is gone. What they ask for by name
// they keep until they need it no more, as with state of the world.
func (w *deltaWatch) removes() bool {
	return isFull(w.typeURL) || w.typeURL == resource.VirtualHostType
}

// sends tells whether the resource is on its way.
func (w *deltaWatch) sends(name string) bool {
	if w.pending == nil {
		return false
	}
	_, found := w.pending.items[name]
	return found
}

// settle forgets refusals of what is not served any more.
func (w *deltaWatch) settle(of *store) {
	maps.DeleteFunc(w.refused, func(name string, r refusedItem) bool {
		it := of.items[w.typeURL][name]
		return it == nil || it.hash != r.hash
	})
	if w.limit > 0 {
		return
	}
	w.nack = nil
}

// maxNacks are told of one type.
const maxNacks = 64

// nacks of what is refused, and of what is not known yet to be the culprit.
func (w *deltaWatch) nacks() []Nack {
	var all []Nack
	for _, name := range slices.Sorted(maps.Keys(w.refused)) {
		if len(all) < maxNacks {
			all = append(all, w.refused[name].nack)
		}
	}
	if len(all) == 0 && w.nack != nil {
		all = append(all, *w.nack)
	}
	return all
}

// adds tells whether something is due that the client does not hold yet.
func (w *deltaWatch) adds(of *store) bool {
	for name := range w.due {
		if of.items[w.typeURL][name] != nil {
			return true
		}
	}
	return false
}

// refuse notes that a response was refused.
func (w *deltaWatch) refuse(sent *deltaSent, message string, now time.Time) {
	w.told = true
	w.nack = &Nack{Type: w.typeURL, Message: message, Time: now}
	switch n := len(sent.items); {
	case n > 1:
		w.limit = n / 2
		for name := range sent.items {
			w.due[name] = true
		}
	case n == 1:
		for name, it := range sent.items {
			w.nack.Name, w.nack.Version = name, it.hash
			w.refused[name] = refusedItem{it.hash, *w.nack}
		}
	}
}

// response with what is due now, or nil. Without removals what goes stays due.
func (w *deltaWatch) response(current func(string) (item, bool), nonce string, removals bool, maxBytes int) *discoveryv3.DeltaDiscoveryResponse {
	room := maxBytes - messageOverhead
	if w.typeURL != resource.VirtualHostType { // all hosts of a table, so that none is missing when it begins to serve
		room = min(room, maxPart)
	}
	sent := &deltaSent{nonce: nonce, items: map[string]item{}}
	for _, name := range slices.Sorted(maps.Keys(w.due)) {
		it, there := current(name)
		there = there && w.wants(name)
		switch {
		case !there && (w.held[name] == "" || !w.removes()):
			delete(w.due, name)
			delete(w.refused, name)
		case !there && removals:
			sent.removed = append(sent.removed, name)
			delete(w.due, name)
			delete(w.refused, name)
		case !there:
		case w.held[name] == it.hash, w.refused[name].hash == it.hash:
			delete(w.due, name)
		case len(sent.items) > 0 && (room < it.size+len(name)+len(it.hash)+itemOverhead || w.limit > 0 && len(sent.items) >= w.limit):
		default:
			room -= it.size + len(name) + len(it.hash) + itemOverhead
			sent.items[name] = it
			delete(w.due, name)
		}
	}
	if len(w.due) == 0 {
		w.limit = 0
	}
	sent.removed = append(sent.removed, w.absent...)
	w.absent = nil
	if len(sent.items)+len(sent.removed) == 0 {
		return nil
	}
	w.pending = sent
	out := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: w.typeURL, Nonce: nonce, RemovedResources: sent.removed}
	for _, name := range slices.Sorted(maps.Keys(sent.items)) {
		it := sent.items[name]
		packed := it.any
		if w.typeURL == resource.RouteType {
			packed = withHosts(packed)
		}
		out.Resources = append(out.Resources, &discoveryv3.Resource{Name: name, Version: it.hash, Resource: packed})
	}
	return out
}

// withHosts is a table that says where its hosts come from.
func withHosts(table *anypb.Any) *anypb.Any {
	more, err := proto.Marshal(&routev3.RouteConfiguration{Vhds: &routev3.Vhds{ConfigSource: &corev3.ConfigSource{
		ResourceApiVersion:    corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
	}}})
	if err != nil { // these are plain values
		return table
	}
	return &anypb.Any{TypeUrl: table.GetTypeUrl(), Value: slices.Concat(table.GetValue(), more)}
}
