package deploy

import (
	"encoding/json"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// The defaults of scale, as the API server writes them.
const (
	defaultMax         = 5
	defaultConcurrency = 50
	defaultIdleAfter   = 5 * time.Minute
)

// Scale is a lambda's spec.scale with its defaults, as its Deployment tells it to
// who scales it.
type Scale struct {
	Min         int32           `json:"min"`
	Max         int32           `json:"max"`
	Concurrency int32           `json:"concurrency"`
	IdleAfter   metav1.Duration `json:"idleAfter"`
}

// NewScale is the lambda's.
func NewScale(lambda *v1alpha1.Lambda) Scale {
	spec := lambda.Spec.Scale
	scale := Scale{Min: 1, Max: defaultMax, Concurrency: defaultConcurrency, IdleAfter: metav1.Duration{Duration: defaultIdleAfter}}
	if spec.Min != nil {
		scale.Min = *spec.Min
	}
	if spec.Max != nil {
		scale.Max = *spec.Max
	}
	if spec.Concurrency != nil {
		scale.Concurrency = *spec.Concurrency
	}
	if spec.IdleAfter != nil {
		scale.IdleAfter = *spec.IdleAfter
	}
	scale.Max = max(scale.Max, scale.Min, 1)
	return scale
}

// ScaleOf is what a lambda's Deployment tells; ok is false when it tells nothing.
func ScaleOf(deployment *appsv1.Deployment) (scale Scale, ok bool) {
	err := json.Unmarshal([]byte(deployment.Annotations[v1alpha1.AnnotationScale]), &scale)
	return scale, err == nil && scale.Max >= scale.Min && scale.Min >= 0 && scale.Concurrency > 0
}

// String is the annotation.
func (s Scale) String() string {
	text, err := json.Marshal(s)
	if err != nil {
		return "" // numbers and a duration always encode
	}
	return string(text)
}

// Moves tells whether there is anything to scale.
func (s Scale) Moves() bool { return s.Max > s.Min }

// Within is the number in the bounds that is nearest.
func (s Scale) Within(replicas int32) int32 { return min(max(replicas, s.Min), s.Max) }

// fixed is the number of replicas where nobody may scale; nil: it is who scales
// who says.
func (s Scale) fixed() *int32 {
	if s.Moves() {
		return nil
	}
	return &s.Min
}
