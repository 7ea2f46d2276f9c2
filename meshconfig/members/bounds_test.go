package members_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admission/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/lambdamesh/lambdamesh/meshconfig/ca"
	"github.com/lambdamesh/lambdamesh/meshconfig/members"
	"github.com/lambdamesh/lambdamesh/pkg/sidecar"
)

// manager has a scheme, which is all that the webhook's server wants of one.
type manager struct{ ctrl.Manager }

func (manager) GetScheme() *runtime.Scheme { return clientgoscheme.Scheme }

type webhook struct {
	t       *testing.T
	address string
	tls     *tls.Config
}

func serve(t *testing.T) *webhook {
	t.Helper()
	authority, err := ca.Open(t.Context(), ca.Directory(t.TempDir()), ca.Config{})
	require.NoError(t, err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server, err := members.Webhook{Listener: listener, CA: authority, ServerNames: []string{"webhook.test"}, Sidecar: sidecar.Config{Image: "proxy"}}.Server(manager{})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	<-server.Ready()
	return &webhook{t: t, address: listener.Addr().String(), tls: &tls.Config{RootCAs: authority.Pool(), ServerName: "webhook.test", MinVersion: tls.VersionTLS12}}
}

// begin sends the head of a request from an address of loopback, and what of its
// body is given. It is nil when the connection finds no place.
func (w *webhook) begin(from, length, body string) net.Conn {
	w.t.Helper()
	dialer := tls.Dialer{NetDialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: time.Minute}, Config: w.tls}
	c, err := dialer.DialContext(w.t.Context(), "tcp", w.address)
	if err != nil {
		return nil
	}
	w.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	_, _ = fmt.Fprintf(c, "POST /inject HTTP/1.1\r\nHost: webhook.test\r\nContent-Type: application/json\r\n%s\r\n\r\n%s", length, body)
	return c
}

// status of the answer; 0 when the connection ends without one.
func status(c net.Conn) int {
	if c == nil {
		return 0
	}
	answer, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0
	}
	answer.Body.Close()
	return answer.StatusCode
}

// review asks for a sidecar as the API server does.
func (w *webhook) review(from string) (allowed bool, err error) {
	w.t.Helper()
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: w.tls,
		DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).DialContext,
	}}
	const pod = `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"1","operation":"CREATE",` +
		`"kind":{"version":"v1","kind":"Pod"},"object":{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web"},"spec":{"containers":[{"name":"web","image":"web"}]}}}}`
	request, err := http.NewRequestWithContext(w.t.Context(), http.MethodPost, "https://"+w.address+members.WebhookPath, strings.NewReader(pod))
	require.NoError(w.t, err)
	request.Header.Set("Content-Type", "application/json")
	answer, err := client.Do(request)
	if err != nil {
		return false, err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		return false, fmt.Errorf("%s %s %w", answer.Status, text, err)
	}
	reviewed := &admissionv1.AdmissionReview{}
	require.NoError(w.t, json.Unmarshal(text, reviewed))
	return reviewed.Response.Allowed, nil
}

func TestAReviewThatIsTooLargeIsRefusedUnread(t *testing.T) {
	t.Parallel()
	w := serve(t)
	require.Equal(t, http.StatusRequestEntityTooLarge, status(w.begin("127.0.0.1", "Content-Length: 6291456", "{")))
}

func TestAReviewThatDoesNotComeIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	w := serve(t)
	c := w.begin("127.0.0.1", "Content-Length: 1000", "{")
	begun := time.Now()
	status(c)
	require.Less(t, time.Since(begun), 40*time.Second, "it kept its place")
}

// Whoever reaches the webhook may send to it; pods are to be made all the same.
func TestOneRemoteKeepsNobodyFromMakingPods(t *testing.T) {
	t.Parallel()
	w := serve(t)
	for _, length := range []string{"Content-Length: 100000", "Content-Length: 3000000", "Transfer-Encoding: chunked"} {
		statuses := make(chan int, 40)
		for range cap(statuses) {
			c := w.begin("127.0.0.2", length, "1\r\n{")
			go func() { statuses <- status(c) }()
		}
		allowed, err := w.review("127.0.0.1")
		require.NoError(t, err, length)
		require.True(t, allowed)
		turnedAway := 0
		for range cap(statuses) {
			if s := <-statuses; s == 0 || s == http.StatusServiceUnavailable {
				turnedAway++
			}
		}
		require.GreaterOrEqual(t, turnedAway, 24, "%s: more than its share", length)
	}
}

func TestLargeReviewsWaitForEachOther(t *testing.T) {
	t.Parallel()
	w := serve(t)
	statuses := make(chan int, 6)
	for range cap(statuses) {
		c := w.begin("127.0.0.2", "Content-Length: 3000000", "{")
		go func() { statuses <- status(c) }()
	}
	full := 0
	for range cap(statuses) {
		if <-statuses == http.StatusServiceUnavailable {
			full++
		}
	}
	require.Equal(t, 2, full, "six large reviews at once find four places")
}
