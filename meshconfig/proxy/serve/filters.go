package serve

import (
	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/filters"
)

// override returns the most specific override for a filter.
func (e *exchange) override(name string) (filters.Override, bool) {
	if e.route == nil {
		return filters.Override{}, false
	}
	if e.weighted != nil {
		if o, ok := e.weighted.Filters[name]; ok {
			return o, true
		}
	}
	for _, level := range [...]filters.Overrides{e.route.Filters, e.vhost.Filters, e.table.Filters} {
		if o, ok := level[name]; ok {
			return o, true
		}
	}
	return filters.Override{}, false
}

// runFilters returns false when one of them has answered.
func (e *exchange) runFilters() bool {
	for i := range e.hcm.Filters {
		f := &e.hcm.Filters[i]
		o, ok := e.override(f.Name)
		if ok && o.Disabled || !ok && f.Disabled {
			continue
		}
		if !f.Filter.Decode(&e.Request, e, o.Config) {
			return false
		}
	}
	return true
}
