package serve

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/compile"

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/filters"
)

// maxReplay is how large a body may be to be sent again by a retry.
const maxReplay = 64 << 10

// forward sends the request to its cluster and the answer back.
func (e *exchange) forward() {
	c := e.state.clusters[e.cluster]
	if c == nil {
		e.Reply(e.route.Forward.NotFound, "cluster_not_found", "", nil)
		return
	}
	if c.active.Add(1) > c.limit() {
		c.active.Add(-1)
		e.Reply(http.StatusServiceUnavailable, "upstream_reset_before_response_started{overflow}", "upstream connect error or disconnect/reset before headers. reset reason: overflow",
			func(h http.Header) { h.Set("X-Envoy-Overloaded", "true") })
		return
	}
	defer c.active.Add(-1)

	idle := e.hcm.StreamIdle
	if e.route.Forward.IdleTimeout != nil {
		idle = *e.route.Forward.IdleTimeout
	}
	ctx, cancel := context.WithCancelCause(e.HTTP.Context())
	defer cancel(nil)
	clock := newClock(cancel, e.route.Forward.Timeout, idle)
	defer clock.stop()

	e.changeRequest(e.weighted, e.HTTP.Header)
	if e.route.Forward.AppendHost && e.HTTP.Host != "" {
		e.HTTP.Header["X-Forwarded-Host"] = append(e.HTTP.Header["X-Forwarded-Host"], e.Host)
	}
	if _, ok := e.HTTP.Header["User-Agent"]; !ok {
		e.HTTP.Header["User-Agent"] = nil // else net/http writes its own
	}
	mirrors := e.mirrors()
	body, replay, failed := e.body(clock, len(mirrors) > 0)
	if failed {
		return
	}
	if body == nil || replay != nil {
		e.mirror(mirrors, replay)
	}
	e.sending = body
	traced, informed := e.informational(ctx)
	resp, failure, h := e.attempts(traced, c, body, replay)
	informed()
	if h == nil {
		e.Reply(http.StatusServiceUnavailable, "no_healthy_upstream", "no healthy upstream", nil)
		return
	}
	defer h.active.Add(-1)
	if failure != nil {
		e.fail(failure, body)
		e.linger()
		return
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusSwitchingProtocols {
		e.switchProtocols(resp, clock)
		return
	}
	e.answer(ctx, resp, clock)
	e.linger()
}

// body prepares the request's body: streamed, or read whole when it is small and
// may have to be sent again, by a retry or (copied) to a mirror. It returns true
// when it has answered.
func (e *exchange) body(clock *clock, copied bool) (body *requestBody, replay []byte, failed bool) {
	if e.HTTP.Body == nil || e.HTTP.Body == http.NoBody || e.HTTP.ContentLength == 0 {
		clock.requestDone()
		return nil, nil, false
	}
	if e.hcm.RequestTimeout > 0 {
		// Bounds the time to the last byte; it is lifted when that has arrived.
		_ = http.NewResponseController(e.w).SetReadDeadline(time.Now().Add(e.hcm.RequestTimeout))
	}
	if e.HTTP.ProtoMajor == 1 {
		_ = http.NewResponseController(e.w).EnableFullDuplex()
	}
	done := func() {
		dropIdentity(e.HTTP.Trailer) // of those that were not announced
		clock.requestDone()
		// After the answer the connection belongs to the next request.
		if e.hcm.RequestTimeout > 0 && !clock.stopped.Load() {
			_ = http.NewResponseController(e.w).SetReadDeadline(time.Time{})
		}
	}
	body = &requestBody{ReadCloser: e.HTTP.Body, done: done, active: clock.active}
	if again := copied || e.route.Forward.Retry != nil && e.route.Forward.Retry.Replays(); !again || e.HTTP.ContentLength < 0 || e.HTTP.ContentLength > maxReplay {
		return body, nil, false
	}
	replay = make([]byte, e.HTTP.ContentLength)
	if _, err := io.ReadFull(body, replay); err != nil {
		e.w.Header().Set("Connection", "close")
		e.Reply(http.StatusBadRequest, "downstream_remote_disconnect", "the request body is incomplete", nil)
		return nil, nil, true
	}
	body.once.Do(done)
	return body, replay, false
}

// attempts sends the request until there is an answer to give. The host is that
// of the last attempt, with its counter raised; it is nil when there is none.
func (e *exchange) attempts(ctx context.Context, c *cluster, body *requestBody, replay []byte) (*http.Response, *upstreamError, *host) {
	policy := e.route.Forward.Retry
	var tried []*host
	for attempt := 0; ; attempt++ {
		h := c.pick(tried)
		if h == nil {
			return nil, nil, nil
		}
		h.active.Add(1)
		resp, failure := e.try(ctx, h, attempt, body, replay, policy)
		c.note(h, failure)
		again := policy != nil && attempt < policy.Attempts && ctx.Err() == nil && e.upgrade == "" &&
			(body == nil || replay != nil || !body.touched.Load())
		if again && failure != nil {
			again = policy.Failure(failure.reason, failure.refused)
		} else if again {
			again = policy.Response(resp.StatusCode, resp.Header)
		}
		if again && c.retries.Add(1) > c.config.MaxRetries {
			c.retries.Add(-1)
			again = false
		}
		if !again {
			return resp, failure, h
		}
		if resp != nil {
			resp.Body.Close()
		}
		h.active.Add(-1)
		if policy.AvoidPrevious {
			tried = append(tried, h)
		}
		select {
		case <-time.After(policy.Backoff(attempt + 1)):
		case <-ctx.Done():
		}
		c.retries.Add(-1)
	}
}

// try makes an attempt (from 0), bounded by the policy's timeout for one.
func (e *exchange) try(ctx context.Context, h *host, attempt int, body *requestBody, replay []byte, policy *compile.RetryPolicy) (*http.Response, *upstreamError) {
	header, length := e.HTTP.Header, int64(0)
	var reader io.ReadCloser
	switch {
	case replay != nil:
		reader, length = io.NopCloser(bytes.NewReader(replay)), int64(len(replay))
	case body != nil:
		reader, length = body, e.HTTP.ContentLength
	}
	if e.upgrade != "" || e.vhost.CountAttempts {
		header = header.Clone() // the attempt before may still be writing it
	}
	if e.vhost.CountAttempts {
		header.Set("X-Envoy-Attempt-Count", strconv.Itoa(attempt+1))
	}
	if e.upgrade != "" {
		header["Connection"], header["Upgrade"] = []string{"Upgrade"}, []string{e.upgrade}
	}
	if policy == nil || policy.PerTry == 0 {
		return e.send(ctx, h, header, reader, length, e.patience(policy, attempt))
	}
	tryCtx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(policy.PerTry, func() { cancel(errTryTimeout) })
	resp, failure := e.send(tryCtx, h, header, reader, length, e.patience(policy, attempt))
	if failure != nil {
		timer.Stop()
		cancel(nil)
		return nil, failure
	}
	// The try ends with its body.
	resp.Body = &closeHook{ReadCloser: resp.Body, hook: func() { timer.Stop(); cancel(nil) }}
	return resp, nil
}

// patience is how long an attempt (from 0) may be without a connection, so that
// the timeouts leave time for another endpoint; 0: as long as the cluster says.
func (e *exchange) patience(policy *compile.RetryPolicy, attempt int) time.Duration {
	if policy == nil || e.upgrade != "" || attempt >= policy.Attempts || !policy.Failure(compile.ReasonConnect, false) {
		return 0
	}
	whole := e.route.Forward.Timeout
	if policy.PerTry > 0 && (whole == 0 || policy.PerTry < whole) {
		whole = policy.PerTry
	}
	return whole / 3
}

type closeHook struct {
	io.ReadCloser
	hook func()
}

func (c *closeHook) Close() error {
	err := c.ReadCloser.Close()
	c.hook()
	return err
}

// fail answers a request that the upstream did not.
func (e *exchange) fail(failure *upstreamError, body *requestBody) {
	if body != nil && body.tooBig.Load() {
		filters.TooLarge(e)
		return
	}
	if body != nil && body.broken.Load() {
		e.w.Header().Set("Connection", "close")
		e.Reply(http.StatusBadRequest, "http1.codec_error", "the request body is malformed", nil)
		return
	}
	if e.HTTP.Context().Err() != nil {
		panic(http.ErrAbortHandler) // the client is gone
	}
	e.server.log.Debug("no answer from upstream", "cluster", e.cluster, "error", failure.err)
	switch {
	case errors.Is(failure.err, errRouteTimeout):
		e.Reply(http.StatusGatewayTimeout, "response_timeout", "upstream request timeout", nil)
	case errors.Is(failure.err, errTryTimeout):
		e.Reply(http.StatusGatewayTimeout, "upstream_per_try_timeout", "upstream request timeout", nil)
	case errors.Is(failure.err, errStreamIdle):
		e.Reply(http.StatusRequestTimeout, "stream_idle_timeout", "stream timeout", nil)
	default:
		e.Reply(http.StatusServiceUnavailable, "upstream_reset_before_response_started{"+string(failure.reason)+"}",
			"upstream connect error or disconnect/reset before headers. reset reason: "+string(failure.reason), nil)
	}
}

// answer sends the upstream's answer to the client as it comes.
func (e *exchange) answer(ctx context.Context, resp *http.Response, clock *clock) {
	removeHopByHopResponse(resp.Header)
	header := e.w.Header()
	for k, v := range resp.Header {
		header[k] = v
	}
	e.changeResponse(e.weighted, header)
	e.finishHeader(header)
	announced := len(resp.Trailer)
	for name := range resp.Trailer {
		header.Add("Trailer", name)
	}
	e.w.WriteHeader(resp.StatusCode)
	if resp.Body == http.NoBody || resp.ContentLength == 0 {
		return
	}
	if err := e.copyBody(resp, clock); err != nil {
		if ctx.Err() == nil {
			e.server.log.Debug("an answer broke off", "cluster", e.cluster, "error", err)
		}
		// The client must not take what it has for the whole.
		panic(http.ErrAbortHandler)
	}
	if len(resp.Trailer) == 0 {
		return
	}
	if len(resp.Trailer) == announced {
		for name, values := range resp.Trailer {
			header[name] = values
		}
		return
	}
	for name, values := range resp.Trailer {
		header[http.TrailerPrefix+name] = values
	}
}

// copyBody streams: what was read is sent on before the next read, unless all
// of it is there.
func (e *exchange) copyBody(resp *http.Response, clock *clock) error {
	buffer := bufferPool.Get().(*[]byte) //nolint:errcheck // the pool holds nothing else
	defer bufferPool.Put(buffer)
	flusher := http.NewResponseController(e.w)
	left := resp.ContentLength
	if left < 0 {
		_ = flusher.Flush() // the header, for whom waits for it
	}
	for {
		n, err := resp.Body.Read(*buffer)
		if n > 0 {
			clock.active()
			if _, werr := e.w.Write((*buffer)[:n]); werr != nil {
				return werr
			}
			if left > 0 {
				left -= int64(n)
			}
			if left != 0 && err == nil {
				if ferr := flusher.Flush(); ferr != nil {
					return ferr
				}
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
