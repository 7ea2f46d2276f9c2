package registry

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/connector/catalog"
	"github.com/lambdamesh/lambdamesh/connector/outbound"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// seenWithin is how long a write waits for the cache to have it, so that who reads
// next, here, sees it.
const seenWithin = 2 * time.Second

// idOf is how the registry names a service that is an object.
func idOf(s *v1alpha1.ApplicationService) string {
	if s.Spec.ID != "" {
		return s.Spec.ID
	}
	return string(s.UID)
}

// idOfInline is how it names one that is written in the Application.
func idOfInline(s *v1alpha1.InlineService) string {
	if s.ID != "" {
		return s.ID
	}
	return s.Name
}

func (h *Handler) application(ctx context.Context, name string) (*v1alpha1.Application, error) {
	var app v1alpha1.Application
	err := h.config.Objects.Get(ctx, client.ObjectKey{Name: name}, &app, client.UnsafeDisableDeepCopy)
	if apierrors.IsNotFound(err) || err == nil && !app.DeletionTimestamp.IsZero() {
		return nil, refuse(http.StatusNotFound, "there is no application %s", name)
	}
	if err != nil {
		return nil, fmt.Errorf("reading Application %s: %w", name, err)
	}
	return &app, nil
}

// services of an application, without those on their way out, sorted by name.
// Documents are left out of them.
func (h *Handler) services(ctx context.Context, app *v1alpha1.Application) ([]v1alpha1.ApplicationService, error) {
	var list v1alpha1.ApplicationServiceList
	err := h.config.Objects.List(ctx, &list, client.MatchingFields{catalog.ByApplication: app.Name}, client.UnsafeDisableDeepCopy)
	if err != nil {
		return nil, fmt.Errorf("listing the services of %s: %w", app.Name, err)
	}
	all := slices.DeleteFunc(slices.Clone(list.Items), func(s v1alpha1.ApplicationService) bool { return !s.DeletionTimestamp.IsZero() })
	slices.SortFunc(all, func(a, b v1alpha1.ApplicationService) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

func (h *Handler) list(ctx context.Context, app *v1alpha1.Application) (int, any, error) {
	services, err := h.services(ctx, app)
	if err != nil {
		return 0, nil, err
	}
	all := make([]summary, 0, len(services)+len(app.Spec.Services))
	add := func(id, name string, d *v1alpha1.ServiceDefinition) {
		if d.DisplayName != "" {
			name = d.DisplayName
		}
		all = append(all, summary{ID: id, Provider: d.Provider, Name: name, Description: d.Description, Identifier: d.Identifier, Labels: d.Labels})
	}
	for i := range app.Spec.Services {
		s := &app.Spec.Services[i]
		add(idOfInline(s), s.Name, &s.ServiceDefinition)
	}
	for i := range services {
		add(idOf(&services[i]), services[i].Spec.Name, &services[i].Spec.ServiceDefinition)
	}
	return http.StatusOK, all, nil
}

// inline finds a service that is written in the Application.
func inline(app *v1alpha1.Application, id string) *v1alpha1.InlineService {
	for i := range app.Spec.Services {
		if idOfInline(&app.Spec.Services[i]) == id {
			return &app.Spec.Services[i]
		}
	}
	return nil
}

// find reads the object of a service, documents included, from the API server.
// Another connector may have made it a moment ago.
func (h *Handler) find(ctx context.Context, app *v1alpha1.Application, id string) (*v1alpha1.ApplicationService, error) {
	unknown := refuse(http.StatusNotFound, "the application %s has no service %.100q", app.Name, id)
	services, err := h.services(ctx, app)
	if err != nil {
		return nil, err
	}
	var name string
	if i := slices.IndexFunc(services, func(s v1alpha1.ApplicationService) bool { return idOf(&s) == id }); i >= 0 {
		name = services[i].Name
	} else {
		if uuid.Validate(id) != nil {
			return nil, unknown
		}
		var list v1alpha1.ApplicationServiceList
		err := h.config.Live.List(ctx, &list, client.MatchingLabels{v1alpha1.LabelApplication: app.Name, v1alpha1.LabelServiceID: id})
		if err != nil {
			return nil, fmt.Errorf("looking for the service %s of %s: %w", id, app.Name, err)
		}
		if len(list.Items) == 0 {
			return nil, unknown
		}
		name = list.Items[0].Name
	}
	var service v1alpha1.ApplicationService
	err = h.config.Live.Get(ctx, client.ObjectKey{Name: name}, &service)
	if apierrors.IsNotFound(err) || err == nil && (!service.DeletionTimestamp.IsZero() || service.Spec.Application != app.Name) {
		return nil, unknown
	}
	if err != nil {
		return nil, fmt.Errorf("reading ApplicationService %s: %w", name, err)
	}
	return &service, nil
}

func (h *Handler) get(ctx context.Context, app *v1alpha1.Application, id string) (int, any, error) {
	secrets := func(name string) map[string][]byte {
		data, _ := h.secretData(ctx, name) // without it there is no certificate to tell
		return data
	}
	if s := inline(app, id); s != nil {
		var live v1alpha1.Application
		if err := h.config.Live.Get(ctx, client.ObjectKeyFromObject(app), &live); err != nil {
			return 0, nil, fmt.Errorf("reading Application %s: %w", app.Name, err)
		}
		if s = inline(&live, id); s != nil {
			return http.StatusOK, tell(&s.ServiceDefinition, s.Name, secrets), nil
		}
	}
	service, err := h.find(ctx, app, id)
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, tell(&service.Spec.ServiceDefinition, service.Spec.Name, secrets), nil
}

// slug makes a service's name in URLs of the one for people.
func slug(name string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(name) {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			b.WriteRune(r)
		case b.Len() > 0 && !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
		if b.Len() == 48 {
			break
		}
	}
	if s := strings.Trim(b.String(), "-"); s != "" {
		return s
	}
	return "service"
}

func (h *Handler) create(ctx context.Context, app *v1alpha1.Application, d *details) (int, any, error) {
	if err := d.check(); err != nil {
		return 0, nil, err
	}
	services, err := h.services(ctx, app)
	if err != nil {
		return 0, nil, err
	}
	if len(services)+len(app.Spec.Services) >= h.config.MaxServices {
		return 0, nil, refuse(http.StatusForbidden, "the application %s has %d services, the most it may have: delete some", app.Name, h.config.MaxServices)
	}
	if err := fits(app, services, d, ""); err != nil {
		return 0, nil, err
	}
	id := uuid.NewString()
	name := slug(d.Name)
	taken := slices.ContainsFunc(app.Spec.Services, func(s v1alpha1.InlineService) bool { return s.Name == name })
	for try := range 2 {
		if taken || try > 0 {
			name = slug(d.Name) + "-" + id[:8]
		}
		service := &v1alpha1.ApplicationService{
			ObjectMeta: metav1.ObjectMeta{
				Name: v1alpha1.ServiceObjectName(app.Name, name),
				Labels: map[string]string{
					v1alpha1.LabelManagedBy: v1alpha1.ManagedBy, v1alpha1.LabelApplication: app.Name, v1alpha1.LabelServiceID: id,
				},
				// The catalog goes with the application.
				OwnerReferences: []metav1.OwnerReference{{
					APIVersion: v1alpha1.GroupVersion().String(), Kind: "Application", Name: app.Name, UID: app.UID,
				}},
			},
			Spec: v1alpha1.ApplicationServiceSpec{Application: app.Name, Name: name},
		}
		err = h.store(ctx, service, d, previous{}, func() error { return h.config.Client.Create(ctx, service) }, id)
		if !apierrors.IsAlreadyExists(err) {
			break
		}
	}
	if err != nil {
		return 0, nil, invalid(err)
	}
	return http.StatusOK, map[string]string{"id": id}, nil
}

func (h *Handler) update(ctx context.Context, app *v1alpha1.Application, id string, d *details) (int, any, error) {
	if err := d.check(); err != nil {
		return 0, nil, err
	}
	if inline(app, id) != nil {
		return 0, nil, written(app)
	}
	service, err := h.find(ctx, app, id)
	if err != nil {
		return 0, nil, err
	}
	before := previous{definition: service.Spec.ServiceDefinition.DeepCopy()}
	if before.secret, err = h.secretData(ctx, secretOf(before.definition)); err != nil {
		return 0, nil, err
	}
	services, err := h.services(ctx, app)
	if err != nil {
		return 0, nil, err
	}
	if err := fits(app, services, d, service.Name); err != nil {
		return 0, nil, err
	}
	// What the object had is gone only when nobody changed it meanwhile: Update
	// holds the version that was read.
	err = h.store(ctx, service, d, before, func() error { return h.config.Client.Update(ctx, service) }, service.Spec.ID)
	if apierrors.IsConflict(err) {
		return 0, nil, refuse(http.StatusConflict, "the service %s was changed at the same time: try again", id)
	}
	if err != nil {
		return 0, nil, invalid(err)
	}
	return http.StatusOK, tell(&service.Spec.ServiceDefinition, service.Spec.Name, func(name string) map[string][]byte {
		data, _ := h.secretData(ctx, name)
		return data
	}), nil
}

// fits refuses a service whose documents are too much together with those of the
// others: what one application stores, all share the room with. but is the name of
// the one that it replaces.
func fits(app *v1alpha1.Application, services []v1alpha1.ApplicationService, d *details, but string) error {
	size, types := 0, 0
	if d.API != nil {
		size += len(d.API.Spec)
	}
	if d.Events != nil {
		size += len(d.Events.Spec)
	}
	for i := range app.Spec.Services {
		size += catalog.Documents(&app.Spec.Services[i].ServiceDefinition)
	}
	for i := range services {
		if services[i].Name != but {
			size += catalog.Documents(&services[i].Spec.ServiceDefinition)
			types += int(services[i].Status.EventTypes)
		}
	}
	if size > maxDocuments {
		return refuse(http.StatusForbidden, "the documents of the application %s are more than %d bytes, the most they may have together", app.Name, maxDocuments)
	}
	if types >= maxEventTypes && d.Events != nil {
		return refuse(http.StatusForbidden, "the application %s has %d event types, the most it may have", app.Name, types)
	}
	return nil
}

func written(app *v1alpha1.Application) error {
	return refuse(http.StatusConflict, "the service is written in the Application %s itself: change it there", app.Name)
}

// store writes a service. Its credentials go into a new Secret each time, so that
// a service and its credentials change at once: a call has both old or both new.
func (h *Handler) store(ctx context.Context, service *v1alpha1.ApplicationService, d *details, before previous, write func() error, id string) error {
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{
		Namespace: v1alpha1.SystemNamespace,
		Name:      service.Name + "." + strings.ToLower(rand.Text()[:8]),
		Labels: map[string]string{
			v1alpha1.LabelManagedBy: v1alpha1.ManagedBy, v1alpha1.LabelApplication: service.Spec.Application, v1alpha1.LabelService: service.Spec.Name,
		},
	}}
	made, err := d.convert(secret.Name, before)
	if err != nil {
		return err
	}
	made.definition.ID = id
	if err := h.callable(&made); err != nil {
		return err
	}
	secret.Data = made.secret
	if len(secret.Data) > 0 {
		if err := h.config.Client.Create(ctx, secret); err != nil {
			return fmt.Errorf("storing the credentials of %s: %w", service.Name, err)
		}
	}
	service.Spec.ServiceDefinition = made.definition
	if err := write(); err != nil {
		return errors.Join(err, h.forget(ctx, len(secret.Data) > 0, secret.Name))
	}
	if len(secret.Data) > 0 {
		if err := Own(ctx, h.config.Client, service, secret); err != nil {
			h.config.Log.Warn("the credentials of a service have no owner yet", "service", service.Name, "error", err) // the controller sees to it
		}
	}
	if before.definition != nil {
		old := secretOf(before.definition)
		if err := h.forget(ctx, len(before.secret) > 0, old); err != nil {
			h.config.Log.Warn("replaced credentials are still there", "service", service.Name, "error", err)
		}
	}
	h.seen(ctx, service)
	return nil
}

// callable refuses what the gateway would refuse to call.
func (h *Handler) callable(s *stored) error {
	if s.definition.API == nil {
		return nil
	}
	secrets := func(name string) (*corev1.Secret, error) {
		return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.SystemNamespace, Name: name}, Data: s.secret}, nil
	}
	api := *s.definition.API
	api.CA = nil // an operator's
	_, err := outbound.Resolve(&api, secrets, h.config.Targets)
	var unusable *outbound.UnusableError
	if errors.As(err, &unusable) {
		return refuse(http.StatusBadRequest, "api: %s", unusable.Message)
	}
	return err
}

