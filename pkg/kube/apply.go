package kube

import (
	"context"
	"encoding/json"
	"fmt"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
)

// Apply makes the API server's object hold what obj says, with server-side
// apply: fields that others own are left alone, fields that we no longer name
// go, and a foreign change of ours is put right. owner is the field manager.
//
// obj is taken as the whole of what owner wants. Its status and its server-set
// metadata are not sent. On return obj is unchanged.
func Apply(ctx context.Context, c client.Client, owner string, obj client.Object) error {
	u, err := ToUnstructured(c, obj)
	if err != nil {
		return err
	}
	// Read after conversion so that every error names the object.
	id := u.GetKind() + " " + client.ObjectKeyFromObject(obj).String()
	if err := c.Apply(ctx, client.ApplyConfigurationFromUnstructured(u), client.FieldOwner(owner), client.ForceOwnership); err != nil {
		return fmt.Errorf("apply %s: %w", id, err)
	}
	return nil
}

// ToUnstructured returns what Apply sends: obj with its kind, and without
// status and server-set metadata. It goes through JSON because Istio's types
// carry protobuf specs with JSON methods of their own.
func ToUnstructured(c client.Client, obj client.Object) (*unstructured.Unstructured, error) {
	gvk, err := apiutil.GVKForObject(obj, c.Scheme())
	if err != nil {
		return nil, fmt.Errorf("find the kind of %T %s: %w", obj, client.ObjectKeyFromObject(obj), err)
	}
	raw, err := json.Marshal(obj)
	if err != nil {
		return nil, fmt.Errorf("encode %s %s: %w", gvk.Kind, client.ObjectKeyFromObject(obj), err)
	}
	u := &unstructured.Unstructured{}
	if err := json.Unmarshal(raw, &u.Object); err != nil {
		return nil, fmt.Errorf("decode %s %s: %w", gvk.Kind, client.ObjectKeyFromObject(obj), err)
	}
	u.SetGroupVersionKind(gvk)
	delete(u.Object, "status")
	for _, field := range []string{"creationTimestamp", "resourceVersion", "uid", "generation", "managedFields", "selfLink"} {
		unstructured.RemoveNestedField(u.Object, "metadata", field)
	}
	// A pod template has metadata of its own, with a null timestamp that
	// server-side apply would take for a wish.
	unstructured.RemoveNestedField(u.Object, "spec", "template", "metadata", "creationTimestamp")
	return u, nil
}
