package filters

import (
	"fmt"
	"net/http"

	bufferv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/buffer/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/request"
	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/strict"
)

// bufferFilter refuses bodies that are larger than so many bytes. Unlike Envoy's
// it does not keep them until they are whole: what is too large breaks off on its
// way to the upstream.
type bufferFilter int64

func bufferKind() kind {
	return kind{
		config: "envoy.extensions.filters.http.buffer.v3.Buffer",
		compile: func(at string, config *anypb.Any) (Filter, error) {
			var c bufferv3.Buffer
			if err := strict.Unmarshal(at, config, &c); err != nil {
				return nil, err
			}
			return bufferFilter(c.GetMaxRequestBytes().GetValue()), strict.Allow(at, &c, "max_request_bytes")
		},

		override: "envoy.extensions.filters.http.buffer.v3.BufferPerRoute",
		compileOverride: func(at string, config *anypb.Any) (Override, error) {
			var c bufferv3.BufferPerRoute
			if err := strict.Unmarshal(at, config, &c); err != nil {
				return Override{}, err
			}
			if c.GetBuffer() == nil && !c.GetDisabled() {
				return Override{}, fmt.Errorf("%s: is empty", at)
			}
			return Override{Disabled: c.GetDisabled(), Config: bufferFilter(c.GetBuffer().GetMaxRequestBytes().GetValue())},
				strict.Allow(at+".buffer", c.GetBuffer(), "max_request_bytes")
		},
	}
}

// Decode implements Filter.
func (f bufferFilter) Decode(req *request.Request, answer Answerer, override any) bool {
	if o, ok := override.(bufferFilter); ok {
		f = o
	}
	if req.HTTP.ContentLength > int64(f) {
		TooLarge(answer)
		return false
	}
	if req.HTTP.ContentLength < 0 {
		answer.LimitBody(int64(f))
	}
	return true
}

// TooLarge answers a request whose body is larger than it may be.
func TooLarge(answer Answerer) {
	answer.Header().Set("Connection", "close") // nobody reads the rest
	answer.Reply(http.StatusRequestEntityTooLarge, "request_payload_too_large", "Payload Too Large", nil)
}
