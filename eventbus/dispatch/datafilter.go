package dispatch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"strconv"
	"strings"

	"github.com/lambdamesh/lambdamesh/eventbus/event"
)

// Limits of filters on data: they are evaluated for every event, and read as much of
// its data as lies before what they look for, once for each condition.
const (
	maxConditions    = 16
	maxPointerBytes  = 256
	maxPointerTokens = 16
	maxOperandBytes  = 1024
)

// condition on the value that a JSON Pointer leads to. All that it has must hold.
type condition struct {
	tokens         []string
	exact          []byte // JSON of a scalar; nil: not asked
	prefix, suffix *string
	bounds         []bound
	exists         *bool
}

// bound compares a number; it holds when compare's answer is among those.
type bound struct {
	number json.Number
	holds  func(sign int) bool
}

// compileData compiles conditions on the JSON data of events, all of which must
// hold. Data that is not JSON fulfills none.
func compileData(path string, raw json.RawMessage) (Filter, error) {
	var list []json.RawMessage
	if err := json.Unmarshal(raw, &list); err != nil || len(list) == 0 {
		return nil, fmt.Errorf("%s must be a list of conditions such as {\"pointer\": \"/order/total\", \"gte\": 100}", path)
	}
	if len(list) > maxConditions {
		return nil, fmt.Errorf("%s has more than %d conditions", path, maxConditions)
	}
	conditions := make([]condition, len(list))
	var errs []error
	for i, one := range list {
		var err error
		conditions[i], err = compileCondition(fmt.Sprintf("%s[%d]", path, i), one)
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return func(e *event.Event) bool {
		if !isJSON(e.DataContentType) || !json.Valid(e.Data) {
			return false
		}
		for i := range conditions {
			if !conditions[i].holds(e.Data) {
				return false
			}
		}
		return true
	}, nil
}

func compileCondition(path string, raw json.RawMessage) (c condition, err error) {
	var object struct {
		Pointer          *string         `json:"pointer"`
		Exact            json.RawMessage `json:"exact"`
		Prefix           *string         `json:"prefix"`
		Suffix           *string         `json:"suffix"`
		GT, GTE, LT, LTE *json.Number
		Exists           *bool `json:"exists"`
	}
	if len(raw) > maxPointerBytes+4*maxOperandBytes {
		return c, fmt.Errorf("%s is larger than %d bytes", path, maxPointerBytes+4*maxOperandBytes)
	}
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&object); err != nil || object.Pointer == nil {
		return c, fmt.Errorf("%s must have a pointer and some of exact, prefix, suffix, gt, gte, lt, lte (numbers), exists", path)
	}
	if c.tokens, err = pointer(*object.Pointer); err != nil {
		return c, fmt.Errorf("%s.pointer %w", path, err)
	}
	c.exact, c.prefix, c.suffix, c.exists = object.Exact, object.Prefix, object.Suffix, object.Exists
	if len(c.exact) > 0 && strings.ContainsRune("{[n", rune(c.exact[0])) {
		return c, fmt.Errorf("%s.exact must be a string, a number, true or false", path)
	}
	for name, b := range map[string]struct {
		number *json.Number
		holds  func(int) bool
	}{
		"gt":  {object.GT, func(sign int) bool { return sign > 0 }},
		"gte": {object.GTE, func(sign int) bool { return sign >= 0 }},
		"lt":  {object.LT, func(sign int) bool { return sign < 0 }},
		"lte": {object.LTE, func(sign int) bool { return sign <= 0 }},
	} {
		if b.number == nil {
			continue
		}
		if _, ok := compare(*b.number, *b.number); !ok {
			return c, fmt.Errorf("%s.%s must be a number", path, name)
		}
		c.bounds = append(c.bounds, bound{*b.number, b.holds})
	}
	if c.exact == nil && c.prefix == nil && c.suffix == nil && c.exists == nil && len(c.bounds) == 0 {
		return c, fmt.Errorf("%s needs one of exact, prefix, suffix, gt, gte, lt, lte, exists", path)
	}
	return c, nil
}

var errPointer = errors.New("must be a JSON Pointer (RFC 6901) such as /order/total")

// pointer splits a JSON Pointer (RFC 6901, sections 3 and 4).
func pointer(text string) ([]string, error) {
	if text == "" {
		return nil, nil
	}
	if len(text) > maxPointerBytes || text[0] != '/' {
		return nil, errPointer
	}
	tokens := strings.Split(text[1:], "/")
	if len(tokens) > maxPointerTokens {
		return nil, fmt.Errorf("leads deeper than %d levels", maxPointerTokens)
	}
	for i, token := range tokens {
		if strings.Contains(strings.NewReplacer("~0", "", "~1", "").Replace(token), "~") {
			return nil, errPointer
		}
		tokens[i] = strings.NewReplacer("~1", "/", "~0", "~").Replace(token)
	}
	return tokens, nil
}

// isJSON reports whether data of a content type is JSON; without one it is
// (CloudEvents JSON format, section 3.1.1).
func isJSON(contentType string) bool {
	if contentType == "" {
		return true
	}
	media, _, err := mime.ParseMediaType(contentType)
	return err == nil && (media == "application/json" || media == "text/json" || strings.HasSuffix(media, "+json"))
}

