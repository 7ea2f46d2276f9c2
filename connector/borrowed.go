package connector

import (
	"context"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// borrowed is a cache that a manager uses for a while and neither starts nor
// stops: it outlives the manager. What the manager asked to be told is ended when
// it gives the cache back.
type borrowed struct {
	cache.Cache

	mu     sync.Mutex
	handed []func()
}

// lend is a manager's NewCache.
func (b *borrowed) lend(*rest.Config, cache.Options) (cache.Cache, error) { return b, nil }

// Start implements cache.Cache: it is running already.
func (b *borrowed) Start(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

func (b *borrowed) giveBack() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, end := range b.handed {
		end()
	}
	b.handed = nil
}

// GetInformer implements cache.Cache.
func (b *borrowed) GetInformer(ctx context.Context, kind client.Object, options ...cache.InformerGetOption) (cache.Informer, error) {
	informer, err := b.Cache.GetInformer(ctx, kind, options...)
	if err != nil {
		return nil, err
	}
	return borrowedInformer{informer, b}, nil
}

// GetInformerForKind implements cache.Cache.
func (b *borrowed) GetInformerForKind(ctx context.Context, kind schema.GroupVersionKind, options ...cache.InformerGetOption) (cache.Informer, error) {
	informer, err := b.Cache.GetInformerForKind(ctx, kind, options...)
	if err != nil {
		return nil, err
	}
	return borrowedInformer{informer, b}, nil
}

type borrowedInformer struct {
	cache.Informer
	cache *borrowed
}

func (i borrowedInformer) handed(registration toolscache.ResourceEventHandlerRegistration, err error) (toolscache.ResourceEventHandlerRegistration, error) {
	if err == nil {
		i.cache.mu.Lock()
		defer i.cache.mu.Unlock()
		i.cache.handed = append(i.cache.handed, func() { _ = i.RemoveEventHandler(registration) }) // it is gone either way
	}
	return registration, err
}

// AddEventHandler implements cache.Informer, as do the two below.
func (i borrowedInformer) AddEventHandler(handler toolscache.ResourceEventHandler) (toolscache.ResourceEventHandlerRegistration, error) {
	return i.handed(i.Informer.AddEventHandler(handler))
}

func (i borrowedInformer) AddEventHandlerWithResyncPeriod(handler toolscache.ResourceEventHandler, period time.Duration) (toolscache.ResourceEventHandlerRegistration, error) {
	return i.handed(i.Informer.AddEventHandlerWithResyncPeriod(handler, period))
}

func (i borrowedInformer) AddEventHandlerWithOptions(handler toolscache.ResourceEventHandler, options toolscache.HandlerOptions) (toolscache.ResourceEventHandlerRegistration, error) {
	return i.handed(i.Informer.AddEventHandlerWithOptions(handler, options))
}