// Own makes a Secret go with its service.
func Own(ctx context.Context, c client.Client, service *v1alpha1.ApplicationService, secret *corev1.Secret) error {
	before := secret.DeepCopy()
	secret.OwnerReferences = []metav1.OwnerReference{{
		APIVersion: v1alpha1.GroupVersion().String(), Kind: "ApplicationService", Name: service.Name, UID: service.UID, Controller: new(true),
	}}
	if err := c.Patch(ctx, secret, client.MergeFrom(before)); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("making ApplicationService %s the owner of Secret %s: %w", service.Name, secret.Name, err)
	}
	return nil
}

// secretOf is the Secret of a service's credentials, as the registry writes it.
func secretOf(d *v1alpha1.ServiceDefinition) string {
	if d.API == nil || d.API.Auth == nil {
		return ""
	}
	switch auth := d.API.Auth; {
	case auth.OAuth2 != nil:
		return auth.OAuth2.Secret.Name
	case auth.Basic != nil:
		return auth.Basic.Secret.Name
	case auth.MTLS != nil:
		return auth.MTLS.Secret.Name
	default:
		for _, value := range slices.Concat(auth.Headers, auth.QueryParameters) {
			if value.Secret != nil {
				return value.Secret.Name
			}
		}
		return ""
	}
}

