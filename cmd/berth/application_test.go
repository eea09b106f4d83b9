package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
)

// answered is what an application answers.
type answered struct {
	PID              int
	Config           string // as it was read last
	Hangups          int64
	RedisHost, Redis string
}

// application is a command for berth service: application ADDRESS FILE serves what it has read from a file. It reads it anew on
// SIGHUP, and does not start if the file says that it is broken.
func application() {
	address, file := os.Args[1], os.Args[2]
	var config atomic.Pointer[string]
	var hangups atomic.Int64
	read := func() {
		text, err := os.ReadFile(file)
		if err != nil || strings.Contains(string(text), "broken") {
			fmt.Fprintln(os.Stderr, "application: this is no configuration:", string(text), err)
			os.Exit(3)
		}
		s := strings.TrimSpace(string(text))
		config.Store(&s)
	}
	hup := make(chan os.Signal, 8)
	signal.Notify(hup, syscall.SIGHUP)
	read()
	l, err := net.Listen("tcp", address)
	if err != nil {
		fmt.Fprintln(os.Stderr, "application:", err)
		os.Exit(4)
	}
	go func() {
		for range hup {
			read()
			hangups.Add(1)
		}
	}()
	_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(answered{os.Getpid(), *config.Load(), hangups.Load(), os.Getenv("REDIS_HOST"), os.Getenv("REDIS_PORT")})
	}))
}
