package compile

import (
	"encoding/json"
	"fmt"
	"strconv"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/request"
	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/strict"
)

// localReply is a compiled LocalReplyConfig: how answers of the proxy itself
// look.
type localReply struct {
	Mappers []replyMapper
	Body    *BodyFormat
}

type replyMapper struct {
	Match   func(code int) bool
	Status  int
	HasBody bool
	Text    string
	Body    *BodyFormat
	Headers request.Mutation
}

// BodyFormat is a compiled SubstitutionFormatString.
type BodyFormat struct {
	ContentType string
	text        request.Format
	json        func(*request.Request) any
}

func compileLocalReply(at string, c *hcmv3.LocalReplyConfig) (*localReply, error) {
	if c == nil {
		return nil, nil
	}
	if err := strict.Allow(at, c, "mappers", "body_format"); err != nil {
		return nil, err
	}
	l := &localReply{}
	var err error
	if l.Body, err = compileBodyFormat(at+".body_format", c.GetBodyFormat()); err != nil {
		return nil, err
	}
	for i, m := range c.GetMappers() {
		where := fmt.Sprintf("%s.mappers[%d]", at, i)
		if err := strict.Allow(where, m, "filter", "status_code", "body", "body_format_override", "headers_to_add"); err != nil {
			return nil, err
		}
		one := replyMapper{Status: int(m.GetStatusCode().GetValue())}
		if one.Match, err = compileStatusFilter(where+".filter", m.GetFilter()); err != nil {
			return nil, err
		}
		if m.GetBody() != nil {
			body, err := strict.Inline(where+".body", m.GetBody())
			if err != nil {
				return nil, err
			}
			one.HasBody, one.Text = true, string(body)
		}
		if one.Body, err = compileBodyFormat(where+".body_format_override", m.GetBodyFormatOverride()); err != nil {
			return nil, err
		}
		if one.Headers, err = request.CompileMutation(where+".headers_to_add", m.GetHeadersToAdd(), nil); err != nil {
			return nil, err
		}
		l.Mappers = append(l.Mappers, one)
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

func compileBodyFormat(at string, c *corev3.SubstitutionFormatString) (*BodyFormat, error) {
	if c == nil {
		return nil, nil
	}
	if err := strict.Allow(at, c, "text_format", "text_format_source", "json_format", "content_type", "omit_empty_values"); err != nil {
		return nil, err
	}
	b := &BodyFormat{ContentType: c.GetContentType()}
	if b.ContentType == "" {
		b.ContentType = "text/plain"
		if c.GetJsonFormat() != nil {
			b.ContentType = "application/json"
		}
	}
	var err error
	switch f := c.GetFormat().(type) {
	case *corev3.SubstitutionFormatString_TextFormat:
		b.text, err = request.CompileFormat(at+".text_format", f.TextFormat)
	case *corev3.SubstitutionFormatString_TextFormatSource:
		var text []byte
		if text, err = strict.Inline(at+".text_format_source", f.TextFormatSource); err == nil {
			b.text, err = request.CompileFormat(at+".text_format_source", string(text))
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
func compileJSON(at string, v *structpb.Value, omitEmpty bool) (func(*request.Request) any, error) {
	switch k := v.GetKind().(type) {
	case *structpb.Value_StringValue:
		f, err := request.CompileFormat(at, k.StringValue)
		number := k.StringValue == "%RESPONSE_CODE%"
		return func(req *request.Request) any {
			if len(f) == 1 {
				text, ok := f[0](req)
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
			return f.Write(req, "-")
		}, err
	case *structpb.Value_StructValue:
		fields := map[string]func(*request.Request) any{}
		for name, one := range k.StructValue.GetFields() {
			f, err := compileJSON(at+"."+name, one, omitEmpty)
			if err != nil {
				return nil, err
			}
			fields[name] = f
		}
		return func(req *request.Request) any {
			out := make(map[string]any, len(fields))
			for name, f := range fields {
				if value := f(req); value != nil || !omitEmpty {
					out[name] = value
				}
			}
			return out
		}, nil
	case *structpb.Value_ListValue:
		var list []func(*request.Request) any
		for i, one := range k.ListValue.GetValues() {
			f, err := compileJSON(fmt.Sprintf("%s[%d]", at, i), one, omitEmpty)
			if err != nil {
				return nil, err
			}
			list = append(list, f)
		}
		return func(req *request.Request) any {
			out := make([]any, len(list))
			for i, f := range list {
				out[i] = f(req)
			}
			return out
		}, nil
	default:
		value := v.AsInterface()
		return func(*request.Request) any { return value }, nil
	}
}

func (b *BodyFormat) Write(req *request.Request) string {
	if b.json == nil {
		return b.text.Write(req, "-")
	}
	out, err := json.Marshal(b.json(req))
	if err != nil {
		return ""
	}
	return string(out) + "\n"
}
