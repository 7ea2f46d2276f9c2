package sidecar_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/sidecar"
)

func TestTheApplicationIsWhereOnlyItsPodReachesIt(t *testing.T) {
	none, err := sidecar.AppEndpoint(nil)
	require.NoError(t, err)
	require.Equal(t, "unix:///var/run/lambdamesh/app/app.sock", none)
	for text, want := range map[string]string{
		"127.0.0.1:8080":                        "127.0.0.1:8080",
		"[::1]:8080":                            "[::1]:8080",
		"unix:/var/run/lambdamesh/app/web.sock": "unix:///var/run/lambdamesh/app/web.sock",
		"unix:///var/run/lambdamesh/app/a":      "unix:///var/run/lambdamesh/app/a",
		"":                                      "",
		"8080":                                  "",
		"0.0.0.0:8080":                          "",
		"10.0.0.1:8080":                         "",
		"localhost:8080":                        "",
		"127.0.0.1:0":                           "",
		"127.0.0.1:15001":                       "", // through it others would be this pod
		"127.0.0.1:15000":                       "",
		"unix:/var/run/lambdamesh/mesh/token":   "",
		"unix:/var/run/lambdamesh/app/../x":     "",
		"unix:/var/run/lambdamesh/app/x/y":      "",
		"unix:/var/run/lambdamesh/app":          "",
	} {
		got, err := sidecar.AppEndpoint(map[string]string{v1alpha1.AnnotationAppAddress: text})
		if want == "" {
			require.ErrorContains(t, err, "write unix:/var/run/lambdamesh/app/<name> or 127.0.0.1:<port>", text)
			continue
		}
		require.NoError(t, err, text)
		require.Equal(t, want, got)
	}
}
