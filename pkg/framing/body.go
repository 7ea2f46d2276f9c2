package framing

// body is a body of which not all has arrived, or its chunks up to the last one,
// without the trailer (RFC 9112, section 7.1).
type body struct {
	chunked bool
	left    uint64 // bytes of the body, or of the chunk

	state  chunkState
	digits int // of the chunk's size
}

// chunkState is what the next byte of a chunked body is.
type chunkState int

const (
	chunkSize  chunkState = iota
	chunkBlank            // behind the size; RFC 9112 knows none, some clients send it
	chunkExtension
	chunkSizeLF
	chunkData
	chunkCR
	chunkLF
)

const (
	reasonChunk = "http1.chunk"
	// maxDigits of a chunk's size: those of 64 bits.
	maxDigits = 16
)

// skip skips what b has of the body. It is not ok where readers could see
// another end.
func (d *body) skip(b []byte) (rest []byte, ended, ok bool) {
	if !d.chunked {
		b = d.skipData(b)
		return b, d.left == 0, true
	}
	for len(b) > 0 {
		if d.state == chunkData {
			if b = d.skipData(b); d.left == 0 {
				d.state = chunkCR
			}
			continue
		}
		ended, ok := d.next(b[0])
		b = b[1:]
		if ended || !ok {
			return b, ended, ok
		}
	}
	return nil, false, true
}

func (d *body) skipData(b []byte) []byte {
	n := min(uint64(len(b)), d.left)
	d.left -= n
	return b[n:]
}

// next takes a byte that is not a chunk's data.
func (d *body) next(c byte) (ended, ok bool) {
	switch d.state {
	case chunkSize:
		return false, d.size(c)
	case chunkBlank:
		if c == '\r' {
			d.state = chunkSizeLF
		}
		return false, c == '\r' || c == ' ' || c == '\t'
	case chunkExtension:
		if c == '\r' {
			d.state = chunkSizeLF
		}
		return false, c != '\n'
	case chunkSizeLF:
		d.state, d.digits = chunkData, 0
		return d.left == 0, c == '\n'
	case chunkCR:
		d.state = chunkLF
		return false, c == '\r'
	default: // chunkLF
		d.state = chunkSize
		return false, c == '\n'
	}
}

func (d *body) size(c byte) (ok bool) {
	var digit uint64
	switch {
	case c >= '0' && c <= '9':
		digit = uint64(c - '0')
	case c >= 'a' && c <= 'f':
		digit = uint64(c-'a') + 10
	case c >= 'A' && c <= 'F':
		digit = uint64(c-'A') + 10
	case c == ';':
		d.state = chunkExtension
		return d.digits > 0
	case c == ' ' || c == '\t':
		d.state = chunkBlank
		return d.digits > 0
	case c == '\r':
		d.state = chunkSizeLF
		return d.digits > 0
	default:
		return false
	}
	d.left = d.left<<4 | digit
	d.digits++
	return d.digits <= maxDigits
}
