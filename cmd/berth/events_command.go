package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"berth/cmd/berth/status"
)

func eventsCommand() *cobra.Command {
	var follow, asJSON bool
	cmd := &cobra.Command{
		Use:   "events [--follow]",
		Short: "Print recent events on all hosts",
		Long: `Print the last 500 events that the berth on this host knows, oldest first: registrations, drains, reloads, refusals,
ignored labels, recoveries and so on, with their reasons. Without a berth here, print the most recent events that each
berth publishes in Consul.

Exit codes:

  0  the events were printed
  1  error
  3  neither a berth nor Consul answers`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := readConfig(cmd.Flags())
			if err != nil {
				return asUsageError(err)
			}
			e := eventsOf{config: c, out: cmd.OutOrStdout(), json: asJSON}
			return e.run(cmd, follow)
		},
	}
	statusFlags(cmd)
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "keep printing new events until interrupted")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, one event per line")
	return cmd
}

// eventsOf is one call of berth events.
type eventsOf struct {
	config Config
	out    io.Writer
	json   bool
	last   int // ID of the event that was printed last
}

func (e *eventsOf) run(cmd *cobra.Command, follow bool) error {
	limited, cancel := context.WithTimeout(cmd.Context(), statusTime)
	defer cancel()
	var list []status.Numbered
	err := askBerth(limited, e.config.addresses(cmd), eventsPath, &list)
	if err != nil {
		consul, err2 := consulClient(e.config)
		if err2 != nil {
			return err2
		}
		parts, _, err2 := status.ReadParts(limited, consul, nil, nil)
		if err2 != nil {
			return code{fmt.Errorf("neither a berth nor Consul answers: %w; %s", err, oneLine(err2)), exitNoAnswer}
		}
		if follow {
			return code{fmt.Errorf("%w: --follow needs one; set its address with --listen", err), exitNoAnswer}
		}
		for _, p := range parts {
			for _, ev := range p.Events {
				list = append(list, status.Numbered{Event: ev})
			}
		}
		slices.SortStableFunc(list, func(a, b status.Numbered) int { return a.At.Compare(b.At) })
	}
	for _, ev := range list {
		e.last = max(e.last, ev.ID)
		if err := e.print(ev.Event); err != nil {
			return err
		}
	}
	if !follow {
		return nil
	}
	for cmd.Context().Err() == nil {
		err = e.follow(cmd.Context(), e.config.addresses(cmd))
		if cmd.Context().Err() == nil {
			fmt.Fprintln(cmd.ErrOrStderr(), "berth: lost the connection to berth, trying again:", oneLine(err))
			pause(cmd.Context(), time.Second)
		}
	}
	return nil
}

// follow prints the events of a stream until it ends.
func (e *eventsOf) follow(ctx context.Context, addresses []string) (err error) {
	for _, address := range addresses {
		var answer *http.Response
		answer, err = stream(ctx, address, e.last)
		if err != nil {
			continue
		}
		defer answer.Body.Close()
		lines := bufio.NewScanner(answer.Body)
		lines.Buffer(nil, 1<<20)
		kind := ""
		for lines.Scan() {
			key, value, _ := strings.Cut(lines.Text(), ": ")
			switch key {
			case "id":
				e.last, _ = strconv.Atoi(value)
			case "event":
				kind = value
			case "data":
				var ev status.Event
				if kind == "change" && json.Unmarshal([]byte(value), &ev) == nil {
					if err := e.print(ev); err != nil {
						return err
					}
				}
			}
		}
		return cmp.Or(lines.Err(), io.EOF)
	}
	return cmp.Or(err, errors.New("listen is none: there is no berth to ask"))
}

// stream opens the stream of events after the one with the ID last.
func stream(ctx context.Context, address string, last int) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+reachable(address)+eventsPath, nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Accept", "text/event-stream")
	if last > 0 {
		r.Header.Set("Last-Event-ID", strconv.Itoa(last))
	}
	answer, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(r)
	if err == nil && answer.StatusCode != http.StatusOK {
		answer.Body.Close()
		err = fmt.Errorf("%s answers %s", address, answer.Status)
	}
	return answer, err
}

func (e *eventsOf) print(ev status.Event) error {
	if e.json {
		return json.NewEncoder(e.out).Encode(ev)
	}
	level := ""
	if ev.Level != "INFO" {
		level = ev.Level + " "
	}
	from := ""
	if ev.Berth != "" {
		from = ev.Role + " " + ev.Berth + ": "
	}
	_, err := fmt.Fprintf(e.out, "%s  %s%s%s\n", ev.At.Local().Format("2006-01-02 15:04:05.000"), level, visible(from, ""), visible(ev.String(), ""))
	return err
}
