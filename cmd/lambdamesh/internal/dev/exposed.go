package dev

import (
	"context"
	"fmt"
	"io"
	"strings"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// printExposed says what the APIRules among the objects expose, and where.
func printExposed(ctx context.Context, c client.Client, objects []object, out io.Writer) {
	title := "\nexposed:\n"
	for _, u := range objects {
		if u.GetKind() != "APIRule" {
			continue
		}
		var rule v1alpha1.APIRule
		if c.Get(ctx, client.ObjectKeyFromObject(u), &rule) != nil || len(rule.Status.URLs) == 0 {
			continue // awaitReady has said why
		}
		for _, r := range rule.Spec.Rules {
			fmt.Fprintf(out, "%s  %s\n", title, exposed(rule.Status.URLs[0], r))
			title = ""
		}
	}
}

// exposed is a line about a rule, such as "GET http://shop.example.com/orders  (token)".
func exposed(base string, rule v1alpha1.Rule) string {
	var methods []string
	for _, method := range rule.Methods {
		methods = append(methods, string(method))
	}
	if len(methods) == 0 {
		methods = []string{"*"}
	}
	line := fmt.Sprintf("%-7s %s%s", strings.Join(methods, ","), strings.TrimSuffix(base, "/"), rule.Path)
	switch {
	case rule.JWT != nil:
		line += "  (token)"
	case rule.APIKey != nil:
		line += "  (API key)"
	}
	return line
}
