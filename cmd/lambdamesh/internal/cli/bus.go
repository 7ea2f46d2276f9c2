package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes"
)

// busOptions say which event bus is looked into, as whom, and how much of it.
type busOptions struct {
	namespace                 string
	all                       bool
	url                       string
	tokenFile, serviceAccount string
}

func (o *busOptions) register(cmd *cobra.Command) {
	f := cmd.PersistentFlags()
	f.StringVarP(&o.namespace, "namespace", "n", "", "what this namespace may read, and its Subscriptions (default: the context's)")
	f.BoolVarP(&o.all, "all-namespaces", "A", false, "everything; for operators")
	f.StringVar(&o.url, "admin-url", "", "the event bus's administrative port (default: that of the local mesh, else that of the cluster, through its API server)")
	f.StringVar(&o.tokenFile, "token-file", "", "`file` with a service-account token made for the event bus")
	f.StringVar(&o.serviceAccount, "service-account", "", "`[NAMESPACE/]NAME` of a service account to request a token of (default, in a cluster: default)")
}

// busAdmin is the administrative port of an event bus.
type busAdmin struct {
	url, token string
	namespace  string // "" for all
	client     *http.Client
}

// admin finds the administrative port. The way to a cluster's ends with ctx.
func (o *busOptions) admin(ctx context.Context, g *globals) (*busAdmin, error) {
	if o.all && o.namespace != "" {
		return nil, usagef("give --namespace or --all-namespaces, not both")
	}
	b := &busAdmin{url: o.url, client: &http.Client{}, namespace: o.namespace}
	t := g.target()
	if !o.all {
		var err error
		if b.namespace, err = t.namespace(o.namespace); err != nil {
			return nil, err
		}
	}
	publishing := publishOptions{tokenFile: o.tokenFile, serviceAccount: o.serviceAccount, namespace: b.namespace}
	switch {
	case b.url != "":
	case t.local():
		e, err := t.endpoints()
		if err != nil {
			return nil, err
		}
		b.url = e.EventBusAdmin
	default:
		cfg, err := t.restConfig()
		if err != nil {
			return nil, err
		}
		clientset, err := kubernetes.NewForConfig(cfg)
		if err != nil {
			return nil, fmt.Errorf("connect to the API server %s: %w", cfg.Host, err)
		}
		address, err := forwardPort(ctx, cfg, clientset, publicService, adminPort)
		if err != nil {
			return nil, err
		}
		b.url = "http://" + address
		if o.serviceAccount == "" && o.tokenFile == "" {
			publishing.serviceAccount = "default"
		}
	}
	var err error
	b.token, err = publishing.token(ctx, g)
	return b, err
}

// request sends one; the caller closes the answer, which is a success.
func (b *busAdmin) request(ctx context.Context, method, path string, query url.Values, body any) (*http.Response, error) {
	prefix := "/admin/v1"
	if b.namespace != "" {
		prefix += "/namespaces/" + url.PathEscape(b.namespace)
	}
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	var payload io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("write the request: %w", err)
		}
		payload = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(b.url, "/")+prefix+path, payload)
	if err != nil {
		return nil, usagef("--admin-url %q: %w", b.url, err)
	}
	if b.token != "" {
		req.Header.Set("Authorization", "Bearer "+b.token)
	}
	resp, err := b.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("reach the event bus's administrative port (is it running?): %w", err)
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	answer, _ := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	return nil, problemError(resp.Status, answer)
}

// call sends a request and reads its answer, unless into is nil.
func (b *busAdmin) call(ctx context.Context, method, path string, query url.Values, body, into any) error {
	resp, err := b.request(ctx, method, path, query, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if into == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		return fmt.Errorf("read the event bus's answer: %w", err)
	}
	return nil
}

// withBus runs a command that looks into the event bus.
func withBus(g *globals, o *busOptions, out *output, run func(cmd *cobra.Command, args []string, b *busAdmin) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := out.validate(); err != nil {
			return err
		}
		ctx, cancel := context.WithCancel(cmd.Context())
		defer cancel()
		cmd.SetContext(ctx)
		b, err := o.admin(ctx, g)
		if err != nil {
			return err
		}
		return run(cmd, args, b)
	}
}

// confirmed refuses to do to all what was not meant for all.
func confirmed(args []string, all bool, what string) error {
	switch {
	case len(args) == 0 && !all:
		return usagef("name the %s, or give --all", what)
	case len(args) > 0 && all:
		return usagef("name the %s or give --all, not both", what)
	}
	return nil
}

// warn tells people, and no program that reads the output.
func warn(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
