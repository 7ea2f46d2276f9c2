package members

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	utiljson "k8s.io/apimachinery/pkg/util/json"

	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
	"github.com/lambdamesh/lambdamesh/pkg/sidecar"
)

// What a review may hold. Its bytes say little of the memory it takes: two of them
// make a container of hundreds.
const (
	// maxValues of JSON, several times those of the largest pods.
	maxValues = 20_000
	// maxItems of a list that is large.
	maxItems = 128
	// maxUIDBytes of what the answer repeats; the API server's are of 36.
	maxUIDBytes = 128
	// maxReasonBytes of why no sidecar fits.
	maxReasonBytes = 4 << 10
)

// large says of a list that each of its items takes much memory.
func large(list string) bool {
	switch list {
	case "containers", "initContainers", "ephemeralContainers", "volumes",
		"containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses":
		return true
	}
	return false
}

// reviewer answers AdmissionReviews (https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/)
// of version v1, and reads of them no more than it needs.
type reviewer struct {
	config   sidecar.Config
	computed places
}

func newReviewer(config sidecar.Config) *reviewer {
	return &reviewer{config: config, computed: make(places, maxComputed)}
}

// ServeHTTP implements http.Handler.
func (v *reviewer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if got := r.Header.Get("Content-Type"); got != "application/json" {
		httpserver.Problem(w, http.StatusUnsupportedMediaType, "", "send application/json")
		return
	}
	body, err := read(r)
	if err != nil {
		httpserver.Problem(w, http.StatusBadRequest, "", "read the review: "+err.Error())
		return
	}
	if !v.computed.enter(r.Context()) {
		return // the client is gone
	}
	answer, err := v.answer(body)
	v.computed.leave()
	if err != nil {
		httpserver.Problem(w, http.StatusBadRequest, "", err.Error())
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(answer) // a client that went away cannot be told
}

// read takes no more memory than the body where its length is said.
func read(r *http.Request) ([]byte, error) {
	if r.ContentLength < 0 {
		return io.ReadAll(r.Body)
	}
	body := make([]byte, r.ContentLength)
	_, err := io.ReadFull(r.Body, body)
	return body, err
}

// answer a review. An error is about what is no review.
func (v *reviewer) answer(body []byte) ([]byte, error) {
	refused := judge(body)
	var review struct {
		metav1.TypeMeta `json:",inline"`
		Request         struct {
			UID types.UID `json:"uid"`
		} `json:"request"`
	}
	if err := utiljson.Unmarshal(body, &review); err != nil {
		return nil, fmt.Errorf("decode the review: %w", err)
	}
	if review.GroupVersionKind() != admissionv1.SchemeGroupVersion.WithKind("AdmissionReview") {
		return nil, fmt.Errorf("write an AdmissionReview of %s", admissionv1.SchemeGroupVersion)
	}
	if len(review.Request.UID) == 0 || len(review.Request.UID) > maxUIDBytes {
		return nil, fmt.Errorf("the review's request.uid has %d bytes; write one of 1 to %d", len(review.Request.UID), maxUIDBytes)
	}
	response := &admissionv1.AdmissionResponse{UID: review.Request.UID}
	if refused != nil {
		deny(response, http.StatusBadRequest, refused)
	} else if err := v.review(body, response); err != nil {
		return nil, err
	}
	return json.Marshal(admissionv1.AdmissionReview{TypeMeta: review.TypeMeta, Response: response})
}

func (v *reviewer) review(body []byte, response *admissionv1.AdmissionResponse) error {
	var review struct {
		Request struct {
			Object corev1.Pod `json:"object"`
		} `json:"request"`
	}
	if err := utiljson.Unmarshal(body, &review); err != nil {
		return fmt.Errorf("decode the pod: %w", err)
	}
	pod := &review.Request.Object
	if pod.GroupVersionKind() != corev1.SchemeGroupVersion.WithKind("Pod") {
		return errors.New("the review's request.object is no Pod of v1")
	}
	operations, err := inject(pod, v.config)
	if err != nil {
		deny(response, http.StatusForbidden, fmt.Errorf("no sidecar of the mesh fits into the pod: %w", err))
		return nil
	}
	response.Allowed = true
	if len(operations) == 0 {
		return nil
	}
	patch, err := json.Marshal(operations)
	if err != nil {
		return fmt.Errorf("encode the patch: %w", err)
	}
	response.Patch, response.PatchType = patch, new(admissionv1.PatchTypeJSONPatch)
	return nil
}

func deny(response *admissionv1.AdmissionResponse, code int32, err error) {
	reason := metav1.StatusReasonForbidden
	if code == http.StatusBadRequest {
		reason = metav1.StatusReasonBadRequest
	}
	message := err.Error()
	response.Result = &metav1.Status{Code: code, Reason: reason, Message: message[:min(len(message), maxReasonBytes)]}
}

// level is where judge is: in an object, or in a list that counts.
type level struct {
	object bool
	key    bool   // the next token of the object is a key
	name   string // of the member that the object is at
	list   string // the name of the list
	items  int
}

// judge says what a review has too much of, before it is decoded.
func judge(body []byte) error {
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.UseNumber() // of any size
	levels := []level{{}}
	for values := 0; ; {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("the review is no JSON: %w", err)
		}
		at := &levels[len(levels)-1]
		if delim, ok := token.(json.Delim); ok && (delim == '}' || delim == ']') {
			levels = levels[:len(levels)-1] // the decoder sees to it that they match
			continue
		}
		if at.object && at.key {
			at.name, _ = token.(string)
			at.key = false
			continue
		}
		at.key = true
		if values++; values > maxValues {
			return fmt.Errorf("the review holds more than %d values; make the pod smaller", maxValues)
		}
		if at.items++; at.items > maxItems && large(at.list) {
			return fmt.Errorf("the pod has more than %d %s; make it smaller", maxItems, at.list)
		}
		switch token {
		case json.Delim('{'):
			levels = append(levels, level{object: true, key: true})
		case json.Delim('['):
			levels = append(levels, level{list: at.name})
		}
	}
}
