package manifests_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// natsFiles lays the files of a NATS pod out as its volumes do, and returns the
// path of nats.conf.
func natsFiles(t *testing.T, objects []*unstructured.Unstructured, a *testkit.Authority) string {
	t.Helper()
	root := t.TempDir()
	for _, dir := range []string{"config", "credentials", "tls", "data"} {
		require.NoError(t, os.Mkdir(filepath.Join(root, dir), 0o700))
	}
	write := func(name string, content []byte) {
		require.NoError(t, os.WriteFile(filepath.Join(root, name), content, 0o600))
	}
	for _, o := range kinds(objects, "ConfigMap") {
		if o.GetName() == "nats" {
			replacer := strings.NewReplacer("/etc/nats/", root+"/", "store_dir: /data", "store_dir: "+root+"/data")
			write("config/nats.conf", []byte(replacer.Replace(into[corev1.ConfigMap](t, o).Data["nats.conf"])))
		}
	}
	write("credentials/client.conf", []byte("user: \"eventbus\"\npassword: \"1e5\"\n"))
	certificate, key := a.Issue(t, "localhost")
	write("tls/tls.crt", certificate)
	write("tls/ca.crt", a.RootPEM())
	write("tls/tls.key", key)
	return filepath.Join(root, "config/nats.conf")
}

func TestNATSWritesToDiskBeforeItAnswers(t *testing.T) {
	t.Setenv("POD_NAME", "nats-0")
	for setting, servers := range map[string]int{"nats.replicas=1": 1, "nats.replicas=3": 3} {
		objects := template(t, setting)
		options, err := natsserver.ProcessConfigFile(natsFiles(t, objects, testkit.NewAuthority(t)))
		require.NoError(t, err)
		require.True(t, options.JetStream)
		require.True(t, options.SyncAlways, "an answer to a publisher is a promise")
		require.Equal(t, "nats-0", options.ServerName)
		require.Equal(t, "1e5", options.Password)
		require.NotNil(t, options.TLSConfig)
		require.GreaterOrEqual(t, options.MaxPayload, int32(2e6), "an event of 1 MiB with its headers")
		if servers == 1 {
			servers = 0
		}
		require.Len(t, options.Routes, servers)

		for _, w := range workloads(t, objects) {
			if w.Name != "nats" {
				continue
			}
			size := w.Spec.VolumeClaimTemplates[0].Spec.Resources.Requests.Storage().Value()
			require.Less(t, options.JetStreamMaxStore, size, "the store must be full before the volume is")
			require.Greater(t, options.JetStreamMaxStore, size/10*8+1)
		}
	}
}

func TestThreeServersOfNATSFindEachOtherByCertificate(t *testing.T) {
	authority := testkit.NewAuthority(t)
	file := natsFiles(t, template(t), authority)
	var servers []*natsserver.Server
	for _, name := range []string{"nats-0", "nats-1", "nats-2"} {
		t.Setenv("POD_NAME", name)
		options, err := natsserver.ProcessConfigFile(file)
		require.NoError(t, err)
		options.NoSigs, options.StoreDir = true, t.TempDir()
		options.Host, options.Port, options.HTTPPort = "127.0.0.1", natsserver.RANDOM_PORT, 0
		options.Cluster.Host, options.Cluster.Port = "127.0.0.1", natsserver.RANDOM_PORT
		options.Routes = nil
		for _, other := range servers {
			options.Routes = append(options.Routes, &url.URL{Scheme: "nats-route", Host: fmt.Sprint("localhost:", other.ClusterAddr().Port)})
		}
		if len(servers) == 0 {
			// It waits to be called; alone and without a route it would be no cluster.
			options.Routes = []*url.URL{{Scheme: "nats-route", Host: "localhost:1"}}
		}
		server, err := natsserver.NewServer(options)
		require.NoError(t, err)
		server.Start()
		t.Cleanup(server.Shutdown)
		require.True(t, server.ReadyForConnections(patience))
		servers = append(servers, server)
	}
	_, port, err := net.SplitHostPort(servers[0].Addr().String())
	require.NoError(t, err)
	address := "tls://localhost:" + port
	ca := filepath.Join(filepath.Dir(filepath.Dir(file)), "tls/ca.crt")
	_, err = nats.Connect(address, nats.RootCAs(ca), nats.UserInfo("eventbus", "1e6"))
	require.ErrorIs(t, err, nats.ErrAuthorization)
	nc, err := nats.Connect(address, nats.RootCAs(ca), nats.UserInfo("eventbus", "1e5"))
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	testkit.Eventually(t, patience, func() error {
		_, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{"events"}, Replicas: 3})
		return err
	}, "no stream with three copies")

	// A member of the mesh has a certificate of the same authority.
	member, err := tls.X509KeyPair(authority.Issue(t, "shop.example"))
	require.NoError(t, err)
	require.Contains(t, asRoute(t, servers[0].ClusterAddr().String(), authority, member), "Authorization Violation")
}

// asRoute connects to the port of the cluster as a server would, and returns what
// it says.
func asRoute(t *testing.T, address string, a *testkit.Authority, certificate tls.Certificate) string {
	t.Helper()
	conn, err := (&net.Dialer{Timeout: patience}).DialContext(t.Context(), "tcp", address)
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
	secure := tls.Client(conn, &tls.Config{RootCAs: a.Pool(), ServerName: "localhost", Certificates: []tls.Certificate{certificate}})
	_, err = secure.Write([]byte(`CONNECT {"verbose":false,"tls_required":true,"name":"N","cluster":"lambdamesh"}` + "\r\nPING\r\n"))
	require.NoError(t, err)
	answer, err := io.ReadAll(secure)
	require.NoError(t, err)
	return string(answer)
}
