package controller

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/rand"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/lambdamesh/lambdamesh/connector/pairing"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	status "github.com/lambdamesh/lambdamesh/pkg/reconcile"
)

// Reasons of TokenRequests that are done.
const (
	ReasonUsed    = "Used"
	ReasonExpired = "Expired"
)

// keepEnded is how long a TokenRequest tells that its token was used or has
// expired, before it is removed.
const keepEnded = time.Hour

type tokenRequests struct {
	client client.Client
	live   client.Reader // past the cache
	token  func(types.NamespacedName) (string, map[string][]byte, error)
	now    func() time.Time
	log    *slog.Logger
}

// Reconcile makes the token of a request, once, and removes it when it was used or
// has expired. The Secret is written after the hash of its token is: who reads the
// Secret can use it at once.
func (r *tokenRequests) Reconcile(ctx context.Context, request *v1alpha1.TokenRequest) (ctrl.Result, error) {
	if !request.DeletionTimestamp.IsZero() {
		return ctrl.Result{}, nil // the Secret goes with its owner
	}
	s := &request.Status
	switch {
	case s.UsedAt != nil:
		return r.end(ctx, request, s.UsedAt.Time, ReasonUsed, "a certificate was issued for the token: make a new TokenRequest for another")
	case s.ExpiresAt != nil && !r.now().Before(s.ExpiresAt.Time):
		return r.end(ctx, request, s.ExpiresAt.Time, ReasonExpired, "the token was not used in time: make a new TokenRequest for another")
	case meta.IsStatusConditionTrue(s.CommonStatus.Conditions, v1alpha1.ConditionReady):
		return ctrl.Result{RequeueAfter: s.ExpiresAt.Sub(r.now())}, nil
	}
	if r.token == nil {
		return ctrl.Result{}, report(ctx, r.client, request.DeepCopy(), request,
			[]problem{{v1alpha1.ReasonNotSupported, "this installation has no port for third-party systems: set connector.public.enabled"}})
	}
	var app v1alpha1.Application
	// Past the cache: who makes both at once is told nothing else.
	err := r.live.Get(ctx, client.ObjectKey{Name: request.Spec.Application}, &app)
	if client.IgnoreNotFound(err) != nil {
		return ctrl.Result{}, err
	}
	if err != nil || !app.DeletionTimestamp.IsZero() {
		return ctrl.Result{}, report(ctx, r.client, request.DeepCopy(), request,
			[]problem{{v1alpha1.ReasonNotFound, fmt.Sprintf("there is no Application %s", request.Spec.Application)}})
	}
	// Nor may the cache know what was written a moment ago.
	if err := r.live.Get(ctx, client.ObjectKeyFromObject(request), request); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if s.UsedAt != nil || meta.IsStatusConditionTrue(s.CommonStatus.Conditions, v1alpha1.ConditionReady) {
		return ctrl.Result{}, nil // the change is on its way here
	}
	return ctrl.Result{RequeueAfter: pairing.TokenLife}, r.begin(ctx, request)
}

// begin makes the token. What an earlier try left is replaced: its token is known
// to nobody.
func (r *tokenRequests) begin(ctx context.Context, request *v1alpha1.TokenRequest) error {
	token, data, err := r.token(client.ObjectKeyFromObject(request))
	if err != nil {
		return err
	}
	before := request.DeepCopy()
	s := &request.Status
	s.TokenHash, s.ExpiresAt = pairing.TokenHash(token), new(metav1.NewTime(r.now().Add(pairing.TokenLife)))
	s.SecretName = request.Name[:min(len(request.Name), 200)] + "-token-" + rand.String(5)
	status.False(request, v1alpha1.ConditionReady, v1alpha1.ReasonPending, "the Secret with the token is being made")
	if err := r.patch(ctx, request, before); err != nil {
		return err
	}
	if err := r.removeSecret(ctx, before); err != nil {
		return err
	}
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: request.Namespace, Name: s.SecretName,
			Labels: map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy},
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: v1alpha1.GroupVersion().String(), Kind: "TokenRequest", Name: request.Name, UID: request.UID,
			}},
		},
		Type: v1alpha1.SecretTypePairing, Immutable: new(true), Data: data,
	}
	if err := r.client.Create(ctx, secret); err != nil {
		return fmt.Errorf("make the Secret %s/%s: %w", secret.Namespace, secret.Name, err)
	}
	before = request.DeepCopy()
	request.SetObservedGeneration(request.GetGeneration())
	status.True(request, v1alpha1.ConditionReady, v1alpha1.ReasonReady, "")
	if err := r.patch(ctx, request, before); err != nil {
		return err
	}
	r.log.Info("a token was made", "application", request.Spec.Application, "namespace", request.Namespace, "tokenRequest", request.Name)
	return nil
}

// patch writes a status in the version that was read: two leaders, the old and the
// new, make one token.
func (r *tokenRequests) patch(ctx context.Context, request, before *v1alpha1.TokenRequest) error {
	err := r.client.Status().Patch(ctx, request, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("write the status of TokenRequest %s: %w", client.ObjectKeyFromObject(request), err)
	}
	return nil
}

// end says that the token of a request is no longer good, and later removes the
// request: what is over would gather for ever.
func (r *tokenRequests) end(ctx context.Context, request *v1alpha1.TokenRequest, at time.Time, reason, message string) (ctrl.Result, error) {
	if err := r.removeSecret(ctx, request); err != nil {
		return ctrl.Result{}, err
	}
	left := at.Add(keepEnded).Sub(r.now())
	if left <= 0 {
		err := r.client.Delete(ctx, request, client.Preconditions{UID: &request.UID})
		if client.IgnoreNotFound(err) != nil && !apierrors.IsConflict(err) {
			return ctrl.Result{}, fmt.Errorf("remove TokenRequest %s: %w", client.ObjectKeyFromObject(request), err)
		}
		return ctrl.Result{}, nil
	}
	before := request.DeepCopy()
	request.Status.SecretName, request.Status.TokenHash = "", ""
	return ctrl.Result{RequeueAfter: left}, report(ctx, r.client, before, request, []problem{{reason, message}})
}

func (r *tokenRequests) removeSecret(ctx context.Context, request *v1alpha1.TokenRequest) error {
	if request.Status.SecretName == "" {
		return nil
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: request.Namespace, Name: request.Status.SecretName}}
	if err := r.client.Delete(ctx, secret); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("remove the Secret %s/%s: %w", secret.Namespace, secret.Name, err)
	}
	return nil
}

// tokenRequestsOf maps an application to the requests for it.
func tokenRequestsOf(c client.Client) handler.MapFunc {
	return func(ctx context.Context, app client.Object) []reconcile.Request {
		var list v1alpha1.TokenRequestList
		if c.List(ctx, &list) != nil {
			return nil
		}
		var requests []reconcile.Request
		for i := range list.Items {
			if list.Items[i].Spec.Application == app.GetName() {
				requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&list.Items[i])})
			}
		}
		return requests
	}
}
