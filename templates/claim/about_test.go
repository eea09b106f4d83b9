package claim

import (
	"fmt"
	"testing"
)

func TestAbout(t *testing.T) {
	for _, name := range []string{"shop", `a", instance "b`, "ü\x00\"", "", `\`} {
		reason := fmt.Sprintf("service %q, instance %.100q: its route_host is none", name, "id-"+name)
		if service, instance := About(reason); service != name || instance != "id-"+name {
			t.Errorf("%s is about %q, %q", reason, service, instance)
		}
		if service, instance := About(fmt.Sprintf("service %q: it has no route", name)); service != name || instance != "" {
			t.Errorf("%q is %q, %q", name, service, instance)
		}
	}
	for _, reason := range []string{"", "a certificate is bad", `service shop: x`, `service "shop`} {
		if service, instance := About(reason); service != "" || instance != "" {
			t.Errorf("%s is about %q, %q", reason, service, instance)
		}
	}
}
