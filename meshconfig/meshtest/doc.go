// Package meshtest reads the cases of meshconfig/testdata for tests: the
// objects, the goldens of each stage, and the table of requests and expected
// answers that every data plane must give alike. Only tests import it.
//
// A case is a folder:
//
//	in.yaml        the objects
//	jwks.yaml      what fetching keys gave, by URI (optional)
//	ir.yaml        what translate makes of them: the input of istio and xds
//	status.yaml    the APIRules' conditions and all problems
//	istio.yaml     the Istio objects
//	xds.yaml       the Envoy resources, by node
//	requests.yaml  requests and their answers (optional), see [Request]
//
// `UPDATE_GOLDEN=1 go test ./meshconfig/...` (make golden) writes the goldens.
// Run it for translate first when both change: the outputs read ir.yaml.
package meshtest
