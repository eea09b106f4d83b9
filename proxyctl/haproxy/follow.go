package haproxy

import (
	"context"
	"fmt"

	"berth/proxyctl"
)

// follow writes the file for servers that HAProxy has already, unless its program refuses it.
func (p *Proxy) follow(ctx context.Context, text string) error {
	if err := p.validate(ctx, text); err != nil {
		return err
	}
	p.conf.ForgetGood() // of an earlier berth that was killed; HAProxy has taken the file since
	return p.conf.Write(p.opts.File, text)
}

var errNoListener = fmt.Errorf("%w: it has no frontend or listen section with a bind line, so HAProxy would serve nothing", proxyctl.ErrRefused)
