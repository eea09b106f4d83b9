package main

import (
	"context"
	"os"

	"berth/registrar/rollout"
)

// newPublisher returns what tells rollouts which servers the proxy has.
func (p *process) newPublisher(o output) (*rollout.Publisher, error) {
	consul, err := consulClient(p.config)
	if err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	return &rollout.Publisher{Consul: consul, Balancer: host + ":" + p.proxy.common().File, Log: p.log,
		Servers: func(ctx context.Context) (map[string]rollout.Server, error) {
			list, err := o.proxy.Servers(ctx)
			servers := map[string]rollout.Server{}
			for _, s := range list {
				if !s.Address.IsValid() {
					continue
				}
				// The service may have several backends: it is served when all have it.
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
