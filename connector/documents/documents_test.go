package documents_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/connector/documents"
)

const openapi = `{"openapi":"3.0.3","info":{"title":"Orders","version":"1.2"},"paths":{
"/orders":{"get":{"responses":{"200":{"description":"all"}}},"post":{"responses":{"201":{"description":"made"}}}},
"/orders/{id}":{"get":{"parameters":[{"name":"id","in":"path","required":true,"schema":{"type":"string"}}],"responses":{"200":{"description":"one"}}}}}}`

const swagger = `
swagger: "2.0"
info: {title: Stock, version: "7"}
host: shop.example.com
paths:
  /stock:
    get: {responses: {"200": {description: all, schema: {$ref: "#/definitions/Stock"}}}}
definitions:
  Stock: {type: object, properties: {sku: {type: string}}}
`

const edmx = `<?xml version="1.0"?><edmx:Edmx Version="4.0" xmlns:edmx="x"><edmx:DataServices><Schema Namespace="commerce">` +
	`<EntityContainer Name="c"><EntitySet Name="Orders"/><EntitySet Name="Products"/></EntityContainer></Schema></edmx:DataServices></edmx:Edmx>`

func TestAPIDocumentsAreRead(t *testing.T) {
	got, err := documents.OpenAPI([]byte(openapi))
	require.NoError(t, err)
	require.Equal(t, documents.API{Format: "openapi", Title: "Orders", Version: "1.2", Operations: 3}, got)
	got, err = documents.OpenAPI([]byte(swagger))
	require.NoError(t, err)
	require.Equal(t, documents.API{Format: "swagger", Title: "Stock", Version: "7", Operations: 1}, got)
	got, err = documents.OData([]byte(edmx))
	require.NoError(t, err)
	require.Equal(t, documents.API{Format: "odata", Title: "commerce", Version: "4.0", Operations: 2}, got)
}

func TestAPIDocumentsThatCannotBeUsedSayWhy(t *testing.T) {
	for name, tc := range map[string]struct{ document, want string }{
		"nothing of the kind":      {`{"hello":1}`, "neither openapi: 3.x nor swagger"},
		"no version as text":       {`{"openapi":3}`, "must be a version, as text"},
		"a list":                   {`[1]`, "it is no object"},
		"a text":                   {`hello`, "it is no object"},
		"neither JSON nor YAML":    {"a: [\n", "neither JSON nor YAML"},
		"broken JSON":              {`{"openapi":"3.0.0"`, "it is no valid JSON"},
		"no info":                  {`{"openapi":"3.0.3","paths":{}}`, "info"},
		"an operation of nothing":  {strings.Replace(openapi, `"responses":{"200":{"description":"all"}}`, `"x":1`, 1), "cannot be used"},
		"a reference to nothing":   {strings.Replace(openapi, `{"type":"string"}`, `{"$ref":"#/components/schemas/No"}`, 1), "No"},
		"a reference to a file":    {strings.Replace(openapi, `{"type":"string"}`, `{"$ref":"file:///etc/passwd"}`, 1), "external"},
		"a reference to an URL":    {strings.Replace(openapi, `{"type":"string"}`, `{"$ref":"http://127.0.0.1:1/x"}`, 1), "external"},
		"too large":                {`{"openapi":"3.0.3","x":"` + strings.Repeat("x", documents.MaxBytes) + `"}`, "524288 are allowed"},
		"nested too deep":          {`{"x":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`, "nested more than 96 deep"},
		"YAML nested too deep":     {"openapi: 3.0.3\nx: " + strings.Repeat("[", 100) + strings.Repeat("]", 100), "nested more than 96 deep"},
		"YAML that grows by alias": {billion(), "cannot be used"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := documents.OpenAPI([]byte(tc.document))
			require.ErrorContains(t, err, "the OpenAPI document cannot be used: ")
			require.ErrorContains(t, err, tc.want)
			require.Less(t, len(err.Error()), 1000)
		})
	}
	for name, document := range map[string]string{
		"no XML": "{}", "not whole": "<Edmx>", "another root": "<html></html>", "empty": "",
		"nested too deep": "<Edmx>" + strings.Repeat("<a>", 100) + strings.Repeat("</a>", 100) + "</Edmx>",
		"too large":       "<Edmx>" + strings.Repeat(" ", documents.MaxBytes) + "</Edmx>",
	} {
		t.Run("odata "+name, func(t *testing.T) {
			_, err := documents.OData([]byte(document))
			require.ErrorContains(t, err, "the OData metadata cannot be used: ")
		})
	}
}

