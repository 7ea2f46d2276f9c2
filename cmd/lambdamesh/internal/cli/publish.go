package cli

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// maxAnswer bounds what is read of an answer.
const maxAnswer = 1 << 20

const jsonType = "application/json"

// stored is an event that is on disk.
type stored struct {
	ID       string `json:"id"`
	Sequence uint64 `json:"sequence"`
}

type publishOptions struct {
	url, source, eventType, id, subject, contentType, data string
	tokenFile, serviceAccount, namespace, ca               string
	extensions                                             []string
}

func newPublishCommand(g *globals) *cobra.Command {
	var o publishOptions
	var out output
	cmd := &cobra.Command{
		Use:   "publish --source SOURCE --type TYPE [--data JSON|@FILE|@-]",
		Short: "Publish an event to the event bus",
		Long: `publish sends one CloudEvent to the event bus and prints its id and its sequence
number once it is on disk. The same source and id again are stored once.

The bus of a local mesh takes what anybody on this machine publishes. That of a
cluster asks for a service-account token made for it: give a file with one, or
name the service account, and publish requests one of the cluster; the default is
the account "default" of the context's namespace. It is reached through the API
server, which must let you do that (pods/portforward in lambdamesh-system), or at
its --url.`,
		Example: `  lambdamesh publish --source commerce --type order.created.v1 --data '{"orderCode":"4711"}'
  lambdamesh publish --source commerce --type invoice.sent.v1 --data @invoice.json
  lambdamesh publish --context production --service-account shop/adapter --source /shop/adapter --type stock.counted.v1
  lambdamesh publish --url https://eventbus.example.com --ca ca.crt --token-file token --source commerce --type order.created.v1`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.source == "" || o.eventType == "" {
				return usagef("publish needs --source and --type (see `lambdamesh publish --help`)")
			}
			if err := out.validate(); err != nil {
				return err
			}
			ctx, cancel := context.WithCancel(cmd.Context())
			defer cancel()
			client, err := o.bus(ctx, g)
			if err != nil {
				return err
			}
			token, err := o.token(ctx, g)
			if err != nil {
				return err
			}
			events, err := publish(ctx, o, client, token, cmd.InOrStdin())
			if err != nil {
				return err
			}
			if out.format != tableFormat {
				return out.print(cmd.OutOrStdout(), map[string][]stored{"events": events}, nil, nil)
			}
			for _, e := range events {
				fmt.Fprintf(cmd.OutOrStdout(), "stored %s as number %d\n", e.ID, e.Sequence)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.url, "url", "", "the event bus (default: that of the local mesh, else that of the cluster, through its API server)")
	f.StringVar(&o.ca, "ca", "", "`file` with the certificates (PEM) that sign the event bus's (default: those of the installation; with --url those of this machine)")
	f.StringVar(&o.source, "source", "", "the event's source, such as an application's name")
	f.StringVar(&o.eventType, "type", "", "the event's type, such as order.created.v1")
	f.StringVar(&o.id, "id", "", "the event's id (default: a new UUID)")
	f.StringVar(&o.subject, "subject", "", "the event's subject")
	f.StringVar(&o.contentType, "content-type", jsonType, "media type of the data")
	f.StringVar(&o.data, "data", "", "the data: text, @FILE, or @- for standard input")
	f.StringVar(&o.tokenFile, "token-file", "", "`file` with a service-account token made for the audience "+v1alpha1.EventBusTokenAudience)
	f.StringVar(&o.serviceAccount, "service-account", "", "`[NAMESPACE/]NAME` of a service account to request a token of (default, without --url, in a cluster: default)")
	f.StringVarP(&o.namespace, "namespace", "n", "", "the service account's namespace (default: the context's)")
	f.StringArrayVar(&o.extensions, "extension", nil, "an extension attribute NAME=VALUE; repeatable")
	out.register(cmd)
	return cmd
}

// publishTimeout bounds publishing an event.
const publishTimeout = time.Minute

// bus finds the event bus: it sets the URL, and the service account that
// publishes in a cluster, and returns a client for it. The way to a cluster's ends
// with ctx.
func (o *publishOptions) bus(ctx context.Context, g *globals) (*http.Client, error) {
	client := &http.Client{Timeout: publishTimeout}
	switch {
	case o.url != "" && o.ca == "":
		return client, nil
	case o.url != "":
		roots, err := busRoots(ctx, nil, o.ca)
		if err != nil {
			return nil, err
		}
		client.Transport = &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}}
		return client, nil
	}
	t := g.target()
	if t.local() {
		e, err := t.endpoints()
		o.url = e.EventBus
		return client, err
	}
	cfg, err := t.restConfig()
	if err != nil {
		return nil, err
	}
	if o.serviceAccount == "" && o.tokenFile == "" {
		o.serviceAccount = "default"
	}
	o.url, client, err = forwardEventBus(ctx, cfg, o.ca)
	return client, err
}

