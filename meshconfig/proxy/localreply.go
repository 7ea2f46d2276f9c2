package proxy

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

// localReply is a compiled LocalReplyConfig: how answers of the proxy itself
// look.
type localReply struct {
	mappers []replyMapper
	body    *bodyFormat
}

type replyMapper struct {
	match   func(code int) bool
	status  int
	hasBody bool
	text    string
	body    *bodyFormat
	headers mutation
}

type bodyFormat struct {
	contentType string
	text        format
	json        func(*exchange) any
}

func compileLocalReply(at string, c *hcmv3.LocalReplyConfig) (*localReply, error) {
	if c == nil {
		return nil, nil
	}
	if err := allow(at, c, "mappers", "body_format"); err != nil {
		return nil, err
	}
	l := &localReply{}
	var err error
	if l.body, err = compileBodyFormat(at+".body_format", c.GetBodyFormat()); err != nil {
		return nil, err
	}
	for i, m := range c.GetMappers() {
		where := fmt.Sprintf("%s.mappers[%d]", at, i)
		if err := allow(where, m, "filter", "status_code", "body", "body_format_override", "headers_to_add"); err != nil {
			return nil, err
		}
		one := replyMapper{status: int(m.GetStatusCode().GetValue())}
		if one.match, err = compileStatusFilter(where+".filter", m.GetFilter()); err != nil {
			return nil, err
		}
		if m.GetBody() != nil {
			body, err := inline(where+".body", m.GetBody())
			if err != nil {
				return nil, err
			}
			one.hasBody, one.text = true, string(body)
		}
		if one.body, err = compileBodyFormat(where+".body_format_override", m.GetBodyFormatOverride()); err != nil {
			return nil, err
		}
		if one.headers, err = compileMutation(where+".headers_to_add", m.GetHeadersToAdd(), nil); err != nil {
			return nil, err
		}
		l.mappers = append(l.mappers, one)
	}
	return l, nil
}

func compileStatusFilter(at string, f *accesslogv3.AccessLogFilter) (func(int) bool, error) {
	list := func(filters []*accesslogv3.AccessLogFilter) ([]func(int) bool, error) {
		var out []func(int) bool
		for i, one := range filters {
			match, err := compileStatusFilter(fmt.Sprintf("%s[%d]", at, i), one)
			if err != nil {
				return nil, err
			}
			out = append(out, match)
		}
		return out, nil
	}
	switch s := f.GetFilterSpecifier().(type) {
	case *accesslogv3.AccessLogFilter_StatusCodeFilter:
		want := int(s.StatusCodeFilter.GetComparison().GetValue().GetDefaultValue())
		switch op := s.StatusCodeFilter.GetComparison().GetOp(); op {
		case accesslogv3.ComparisonFilter_EQ:
			return func(code int) bool { return code == want }, nil
		case accesslogv3.ComparisonFilter_GE:
			return func(code int) bool { return code >= want }, nil
		case accesslogv3.ComparisonFilter_LE:
			return func(code int) bool { return code <= want }, nil
		case accesslogv3.ComparisonFilter_NE:
			return func(code int) bool { return code != want }, nil
		default:
			return nil, fmt.Errorf("%s.status_code_filter: %s is not supported", at, op)
		}
	case *accesslogv3.AccessLogFilter_AndFilter:
		matches, err := list(s.AndFilter.GetFilters())
		return func(code int) bool {
			for _, m := range matches {
				if !m(code) {
					return false
				}
			}
			return true
		}, err
	case *accesslogv3.AccessLogFilter_OrFilter:
		matches, err := list(s.OrFilter.GetFilters())
		return func(code int) bool {
			for _, m := range matches {
				if m(code) {
					return true
				}
			}
			return false
		}, err
	default:
		return nil, fmt.Errorf("%s: %T is not supported", at, s)
	}
}

