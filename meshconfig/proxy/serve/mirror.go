package serve

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/compile"
)

const (
	// maxMirrors under way at a time; beyond it requests are not copied.
	maxMirrors = 1024
	// maxMirrorAnswer that is read, so that the connection can be used again.
	maxMirrorAnswer = 64 << 10
	// mirrorTimeout of a copy.
	mirrorTimeout = 30 * time.Second
)

// mirrors are the clusters that get a copy of the request.
func (e *exchange) mirrors() []*compile.Mirror {
	var chosen []*compile.Mirror
	for i := range e.route.Forward.Mirrors {
		if m := &e.route.Forward.Mirrors[i]; m.Percent == 100 || rand.Uint32N(100) < m.Percent {
			chosen = append(chosen, m)
		}
	}
	return chosen
}

// mirror sends copies of the request, with its changed header, and forgets their
// answers. body is all of it, or nil. A request whose body is larger than
// maxReplay is not copied: its copy would hold it up, or all of it would be kept.
func (e *exchange) mirror(chosen []*compile.Mirror, body []byte) {
	for _, m := range chosen {
		c := e.state.clusters[m.Cluster]
		if c == nil || e.upgrade != "" {
			continue
		}
		if e.server.mirrors.Add(1) > maxMirrors || c.active.Add(1) > c.limit() {
			e.server.mirrors.Add(-1)
			continue
		}
		copied := &exchange{server: e.server, state: e.state, hcm: e.hcm, table: e.table, vhost: e.vhost, route: e.route, cluster: m.Cluster}
		copied.Request = e.Request
		copied.HTTP = e.HTTP.Clone(context.WithoutCancel(e.HTTP.Context()))
		copied.HTTP.Trailer = nil
		if m.Suffix {
			host, port, found := strings.Cut(e.Host, ":")
			if copied.Host = host + "-shadow"; found {
				copied.Host += ":" + port
			}
		}
		e.server.serving.Go(func() {
			defer e.server.mirrors.Add(-1)
			defer c.active.Add(-1)
			copied.shadow(c, body)
		})
	}
}

// shadow sends one copy.
func (e *exchange) shadow(c *cluster, body []byte) {
	ctx, cancel := context.WithTimeout(e.HTTP.Context(), mirrorTimeout)
	defer cancel()
	defer e.server.onShutdown(cancel)()
	h := c.pick(nil)
	if h == nil {
		return
	}
	h.active.Add(1)
	defer h.active.Add(-1)
	var reader io.ReadCloser
	if body != nil {
		reader = io.NopCloser(bytes.NewReader(body))
	}
	response, failure := e.send(ctx, h, e.HTTP.Header, reader, int64(len(body)), 0)
	if failure != nil {
		e.server.log.Debug("a mirror did not answer", "cluster", e.cluster, "error", failure.err)
		return
	}
	_, _ = io.CopyN(io.Discard, response.Body, maxMirrorAnswer)
	response.Body.Close()
}
