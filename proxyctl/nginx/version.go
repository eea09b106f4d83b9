package nginx

import (
	"context"
	"time"

	"berth/proxyctl"
)

// VersionHere returns the version of nginx that a text must suit, as proxyctl.VersionHere does. It asks the nginx that listens on
// the control socket.
func VersionHere(ctx context.Context, binary, socket string, timeout time.Duration) string {
	return proxyctl.VersionHere(ctx, binary, func(ctx context.Context) (string, error) {
		s, err := control{socket, timeout}.status(ctx)
		return s.version, err
	}, timeout)
}
