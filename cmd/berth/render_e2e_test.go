//go:build e2e

package main

import (
	"errors"
	"os/exec"
	"testing"
	"time"

	"berth/deploy/testenv"
)

// Nothing differs as long as berth keeps the proxy in step: after a change at run time, whose file follows, and after a reload.
func TestE2ERenderDiff(t *testing.T) {
	for _, proxy := range []string{kindHAProxy, kindNginx} {
		t.Run(proxy, func(t *testing.T) {
			s := startStack(t, proxy)
			s.register("web", "route_path", "/")
			s.berth()
			diff := func(options ...string) (string, int) {
				cmd := exec.Command("docker", append([]string{"exec", s.id, "berth", "render", "--proxy", proxy, "--diff"}, options...)...)
				out, err := cmd.CombinedOutput()
				var exit *exec.ExitError
				if err != nil && !errors.As(err, &exit) {
					t.Fatal(err)
				}
				return string(out), cmd.ProcessState.ExitCode()
			}
			inStep := func(when string) {
				t.Helper()
				testenv.Eventually(t, 20*time.Second, when+" nothing differs", func() error {
					if out, code := diff(); code != 0 || out != "" {
						return errors.New(out)
					}
					return nil
				})
			}
			inStep("at first")
			if out, code := diff("--error-details"); code != 1 || out == "" {
				t.Errorf("with another option: exit code %d\n%s", code, out)
			}
			s.registerAs("web-2", "web", "route_path", "/")
			s.says(`"web: 1 → 2 servers`)
			inStep("after another server")
			s.register("other", "route_path", "/other")
			s.says(`"other: 0 → 1 server`)
			inStep("after a reload")
		})
	}
}
