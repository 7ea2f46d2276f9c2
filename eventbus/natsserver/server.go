package natsserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"golang.org/x/sys/unix"
)

// DefaultMaxPayload leaves room for an event of 1 MiB and its attributes.
const DefaultMaxPayload = 2 << 20

// maxPending is how much may wait to be sent to a client before the server takes
// it for dead. The one client is this process, which is slow at times but alive.
const maxPending = 512 << 20

// startTimeout bounds how long recovering the store may take.
const startTimeout = 2 * time.Minute

// Config says where the server keeps its data and how it can be reached.
type Config struct {
	// Dir holds the store; it is created when missing. Required.
	Dir string
	// MaxStoreBytes limits the space of all streams together. 0 takes three
	// quarters of what is free on the disk. Keep it below that: a full disk
	// stops JetStream altogether, a full store refuses and goes on.
	MaxStoreBytes int64
	// MaxPayload is the largest message in bytes; 0 means DefaultMaxPayload.
	MaxPayload int32
	// Listen is a TCP address such as 127.0.0.1:0. Empty opens no port:
	// clients use InProcessConn.
	Listen string
	// Logger takes the server's own log; nil means slog.Default.
	Logger *slog.Logger
}

// Validate names every wrong setting.
func (c Config) Validate() error {
	var errs []error
	if c.Dir == "" {
		errs = append(errs, errors.New("nats server: the data directory is not set"))
	}
	if c.MaxPayload < 0 || c.MaxPayload > 64<<20 {
		errs = append(errs, fmt.Errorf("nats server: max payload %d must be between 1 and 64 MiB", c.MaxPayload))
	}
	if c.Listen != "" {
		if _, err := net.ResolveTCPAddr("tcp", c.Listen); err != nil {
			errs = append(errs, fmt.Errorf("nats server: listen address %q: %w", c.Listen, err))
		}
	}
	return errors.Join(errs...)
}

// Server is an embedded NATS server. It is a component.
type Server struct {
	config Config
	log    *slog.Logger
	ready  chan struct{}

	mu   sync.Mutex
	nats *server.Server // nil before the start and after the stop
}

// New prepares a server; Run starts it.
func New(config Config) (*Server, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	if config.MaxPayload == 0 {
		config.MaxPayload = DefaultMaxPayload
	}
	log := config.Logger
	if log == nil {
		log = slog.Default()
	}
	return &Server{config: config, log: log, ready: make(chan struct{})}, nil
}

// Name returns "nats".
func (s *Server) Name() string { return "nats" }

// Ready is closed when clients can connect and the store is recovered.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// InProcessConn connects a client without the network; it is what nats.go calls
// when given the option InProcessServer. It fails while the server is down.
func (s *Server) InProcessConn() (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.nats == nil {
		return nil, errors.New("the embedded NATS server is not running")
	}
	return s.nats.InProcessConn()
}

// URL returns where the server listens, or "" when it opened no port.
func (s *Server) URL() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.nats == nil || s.config.Listen == "" {
		return ""
	}
	return s.nats.ClientURL()
}

// Address returns the host:port the server listens on, or "".
func (s *Server) Address() string { return strings.TrimPrefix(s.URL(), "nats://") }

// Run serves until ctx ends, then flushes and closes the store.
func (s *Server) Run(ctx context.Context) error {
	unlock, err := lock(s.config.Dir)
	if err != nil {
		return err
	}
	defer unlock()

	opts := &server.Options{
		ServerName:        "lambdamesh",
		DontListen:        s.config.Listen == "",
		JetStream:         true,
		StoreDir:          s.config.Dir,
		JetStreamMaxStore: s.config.MaxStoreBytes,
		MaxPayload:        s.config.MaxPayload,
		MaxPending:        maxPending,
		SyncInterval:      time.Minute,
		SyncAlways:        true,
		NoSigs:            true,
	}
	if s.config.Listen != "" {
		addr, err := net.ResolveTCPAddr("tcp", s.config.Listen)
		if err != nil {
			return fmt.Errorf("nats server: listen address %q: %w", s.config.Listen, err)
		}
		opts.Host, opts.Port = addr.IP.String(), addr.Port
		if addr.IP == nil {
			opts.Host = "127.0.0.1"
		}
		if opts.Port == 0 {
			opts.Port = server.RANDOM_PORT
		}
	}
	nats, err := server.NewServer(opts)
	if err != nil {
		return fmt.Errorf("nats server: %w", err)
	}
	log := &logger{log: s.log, notice: slog.LevelDebug}
	nats.SetLoggerV2(log, false, false, false)

	// Start returns when the store is recovered, or after a fatal log line.
	go nats.Start()
	if !nats.ReadyForConnections(startTimeout) || !nats.JetStreamEnabled() {
		nats.Shutdown()
		nats.WaitForShutdown()
		if fatal := log.fatal(); fatal != "" {
			return fmt.Errorf("nats server: data directory %s: %s", s.config.Dir, fatal)
		}
		return fmt.Errorf("nats server: not ready within %s", startTimeout)
	}
	s.set(nats)
	close(s.ready)

	<-ctx.Done()
	s.set(nil)
	nats.Shutdown()
	nats.WaitForShutdown()
	return nil
}

func (s *Server) set(nats *server.Server) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nats = nats
}

// lock makes the data directory and takes it for this process.
func lock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("nats server: data directory: %w", err)
	}
	path := filepath.Join(dir, "lock")
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("nats server: data directory is not writable: %w", err)
	}
	// The kernel drops the lock when the process dies, however it dies.
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("nats server: data directory %s is in use by another process", dir)
	}
	return func() { _ = file.Close() }, nil
}

// logger writes the server's log lines to slog and keeps the fatal one.
type logger struct {
	log    *slog.Logger
	notice slog.Level // of what the server calls a notice

	mu        sync.Mutex
	lastFatal string
}

func (l *logger) Noticef(format string, v ...any) {
	l.log.Log(context.Background(), l.notice, fmt.Sprintf(format, v...))
}
func (l *logger) Warnf(format string, v ...any)  { l.log.Warn(fmt.Sprintf(format, v...)) }
func (l *logger) Errorf(format string, v ...any) { l.log.Error(fmt.Sprintf(format, v...)) }
func (l *logger) Debugf(format string, v ...any) { l.log.Debug(fmt.Sprintf(format, v...)) }
func (l *logger) Tracef(string, ...any)          {}

func (l *logger) Fatalf(format string, v ...any) {
	line := fmt.Sprintf(format, v...)
	l.log.Error(line)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lastFatal = line
}

func (l *logger) fatal() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lastFatal
}
