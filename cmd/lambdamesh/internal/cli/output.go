package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

// output is a command's -o flag: a table for people, or a document.
type output struct{ format string }

const tableFormat = "table"

func (o *output) register(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&o.format, "output", "o", tableFormat, "table, json or yaml")
}

func (o *output) validate() error {
	switch o.format {
	case tableFormat, "json", "yaml":
		return nil
	default:
		return usagef("output %q: use table, json or yaml", o.format)
	}
}

// print writes value as a document, or rows as a table.
func (o *output) print(w io.Writer, value any, header []string, rows [][]string) error {
	switch o.format {
	case "json":
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(value)
	case "yaml":
		raw, err := yaml.Marshal(value)
		if err != nil {
			return err
		}
		_, err = w.Write(raw)
		return err
	}
	return printTable(w, header, rows)
}

func printTable(w io.Writer, header []string, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, strings.Join(header, "\t"))
	for _, row := range rows {
		fmt.Fprintln(tw, strings.Join(row, "\t"))
	}
	return tw.Flush()
}