// billion is a document that says a lot in few words.
func billion() string {
	var b strings.Builder
	b.WriteString("openapi: 3.0.3\na0: &a0 [x,x,x,x,x,x,x,x,x,x]\n")
	for i := 1; i < 9; i++ {
		fmt.Fprintf(&b, "a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d,", i-1), 10), ","))
	}
	return b.String()
}

const (
	async1 = `{"asyncapi":"1.0.0","info":{"title":"x","version":"1"},"baseTopic":"stage","topics":{
		"order.created.v1":{"subscribe":{"summary":"An order was made","payload":{"type":"object","required":["orderCode"],"properties":{"orderCode":{"type":"string"}}}}}}}`
	async2 = `
asyncapi: 2.6.0
info: {title: x, version: "1"}
channels:
  order/paid/v1: {publish: {message: {$ref: '#/components/messages/Paid'}}}
  stock.changed.v1:
    subscribe: {message: {oneOf: [{payload: {type: string}}, {payload: {type: number}}]}}
  product.seen.v1: {subscribe: {message: {summary: Seen, schemaFormat: application/vnd.apache.avro, payload: {type: record}}}}
components:
  messages:
    Paid: {title: Paid, payload: {$ref: '#/components/schemas/Order'}}
  schemas:
    Order: {type: object, properties: {lines: {type: array, items: {$ref: '#/components/schemas/Line'}}, parent: {$ref: '#/components/schemas/Order'}}}
    Line: {type: object, required: [sku], properties: {sku: {type: string}, "$ref": {type: string}}}
`
	async3 = `
asyncapi: 3.0.0
info: {title: x, version: "1"}
channels:
  returned:
    address: order.returned.v1
    messages: {one: {$ref: '#/components/messages/Returned'}}
components:
  messages:
    Returned: {summary: Returned, payload: {schemaFormat: 'application/vnd.aai.asyncapi+json;version=3.0.0', schema: {type: object, required: [reason]}}}
`
)

func TestEventTypesAreRead(t *testing.T) {
	for name, tc := range map[string]struct {
		document  string
		want      map[string]string // type: description
		fits, bad map[string]string // type: data
	}{
		"version 1": {
			async1,
			map[string]string{"order.created.v1": "An order was made"},
			map[string]string{"order.created.v1": `{"orderCode":"1"}`},
			map[string]string{"order.created.v1": `{"orderCode":1}`},
		},
		"version 2": {
			async2,
			map[string]string{"order.paid.v1": "Paid", "stock.changed.v1": "", "product.seen.v1": "Seen"},
			map[string]string{"order.paid.v1": `{"lines":[{"sku":"a","$ref":"b"}],"parent":{"lines":[]}}`, "stock.changed.v1": `"x"`},
			map[string]string{"order.paid.v1": `{"parent":{"lines":[{}]}}`, "stock.changed.v1": `{}`},
		},
		"version 3": {
			async3,
			map[string]string{"order.returned.v1": "Returned"},
			map[string]string{"order.returned.v1": `{"reason":1}`},
			map[string]string{"order.returned.v1": `{}`},
		},
		"no channels": {"asyncapi: 2.0.0\nchannels: {}", map[string]string{}, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			types, err := documents.AsyncAPI([]byte(tc.document))
			require.NoError(t, err)
			got, schemas := map[string]string{}, map[string]*jsonschema.Schema{}
			for _, found := range types {
				got[found.Type] = found.Description
				if found.Schema != nil {
					schemas[found.Type] = compiled(t, found.Schema)
				}
			}
			require.Equal(t, tc.want, got)
			require.NotContains(t, schemas, "product.seen.v1", "that schema is in another language")
			for eventType, data := range tc.fits {
				require.NoError(t, schemas[eventType].Validate(decoded(t, data)), eventType)
			}
			for eventType, data := range tc.bad {
				require.Error(t, schemas[eventType].Validate(decoded(t, data)), eventType)
			}
		})
	}
}

func compiled(t *testing.T, raw []byte) *jsonschema.Schema {
	t.Helper()
	compiler := jsonschema.NewCompiler()
	require.NoError(t, compiler.AddResource("urn:x", decoded(t, string(raw))))
	schema, err := compiler.Compile("urn:x")
	require.NoError(t, err)
	return schema
}

func decoded(t *testing.T, text string) any {
	t.Helper()
	value, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	require.NoError(t, err)
	return value
}

