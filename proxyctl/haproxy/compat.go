package haproxy

import "context"

// Run implements proxyctl.Proxy. The Controller calls Tend instead.
func (p *Proxy) Run(ctx context.Context) { <-ctx.Done() }
