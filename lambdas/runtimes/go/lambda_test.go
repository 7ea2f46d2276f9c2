package lambda

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func newTestServer(handler any) *server {
	return newServer(config{lambda: "sample", namespace: "shop", timeout: time.Second, maxBodyBytes: 64}, handler, slog.New(slog.DiscardHandler))
}

func serve(t *testing.T, handler any, request *http.Request) *http.Response {
	t.Helper()
	recorder := httptest.NewRecorder()
	newTestServer(handler).invoke(recorder, request)
	return recorder.Result()
}

func TestDecodeReadsWhatEveryFormOfEventCarries(t *testing.T) {
	type order struct{ OrderCode string }
	requests := map[string]*http.Request{
		"plain":      httptest.NewRequest(http.MethodPost, "/", strings.NewReader(`{"orderCode":"4711"}`)),
		"structured": httptest.NewRequest(http.MethodPost, "/", strings.NewReader(`{"specversion":"1.0","type":"t","data":{"orderCode":"4711"}}`)),
	}
	requests["plain"].Header.Set("Content-Type", "application/json")
	requests["structured"].Header.Set("Content-Type", structuredType)
	for name, request := range requests {
		t.Run(name, func(t *testing.T) {
			body, err := io.ReadAll(request.Body)
			require.NoError(t, err)
			event, err := parseEvent(request, body, true)
			require.NoError(t, err)
			var got order
			require.NoError(t, event.Decode(&got))
			require.Equal(t, "4711", got.OrderCode)
		})
	}
	t.Run("an event made by hand, in a test of a handler", func(t *testing.T) {
		var got order
		require.NoError(t, (&Event{Data: map[string]any{"orderCode": "4711"}}).Decode(&got))
		require.Equal(t, "4711", got.OrderCode)
	})
	t.Run("no data is an error", func(t *testing.T) {
		require.EqualError(t, (&Event{}).Decode(&order{}), "decode event data: there is no data")
	})
}

func TestAPlainHandlerThatReadsBeyondTheLimitIsAnsweredFor(t *testing.T) {
	body := func() io.Reader { // of unknown length
		return struct{ io.Reader }{strings.NewReader(strings.Repeat("x", 65))}
	}
	t.Run("though it does not look at the error", func(t *testing.T) {
		server := httptest.NewServer(http.HandlerFunc(newTestServer(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Own", "yes")
			all, _ := io.ReadAll(r.Body)
			w.WriteHeader(http.StatusAccepted)
			_, _ = w.Write(all)
		}).invoke))
		t.Cleanup(server.Close)
		response, err := http.Post(server.URL, "text/plain", body())
		require.NoError(t, err)
		defer response.Body.Close()
		require.Equal(t, http.StatusRequestEntityTooLarge, response.StatusCode)
		require.Empty(t, response.Header.Get("X-Own"))
		answer, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		require.Contains(t, string(answer), "over the limit of 64 bytes")
		require.NotContains(t, string(answer), "xxx")
	})
	t.Run("unless its answer has begun", func(t *testing.T) {
		response := serve(t, func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusAccepted)
			_, err := io.Copy(w, r.Body)
			require.Error(t, err)
		}, httptest.NewRequest(http.MethodPost, "/", body()))
		require.Equal(t, http.StatusAccepted, response.StatusCode)
		answer, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		require.NotContains(t, string(answer), "limit")
	})
}

func TestFromContextOutsideAnInvocationIsMadeFromTheEnvironment(t *testing.T) {
	t.Setenv(envLambda, "sample")
	c := FromContext(t.Context())
	require.Equal(t, "sample", c.Lambda)
	_, err := c.Publish(t.Context(), "t", nil, nil)
	require.EqualError(t, err, "publish: LAMBDAMESH_PUBLISH_URL is not set")
}

