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
// What is not judged is a header, or the beginning of one, that a client sends
// before it has the answer to a request with a body: net/http has read it, at most
// 4 KiB, when the connection is idle again. net/http parses it like any other, so
// that it is one request with one end. Who pipelines so hurts itself alone: to
// smuggle, a server in front would have to send requests of several clients on one
// connection without waiting for answers, and ambiguous ones unchanged.
//
// What may enter: reading along with a connection to judge its framing. What
// becomes of such a request is the server's business.
package framing
