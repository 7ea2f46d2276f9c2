package cli

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/stretchr/testify/require"
)

// bus is an event bus that answers as told and keeps the event it was sent, as
// the official SDK reads it.
func bus(t *testing.T, status int, answer string, got *cloudevents.Event) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if event, err := cloudevents.NewEventFromHTTPRequest(r); err == nil && r.URL.Path == "/publish" {
			*got = *event
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, answer)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

func TestPublishSendsAValidCloudEvent(t *testing.T) {
	file := filepath.Join(t.TempDir(), "order.json")
	require.NoError(t, os.WriteFile(file, []byte(`{"from":"file"}`), 0o600))
	tests := map[string]struct {
		data, stdin, want string
	}{
		"data from the command line":   {data: `{"orderCode":"4711"}`, want: `{"orderCode":"4711"}`},
		"data from a file":             {data: "@" + file, want: `{"from":"file"}`},
		"data from the standard input": {data: "@-", stdin: `{"from":"stdin"}`, want: `{"from":"stdin"}`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var got cloudevents.Event
			url := bus(t, http.StatusAccepted, `{"events":[{"id":"a","sequence":7}]}`, &got)
			code, stdout, stderr := run(t, tt.stdin, "publish", "--url", url, "--source", "commerce", "--type", "order.created.v1",
				"--id", "a", "--subject", "Größe 100%", "--extension", "tenant=x", "--data", tt.data)
			require.Equal(t, ExitOK, code, stderr)
			require.Equal(t, "stored a as number 7\n", stdout)
			require.NoError(t, got.Validate())
			require.Equal(t, "commerce", got.Source())
			require.Equal(t, "order.created.v1", got.Type())
			require.Equal(t, "x", got.Extensions()["tenant"])
			require.JSONEq(t, tt.want, string(got.Data()))
		})
	}
}

func TestPublishSaysWhatIsWrong(t *testing.T) {
	tests := map[string]struct {
		status int
		answer string
		args   []string
		code   int
		want   string
	}{
		"the fields that the bus refuses": {
			status: http.StatusBadRequest,
			answer: `{"title":"Bad Request","detail":"the event is invalid","errors":[{"field":"type","message":"has a space"}]}`,
			args:   []string{"--source", "s", "--type", "a b"}, code: ExitFailure, want: "the event is invalid; type: has a space",
		},
		"an answer that is no problem body": {
			status: http.StatusBadGateway, answer: "oops",
			args: []string{"--source", "s", "--type", "t"}, code: ExitFailure, want: "502 Bad Gateway: oops",
		},
		"data that is not JSON": {args: []string{"--source", "s", "--type", "t", "--data", "hello"}, code: ExitUsage, want: "--content-type"},
		"an unknown output":     {args: []string{"--source", "s", "--type", "t", "-o", "xml"}, code: ExitUsage, want: "table, json or yaml"},
		"a missing flag":        {args: []string{"--source", "s"}, code: ExitUsage, want: "--source and --type"},
		"a missing file":        {args: []string{"--source", "s", "--type", "t", "--data", "@/no/such"}, code: ExitFailure, want: "/no/such"},
		"a bad extension":       {args: []string{"--source", "s", "--type", "t", "--extension", "x"}, code: ExitUsage, want: "NAME=VALUE"},
		"an unknown flag":       {args: []string{"--sauce", "s"}, code: ExitUsage, want: "publish --help"},
		"no mesh that runs": {
			args: []string{"--source", "s", "--type", "t", "--url", "", "--data-dir", "/no/such"}, code: ExitFailure, want: "lambdamesh dev",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var got cloudevents.Event
			url := bus(t, max(tt.status, http.StatusOK), tt.answer, &got)
			code, _, stderr := run(t, "", append([]string{"publish", "--url", url}, tt.args...)...)
			require.Equal(t, tt.code, code, stderr)
			require.Contains(t, stderr, tt.want)
		})
	}
}

func TestPublishAnswersPrograms(t *testing.T) {
	var got cloudevents.Event
	url := bus(t, http.StatusAccepted, `{"events":[{"id":"a","sequence":7}]}`, &got)
	code, stdout, stderr := run(t, "", "publish", "--url", url, "--source", "commerce", "--type", "t", "--id", "a", "--data", "hello", "--content-type", "text/plain", "-o", "json")
	require.Equal(t, ExitOK, code, stderr)
	require.JSONEq(t, `{"events":[{"id":"a","sequence":7}]}`, stdout)
	require.Equal(t, "hello", string(got.Data()))
}
