package proxy_test

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestGatewayForwardsToACluster(t *testing.T) {
	_, _, addr := serve(t, config{hosts: toBackend, clusters: map[string]string{"backend": backend(t, echo)}})
	got := get(t, addr, "/hello?x=1", host("shop.example"))
	require.Equal(t, http.StatusOK, got.code)
	require.Equal(t, "/hello?x=1", got.header.Get("Got-Path"))
	require.Equal(t, "shop.example", got.header.Get("Got-Host"))
}
