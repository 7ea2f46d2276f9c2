package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Group is the API group of every kind in this package.
const Group = "lambdamesh.dev"

// GroupVersion returns lambdamesh.dev/v1alpha1.
func GroupVersion() schema.GroupVersion {
	return schema.GroupVersion{Group: Group, Version: "v1alpha1"}
}

// AddToScheme registers every kind of this package.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion(),
		&Lambda{}, &LambdaList{},
		&APIRule{}, &APIRuleList{},
		&Subscription{}, &SubscriptionList{},
		&EventGrant{}, &EventGrantList{},
		&Application{}, &ApplicationList{},
		&ApplicationService{}, &ApplicationServiceList{},
		&EventType{}, &EventTypeList{},
		&ApplicationBinding{}, &ApplicationBindingList{},
		&TokenRequest{}, &TokenRequestList{},
	)
	metav1.AddToGroupVersion(s, GroupVersion())
	return nil
}
