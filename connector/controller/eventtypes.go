package controller

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/connector/catalog"
	"github.com/lambdamesh/lambdamesh/connector/documents"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	status "github.com/lambdamesh/lambdamesh/pkg/reconcile"
)

// Reasons about documents.
const (
	ReasonDocumentsRead   = "DocumentsRead"
	ReasonDocumentInvalid = "DocumentInvalid"
	// ReasonKnown: the type is part of a document.
	ReasonKnown = "Known"
)

// judge reads the documents of services and keeps the event types that they name.
// The cache holds no documents, so they are read from the API server, and only
// when they changed or an event type did.
type judge struct {
	client client.Client
	live   client.Reader
}

// named is a service and its name in URLs.
type named struct {
	name       string
	definition *v1alpha1.ServiceDefinition
}

// found is what the documents of an object say.
type found struct {
	api      *v1alpha1.DocumentStatus
	types    []v1alpha1.EventType
	problems []problem
}

func (j judge) service(ctx context.Context, service *v1alpha1.ApplicationService) ([]problem, error) {
	has := catalog.Documents(&service.Spec.ServiceDefinition) > 0
	return j.object(ctx, service, "ApplicationService", has, &service.Status.EventTypes, func(ctx context.Context) (string, []named, error) {
		var live v1alpha1.ApplicationService
		err := j.live.Get(ctx, client.ObjectKeyFromObject(service), &live)
		return service.Spec.Application, []named{{live.Spec.Name, &live.Spec.ServiceDefinition}}, errors.Join(err, same(&live, service))
	}, func(f found) { service.Status.Document = f.api })
}

func (j judge) application(ctx context.Context, app *v1alpha1.Application, types *int32) ([]problem, error) {
	has := false
	for i := range app.Spec.Services {
		has = has || catalog.Documents(&app.Spec.Services[i].ServiceDefinition) > 0
	}
	return j.object(ctx, app, "Application", has, types, func(ctx context.Context) (string, []named, error) {
		var live v1alpha1.Application
		err := j.live.Get(ctx, client.ObjectKeyFromObject(app), &live)
		all := make([]named, len(live.Spec.Services))
		for i := range live.Spec.Services {
			all[i] = named{live.Spec.Services[i].Name, &live.Spec.Services[i].ServiceDefinition}
		}
		return app.Name, all, errors.Join(err, same(&live, app))
	}, func(found) {})
}

var errChanged = errors.New("the object has changed meanwhile")

// same makes sure that what is judged is what the status speaks of.
func same(live, cached client.Object) error {
	if live.GetGeneration() != cached.GetGeneration() || live.GetUID() != cached.GetUID() {
		return fmt.Errorf("%T %s: %w", cached, cached.GetName(), errChanged)
	}
	return nil
}

// object judges the documents of an object, unless that was done and still holds.
func (j judge) object(ctx context.Context, obj status.Object, kind string, has bool, count *int32,
	read func(context.Context) (string, []named, error), tell func(found),
) ([]problem, error) {
	var existing v1alpha1.EventTypeList
	err := j.client.List(ctx, &existing, client.InNamespace(v1alpha1.SystemNamespace), client.MatchingFields{catalog.ByOwner: string(obj.GetUID())})
	if err != nil {
		return nil, fmt.Errorf("listing the event types of %s: %w", obj.GetName(), err)
	}
	was := meta.FindStatusCondition(*obj.Conditions(), v1alpha1.ConditionDocumentsValid)
	if was != nil && was.ObservedGeneration == obj.GetGeneration() && intact(existing.Items, int(*count)) {
		if was.Status != metav1.ConditionTrue {
			return []problem{{was.Reason, was.Message}}, nil
		}
		return nil, nil
	}
	var f found
	if has {
		application, services, err := read(ctx)
		if err != nil {
			return nil, client.IgnoreNotFound(err)
		}
		f = judgeAll(application, services, kind == "Application")
	}
	if err := j.keep(ctx, obj, kind, f.types, existing.Items); err != nil {
		return nil, err
	}
	*count = int32(len(f.types))
	tell(f)
	if len(f.problems) > 0 {
		status.False(obj, v1alpha1.ConditionDocumentsValid, f.problems[0].reason, messages(f.problems))
		return f.problems, nil
	}
	status.True(obj, v1alpha1.ConditionDocumentsValid, ReasonDocumentsRead, "")
	return nil, nil
}

// intact reports whether the event types are those that were written.
func intact(existing []v1alpha1.EventType, count int) bool {
	for i := range existing {
		if t := &existing[i]; t.Generation != t.Status.ObservedGeneration || !t.DeletionTimestamp.IsZero() {
			return false
		}
	}
	return len(existing) == count
}

