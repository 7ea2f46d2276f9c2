package main

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
)

// TestPushLogsIn pushes to a registry that asks who pushes.
func TestPushLogsIn(t *testing.T) {
	behind := registry.New(registry.WithReferrersSupport(true), quiet())
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "robot" || password != "right" {
			w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"who are you"}]}`, http.StatusUnauthorized)
			return
		}
		behind.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "http://")

	push := func(password string) (string, error) {
		config := t.TempDir()
		login := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, base64.StdEncoding.EncodeToString([]byte("robot:"+password)))
		if err := os.WriteFile(filepath.Join(config, "config.json"), []byte(login), 0o600); err != nil {
			t.Fatal(err)
		}
		command := exec.CommandContext(t.Context(), filepath.Join(root(t), "hack/images/run"), "push", "--version", version,
			"--platforms", "linux/"+runtime.GOARCH, "--images", "runtime-python", host+"/team")
		command.Env = append(os.Environ(), "DOCKER_CONFIG="+config)
		said, err := command.CombinedOutput()
		return string(said), err
	}
	if said, err := push("wrong"); err == nil || !strings.Contains(said, "log in") || strings.Contains(said, "wrong") {
		t.Errorf("with a wrong password: %v\n%s", err, said)
	}
	if said, err := push("right"); err != nil {
		t.Errorf("with the right password: %v\n%s", err, said)
	}
}
