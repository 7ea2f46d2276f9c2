// Package tokens tells whose bearer token a request carries, by the API server's
// TokenReview: for publishers outside the mesh and for the administrative port.
//
// A token must be made for the event bus (audience
// [github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1.EventBusTokenAudience]), so
// that who is shown one cannot use it at the API server.
//
// The API server is asked once for a token in a while, however many requests
// carry it, and only for one that its keys have signed, so that made-up tokens
// cost it nothing and keep nobody out. While its keys cannot be had, unknown tokens
// are held to a rate; they never push the good ones out.
//
// What may enter: authentication by token. What somebody may do is decided by
// those who ask.
package tokens
