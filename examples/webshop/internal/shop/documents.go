package shop

import "embed"

//go:embed documents
var documents embed.FS //nolint:gochecknoglobals // embedded files

// Names of the documents that describe the shop's services.
const (
	OpenAPI  = "orders.openapi.json"
	AsyncAPI = "orders.asyncapi.json"
	EDMX     = "orders.edmx"
)

// Document of a name.
func Document(name string) []byte {
	raw, err := documents.ReadFile("documents/" + name)
	if err != nil {
		panic(err) // it is embedded under this name
	}
	return raw
}
