package event

import (
	"errors"
	"fmt"
	"maps"
	"mime"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// SpecVersion is the only CloudEvents version the bus takes.
const SpecVersion = "1.0"

// Limits of one event. They keep the subject of an event and its stored headers
// well below what brokers take (NATS: 4 KiB for a subject line).
const (
	MaxEventBytes     = 1 << 20 // data
	MaxBatchEvents    = 1000
	maxIDBytes        = 512
	maxSourceBytes    = 1024
	maxTypeBytes      = 253
	maxSubjectBytes   = 2048
	maxAttributeBytes = 4096
	maxExtensions     = 64       // besides the trace, which the bus may add
	maxAllAttributes  = 32 << 10 // together; receivers limit headers too
	// maxEncodedAttributes bounds them together as headers, which escape what is
	// not ASCII: NATS takes 64 KiB, and a dead letter adds its own.
	maxEncodedAttributes = 48 << 10
)

// Event is a CloudEvent 1.0. The zero values of optional attributes mean absent.
type Event struct {
	ID              string
	Source          string // URI-reference
	Type            string
	Subject         string
	Time            time.Time
	DataContentType string
	DataSchema      string

	// Extensions hold the canonical string form of each value (CloudEvents 1.0,
	// section "Type System"): what a typed JSON value becomes in a header.
	Extensions map[string]string

	// Data is the payload as it is; nil means the event has none.
	Data []byte
}

// FieldError says what is wrong with one attribute or field.
type FieldError struct {
	Field  string `json:"field"`
	Detail string `json:"detail"`

	// Kind of mistake, where the reader of a format tells them apart.
	Kind Kind `json:"-"`
}

// Kind of mistake.
type Kind int

// Kinds of mistakes.
const (
	Invalid Kind = iota
	Missing
	TooLong
)

// ErrTooLarge: the event, or its item of a batch, has too many bytes.
var ErrTooLarge = errors.New("the event is too large")

// InvalidError names everything that is wrong with an event, or with the events
// of a batch, whose fields are then called "[2].id".
type InvalidError struct{ Fields []FieldError }

func (e *InvalidError) Error() string {
	parts := make([]string, len(e.Fields))
	for i, f := range e.Fields {
		parts[i] = f.Field + ": " + f.Detail
	}
	return "invalid event: " + strings.Join(parts, "; ")
}

// problems collects what is wrong with one event.
type problems []FieldError

func (p *problems) add(field, format string, args ...any) {
	*p = append(*p, FieldError{Field: field, Detail: fmt.Sprintf(format, args...)})
}

func (p *problems) has(field string) bool {
	return slices.ContainsFunc(*p, func(f FieldError) bool { return f.Field == field })
}

func (p problems) err() error {
	if len(p) == 0 {
		return nil
	}
	return &InvalidError{Fields: p}
}

// Validate returns an [*InvalidError] that names every wrong attribute.
func (e *Event) Validate() error {
	var p problems
	e.validate(&p)
	return p.err()
}

func (e *Event) validate(p *problems) {
	required := func(field, value string, limit int) bool {
		if p.has(field) {
			return false // a reader has said what is wrong already
		}
		if value == "" {
			p.add(field, "is required")
			return false
		}
		return checkText(p, field, value, limit)
	}
	required("id", e.ID, maxIDBytes)
	if required("source", e.Source, maxSourceBytes) {
		if strings.ContainsAny(e.Source, " \t") {
			p.add("source", "must be a URI-reference: it holds a space; percent-encode it")
		} else if _, err := url.Parse(e.Source); err != nil {
			p.add("source", "must be a URI-reference, such as commerce or /shop/last-order")
		}
	}
	required("type", e.Type, maxTypeBytes)
	if e.Subject != "" {
		checkText(p, "subject", e.Subject, maxSubjectBytes)
	}
	if e.DataContentType != "" && checkText(p, "datacontenttype", e.DataContentType, maxAttributeBytes) {
		if _, _, err := mime.ParseMediaType(e.DataContentType); err != nil {
			p.add("datacontenttype", "must be a media type such as application/json")
		}
	}
	if e.DataSchema != "" && checkText(p, "dataschema", e.DataSchema, maxAttributeBytes) {
		if u, err := url.Parse(e.DataSchema); err != nil || !u.IsAbs() {
			p.add("dataschema", "must be an absolute URI")
		}
	}
	extensions := len(e.Extensions)
	for _, name := range [...]string{"traceparent", "tracestate"} {
		if _, ok := e.Extensions[name]; ok {
			extensions--
		}
	}
	if extensions > maxExtensions {
		p.add("extensions", "at most %d are allowed", maxExtensions)
	}
	for _, name := range slices.Sorted(maps.Keys(e.Extensions)) {
		checkExtensionName(p, name)
		checkText(p, name, e.Extensions[name], maxAttributeBytes)
	}
	all, encoded := 0, 0
	for name, value := range e.Attributes() {
		all += len(name) + len(value)
		encoded += len(name) + encodedLen(value)
	}
	switch {
	case all > maxAllAttributes:
		p.add("extensions", "all attributes together are longer than %d bytes", maxAllAttributes)
	case encoded > maxEncodedAttributes:
		p.add("extensions", "all attributes together are longer than %d bytes when percent-encoded as headers", maxEncodedAttributes)
	}
}

// CheckType returns what is wrong with the text of a type, or of a pattern of
// types; "" if nothing.
func CheckType(text string) string {
	var p problems
	if !checkText(&p, "type", text, maxTypeBytes) {
		return p[0].Detail
	}
	return ""
}

// CheckStored says why what was read from a store is no event at all. It asks
// only for what delivering needs: whether an event is good enough was decided
// when it was accepted, and is not decided again by rules that came later.
func (e *Event) CheckStored() error {
	for _, a := range [...][2]string{{"id", e.ID}, {"source", e.Source}, {"type", e.Type}} {
		if a[1] == "" {
			return fmt.Errorf("it has no %s", a[0])
		}
	}
	return nil
}

// Attributes yields every context attribute that is set with its canonical
// string form, specversion first and extensions last and sorted.
func (e *Event) Attributes() func(yield func(name, value string) bool) {
	return func(yield func(name, value string) bool) {
		if !yield("specversion", SpecVersion) {
			return
		}
		var at string
		if !e.Time.IsZero() {
			at = e.Time.Format(time.RFC3339Nano)
		}
		for _, a := range [...][2]string{
			{"id", e.ID},
			{"source", e.Source},
			{"type", e.Type},
			{"subject", e.Subject},
			{"time", at},
			{"datacontenttype", e.DataContentType},
			{"dataschema", e.DataSchema},
		} {
			if a[1] != "" && !yield(a[0], a[1]) {
				return
			}
		}
		for _, name := range slices.Sorted(maps.Keys(e.Extensions)) {
			if !yield(name, e.Extensions[name]) {
				return
			}
		}
	}
}

// Attribute returns the canonical string form of an attribute or extension and
// whether the event has it.
func (e *Event) Attribute(name string) (string, bool) {
	for n, v := range e.Attributes() {
		if n == name {
			return v, true
		}
	}
	return "", false
}

// SetAttribute sets an attribute by its name from its canonical string form.
// It returns what is wrong with the value, "" if nothing.
func (e *Event) SetAttribute(name, value string) string {
	switch name {
	case "specversion":
		if value != SpecVersion {
			return fmt.Sprintf("must be %q", SpecVersion)
		}
	case "id":
		e.ID = value
	case "source":
		e.Source = value
	case "type":
		e.Type = value
	case "subject":
		e.Subject = value
	case "time":
		t, err := time.Parse(time.RFC3339Nano, value)
		if err != nil {
			return "must be an RFC 3339 time such as 2018-11-02T22:08:41Z"
		}
		e.Time = t
	case "datacontenttype":
		e.DataContentType = value
	case "dataschema":
		e.DataSchema = value
	default:
		if e.Extensions == nil {
			e.Extensions = map[string]string{}
		}
		e.Extensions[name] = value
	}
	return ""
}

// isExtension reports whether name is none of the attributes the specification
// defines.
func isExtension(name string) bool {
	switch name {
	case "specversion", "id", "source", "type", "subject", "time", "datacontenttype", "dataschema":
		return false
	}
	return true
}

func checkExtensionName(p *problems, name string) {
	if name == "data" || name == "data_base64" {
		p.add(name, "is not allowed as the name of an extension")
		return
	}
	for _, r := range name {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') {
			p.add(name, "names of attributes consist of a-z and 0-9")
			return
		}
	}
	if name == "" || len(name) > 64 {
		p.add(name, "names of attributes have 1 to 64 characters")
	}
}

// checkText refuses what CloudEvents refuses in a String (control characters,
// surrogates and noncharacters), so that no value can break out of a header.
func checkText(p *problems, field, value string, limit int) bool {
	if len(value) > limit {
		p.add(field, "is longer than %d bytes", limit)
		return false
	}
	if !utf8.ValidString(value) {
		p.add(field, "is not valid UTF-8")
		return false
	}
	for _, r := range value {
		if r < 0x20 || (r >= 0x7f && r <= 0x9f) {
			p.add(field, "holds the control character U+%04X", r)
			return false
		}
		if (r >= 0xfdd0 && r <= 0xfdef) || r&0xfffe == 0xfffe {
			p.add(field, "holds the noncharacter U+%04X", r)
			return false
		}
	}
	return true
}

// isJSON reports whether data of this media type is a JSON value (RFC 6839: the
// suffix +json; CloudEvents JSON format, section 3.1: none means JSON).
func isJSON(contentType string) bool {
	if contentType == "" {
		return true
	}
	mediaType, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return false
	}
	_, subtype, _ := strings.Cut(mediaType, "/")
	return subtype == "json" || strings.HasSuffix(subtype, "+json")
}
