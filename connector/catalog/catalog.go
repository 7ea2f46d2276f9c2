package catalog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/connector/documents"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// Fields of the index.
const (
	// ByApplication are the ApplicationServices and ApplicationBindings of an
	// application.
	ByApplication = "spec.application"
	// BySecret are the ApplicationServices that refer to a Secret.
	BySecret = "secrets"
	// ByService are the Secrets that were made for an ApplicationService, by its
	// name.
	ByService = "service"
	// ByOwner are the EventTypes that were made of an object, by its UID.
	ByOwner = "owner"
)

// Index adds the fields to a cache.
func Index(ctx context.Context, indexer client.FieldIndexer) error {
	index := func(obj client.Object, field string, values func(client.Object) []string) error {
		if err := indexer.IndexField(ctx, obj, field, values); err != nil {
			return fmt.Errorf("indexing %T: %w", obj, err)
		}
		return nil
	}
	return errors.Join(
		index(&v1alpha1.ApplicationService{}, ByApplication, ofService(func(s *v1alpha1.ApplicationService) []string { return []string{s.Spec.Application} })),
		index(&v1alpha1.ApplicationService{}, BySecret, ofService(func(s *v1alpha1.ApplicationService) []string { return Secrets(s.Spec.API) })),
		index(&v1alpha1.ApplicationBinding{}, ByApplication, Bound),
		index(&corev1.Secret{}, ByService, func(obj client.Object) []string {
			if !MadeByRegistry(obj) {
				return nil
			}
			labels := obj.GetLabels()
			return []string{v1alpha1.ServiceObjectName(labels[v1alpha1.LabelApplication], labels[v1alpha1.LabelService])}
		}),
		index(&v1alpha1.EventType{}, ByOwner, func(obj client.Object) []string {
			if owner := metav1.GetControllerOf(obj); owner != nil {
				return []string{string(owner.UID)}
			}
			return nil
		}),
	)
}

// Bound is the application that an ApplicationBinding binds.
func Bound(obj client.Object) []string {
	if binding, ok := obj.(*v1alpha1.ApplicationBinding); ok {
		return []string{binding.Spec.Application}
	}
	return nil
}

func ofService(values func(*v1alpha1.ApplicationService) []string) func(client.Object) []string {
	return func(obj client.Object) []string {
		if service, ok := obj.(*v1alpha1.ApplicationService); ok {
			return values(service)
		}
		return nil
	}
}

// MadeByRegistry reports whether the registry made a Secret.
func MadeByRegistry(secret client.Object) bool {
	labels := secret.GetLabels()
	return secret.GetNamespace() == v1alpha1.SystemNamespace && labels[v1alpha1.LabelManagedBy] == v1alpha1.ManagedBy &&
		labels[v1alpha1.LabelApplication] != "" && labels[v1alpha1.LabelService] != ""
}

// Secrets are the names of the Secrets that an API refers to, each once.
func Secrets(api *v1alpha1.ServiceAPI) []string {
	if api == nil {
		return nil
	}
	var names []string
	if api.CA != nil {
		names = append(names, api.CA.Name)
	}
	if auth := api.Auth; auth != nil {
		if auth.OAuth2 != nil {
			names = append(names, auth.OAuth2.Secret.Name)
			if auth.OAuth2.MTLS != nil {
				names = append(names, auth.OAuth2.MTLS.Secret.Name)
			}
		}
		if auth.Basic != nil {
			names = append(names, auth.Basic.Secret.Name)
		}
		if auth.MTLS != nil {
			names = append(names, auth.MTLS.Secret.Name)
		}
		for _, value := range slices.Concat(auth.Headers, auth.QueryParameters) {
			if value.Secret != nil {
				names = append(names, value.Secret.Name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// leftOut stands in the cache where a document was.
const leftOut = "left out, bytes: "

// Size of a document, which may have been left out.
func Size(document string) int {
	if digits, ok := strings.CutPrefix(document, leftOut); ok {
		if n, err := strconv.Atoi(digits); err == nil {
			return n
		}
	}
	return len(document)
}

// Documents is the size of the documents of a service that are kept in it; 0 means
// that there is none.
func Documents(d *v1alpha1.ServiceDefinition) (size int) {
	if d.API != nil {
		if !documents.IsURL(d.API.OpenAPI) {
			size += Size(d.API.OpenAPI)
		}
		size += Size(d.API.OData)
	}
	if d.Events != nil {
		size += Size(d.Events.AsyncAPI)
	}
	return size
}

// Slim is the transformation of what a cache keeps. Objects that it has made
// smaller must not be written back: change them by patches of other fields.
func Slim() func(any) (any, error) {
	strip := cache.TransformStripManagedFields()
	return func(obj any) (any, error) {
		switch obj := obj.(type) {
		case *v1alpha1.Application:
			for i := range obj.Spec.Services {
				slim(&obj.Spec.Services[i].ServiceDefinition)
			}
			slimAnnotations(obj)
		case *v1alpha1.ApplicationService:
			slim(&obj.Spec.ServiceDefinition)
			slimAnnotations(obj)
		case *v1alpha1.EventType:
			obj.Spec.Schema = nil
		}
		return strip(obj)
	}
}

// slimAnnotations removes the copy that kubectl apply keeps of the whole object.
func slimAnnotations(obj client.Object) {
	annotations := obj.GetAnnotations()
	delete(annotations, corev1.LastAppliedConfigAnnotation)
	obj.SetAnnotations(annotations)
}

func slim(d *v1alpha1.ServiceDefinition) {
	leave := func(document *string) {
		if *document != "" && !strings.HasPrefix(*document, leftOut) && !documents.IsURL(*document) {
			*document = leftOut + strconv.Itoa(len(*document))
		}
	}
	if d.API != nil {
		leave(&d.API.OpenAPI)
		leave(&d.API.OData)
	}
	if d.Events != nil {
		leave(&d.Events.AsyncAPI)
	}
}
