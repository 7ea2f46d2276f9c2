package documents

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"

	"sigs.k8s.io/yaml"
)

const (
	// MaxBytes of a document; its fields in the kinds have the same limit.
	MaxBytes = 512 << 10
	// maxExpanded bounds what a document's YAML aliases may make of it.
	maxExpanded = 2 << 20
	// maxDepth of what is nested in a document.
	maxDepth = 96
)

// API is what a document says of an API.
type API struct {
	// Format: openapi, swagger or odata.
	Format         string
	Title, Version string
	// Operations is how many it describes.
	Operations int
}

// IsURL reports whether text names a document instead of being one.
func IsURL(text string) bool {
	return strings.HasPrefix(text, "http://") || strings.HasPrefix(text, "https://")
}

// normalize returns a JSON or YAML document as JSON that is safe to decode.
func normalize(raw []byte) ([]byte, error) {
	if len(raw) > MaxBytes {
		return nil, fmt.Errorf("it has %d bytes, %d are allowed", len(raw), MaxBytes)
	}
	raw = bytes.TrimSpace(raw)
	if !bytes.HasPrefix(raw, []byte("{")) {
		// The decoder refuses what grows out of proportion by aliases.
		converted, err := yaml.YAMLToJSON(raw)
		if err != nil {
			return nil, errors.New("it is neither JSON nor YAML")
		}
		raw = converted
	}
	if len(raw) > maxExpanded {
		return nil, fmt.Errorf("its aliases make %d bytes of it, %d are allowed", len(raw), maxExpanded)
	}
	if depth(raw) > maxDepth {
		return nil, fmt.Errorf("it is nested more than %d deep", maxDepth)
	}
	if !bytes.HasPrefix(raw, []byte("{")) {
		return nil, errors.New("it is no object")
	}
	if !json.Valid(raw) {
		return nil, errors.New("it is no valid JSON")
	}
	return raw, nil
}

// depth of the brackets of a JSON text.
func depth(raw []byte) (deepest int) {
	open, inString := 0, false
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{' || c == '[':
			open++
			deepest = max(deepest, open)
		case c == '}' || c == ']':
			open--
		}
	}
	return deepest
}

// OData reads the metadata document of an OData service (EDMX).
func OData(raw []byte) (API, error) {
	if len(raw) > MaxBytes {
		return API{}, fmt.Errorf("the OData metadata cannot be used: it has %d bytes, %d are allowed", len(raw), MaxBytes)
	}
	api := API{Format: "odata"}
	decoder := xml.NewDecoder(bytes.NewReader(raw))
	level := 0
	for root := true; ; {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) && !root {
			return api, nil
		}
		if err != nil {
			return API{}, errors.New("the OData metadata cannot be used: it is no well-formed XML")
		}
		switch token := token.(type) {
		case xml.StartElement:
			if root && token.Name.Local != "Edmx" {
				return API{}, errors.New("the OData metadata cannot be used: its root is not edmx:Edmx")
			}
			if root {
				api.Version = attribute(token, "Version")
				root = false
			}
			if level++; level > maxDepth {
				return API{}, fmt.Errorf("the OData metadata cannot be used: it is nested more than %d deep", maxDepth)
			}
			switch token.Name.Local {
			case "Schema":
				if api.Title == "" {
					api.Title = attribute(token, "Namespace")
				}
			case "EntitySet", "Singleton", "FunctionImport", "ActionImport":
				api.Operations++
			}
		case xml.EndElement:
			level--
		}
	}
}

func attribute(element xml.StartElement, name string) string {
	for _, a := range element.Attr {
		if a.Name.Local == name {
			return a.Value
		}
	}
	return ""
}
