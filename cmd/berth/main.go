// Command berth keeps a stock HAProxy in step with the containers of its Docker hosts, through Consul.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	os.Exit(berth())
}

// berth runs the program and returns its exit code.
func berth() int {
	// consul-template writes its inner workings to the standard logger, several lines for each change. What an
	// operator needs of it reaches her through berth's own log.
	log.SetOutput(io.Discard)

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := rootCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "berth:", err)
		return 1
	}
	return 0
}
