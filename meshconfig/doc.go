// Package meshconfig is the folder of what exposes lambdas through the mesh:
// from APIRules to a data plane that obeys them. It holds no code itself.
//
//	Kubernetes objects          YAML files
//	       |                        |
//	  watch, controller        filesource        collect one Snapshot
//	       '-----------.------------'
//	               translate                     Snapshot -> ir.Mesh + Problems; pure
//	                   |
//	                  ir                         plain values and Validate
//	             .-----'-----.
//	           istio        xds                  ir -> Istio objects | Envoy resources; pure
//	             |            |
//	      output/istio  output/envoy, ads (+ ca) server-side apply | ADS over gRPC
//	             |            |
//	          istiod        proxy or Envoy       the data plane
//
// members gives pods in a mesh without Istio what they need to be part of it.
//
// Both outputs mean the same: testdata holds one table of requests and expected
// answers, and per case a golden of each stage that is the next stage's input.
package meshconfig
