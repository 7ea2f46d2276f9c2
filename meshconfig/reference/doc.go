// Package reference says what answer a request deserves: APIRules, a gateway's
// domain and a request in, the deciding rule, its backends, the status and the
// verdict on the token out.
//
// It is the specification that the translation, both outputs and the embedded
// proxy are held to, by tests and fuzzing (package meshtest). It is written to
// be read and shares no code with what it judges: paths are compared as lists
// of decoded segments, where the data planes compare spellings. Only the kinds
// of pkg/apis may be imported.
//
// It speaks of rules that admission takes and that resolve: no missing lambdas
// or Secrets, no unreachable issuers, one Gateway that takes every host.
package reference
