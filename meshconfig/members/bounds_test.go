package members_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admission/v1"

	"github.com/lambdamesh/lambdamesh/meshconfig/ca"
	"github.com/lambdamesh/lambdamesh/meshconfig/members"
	"github.com/lambdamesh/lambdamesh/pkg/sidecar"
)

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
	server, err := members.Webhook{Listener: listener, CA: authority, ServerNames: []string{"webhook.test"}, Sidecar: sidecar.Config{Image: "proxy"}}.Server()
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

// client calls from an address of loopback.
func (w *webhook) client(from string) *http.Client {
	transport := &http.Transport{
		TLSClientConfig: w.tls, MaxIdleConnsPerHost: 100,
		DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).DialContext,
	}
	w.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Timeout: time.Minute, Transport: transport}
}

// reviewOf a pod with a spec, as the API server writes it.
func reviewOf(spec string) string {
	return `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"1","operation":"CREATE",` +
		`"kind":{"version":"v1","kind":"Pod"},"object":{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web"},"spec":` + spec + `}}}`
}

const onePod = `{"containers":[{"name":"web","image":"web"}]}`

// review asks for a sidecar as the API server does.
func (w *webhook) review(client *http.Client, spec string) (*admissionv1.AdmissionResponse, error) {
	answer, err := client.Post("https://"+w.address+members.WebhookPath, "application/json", strings.NewReader(reviewOf(spec)))
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s %.1000s %w", answer.Status, text, err)
	}
	reviewed := &admissionv1.AdmissionReview{}
	if err := json.Unmarshal(text, reviewed); err != nil {
		return nil, err
	}
	return reviewed.Response, nil
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
	for range 140 { // more than are read at once
		w.begin("127.0.0.2", "Content-Length: 100000", "{")
	}
	response, err := w.review(w.client("127.0.0.1"), onePod)
	require.NoError(t, err)
	require.True(t, response.Allowed)
}

// The API server has one address, and asks for each pod of a burst at once.
func TestABurstOfPodsOfOneRemoteIsAnswered(t *testing.T) {
	t.Parallel()
	w := serve(t)
	client := w.client("127.0.0.1")
	for range 2 { // on new connections, and on those that were kept
		answers := make(chan error, 100)
		for range cap(answers) {
			go func() {
				response, err := w.review(client, onePod)
				if err == nil && !response.Allowed {
					err = errors.New(response.Result.Message)
				}
				answers <- err
			}()
		}
		for range cap(answers) {
			require.NoError(t, <-answers)
		}
	}
}

// A review of few bytes can be one of many objects. Not parallel: what is
// allocated is the process's.
func TestAReviewTakesLittleMemoryWhateverItHolds(t *testing.T) {
	w := serve(t)
	client := w.client("127.0.0.1")
	_, err := w.review(client, onePod)
	require.NoError(t, err)
	many := func(item string, bytes int) string {
		return "[" + strings.Repeat(item+",", bytes/(len(item)+1)) + item + "]"
	}
	for name, test := range map[string]struct{ spec, refused string }{
		"containers":              {`{"containers":` + many("{}", 120<<10) + `}`, "the pod has more than 128 containers"},
		"containers of null":      {`{"containers":` + many("null", 120<<10) + `}`, "the pod has more than 128 containers"},
		"many more containers":    {`{"containers":` + many("{}", 2<<20) + `}`, "the pod has more than 128 containers"},
		"escaped":                 {`{"\u0063ontainers":` + many("{}", 120<<10) + `}`, "the pod has more than 128 containers"},
		"init containers":         {`{"initContainers":` + many("{}", 120<<10) + `}`, "the pod has more than 128 initContainers"},
		"volumes":                 {`{"volumes":` + many("{}", 120<<10) + `}`, "the pod has more than 128 volumes"},
		"variables":               {`{"containers":[{"env":` + many("{}", 120<<10) + `}]}`, "the review holds more than 20000 values"},
		"lists of lists":          {`{"x":` + many("[[]]", 120<<10) + `}`, "the review holds more than 20000 values"},
		"as many as there may be": {`{"containers":` + many(`{"env":`+many("{}", 400)+`}`, 50_000) + `}`, ""},
		"ports of ours":           {`{"containers":[{"name":"` + strings.Repeat("x", 10_000) + `","ports":` + many(`{"name":"http"}`, 120<<10) + `}]}`, "the port named http is the sidecar's"},
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			response, err := w.review(client, test.spec)
			runtime.ReadMemStats(&after)
			require.NoError(t, err)
			if test.refused == "" {
				require.True(t, response.Allowed)
			} else {
				require.False(t, response.Allowed)
				require.Contains(t, response.Result.Message, test.refused)
				require.Less(t, len(response.Result.Message), 5000)
			}
			require.Less(t, len(response.Patch), 256<<10)
			require.Less(t, (after.TotalAlloc-before.TotalAlloc)>>20, uint64(24), "MiB were allocated, the client's among them")
		})
	}
}

// What no API server sends is told so.
func TestWhatIsNoReviewIsRefused(t *testing.T) {
	t.Parallel()
	w := serve(t)
	client := w.client("127.0.0.1")
	review := reviewOf(onePod)
	for name, body := range map[string]string{
		"no JSON":         "apiVersion: admission.k8s.io/v1\nkind: AdmissionReview",
		"cut off":         review[:len(review)-2],
		"two":             review + review,
		"another version": strings.Replace(review, "admission.k8s.io/v1", "admission.k8s.io/v1beta1", 1),
		"a long UID":      strings.Replace(review, `"uid":"1"`, `"uid":"`+strings.Repeat("1", 200)+`"`, 1),
		"no Pod":          strings.Replace(review, `"apiVersion":"v1","kind":"Pod"`, `"apiVersion":"v1","kind":"Service"`, 1),
		"nothing":         "",
	} {
		t.Run(name, func(t *testing.T) {
			answer, err := client.Post("https://"+w.address+members.WebhookPath, "application/json", strings.NewReader(body))
			require.NoError(t, err)
			answer.Body.Close()
			require.Equal(t, http.StatusBadRequest, answer.StatusCode)
		})
	}
}
