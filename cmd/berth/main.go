// Command berth keeps a stock HAProxy in step with the containers of its Docker hosts, through Consul.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"berth/proxyctl/supervise"
)

func main() {
	if os.Getpid() == 1 && slices.Contains(os.Args, "--") {
		os.Exit(asInit())
	}
	os.Exit(berth())
}

// asInit runs berth behind a process 1 that reaps what HAProxy leaves, and returns its exit code.
func asInit() int {
	code, err := supervise.Init(os.Args)
	if err != nil {
		fmt.Fprintln(os.Stderr, "berth:", err)
		return 1
	}
	return code
}

// berth runs the program and returns its exit code.
func berth() int {
	// consul-template writes its inner workings to the standard logger, several lines for each change. What an
	// operator needs of it reaches her through berth's own log.
	log.SetOutput(io.Discard)

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := rootCommand().ExecuteContext(ctx); err != nil {
		if errors.Is(err, differs{}) {
			return exitDiffers
		}
		fmt.Fprintln(os.Stderr, "berth:", err)
		var exit *supervise.Exit
		if errors.As(err, &exit) {
			return exit.Code
		}
		return 1
	}
	return 0
}
