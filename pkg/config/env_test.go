package config_test

import (
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/pkg/config"
)

func TestFromEnv(t *testing.T) {
	tests := map[string]struct {
		args    []string
		env     map[string]string
		want    string
		wantErr []string
	}{
		"the default without a variable":   {want: "default"},
		"a variable stands in for a flag":  {env: map[string]string{"LM_LOG_LEVEL": "debug"}, want: "debug"},
		"an empty variable is a value":     {env: map[string]string{"LM_LOG_LEVEL": ""}, want: ""},
		"the command line wins":            {args: []string{"--log-level=warn"}, env: map[string]string{"LM_LOG_LEVEL": "debug"}, want: "warn"},
		"another program's is not ours":    {env: map[string]string{"XX_LOG_LEVEL": "debug"}, want: "default"},
		"every unusable variable is named": {env: map[string]string{"LM_REPLICAS": "many", "LM_LEADER_ELECT": "perhaps"}, wantErr: []string{"LM_REPLICAS", "LM_LEADER_ELECT"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
			level := flags.String("log-level", "default", "")
			flags.Int("replicas", 1, "")
			flags.Bool("leader-elect", true, "")
			require.NoError(t, flags.Parse(tt.args))
			err := config.FromEnv(flags, "LM_", func(name string) (string, bool) { v, ok := tt.env[name]; return v, ok })
			if tt.wantErr != nil {
				for _, want := range tt.wantErr {
					require.ErrorContains(t, err, want)
				}
				return
			}
			require.NoError(t, err)
			require.Equal(t, tt.want, *level)
		})
	}
}
