package proxy_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"testing"
)

// BenchmarkProxy compares the proxy, with the gateway's settings, with
// httputil.ReverseProxy and no proxy at all.
func BenchmarkProxy(b *testing.B) {
	addr := backend(b, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"order":"4711"}`) })
	_, _, gateway := serve(b, config{hcm: edgeHCM, hosts: toBackend, clusters: map[string]string{"backend": addr}})
	target, err := url.Parse("http://" + addr)
	if err != nil {
		b.Fatal(err)
	}
	reverse := httputil.NewSingleHostReverseProxy(target)
	reverse.Transport = &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true}
	server := httptest.NewServer(reverse)
	defer server.Close()
	for _, bench := range []struct{ name, addr string }{
		{"none", addr}, {"reverseproxy", server.Listener.Addr().String()}, {"proxy", gateway},
	} {
		b.Run(bench.name, func(b *testing.B) {
			client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true}}
			defer client.CloseIdleConnections()
			b.ReportAllocs()
			b.SetParallelism(16)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					resp, err := client.Get("http://" + bench.addr + "/orders/4711")
					if err != nil {
						b.Error(err)
						return
					}
					_, _ = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
			})
		})
	}
}
