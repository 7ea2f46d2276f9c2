package filters

import (
	"container/list"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	ratelimitcommonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/request"
	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/strict"
)

// rateLimit is a compiled LocalRateLimit: a bucket for all, or one for each value
// of by.
type rateLimit struct {
	// key of its buckets, which outlive a configuration that says the same.
	key     string
	bucket  bucketSize
	by      func(*request.Request) (string, bool) // nil: one bucket for all
	values  bucketSize                            // of each value
	most    int                                   // values at a time
	headers bool
	extra   request.Mutation
}

type bucketSize struct {
	most float64
	rate float64 // a second
}

func rateLimitKind() kind {
	const message = "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"
	return kind{
		config: message,
		compile: func(at string, config *anypb.Any) (Filter, error) {
			limit, err := compileRateLimit(at, config)
			return rateLimitFilter{limit}, err
		},
		override: message,
		compileOverride: func(at string, config *anypb.Any) (Override, error) {
			limit, err := compileRateLimit(at, config)
			return Override{Config: limit}, err
		},
	}
}

// compileRateLimit returns nil for a filter that leaves everything to routes.
func compileRateLimit(at string, config *anypb.Any) (*rateLimit, error) {
	var c ratelimitv3.LocalRateLimit
	if err := strict.Unmarshal(at, config, &c); err != nil {
		return nil, err
	}
	if c.GetTokenBucket() == nil {
		return nil, strict.Allow(at, &c, "stat_prefix")
	}
	if err := strict.Allow(at, &c, "stat_prefix", "token_bucket", "filter_enabled", "filter_enforced", "enable_x_ratelimit_headers", "response_headers_to_add",
		"descriptors", "rate_limits", "max_dynamic_descriptors", "always_consume_default_token_bucket"); err != nil {
		return nil, err
	}
	for _, part := range []*corev3.RuntimeFractionalPercent{c.GetFilterEnabled(), c.GetFilterEnforced()} {
		if v := part.GetDefaultValue(); v.GetNumerator() != 100 || v.GetDenominator() != typev3.FractionalPercent_HUNDRED {
			return nil, fmt.Errorf("%s: filter_enabled and filter_enforced of 100 percent are required", at)
		}
	}
	limit := &rateLimit{
		key:     string(config.GetValue()),
		headers: c.GetEnableXRatelimitHeaders() == ratelimitcommonv3.XRateLimitHeadersRFCVersion_DRAFT_VERSION_03,
		most:    int(c.GetMaxDynamicDescriptors().GetValue()),
	}
	var err error
	if limit.bucket, err = compileBucket(at+".token_bucket", c.GetTokenBucket()); err != nil {
		return nil, err
	}
	if limit.extra, err = request.CompileMutation(at+".response_headers_to_add", c.GetResponseHeadersToAdd(), nil); err != nil {
		return nil, err
	}
	if len(c.GetDescriptors()) == 0 && len(c.GetRateLimits()) == 0 {
		return limit, nil
	}
	return limit, limit.compileKey(at, &c)
}

// compileKey takes one action and the descriptor of any of its values.
func (l *rateLimit) compileKey(at string, c *ratelimitv3.LocalRateLimit) error {
	if len(c.GetDescriptors()) != 1 || len(c.GetRateLimits()) != 1 || len(c.GetRateLimits()[0].GetActions()) != 1 ||
		len(c.GetDescriptors()[0].GetEntries()) != 1 || c.GetAlwaysConsumeDefaultTokenBucket() == nil || c.GetAlwaysConsumeDefaultTokenBucket().GetValue() || l.most == 0 {
		return fmt.Errorf("%s: only one rate limit with one action, one descriptor with one entry, max_dynamic_descriptors and always_consume_default_token_bucket: false are supported", at)
	}
	descriptor, limit := c.GetDescriptors()[0], c.GetRateLimits()[0]
	if err := strict.Allow(at+".descriptors[0]", descriptor, "entries", "token_bucket"); err != nil {
		return err
	}
	if err := strict.Allow(at+".rate_limits[0]", limit, "actions"); err != nil {
		return err
	}
	var err error
	if l.values, err = compileBucket(at+".descriptors[0].token_bucket", descriptor.GetTokenBucket()); err != nil {
		return err
	}
	var name string
	switch a := limit.GetActions()[0].GetActionSpecifier().(type) {
	case *routev3.RateLimit_Action_RequestHeaders_:
		if err := strict.Allow(at+".request_headers", a.RequestHeaders, "header_name", "descriptor_key"); err != nil {
			return err
		}
		name = a.RequestHeaders.GetDescriptorKey()
		l.by = request.HeaderGetter(a.RequestHeaders.GetHeaderName())
	case *routev3.RateLimit_Action_RemoteAddress_:
		name = "remote_address"
		l.by = func(req *request.Request) (string, bool) { return req.Client, req.Client != "" }
	case *routev3.RateLimit_Action_Metadata:
		if err := strict.Allow(at+".metadata", a.Metadata, "metadata_key", "descriptor_key", "source"); err != nil {
			return err
		}
		if a.Metadata.GetSource() != routev3.RateLimit_Action_MetaData_DYNAMIC {
			return fmt.Errorf("%s.metadata: only dynamic metadata is supported", at)
		}
		name = a.Metadata.GetDescriptorKey()
		namespace, path := a.Metadata.GetMetadataKey().GetKey(), a.Metadata.GetMetadataKey().GetPath()
		l.by = func(req *request.Request) (string, bool) {
			var value any = req.Metadata[namespace]
			for i, segment := range path {
				object, ok := value.(map[string]any)
				if i == 0 {
					object, ok = req.Metadata[namespace], true
				}
				if !ok {
					return "", false
				}
				value = object[segment.GetKey()]
			}
			text, ok := value.(string)
			return text, ok && text != ""
		}
	default:
		return fmt.Errorf("%s.rate_limits[0].actions[0]: %T is not supported", at, a)
	}
	if entry := descriptor.GetEntries()[0]; entry.GetKey() != name || entry.GetValue() != "" {
		return fmt.Errorf("%s.descriptors[0].entries[0]: only the key %q with any value is supported", at, name)
	}
	return nil
}

