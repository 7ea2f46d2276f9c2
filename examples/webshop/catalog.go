package main

import (
	"encoding/json"

	"github.com/lambdamesh/lambdamesh/examples/webshop/internal/mesh"
	"github.com/lambdamesh/lambdamesh/examples/webshop/internal/shop"
)

// stockService identifies the service whose callers show a certificate.
const stockService = "stock"

// servicesOf the shop, as the mesh's registry is told of them. url is where it
// serves, stockURL where its stock's port does; empty: that is not served.
func servicesOf(c shop.Credentials, url, stockURL string) []mesh.Service {
	services := []mesh.Service{
		{
			Identifier: "orders", Provider: "webshop", Name: "Orders", Description: "The orders, and what becomes of them",
			API: &mesh.API{
				TargetURL: url + "/api", Spec: shop.Document(shop.OpenAPI),
				Credentials: &mesh.Credentials{OAuth: &mesh.OAuth{URL: url + "/oauth/token", ClientID: c.ClientID, ClientSecret: c.ClientSecret}},
			},
			Events: &mesh.Events{Spec: shop.Document(shop.AsyncAPI)},
		},
		{
			Identifier: "orders-odata", Provider: "webshop", Name: "Orders OData", Description: "The orders as OData, to change them",
			API: &mesh.API{
				TargetURL: url + "/odata", APIType: "odata", Spec: text(shop.Document(shop.EDMX)),
				Credentials: &mesh.Credentials{Basic: &mesh.Basic{
					Username: c.Username, Password: c.Password, CSRF: &mesh.CSRF{TokenEndpointURL: url + "/odata/"},
				}},
			},
		},
	}
	if stockURL != "" {
		services = append(services, mesh.Service{
			Identifier: stockService, Provider: "webshop", Name: "Stock", Description: "How much there is of a product",
			API: &mesh.API{
				TargetURL: stockURL + "/stock", Credentials: &mesh.Credentials{CertificateGen: &mesh.CertificateGen{CommonName: "lambdamesh"}},
			},
		})
	}
	return services
}

// text is a document that is no JSON, as a JSON text.
func text(raw []byte) json.RawMessage {
	encoded, err := json.Marshal(string(raw))
	if err != nil {
		panic(err) // texts can be encoded
	}
	return encoded
}
