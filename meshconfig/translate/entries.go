package translate

import (
	"maps"
	"slices"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
)

// entry is a WorkloadEntry with its labels: those of the object and, stronger,
// of its spec.
type entry struct {
	*networkingv1.WorkloadEntry

	labels map[string]string
}

// entryIndex finds the entries that a selector matches without a look at all of
// them: there may be thousands of each.
type entryIndex struct {
	all      []*entry
	byLabel  map[labelValue][]*entry
	sidecars map[labelValue][]*networkingv1.Sidecar // by one label of the selector
}

type labelValue struct{ namespace, key, value string }

func newEntryIndex(entries []*networkingv1.WorkloadEntry, sidecars []*networkingv1.Sidecar) entryIndex {
	x := entryIndex{byLabel: map[labelValue][]*entry{}, sidecars: map[labelValue][]*networkingv1.Sidecar{}}
	for _, object := range sorted(entries) {
		e := &entry{WorkloadEntry: object, labels: map[string]string{}}
		maps.Copy(e.labels, object.Labels)
		maps.Copy(e.labels, object.Spec.GetLabels())
		x.all = append(x.all, e)
		for k, v := range e.labels {
			x.byLabel[labelValue{e.Namespace, k, v}] = append(x.byLabel[labelValue{e.Namespace, k, v}], e)
		}
	}
	for _, s := range sorted(sidecars) {
		selector := s.Spec.GetWorkloadSelector().GetLabels()
		if len(selector) > 0 {
			k := slices.Min(slices.Collect(maps.Keys(selector)))
			x.sidecars[labelValue{s.Namespace, k, selector[k]}] = append(x.sidecars[labelValue{s.Namespace, k, selector[k]}], s)
		}
	}
	return x
}

// selected entries of a namespace, sorted by name; an empty selector selects
// none.
func (x entryIndex) selected(namespace string, selector map[string]string) []*entry {
	var candidates []*entry
	first := true
	for k, v := range selector {
		if c := x.byLabel[labelValue{namespace, k, v}]; first || len(c) < len(candidates) {
			candidates, first = c, false
		}
	}
	return slices.DeleteFunc(slices.Clone(candidates), func(e *entry) bool { return !matches(selector, e.labels) })
}

// count of those that are selected.
func (x entryIndex) count(namespace string, selector map[string]string) int {
	return len(x.selected(namespace, selector))
}

// sidecar is the first Sidecar object, by name, that selects the entry; nil
// when none does.
func (x entryIndex) sidecar(e *entry) *networkingv1.Sidecar {
	var found *networkingv1.Sidecar
	for k, v := range e.labels {
		for _, s := range x.sidecars[labelValue{e.Namespace, k, v}] {
			if matches(s.Spec.GetWorkloadSelector().GetLabels(), e.labels) && (found == nil || s.Name < found.Name) {
				found = s
			}
		}
	}
	return found
}

func matches(selector, labels map[string]string) bool {
	for k, v := range selector {
		if have, found := labels[k]; !found || have != v {
			return false
		}
	}
	return true
}
