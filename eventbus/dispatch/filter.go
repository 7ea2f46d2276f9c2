package dispatch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	cesql "github.com/cloudevents/sdk-go/sql/v2"
	"github.com/cloudevents/sdk-go/sql/v2/parser"
	cloudevents "github.com/cloudevents/sdk-go/v2"

	"github.com/lambdamesh/lambdamesh/eventbus/event"
)

// Limits of filters: they are evaluated for every event.
const (
	maxFilterDepth  = 8
	maxExpression   = 4096
	maxFiltersBytes = 64 << 10
)

// Filter decides whether an event is pushed.
type Filter func(*event.Event) bool

// CompileFilters compiles filters of the CloudEvents Subscriptions API 1.0,
// section 3.2.4: each an object with one of the dialects exact, prefix, suffix,
// all, any, not, sql; and data, conditions on JSON data, which is ours. All of them
// must hold. It returns nil for no filters.
func CompileFilters(filters []json.RawMessage) (Filter, error) {
	if len(filters) == 0 {
		return nil, nil //nolint:nilnil // no filter is one that lets everything through
	}
	size := 0
	for _, f := range filters {
		size += len(f)
	}
	if size > maxFiltersBytes {
		return nil, fmt.Errorf("filters are larger than %d bytes together", maxFiltersBytes)
	}
	return compileList("filters", filters, true, 0)
}

// compileList compiles filters that must all hold, or of which one must.
func compileList(path string, list []json.RawMessage, all bool, depth int) (Filter, error) {
	if len(list) == 0 {
		return nil, fmt.Errorf("%s must not be empty", path)
	}
	compiled := make([]Filter, len(list))
	var errs []error
	for i, raw := range list {
		var err error
		compiled[i], err = compileFilter(fmt.Sprintf("%s[%d]", path, i), raw, depth+1)
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return func(e *event.Event) bool {
		for _, f := range compiled {
			if f(e) != all {
				return !all
			}
		}
		return all
	}, nil
}

func compileFilter(path string, raw json.RawMessage, depth int) (Filter, error) {
	if depth > maxFilterDepth {
		return nil, fmt.Errorf("%s: filters are nested deeper than %d", path, maxFilterDepth)
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal(raw, &object); err != nil || len(object) != 1 {
		return nil, fmt.Errorf("%s must be an object with one of exact, prefix, suffix, all, any, not, sql, data", path)
	}
	dialect := slices.Collect(maps.Keys(object))[0]
	value := object[dialect]
	path += "." + dialect
	switch dialect {
	case "exact":
		return compileAttributes(path, value, func(have, want string) bool { return have == want })
	case "prefix":
		return compileAttributes(path, value, strings.HasPrefix)
	case "suffix":
		return compileAttributes(path, value, strings.HasSuffix)
	case "all", "any":
		var list []json.RawMessage
		if err := json.Unmarshal(value, &list); err != nil {
			return nil, fmt.Errorf("%s must be a list of filters", path)
		}
		return compileList(path, list, dialect == "all", depth)
	case "not":
		inner, err := compileFilter(path, value, depth+1)
		if err != nil {
			return nil, err
		}
		return func(e *event.Event) bool { return !inner(e) }, nil
	case "sql":
		return compileSQL(path, value)
	case "data":
		return compileData(path, value)
	}
	return nil, fmt.Errorf("%s: there is no such dialect; use exact, prefix, suffix, all, any, not, sql or data", path)
}

// compileAttributes compiles a map of attributes to values that must all match.
func compileAttributes(path string, raw json.RawMessage, matches func(have, want string) bool) (Filter, error) {
	var wanted map[string]string
	decoder := json.NewDecoder(bytes.NewReader(raw))
	if err := decoder.Decode(&wanted); err != nil || len(wanted) == 0 {
		return nil, fmt.Errorf("%s must name attributes and their values as strings", path)
	}
	for name, value := range wanted {
		if name == "" || value == "" || strings.ToLower(name) != name {
			return nil, fmt.Errorf("%s: attribute %q: names are lower-case, and values are not empty", path, name)
		}
	}
	return func(e *event.Event) bool {
		for name, want := range wanted {
			if have, ok := e.Attribute(name); !ok || !matches(have, want) {
				return false
			}
		}
		return true
	}, nil
}

func compileSQL(path string, raw json.RawMessage) (Filter, error) {
	var text string
	if err := json.Unmarshal(raw, &text); err != nil {
		return nil, fmt.Errorf("%s must be a CloudEvents SQL expression", path)
	}
	if len(text) > maxExpression {
		return nil, fmt.Errorf("%s is longer than %d bytes", path, maxExpression)
	}
	expression, err := parse(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return func(e *event.Event) bool { return evaluate(expression, e) }, nil
}

func parse(text string) (expression cesql.Expression, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("not an expression: %v", v)
		}
	}()
	return parser.Parse(text)
}

// evaluate holds when the expression is true; one that fails for an event does
// not select it (CloudEvents Subscriptions API, section 3.2.4.1.7).
func evaluate(expression cesql.Expression, e *event.Event) (holds bool) {
	defer func() {
		if recover() != nil { // a fault of the library must not take the bus down
			holds = false
		}
	}()
	c := cloudevents.NewEvent()
	for name, value := range e.Attributes() {
		switch name {
		case "specversion":
		case "id":
			c.SetID(value)
		case "source":
			c.SetSource(value)
		case "type":
			c.SetType(value)
		case "subject":
			c.SetSubject(value)
		case "time":
			c.SetTime(e.Time)
		case "datacontenttype":
			c.SetDataContentType(value)
		case "dataschema":
			c.SetDataSchema(value)
		default:
			c.SetExtension(name, value)
		}
	}
	result, err := expression.Evaluate(c)
	value, isBool := result.(bool)
	return err == nil && isBool && value
}
