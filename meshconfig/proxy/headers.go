package proxy

import (
	"fmt"
	"net"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"unicode/utf8"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
)

func canonical(name string) string { return textproto.CanonicalMIMEHeaderKey(name) }

// format writes a value with %OPERATORS% replaced by properties of the request.
// The operators that are not listed in compileOperator are refused.
type format []operator

// operator returns its value; false when there is none.
type operator func(*exchange) (string, bool)

func compileFormat(at, text string) (format, error) {
	var f format
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

func literal(s string) operator { return func(*exchange) (string, bool) { return s, true } }

func compileOperator(at, op string) (operator, error) {
	simple := map[string]operator{
		"RESPONSE_CODE":         func(e *exchange) (string, bool) { return strconv.Itoa(e.local.code), e.local.code != 0 },
		"RESPONSE_CODE_DETAILS": func(e *exchange) (string, bool) { return e.local.details, e.local.details != "" },
		"LOCAL_REPLY_BODY":      func(e *exchange) (string, bool) { return e.local.body, e.local.body != "" },
		"PROTOCOL":              func(e *exchange) (string, bool) { return e.r.Proto, true },
		"DOWNSTREAM_PEER_URI_SAN": func(e *exchange) (string, bool) {
			sans := e.conn.peerURIs()
			return strings.Join(sans, ","), len(sans) > 0
		},
		"DOWNSTREAM_REMOTE_ADDRESS":              func(e *exchange) (string, bool) { return e.r.RemoteAddr, e.r.RemoteAddr != "" },
		"DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT": func(e *exchange) (string, bool) { ip := e.remoteIP(); return ip, ip != "" },
		"DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT": func(e *exchange) (string, bool) {
			host, _, err := net.SplitHostPort(e.r.RemoteAddr)
			return host, err == nil
		},
		"REQUESTED_SERVER_NAME": func(e *exchange) (string, bool) { sni := e.conn.serverName(); return sni, sni != "" },
		"ROUTE_NAME":            func(e *exchange) (string, bool) { return e.route.label(), e.route.label() != "" },
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
		first, second := headerGetter(name), headerGetter(alternative)
		return func(e *exchange) (string, bool) {
			value, found := first(e)
			if !found && alternative != "" {
				value, found = second(e)
			}
			if limit >= 0 && len(value) > limit {
				value = value[:limit]
			}
			return value, found
		}, nil
	}
	return nil, fmt.Errorf("%s: the format operator %%%s%% is not supported", at, op)
}

// write returns the formatted text; missing stands for operators without value.
func (f format) write(e *exchange, missing string) string {
	if len(f) == 1 {
		if v, ok := f[0](e); ok {
			return v
		}
		return missing
	}
	var b strings.Builder
	for _, op := range f {
		if v, ok := op(e); ok {
			b.WriteString(v)
		} else {
			b.WriteString(missing)
		}
	}
	return b.String()
}

// mutation removes and then adds headers.
type mutation struct {
	remove []string
	add    []addition
}

type addition struct {
	key       string
	value     format
	action    corev3.HeaderValueOption_HeaderAppendAction
	keepEmpty bool
}

func compileMutation(at string, add []*corev3.HeaderValueOption, remove []string) (mutation, error) {
	var m mutation
	for _, name := range remove {
		if strings.HasPrefix(name, ":") || strings.EqualFold(name, "host") {
			return m, fmt.Errorf("%s: %s cannot be removed", at, name)
		}
		m.remove = append(m.remove, canonical(name))
	}
	for _, option := range add {
		name := option.GetHeader().GetKey()
		where := fmt.Sprintf("%s[%s]", at, name)
		if err := allow(where, option, "header", "append", "append_action", "keep_empty_value"); err != nil {
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
		value, err := compileFormat(where, text)
		if err != nil {
			return m, err
		}
		action := option.GetAppendAction()
		if append := option.GetAppend(); append != nil && !append.GetValue() {
			action = corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD
		}
		m.add = append(m.add, addition{key: canonical(name), value: value, action: action, keepEmpty: option.GetKeepEmptyValue()})
	}
	return m, nil
}

func (m *mutation) apply(e *exchange, header http.Header) {
	for _, key := range m.remove {
		delete(header, key)
	}
	for i := range m.add {
		a := &m.add[i]
		value := a.value.write(e, "")
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
