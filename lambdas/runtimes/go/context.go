package lambda

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Context is what a handler knows about its invocation and what it can do:
// publish events and call applications. Get it with [FromContext].
type Context struct {
	// Lambda and Namespace name the lambda that runs.
	Lambda, Namespace string
	// Invocation is unique per call and is in every log line of it.
	Invocation string
	// Timeout is the most one invocation may take; the deadline of the
	// handler's context is derived from it.
	Timeout time.Duration
	// Logger writes JSON lines that carry the invocation's id.
	Logger *slog.Logger
	// Caller is who calls, proven by the mesh.
	Caller Caller
	// Claims are those of the token that let the request in, verified by the
	// mesh; nil when no rule asked for one.
	Claims map[string]any

	publishURL, connectorURL string
	traceparent              string
	client                   *http.Client
}

type contextKey struct{}

// FromContext returns the invocation's Context. Outside an invocation, in a
// unit test of a handler say, it returns one made from the environment.
func FromContext(ctx context.Context) *Context {
	if c, ok := ctx.Value(contextKey{}).(*Context); ok {
		return c
	}
	config, err := configFromEnv()
	c := config.newContext(slog.Default(), newClient())
	if err != nil {
		c.Logger.Warn("lambda environment is not usable", "error", err)
	}
	return c
}

// PublishOptions are the attributes of an event that have a default.
type PublishOptions struct {
	// ID is a random UUID by default. The event bus stores the same source and
	// id once, so an ID derived from the input makes a retry harmless.
	ID string
	// Source is /<namespace>/<lambda>; the event bus refuses another one.
	Source string
	// Time is now by default.
	Time                                 time.Time
	Subject, DataContentType, DataSchema string
	Extensions                           map[string]string
}

// Publish sends an event to the event bus and returns its id once the bus has
// it on disk. Data is sent as JSON, []byte as binary data. Options may be nil.
func (c *Context) Publish(ctx context.Context, eventType string, data any, options *PublishOptions) (string, error) {
	if options == nil {
		options = &PublishOptions{}
	}
	return c.publish(ctx, &Event{
		ID: options.ID, Source: options.Source, Type: eventType, Subject: options.Subject, Time: options.Time,
		DataContentType: options.DataContentType, DataSchema: options.DataSchema, Extensions: options.Extensions, Data: data,
	})
}

