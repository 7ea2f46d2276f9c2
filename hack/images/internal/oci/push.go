package oci

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/lambdamesh/lambdamesh/hack/images/internal/progress"
)

// Push writes the images with their SBOMs to the registry of the source and
// returns their references, digests included. Who may push is in Docker's
// configuration (docker login, credential helpers); registries on this machine
// are spoken to without TLS.
func Push(ctx context.Context, report *progress.Reporter, source Source, images []*Image) ([]string, error) {
	todo := map[name.Reference]remote.Taggable{}
	var pushed []string
	for _, image := range images {
		repository, err := name.NewRepository(source.Registry + "/" + image.Name)
		if err != nil {
			return nil, fmt.Errorf("REGISTRY=%s: %w", source.Registry, err)
		}
		digest, err := image.Index.Digest()
		if err != nil {
			return nil, err
		}
		for _, tag := range image.Tags {
			todo[repository.Tag(tag)] = image.Index
		}
		for _, document := range image.SBOMs {
			digest, err := document.Digest()
			if err != nil {
				return nil, err
			}
			todo[repository.Digest(digest.String())] = document
		}
		pushed = append(pushed, fmt.Sprintf("%s:%s@%s", repository, image.Tags[0], digest))
	}

	updates := make(chan v1.Update, 100)
	var complete, total atomic.Int64
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		for update := range updates {
			complete.Store(update.Complete)
			total.Store(update.Total)
		}
	}()
	detail := func() string {
		return fmt.Sprintf("%d of %d MB", complete.Load()>>20, total.Load()>>20)
	}
	err := report.Step("push to "+source.Registry, detail, func() error {
		return remote.MultiWrite(todo, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain),
			remote.WithProgress(updates), remote.WithUserAgent("lambdamesh-images"))
	})
	<-drained // MultiWrite closes the channel
	var refused *transport.Error
	if errors.As(err, &refused) && (refused.StatusCode == http.StatusUnauthorized || refused.StatusCode == http.StatusForbidden) {
		return nil, fmt.Errorf("push to %s: %w; log in (docker login, or a credential helper in ~/.docker/config.json)", source.Registry, err)
	}
	if err != nil {
		return nil, fmt.Errorf("push to %s: %w", source.Registry, err)
	}
	return pushed, nil
}
