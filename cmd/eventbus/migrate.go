package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/lambdamesh/lambdamesh/eventbus/broker/jetstream"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/stan"
	"github.com/lambdamesh/lambdamesh/eventbus/migrate"
	"github.com/lambdamesh/lambdamesh/pkg/component"
	"github.com/lambdamesh/lambdamesh/pkg/config"
	"github.com/lambdamesh/lambdamesh/pkg/telemetry"
)

type migrateOptions struct {
	from stan.Config
	to   jetstream.Config
	log  telemetry.LogConfig
}

func migrateCommand(lookupEnv func(string) (string, bool)) *cobra.Command {
	o := &migrateOptions{}
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Copy events and dead letters from NATS Streaming to NATS JetStream",
		Long: `migrate copies every event and every dead letter that NATS Streaming holds and
JetStream does not have, in order. Repeat it as often as you like: what was copied
is not copied again. The bus may run on NATS Streaming meanwhile; the last pass is
to be made when it has stopped.

The positions of subscriptions are not copied: let them finish first.
docs/nats-streaming.md says how, step by step.

Give the limits of the streams as the bus will have them: they are set.`,
		Example: `  eventbus migrate --from-stan nats://stan:4222 --stan-cluster-id shop --to nats://nats:4222`,
		Args:    cobra.NoArgs,
		PreRunE: func(cmd *cobra.Command, _ []string) error { return config.FromEnv(cmd.Flags(), envPrefix, lookupEnv) },
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runMigrate(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.from.URL, "from-stan", "", "NATS servers with NATS Streaming")
	f.StringVar(&o.from.ClusterID, "stan-cluster-id", "", "cluster ID of NATS Streaming")
	f.StringVar(&o.from.Access.CredentialsFile, "from-credentials", "", "NATS credentials file for --from-stan")
	f.StringVar(&o.to.URL, "to", "", "NATS servers with JetStream")
	streamFlags(f, &o.to)
	logFlags(f, &o.log)
	return cmd
}

func runMigrate(ctx context.Context, stdout, stderr io.Writer, o *migrateOptions) error {
	log, err := telemetry.Logger(stderr, o.log)
	if err != nil {
		return err
	}
	o.from.Logger, o.to.Logger = log, log
	// Reading begins at the first event anyway.
	o.from.ClientID = "lambdamesh-migrate"
	from, err := stan.New(o.from)
	if err != nil {
		return err
	}
	to, err := jetstream.New(o.to)
	if err != nil {
		return err
	}

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stores := component.NewGroup("migrate", component.GroupConfig{}, from, to)
	ended := make(chan error, 1)
	go func() { ended <- stores.Run(ctx) }()
	select {
	case <-stores.Ready():
	case err := <-ended:
		return errors.Join(errors.New("stopped before both brokers were reached"), err)
	}
	report := func(p migrate.Progress) { fmt.Fprintln(stdout, p) }
	progress, err := migrate.Run(ctx, from, to, report)
	report(progress)
	cancel()
	if stopErr := <-ended; err != nil || stopErr != nil {
		return errors.Join(err, stopErr)
	}
	fmt.Fprintln(stdout, "not copied: positions of subscriptions (each begins at its spec.start), and when events were accepted and dead letters died (now)")
	return nil
}