func compileBodyFormat(at string, c *corev3.SubstitutionFormatString) (*bodyFormat, error) {
	if c == nil {
		return nil, nil
	}
	if err := allow(at, c, "text_format", "text_format_source", "json_format", "content_type", "omit_empty_values"); err != nil {
		return nil, err
	}
	b := &bodyFormat{contentType: c.GetContentType()}
	if b.contentType == "" {
		b.contentType = "text/plain"
		if c.GetJsonFormat() != nil {
			b.contentType = "application/json"
		}
	}
	var err error
	switch f := c.GetFormat().(type) {
	case *corev3.SubstitutionFormatString_TextFormat:
		b.text, err = compileFormat(at+".text_format", f.TextFormat)
	case *corev3.SubstitutionFormatString_TextFormatSource:
		var text []byte
		if text, err = inline(at+".text_format_source", f.TextFormatSource); err == nil {
			b.text, err = compileFormat(at+".text_format_source", string(text))
		}
	case *corev3.SubstitutionFormatString_JsonFormat:
		b.json, err = compileJSON(at+".json_format", structpb.NewStructValue(f.JsonFormat), c.GetOmitEmptyValues())
	default:
		err = fmt.Errorf("%s: has no format", at)
	}
	return b, err
}

// compileJSON keeps the structure and formats the strings. A string that is one
// operator becomes its value: a number for %RESPONSE_CODE%, null for none.
func compileJSON(at string, v *structpb.Value, omitEmpty bool) (func(*exchange) any, error) {
	switch k := v.GetKind().(type) {
	case *structpb.Value_StringValue:
		f, err := compileFormat(at, k.StringValue)
		number := k.StringValue == "%RESPONSE_CODE%"
		return func(e *exchange) any {
			if len(f) == 1 {
				text, ok := f[0](e)
				if !ok {
					return nil
				}
				if number {
					if n, err := strconv.Atoi(text); err == nil {
						return n
					}
				}
				return text
			}
			return f.write(e, "-")
		}, err
	case *structpb.Value_StructValue:
		fields := map[string]func(*exchange) any{}
		for name, one := range k.StructValue.GetFields() {
			f, err := compileJSON(at+"."+name, one, omitEmpty)
			if err != nil {
				return nil, err
			}
			fields[name] = f
		}
		return func(e *exchange) any {
			out := make(map[string]any, len(fields))
			for name, f := range fields {
				if value := f(e); value != nil || !omitEmpty {
					out[name] = value
				}
			}
			return out
		}, nil
	case *structpb.Value_ListValue:
		var list []func(*exchange) any
		for i, one := range k.ListValue.GetValues() {
			f, err := compileJSON(fmt.Sprintf("%s[%d]", at, i), one, omitEmpty)
			if err != nil {
				return nil, err
			}
			list = append(list, f)
		}
		return func(e *exchange) any {
			out := make([]any, len(list))
			for i, f := range list {
				out[i] = f(e)
			}
			return out
		}, nil
	default:
		value := v.AsInterface()
		return func(*exchange) any { return value }, nil
	}
}

func (b *bodyFormat) write(e *exchange) string {
	if b.json == nil {
		return b.text.write(e, "-")
	}
	out, err := json.Marshal(b.json(e))
	if err != nil {
		return ""
	}
	return string(out) + "\n"
}

// reply answers a request here. extra adds headers.
func (e *exchange) reply(code int, details, body string, extra func(http.Header)) {
	e.local.code, e.local.details, e.local.body = code, details, body
	header := e.w.Header()
	contentType := "text/plain"
	if extra != nil {
		extra(header)
	}
	var form *bodyFormat
	if l := e.hcm.localReply; l != nil {
		form = l.body
		for i := range l.mappers {
			m := &l.mappers[i]
			if !m.match(code) {
				continue
			}
			if m.hasBody {
				e.local.body = m.text
			}
			m.headers.apply(e, header)
			if m.status != 0 {
				e.local.code = m.status
			}
			if m.body != nil {
				form = m.body
			}
			break
		}
	}
	text := e.local.body
	if form != nil {
		text, contentType = form.write(e), form.contentType
	}
	if text != "" {
		header.Set("Content-Type", contentType)
	}
	header.Set("Content-Length", strconv.Itoa(len(text)))
	if e.route != nil {
		e.changeResponse(e.weighted, header)
	}
	e.finishHeader(header)
	e.w.WriteHeader(e.local.code)
	if text != "" {
		_, _ = e.w.Write([]byte(text)) // the client is gone: nobody to tell
	}
}
