// Package sample is the lambda of the behavior table.
package sample

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	lambda "github.com/lambdamesh/lambdamesh/lambdas/runtimes/go"
)

func Main(ctx context.Context, event *lambda.Event) (any, error) {
	c := lambda.FromContext(ctx)
	switch event.Path {
	case "/value":
		return map[string]any{"greeting": "grüezi", "lambda": c.Lambda, "namespace": c.Namespace}, nil
	case "/text":
		return "grüezi", nil
	case "/bytes":
		return []byte{0, 1, 2}, nil
	case "/nothing":
		return nil, nil
	case "/response":
		return lambda.Response{Status: 418, Headers: http.Header{"X-Teapot": {"yes"}}, Body: map[string]any{"short": "stout"}}, nil
	case "/status-value":
		return map[string]any{"status": "fine"}, nil
	case "/throw":
		return nil, errors.New("secret detail")
	case "/slow":
		select {
		case <-time.After(20 * time.Second):
		case <-ctx.Done():
			time.Sleep(100 * time.Millisecond)
		}
		return "late", nil
	case "/wait":
		time.Sleep(500 * time.Millisecond)
		return "waited", nil
	case "/event":
		return &lambda.Event{Type: "order.seen", Subject: "4711", Extensions: map[string]string{"region": "zh"}, Data: map[string]any{"ok": true}}, nil
	case "/publish":
		id, err := c.Publish(ctx, "order.seen", map[string]any{"n": 1}, &lambda.PublishOptions{ID: "given", Subject: "s"})
		return map[string]string{"id": id}, err
	case "/fetch":
		response, err := c.Application("commerce").Fetch(ctx, "orders", "/orders/4711?full=yes", &lambda.FetchOptions{Method: "PUT", Headers: http.Header{"X-Extra": {"1"}}, Body: map[string]any{"a": 1}})
		if err != nil {
			return nil, err
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		return map[string]any{"status": response.StatusCode, "body": string(body)}, err
	case "/climb":
		_, err := c.Application("commerce").Fetch(ctx, "orders", "/../../other/secret", nil)
		return map[string]bool{"refused": err != nil}, nil
	case "/caller":
		return map[string]any{"caller": c.Caller, "claims": c.Claims, "isEvent": event.IsEvent}, nil
	case "/headers":
		return event.Headers, nil
	case "/log":
		c.Logger.Info("hello from the lambda", "answer", 42)
		return nil, nil
	}
	data := event.Data
	if raw, ok := data.([]byte); ok {
		data = fmt.Sprintf("bytes:%d", len(raw))
	}
	extensions, _ := json.Marshal(event.Extensions)
	return map[string]any{
		"isEvent": event.IsEvent, "type": event.Type, "source": event.Source, "id": event.ID, "subject": event.Subject,
		"extensions": json.RawMessage(extensions), "data": data, "method": event.Method, "path": event.Path,
		"q": event.Query.Get("q"), "header": event.Headers.Get("X-Thing"), "size": len(event.Body),
	}, nil
}
