// Package shop is a commerce system as its customers and its API's clients see
// it: a checkout, an orders API in REST behind OAuth2, the same orders in OData
// behind a password and CSRF tokens, and the stock behind client certificates.
//
// What may enter: what the shop sells and who may ask for it. That there is a
// mesh it does not know: it is told where to send its events.
package shop