// tokenSeconds is the shortest life of a token that the API server grants.
const tokenSeconds = 600

// token returns the one to publish with, "" for none.
func (o *publishOptions) token(ctx context.Context, g *globals) (string, error) {
	switch {
	case o.tokenFile != "" && o.serviceAccount != "":
		return "", usagef("give --token-file or --service-account, not both")
	case o.tokenFile != "":
		raw, err := os.ReadFile(o.tokenFile)
		if err != nil {
			return "", fmt.Errorf("read --token-file: %w", err)
		}
		return strings.TrimSpace(string(raw)), nil
	case o.serviceAccount == "":
		return "", nil
	}
	t := g.target()
	namespace, name, ok := strings.Cut(o.serviceAccount, "/")
	if !ok {
		var err error
		if namespace, err = t.namespace(o.namespace); err != nil {
			return "", err
		}
		name = o.serviceAccount
	}
	if namespace == "" || name == "" {
		return "", usagef("--service-account %q: write NAME or NAMESPACE/NAME", o.serviceAccount)
	}
	cfg, err := t.restConfig()
	if err != nil {
		return "", err
	}
	clientset, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return "", fmt.Errorf("connect to the API server %s: %w", cfg.Host, err)
	}
	answer, err := clientset.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, name, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{Audiences: []string{v1alpha1.EventBusTokenAudience}, ExpirationSeconds: new(int64(tokenSeconds))},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("request a token of service account %s/%s: %w", namespace, name, err)
	}
	return answer.Status.Token, nil
}

// publish posts the event in binary mode (CloudEvents HTTP binding, section
// 3.1).
func publish(ctx context.Context, o publishOptions, client *http.Client, token string, stdin io.Reader) ([]stored, error) {
	data, err := readData(o.data, stdin)
	if err != nil {
		return nil, err
	}
	if len(data) > 0 && o.contentType == jsonType && !json.Valid(data) {
		return nil, usagef("--data is not JSON: write JSON, or say what it is with --content-type, such as text/plain")
	}
	if o.id == "" {
		o.id = uuid.NewString()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(o.url, "/")+"/publish", bytes.NewReader(data))
	if err != nil {
		return nil, usagef("--url %q: %w", o.url, err)
	}
	attributes := map[string]string{"specversion": "1.0", "id": o.id, "source": o.source, "type": o.eventType}
	if o.subject != "" {
		attributes["subject"] = o.subject
	}
	for _, e := range o.extensions {
		name, value, ok := strings.Cut(e, "=")
		if !ok {
			return nil, usagef("--extension %q: write NAME=VALUE", e)
		}
		attributes[name] = value
	}
	for name, value := range attributes {
		req.Header.Set("Ce-"+name, percentEncode(value))
	}
	if len(data) > 0 {
		req.Header.Set("Content-Type", o.contentType)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("reach the event bus (is it running?): %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("read the event bus's answer: %w", err)
	}
	if resp.StatusCode/100 != 2 {
		return nil, problemError(resp.Status, body)
	}
	var answer struct {
		Events []stored `json:"events"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, fmt.Errorf("read the event bus's answer %q: %w", body, err)
	}
	return answer.Events, nil
}

func readData(data string, stdin io.Reader) ([]byte, error) {
	name, isFile := strings.CutPrefix(data, "@")
	switch {
	case !isFile:
		return []byte(data), nil
	case name == "-":
		raw, err := io.ReadAll(stdin)
		if err != nil {
			return nil, fmt.Errorf("read standard input: %w", err)
		}
		return raw, nil
	default:
		raw, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("read --data: %w", err)
		}
		return raw, nil
	}
}

// percentEncode encodes an attribute for a header (CloudEvents HTTP binding,
// section 3.1.3.2): everything but printable ASCII, and space, quote, percent.
func percentEncode(value string) string {
	var b strings.Builder
	for _, c := range []byte(value) {
		if c <= ' ' || c >= 0x7f || c == '"' || c == '%' {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// problemError makes a readable error of an RFC 9457 answer.
func problemError(status string, body []byte) error {
	var p struct {
		Title, Detail string
		Errors        []struct{ Field, Message, Detail string }
	}
	if json.Unmarshal(body, &p) != nil || p.Title == "" {
		return fmt.Errorf("the event bus answered %s: %s", status, strings.TrimSpace(string(body)))
	}
	text := "the event bus answered " + status
	if p.Detail != "" {
		text += ": " + p.Detail
	}
	for _, e := range p.Errors {
		text += fmt.Sprintf("; %s: %s%s", e.Field, e.Message, e.Detail)
	}
	return errors.New(text)
}
