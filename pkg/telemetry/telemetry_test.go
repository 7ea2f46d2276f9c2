package telemetry_test

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/pkg/telemetry"
)

func TestLogger(t *testing.T) {
	tests := map[string]struct {
		cfg     telemetry.LogConfig
		want    string
		wantErr string
	}{
		"text at info by default":          {want: "level=INFO msg=hello"},
		"json":                             {cfg: telemetry.LogConfig{Format: "json"}, want: `"msg":"hello"`},
		"info is silent at level warn":     {cfg: telemetry.LogConfig{Level: "warn"}},
		"an unknown level names the right": {cfg: telemetry.LogConfig{Level: "loud"}, wantErr: "use debug, info, warn or error"},
		"an unknown format too":            {cfg: telemetry.LogConfig{Format: "xml"}, wantErr: "use text or json"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			log, err := telemetry.Logger(&out, tt.cfg)
			if tt.wantErr != "" {
				require.ErrorContains(t, err, tt.wantErr)
				return
			}
			require.NoError(t, err)
			log.Info("hello")
			if tt.want == "" {
				require.Empty(t, out.String())
			}
			require.Contains(t, out.String(), tt.want)
		})
	}
}

func TestRegistryGathers(t *testing.T) {
	families, err := telemetry.Registry().Gather()
	require.NoError(t, err)
	require.NotEmpty(t, families)
}