func (c *Context) publish(ctx context.Context, e *Event) (string, error) {
	if c.publishURL == "" {
		return "", errors.New("publish: " + envPublishURL + " is not set")
	}
	if e.Type == "" {
		return "", errors.New("publish: an event needs a type")
	}
	id, fields := firstOf(e.ID, newID()), map[string]any{}
	for name, value := range e.Extensions {
		fields[name] = value
	}
	maps.Copy(fields, map[string]any{
		"specversion": "1.0", "type": e.Type, "id": id,
		"source": firstOf(e.Source, "/"+c.Namespace+"/"+c.Lambda),
		"time":   e.Time.Format(time.RFC3339Nano),
	})
	if e.Time.IsZero() {
		fields["time"] = time.Now().UTC().Format(time.RFC3339Nano)
	}
	for name, value := range map[string]string{"subject": e.Subject, "dataschema": e.DataSchema, "datacontenttype": e.DataContentType} {
		if value != "" {
			fields[name] = value
		}
	}
	if _, found := fields["traceparent"]; !found && c.traceparent != "" {
		fields["traceparent"] = c.traceparent
	}
	switch data := e.Data.(type) {
	case nil:
	case []byte:
		fields["data_base64"] = data
		fields["datacontenttype"] = firstOf(e.DataContentType, "application/octet-stream")
	default:
		fields["data"] = data
		fields["datacontenttype"] = firstOf(e.DataContentType, "application/json")
	}
	body, err := json.Marshal(fields)
	if err != nil {
		return "", fmt.Errorf("publish %s: %w", e.Type, err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.publishURL, bytes.NewReader(body))
	if err != nil {
		return "", fmt.Errorf("publish %s: %w", e.Type, err)
	}
	request.Header.Set("Content-Type", structuredType)
	response, err := c.do(request)
	if err != nil {
		return "", fmt.Errorf("publish %s: %w", e.Type, err)
	}
	defer response.Body.Close()
	answer, _ := io.ReadAll(io.LimitReader(response.Body, 64<<10))
	if response.StatusCode/100 != 2 {
		return "", fmt.Errorf("publish %s: the event bus answered %s: %s", e.Type, response.Status, excerpt(answer))
	}
	return id, nil
}

// Application gives access to the APIs of a connected application.
func (c *Context) Application(name string) *Application {
	return &Application{name: name, context: c}
}

// Application is a third-party system whose APIs the connector makes callable.
type Application struct {
	name    string
	context *Context
}

// FetchOptions describe a call; the zero value is a GET.
type FetchOptions struct {
	Method  string
	Headers http.Header
	Query   url.Values
	// Body is sent as JSON unless it is an io.Reader, []byte or string.
	Body any
}

// Fetch calls a service of the application through the connector, which adds
// the credentials. Options may be nil. The caller closes the response's body;
// redirects are not followed.
func (a *Application) Fetch(ctx context.Context, service, path string, options *FetchOptions) (*http.Response, error) {
	if options == nil {
		options = &FetchOptions{}
	}
	target, err := a.target(service, path, options.Query)
	if err != nil {
		return nil, err
	}
	body, contentType, err := encodeBody(options.Body)
	if err != nil {
		return nil, fmt.Errorf("call application %s: %w", a.name, err)
	}
	request, err := http.NewRequestWithContext(ctx, firstOf(options.Method, http.MethodGet), target, body)
	if err != nil {
		return nil, fmt.Errorf("call application %s: %w", a.name, err)
	}
	maps.Copy(request.Header, options.Headers.Clone())
	if contentType != "" && request.Header.Get("Content-Type") == "" {
		request.Header.Set("Content-Type", contentType)
	}
	response, err := a.context.do(request)
	if err != nil {
		return nil, fmt.Errorf("call application %s: %w", a.name, err)
	}
	return response, nil
}

func (a *Application) target(service, path string, query url.Values) (string, error) {
	if a.context.connectorURL == "" {
		return "", fmt.Errorf("call application %s: %s is not set", a.name, envConnectorURL)
	}
	if a.name == "" || service == "" {
		return "", errors.New("call application: application and service must be named")
	}
	pathOnly, _, _ := strings.Cut(path, "?")
	for segment := range strings.SplitSeq(pathOnly, "/") {
		// A path made from user input must not climb out into another
		// application's part of the connector.
		if decoded, err := url.PathUnescape(segment); err != nil || decoded == "." || decoded == ".." || strings.ContainsAny(decoded, `/\`) {
			return "", fmt.Errorf("call application %s: path %q has a segment that is not plain", a.name, path)
		}
	}
	target := strings.TrimSuffix(a.context.connectorURL, "/") + "/" + url.PathEscape(a.name) + "/" + url.PathEscape(service) + "/" + strings.TrimPrefix(path, "/")
	if len(query) > 0 {
		separator := "?"
		if strings.Contains(path, "?") {
			separator = "&"
		}
		target += separator + query.Encode()
	}
	return target, nil
}

func (c *Context) do(request *http.Request) (*http.Response, error) {
	if c.traceparent != "" && request.Header.Get("Traceparent") == "" {
		request.Header.Set("Traceparent", c.traceparent)
	}
	return c.client.Do(request)
}

// newClient uses HTTP_PROXY, the sidecar's egress listener.
func newClient() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: 64, IdleConnTimeout: 60 * time.Second,
			TLSHandshakeTimeout: 10 * time.Second, ForceAttemptHTTP2: true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func encodeBody(body any) (io.Reader, string, error) {
	switch body := body.(type) {
	case nil:
		return nil, "", nil
	case io.Reader:
		return body, "", nil
	case []byte:
		return bytes.NewReader(body), "application/octet-stream", nil
	case string:
		return strings.NewReader(body), "text/plain; charset=utf-8", nil
	}
	encoded, err := json.Marshal(body)
	return bytes.NewReader(encoded), "application/json", err
}

func firstOf(values ...string) string {
	for _, value := range values {
		if value != "" {
			return value
		}
	}
	return ""
}

func excerpt(body []byte) string {
	const most = 300
	if len(body) > most {
		body = body[:most]
	}
	return strings.TrimSpace(string(body))
}

// newID returns a random UUID (RFC 9562, version 4).
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
}
