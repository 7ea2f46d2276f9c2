package documents

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

const (
	// MaxEventTypes of a document.
	MaxEventTypes = 256
	// maxSchema is how much a type's schema may be, with all that it refers to, and
	// maxSchemas that of all types of a document.
	maxSchema  = 64 << 10
	maxSchemas = 1 << 20
	// maxType is how long the bus takes the type of an event.
	maxType = 253
	// maxDescription fits into the kind's field.
	maxDescription = 1024
)

// EventType is a type of events in a document.
type EventType struct {
	Type, Description string
	// Schema of the data: a JSON Schema that needs no other document; nil when the
	// document has none in that language.
	Schema []byte
}

// object is a JSON object as it was decoded, with numbers as they were written.
type object = map[string]any

// eventType is what an event's type may be: tokens between dots.
//
//nolint:gochecknoglobals // a constant
var eventType = regexp.MustCompile(`^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$`)

// AsyncAPI reads an AsyncAPI document of version 1, 2 or 3, in JSON or YAML. The
// event types are its topics or channels, a slash in a name becoming a dot; they
// are sorted. The error says what to mend in the document.
func AsyncAPI(raw []byte) ([]EventType, error) {
	types, err := readAsyncAPI(raw)
	if err != nil {
		return nil, fmt.Errorf("the AsyncAPI document cannot be used: %w", err)
	}
	return types, nil
}

func readAsyncAPI(raw []byte) ([]EventType, error) {
	raw, err := normalize(raw)
	if err != nil {
		return nil, err
	}
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.UseNumber()
	var document object
	if err := decoder.Decode(&document); err != nil {
		return nil, errors.New("it is no JSON object")
	}
	version, _ := document["asyncapi"].(string)
	field := "channels"
	if strings.HasPrefix(version, "1.") {
		field = "topics"
	} else if !strings.HasPrefix(version, "2.") && !strings.HasPrefix(version, "3.") {
		return nil, errors.New("asyncapi: 1.x, 2.x or 3.x is not in it")
	}
	channels, ok := document[field].(object)
	if !ok && document[field] != nil {
		return nil, fmt.Errorf("%s must be an object", field)
	}
	if len(channels) > MaxEventTypes {
		return nil, fmt.Errorf("it has %d %s, %d are allowed", len(channels), field, MaxEventTypes)
	}
	r := reader{document: document, version: version}
	byType := map[string]EventType{}
	size := 0
	for _, name := range slices.Sorted(maps.Keys(channels)) {
		found, err := r.channel(name, channels[name])
		if err != nil {
			return nil, fmt.Errorf("%s: %s: %w", field, name, err)
		}
		if _, twice := byType[found.Type]; twice {
			return nil, fmt.Errorf("%s: %s: another one is the type %s, too", field, name, found.Type)
		}
		if size += len(found.Schema); size > maxSchemas {
			return nil, fmt.Errorf("the schemas of its types, each with all that it refers to, are more than %d bytes", maxSchemas)
		}
		byType[found.Type] = found
	}
	types := make([]EventType, 0, len(byType))
	for _, name := range slices.Sorted(maps.Keys(byType)) {
		types = append(types, byType[name])
	}
	return types, nil
}

// reader reads the channels of a document.
type reader struct {
	document object
	version  string
}

func (r reader) channel(name string, value any) (EventType, error) {
	channel, err := r.deref(value)
	if err != nil {
		return EventType{}, err
	}
	if address, ok := channel["address"].(string); ok && strings.HasPrefix(r.version, "3.") {
		name = address
	}
	found := EventType{Type: strings.ReplaceAll(strings.Trim(name, "/"), "/", ".")}
	if len(found.Type) > maxType || !eventType.MatchString(found.Type) {
		return EventType{}, fmt.Errorf("the type of an event is letters, digits, '-' and '_' between dots, at most %d, such as order.created.v1", maxType)
	}
	found.Description = text(channel, "summary", "description")
	messages, err := r.messages(channel)
	if err != nil {
		return EventType{}, err
	}
	var schemas []any
	for _, message := range messages {
		if found.Description == "" {
			found.Description = text(message, "summary", "title", "description")
		}
		schema, ok := payload(message)
		if !ok {
			return found, nil // one message may be anything, so the event may
		}
		schemas = append(schemas, schema)
	}
	if len(schemas) == 0 {
		return found, nil
	}
	schema := schemas[0]
	if len(schemas) > 1 {
		schema = object{"anyOf": schemas}
	}
	found.Schema, err = r.bundle(schema)
	return found, err
}

