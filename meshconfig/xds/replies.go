package xds

import (
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

// problemReplies gives what the proxy itself answers a short body of
// application/problem+json (RFC 9457).
func problemReplies() *hcmv3.LocalReplyConfig {
	config := &hcmv3.LocalReplyConfig{BodyFormat: problem("Error")}
	for _, reply := range []struct {
		status uint32
		title  string
	}{
		{400, "Bad Request"},
		{401, "Unauthorized"},
		{403, "Forbidden"},
		{404, "Not Found"},
		{408, "Request Timeout"},
		{413, "Content Too Large"},
		{429, "Too Many Requests"},
		{431, "Request Header Fields Too Large"},
		{502, "Bad Gateway"},
		{503, "Service Unavailable"},
		{504, "Gateway Timeout"},
	} {
		config.Mappers = append(config.Mappers, &hcmv3.ResponseMapper{
			Filter: &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_StatusCodeFilter{
				StatusCodeFilter: &accesslogv3.StatusCodeFilter{Comparison: &accesslogv3.ComparisonFilter{
					Op:    accesslogv3.ComparisonFilter_EQ,
					Value: &corev3.RuntimeUInt32{DefaultValue: reply.status, RuntimeKey: "lambdamesh.local_reply"},
				}},
			}},
			BodyFormatOverride: problem(reply.title),
		})
	}
	return config
}

func problem(title string) *corev3.SubstitutionFormatString {
	return &corev3.SubstitutionFormatString{
		Format: &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: &structpb.Struct{Fields: map[string]*structpb.Value{
			"type":   structpb.NewStringValue("about:blank"),
			"title":  structpb.NewStringValue(title),
			"status": structpb.NewStringValue("%RESPONSE_CODE%"), // written as a number
			"detail": structpb.NewStringValue("%LOCAL_REPLY_BODY%"),
		}}},
		ContentType: "application/problem+json",
	}
}
