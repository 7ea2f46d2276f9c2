package shop

import (
	"crypto/rand"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

const (
	headerCSRF    = "X-Csrf-Token"
	cookieSession = "webshop_session"
)

// withPassword lets in who shows the user's password.
func (s *Shop) withPassword(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		if !equal(user, s.config.Credentials.Username) || !equal(password, s.config.Credentials.Password) {
			w.Header().Set("WWW-Authenticate", `Basic realm="webshop"`)
			refuse(w, http.StatusUnauthorized, "a user name and a password are required")
			return
		}
		next(w, r)
	}
}

// withCSRF lets writes in that carry the CSRF token of their session, as OData
// services of commerce systems want it: a read with `X-CSRF-Token: fetch` opens
// a session, by a cookie, and gets its token.
func (s *Shop) withCSRF(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		reads := r.Method == http.MethodGet || r.Method == http.MethodHead
		session, err := r.Cookie(cookieSession)
		switch {
		case reads && strings.EqualFold(r.Header.Get(headerCSRF), "fetch"):
			id := rand.Text()
			//nolint:gosec // the shop serves plain HTTP on this machine: a Secure cookie would not come back
			http.SetCookie(w, &http.Cookie{Name: cookieSession, Value: id, Path: "/odata/", HttpOnly: true, SameSite: http.SameSiteStrictMode})
			w.Header().Set(headerCSRF, s.sign("csrf", id))
		case !reads && (err != nil || !equal(r.Header.Get(headerCSRF), s.sign("csrf", session.Value))):
			w.Header().Set(headerCSRF, "Required")
			refuse(w, http.StatusForbidden, "the CSRF token is missing or of another session")
			return
		}
		next(w, r)
	}
}

// entity is an order in OData's JSON.
type entity struct {
	Code, Customer, Currency, Status string
	Total                            float64
}

func entityOf(o Order) entity {
	return entity{Code: o.Code, Customer: o.Customer, Currency: o.Currency, Status: o.Status, Total: o.Total}
}

// odata serves the entity set Orders as OData 2.0 does: the set, one entity by its
// key, and changes of its Status.
func (s *Shop) odata(w http.ResponseWriter, r *http.Request) {
	resource := strings.TrimPrefix(r.URL.Path, "/odata/")
	key, byKey := strings.CutPrefix(resource, "Orders('")
	key, closed := strings.CutSuffix(key, "')")
	order, found := s.orders.find(key)
	switch get := r.Method == http.MethodGet; {
	case resource == "" && get:
		odataAnswer(w, map[string]any{"EntitySets": []string{"Orders"}})
	case resource == "$metadata" && get:
		w.Header().Set("Content-Type", "application/xml")
		_, _ = w.Write(Document(EDMX))
	case resource == "Orders" && get:
		results := []entity{}
		for _, order := range s.orders.all() {
			results = append(results, entityOf(order))
		}
		odataAnswer(w, map[string]any{"results": results})
	case !byKey || !closed || !found:
		refuse(w, http.StatusNotFound, "there is no "+url.PathEscape(resource))
	case get:
		odataAnswer(w, entityOf(order))
	case r.Method == http.MethodPatch || r.Method == "MERGE":
		var change struct{ Status string }
		if json.NewDecoder(r.Body).Decode(&change) != nil || !slices.Contains([]string{"PACKED", "SHIPPED"}, change.Status) {
			refuse(w, http.StatusBadRequest, `send {"Status": "PACKED"} or {"Status": "SHIPPED"}`)
			return
		}
		if order, changed := s.orders.setStatus(key, change.Status); changed {
			s.config.Changed(order)
		}
		w.WriteHeader(http.StatusNoContent)
	default:
		w.Header().Set("Allow", "GET, PATCH, MERGE")
		refuse(w, http.StatusMethodNotAllowed, "read it, or PATCH its Status")
	}
}

// odataAnswer wraps what is told, as OData 2.0 does.
func odataAnswer(w http.ResponseWriter, d any) { answer(w, http.StatusOK, map[string]any{"d": d}) }
