package mesh

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"
)

// Service as the registry of the mesh takes it: an API, events, or both.
type Service struct {
	Provider    string  `json:"provider"`
	Name        string  `json:"name"`
	Description string  `json:"description"`
	Identifier  string  `json:"identifier"` // in the system that registers it
	API         *API    `json:"api,omitempty"`
	Events      *Events `json:"events,omitempty"`
}

// API of a service.
type API struct {
	TargetURL string `json:"targetUrl"`
	// Spec: an OpenAPI document, or with APIType odata EDMX as a JSON text.
	Spec        json.RawMessage `json:"spec,omitempty"`
	APIType     string          `json:"apiType,omitempty"`
	Credentials *Credentials    `json:"credentials,omitempty"`
}

// Credentials that the mesh calls an API with: one of them.
type Credentials struct {
	OAuth          *OAuth          `json:"oauth,omitempty"`
	Basic          *Basic          `json:"basic,omitempty"`
	CertificateGen *CertificateGen `json:"certificateGen,omitempty"`
}

// OAuth is the client credentials grant.
type OAuth struct {
	URL          string `json:"url"`
	ClientID     string `json:"clientId"`
	ClientSecret string `json:"clientSecret"`
}

// Basic is a user name and a password.
type Basic struct {
	Username string `json:"username"`
	Password string `json:"password"`
	CSRF     *CSRF  `json:"csrfInfo,omitempty"`
}

// CSRF says where CSRF tokens are to be had.
type CSRF struct {
	TokenEndpointURL string `json:"tokenEndpointURL"`
}

// CertificateGen has the mesh make a key pair. It tells the certificate, base64 of
// PEM.
type CertificateGen struct {
	CommonName  string `json:"commonName"`
	Certificate []byte `json:"certificate,omitempty"`
}

// Events of a service.
type Events struct {
	Spec json.RawMessage `json:"spec,omitempty"` // AsyncAPI
}

// Register makes the catalog in the mesh hold these services: those with an
// identifier that is there are replaced. It returns what the mesh has of each
// now, by identifier.
func (c *Connection) Register(ctx context.Context, services []Service) (map[string]Service, error) {
	base := c.url("metadataUrl")
	var there []struct{ ID, Identifier string }
	if err := c.call(ctx, http.MethodGet, base, nil, &there); err != nil {
		return nil, fmt.Errorf("list what is registered: %w", err)
	}
	ids := map[string]string{}
	for _, service := range there {
		ids[service.Identifier] = service.ID
	}
	registered := map[string]Service{}
	for _, service := range services {
		id, known := ids[service.Identifier]
		var err error
		if known {
			err = c.call(ctx, http.MethodPut, base+"/"+url.PathEscape(id), service, nil)
		} else {
			var made struct{ ID string }
			err = c.call(ctx, http.MethodPost, base, service, &made)
			id = made.ID
		}
		var has Service
		if err == nil {
			err = c.call(ctx, http.MethodGet, base+"/"+url.PathEscape(id), nil, &has)
		}
		if err != nil {
			return nil, fmt.Errorf("register %s: %w", service.Name, err)
		}
		registered[service.Identifier] = has
	}
	return registered, nil
}

// Publish sends an event and returns when the mesh has stored it. The same id is
// stored once, so that an error may be answered by sending it again. id is a UUID.
func (c *Connection) Publish(ctx context.Context, eventType, version, id string, data any) error {
	event := map[string]any{
		"event-type": eventType, "event-type-version": version, "event-id": id, "event-time": time.Now().UTC().Format(time.RFC3339), "data": data,
	}
	if err := c.call(ctx, http.MethodPost, c.url("eventsUrl"), event, nil); err != nil {
		if refused, ok := errors.AsType[*Refused](err); ok {
			return fmt.Errorf("the event %s was refused: %w", eventType, refused)
		}
		return fmt.Errorf("the event %s was not sent: %w", eventType, err)
	}
	return nil
}
