package serve

import (
	"io"
	"net/http"
	"sync"

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/request"
)

// switchProtocols joins both connections after the upstream agreed to upgrade.
func (e *exchange) switchProtocols(resp *http.Response, clock *clock) {
	upstream, ok := resp.Body.(io.ReadWriteCloser)
	if e.upgrade == "" || !ok || request.Lower(resp.Header.Get("Upgrade")) != e.upgrade {
		e.Reply(http.StatusBadGateway, "upgrade_failed", "the upstream switched to a protocol that was not asked for", nil)
		return
	}
	clock.stop() // the connection may stay as long as both want
	removeHopByHopResponse(resp.Header)
	resp.Header["Connection"], resp.Header["Upgrade"] = []string{"Upgrade"}, []string{e.upgrade}
	client, buffered, err := http.NewResponseController(e.w).Hijack()
	if err != nil {
		e.Reply(http.StatusInternalServerError, "upgrade_failed", "the connection cannot be upgraded", nil)
		return
	}
	// One side's end closes both, so that no half of a tunnel is left.
	var wg sync.WaitGroup
	var once sync.Once
	end := func() { once.Do(func() { client.Close(); upstream.Close() }) }
	defer end()
	defer e.server.onShutdown(end)()
	e.Conn.Stop() // no more headers come
	head := &http.Response{StatusCode: resp.StatusCode, ProtoMajor: 1, ProtoMinor: 1, Header: resp.Header}
	if err := head.Write(client); err != nil {
		return
	}
	wg.Go(func() { defer end(); _, _ = io.Copy(upstream, buffered) })
	wg.Go(func() { defer end(); _, _ = io.Copy(client, upstream) })
	wg.Wait()
}
