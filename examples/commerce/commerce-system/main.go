// Command commerce-system stands for a third-party commerce system. It knows
// nothing of Lambdamesh: it has an API for orders, protected by OAuth2, and
// tells the event bus of its owner when an order was created.
//
//	commerce-system [--address 127.0.0.1:8180]       serves it
//	commerce-system order --total 120 --customer ada  buys something there
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "commerce-system:", err)
		os.Exit(1) //nolint:forbidigo // this is main
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) > 0 && args[0] == "order" {
		return order(ctx, args[1:], out)
	}
	return serve(ctx, args, out)
}

// env returns a variable of the environment or the default.
func env(name, value string) string {
	if set := os.Getenv(name); set != "" {
		return set
	}
	return value
}

func serve(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("commerce-system", flag.ContinueOnError)
	address := flags.String("address", "127.0.0.1:8180", "where to serve")
	bus := flags.String("eventbus", env("LAMBDAMESH_EVENTBUS_URL", "http://127.0.0.1:8081"), "URL of the event bus ($LAMBDAMESH_EVENTBUS_URL)")
	if err := flags.Parse(args); err != nil {
		return err
	}
	system := newSystem(*bus, credentials{
		id:     env("COMMERCE_CLIENT_ID", "lambdamesh"),
		secret: env("COMMERCE_CLIENT_SECRET", "not-a-secret-but-a-demo"),
	})
	server := &http.Server{Addr: *address, Handler: system.handler(), ReadHeaderTimeout: 5 * time.Second}
	done := make(chan error, 1)
	go func() { done <- server.ListenAndServe() }()
	fmt.Fprintf(out, "commerce system at http://%s, events to %s\n", *address, *bus)
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	return server.Shutdown(drain)
}

// order buys something in the shop that runs.
func order(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("commerce-system order", flag.ContinueOnError)
	url := flags.String("url", "http://127.0.0.1:8180", "the commerce system")
	total := flags.Float64("total", 120, "what it costs")
	customer := flags.String("customer", "ada", "who buys")
	if err := flags.Parse(args); err != nil {
		return err
	}
	body, err := json.Marshal(checkout{Customer: *customer, Total: *total})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, *url+"/checkout", bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request) //nolint:forbidigo // the context bounds it
	if err != nil {
		return fmt.Errorf("is the commerce system running? %w", err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusCreated {
		return fmt.Errorf("the checkout answered %s: %s", response.Status, bytes.TrimSpace(answer))
	}
	_, err = out.Write(answer)
	return err
}
