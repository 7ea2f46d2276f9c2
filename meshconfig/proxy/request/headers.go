package request

import (
	"fmt"
	"net"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"unicode/utf8"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/strict"
)

// Canonical is the name of a header as net/http keeps it.
func Canonical(name string) string { return textproto.CanonicalMIMEHeaderKey(name) }

// Format writes a value with %OPERATORS% replaced by properties of the request.
// The operators that are not listed in compileOperator are refused.
type Format []operator

// operator returns its value; false when there is none.
type operator func(*Request) (string, bool)

// CompileFormat reads a format string; at says where it stands.
func CompileFormat(at, text string) (Format, error) {
	var f Format
	for text != "" {
		i := strings.IndexByte(text, '%')
		if i < 0 {
			f = append(f, literal(text))
			break
		}
		if i > 0 {
			f = append(f, literal(text[:i]))
		}
		text = text[i+1:]
		if strings.HasPrefix(text, "%") {
			f, text = append(f, literal("%")), text[1:]
			continue
		}
		end := strings.IndexByte(text, '%')
		if end < 0 {
			return nil, fmt.Errorf("%s: a %% has no counterpart; write %%%% for a literal one", at)
		}
		op, err := compileOperator(at, text[:end])
		if err != nil {
			return nil, err
		}
		f, text = append(f, op), text[end+1:]
	}
	return f, nil
}

func literal(s string) operator { return func(*Request) (string, bool) { return s, true } }

func compileOperator(at, op string) (operator, error) {
	simple := map[string]operator{
		"RESPONSE_CODE":         func(req *Request) (string, bool) { return strconv.Itoa(req.Local.Code), req.Local.Code != 0 },
		"RESPONSE_CODE_DETAILS": func(req *Request) (string, bool) { return req.Local.Details, req.Local.Details != "" },
		"LOCAL_REPLY_BODY":      func(req *Request) (string, bool) { return req.Local.Body, req.Local.Body != "" },
		"PROTOCOL":              func(req *Request) (string, bool) { return req.HTTP.Proto, true },
		"DOWNSTREAM_PEER_URI_SAN": func(req *Request) (string, bool) {
			sans := req.Conn.PeerURIs()
			return strings.Join(sans, ","), len(sans) > 0
		},
		"DOWNSTREAM_REMOTE_ADDRESS":              func(req *Request) (string, bool) { return req.HTTP.RemoteAddr, req.HTTP.RemoteAddr != "" },
		"DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT": func(req *Request) (string, bool) { return req.Client, req.Client != "" },
		"DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT": func(req *Request) (string, bool) {
			host, _, err := net.SplitHostPort(req.HTTP.RemoteAddr)
			return host, err == nil
		},
		"REQUESTED_SERVER_NAME": func(req *Request) (string, bool) { sni := req.Conn.ServerName(); return sni, sni != "" },
		"ROUTE_NAME":            func(req *Request) (string, bool) { return req.RouteName, req.RouteName != "" },
	}
	if f, ok := simple[op]; ok {
		return f, nil
	}
	if inner, ok := strings.CutPrefix(op, "REQ("); ok {
		inner, length, ok := strings.Cut(inner, ")")
		limit := -1
		if ok && length != "" {
			n, err := strconv.Atoi(strings.TrimPrefix(length, ":"))
			if err != nil || !strings.HasPrefix(length, ":") || n < 0 {
				return nil, fmt.Errorf("%s: %%%s%% is not understood", at, op)
			}
			limit = n
		}
		name, alternative, _ := strings.Cut(inner, "?")
		if !ok || name == "" {
			return nil, fmt.Errorf("%s: %%%s%% is not understood", at, op)
		}
		first, second := HeaderGetter(name), HeaderGetter(alternative)
		return func(req *Request) (string, bool) {
			value, found := first(req)
			if !found && alternative != "" {
				value, found = second(req)
			}
			if limit >= 0 && len(value) > limit {
				value = value[:limit]
			}
			return value, found
		}, nil
	}
	return nil, fmt.Errorf("%s: the format operator %%%s%% is not supported", at, op)
}

// Write returns the formatted text; missing stands for operators without value.
func (f Format) Write(req *Request, missing string) string {
	if len(f) == 1 {
		if v, ok := f[0](req); ok {
			return v
		}
		return missing
	}
	var b strings.Builder
	for _, op := range f {
		if v, ok := op(req); ok {
			b.WriteString(v)
		} else {
			b.WriteString(missing)
		}
	}
	return b.String()
}

// Mutation removes and then adds headers.
type Mutation struct {
	remove []string
	add    []addition
}

type addition struct {
	key       string
	value     Format
	action    corev3.HeaderValueOption_HeaderAppendAction
	keepEmpty bool
}

// CompileMutation reads what is added to headers and what is removed first.
func CompileMutation(at string, add []*corev3.HeaderValueOption, remove []string) (Mutation, error) {
	var m Mutation
	for _, name := range remove {
		if strings.HasPrefix(name, ":") || strings.EqualFold(name, "host") {
			return m, fmt.Errorf("%s: %s cannot be removed", at, name)
		}
		m.remove = append(m.remove, Canonical(name))
	}
	for _, option := range add {
		name := option.GetHeader().GetKey()
		where := fmt.Sprintf("%s[%s]", at, name)
		if err := strict.Allow(where, option, "header", "append", "append_action", "keep_empty_value"); err != nil {
			return m, err
		}
		if name == "" || strings.HasPrefix(name, ":") || strings.EqualFold(name, "host") {
			return m, fmt.Errorf("%s: this header cannot be set here", where)
		}
		text := option.GetHeader().GetValue()
		if raw := option.GetHeader().GetRawValue(); len(raw) > 0 {
			if !utf8.Valid(raw) {
				return m, fmt.Errorf("%s: raw_value is not UTF-8", where)
			}
			text = string(raw)
		}
		value, err := CompileFormat(where, text)
		if err != nil {
			return m, err
		}
		action := option.GetAppendAction()
		if append := option.GetAppend(); append != nil && !append.GetValue() {
			action = corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD
		}
		m.add = append(m.add, addition{key: Canonical(name), value: value, action: action, keepEmpty: option.GetKeepEmptyValue()})
	}
	return m, nil
}

// Apply changes header, with values of the request.
func (m *Mutation) Apply(req *Request, header http.Header) {
	for _, key := range m.remove {
		delete(header, key)
	}
	for i := range m.add {
		a := &m.add[i]
		value := a.value.Write(req, "")
		if value == "" && !a.keepEmpty {
			continue
		}
		_, exists := header[a.key]
		switch a.action {
		case corev3.HeaderValueOption_ADD_IF_ABSENT:
			if !exists {
				header[a.key] = []string{value}
			}
		case corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD:
			header[a.key] = []string{value}
		case corev3.HeaderValueOption_OVERWRITE_IF_EXISTS:
			if exists {
				header[a.key] = []string{value}
			}
		default:
			header[a.key] = append(header[a.key], value)
		}
	}
}