func TestAPlainHandler(t *testing.T) {
	t.Run("that writes nothing answers 200 with its headers", func(t *testing.T) {
		response := serve(t, func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X-A", "1") }, httptest.NewRequest(http.MethodGet, "/", nil))
		require.Equal(t, 200, response.StatusCode)
		require.Equal(t, "1", response.Header.Get("X-A"))
	})
	t.Run("has its invocation in the request's context", func(t *testing.T) {
		var got *Context
		request := httptest.NewRequest(http.MethodGet, "/", nil)
		request.Header.Set("X-Request-Id", "inv-1")
		serve(t, func(_ http.ResponseWriter, r *http.Request) { got = FromContext(r.Context()) }, request)
		require.Equal(t, []string{"inv-1", "sample", "shop"}, []string{got.Invocation, got.Lambda, got.Namespace})
	})
	t.Run("that panics answers 500", func(t *testing.T) {
		response := serve(t, func(http.ResponseWriter, *http.Request) { panic("secret") }, httptest.NewRequest(http.MethodGet, "/", nil))
		require.Equal(t, 500, response.StatusCode)
		body, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		require.NotContains(t, string(body), "secret")
	})
	t.Run("reads at most the limit", func(t *testing.T) {
		var readErr error
		serve(t, func(_ http.ResponseWriter, r *http.Request) { _, readErr = io.ReadAll(r.Body) }, httptest.NewRequest(http.MethodPost, "/", io.MultiReader(strings.NewReader(strings.Repeat("x", 65)))))
		require.Error(t, readErr)
	})
}

func TestDeadline(t *testing.T) {
	tests := map[string]struct {
		handler any
		aborts  bool
	}{
		"a handler that does not look at it is answered for": {handler: func(context.Context, *Event) (any, error) {
			time.Sleep(time.Minute)
			return "late", nil
		}},
		"a handler that returns its error is 504 too": {handler: func(ctx context.Context, _ *Event) (any, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}},
		"a plain handler that returns without a word is 504": {handler: func(_ http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
		}},
		"a plain handler that answers when it is late is answered for": {handler: func(w http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
			http.Error(w, "too late", http.StatusTeapot)
		}},
		"a handler that panics when it is late is answered for": {handler: func(ctx context.Context, _ *Event) (any, error) {
			<-ctx.Done()
			panic(ctx.Err())
		}},
		"half a response is broken off, though the handler returns": {aborts: true, handler: func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "half")
			<-r.Context().Done()
		}},
		"half a response is broken off": {aborts: true, handler: func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "half")
			time.Sleep(time.Minute)
			_, err := io.WriteString(w, "the rest")
			if !errors.Is(err, http.ErrHandlerTimeout) {
				panic(err)
			}
		}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				recorder := httptest.NewRecorder()
				invoke := func() { newTestServer(test.handler).invoke(recorder, httptest.NewRequest(http.MethodGet, "/", nil)) }
				if test.aborts {
					require.PanicsWithValue(t, http.ErrAbortHandler, invoke)
				} else {
					invoke()
					require.Equal(t, http.StatusGatewayTimeout, recorder.Code)
					var problem map[string]any
					require.NoError(t, json.Unmarshal(recorder.Body.Bytes(), &problem))
					require.Equal(t, "the lambda did not answer within 1s", problem["detail"])
				}
				time.Sleep(2 * time.Minute) // the handler ends inside the bubble
			})
		})
	}
}

func TestApplicationPathsStayInTheApplication(t *testing.T) {
	application := (&Context{connectorURL: "http://connector"}).Application("commerce")
	for _, path := range []string{"/../x", "/a/%2e%2e/x", "..", "/a%2fb", `/a\b`, "/a%5cb", "/%zz"} {
		_, err := application.target("orders", path, nil)
		require.Error(t, err, path)
	}
	got, err := application.target("orders", "/a/b?x=../y", map[string][]string{"q": {"1 2"}})
	require.NoError(t, err)
	require.Equal(t, "http://connector/commerce/orders/a/b?x=../y&q=1+2", got)
}