func compileBucket(at string, b *typev3.TokenBucket) (bucketSize, error) {
	interval := b.GetFillInterval().AsDuration()
	if b.GetMaxTokens() == 0 || interval <= 0 {
		return bucketSize{}, fmt.Errorf("%s: max_tokens and fill_interval are required", at)
	}
	fill := uint32(1)
	if v := b.GetTokensPerFill(); v != nil {
		fill = v.GetValue()
	}
	return bucketSize{most: float64(b.GetMaxTokens()), rate: float64(fill) / interval.Seconds()}, nil
}

type rateLimitFilter struct{ limit *rateLimit }

// Decode implements Filter.
func (f rateLimitFilter) Decode(req *request.Request, answer Answerer, override any) bool {
	limit := f.limit
	if o, ok := override.(*rateLimit); ok {
		limit = o
	}
	if limit == nil {
		return true
	}
	all, _ := answer.Shared(req.RouteName+"\x00"+limit.key, func() any { return newBuckets(limit) }).(*buckets) // nobody else has such a key
	left, wait := all.take(limit, req, time.Now())
	if limit.headers {
		size := limit.bucket
		if limit.by != nil {
			size = limit.values
		}
		answer.OnResponse(func(h http.Header) {
			h["X-Ratelimit-Limit"] = []string{strconv.Itoa(int(size.most))}
			h["X-Ratelimit-Remaining"] = []string{strconv.Itoa(max(0, int(left)))}
			h["X-Ratelimit-Reset"] = []string{strconv.Itoa(int(math.Ceil(wait)))}
		})
	}
	if left >= 0 {
		return true
	}
	answer.Reply(http.StatusTooManyRequests, "local_rate_limited", "local_rate_limited", func(h http.Header) { limit.extra.Apply(req, h) })
	return false
}

// buckets of one rate limit.
type buckets struct {
	mu      sync.Mutex
	shared  bucket
	byValue map[string]*list.Element // of *bucket
	recent  *list.List               // the newest in front
}

type bucket struct {
	value  string
	tokens float64
	at     time.Time
}

func newBuckets(l *rateLimit) *buckets {
	return &buckets{shared: bucket{tokens: l.bucket.most}, byValue: map[string]*list.Element{}, recent: list.New()}
}

// take a token: what is left is negative when there was none. wait is the number
// of seconds until the bucket has one more.
func (b *buckets) take(l *rateLimit, req *request.Request, now time.Time) (left, wait float64) {
	value, counted := "", false
	if l.by != nil {
		value, counted = l.by(req)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !counted {
		return b.shared.take(l.bucket, now)
	}
	element := b.byValue[value]
	if element == nil {
		if len(b.byValue) >= l.most {
			oldest := b.recent.Back()
			delete(b.byValue, b.recent.Remove(oldest).(*bucket).value) //nolint:errcheck // the list holds nothing else
		}
		element = b.recent.PushFront(&bucket{value: value, tokens: l.values.most})
		b.byValue[value] = element
	}
	b.recent.MoveToFront(element)
	return element.Value.(*bucket).take(l.values, now) //nolint:errcheck // the list holds nothing else
}

// take fills the bucket for the time that has gone by, steadily.
func (b *bucket) take(size bucketSize, now time.Time) (left, wait float64) {
	if !b.at.IsZero() {
		b.tokens = min(size.most, b.tokens+size.rate*now.Sub(b.at).Seconds())
	}
	b.at = now
	if b.tokens < 1 {
		return -1, (1 - b.tokens) / size.rate
	}
	b.tokens--
	return math.Floor(b.tokens), max(0, math.Floor(b.tokens)+1-b.tokens) / size.rate
}
