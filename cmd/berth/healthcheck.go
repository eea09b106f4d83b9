package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

const healthTimeout = 2 * time.Second

// The defaults of --listen.
const (
	listenRegistrar = "127.0.0.1:9651" // and of berth run
	listenTemplater = "127.0.0.1:9652"
)

func healthcheckCommand() *cobra.Command {
	var live bool
	cmd := &cobra.Command{
		Use:   "healthcheck",
		Short: "Check whether the berth in this container is ready",
		Long: `Ask the berth at --listen or BERTH_LISTEN whether it is ready: it reaches Consul and Docker, and the proxy runs the newest
configuration. Without an address, ask at 127.0.0.1:9651 (registrar, run) and 127.0.0.1:9652 (templater). The exit code is
0 if berth is ready; otherwise it is 1 and the reason is printed.

Use it as a container's health check. Do not let the proxy wait for a healthy templater (depends_on with the condition
service_healthy): the templater is ready only when the proxy runs what it rendered.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := readConfig(cmd.Flags())
			if err != nil {
				return asUsageError(err)
			}
			addresses := []string{c.Listen}
			switch {
			case c.origin("listen") == "listen" && !cmd.Flags().Changed("listen"):
				addresses = []string{listenRegistrar, listenTemplater}
			case c.Listen == "":
				return asUsageError(errors.New("listen is none: there is no berth to ask"))
			}
			path := "/readyz"
			if live {
				path = "/healthz"
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), healthTimeout)
			defer cancel()
			return askHealth(ctx, cmd.OutOrStdout(), addresses, path)
		},
	}
	c := newConfig()
	c.commonFlags(cmd.Flags(), "")
	cmd.Flags().BoolVar(&live, "live", false, "check only that berth is alive (/healthz), not that it is ready (/readyz)")
	for _, of := range []string{"consul-address", "consul-token-file", "log-format", "log-level"} {
		cmd.Flags().Lookup(of).Hidden = true // for the file and the environment that it shares
	}
	return cmd
}

// askHealth asks every address where a berth listens. All of them must be healthy.
func askHealth(ctx context.Context, w io.Writer, addresses []string, path string) error {
	asked := 0
	for _, address := range addresses {
		err := askOne(ctx, address, path)
		if len(addresses) > 1 && errors.Is(err, syscall.ECONNREFUSED) {
			continue
		}
		asked++
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			return fmt.Errorf("berth does not answer at %s within %s", address, healthTimeout)
		case errors.Is(err, syscall.ECONNREFUSED):
			return fmt.Errorf("no berth listens at %s", address)
		case err != nil:
			return err
		}
	}
	if asked == 0 {
		return fmt.Errorf("no berth listens at %s: set the address with --listen or BERTH_LISTEN", strings.Join(addresses, " or "))
	}
	_, err := fmt.Fprintln(w, "ok")
	return err
}

func askOne(ctx context.Context, address, path string) error {
	answer, err := get(ctx, address, path)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, 64<<10))
	switch {
	case err != nil:
		return err
	case answer.StatusCode == http.StatusServiceUnavailable:
		return fmt.Errorf("not ready: %s", strings.ReplaceAll(strings.TrimSpace(string(body)), "\n", "; "))
	case answer.StatusCode != http.StatusOK:
		return fmt.Errorf("%s answers %s: this is not berth", answer.Request.URL, answer.Status)
	}
	return nil
}

// get asks the berth at an address of this machine, ignoring proxies from the environment.
func get(ctx context.Context, address, path string) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+reachable(address)+path, nil)
	if err != nil {
		return nil, err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	return client.Do(r)
}

// reachable returns the address to reach a local listener: the loopback address if it listens on all addresses.
func reachable(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return listen
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}
