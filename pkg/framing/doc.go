// Package framing finds HTTP/1 requests that two readers would end at different
// places (RFC 9112, sections 2.2, 5.2, 6.1 and 11.2): a length and a transfer
// coding together, lines that end without a carriage return, folded lines, stray
// carriage returns, other codings than chunked. net/http takes some of them, and
// tells no handler; behind or in front of another server they smuggle requests.
//
//	listener:           framing.New(conn), and AllowHTTP2 where the server speaks it
//	server.ConnContext: keep the *framing.Conn
//	server.ConnState:   conn.Answered() at http.StateIdle
//	handler:            if conn.Violation() != "", answer 400 and close
//
// Bodies are read along too, for where they end: so every header is judged, those
// that a client sends before it has the answer to the request before included.
// What it says of a body's end is at least as strict as net/http. A connection
// that begins with the whole preface of HTTP/2 is not looked at where the server
// speaks it, as it then takes all that comes for frames; elsewhere it is refused.
//
// What may enter: reading along with a connection to judge its framing. What
// becomes of such a request is the server's business.
package framing
