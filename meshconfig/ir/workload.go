package ir

// Workload is what runs behind a destination, and who may reach it: the
// principals it lists and nobody else.
type Workload struct {
	// Owner is the Lambda, for a system workload a Service, and for other pods
	// with a sidecar of ours their ServiceAccount.
	Owner Owner `json:"owner"`
	// Selector of its pods and WorkloadEntries.
	Selector map[string]string `json:"selector"`
	// Identity it proves, a SPIFFE ID.
	Identity string `json:"identity"`
	// Allow is sorted by principal, then reason.
	Allow []Allow `json:"allow,omitempty"`
}

// Key is namespace/name.
func (w *Workload) Key() string { return w.Owner.Namespace + "/" + w.Owner.Name }

// AllowReason is why a principal may reach a workload.
type AllowReason string

// The reasons.
const (
	// AllowGateway: rules of a gateway route to it.
	AllowGateway AllowReason = "gateway"
	// AllowEventBus: a Subscription names it as its sink.
	AllowEventBus AllowReason = "eventbus"
	// AllowAccess: its access list names the caller.
	AllowAccess AllowReason = "access"
	// AllowPublish: the caller may publish events; on the event bus only.
	AllowPublish AllowReason = "publish"
	// AllowBinding: an ApplicationBinding binds the caller; on the connector
	// only, which checks which application and service.
	AllowBinding AllowReason = "binding"
)

// Allow lets a principal in.
type Allow struct {
	// Principal is a SPIFFE ID.
	Principal string      `json:"principal"`
	Reason    AllowReason `json:"reason"`
	// Rules (ids) for AllowGateway: where the output can check the rule header,
	// only requests under these rules are let in.
	Rules []string `json:"rules,omitempty"`
}

// Sidecar is the proxy beside one replica of a workload.
type Sidecar struct {
	// Node is its data-plane id: pod~<namespace>~<pod>, or for what is no pod
	// <WorkloadEntry name>.<namespace>.
	Node      string `json:"node"`
	Namespace string `json:"namespace"`
	// ServiceAccount it runs as, in Namespace.
	ServiceAccount string `json:"serviceAccount"`
	// Workload (a key) whose Allow its inbound listeners obey; empty: nobody is
	// let in.
	Workload string    `json:"workload,omitempty"`
	Inbound  []Inbound `json:"inbound,omitempty"`
	Egress   []Egress  `json:"egress,omitempty"`
}

// Inbound is a mutual TLS listener in front of the application.
type Inbound struct {
	Bind string `json:"bind"`
	Port uint32 `json:"port"`
	// Endpoint of the application: "unix:///path" or "address:port".
	Endpoint string `json:"endpoint"`
}

// Egress is an HTTP proxy listener for the application.
type Egress struct {
	Bind string `json:"bind"`
	Port uint32 `json:"port"`
	// Destinations (keys) it reaches, sorted. Every other host is 404.
	Destinations []string `json:"destinations,omitempty"`
}
