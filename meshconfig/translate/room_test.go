package translate_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	istioapi "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lambdamesh/lambdamesh/meshconfig/translate"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// fat is a Service of namespace mallory with so many ports, each of which leads to
// as many machines, each under an account of its own when there shall be several.
func fat(s *translate.Snapshot, ports, machines int, accounts bool) {
	service := s.Services[0].DeepCopy()
	service.Namespace, service.Name, service.Spec.Selector = "mallory", "fat", map[string]string{"app": "fat"}
	port := service.Spec.Ports[0]
	service.Spec.Ports = nil
	for i := range ports {
		port.Name, port.Port = fmt.Sprint("p", i), int32(1000+i)
		service.Spec.Ports = append(service.Spec.Ports, port)
	}
	s.Services = append(s.Services, service)
	for i := range machines {
		account := "fat"
		if accounts {
			account = (fmt.Sprintf("s%05d-", i) + strings.Repeat("a", 246))[:253]
		}
		s.WorkloadEntries = append(s.WorkloadEntries, &networkingv1.WorkloadEntry{
			ObjectMeta: metav1.ObjectMeta{Namespace: "mallory", Name: fmt.Sprint("w", i)},
			Spec: istioapi.WorkloadEntry{
				Address: fmt.Sprintf("8.8.%d.%d", i/250, i%250+1), ServiceAccount: account,
				Labels: map[string]string{"app": "fat", v1alpha1.LabelIstioTLSMode: "istio"},
			},
		})
	}
	for i := range ports {
		rule := ruleOf("mallory", fmt.Sprint("fat", i), int64(i+10), fmt.Sprintf("fat%d.example.com", i))
		rule.Spec.Rules[0].Lambda = ""
		rule.Spec.Rules[0].Service = &v1alpha1.ServiceRef{Name: "fat", Port: int32(1000 + i)}
		s.APIRules = append(s.APIRules, rule)
	}
}

// What a rule leads to is its namespace's affair: too much of it closes the rule,
// says how much, and nobody else notices.
func TestWhatRulesLeadToHasARoom(t *testing.T) {
	for name, c := range map[string]struct {
		ports, machines int
		accounts        bool
		limits          map[string]int
		message         string
		closed          int
	}{
		"as much as there may be": {2, 16, true, nil, "", 0},
		"endpoints":               {2, 2001, false, nil, `^Service mallory/fat: it has 2001 endpoints and a Service may have 2000; remove some of them$`, 2},
		"identities":              {2, 17, true, nil, `its endpoints have 17 identities and those of a Service may have 16; run them as fewer service accounts`, 2},
		"endpoints of a namespace": {
			5, 10, false, map[string]int{"namespace.endpoints": 35}, `it has 10 endpoints at this port, and what else leads to namespace mallory has 30 of the 35 there are for it`, 2,
		},
		"bytes of a namespace": {
			5, 200, false, map[string]int{"apirule.bytes": 25_000, "namespace.bytes": 25_000}, `it takes \d+ bytes of each proxy that leads to it, and what else leads to namespace mallory has \d+ of the 25000 there are for it`, 2,
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := snapshot(t, serviceYAML("shop", selecting), podYAML("shop", "10.0.0.7", ""), sliceYAML("shop", byCluster, "10.0.0.7"),
				apiRule("r", older, "h.example.com", toService))
			fat(&s, c.ports, c.machines, c.accounts)
			require.NoError(t, s.Settings.Limits.Set(c.limits))
			mesh, problems := translate.Translate(s)
			require.NoError(t, mesh.Validate())
			closed := 0
			for _, vh := range mesh.Gateways[0].VirtualHosts {
				if vh.Owner.Namespace == "shop" {
					require.Nil(t, vh.Rules[0].Closed)
				} else if vh.Rules[0].Closed != nil {
					closed++
				}
			}
			require.Equal(t, c.closed, closed, problems)
			require.Len(t, problems, c.closed)
			for _, p := range problems {
				require.Equal(t, "mallory", p.Namespace)
				require.Equal(t, v1alpha1.ConditionResolvedRefs, p.Condition)
				require.Equal(t, translate.ReasonTooLarge, p.Reason)
				require.Regexp(t, c.message, p.Message)
			}
			for i := range mesh.Destinations {
				if d := mesh.Destinations[i]; d.Namespace == "mallory" && c.closed == c.ports {
					require.Empty(t, d.Endpoints)
					require.Empty(t, d.Identities)
				}
			}
		})
	}
}

