package main

import (
	"context"
	"os"

	"github.com/prometheus/client_golang/prometheus"

	"berth/registrar/rollout"
)

// newPublisher returns the publisher that reports the proxy's servers to rollouts.
func (p *process) newPublisher(o output) (*rollout.Publisher, error) {
	consul, err := consulClient(p.config)
	if err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	rollouts := prometheus.NewGauge(prometheus.GaugeOpts{Name: "berth_rollouts_running", Help: "Rollouts that run now, of all projects."})
	p.metrics.MustRegister(rollouts)
	return &rollout.Publisher{Consul: consul, Running: func(n int) { rollouts.Set(float64(n)) }, Balancer: host + ":" + p.proxy.common().File, Log: p.log,
		Servers: func(ctx context.Context) (map[string]rollout.Server, error) {
			list, err := o.proxy.Servers(ctx)
			servers := map[string]rollout.Server{}
			for _, s := range list {
				if !s.Address.IsValid() {
					continue
				}
				// The service may have several backends: an instance is served when all of them have it.
				address := s.Address.String()
				is, again := servers[address]
				is.There = true
				is.Usable = s.Usable && (is.Usable || !again)
				if is.InFlight += s.InFlight; s.InFlight < 0 {
					is.InFlight = -1
				}
				servers[address] = is
			}
			return servers, err
		}}, nil
}
