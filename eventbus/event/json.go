package event

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"unicode/utf8"
)

func parseStructured(body []byte, source string) ([]Event, error) {
	var p problems
	e := readJSON(&p, body, source)
	if len(p) > 0 {
		return nil, p.err()
	}
	return []Event{e}, nil
}

// readJSON reads and validates one event of the CloudEvents JSON format.
func readJSON(p *problems, body []byte, source string) Event {
	e, ok := decodeJSON(p, body, source)
	if ok {
		e.validate(p)
	}
	return e
}

// decodeJSON reads one event, valid or not; false if it is none at all.
func decodeJSON(p *problems, body []byte, source string) (e Event, ok bool) {
	members, err := ReadObject(body)
	if err != nil {
		p.add("body", "%v", err)
		return e, false
	}
	var data, data64 json.RawMessage
	hasVersion := false
	for _, m := range members {
		if m.Twice {
			p.add(m.Name, "is given more than once")
			continue
		}
		if string(m.Value) == "null" {
			continue // absent (CloudEvents JSON format, section 2.2)
		}
		switch m.Name {
		case "data":
			data = m.Value
			continue
		case "data_base64":
			data64 = m.Value
			continue
		case "specversion":
			hasVersion = true
		}
		value, err := canonical(m.Value, isExtension(m.Name))
		if err != nil {
			p.add(m.Name, "%v", err)
			continue
		}
		if value == "" {
			p.add(m.Name, "is empty")
			continue
		}
		if wrong := e.SetAttribute(m.Name, value); wrong != "" {
			p.add(m.Name, "%s", wrong)
		}
	}
	if !hasVersion && !p.has("specversion") {
		p.add("specversion", "is required and must be %q", SpecVersion)
	}
	if e.Source == "" && !p.has("source") {
		e.Source = source
	}
	readData(p, &e, data, data64)
	return e, true
}

func readData(p *problems, e *Event, data, data64 json.RawMessage) {
	switch {
	case data != nil && data64 != nil:
		p.add("data", "and data_base64 exclude each other")
	case data64 != nil:
		var text string
		if json.Unmarshal(data64, &text) != nil {
			p.add("data_base64", "must be a string")
			return
		}
		raw, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			p.add("data_base64", "must be base64 (RFC 4648, section 4)")
			return
		}
		e.Data = raw
	case data != nil:
		// A JSON string under a media type that is not JSON is that text itself
		// (CloudEvents JSON format, section 3.1.1); all else is a JSON value.
		if !isJSON(e.DataContentType) && data[0] == '"' {
			var text string
			if json.Unmarshal(data, &text) == nil {
				e.Data = []byte(text)
				return
			}
		}
		e.Data = bytes.Clone(data)
		if e.DataContentType == "" && !p.has("datacontenttype") {
			e.DataContentType = "application/json"
		}
	}
}

// maxMembers of an event: what is more cannot be valid, and would cost many times
// what it takes as JSON.
const maxMembers = maxExtensions + 16

// Member of a JSON object.
type Member struct {
	Name  string
	Value json.RawMessage
	Twice bool // the name stands there more than once
}

// ReadObject reads a JSON object and marks names that stand there twice: which
// of them counts would depend on the reader.
func ReadObject(body []byte) ([]Member, error) {
	if !utf8.Valid(body) {
		return nil, errors.New("is not UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	open, err := dec.Token()
	if err != nil {
		return nil, syntax(err)
	}
	if open != json.Delim('{') {
		return nil, errors.New("must be a JSON object")
	}
	var members []Member
	seen := map[string]int{}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return nil, syntax(err)
		}
		name, _ := key.(string)
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, syntax(err)
		}
		if at, ok := seen[name]; ok {
			members[at].Twice = true
			continue
		}
		if len(members) == maxMembers {
			return nil, fmt.Errorf("has more than %d members", maxMembers)
		}
		seen[name] = len(members)
		members = append(members, Member{Name: name, Value: value})
	}
	if _, err := dec.Token(); err != nil {
		return nil, syntax(err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("must be one JSON object and nothing after it")
	}
	return members, nil
}

func syntax(err error) error {
	if s, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Errorf("is not JSON: %w at byte %d", err, s.Offset)
	}
	return errors.New("is not JSON: it ends too early")
}

// canonical is the string form of a JSON attribute value. Boolean and Integer
// are types of extensions only.
func canonical(raw json.RawMessage, extension bool) (string, error) {
	if raw[0] == '"' {
		var text string
		if err := json.Unmarshal(raw, &text); err != nil {
			return "", errors.New("is not a valid string")
		}
		return text, nil
	}
	if !extension {
		return "", errors.New("must be a string")
	}
	switch raw[0] {
	case 't', 'f':
		return string(raw), nil
	case '{', '[':
		return "", errors.New("must be a string, boolean or integer")
	}
	if _, err := strconv.ParseInt(string(raw), 10, 32); err != nil {
		return "", errors.New("must be an integer of 32 bits; send other numbers as strings")
	}
	return string(raw), nil
}

// MarshalJSON writes the event in the CloudEvents JSON format.
func (e *Event) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for name, value := range e.Attributes() {
		if b.Len() > 1 {
			b.WriteByte(',')
		}
		writeString(&b, name)
		b.WriteByte(':')
		writeString(&b, value)
	}
	switch {
	case e.Data == nil:
	case isJSON(e.DataContentType) && json.Valid(e.Data):
		b.WriteString(`,"data":`)
		b.Write(e.Data)
	default:
		b.WriteString(`,"data_base64":"`)
		b.WriteString(base64.StdEncoding.EncodeToString(e.Data))
		b.WriteByte('"')
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// UnmarshalJSON reads the CloudEvents JSON format. It does not validate: what the
// bus once accepted and lists is read by rules of its own time.
func (e *Event) UnmarshalJSON(body []byte) error {
	var p problems
	read, _ := decodeJSON(&p, body, "")
	if len(p) > 0 {
		return p.err()
	}
	*e = read
	return nil
}

func writeString(b *bytes.Buffer, s string) {
	quoted, err := json.Marshal(s)
	if err != nil { // strings always marshal
		quoted = []byte(`""`)
	}
	b.Write(quoted)
}
