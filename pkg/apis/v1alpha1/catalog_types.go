package v1alpha1

import (
	"strings"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ApplicationService is a service of an application's catalog: one object each, so
// that a catalog may be large. The registry keeps them, and so may kubectl.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=appsvc,categories=lambdamesh
// +kubebuilder:selectablefield:JSONPath=`.spec.application`
// +kubebuilder:printcolumn:name="Application",type=string,JSONPath=`.spec.application`
// +kubebuilder:printcolumn:name="Service",type=string,JSONPath=`.spec.name`
// +kubebuilder:printcolumn:name="Target",type=string,JSONPath=`.spec.api.targetUrl`
// +kubebuilder:printcolumn:name="Event types",type=integer,JSONPath=`.status.eventTypes`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Message",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Ready")].message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name == self.spec.application + '.' + self.spec.name",message="metadata.name is <application>.<name>, so that there is one service of a name: write the same names in spec.application and spec.name"
type ApplicationService struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec ApplicationServiceSpec `json:"spec"`
	// +optional
	Status ApplicationServiceStatus `json:"status,omitempty"`
}

// ApplicationServiceList is a list of services.
// +kubebuilder:object:root=true
type ApplicationServiceList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ApplicationService `json:"items"`
}

// ApplicationServiceSpec is a service and whose it is.
// +kubebuilder:validation:XValidation:rule="has(self.api) || has(self.events)",message="a service needs api, events or both"
type ApplicationServiceSpec struct {
	// Application that offers it. Where the Application itself has a service of the
	// same name, that one counts.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",message="application is the name of an Application: lower-case letters, digits and '-'"
	Application string `json:"application"`
	// Name in URLs: http://connector-outbound/<application>/<name>/<path>.
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",message="a service name is lower-case letters, digits and '-'"
	Name string `json:"name"`

	ServiceDefinition `json:",inline"`
}

// ApplicationServiceStatus is what was observed.
type ApplicationServiceStatus struct {
	CommonStatus `json:",inline"`
	// Document is what its API document says of itself.
	// +optional
	Document *DocumentStatus `json:"document,omitempty"`
	// EventTypes that its AsyncAPI document names.
	// +optional
	EventTypes int32 `json:"eventTypes,omitempty"`
}

// DocumentStatus is what an API document says of itself.
type DocumentStatus struct {
	// Format: openapi, swagger or odata.
	// +optional
	Format string `json:"format,omitempty"`
	// Title of the API.
	// +optional
	Title string `json:"title,omitempty"`
	// Version of the API.
	// +optional
	Version string `json:"version,omitempty"`
	// Operations it describes.
	// +optional
	Operations int32 `json:"operations,omitempty"`
}

// ServiceObjectName is the name of the object that holds a service.
func ServiceObjectName(application, service string) string { return application + "." + service }

// SplitServiceObjectName is the inverse of [ServiceObjectName].
func SplitServiceObjectName(name string) (application, service string, ok bool) {
	return strings.Cut(name, ".")
}

// EventType is a type of events that a source is known to send, and the schema of
// their data. The connector makes one for every event type in the AsyncAPI
// documents of applications, in the system namespace, and puts changes right.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=evt,categories=lambdamesh
// +kubebuilder:selectablefield:JSONPath=`.spec.source`
// +kubebuilder:selectablefield:JSONPath=`.spec.type`
// +kubebuilder:printcolumn:name="Source",type=string,JSONPath=`.spec.source`
// +kubebuilder:printcolumn:name="Type",type=string,JSONPath=`.spec.type`
// +kubebuilder:printcolumn:name="Service",type=string,JSONPath=`.spec.service`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Description",type=string,priority=1,JSONPath=`.spec.description`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type EventType struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec EventTypeSpec `json:"spec"`
	// +optional
	Status EventTypeStatus `json:"status,omitempty"`
}

// EventTypeList is a list of event types.
// +kubebuilder:object:root=true
type EventTypeList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []EventType `json:"items"`
}

// EventTypeSpec is a type, its source and its schema.
type EventTypeSpec struct {
	// Source of the events, as CloudEvents has it; an application's is its name.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	Source string `json:"source"`
	// Type of the events, as CloudEvents has it: order.created.v1.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Type string `json:"type"`
	// Service of the application whose document names the type.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	Service string `json:"service,omitempty"`
	// Description for people.
	// +optional
	// +kubebuilder:validation:MaxLength=4096
	Description string `json:"description,omitempty"`
	// Schema of the data: a JSON Schema that needs no other document. Absent: the
	// data may be anything.
	// +optional
	// +mapType=atomic
	// +kubebuilder:validation:Type=object
	// +kubebuilder:pruning:PreserveUnknownFields
	Schema *apiextensionsv1.JSON `json:"schema,omitempty"`
}

// EventTypeStatus is what was observed.
type EventTypeStatus struct {
	CommonStatus `json:",inline"`
}

// Conditions implements [Object].
func (s *ApplicationService) Conditions() *[]metav1.Condition {
	return &s.Status.CommonStatus.Conditions
}

// SetObservedGeneration implements [Object].
func (s *ApplicationService) SetObservedGeneration(g int64) { s.Status.ObservedGeneration = g }

// Conditions implements [Object].
func (t *EventType) Conditions() *[]metav1.Condition { return &t.Status.CommonStatus.Conditions }

// SetObservedGeneration implements [Object].
func (t *EventType) SetObservedGeneration(g int64) { t.Status.ObservedGeneration = g }
