package event

import (
	"bytes"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"
)

// Media types of the CloudEvents HTTP binding.
const (
	ContentTypeStructured = "application/cloudevents+json"
	ContentTypeBatch      = "application/cloudevents-batch+json"
)

// ErrUnsupportedMediaType is returned for a content type or charset the bus
// does not read.
var ErrUnsupportedMediaType = errors.New("unsupported media type")

// Mode is the content mode of an HTTP message (CloudEvents HTTP binding,
// section 3).
type Mode int

// Content modes.
const (
	ModeBinary Mode = iota
	ModeStructured
	ModeBatched
)

// ModeOf tells the content mode from the headers of a request.
// It fails with [ErrUnsupportedMediaType].
func ModeOf(header http.Header) (Mode, error) {
	if values := header.Values("Content-Encoding"); len(values) > 0 && !slices.Equal(values, []string{"identity"}) {
		return 0, fmt.Errorf("%w: content encoding %s: send the body uncompressed", ErrUnsupportedMediaType, strings.Join(values, ", "))
	}
	contentType := strings.ToLower(strings.TrimSpace(header.Get("Content-Type")))
	if !strings.HasPrefix(contentType, "application/cloudevents") {
		return ModeBinary, nil
	}
	mediaType, params, err := mime.ParseMediaType(contentType)
	if err != nil {
		return 0, fmt.Errorf("%w: %s is malformed", ErrUnsupportedMediaType, contentType)
	}
	if charset := params["charset"]; charset != "" && !strings.EqualFold(charset, "utf-8") {
		return 0, fmt.Errorf("%w: charset %s: send UTF-8", ErrUnsupportedMediaType, charset)
	}
	switch mediaType {
	case ContentTypeStructured:
		return ModeStructured, nil
	case ContentTypeBatch:
		return ModeBatched, nil
	}
	return 0, fmt.Errorf("%w: %s: send %s, %s or binary mode with ce- headers",
		ErrUnsupportedMediaType, mediaType, ContentTypeStructured, ContentTypeBatch)
}

// ParseHTTP reads the events of an HTTP message and validates them. It returns
// an [*InvalidError] with every wrong field, or [ErrUnsupportedMediaType].
//
// source, if set, is what events that name none get.
func ParseHTTP(header http.Header, body []byte, source string) ([]Event, error) {
	mode, err := ModeOf(header)
	if err != nil {
		return nil, err
	}
	switch mode {
	case ModeStructured:
		return parseStructured(body, source)
	case ModeBatched:
		return parseBatch(bytes.NewReader(body), source)
	}
	return parseBinary(header, body, source)
}

func parseBinary(header http.Header, body []byte, source string) ([]Event, error) {
	var e Event
	var p problems
	hasVersion := false
	for key, values := range header {
		name, ok := strings.CutPrefix(strings.ToLower(key), "ce-")
		if !ok {
			continue
		}
		hasVersion = hasVersion || name == "specversion"
		if len(values) > 1 {
			p.add(name, "header ce-%s is given %d times", name, len(values))
			continue
		}
		if name == "datacontenttype" {
			p.add(name, "is given by the header Content-Type in binary mode")
			continue
		}
		value, err := DecodeHeaderValue(values[0])
		if err != nil {
			p.add(name, "%v", err)
			continue
		}
		if value == "" {
			p.add(name, "is empty: leave the header out")
			continue
		}
		if wrong := e.SetAttribute(name, value); wrong != "" {
			p.add(name, "%s", wrong)
		}
	}
	if !hasVersion {
		p.add("specversion", "is required: send the header ce-specversion: %s", SpecVersion)
	}
	if types := header.Values("Content-Type"); len(types) > 1 {
		p.add("datacontenttype", "header Content-Type is given %d times", len(types))
	} else if len(types) == 1 {
		e.DataContentType = types[0]
	}
	if len(body) > 0 {
		e.Data = body
	}
	if e.Source == "" && !p.has("source") {
		e.Source = source
	}
	e.validate(&p)
	if p != nil {
		sortFields(p)
		return nil, p.err()
	}
	return []Event{e}, nil
}

// sortFields puts errors in a stable order: headers come from a map.
func sortFields(p problems) {
	slices.SortFunc(p, func(a, b FieldError) int {
		if c := strings.Compare(a.Field, b.Field); c != 0 {
			return c
		}
		return strings.Compare(a.Detail, b.Detail)
	})
}

// WriteBinary sets the headers of the event in binary mode; the body is
// e.Data.
func (e *Event) WriteBinary(header http.Header) {
	for name, value := range e.Attributes() {
		if name == "datacontenttype" {
			header.Set("Content-Type", value)
			continue
		}
		header.Set("Ce-"+name, EncodeHeaderValue(value))
	}
}

// EncodeHeaderValue percent-encodes what may not stand in a header value
// (CloudEvents HTTP binding, section 3.1.3.2): everything outside printable
// ASCII, space, double quote and percent.
func EncodeHeaderValue(value string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(value) {
		c := value[i]
		if standsInHeader(c) {
			b.WriteByte(c)
			continue
		}
		b.WriteByte('%')
		b.WriteByte(hex[c>>4])
		b.WriteByte(hex[c&15])
	}
	return b.String()
}

func standsInHeader(c byte) bool { return c > 0x20 && c < 0x7f && c != '"' && c != '%' }

// encodedLen is the length of [EncodeHeaderValue].
func encodedLen(value string) int {
	n := len(value)
	for i := range len(value) {
		if !standsInHeader(value[i]) {
			n += 2
		}
	}
	return n
}

// DecodeHeaderValue reverses [EncodeHeaderValue]. It takes the quoted strings
// of RFC 9110 and bare UTF-8 as well, as the binding demands of receivers.
func DecodeHeaderValue(value string) (string, error) {
	value = strings.Trim(value, " \t")
	if len(value) >= 2 && value[0] == '"' && value[len(value)-1] == '"' {
		value = unquote(value[1 : len(value)-1])
	}
	if strings.IndexByte(value, '%') < 0 {
		if !utf8.ValidString(value) {
			return "", errors.New("is not valid UTF-8")
		}
		return value, nil
	}
	out := make([]byte, 0, len(value))
	for i := 0; i < len(value); i++ {
		if value[i] != '%' {
			out = append(out, value[i])
			continue
		}
		if i+2 >= len(value) {
			return "", errors.New("holds a % that is not followed by two hex digits; a percent sign is %25")
		}
		hi, lo := unhex(value[i+1]), unhex(value[i+2])
		if hi < 0 || lo < 0 {
			return "", errors.New("holds a % that is not followed by two hex digits; a percent sign is %25")
		}
		out = append(out, byte(hi<<4|lo))
		i += 2
	}
	if !utf8.Valid(out) {
		return "", errors.New("is not valid UTF-8 after percent-decoding")
	}
	return string(out), nil
}

func unquote(s string) string {
	if strings.IndexByte(s, '\\') < 0 {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func unhex(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}
