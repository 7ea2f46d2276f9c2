package serve

import (
	"net/http"

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/compile"
	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/request"
)

// changeRequest applies the header changes of the weighted cluster, route,
// virtual host and route table, most specific first unless configured
// otherwise.
func (e *exchange) changeRequest(w *compile.WeightedCluster, header http.Header) {
	levels := [4]*request.Mutation{nil, &e.route.Request, &e.vhost.Request, &e.table.Request}
	if w != nil {
		levels[0] = &w.Request
	}
	e.change(levels, header)
}

func (e *exchange) changeResponse(w *compile.WeightedCluster, header http.Header) {
	levels := [4]*request.Mutation{nil, &e.route.Response, &e.vhost.Response, &e.table.Response}
	if w != nil {
		levels[0] = &w.Response
	}
	e.change(levels, header)
}

func (e *exchange) change(levels [4]*request.Mutation, header http.Header) {
	for i := range levels {
		m := levels[i]
		if e.table.LeastSpecificFirst {
			m = levels[len(levels)-1-i]
		}
		if m != nil {
			m.Apply(&e.Request, header)
		}
	}
}
