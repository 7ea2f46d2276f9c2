package dev

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Endpoints are where a running local mesh listens, as written to
// <data-dir>/endpoints.json: the addresses it really got. The file is there
// only while it runs.
type Endpoints struct {
	Gateway       string `json:"gateway"`
	GatewayTLS    string `json:"gatewayTLS"`
	EventBus      string `json:"eventbus"`
	EventBusAdmin string `json:"eventbusAdmin"`
	Connector     string `json:"connector"`
	// Webhooks is Connector under another name, without client certificates; behind
	// it comes /webhooks/<application>/<name>.
	Webhooks string `json:"webhooks"`
	// ConnectorOutbound takes mutual TLS only: it is the connector's sidecar.
	// Lambdas reach it as http://connector-outbound.
	ConnectorOutbound string `json:"connectorOutbound"`
	// XDS is the ADS server's host:port (gRPC over TLS, service-account token).
	XDS        string `json:"xds"`
	Kubernetes string `json:"kubernetes"`
	// Lambdas is the Unix socket of this user alone at which `lambdamesh lambda
	// invoke` calls them.
	Lambdas string `json:"lambdas"`
	PID     int    `json:"pid"`
}

// ReadEndpoints reads those of the mesh that runs with a data directory; the
// error is fs.ErrNotExist when none runs.
func ReadEndpoints(dataDir string) (Endpoints, error) {
	var e Endpoints
	path := filepath.Join(dataDir, EndpointsFile)
	raw, err := os.ReadFile(path)
	if err != nil {
		return e, fmt.Errorf("read endpoints: %w", err)
	}
	if err := json.Unmarshal(raw, &e); err != nil {
		return e, fmt.Errorf("read %s: %w", path, err)
	}
	return e, nil
}

// write puts the file in place at once, so that a reader never sees half of it.
func (e Endpoints) write(dataDir string) error {
	raw, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		return fmt.Errorf("encode endpoints: %w", err)
	}
	path := filepath.Join(dataDir, EndpointsFile)
	temporary := path + ".tmp"
	if err := os.WriteFile(temporary, append(raw, '\n'), 0o600); err != nil {
		return fmt.Errorf("write endpoints: %w", err)
	}
	if err := os.Rename(temporary, path); err != nil {
		return fmt.Errorf("write endpoints: %w", err)
	}
	return nil
}

func removeEndpoints(dataDir string) error {
	err := os.Remove(filepath.Join(dataDir, EndpointsFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove endpoints: %w", err)
	}
	return nil
}