// secretData reads a Secret that the registry made. Those that somebody else wrote
// are nobody's business here: their values are not the client's to keep.
func (h *Handler) secretData(ctx context.Context, name string) (map[string][]byte, error) {
	if name == "" {
		return nil, nil
	}
	var secret corev1.Secret
	err := h.config.Live.Get(ctx, client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: name}, &secret)
	if client.IgnoreNotFound(err) != nil {
		return nil, fmt.Errorf("reading Secret %s: %w", name, err)
	}
	if catalog.MadeByRegistry(&secret) { // not what was not found
		return maps.Clone(secret.Data), nil
	}
	return nil, nil
}

func (h *Handler) forget(ctx context.Context, there bool, name string) error {
	if !there {
		return nil
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.SystemNamespace, Name: name}}
	if err := client.IgnoreNotFound(h.config.Client.Delete(ctx, secret)); err != nil {
		return fmt.Errorf("deleting Secret %s: %w", name, err)
	}
	return nil
}

func (h *Handler) remove(ctx context.Context, app *v1alpha1.Application, id string) (int, any, error) {
	if inline(app, id) != nil {
		return 0, nil, written(app)
	}
	service, err := h.find(ctx, app, id)
	if err != nil {
		return 0, nil, err
	}
	made, err := h.secretData(ctx, secretOf(&service.Spec.ServiceDefinition))
	if err != nil {
		return 0, nil, err
	}
	err = h.config.Client.Delete(ctx, service, client.Preconditions{UID: &service.UID})
	if client.IgnoreNotFound(err) != nil {
		return 0, nil, fmt.Errorf("deleting ApplicationService %s: %w", service.Name, err)
	}
	if err := h.forget(ctx, made != nil, secretOf(&service.Spec.ServiceDefinition)); err != nil {
		return 0, nil, err
	}
	service.ResourceVersion = ""
	h.seen(ctx, service)
	return http.StatusNoContent, nil, nil
}