// messages of a channel: those that are published, those that are subscribed to,
// and in version 3 all that are named.
func (r reader) messages(channel object) (all []object, err error) {
	add := func(value any) error {
		message, err := r.deref(value)
		if err != nil {
			return err
		}
		alternatives, ok := message["oneOf"].([]any)
		if !ok {
			all = append(all, message)
			return nil
		}
		for _, alternative := range alternatives {
			one, err := r.deref(alternative)
			if err != nil {
				return err
			}
			all = append(all, one)
		}
		return nil
	}
	if named, ok := channel["messages"].(object); ok {
		for _, name := range slices.Sorted(maps.Keys(named)) {
			if err := add(named[name]); err != nil {
				return nil, err
			}
		}
		return all, nil
	}
	for _, direction := range []string{"subscribe", "publish"} {
		operation, ok := channel[direction].(object)
		if !ok {
			continue
		}
		value := any(operation)
		if !strings.HasPrefix(r.version, "1.") {
			if value, ok = operation["message"]; !ok {
				continue
			}
		}
		if err := add(value); err != nil {
			return nil, err
		}
		return all, nil // who sends and who receives speak of the same event
	}
	return all, nil
}

// payload returns the schema of a message's payload, where it has one in the
// language of AsyncAPI, which is that of JSON Schema.
func payload(message object) (schema any, ok bool) {
	schema, ok = message["payload"]
	format, _ := message["schemaFormat"].(string)
	if wrapped, is := schema.(object); is && wrapped["schemaFormat"] != nil {
		format, _ = wrapped["schemaFormat"].(string)
		schema, ok = wrapped["schema"]
	}
	json := format == "" || strings.Contains(format, "aai.asyncapi") || strings.Contains(format, "schema+json") || strings.Contains(format, "schema+yaml")
	return schema, ok && json
}

// deref follows references inside the document to an object.
func (r reader) deref(value any) (object, error) {
	for range maxDepth {
		found, ok := value.(object)
		if !ok {
			return nil, errors.New("it must be an object")
		}
		reference, ok := found["$ref"].(string)
		if !ok {
			return found, nil
		}
		if value, ok = resolve(r.document, reference); !ok {
			return nil, unresolved(reference)
		}
	}
	return nil, errors.New("its references lead nowhere")
}

func unresolved(reference string) error {
	if !strings.HasPrefix(reference, "#") {
		return fmt.Errorf("$ref %.100q leads to another document, which is not read: put it into components", reference)
	}
	return fmt.Errorf("$ref %.100q leads nowhere", reference)
}

// resolve finds what a reference such as #/components/schemas/Order means
// (RFC 6901, section 6).
func resolve(root object, reference string) (any, bool) {
	pointer, ok := strings.CutPrefix(reference, "#/")
	if !ok {
		return nil, false
	}
	var value any = root
	for token := range strings.SplitSeq(pointer, "/") {
		token = strings.NewReplacer("~1", "/", "~0", "~", "%20", " ", "%7B", "{", "%7D", "}").Replace(token)
		found, ok := value.(object)
		if !ok {
			return nil, false
		}
		if value, ok = found[token]; !ok {
			return nil, false
		}
	}
	return value, true
}

func text(of object, fields ...string) string {
	for _, field := range fields {
		if value, ok := of[field].(string); ok && value != "" {
			if len(value) > maxDescription {
				value = strings.ToValidUTF8(value[:maxDescription], "")
			}
			return value
		}
	}
	return ""
}
