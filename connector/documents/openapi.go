package documents

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/getkin/kin-openapi/openapi2"
	"github.com/getkin/kin-openapi/openapi2conv"
	"github.com/getkin/kin-openapi/openapi3"
)

// maxComplaint bounds what is told of an error: the library quotes the document.
const maxComplaint = 512

// OpenAPI reads an OpenAPI 3.x or Swagger 2.0 document, in JSON or YAML. The error
// says what to mend in it.
func OpenAPI(raw []byte) (API, error) {
	api, err := readOpenAPI(raw)
	if err != nil {
		return API{}, fmt.Errorf("the OpenAPI document cannot be used: %w", err)
	}
	return api, nil
}

func readOpenAPI(raw []byte) (api API, err error) {
	if raw, err = normalize(raw); err != nil {
		return API{}, err
	}
	// A panic in the library is about this document, not about us.
	defer func() {
		if recover() != nil {
			err = errors.New("it cannot be understood")
		}
	}()
	var head struct{ OpenAPI, Swagger string }
	if err := json.Unmarshal(raw, &head); err != nil {
		return API{}, errors.New("openapi or swagger must be a version, as text")
	}
	var document *openapi3.T
	switch {
	case strings.HasPrefix(head.OpenAPI, "3."):
		api.Format = "openapi"
		document, err = openapi3.NewLoader().LoadFromData(raw)
	case head.Swagger == "2.0":
		api.Format = "swagger"
		document, err = readSwagger(raw)
	default:
		err = errors.New("neither openapi: 3.x nor swagger: \"2.0\" is in it")
	}
	if err == nil {
		err = document.Validate(context.Background(), openapi3.DisableExamplesValidation(), openapi3.DisableSchemaDefaultsValidation(),
			openapi3.DisableSchemaPatternValidation())
	}
	if err != nil {
		return API{}, complaint(err)
	}
	api.Title, api.Version = document.Info.Title, document.Info.Version
	for _, item := range document.Paths.Map() {
		api.Operations += len(item.Operations())
	}
	return api, nil
}

func readSwagger(raw []byte) (*openapi3.T, error) {
	var old openapi2.T
	if err := json.Unmarshal(raw, &old); err != nil {
		return nil, err
	}
	return openapi2conv.ToV3(&old)
}

func complaint(err error) error {
	text, _, _ := strings.Cut(err.Error(), "\n")
	if len(text) > maxComplaint {
		text = text[:maxComplaint] + "..."
	}
	return errors.New(strings.ToValidUTF8(text, "?"))
}
