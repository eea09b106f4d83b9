// Package service serves HTTP and keeps itself registered in Consul: everything that a process needs to do for berth and
// HAProxy if it registers itself. (berth service does the same for a program without knowledge of Consul.)
package service

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/hashicorp/consul/api"
)

const (
	host    = "127.0.0.1"
	ttl     = 6 * time.Second  // without a report for this long, Consul considers the process dead
	drain   = 2 * time.Second  // from out of service to the end; HAProxy needs only milliseconds
	finish  = 10 * time.Second // for requests in flight
	timeout = time.Second      // of a call to Consul
)

// Main is the main function of a service: it serves on the port in the program's argument until SIGTERM or SIGINT. The
// address of Consul's agent is CONSUL_HTTP_ADDR, or 127.0.0.1:8500.
func Main(name string, handler func(port int) http.Handler) {
	registers := flag.Bool("register", true, "register in Consul; false leaves that to others")
	flag.Parse()
	port, err := strconv.Atoi(flag.Arg(0))
	if err != nil || flag.NArg() != 1 {
		fmt.Fprintf(os.Stderr, "usage: %s [-register=false] PORT\n", os.Args[0])
		os.Exit(2)
	}
	log.SetPrefix(fmt.Sprintf("%s %d: ", name, port))
	log.SetFlags(log.Ltime | log.Lmsgprefix)
	if err := run(name, port, handler(port), *registers); err != nil {
		log.Fatal(err)
	}
}

func run(name string, port int, handler http.Handler, registers bool) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	address := net.JoinHostPort(host, strconv.Itoa(port))
	listener, err := net.Listen("tcp", address) // before registration, because HAProxy may send requests at once
	if err != nil {
		return err
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	log.Printf("process %d listens on %s", os.Getpid(), address)

	var r *registration
	if registers {
		if r, err = newRegistration(name, port); err != nil {
			return err
		}
		err = r.keep(ctx, failed)
		r.leave()
	} else {
		select {
		case <-ctx.Done():
		case err = <-failed:
		}
	}
	if err == nil {
		finishing, cancel := context.WithTimeout(context.Background(), finish)
		defer cancel()
		err = server.Shutdown(finishing) // finishes requests in flight
	}
	if r != nil {
		r.deregister()
	}
	return err
}

// registration is this process in Consul.
type registration struct {
	agent   *api.Agent
	service *api.AgentServiceRegistration
	held    bool // held by the agent, as far as known
}

func newRegistration(name string, port int) (*registration, error) {
	consul, err := api.NewClient(api.DefaultConfig())
	if err != nil {
		return nil, err
	}
	id := fmt.Sprintf("%s-%d", name, port)
	return &registration{agent: consul.Agent(), service: &api.AgentServiceRegistration{
		ID: id, Name: name, Address: host, Port: port,
		Check: &api.AgentServiceCheck{
			CheckID: id, TTL: ttl.String(), Status: api.HealthPassing, // from the start
			DeregisterCriticalServiceAfter: "1m", // after a kill
		},
	}}, nil
}

// keep keeps the process registered until ctx is done or failed receives an error. Consul may come and go in the meantime.
func (r *registration) keep(ctx context.Context, failed <-chan error) error {
	beat := time.NewTicker(ttl / 3)
	defer beat.Stop()
	var before error
	for {
		err := r.pass()
		if err != nil && before == nil {
			log.Printf("consul: %v; trying again", err)
		}
		before = err
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case <-beat.C:
		}
	}
}

// pass reports that the process is alive. It registers again if the agent does not know the process, because the agent may
// have lost its state.
func (r *registration) pass() error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if !r.held {
		// This replaces the checks: an earlier process with this ID may have been killed while out of service.
		if err := r.agent.ServiceRegisterOpts(r.service, api.ServiceRegisterOpts{ReplaceExistingChecks: true}.WithContext(ctx)); err != nil {
			return err
		}
		r.held = true
		log.Print("registered")
	}
	err := r.agent.UpdateTTLOpts(r.service.Check.CheckID, "", api.HealthPassing, new(api.QueryOptions).WithContext(ctx))
	var status api.StatusError
	if errors.As(err, &status) && status.Code == http.StatusNotFound {
		r.held = false
		cancel()
		return r.pass()
	}
	return err
}

// leave takes the process out of service and waits until HAProxy knows.
func (r *registration) leave() {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	err := r.agent.EnableServiceMaintenanceOpts(r.service.ID, "the process is told to end", new(api.QueryOptions).WithContext(ctx))
	if err != nil {
		log.Printf("consul: %v", err)
	}
	log.Print("out of service")
	time.Sleep(drain)
}

func (r *registration) deregister() {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if err := r.agent.ServiceDeregisterOpts(r.service.ID, new(api.QueryOptions).WithContext(ctx)); err != nil {
		log.Printf("consul: %v", err)
		return
	}
	log.Print("deregistered")
}
