package filters

import (
	"net/http"
	"strconv"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/request"
)

func percent(n uint32) *corev3.RuntimeFractionalPercent {
	return &corev3.RuntimeFractionalPercent{DefaultValue: &typev3.FractionalPercent{Numerator: n}}
}

func limitOf(t *testing.T, change ...func(*ratelimitv3.LocalRateLimit)) (*rateLimit, error) {
	t.Helper()
	c := &ratelimitv3.LocalRateLimit{
		StatPrefix: "x", FilterEnabled: percent(100), FilterEnforced: percent(100),
		TokenBucket: &typev3.TokenBucket{MaxTokens: 2, TokensPerFill: wrapperspb.UInt32(1), FillInterval: durationpb.New(10 * time.Second)},
	}
	for _, f := range change {
		f(c)
	}
	packed, err := anypb.New(c)
	require.NoError(t, err)
	return compileRateLimit("here", packed)
}

func TestBucketsFillSteadily(t *testing.T) {
	limit, err := limitOf(t)
	require.NoError(t, err)
	all, req, now := newBuckets(limit), &request.Request{HTTP: &http.Request{Header: http.Header{}}}, time.Unix(1000, 0)
	for _, step := range []struct {
		after    time.Duration
		lets     bool
		leftOver float64
	}{
		{0, true, 1},
		{0, true, 0},
		{0, false, -1},
		{9 * time.Second, false, -1},
		{time.Second, true, 0}, // ten seconds are one more
		{time.Hour, true, 1},   // and never more than the bucket holds
		{0, true, 0},
		{0, false, -1},
	} {
		now = now.Add(step.after)
		left, wait := all.take(limit, req, now)
		require.Equal(t, step.lets, left >= 0)
		require.InDelta(t, step.leftOver, left, 0.001)
		require.GreaterOrEqual(t, wait, 0.0)
	}
}

func TestTheValueThatWasNotSeenForLongestIsForgotten(t *testing.T) {
	limit, err := limitOf(t)
	require.NoError(t, err)
	limit.by, limit.values, limit.most = request.HeaderGetter("x-tenant"), bucketSize{most: 1, rate: 0.001}, 3
	all, now := newBuckets(limit), time.Unix(1000, 0)
	ask := func(tenant int) bool {
		req := &request.Request{HTTP: &http.Request{Header: http.Header{"X-Tenant": {strconv.Itoa(tenant)}}}}
		left, _ := all.take(limit, req, now)
		return left >= 0
	}
	for tenant := range 3 {
		require.True(t, ask(tenant))
	}
	require.False(t, ask(0), "it is remembered, and the newest now")
	require.True(t, ask(3), "takes the place of 1")
	require.Len(t, all.byValue, 3)
	require.False(t, ask(0))
	require.False(t, ask(2))
	require.True(t, ask(1), "was forgotten")
}

func TestRateLimitsThatWouldDoSomethingElseAreRefused(t *testing.T) {
	for name, change := range map[string]func(*ratelimitv3.LocalRateLimit){
		"a share of the requests": func(c *ratelimitv3.LocalRateLimit) { c.FilterEnforced = percent(50) },
		"one that counts only":    func(c *ratelimitv3.LocalRateLimit) { c.FilterEnforced = nil },
		"another status":          func(c *ratelimitv3.LocalRateLimit) { c.Status = &typev3.HttpStatus{Code: typev3.StatusCode_Forbidden} },
		"a bucket per connection": func(c *ratelimitv3.LocalRateLimit) { c.LocalRateLimitPerDownstreamConnection = true },
		"values without an end":   func(c *ratelimitv3.LocalRateLimit) { c.MaxDynamicDescriptors = wrapperspb.UInt32(1); c.Stage = 1 },
	} {
		t.Run(name, func(t *testing.T) {
			_, err := limitOf(t, change)
			require.ErrorContains(t, err, "here")
		})
	}
}
