package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/hashicorp/consul/api"
	"github.com/spf13/cobra"

	"berth/registrar"
	"berth/registrar/agent"
	"berth/registrar/group/store"
)

// drainCommand makes `berth drain` and, with on false, `berth undrain`.
func drainCommand(on bool) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "drain CONTAINER|INSTANCE...",
		Short: "Take instances out of service; requests in flight finish",
		Long: `Put instances into Consul's maintenance mode. Name them by container name, container ID or service ID. They get no new
requests until berth undrain or until their container ends.`,
		Args:              atLeastOne("CONTAINER or INSTANCE"),
		ValidArgsFunction: completeContainers,
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := newProcess(cmd)
			if err != nil {
				return err
			}
			consul, err := consulClient(p.config)
			if err != nil {
				return err
			}
			client, err := dockerClient()
			if err != nil {
				return err
			}
			finder := registrar.Finder{Agent: agent.Agent{Client: consul.Agent(), Log: slog.New(slog.DiscardHandler)}, Docker: client}
			var errs []error // an error of one does not keep the rest in or out of service
			for _, arg := range args {
				errs = append(errs, setDrain(cmd.Context(), cmd.OutOrStdout(), finder, arg, on, reason))
			}
			if err := errors.Join(errs...); err != nil {
				return harmless{err}
			}
			return nil
		},
	}
	if on {
		cmd.Flags().StringVar(&reason, "reason", "drained by hand", "reason to show in Consul")
	} else {
		cmd.Use = "undrain CONTAINER|INSTANCE..."
		cmd.Short = "Put instances back into service"
		cmd.Long = "End Consul's maintenance mode for instances. Name them by container name, container ID or service ID."
	}
	c := newConfig()
	c.commonFlags(cmd.Flags(), "none")
	return cmd
}

func setDrain(ctx context.Context, w io.Writer, f registrar.Finder, arg string, on bool, reason string) error {
	ids, err := f.Find(ctx, arg)
	if err != nil {
		return explainAnswer("services and checks", err, true)
	}
	what, state := "undrain ", "back in service"
	if on {
		what, state = "drain ", "out of service"
	}
	for _, id := range ids {
		if err := f.Maintain(ctx, id, on, reason); err != nil {
			return explainAnswer(what+id, err, false)
		}
		if _, err := fmt.Fprintf(w, "%s: %s\n", visible(id, ""), state); err != nil {
			return err
		}
	}
	return nil
}

// explainAnswer says in one line what the answer of a Consul agent means. Another server may answer with a whole page.
func explainAnswer(what string, err error, reading bool) error {
	var answer api.StatusError
	switch {
	case !errors.As(err, &answer):
		return err
	case reading:
		return store.ExplainRead(what, nil, err)
	}
	return store.Explain(what, err)
}
