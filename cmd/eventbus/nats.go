package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/lambdamesh/lambdamesh/eventbus/natsserver"
	"github.com/lambdamesh/lambdamesh/pkg/component"
	"github.com/lambdamesh/lambdamesh/pkg/config"
	"github.com/lambdamesh/lambdamesh/pkg/telemetry"
)

type natsOptions struct {
	file string
	log  telemetry.LogConfig
}

func natsCommand(lookupEnv func(string) (string, bool)) *cobra.Command {
	o := &natsOptions{}
	cmd := &cobra.Command{
		Use:   "nats --config FILE",
		Short: "Run the NATS server that keeps the events, from an ordinary nats.conf",
		Long: `nats is nats-server with JetStream, configured by an ordinary nats.conf; alone or as
one of a cluster. It is what an installation runs where no other NATS is named.

The file must have a jetstream block with sync_interval: always. It is read again
when it, a file it includes, or a certificate or key that it names has changed; a
change that the server refuses is logged, and the last one stays in force.
SIGTERM makes it a lame duck: it takes no new clients, hands its leaderships over
and sends its clients to the other servers over lame_duck_duration.`,
		Example: `  eventbus nats --config /etc/nats/nats.conf`,
		Args:    cobra.NoArgs,
		PreRunE: func(cmd *cobra.Command, _ []string) error { return config.FromEnv(cmd.Flags(), envPrefix, lookupEnv) },
		RunE:    func(cmd *cobra.Command, _ []string) error { return runNATS(cmd.Context(), cmd.ErrOrStderr(), o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.file, "config", "", "configuration `FILE` of nats-server")
	logFlags(f, &o.log)
	return cmd
}

func runNATS(ctx context.Context, stderr io.Writer, o *natsOptions) error {
	log, err := telemetry.Logger(stderr, o.log)
	if err != nil {
		return err
	}
	program, err := natsserver.NewProgram(natsserver.ProgramConfig{File: o.file, Logger: log})
	if err != nil {
		return err
	}
	return component.NewGroup("nats", component.GroupConfig{}, program).Run(ctx)
}
