package outbound

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
)

// Probe asks the target of an API whether it is there, without a token or a
// password. Every answer but a 5xx says that it is.
func (g *Gateway) Probe(ctx context.Context, api *v1alpha1.ServiceAPI) error {
	endpoint, err := Resolve(api, g.secrets(ctx), g.targets)
	if err != nil {
		return err
	}
	path := "/"
	if api.Probe != nil && api.Probe.Path != "" {
		path = api.Probe.Path
	}
	target, err := endpoint.url(path, "")
	if err != nil {
		return fmt.Errorf("probe.path: %w", err)
	}
	target.RawQuery = "" // it may hold credentials
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), nil)
	if err != nil {
		return fmt.Errorf("probe.path: %w", err)
	}
	request.Header.Set("User-Agent", "lambdamesh-probe")
	response, err := g.transports.get(endpoint.tls).RoundTrip(request)
	if err != nil {
		var failed *url.Error
		switch {
		case errors.As(err, &failed):
			err = failed.Err
		case targets.IsRefused(err):
		case ctx.Err() != nil:
			return errors.New("the target did not answer in time")
		}
		return fmt.Errorf("the target could not be reached: %w", err)
	}
	defer response.Body.Close()
	_, _ = io.CopyN(io.Discard, response.Body, maxDrained)
	if response.StatusCode >= http.StatusInternalServerError {
		return fmt.Errorf("the target answered %d", response.StatusCode)
	}
	return nil
}
