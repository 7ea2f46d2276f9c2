package watch

import (
	"context"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/meshconfig/jwks"
	"github.com/lambdamesh/lambdamesh/meshconfig/translate"
)

// Config of a source. All fields are required but MeshConfig.
type Config struct {
	// Cache is where objects are watched, prepared by [ConfigureCache].
	Cache cache.Cache
	// Reader reads Secrets and the MeshConfig, past the cache.
	Reader client.Reader
	// JWKS says how key sets are fetched; its OnChange and Log are set here.
	JWKS jwks.Config
	// MeshConfig is the ConfigMap of Istio's MeshConfig. Empty: the mesh is not
	// Istio's.
	MeshConfig types.NamespacedName
	// Settings of the translation.
	Settings translate.Settings
	// Members: pods have sidecars that an output programs.
	Members bool
	// Log is where the source writes.
	Log *slog.Logger

	// Changed is called when a new snapshot would be another; it does not block.
	Changed func()
	// RuleTouched and ObjectTouched are called when something else of an APIRule,
	// or of a Gateway or Sidecar, has changed, such as its status.
	RuleTouched   func(types.NamespacedName)
	ObjectTouched func(kind string, key types.NamespacedName)
}

// Source is where snapshots come from: it watches, and tells when there is
// something new.
type Source struct {
	config     Config
	keySets    *jwks.Fetcher
	secrets    *secrets
	meshConfig *meshConfig
	led        *led
}

// New makes a source, which fetches key sets from run on.
func New(config Config) (*Source, error) {
	config.JWKS.OnChange = config.Changed
	config.JWKS.Log = config.Log
	keySets, err := jwks.New(config.JWKS)
	if err != nil {
		return nil, err
	}
	return &Source{config: config, keySets: keySets, secrets: newSecrets(config.Reader), meshConfig: newMeshConfig(config.Reader, config.MeshConfig), led: newLed()}, nil
}

// Run fetches key sets and looks after the MeshConfig until ctx ends.
func (s *Source) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.keySets.Run(ctx) })
	group.Go(func() error { return s.meshConfig.run(ctx, s.config.Changed) })
	return group.Wait()
}

// First waits for the key sets once: data planes may hold good ones, which an
// empty first answer would take from them.
func (s *Source) First(ctx context.Context) {
	rules, err := s.apiRules(ctx)
	if err != nil {
		return // ctx has ended; the loop will see it
	}
	s.keySets.Keep(translate.JWKSURIs(s.config.Settings, rules))
	timeout := s.config.JWKS.Timeout
	if timeout <= 0 {
		timeout = 5 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout+time.Second)
	defer cancel()
	if err := s.keySets.Settled(ctx); err != nil {
		s.config.Log.Warn("some key sets have not answered; their tokens are refused until they do")
	}
}
