package serve

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"
)

// maxProxyHeader bounds the addresses and additions of a PROXY header; senders
// stay below 536 bytes (PROXY protocol, section 2.2).
const maxProxyHeader = 4096

// proxySignature begins each header of version 2.
const proxySignature = "\r\n\r\n\x00\r\nQUIT\n"

// proxied is a connection whose client a proxy before this one told.
type proxied struct {
	net.Conn
	client net.Addr
}

// RemoteAddr implements net.Conn.
func (p *proxied) RemoteAddr() net.Addr { return p.client }

// CloseWrite ends our half.
func (p *proxied) CloseWrite() error {
	if w, ok := p.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return p.Conn.Close()
}

// readProxyHeader reads the header that begins a connection (PROXY protocol,
// version 2, section 2.2) and nothing behind it.
func readProxyHeader(c net.Conn, timeout time.Duration) (net.Conn, error) {
	if err := c.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return nil, err
	}
	var head [16]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return nil, fmt.Errorf("read the PROXY header: %w", err)
	}
	if string(head[:12]) != proxySignature || head[12]>>4 != 2 {
		return nil, errors.New("the connection does not begin with a header of the PROXY protocol, version 2")
	}
	length := int(binary.BigEndian.Uint16(head[14:]))
	if length > maxProxyHeader {
		return nil, fmt.Errorf("a PROXY header of %d bytes; %d are the limit", length, maxProxyHeader)
	}
	rest := make([]byte, length)
	if _, err := io.ReadFull(c, rest); err != nil {
		return nil, fmt.Errorf("read the PROXY header: %w", err)
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		return nil, err
	}
	const (
		local, proxy = 0, 1
		unspecified  = 0x00
		tcp4, tcp6   = 0x11, 0x21
	)
	command, family := head[12]&0xf, head[13]
	size := map[byte]int{tcp4: 4, tcp6: 16}[family]
	switch {
	case command == local || command == proxy && family == unspecified:
		return c, nil // the proxy itself, or a client that it does not know
	case command != proxy || size == 0:
		return nil, fmt.Errorf("a PROXY header with command %d and family %#x is not supported", command, family)
	case length < 2*size+4:
		return nil, errors.New("a PROXY header that is too short for its addresses")
	}
	ip, _ := netip.AddrFromSlice(rest[:size])
	port := binary.BigEndian.Uint16(rest[2*size:])
	return &proxied{Conn: c, client: net.TCPAddrFromAddrPort(netip.AddrPortFrom(ip.Unmap(), port))}, nil
}