// holds looks at valid JSON.
func (c *condition) holds(data []byte) bool {
	value, found := at(data, c.tokens)
	if c.exists != nil && *c.exists != found {
		return false
	}
	if c.exact == nil && c.prefix == nil && c.suffix == nil && len(c.bounds) == 0 {
		return true
	}
	if !found {
		return false
	}
	for _, b := range c.bounds {
		if sign, ok := compare(json.Number(value), b.number); !ok || !b.holds(sign) {
			return false
		}
	}
	if c.exact != nil && !equal(value, c.exact) {
		return false
	}
	if c.prefix == nil && c.suffix == nil {
		return true
	}
	var text string
	if value[0] != '"' || json.Unmarshal(value, &text) != nil {
		return false
	}
	return (c.prefix == nil || strings.HasPrefix(text, *c.prefix)) && (c.suffix == nil || strings.HasSuffix(text, *c.suffix))
}

// equal compares two scalars: numbers by their value, strings by their characters.
func equal(a, b []byte) bool {
	if a[0] == '"' && b[0] == '"' {
		var x, y string
		return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && x == y
	}
	if sign, ok := compare(json.Number(a), json.Number(b)); ok {
		return sign == 0
	}
	return bytes.Equal(a, b)
}

// compare compares two numbers, exactly where both are whole numbers of 64 bits and
// as floating-point numbers otherwise; false: one is no number.
func compare(a, b json.Number) (sign int, ok bool) {
	if x, err := strconv.ParseInt(string(a), 10, 64); err == nil {
		if y, err := strconv.ParseInt(string(b), 10, 64); err == nil {
			return sign3(x < y, x > y), true
		}
	}
	x, errX := number(a)
	y, errY := number(b)
	return sign3(x < y, x > y), errX == nil && errY == nil
}

// number takes those of JSON, and none that only Go knows, such as 0x1 and Inf.
func number(n json.Number) (float64, error) {
	if n == "" || strings.Trim(string(n), "0123456789+-.eE") != "" {
		return 0, strconv.ErrSyntax
	}
	return n.Float64()
}

func sign3(less, greater bool) int {
	switch {
	case less:
		return -1
	case greater:
		return 1
	}
	return 0
}

// at returns the value that the tokens of a pointer lead to. It reads valid JSON in
// place: a tree of it would take many times its size. Of two members of one name
// the last counts, as for most parsers.
func at(data []byte, tokens []string) (value []byte, found bool) {
	value = bytes.TrimSpace(data)
	for _, token := range tokens {
		if value, found = child(value, token); !found {
			return nil, false
		}
	}
	return value, true
}

// child is a member of an object, or an element of an array.
func child(value []byte, token string) (found []byte, ok bool) {
	isObject := value[0] == '{'
	if !isObject && (value[0] != '[' || !isIndex(token)) {
		return nil, false
	}
	index := -1
	if !isObject {
		index, _ = strconv.Atoi(token)
	}
	for i, n := skipSpace(value, 1), 0; value[i] != '}' && value[i] != ']'; n++ {
		wanted := n == index
		if isObject {
			end := endOf(value, i)
			wanted = named(value[i:end], token)
			i = skipSpace(value, skipSpace(value, end)+1) // behind the colon
		}
		end := endOf(value, i)
		if wanted {
			found, ok = value[i:end], true
			if !isObject {
				return found, ok
			}
		}
		if i = skipSpace(value, end); value[i] == ',' {
			i = skipSpace(value, i+1)
		}
	}
	return found, ok
}

// isIndex: digits without a leading zero (RFC 6901, section 4).
func isIndex(token string) bool {
	return token == "0" || token != "" && len(token) < 8 && token[0] != '0' && strings.Trim(token, "0123456789") == ""
}

// named reports whether a quoted name is the wanted one.
func named(quoted []byte, wanted string) bool {
	if inner := quoted[1 : len(quoted)-1]; bytes.IndexByte(inner, '\\') < 0 {
		return string(inner) == wanted
	}
	var name string
	return json.Unmarshal(quoted, &name) == nil && name == wanted
}

func skipSpace(data []byte, i int) int {
	for data[i] == ' ' || data[i] == '\t' || data[i] == '\n' || data[i] == '\r' {
		i++
	}
	return i
}

// endOf is where the value that begins at i ends.
func endOf(data []byte, i int) int {
	switch data[i] {
	case '"':
		for i++; data[i] != '"'; i++ {
			if data[i] == '\\' {
				i++
			}
		}
		return i + 1
	case '{', '[':
		for depth := 0; ; i++ {
			switch data[i] {
			case '"':
				i = endOf(data, i) - 1
			case '{', '[':
				depth++
			case '}', ']':
				if depth--; depth == 0 {
					return i + 1
				}
			}
		}
	}
	for i < len(data) && !bytes.ContainsRune([]byte(" \t\r\n,]}"), rune(data[i])) {
		i++
	}
	return i
}
