// Webshop is a third-party commerce system to connect a Lambdamesh with: it sells
// things, serves its orders to who has credentials, pairs itself with the mesh as
// a client of Kyma does, registers what it offers, and sends events. README.md
// walks through it.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/lambdamesh/lambdamesh/examples/webshop/internal/mesh"
	"github.com/lambdamesh/lambdamesh/examples/webshop/internal/shop"
	"github.com/lambdamesh/lambdamesh/examples/webshop/internal/webhook"
)

const (
	startTimeout = time.Minute
	stopTimeout  = 10 * time.Second
	// A renewal that failed is tried again after renewAgain.
	renewAgain = time.Hour
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdin, os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "webshop:", err)
		stop()
		os.Exit(1)
	}
}

type options struct {
	dir, token, address, url, stockAddress, webhook string
	revoke                                          bool
}

func run(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	var o options
	flags := flag.NewFlagSet("webshop", flag.ContinueOnError)
	flags.SetOutput(out)
	flags.StringVar(&o.dir, "dir", ".webshop", "`directory` of the key, the certificate and the shop's own credentials")
	flags.StringVar(&o.token, "token", "", "`file` with a TokenRequest's Secret as kubectl prints it in JSON, - for standard input; needed once")
	flags.StringVar(&o.address, "address", "127.0.0.1:8084", "where customers and the mesh reach the shop")
	flags.StringVar(&o.url, "url", "", "`URL` under which the mesh reaches --address (default: http://ADDRESS)")
	flags.StringVar(&o.stockAddress, "stock-address", "", "where the mesh reaches the stock, with its client certificate (default: it is not served)")
	flags.StringVar(&o.webhook, "webhook", "", "`URL` that is told, signed, when an order is packed or shipped; --dir has the secret")
	flags.BoolVar(&o.revoke, "revoke", false, "end the certificate, and nothing else")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if err := os.MkdirAll(o.dir, 0o700); err != nil {
		return fmt.Errorf("make --dir: %w", err)
	}
	starting, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	connection, err := o.connect(starting, in)
	if err != nil {
		return err
	}
	if o.revoke {
		err := connection.Revoke(starting)
		if err == nil {
			fmt.Fprintln(out, "webshop: the certificate is revoked")
		}
		return err
	}
	_, until := connection.Life()
	fmt.Fprintf(out, "webshop: paired as %s until %s\n", connection.Application(), until.Format(time.DateOnly))
	return o.serve(ctx, connection, out)
}

// connect pairs where there is a token, and goes on with what is paired elsewhere.
func (o *options) connect(ctx context.Context, in io.Reader) (*mesh.Connection, error) {
	if o.token == "" {
		connection, err := mesh.Open(o.dir)
		if errors.Is(err, mesh.ErrNotPaired) {
			return nil, fmt.Errorf("%s is not paired yet: pass --token", o.dir)
		}
		return connection, err
	}
	if o.token != "-" {
		file, err := os.Open(o.token)
		if err != nil {
			return nil, fmt.Errorf("read --token: %w", err)
		}
		defer file.Close()
		in = file
	}
	secret, err := io.ReadAll(io.LimitReader(in, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("read --token: %w", err)
	}
	token, err := mesh.ReadToken(secret)
	if err != nil {
		return nil, err
	}
	return mesh.Pair(ctx, o.dir, token)
}

// serve opens the shop until ctx ends.
func (o *options) serve(ctx context.Context, connection *mesh.Connection, out io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	log := func(format string, args ...any) { fmt.Fprintf(out, "webshop: "+format+"\n", args...) }
	credentials, err := shop.KeptCredentials(o.dir)
	if err != nil {
		return err
	}
	changed, err := o.tellChanges(ctx, connection, log)
	if err != nil {
		return err
	}
	s := shop.New(shop.Config{
		Credentials: credentials, Log: log,
		Created: func(ctx context.Context, order shop.Order) error {
			return connection.Publish(ctx, "order.created", "v1", order.Code, map[string]string{"orderCode": order.Code})
		},
		Changed: changed,
	})
	failed := make(chan error, 2)
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", o.address)
	if err != nil {
		return fmt.Errorf("listen at --address: %w", err)
	}
	url := strings.TrimSuffix(o.url, "/")
	if url == "" {
		url = "http://" + listener.Addr().String()
	}
	defer start(listener, s.Handler(), failed)()
	var stockURL string
	if o.stockAddress != "" {
		listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", o.stockAddress)
		if err != nil {
			return fmt.Errorf("listen at --stock-address: %w", err)
		}
		host, _, err := net.SplitHostPort(listener.Addr().String())
		if err != nil {
			return fmt.Errorf("listen at --stock-address: %w", err)
		}
		config, err := s.StockTLS(o.dir, host)
		if err != nil {
			return err
		}
		stockURL = "https://" + listener.Addr().String()
		defer start(tls.NewListener(listener, config), s.StockHandler(), failed)()
	}
	if err := register(ctx, connection, servicesOf(credentials, url, stockURL), s, log); err != nil {
		return err
	}
	go keepRenewed(ctx, connection, log)
	log("open at %s; buy something: curl %s/checkout -d '{\"customer\":\"ada\",\"total\":120}'", url, url)
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return err
	}
}

// tellChanges returns what makes an order's new status a webhook, where one is
// wanted.
func (o *options) tellChanges(ctx context.Context, connection *mesh.Connection, log func(string, ...any)) (func(shop.Order), error) {
	if o.webhook == "" {
		return func(shop.Order) {}, nil
	}
	sender, err := webhook.NewSender(webhook.Config{URL: o.webhook, CA: connection.CA(), Dir: o.dir, Log: log})
	if err != nil {
		return nil, err
	}
	go sender.Run(ctx)
	return func(order shop.Order) {
		if err := sender.Send("order."+strings.ToLower(order.Status)+".v1", map[string]string{"orderCode": order.Code}); err != nil {
			log("%v", err)
		}
	}, nil
}

// register tells the mesh of the services, and admits the client certificate that
// it made for the stock.
func register(ctx context.Context, connection *mesh.Connection, services []mesh.Service, s *shop.Shop, log func(string, ...any)) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	registered, err := connection.Register(ctx, services)
	if err != nil {
		return err
	}
	for _, service := range services {
		log("registered %s: %s", service.Name, service.API.TargetURL)
	}
	if stock, ok := registered[stockService]; ok && stock.API != nil && stock.API.Credentials != nil && stock.API.Credentials.CertificateGen != nil {
		return s.Admit(stock.API.Credentials.CertificateGen.Certificate)
	}
	return nil
}

// keepRenewed renews the certificate when a third of its life is left.
func keepRenewed(ctx context.Context, connection *mesh.Connection, log func(string, ...any)) {
	wait := time.Until(connection.RenewAt())
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		if err := connection.Renew(ctx); err != nil {
			log("%v", err)
			wait = renewAgain
			continue
		}
		_, until := connection.Life()
		log("paired until %s", until.Format(time.DateOnly))
		wait = time.Until(connection.RenewAt())
	}
}

// start serves until the function that it returns is called, which lets requests
// under way end.
func start(listener net.Listener, handler http.Handler, failed chan<- error) (stop func()) {
	server := &http.Server{Handler: handler, ReadTimeout: 10 * time.Second, WriteTimeout: time.Minute, IdleTimeout: 2 * time.Minute}
	go func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			failed <- fmt.Errorf("serve at %s: %w", listener.Addr(), err)
		}
	}()
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		_ = server.Shutdown(ctx) // who has not been answered by then is not
	}
}
