package proxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"
)

// maxReplay is how large a body may be to be sent again by a retry.
const maxReplay = 64 << 10

// forward sends the request to its cluster and the answer back.
func (e *exchange) forward() {
	c := e.state.clusters[e.cluster]
	if c == nil {
		e.reply(e.route.forward.notFound, "cluster_not_found", "", nil)
		return
	}
	if c.active.Add(1) > c.limit() {
		c.active.Add(-1)
		e.reply(http.StatusServiceUnavailable, "upstream_reset_before_response_started{overflow}", "upstream connect error or disconnect/reset before headers. reset reason: overflow",
			func(h http.Header) { h.Set("X-Envoy-Overloaded", "true") })
		return
	}
	defer c.active.Add(-1)

	idle := e.hcm.streamIdle
	if e.route.forward.idleTimeout != nil {
		idle = *e.route.forward.idleTimeout
	}
	ctx, cancel := context.WithCancelCause(e.r.Context())
	defer cancel(nil)
	clock := newClock(cancel, e.route.forward.timeout, idle)
	defer clock.stop()

	e.changeRequest(e.weighted, e.r.Header)
	if e.route.forward.appendHost && e.r.Host != "" {
		e.r.Header["X-Forwarded-Host"] = append(e.r.Header["X-Forwarded-Host"], e.host)
	}
	if _, ok := e.r.Header["User-Agent"]; !ok {
		e.r.Header["User-Agent"] = nil // else net/http writes its own
	}
	body, replay, failed := e.body(clock)
	if failed {
		return
	}
	e.sending = body
	traced, informed := e.informational(ctx)
	resp, failure, h := e.attempts(traced, c, body, replay)
	informed()
	if h == nil {
		e.reply(http.StatusServiceUnavailable, "no_healthy_upstream", "no healthy upstream", nil)
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

// body prepares the request's body: streamed, or read whole when a retry may
// have to send it again and it is small. It returns true when it has answered.
func (e *exchange) body(clock *clock) (body *requestBody, replay []byte, failed bool) {
	if e.r.Body == nil || e.r.Body == http.NoBody || e.r.ContentLength == 0 {
		clock.requestDone()
		return nil, nil, false
	}
	if e.hcm.requestTimeout > 0 {
		// Bounds the time to the last byte; it is lifted when that has arrived.
		_ = http.NewResponseController(e.w).SetReadDeadline(time.Now().Add(e.hcm.requestTimeout))
	}
	if e.r.ProtoMajor == 1 {
		_ = http.NewResponseController(e.w).EnableFullDuplex()
	}
	done := func() {
		dropIdentity(e.r.Trailer) // of those that were not announced
		clock.requestDone()
		// After the answer the connection belongs to the next request.
		if e.hcm.requestTimeout > 0 && !clock.stopped.Load() {
			_ = http.NewResponseController(e.w).SetReadDeadline(time.Time{})
		}
	}
	body = &requestBody{ReadCloser: e.r.Body, done: done, active: clock.active}
	if r := e.route.forward.retry; r == nil || e.r.ContentLength < 0 || e.r.ContentLength > maxReplay {
		return body, nil, false
	}
	replay = make([]byte, e.r.ContentLength)
	if _, err := io.ReadFull(body, replay); err != nil {
		e.w.Header().Set("Connection", "close")
		e.reply(http.StatusBadRequest, "downstream_remote_disconnect", "the request body is incomplete", nil)
		return nil, nil, true
	}
	body.once.Do(done)
	return body, replay, false
}

// attempts sends the request until there is an answer to give. The host is that
// of the last attempt, with its counter raised; it is nil when there is none.
func (e *exchange) attempts(ctx context.Context, c *cluster, body *requestBody, replay []byte) (*http.Response, *upstreamError, *host) {
	policy := e.route.forward.retry
	var last *host
	for attempt := 0; ; attempt++ {
		var avoid *host
		if policy != nil && policy.avoidPrevious {
			avoid = last
		}
		h := c.pick(avoid)
		if h == nil {
			return nil, nil, nil
		}
		last = h
		h.active.Add(1)
		resp, failure := e.try(ctx, h, attempt, body, replay, policy)
		again := policy != nil && attempt < policy.attempts && ctx.Err() == nil && e.upgrade == "" &&
			(body == nil || replay != nil || !body.touched.Load())
		if again && failure != nil {
			again = policy.failure(failure)
		} else if again {
			again = policy.response(resp.StatusCode, resp.Header)
		}
		if again && c.retries.Add(1) > c.config.maxRetries {
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
		select {
		case <-time.After(policy.backoff(attempt + 1)):
		case <-ctx.Done():
		}
		c.retries.Add(-1)
	}
}

// try makes an attempt (from 0), bounded by the policy's timeout for one.
func (e *exchange) try(ctx context.Context, h *host, attempt int, body *requestBody, replay []byte, policy *retryPolicy) (*http.Response, *upstreamError) {
	header, length := e.r.Header, int64(0)
	var reader io.ReadCloser
	switch {
	case replay != nil:
		reader, length = io.NopCloser(bytes.NewReader(replay)), int64(len(replay))
	case body != nil:
		reader, length = body, e.r.ContentLength
	}
	if e.upgrade != "" || e.vhost.countAttempts {
		header = header.Clone() // the attempt before may still be writing it
	}
	if e.vhost.countAttempts {
		header.Set("X-Envoy-Attempt-Count", strconv.Itoa(attempt+1))
	}
	if e.upgrade != "" {
		header["Connection"], header["Upgrade"] = []string{"Upgrade"}, []string{e.upgrade}
	}
	if policy == nil || policy.perTry == 0 {
		return e.send(ctx, h, header, reader, length)
	}
	tryCtx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(policy.perTry, func() { cancel(errTryTimeout) })
	resp, failure := e.send(tryCtx, h, header, reader, length)
	if failure != nil {
		timer.Stop()
		cancel(nil)
		return nil, failure
	}
	// The try ends with its body.
	resp.Body = &closeHook{ReadCloser: resp.Body, hook: func() { timer.Stop(); cancel(nil) }}
	return resp, nil
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
	if body != nil && body.broken.Load() {
		e.w.Header().Set("Connection", "close")
		e.reply(http.StatusBadRequest, "http1.codec_error", "the request body is malformed", nil)
		return
	}
	if e.r.Context().Err() != nil {
		panic(http.ErrAbortHandler) // the client is gone
	}
	e.proxy.log.Debug("no answer from upstream", "cluster", e.cluster, "error", failure.err)
	switch {
	case errors.Is(failure.err, errRouteTimeout):
		e.reply(http.StatusGatewayTimeout, "response_timeout", "upstream request timeout", nil)
	case errors.Is(failure.err, errTryTimeout):
		e.reply(http.StatusGatewayTimeout, "upstream_per_try_timeout", "upstream request timeout", nil)
	case errors.Is(failure.err, errStreamIdle):
		e.reply(http.StatusRequestTimeout, "stream_idle_timeout", "stream timeout", nil)
	default:
		e.reply(http.StatusServiceUnavailable, "upstream_reset_before_response_started{"+string(failure.reason)+"}",
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
			e.proxy.log.Debug("an answer broke off", "cluster", e.cluster, "error", err)
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
