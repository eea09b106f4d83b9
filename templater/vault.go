package templater

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/consul-template/config"
	"github.com/hashicorp/consul-template/watch"
)

// vaultPause is the pause between a failed renewal and the next attempt.
const vaultPause = 10 * time.Second

// renewVaultToken renews Vault's token until ctx is done, as consul-template does, but never gives up.
func (t *Templater) renewVaultToken(ctx context.Context) {
	if t.library == nil || !config.BoolVal(t.opts.Library.Vault.Enabled) {
		return
	}
	t.running.Go(func() {
		for ctx.Err() == nil {
			err := t.watchVaultToken(ctx)
			if err == nil {
				return
			}
			t.log.Error("cannot renew the Vault token, trying again", "err", fmt.Errorf("%w", err), "retry_in", vaultPause)
			select {
			case <-ctx.Done():
			case <-time.After(vaultPause):
			}
		}
	})
}

// watchVaultToken returns nil if ctx is done or no token needs renewal.
func (t *Templater) watchVaultToken(ctx context.Context) error {
	done := make(chan struct{})
	defer close(done)
	tokens, err := watch.VaultTokenWatcher(t.library, t.opts.Library.Vault, done)
	if err != nil || tokens == nil {
		return err
	}
	defer tokens.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-tokens.ErrCh():
			return err
		case <-tokens.ServerErrCh():
		case <-tokens.DataCh():
		}
	}
}
