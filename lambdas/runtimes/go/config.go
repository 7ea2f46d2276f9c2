package lambda

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

// The environment of a lambda's process; pkg/apis/v1alpha1 holds the contract.
const (
	envListen       = "LAMBDAMESH_LISTEN"
	envAdminListen  = "LAMBDAMESH_ADMIN_LISTEN"
	envLambda       = "LAMBDAMESH_LAMBDA"
	envNamespace    = "LAMBDAMESH_NAMESPACE"
	envTimeout      = "LAMBDAMESH_TIMEOUT"
	envMaxBodyBytes = "LAMBDAMESH_MAX_BODY_BYTES"
	envConcurrency  = "LAMBDAMESH_CONCURRENCY"
	envPublishURL   = "LAMBDAMESH_PUBLISH_URL"
	envConnectorURL = "LAMBDAMESH_CONNECTOR_URL"

	envSidecar         = "LAMBDAMESH_SIDECAR"
	envTrustDomain     = "LAMBDAMESH_TRUST_DOMAIN"
	envSystemNamespace = "LAMBDAMESH_SYSTEM_NAMESPACE"
	envGateways        = "LAMBDAMESH_GATEWAYS"
)

type config struct {
	listen, adminListen      string
	lambda, namespace        string
	timeout                  time.Duration
	maxBodyBytes             int64
	concurrency              int // 0: any
	publishURL, connectorURL string
	identities               identities
}

func configFromEnv() (config, error) {
	systemNamespace := firstOf(os.Getenv(envSystemNamespace), "lambdamesh-system")
	c := config{
		listen:      firstOf(os.Getenv(envListen), "tcp::"+firstOf(os.Getenv("PORT"), "8080")),
		adminListen: firstOf(os.Getenv(envAdminListen), "tcp::8081"),
		lambda:      firstOf(os.Getenv(envLambda), "lambda"), namespace: firstOf(os.Getenv(envNamespace), "default"),
		timeout: 180 * time.Second, maxBodyBytes: 1 << 20,
		publishURL: os.Getenv(envPublishURL), connectorURL: os.Getenv(envConnectorURL),
		identities: identities{
			sidecar: os.Getenv(envSidecar) != "", trustDomain: firstOf(os.Getenv(envTrustDomain), "cluster.local"), systemNamespace: systemNamespace,
			gateways: strings.Split(firstOf(os.Getenv(envGateways), systemNamespace+"/gateway"), ","),
		},
	}
	var problems []error
	if text := os.Getenv(envTimeout); text != "" {
		timeout, err := time.ParseDuration(text)
		if err != nil || timeout <= 0 {
			problems = append(problems, fmt.Errorf("%s=%q: want a positive duration such as 180s", envTimeout, text))
		} else {
			c.timeout = timeout
		}
	}
	if text := os.Getenv(envMaxBodyBytes); text != "" {
		limit, err := strconv.ParseInt(text, 10, 64)
		if err != nil || limit <= 0 {
			problems = append(problems, fmt.Errorf("%s=%q: want a positive number of bytes", envMaxBodyBytes, text))
		} else {
			c.maxBodyBytes = limit
		}
	}
	if text := os.Getenv(envConcurrency); text != "" {
		concurrency, err := strconv.Atoi(text)
		if err != nil || concurrency <= 0 {
			problems = append(problems, fmt.Errorf("%s=%q: want a positive number of invocations", envConcurrency, text))
		} else {
			c.concurrency = concurrency
		}
	}
	return c, errors.Join(problems...)
}

func (c config) newContext(logger *slog.Logger, client *http.Client) *Context {
	return &Context{
		Lambda: c.lambda, Namespace: c.namespace, Timeout: c.timeout, Logger: logger, Caller: Caller{Kind: CallerOther},
		publishURL: c.publishURL, connectorURL: c.connectorURL, client: client,
	}
}

// listen opens "unix:/path" or "tcp:host:port".
func listen(ctx context.Context, address string) (net.Listener, error) {
	network, rest, found := strings.Cut(address, ":")
	if !found || network != "unix" && network != "tcp" {
		return nil, fmt.Errorf("listen address %q: want unix:/path or tcp:host:port", address)
	}
	if network == "unix" {
		// A socket that an earlier, killed process left behind.
		if info, err := os.Lstat(rest); err == nil && info.Mode()&fs.ModeSocket != 0 {
			_ = os.Remove(rest)
		}
	}
	return (&net.ListenConfig{}).Listen(ctx, network, rest)
}