// seen waits until the cache has what was written: this version of the object, or
// none when it has no version.
func (h *Handler) seen(ctx context.Context, service *v1alpha1.ApplicationService) {
	ctx, cancel := context.WithTimeout(ctx, seenWithin)
	defer cancel()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for {
		var cached v1alpha1.ApplicationService
		err := h.config.Objects.Get(ctx, client.ObjectKeyFromObject(service), &cached, client.UnsafeDisableDeepCopy)
		switch {
		case service.ResourceVersion == "" && (apierrors.IsNotFound(err) || err == nil && cached.UID != service.UID):
			return
		case service.ResourceVersion != "" && err == nil && cached.UID == service.UID && cached.Generation >= service.Generation:
			return
		}
		select {
		case <-ctx.Done():
			return // it will
		case <-ticker.C:
		}
	}
}

// invalid makes what the API server refuses the client's mistake: the kind's own
// rules say what to write instead.
func invalid(err error) error {
	var status apierrors.APIStatus
	if !apierrors.IsInvalid(err) || !errors.As(err, &status) || status.Status().Details == nil {
		return err
	}
	var causes []string
	for _, cause := range status.Status().Details.Causes {
		causes = append(causes, strings.TrimPrefix(cause.Field, "spec.")+": "+cause.Message)
	}
	return refuse(http.StatusBadRequest, "%s", strings.Join(causes, "; "))
}