// Ports multiply endpoints. What is beyond the room of a namespace is not even
// looked at: five million of them would take the control plane's memory and time.
func TestEndpointsBeyondTheRoomAreNotLookedAt(t *testing.T) {
	s := snapshot(t, serviceYAML("shop", selecting))
	fat(&s, 1000, 2000, true)
	began := time.Now()
	mesh, _ := translate.Translate(s)
	require.Less(t, time.Since(began), 10*time.Second)
	for i := range mesh.Destinations {
		require.Empty(t, mesh.Destinations[i].Endpoints)
	}
}

// The event bus and lambdas get what Subscriptions and access lists bring in, from
// each namespace as much as it has room for.
func TestWhatSubscriptionsAndAccessListsLeadToHasARoom(t *testing.T) {
	const bus = `
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: eventbus-0, namespace: lambdamesh-system}
spec: {address: 127.0.0.1, serviceAccount: eventbus, labels: {lambdamesh.dev/member: eventbus}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: eventbus, namespace: lambdamesh-system}
spec:
  workloadSelector: {labels: {lambdamesh.dev/member: eventbus}}
  egress: [{bind: 127.0.0.1, port: {number: 15001, protocol: HTTP_PROXY, name: http}, hosts: ["*/*"]}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: caller-0, namespace: bank}
spec: {address: 127.0.0.1, serviceAccount: caller, labels: {lambdamesh.dev/lambda: caller}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: caller, namespace: bank}
spec:
  workloadSelector: {labels: {lambdamesh.dev/lambda: caller}}
  egress: [{bind: 127.0.0.1, port: {number: 15001, protocol: HTTP_PROXY, name: http}, hosts: ["*/*"]}]
---
apiVersion: lambdamesh.dev/v1alpha1
kind: Subscription
metadata: {name: victim, namespace: shop}
spec: {source: shop, types: ["**"], sink: {service: {name: x}}}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: Lambda
metadata: {name: caller, namespace: bank}
spec: {runtime: nodejs, source: {inline: {code: x}}}`
	var hostile strings.Builder
	for i := range 10 {
		fmt.Fprintf(&hostile, `
---
apiVersion: lambdamesh.dev/v1alpha1
kind: Subscription
metadata: {name: fat%[1]d, namespace: mallory}
spec: {source: mallory, types: ["**"], sink: {service: {name: fat, port: %[2]d}}}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: Lambda
metadata: {name: l%[1]d, namespace: mallory}
spec: {runtime: nodejs, source: {inline: {code: x}}, access: [{namespace: bank, lambda: caller}]}`, i, 1000+i)
	}
	s := snapshot(t, serviceYAML("shop", selecting), podYAML("shop", "10.0.0.7", ""), sliceYAML("shop", byCluster, "10.0.0.7"), bus, hostile.String())
	fat(&s, 10, 16, true)
	s.APIRules = nil
	require.NoError(t, s.Settings.Limits.Set(map[string]int{"apirule.bytes": 4000, "namespace.bytes": 4000}))
	mesh, _ := translate.Translate(s)
	require.NoError(t, mesh.Validate())
	for node, own := range map[string]string{"eventbus-0.lambdamesh-system": "shop/x:80", "caller-0.bank": ""} {
		sidecar, found := mesh.Sidecar(node)
		require.True(t, found)
		if own != "" {
			require.Contains(t, sidecar.Egress[0].Destinations, own)
		}
		size := 0
		for _, key := range sidecar.Egress[0].Destinations {
			if d, _ := mesh.Destination(key); d.Namespace == "mallory" {
				size += d.Size()
			}
		}
		require.LessOrEqual(t, size, 4000, node)
	}
	caller, _ := mesh.Sidecar("caller-0.bank")
	require.NotEmpty(t, caller.Egress[0].Destinations, "what there is room for is there")
}
