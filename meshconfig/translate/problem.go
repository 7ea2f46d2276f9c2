package translate

// Reasons that a translation gives beside those of pkg/apis (NotFound,
// NotSupported, NotPermitted, Invalid, Pending).
const (
	ReasonAccepted       = "Accepted"
	ReasonResolved       = "Resolved"
	ReasonHostConflict   = "HostConflict"
	ReasonHostNotServed  = "HostNotServed"
	ReasonUnknownGateway = "UnknownGateway"
	ReasonIssuerConflict = "IssuerConflict"
	ReasonKeysUnusable   = "KeysUnusable"
	// ReasonNoSidecar: a rule's tokens would be checked by nobody.
	ReasonNoSidecar = "NoSidecar"
	// ReasonPathsNotNormalized: the mesh's own configuration leaves paths with
	// several meanings.
	ReasonPathsNotNormalized = "PathsNotNormalized"
	// ReasonTooLarge: more than a budget of [Limits] has room for.
	ReasonTooLarge = "TooLarge"
	// ReasonShadowed is a warning: an earlier rule takes all its requests.
	ReasonShadowed = "Shadowed"
)

// Problem is something wrong with a field of an object.
type Problem struct {
	// Kind, Namespace and Name of the object: an APIRule, a Gateway or a Sidecar.
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// Field is a path such as spec.rules[2].lambda.
	Field string `json:"field"`
	// Condition that it concerns: Accepted or ResolvedRefs.
	Condition string `json:"condition"`
	// Reason is a CamelCase word for programs, Message says to people what is
	// wrong and what to do.
	Reason  string `json:"reason"`
	Message string `json:"message"`
	// Warning: the condition stays True.
	Warning bool `json:"warning,omitempty"`
}

// Problems are sorted by kind, namespace and name; those of one object are in
// the order of its fields.
type Problems []Problem
