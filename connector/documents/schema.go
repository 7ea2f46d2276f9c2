package documents

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// draft is the language of schemas that do not name theirs: AsyncAPI's is a
// superset of it.
const draft = "http://json-schema.org/draft-07/schema#"

// bundle makes a schema stand by itself: what it refers to in the document goes
// into its $defs.
func (r reader) bundle(schema any) ([]byte, error) {
	if is, ok := schema.(bool); ok { // as the kinds want an object
		schema = object{}
		if !is {
			schema = object{"not": object{}}
		}
	}
	root, ok := schema.(object)
	if !ok {
		return nil, errors.New("the payload must be a schema: an object")
	}
	// A schema that is a reference only becomes what it refers to.
	if _, only := root["$ref"].(string); only {
		var err error
		if root, err = r.deref(root); err != nil {
			return nil, err
		}
	}
	b := bundler{document: r.document, root: root, names: map[string]string{}, defs: object{}}
	result, ok := b.copy(root).(object)
	for len(b.queue) > 0 && b.err == nil {
		reference := b.queue[0]
		b.queue = b.queue[1:]
		found, _ := resolve(r.document, reference)
		b.defs[b.names[reference]] = b.copy(found)
	}
	if b.err != nil {
		return nil, b.err
	}
	if !ok {
		return nil, errors.New("the payload must be a schema: an object")
	}
	if len(b.defs) > 0 {
		own, _ := result["$defs"].(object)
		for name, value := range own {
			if _, taken := b.defs[name]; !taken {
				b.defs[name] = value
			}
		}
		result["$defs"] = b.defs
	}
	if _, ok := result["$schema"].(string); !ok {
		result["$schema"] = draft
	}
	raw, err := json.Marshal(result)
	if err != nil {
		return nil, errors.New("the payload cannot be written as JSON")
	}
	if len(raw) > maxSchema {
		return nil, fmt.Errorf("the schema of the payload, with all that it refers to, has %d bytes, %d are allowed", len(raw), maxSchema)
	}
	return raw, compile(raw)
}

// bundler copies a schema and notes what it refers to.
type bundler struct {
	document, root object
	names          map[string]string // of references, in $defs
	defs           object
	queue          []string
	size           int
	err            error
}

// copy returns the schema with its references changed.
func (b *bundler) copy(value any) any {
	// Long before this the result is too large.
	if b.size++; b.size > maxSchema {
		b.err = fmt.Errorf("the schema of the payload, with all that it refers to, is larger than %d bytes", maxSchema)
	}
	if b.err != nil {
		return nil
	}
	switch value := value.(type) {
	case []any:
		out := make([]any, len(value))
		for i := range value {
			out[i] = b.copy(value[i])
		}
		return out
	case object:
		out := make(object, len(value))
		for key, inner := range value {
			switch key {
			case "properties", "patternProperties", "definitions", "$defs", "dependentSchemas":
				out[key] = b.copyAll(inner)
			case "enum", "const", "default", "example", "examples":
				out[key] = inner // data, whatever it looks like
			case "$id", "id":
				if _, isText := inner.(string); !isText { // it would change what references mean
					out[key] = b.copy(inner)
				}
			case "$ref":
				out[key] = b.reference(inner)
			default:
				out[key] = b.copy(inner)
			}
		}
		return out
	default:
		return value
	}
}

// copyAll copies schemas by name.
func (b *bundler) copyAll(value any) any {
	named, ok := value.(object)
	if !ok {
		return b.copy(value)
	}
	out := make(object, len(named))
	for name, inner := range named {
		out[name] = b.copy(inner)
	}
	return out
}

func (b *bundler) reference(value any) any {
	reference, ok := value.(string)
	if !ok {
		return b.copy(value)
	}
	if name, known := b.names[reference]; known {
		return "#/$defs/" + name
	}
	if _, found := resolve(b.document, reference); !found {
		if _, inside := resolve(b.root, reference); inside || reference == "#" {
			return reference // inside the schema itself
		}
		b.err = unresolved(reference)
		return nil
	}
	name := reference[strings.LastIndexByte(reference, '/')+1:]
	if !eventType.MatchString(name) {
		name = "schema"
	}
	for n := 2; b.taken(name); n++ {
		name = strings.TrimRight(name, "0123456789") + strconv.Itoa(n)
	}
	b.names[reference] = name
	b.defs[name] = nil // until it is copied
	b.queue = append(b.queue, reference)
	return "#/$defs/" + name
}

func (b *bundler) taken(name string) bool {
	if _, taken := b.defs[name]; taken {
		return true
	}
	own, _ := b.root["$defs"].(object)
	_, taken := own[name]
	return taken
}

// compile checks that a schema is one.
func compile(raw []byte) error {
	schema, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		return errors.New("the payload is no JSON")
	}
	compiler := jsonschema.NewCompiler()
	compiler.UseLoader(noLoader{})
	compiler.UseRegexpEngine(anyPattern)
	const name = "urn:lambdamesh:payload"
	if err := compiler.AddResource(name, schema); err != nil {
		return fmt.Errorf("the payload is no JSON Schema: %w", complaint(err))
	}
	if _, err := compiler.Compile(name); err != nil {
		return fmt.Errorf("the payload is no JSON Schema: %w", complaint(err))
	}
	return nil
}

// noLoader reads no other document.
type noLoader struct{}

// Load implements jsonschema.URLLoader.
func (noLoader) Load(url string) (any, error) { return nil, unresolved(url) }

// anyPattern takes every pattern: the documents' are those of ECMA 262, of which
// Go's regexp knows a part.
func anyPattern(pattern string) (jsonschema.Regexp, error) { return unread(pattern), nil }

type unread string

// MatchString implements jsonschema.Regexp.
func (unread) MatchString(string) bool { return true }

// String implements fmt.Stringer.
func (u unread) String() string { return string(u) }
