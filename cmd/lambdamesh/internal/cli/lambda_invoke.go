package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

type invokeOptions struct {
	namespace, url, event, data, path, method string
	timeout                                   time.Duration
}

func newLambdaInvokeCommand(g *globals) *cobra.Command {
	var o invokeOptions
	cmd := &cobra.Command{
		Use:   "invoke NAME [--event FILE | --data JSON|@FILE]",
		Short: "Call a lambda once and print its answer",
		Long: `invoke calls a lambda of a local mesh past rules and subscriptions, or one that
runs alone at its --url. What is in the file of --event is an event when it is a
structured CloudEvent (JSON with specversion and type), as if the event bus
delivered it; anything else is a request's body. One that is at zero is started.

Status 400 and above is exit code 1. Lambdas of a cluster are called by who an
APIRule, a Subscription or their access list names, and not by this command.`,
		Example: `  lambdamesh lambda invoke greet -n shop --path '/?name=Ada'
  lambdamesh lambda invoke greet -n shop --event greet/event.json
  lambdamesh lambda invoke greet --url http://127.0.0.1:8000 --data '{"name":"Ada"}'`,
		Args: exactArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			request, err := o.request(cmd.Context(), cmd.InOrStdin())
			if err != nil {
				return err
			}
			client := &http.Client{Timeout: o.timeout}
			if o.url == "" {
				if client.Transport, err = o.throughNode(g.target(), args[0], request); err != nil {
					return err
				}
			}
			return invoke(client, request, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.namespace, "namespace", "n", "", "the lambda's `namespace` (default: the context's)")
	f.StringVar(&o.url, "url", "", "where it runs alone, as `lambdamesh lambda run` prints it")
	f.StringVar(&o.event, "event", "", "`file` with an event, or - for standard input")
	f.StringVar(&o.data, "data", "", "body of a request: text, @FILE, or @- for standard input")
	f.StringVar(&o.path, "path", "/", "path and query of the request")
	f.StringVarP(&o.method, "request", "X", "", "method of the request (default: GET, with a body POST)")
	f.DurationVar(&o.timeout, "timeout", 65*time.Minute, "how long to wait for the answer")
	return cmd
}

// request is the one to make, with its path alone as long as there is no --url.
func (o *invokeOptions) request(ctx context.Context, stdin io.Reader) (*http.Request, error) {
	var body []byte
	var err error
	contentType := ""
	switch {
	case o.event != "" && o.data != "":
		return nil, usagef("give --event or --data, not both")
	case o.event == "-":
		body, err = io.ReadAll(stdin)
	case o.event != "":
		body, err = os.ReadFile(o.event)
	case o.data != "":
		body, err = readData(o.data, stdin)
	}
	if err != nil {
		return nil, fmt.Errorf("read what to send: %w", err)
	}
	if json.Valid(body) {
		contentType = jsonType
	} else if len(body) > 0 {
		contentType = "text/plain; charset=utf-8"
	}
	var event struct{ Specversion, Type string }
	if o.event != "" && json.Unmarshal(body, &event) == nil && event.Specversion != "" {
		if event.Type == "" {
			return nil, usagef("--event %s: a CloudEvent has a type", o.event)
		}
		contentType = "application/cloudevents+json"
	}
	method := o.method
	if method == "" {
		method = http.MethodGet
		if body != nil {
			method = http.MethodPost
		}
	}
	if !strings.HasPrefix(o.path, "/") {
		return nil, usagef("--path %q: begin it with a slash", o.path)
	}
	base := o.url
	if base == "" {
		base = "http://lambda"
	}
	request, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(base, "/")+o.path, bytes.NewReader(body))
	if err != nil {
		return nil, usagef("--url %q, --path %q: %w", o.url, o.path, err)
	}
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	return request, nil
}

// throughNode leads a request to the local node, which knows where the lambda
// runs.
func (o *invokeOptions) throughNode(t target, lambda string, request *http.Request) (http.RoundTripper, error) {
	if !t.local() {
		return nil, fmt.Errorf("invoke calls lambdas of a local mesh, and this is a cluster: expose the lambda with an APIRule, or publish an event to it with `lambdamesh publish`")
	}
	e, err := t.endpoints()
	if err != nil {
		return nil, err
	}
	namespace, err := t.namespace(o.namespace)
	if err != nil {
		return nil, err
	}
	prefix := "/" + url.PathEscape(namespace) + "/" + url.PathEscape(lambda)
	request.URL.RawPath = prefix + request.URL.EscapedPath()
	request.URL.Path = "/" + namespace + "/" + lambda + request.URL.Path
	return &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", e.Lambdas)
	}}, nil
}

// invoke makes the request: the answer's body is what the command prints.
func invoke(client *http.Client, request *http.Request, stdout, stderr io.Writer) error {
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("call the lambda: %w", err)
	}
	defer response.Body.Close()
	fmt.Fprintln(stderr, response.Status)
	written, err := io.Copy(stdout, response.Body)
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if written > 0 {
		fmt.Fprintln(stdout)
	}
	if response.StatusCode >= http.StatusBadRequest {
		return fmt.Errorf("the lambda answered %s", response.Status)
	}
	return nil
}
