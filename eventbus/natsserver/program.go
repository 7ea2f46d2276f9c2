package natsserver

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/conf"
	"github.com/nats-io/nats-server/v2/server"
)

// defaultPoll is how often the files are looked at. Kubernetes brings a changed
// Secret to a pod within a minute or two; nothing here makes that worse.
const defaultPoll = 5 * time.Second

// ProgramConfig of a [Program].
type ProgramConfig struct {
	// File is an ordinary configuration file of nats-server. Required.
	File string
	// Poll is how often it, what it includes and its certificates are looked at
	// for changes; default 5 s.
	Poll time.Duration
	// Logger takes the server's own log; nil means slog.Default.
	Logger *slog.Logger
}

// Program is a NATS server as its own process would be: configured by a file,
// reached over the network, one of several perhaps. It is a component.
type Program struct {
	config ProgramConfig
	log    *slog.Logger
	ready  chan struct{}
}

// NewProgram prepares a server; Run starts it.
func NewProgram(config ProgramConfig) (*Program, error) {
	if config.File == "" {
		return nil, errors.New("nats server: no configuration file: pass --config FILE")
	}
	if config.Poll <= 0 {
		config.Poll = defaultPoll
	}
	log := config.Logger
	if log == nil {
		log = slog.Default()
	}
	return &Program{config: config, log: log, ready: make(chan struct{})}, nil
}

// Name returns "nats".
func (p *Program) Name() string { return "nats" }

// Ready is closed when clients can connect. Whether a cluster has found itself
// is told by the server's own /healthz.
func (p *Program) Ready() <-chan struct{} { return p.ready }

// StopTimeout is the time Run may take to return once its context ended: the
// longest lame duck that a configuration would ask for.
func (p *Program) StopTimeout() time.Duration { return 10 * time.Minute }

// Run serves until ctx ends, then goes as a lame duck: it takes no new clients,
// hands its leaderships over, sends its clients to other servers over the
// configured time, and closes the store.
func (p *Program) Run(ctx context.Context) error {
	options, err := p.load()
	if err != nil {
		return err
	}
	loaded, err := fingerprint(p.config.File)
	if err != nil {
		return err
	}
	nats, err := server.NewServer(options)
	if err != nil {
		return fmt.Errorf("nats server: %w", err)
	}
	log := &logger{log: p.log, notice: slog.LevelInfo}
	nats.SetLoggerV2(log, options.Debug, options.Trace, false)
	go nats.Start()
	if !nats.ReadyForConnections(startTimeout) {
		nats.Shutdown()
		nats.WaitForShutdown()
		if fatal := log.fatal(); fatal != "" {
			return fmt.Errorf("nats server: %s: %s", p.config.File, fatal)
		}
		return fmt.Errorf("nats server: not ready within %s", startTimeout)
	}
	close(p.ready)

	ended := make(chan struct{})
	go func() {
		defer close(ended)
		nats.WaitForShutdown()
	}()
	ticks := time.NewTicker(p.config.Poll)
	defer ticks.Stop()
	for {
		select {
		case <-ctx.Done():
			nats.LameDuckShutdown()
			<-ended
			return nil
		case <-ended:
			return fmt.Errorf("nats server: it stopped by itself: %s", log.fatal())
		case <-ticks.C:
			loaded = p.reload(nats, loaded)
		}
	}
}

// reload has the server read its files again when they are others than those
// with the fingerprint loaded, and returns theirs. A configuration that it
// refuses is told once, and the server goes on with the one it has.
func (p *Program) reload(nats *server.Server, loaded string) string {
	now, err := fingerprint(p.config.File)
	if err != nil {
		// Told again with each look: certificates that nobody can read any more.
		p.log.Error("the configuration cannot be read; going on with the last one", "error", err)
		return loaded
	}
	if now == loaded {
		return loaded
	}
	if _, err = p.load(); err == nil {
		err = nats.Reload()
	}
	if err != nil {
		p.log.Error("the changed configuration is refused; going on with the last one", "error", err)
	} else {
		p.log.Info("configuration and certificates reloaded", "file", p.config.File)
	}
	return now
}

// load reads the file and refuses what would break the event bus's promise.
func (p *Program) load() (*server.Options, error) {
	options, err := server.ProcessConfigFile(p.config.File)
	if err != nil {
		return nil, fmt.Errorf("nats server: %s: %w", p.config.File, err)
	}
	switch {
	case !options.JetStream:
		return nil, fmt.Errorf("nats server: %s: no jetstream block; the event bus keeps its events there", p.config.File)
	case !options.SyncAlways:
		return nil, fmt.Errorf("nats server: %s: write sync_interval: always in the jetstream block; what the event bus has accepted must be on disk", p.config.File)
	}
	options.NoSigs = true // who started us has them
	return options, nil
}

// fingerprint changes with the configuration, what it includes and the files of
// certificates and keys that it names.
func fingerprint(file string) (string, error) {
	settings, err := conf.ParseFile(file)
	if err != nil {
		return "", fmt.Errorf("nats server: %s: %w", file, err)
	}
	var errs []error
	var visit func(value any)
	visit = func(value any) {
		switch value := value.(type) {
		case map[string]any:
			for key, inner := range value {
				name, isText := inner.(string)
				if !isText || !strings.HasSuffix(strings.ToLower(key), "_file") || strings.EqualFold(key, "log_file") || strings.EqualFold(key, "pid_file") {
					continue
				}
				content, err := os.ReadFile(name)
				if err != nil {
					errs = append(errs, fmt.Errorf("nats server: %s of %s: %w", key, file, err))
				}
				// Added to the settings, which are hashed in order of their keys.
				value[key] = map[string]string{name: string(content)}
			}
			for _, inner := range value {
				visit(inner)
			}
		case []any:
			for _, inner := range value {
				visit(inner)
			}
		}
	}
	visit(settings)
	if err := errors.Join(errs...); err != nil {
		return "", err
	}
	sum := sha256.New()
	if err := json.NewEncoder(sum).Encode(settings); err != nil {
		return "", fmt.Errorf("nats server: %s: %w", file, err)
	}
	return string(sum.Sum(nil)), nil
}
