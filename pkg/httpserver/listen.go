package httpserver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"time"
)

// maxSocketPath is the shortest sun_path of the systems we run on, less its
// final zero byte (macOS: 104, Linux: 108).
const maxSocketPath = 103

// Listen listens at "host:port" (port 0: any free one) or "unix:/path". Flag is
// the command line's name for the address, such as "--gateway-address"; with it
// an error says what to pass instead. A socket file that nobody listens on any
// more is replaced; only the own user may connect to the new one.
func Listen(ctx context.Context, address, flag string) (net.Listener, error) {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		return listenUnix(ctx, path)
	}
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", address)
	switch {
	case err == nil:
		return listener, nil
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("listening on %s: the port is in use%s", address, instead(flag, address))
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("listening on %s: no permission for this port%s", address, instead(flag, address))
	default:
		return nil, fmt.Errorf("listening on %s (an address is host:port, such as 127.0.0.1:8080, or unix:/path): %w", address, err)
	}
}

func instead(flag, address string) string {
	if flag == "" {
		return ""
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = "127.0.0.1"
	}
	return fmt.Sprintf(": stop what uses it, or pass %s %s for any free one", flag, net.JoinHostPort(host, "0"))
}

func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("listening on unix:%s: the path has %d bytes, a socket's has at most %d: use a shorter directory", path, len(path), maxSocketPath)
	}
	if err := removeStale(ctx, path); err != nil {
		return nil, err
	}
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listening on unix:%s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		listener.Close()
		return nil, fmt.Errorf("listening on unix:%s: %w", path, err)
	}
	return listener, nil
}

// removeStale removes a socket file that a killed process left behind.
func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listening on unix:%s: %w", path, err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("listening on unix:%s: a file that is no socket lies there: remove it or use another path", path)
	}
	dialer := net.Dialer{Timeout: time.Second}
	conn, err := dialer.DialContext(ctx, "unix", path)
	if err == nil {
		conn.Close()
		return fmt.Errorf("listening on unix:%s: another process serves this socket: stop it or use another path", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("listening on unix:%s: %w", path, err)
	}
	return os.Remove(path)
}