func TestEventDocumentsThatCannotBeUsedSayWhy(t *testing.T) {
	payload := func(schema string) string {
		return `{"asyncapi":"2.0.0","channels":{"a.v1":{"subscribe":{"message":{"payload":` + schema + `}}}}}`
	}
	many := `{"asyncapi":"2.0.0","channels":{`
	for i := range documents.MaxEventTypes + 1 {
		many += fmt.Sprintf(`"t%d":{},`, i)
	}
	many = strings.TrimSuffix(many, ",") + "}}"
	var deep strings.Builder // small, and 2^40 when it is written out
	deep.WriteString(`{"asyncapi":"2.0.0","channels":{"a.v1":{"subscribe":{"message":{"payload":{"$ref":"#/s/S0"}}}}},"s":{`)
	for i := range 40 {
		fmt.Fprintf(&deep, `"S%d":{"properties":{"a":{"$ref":"#/s/S%d"},"b":{"$ref":"#/s/S%d"}}},`, i, i+1, i+1)
	}
	deep.WriteString(`"S40":{}}}`)
	types, err := documents.AsyncAPI([]byte(deep.String()))
	require.NoError(t, err)
	require.Less(t, len(types[0].Schema), 8<<10, "each is written once")

	for name, tc := range map[string]struct{ document, want string }{
		"no version":              {`{"channels":{}}`, "asyncapi: 1.x, 2.x or 3.x is not in it"},
		"channels as a list":      {`{"asyncapi":"2.0.0","channels":[]}`, "channels must be an object"},
		"too many":                {many, "257 channels, 256 are allowed"},
		"a parameter in a name":   {`{"asyncapi":"2.0.0","channels":{"order.{id}":{}}}`, "such as order.created.v1"},
		"a wildcard in a name":    {`{"asyncapi":"2.0.0","channels":{"order.>":{}}}`, "such as order.created.v1"},
		"an empty token":          {`{"asyncapi":"2.0.0","channels":{"order..v1":{}}}`, "such as order.created.v1"},
		"one type twice":          {`{"asyncapi":"2.0.0","channels":{"a.b":{},"a/b":{}}}`, "another one is the type a.b, too"},
		"a message that is none":  {`{"asyncapi":"2.0.0","channels":{"a":{"subscribe":{"message":1}}}}`, "channels: a: it must be an object"},
		"a schema of another":     {payload(`{"$ref":"https://example.com/x.json"}`), "leads to another document, which is not read"},
		"a part of another":       {payload(`{"properties":{"a":{"$ref":"file:///etc/passwd"}}}`), "leads to another document, which is not read"},
		"a reference to nothing":  {payload(`{"properties":{"a":{"$ref":"#/x/y"}}}`), "leads nowhere"},
		"a circle of references":  {`{"asyncapi":"2.0.0","channels":{"a":{"$ref":"#/channels/b"},"b":{"$ref":"#/channels/a"}}}`, "lead nowhere"},
		"a circle in the payload": {`{"asyncapi":"2.0.0","s":{"a":{"$ref":"#/s/a"}},"channels":{"a":{"subscribe":{"message":{"payload":{"$ref":"#/s/a"}}}}}}`, "lead nowhere"},
		"no schema":               {payload(`{"type":"order"}`), "no JSON Schema"},
		"a schema as text":        {payload(`"order"`), "must be a schema"},
		"a schema too large":      {payload(`{"description":"` + strings.Repeat("x", 70<<10) + `"}`), "65536 are allowed"},
		"nested too deep":         {payload(strings.Repeat(`{"items":`, 100) + "{}" + strings.Repeat("}", 100)), "nested more than 96 deep"},
	} {
		t.Run(name, func(t *testing.T) {
			begin := time.Now()
			_, err := documents.AsyncAPI([]byte(tc.document))
			require.ErrorContains(t, err, "the AsyncAPI document cannot be used: ")
			require.ErrorContains(t, err, tc.want)
			require.Less(t, time.Since(begin), 20*time.Second)
		})
	}
}

// Whatever is sent: an answer, and schemas that stand by themselves.
func FuzzDocuments(f *testing.F) {
	for _, seed := range []string{openapi, swagger, edmx, async1, async2, async3, billion(), "{}", ""} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		_, _ = documents.OpenAPI(raw)
		_, _ = documents.OData(raw)
		types, err := documents.AsyncAPI(raw)
		if err != nil {
			return
		}
		for _, found := range types {
			if found.Schema != nil && (!json.Valid(found.Schema) || !bytes.HasPrefix(found.Schema, []byte("{")) || len(found.Schema) > 64<<10) {
				t.Errorf("%s: %s", found.Type, found.Schema)
			}
		}
	})
}
