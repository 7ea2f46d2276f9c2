package framing

import (
	"bytes"
	"strconv"
)

// maxLine is how much of a line is kept: more than the names that matter have,
// and a length.
const maxLine = 64

// header is a header of which not all has arrived: what lets two readers see
// different requests (RFC 9112, sections 2.2, 5.2 and 6.1).
type header struct {
	arriving    bool
	requestLine bool // has ended

	// The line that is arriving.
	line   []byte // its beginning
	size   int
	tail   [len(http11)]byte // its last bytes
	cr     bool              // it ends in a carriage return so far
	bareCR bool              // there is one before its end

	older                  bool // than HTTP/1.1
	hasLength, hasEncoding bool
	otherEncoding          bool // than chunked, or besides it
	length                 uint64
	reason                 string
}

const http11 = "HTTP/1.1\r"

// add adds a part of a line.
func (h *header) add(part []byte) {
	if len(part) == 0 {
		return
	}
	h.bareCR = h.bareCR || h.cr || bytes.IndexByte(part[:len(part)-1], '\r') >= 0
	h.cr = part[len(part)-1] == '\r'
	h.size += len(part)
	h.line = append(h.line, part[:min(len(part), maxLine-len(h.line))]...)
	if !h.requestLine {
		last := part[max(len(part)-len(h.tail), 0):]
		copy(h.tail[:], h.tail[len(last):])
		copy(h.tail[len(h.tail)-len(last):], last)
	}
}

// endLine judges the line that has ended. last is the empty one behind a header.
func (h *header) endLine() (field, last bool) {
	first, line, size, bareCR := !h.requestLine, h.line, h.size, h.bareCR
	if h.cr {
		size--
		line = line[:min(len(line), size)]
	} else {
		h.reason = "http1.bare_lf"
	}
	// Empty lines before a request are none of it: net/http skips some.
	h.requestLine = !first || size > 0
	h.line, h.size, h.cr, h.bareCR = h.line[:0], 0, false, false
	switch {
	case first:
		h.older = string(h.tail[:]) != http11
		return false, false
	case size == 0:
		return false, true
	case line[0] == ' ' || line[0] == '\t':
		h.reason = "http1.obsolete_line_folding"
		return true, false
	case bareCR:
		h.reason = "http1.bare_cr"
	}
	name, value, _ := bytes.Cut(line, []byte(":"))
	switch {
	case bytes.EqualFold(name, []byte("content-length")):
		h.setLength(value, size > len(line))
	case bytes.EqualFold(name, []byte("transfer-encoding")):
		// net/http refuses them too.
		cut := size > len(line)
		h.otherEncoding = h.hasEncoding || cut || !bytes.EqualFold(bytes.Trim(value, " \t"), []byte("chunked"))
		h.hasEncoding = true
	}
	return true, false
}

// setLength takes a length that every reader reads alike.
func (h *header) setLength(value []byte, cut bool) {
	text := string(bytes.Trim(value, " \t"))
	length, err := strconv.ParseUint(text, 10, 63)
	if err != nil || cut || h.hasLength && length != h.length {
		h.reason = "http1.content_length"
	}
	h.hasLength, h.length = true, length
}

// verdict tells what is wrong with a header that has ended.
func (h *header) verdict() string {
	switch {
	case h.hasLength && h.hasEncoding:
		return "http1.content_length_and_chunked"
	case h.hasEncoding && h.older:
		return "http1.transfer_encoding_in_http10" // which some readers do not know
	case h.otherEncoding:
		return "http1.transfer_encoding"
	}
	return h.reason
}
