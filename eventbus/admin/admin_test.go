package admin_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	kubetesting "k8s.io/client-go/testing"

	"github.com/lambdamesh/lambdamesh/eventbus/admin"
	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
	"github.com/lambdamesh/lambdamesh/eventbus/tokens"
)

// letters are dead letters of two subscriptions in turns.
type letters int

func (n letters) DeadLetters(_ context.Context, _ string, after uint64, limit int) ([]broker.DeadLetter, error) {
	if n < 0 {
		return nil, broker.ErrUnavailable
	}
	var page []broker.DeadLetter
	for id := after + 1; id <= uint64(n) && len(page) < limit; id++ {
		page = append(page, broker.DeadLetter{ID: id, Subscription: []string{"shop/even", "shop/odd"}[id%2], Event: event.Event{ID: "e", Source: "s", Type: "t"}})
	}
	return page, nil
}

func get(t *testing.T, config admin.Config, path, token string, into any) int {
	t.Helper()
	if config.Ready == nil {
		config.Ready = func(context.Context) error { return nil }
	}
	r := httptest.NewRequest(http.MethodGet, path, nil)
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	w := httptest.NewRecorder()
	admin.New(config).ServeHTTP(w, r)
	if into != nil {
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), into), w.Body)
	}
	return w.Code
}

type page struct {
	Items []broker.DeadLetter
	Next  uint64
}

func TestDeadLettersArePagedAndFiltered(t *testing.T) {
	config := admin.Config{DeadLetters: letters(250)}
	var p page
	require.Equal(t, 200, get(t, config, "/admin/v1/dead-letters", "", &p))
	require.Len(t, p.Items, 100)
	require.Equal(t, uint64(100), p.Next)

	var ids []uint64
	for path := "/admin/v1/dead-letters?subscription=shop/odd&limit=40"; path != ""; {
		p = page{}
		require.Equal(t, 200, get(t, config, path, "", &p))
		for _, letter := range p.Items {
			require.Equal(t, "shop/odd", letter.Subscription)
			ids = append(ids, letter.ID)
		}
		path = ""
		if p.Next > 0 {
			path = fmt.Sprint("/admin/v1/dead-letters?subscription=shop/odd&limit=40&after=", p.Next)
		}
	}
	require.Len(t, ids, 125)
	require.IsIncreasing(t, ids)
}

func TestWrongQueriesAndAStoreThatIsAway(t *testing.T) {
	var problem struct{ Errors []struct{ Field string } }
	require.Equal(t, 400, get(t, admin.Config{DeadLetters: letters(1)}, "/admin/v1/dead-letters?limit=5000&after=x&subscription=shop", "", &problem))
	require.Len(t, problem.Errors, 3)
	require.Equal(t, 503, get(t, admin.Config{DeadLetters: letters(-1)}, "/admin/v1/dead-letters", "", nil))
	require.Equal(t, 503, get(t, admin.Config{Ready: func(context.Context) error { return errors.New("starting") }}, "/readyz", "", nil))
}

func TestCallersNeedATokenThatTheAPIServerAllows(t *testing.T) {
	client := fake.NewClientset()
	client.PrependReactor("create", "tokenreviews", func(action kubetesting.Action) (bool, runtime.Object, error) {
		review, _ := action.(kubetesting.CreateAction).GetObject().(*authenticationv1.TokenReview)
		switch review.Spec.Token {
		case "operator", "guest":
			review.Status.Authenticated, review.Status.Audiences = true, review.Spec.Audiences
			review.Status.User.Username = review.Spec.Token
		case "away":
			return true, nil, errors.New("connection refused")
		}
		return true, review, nil
	})
	client.PrependReactor("create", "subjectaccessreviews", func(action kubetesting.Action) (bool, runtime.Object, error) {
		review, _ := action.(kubetesting.CreateAction).GetObject().(*authorizationv1.SubjectAccessReview)
		review.Status.Allowed = review.Spec.User == "operator" &&
			*review.Spec.NonResourceAttributes == authorizationv1.NonResourceAttributes{Path: "/admin/v1/dead-letters", Verb: "get"}
		return true, review, nil
	})
	config := admin.Config{DeadLetters: letters(1), Authorize: admin.KubernetesAccess(tokens.New(client.AuthenticationV1().TokenReviews(), nil), client)}
	for token, want := range map[string]int{"operator": 200, "guest": 403, "stranger": 401, "": 401, "away": 503} {
		require.Equal(t, want, get(t, config, "/admin/v1/dead-letters", token, nil), token)
	}
	require.Equal(t, 200, get(t, config, "/healthz", "", nil), "health needs no token")
}

// large dead letters of 1 MiB each, of which a store returns a few at a time.
type large int

func (n large) DeadLetters(_ context.Context, _ string, after uint64, limit int) ([]broker.DeadLetter, error) {
	var part []broker.DeadLetter
	for id := after + 1; id <= uint64(n) && len(part) < min(limit, 4); id++ {
		letter := broker.DeadLetter{ID: id, Subscription: "shop/sub", Event: event.Event{ID: "e", Source: "s", Type: "t", Data: make([]byte, 1<<20)}}
		if id%2 == 0 {
			letter.Raw, letter.Event.Data = &broker.Raw{Header: map[string][]string{"a": {"b"}}, Data: letter.Event.Data}, nil
		}
		part = append(part, letter)
	}
	return part, nil
}

func TestPageOfLargeDeadLettersIsBounded(t *testing.T) {
	const all = 100
	for after, seen := uint64(0), 0; ; {
		var p page
		require.Equal(t, 200, get(t, admin.Config{DeadLetters: large(all)}, fmt.Sprint("/admin/v1/dead-letters?limit=1000&after=", after), "", &p))
		bytes := 0
		for _, letter := range p.Items {
			bytes += len(letter.Event.Data)
			if letter.Raw != nil {
				require.Less(t, len(letter.Raw.Data), 128<<10)
				require.Greater(t, letter.Raw.Bytes, 1<<20, "it says how much there is")
				bytes += len(letter.Raw.Data)
			}
		}
		require.LessOrEqual(t, bytes, 17<<20)
		seen += len(p.Items)
		if p.Next == 0 {
			require.Equal(t, all, seen)
			return
		}
		require.Equal(t, p.Items[len(p.Items)-1].ID, p.Next)
		after = p.Next
	}
}
