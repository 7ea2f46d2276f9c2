package proxy_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRBAC(t *testing.T) {
	rules := map[string]struct {
		rbac    string
		path    string
		change  func(*http.Request)
		allowed bool
	}{
		"unset rules allow":                {`{}`, "/", nil, true},
		"no policies deny":                 {`{rules: {action: ALLOW}}`, "/", nil, false},
		"DENY without policies allows":     {`{rules: {action: DENY}}`, "/", nil, true},
		"any allows":                       {`{rules: {policies: {p: {permissions: [{any: true}], principals: [{any: true}]}}}}`, "/", nil, true},
		"DENY any denies":                  {`{rules: {action: DENY, policies: {p: {permissions: [{any: true}], principals: [{any: true}]}}}}`, "/", nil, false},
		"any false denies":                 {`{rules: {policies: {p: {permissions: [{not_rule: {any: true}}], principals: [{any: true}]}}}}`, "/", nil, false},
		"shadow rules do nothing":          {`{shadow_rules: {action: DENY, policies: {p: {permissions: [{any: true}], principals: [{any: true}]}}}}`, "/", nil, true},
		"principal missing denies":         {`{rules: {policies: {p: {permissions: [{any: true}], principals: [{authenticated: {principal_name: {prefix: "spiffe://"}}}]}}}}`, "/", nil, false},
		"any certificate, none denies":     {`{rules: {policies: {p: {permissions: [{any: true}], principals: [{authenticated: {}}]}}}}`, "/", nil, false},
		"not authenticated allows":         {`{rules: {policies: {p: {permissions: [{any: true}], principals: [{not_id: {authenticated: {}}}]}}}}`, "/", nil, true},
		"path matches":                     {`{rules: {policies: {p: {permissions: [{url_path: {path: {prefix: /a}}}], principals: [{any: true}]}}}}`, "/a/b?c", nil, true},
		"path ignores the query":           {`{rules: {policies: {p: {permissions: [{url_path: {path: {exact: /a}}}], principals: [{any: true}]}}}}`, "/a?b", nil, true},
		"path does not match":              {`{rules: {policies: {p: {permissions: [{url_path: {path: {prefix: /a}}}], principals: [{any: true}]}}}}`, "/b", nil, false},
		"header present":                   {`{rules: {policies: {p: {permissions: [{header: {name: x-rule, string_match: {exact: r1}}}], principals: [{any: true}]}}}}`, "/", header("X-Rule", "r1"), true},
		"header differs":                   {`{rules: {policies: {p: {permissions: [{header: {name: x-rule, string_match: {exact: r1}}}], principals: [{any: true}]}}}}`, "/", header("X-Rule", "r2"), false},
		"header given twice differs":       {`{rules: {policies: {p: {permissions: [{header: {name: x-rule, string_match: {exact: r1}}}], principals: [{any: true}]}}}}`, "/", func(r *http.Request) { r.Header["X-Rule"] = []string{"r1", "r2"} }, false},
		"header missing, inverted, denies": {`{rules: {policies: {p: {permissions: [{header: {name: x-rule, string_match: {exact: r1}, invert_match: true}}], principals: [{any: true}]}}}}`, "/", nil, false},
		"method":                           {`{rules: {policies: {p: {permissions: [{header: {name: ":method", string_match: {exact: GET}}}], principals: [{any: true}]}}}}`, "/", nil, true},
		"and":                              {`{rules: {policies: {p: {permissions: [{and_rules: {rules: [{any: true}, {url_path: {path: {exact: /a}}}]}}], principals: [{any: true}]}}}}`, "/b", nil, false},
		"or":                               {`{rules: {policies: {p: {permissions: [{or_rules: {rules: [{not_rule: {any: true}}, {url_path: {path: {exact: /b}}}]}}], principals: [{any: true}]}}}}`, "/b", nil, true},
		"not":                              {`{rules: {policies: {p: {permissions: [{not_rule: {url_path: {path: {exact: /b}}}}], principals: [{any: true}]}}}}`, "/b", nil, false},
		"destination port differs":         {`{rules: {policies: {p: {permissions: [{destination_port: 1}], principals: [{any: true}]}}}}`, "/", nil, false},
		"server name":                      {`{rules: {policies: {p: {permissions: [{requested_server_name: {exact: x}}], principals: [{any: true}]}}}}`, "/", nil, false},
		"source address":                   {`{rules: {policies: {p: {permissions: [{any: true}], principals: [{direct_remote_ip: {address_prefix: 127.0.0.0, prefix_len: 8}}]}}}}`, "/", nil, true},
		"other address":                    {`{rules: {policies: {p: {permissions: [{any: true}], principals: [{source_ip: {address_prefix: 10.0.0.0, prefix_len: 8}}]}}}}`, "/", nil, false},
		"forged address":                   {`{rules: {policies: {p: {permissions: [{any: true}], principals: [{remote_ip: {address_prefix: 10.0.0.0, prefix_len: 8}}]}}}}`, "/", header("X-Forwarded-For", "10.0.0.1"), false},
		"metadata missing":                 {`{rules: {policies: {p: {permissions: [{metadata: {filter: f, path: [{key: k}], value: {string_match: {exact: v}}}}], principals: [{any: true}]}}}}`, "/", nil, false},
		"metadata missing, inverted":       {`{rules: {policies: {p: {permissions: [{metadata: {filter: f, path: [{key: k}], value: {string_match: {exact: v}}, invert: true}}], principals: [{any: true}]}}}}`, "/", nil, true},
		"principals and, one missing":      {`{rules: {policies: {p: {permissions: [{any: true}], principals: [{and_ids: {ids: [{any: true}, {authenticated: {}}]}}]}}}}`, "/", nil, false},
		"principals or":                    {`{rules: {policies: {p: {permissions: [{any: true}], principals: [{or_ids: {ids: [{any: true}, {authenticated: {}}]}}]}}}}`, "/", nil, true},
		"second policy":                    {`{rules: {policies: {a: {permissions: [{not_rule: {any: true}}], principals: [{any: true}]}, b: {permissions: [{any: true}], principals: [{any: true}]}}}}`, "/", nil, true},
		"permission and principal apart":   {`{rules: {policies: {a: {permissions: [{any: true}], principals: [{not_id: {any: true}}]}, b: {permissions: [{not_rule: {any: true}}], principals: [{any: true}]}}}}`, "/", nil, false},
	}
	// One gateway with a host per case.
	names, hosts := map[string]string{}, ""
	i := 0
	for name, test := range rules {
		i++
		names[name] = fmt.Sprintf("case%d", i)
		hosts += fmt.Sprintf(`
- name: case%d
  domains: [case%d]
  routes: [{match: {prefix: /}, direct_response: {status: 200}}]
  typed_per_filter_config: {rbac: {"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute, rbac: %s}}`, i, i, test.rbac)
	}
	_, _, addr := serve(t, config{hcm: "use_remote_address: true", hosts: strings.TrimSpace(hosts), filters: `
- name: rbac
  typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, rules: {action: ALLOW}}`})
	for name, test := range rules {
		t.Run(name, func(t *testing.T) {
			got := get(t, addr, test.path, host(names[name]), func(r *http.Request) {
				if test.change != nil {
					test.change(r)
				}
			})
			if test.allowed {
				require.Equal(t, 200, got.code)
				return
			}
			require.Equal(t, 403, got.code)
			require.Equal(t, "RBAC: access denied", got.body)
		})
	}
	t.Run("no route: the filter's own rules decide before 404", func(t *testing.T) {
		require.Equal(t, 403, get(t, addr, "/", host("unknown")).code)
	})
}
