package ads

import "strings"

// Node is what a node id says.
type Node struct {
	// Gateway is true for gateway~<namespace>~<name>~<instance>, Pod for the
	// sidecar of a pod, pod~<namespace>~<name>. Neither is true for the sidecar of a
	// WorkloadEntry, <name>.<namespace>.
	Gateway, Pod    bool
	Namespace, Name string
	// Instance tells the instances of a gateway apart.
	Instance string
}

const (
	gatewayPrefix = "gateway~"
	podPrefix     = "pod~"
)

// ParseNode reads a node id. It is false for what is neither a gateway nor a
// sidecar.
func ParseNode(id string) (Node, bool) {
	if rest, ok := strings.CutPrefix(id, gatewayPrefix); ok {
		parts := strings.Split(rest, "~")
		if len(parts) != 3 || parts[0] == "" || parts[1] == "" || parts[2] == "" || strings.Contains(rest, "/") {
			return Node{}, false
		}
		return Node{Gateway: true, Namespace: parts[0], Name: parts[1], Instance: parts[2]}, true
	}
	if rest, ok := strings.CutPrefix(id, podPrefix); ok {
		namespace, name, _ := strings.Cut(rest, "~")
		if namespace == "" || name == "" || strings.ContainsAny(rest, "/") || strings.Contains(name, "~") {
			return Node{}, false
		}
		return Node{Pod: true, Namespace: namespace, Name: name}, true
	}
	// A namespace holds no dot, the name of a WorkloadEntry may.
	i := strings.LastIndexByte(id, '.')
	if i <= 0 || i == len(id)-1 || strings.ContainsAny(id, "/~") {
		return Node{}, false
	}
	return Node{Namespace: id[i+1:], Name: id[:i]}, true
}

// GatewayNodeID is the node id of an instance of a gateway.
func GatewayNodeID(namespace, name, instance string) string {
	return gatewayPrefix + namespace + "~" + name + "~" + instance
}

// GatewayTarget is the target of all instances of a gateway.
func GatewayTarget(namespace, name string) string { return namespace + "/" + name }

// SidecarTarget is the target, and the node id, of the sidecar of a
// WorkloadEntry.
func SidecarTarget(namespace, workloadEntry string) string { return workloadEntry + "." + namespace }

// PodTarget is the target, and the node id, of the sidecar of a pod.
func PodTarget(namespace, pod string) string { return podPrefix + namespace + "~" + pod }

// TargetOf returns the target whose resources a node is served; it is false for
// an invalid node id.
func TargetOf(nodeID string) (string, bool) {
	node, ok := ParseNode(nodeID)
	switch {
	case !ok:
		return "", false
	case node.Gateway:
		return GatewayTarget(node.Namespace, node.Name), true
	default:
		return nodeID, true
	}
}

func isGatewayTarget(target string) bool { return strings.Contains(target, "/") }
