// Package framing finds HTTP/1 requests that two readers would end at different
// places (RFC 9112, sections 2.2, 5.2, 6.1 and 11.2): a length and a transfer
// coding together, lines that end without a carriage return, folded lines, stray
// carriage returns, other codings than chunked. net/http takes some of them, and
// tells no handler; behind or in front of another server they smuggle requests.
//
//	server.ConnContext: keep the *framing.Conn
//	server.ConnState:   at http.StateIdle, conn.NextRequest()
//	handler:            if conn.Violation() != "", answer 400 and close
//
// What may enter: reading along with a connection to judge its framing. What
// becomes of such a request is the server's business.
package framing
