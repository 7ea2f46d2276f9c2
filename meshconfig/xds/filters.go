package xds

import (
	"iter"
	"math"
	"strconv"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	ratelimitcommonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	apikeyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/api_key_auth/v3"
	bufferv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/buffer/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	metadatav3 "github.com/envoyproxy/go-control-plane/envoy/type/metadata/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/pkg/apis/headers"
)

// Filters that few gateways need: they are there when a rule asks for them, so
// that others do with an Envoy that has not got them.
const (
	filterAPIKey    = "envoy.filters.http.api_key_auth"
	filterRateLimit = "envoy.filters.http.local_ratelimit"
	filterBuffer    = "envoy.filters.http.buffer"
)

// maxBuckets of a rule that counts by a key. Beyond it the value that was not
// seen for longest is forgotten.
const maxBuckets = 10_000

// askedFor are the filters that rules of the gateway ask for, in the order in
// which they look at a request: none does anything but by a route's word.
func (b *builder) askedFor(demands iter.Seq[*Demands]) []*hcmv3.HttpFilter {
	asked := map[string]bool{}
	for d := range demands {
		for _, name := range d.filters {
			asked[name] = true
		}
	}
	var all []*hcmv3.HttpFilter
	add := func(name string, config proto.Message) {
		filter := b.filter(name, config)
		filter.Disabled = true
		all = append(all, filter)
	}
	if asked[filterAPIKey] {
		add(filterAPIKey, &apikeyv3.ApiKeyAuth{})
	}
	if asked[filterRateLimit] {
		add(filterRateLimit, &ratelimitv3.LocalRateLimit{StatPrefix: "rules"})
	}
	if asked[filterBuffer] {
		add(filterBuffer, &bufferv3.Buffer{MaxRequestBytes: wrapperspb.UInt32(math.MaxInt32)})
	}
	return all
}

// perRoute is what the route of a rule says to those filters.
func (b *builder) perRoute(r *ir.Rule, out map[string]*anypb.Any) {
	if r.APIKey != nil {
		out[filterAPIKey] = b.any(apiKey(r.APIKey))
	}
	if r.RateLimit != nil {
		out[filterRateLimit] = b.any(rateLimit(r.RateLimit))
	}
	if r.MaxBodyBytes > 0 {
		out[filterBuffer] = b.any(&bufferv3.BufferPerRoute{Override: &bufferv3.BufferPerRoute_Buffer{
			Buffer: &bufferv3.Buffer{MaxRequestBytes: wrapperspb.UInt32(r.MaxBodyBytes)},
		}})
	}
}

func apiKey(k *ir.APIKey) *apikeyv3.ApiKeyAuthPerRoute {
	out := &apikeyv3.ApiKeyAuthPerRoute{
		KeySources: []*apikeyv3.KeySource{{Header: k.Header, Query: k.Query}},
		Forwarding: &apikeyv3.Forwarding{Header: headers.APIClient, HideCredentials: true},
	}
	for _, c := range k.Clients {
		out.Credentials = append(out.Credentials, &apikeyv3.Credential{Key: c.Key, Client: c.Name})
	}
	return out
}

func rateLimit(l *ir.RateLimit) *ratelimitv3.LocalRateLimit {
	always := &corev3.RuntimeFractionalPercent{DefaultValue: &typev3.FractionalPercent{Numerator: 100}}
	bucket := &typev3.TokenBucket{
		MaxTokens: l.Burst, TokensPerFill: wrapperspb.UInt32(l.Requests), FillInterval: durationpb.New(time.Duration(l.Per)),
	}
	// Buckets fill steadily: after this time there is one more, at the latest.
	retry := max(1, int(math.Ceil(time.Duration(l.Per).Seconds()/float64(l.Requests))))
	out := &ratelimitv3.LocalRateLimit{
		StatPrefix: "rules", TokenBucket: bucket, FilterEnabled: always, FilterEnforced: always,
		EnableXRatelimitHeaders: ratelimitcommonv3.XRateLimitHeadersRFCVersion_DRAFT_VERSION_03,
		ResponseHeadersToAdd:    []*corev3.HeaderValueOption{setHeader(ir.Header{Name: "retry-after", Value: strconv.Itoa(retry)})},
	}
	const key = "client"
	var by *routev3.RateLimit_Action
	switch {
	case l.Header != "":
		by = &routev3.RateLimit_Action{ActionSpecifier: &routev3.RateLimit_Action_RequestHeaders_{
			RequestHeaders: &routev3.RateLimit_Action_RequestHeaders{HeaderName: l.Header, DescriptorKey: key},
		}}
	case l.Claim != "":
		by = &routev3.RateLimit_Action{ActionSpecifier: &routev3.RateLimit_Action_Metadata{Metadata: &routev3.RateLimit_Action_MetaData{
			DescriptorKey: key, Source: routev3.RateLimit_Action_MetaData_DYNAMIC,
			MetadataKey: &metadatav3.MetadataKey{Key: filterJWT, Path: []*metadatav3.MetadataKey_PathSegment{
				{Segment: &metadatav3.MetadataKey_PathSegment_Key{Key: payloadKey}},
				{Segment: &metadatav3.MetadataKey_PathSegment_Key{Key: l.Claim}},
			}},
		}}}
	case l.ClientIP:
		by = &routev3.RateLimit_Action{ActionSpecifier: &routev3.RateLimit_Action_RemoteAddress_{RemoteAddress: &routev3.RateLimit_Action_RemoteAddress{}}}
	default:
		return out
	}
	name := key
	if l.ClientIP {
		name = "remote_address" // as Envoy calls it
	}
	out.RateLimits = []*routev3.RateLimit{{Actions: []*routev3.RateLimit_Action{by}}}
	out.Descriptors = []*ratelimitcommonv3.LocalRateLimitDescriptor{{
		Entries: []*ratelimitcommonv3.RateLimitDescriptor_Entry{{Key: name}}, TokenBucket: bucket,
	}}
	out.MaxDynamicDescriptors = wrapperspb.UInt32(maxBuckets)
	out.AlwaysConsumeDefaultTokenBucket = wrapperspb.Bool(false)
	return out
}
