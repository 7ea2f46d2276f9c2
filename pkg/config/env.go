package config

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/pflag"
)

// EnvName is the variable that stands in for a flag: prefix LAMBDAMESH_EVENTBUS_
// and flag nats-url make LAMBDAMESH_EVENTBUS_NATS_URL.
func EnvName(prefix, flag string) string {
	return prefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// FromEnv sets the flags that the command line did not set from the variables
// that stand in for them. lookup is os.LookupEnv. The error names every variable
// that its flag does not take.
func FromEnv(flags *pflag.FlagSet, prefix string, lookup func(string) (string, bool)) error {
	var errs []error
	flags.VisitAll(func(f *pflag.Flag) {
		name := EnvName(prefix, f.Name)
		if value, ok := lookup(name); ok && !f.Changed {
			if err := flags.Set(f.Name, value); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", name, err))
			}
		}
	})
	return errors.Join(errs...)
}
