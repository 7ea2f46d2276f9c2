package framing_test

import (
	"bytes"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/pkg/framing"
)

// pieces is a connection on which text arrives in pieces.
type pieces struct {
	net.Conn
	text io.Reader
	size int
}

func (c pieces) Read(p []byte) (int, error) { return c.text.Read(p[:min(len(p), c.size)]) }

// read reads text in pieces of a size, and returns the most fields of a header.
func read(t *testing.T, text string, size int, http2 bool) (c *framing.Conn, fields int) {
	t.Helper()
	c = framing.New(pieces{text: strings.NewReader(text), size: size})
	if http2 {
		c.AllowHTTP2()
	}
	for buffer := make([]byte, 4096); ; {
		n, err := c.Read(buffer)
		if err != nil {
			require.ErrorIs(t, err, io.EOF)
			return c, fields
		}
		if _, some := c.Header(); n > 0 {
			fields = max(fields, some)
		}
	}
}

const (
	plain     = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
	length    = "POST / HTTP/1.1\r\nHost: x\r\ncontent-length: \t5 \r\n\r\n\na\r\n\n"
	chunked   = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n\r\n\r\n\n\r\nA;a=\"b\"\r\n0123456789\r\n0 \r\n\r\n"
	trailer   = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n00;x\r\nA: b\r\nC: d\r\n\r\n"
	ambiguous = "GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n"
	preface   = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
)

func TestRequestsAreFoundWhereverTheyAreCut(t *testing.T) {
	for _, before := range []string{"", plain, length, "\r\n" + plain, chunked, trailer, length + "\r\n" + chunked + plain + trailer} {
		for size := 1; size < len(before)+len(ambiguous); size++ {
			c, fields := read(t, before+before+"GET / HTTP/1.1\r\nA: b\r\nC: d\r\nE: f\r\nG: h\r\n\r\n"+plain, size, false)
			require.Empty(t, c.Violation(), "%q in pieces of %d", before, size)
			require.Equal(t, 4, fields, "%q in pieces of %d", before, size)
			c, _ = read(t, before+ambiguous+plain, size, false)
			require.Equal(t, "http1.obsolete_line_folding", c.Violation(), "%q in pieces of %d", before, size)
		}
	}
}

func TestBodiesWithMoreThanOneEndAreRefused(t *testing.T) {
	const head = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n"
	for text, want := range map[string]string{
		head + "\r\n5\nabcde\r\n0\r\n\r\n":                                            "http1.chunk",
		head + "\r\n5;\nabcde\r\n0\r\n\r\n":                                           "http1.chunk",
		head + "\r\n5\r\nabcdef\r\n0\r\n\r\n":                                         "http1.chunk",
		head + "\r\n5\r\nabcde\n0\r\n\r\n":                                            "http1.chunk",
		head + "\r\n\r\n0\r\n\r\n":                                                    "http1.chunk",
		head + "\r\n0x5\r\nabcde\r\n0\r\n\r\n":                                        "http1.chunk",
		head + "\r\n00000000000000005\r\n":                                            "http1.chunk",
		head + "\r\n0\r\nA: b\n\r\n":                                                  "http1.bare_lf",
		head + "Content-Length: 1\r\n\r\n":                                            "http1.content_length_and_chunked",
		strings.Replace(head, "1.1", "1.0", 1) + "\r\n":                               "http1.transfer_encoding_in_http10",
		"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n":           "http1.content_length",
		"POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\n":                               "http1.content_length",
		"POST / HTTP/1.1\r\nContent-Length: " + strings.Repeat("0", 99) + "1\r\n\r\n": "http1.content_length",
	} {
		for _, size := range []int{1, 7, len(text)} {
			c, _ := read(t, text, size, false)
			require.Equal(t, want, c.Violation(), "%q", text)
		}
	}
}

func TestOnlyTheWholePrefaceAsTheFirstBytesIsHTTP2(t *testing.T) {
	frames := string(bytes.Repeat([]byte{0, '\n'}, 40)) + ambiguous
	for size := 1; size < 2*len(preface); size++ {
		c, _ := read(t, preface+frames, size, true)
		require.Empty(t, c.Violation())
		c, _ = read(t, preface+frames, size, false)
		require.Equal(t, "http1.preface_of_http2", c.Violation())
		for _, first := range []string{"PRI * HTTP/2.0\r\nHost: x\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\nX: y\r\n", plain + preface, length + preface + "X\r\n\r\n"} {
			c, _ = read(t, first+"\r\n"+ambiguous, size, true)
			require.NotEmpty(t, c.Violation(), "%q in pieces of %d", first, size)
		}
	}
}