// judgeAll reads documents. Those that cannot be used name no event types.
func judgeAll(application string, services []named, several bool) (f found) {
	for _, s := range services {
		complain := func(err error) {
			text := err.Error()
			if several {
				text = "service " + s.name + ": " + text
			}
			f.problems = append(f.problems, problem{ReasonDocumentInvalid, text})
		}
		if api := s.definition.API; api != nil {
			described, err := describe(api)
			if err != nil {
				complain(err)
			}
			f.api = described
		}
		if s.definition.Events == nil || s.definition.Events.AsyncAPI == "" {
			continue
		}
		types, err := documents.AsyncAPI([]byte(s.definition.Events.AsyncAPI))
		if err != nil {
			complain(err)
		}
		for _, t := range types {
			f.types = append(f.types, eventType(application, s.name, t))
		}
	}
	return f
}

func describe(api *v1alpha1.ServiceAPI) (*v1alpha1.DocumentStatus, error) {
	var told documents.API
	var err error
	switch {
	case api.OData != "":
		told, err = documents.OData([]byte(api.OData))
	case api.OpenAPI != "" && !documents.IsURL(api.OpenAPI):
		told, err = documents.OpenAPI([]byte(api.OpenAPI))
	default:
		return nil, nil //nolint:nilnil // there is nothing to tell
	}
	if err != nil {
		return nil, err
	}
	return &v1alpha1.DocumentStatus{Format: told.Format, Title: told.Title, Version: told.Version, Operations: int32(told.Operations)}, nil
}

func eventType(application, service string, t documents.EventType) v1alpha1.EventType {
	made := v1alpha1.EventType{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: v1alpha1.SystemNamespace, Name: eventTypeName(application, service, t.Type),
			Labels: map[string]string{
				v1alpha1.LabelManagedBy: v1alpha1.ManagedBy, v1alpha1.LabelApplication: application, v1alpha1.LabelService: service,
			},
		},
		Spec: v1alpha1.EventTypeSpec{Source: application, Type: t.Type, Service: service, Description: t.Description},
	}
	if t.Schema != nil {
		made.Spec.Schema = &apiextensionsv1.JSON{Raw: t.Schema}
	}
	return made
}

// eventTypeName tells people which type it is, and is different for each.
func eventTypeName(application, service, eventType string) string {
	sum := sha256.Sum256([]byte(application + "\x00" + service + "\x00" + eventType))
	readable := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' {
			return r
		}
		return '-'
	}, strings.ToLower(eventType))
	if len(readable) > 80 {
		readable = readable[:80]
	}
	if readable = strings.Trim(readable, "-"); readable == "" {
		readable = "type"
	}
	return application + "." + readable + "." + hex.EncodeToString(sum[:5])
}

// keep makes the event types those that are wanted, and says that they are known.
func (j judge) keep(ctx context.Context, owner client.Object, kind string, wanted, existing []v1alpha1.EventType) error {
	keeping := map[string]bool{}
	for i := range wanted {
		keeping[wanted[i].Name] = true
		wanted[i].OwnerReferences = []metav1.OwnerReference{controllerRef(owner, kind)}
		if err := j.ensure(ctx, &wanted[i]); err != nil {
			return fmt.Errorf("keeping EventType %s: %w", wanted[i].Name, err)
		}
	}
	for i := range existing {
		if !keeping[existing[i].Name] {
			if err := j.client.Delete(ctx, &existing[i]); client.IgnoreNotFound(err) != nil {
				return fmt.Errorf("deleting EventType %s: %w", existing[i].Name, err)
			}
		}
	}
	return nil
}

func (j judge) ensure(ctx context.Context, wanted *v1alpha1.EventType) error {
	var live v1alpha1.EventType
	err := j.live.Get(ctx, client.ObjectKeyFromObject(wanted), &live)
	switch {
	case apierrors.IsNotFound(err):
		live = *wanted.DeepCopy()
		if err := j.client.Create(ctx, &live); err != nil {
			return err
		}
	case err != nil:
		return err
	case !equal(&live, wanted):
		live.Labels, live.OwnerReferences, live.Spec = wanted.Labels, wanted.OwnerReferences, *wanted.Spec.DeepCopy()
		if err := j.client.Update(ctx, &live); err != nil {
			return err
		}
	}
	before := live.DeepCopy()
	live.SetObservedGeneration(live.Generation)
	status.True(&live, v1alpha1.ConditionReady, ReasonKnown, "")
	return status.PatchStatus(ctx, j.client, before, &live)
}

func equal(live, wanted *v1alpha1.EventType) bool {
	a, b := live.Spec.DeepCopy(), wanted.Spec.DeepCopy()
	sameSchema := sameJSON(a.Schema, b.Schema)
	a.Schema, b.Schema = nil, nil
	return sameSchema && reflect.DeepEqual(a, b) && reflect.DeepEqual(live.Labels, wanted.Labels) &&
		reflect.DeepEqual(live.OwnerReferences, wanted.OwnerReferences)
}

// sameJSON compares schemas by what they say: the API server sorts what it keeps.
func sameJSON(a, b *apiextensionsv1.JSON) bool {
	if a == nil || b == nil {
		return a == b
	}
	var left, right any
	return json.Unmarshal(a.Raw, &left) == nil && json.Unmarshal(b.Raw, &right) == nil && reflect.DeepEqual(left, right)
}
