//go:build e2e

package policies_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"

	"berth/deploy/testenv"
)

// The commands of docs/operate/security.md are run as documented, in order. Their tokens have exactly the intended rights.
func TestE2ESecurityDocs(t *testing.T) {
	text, err := os.ReadFile("../../../docs/operate/security.md")
	if err != nil {
		t.Fatal(err)
	}
	script := "set -eu\n"
	for line := range strings.Lines(string(text)) {
		if command, ok := strings.CutPrefix(line, "    "); ok {
			script += command
		}
	}
	work := testenv.Dir(t)
	testenv.File(t, work, "commands.sh", script)
	for _, name := range []string{"registrar", "templater", "service", "operator", "rollout", "viewer"} {
		policy, err := os.ReadFile(name + ".hcl")
		if err != nil {
			t.Fatal(err)
		}
		testenv.File(t, work, name+".hcl", string(policy))
	}
	consul := testenv.StartSecured(t)
	image := testenv.Build(t, "FROM "+testenv.Image(t, "IMAGE_CONSUL")+" AS consul\nFROM "+testenv.Image(t, "IMAGE_HAPROXY")+
		"\nCOPY --from=consul /bin/consul /bin/consul\n")
	args := []string{"run", "--rm", "--user", fmt.Sprint(os.Getuid()), "--name", testenv.Name(t) + "-shell", "--label", "SERVICE_IGNORE=1", "--network", consul.Network,
		"--volume", consul.Dir + ":" + consul.Dir + ":ro", "--volume", work + ":/policies", "--workdir", "/policies", "--entrypoint", "sh"}
	for _, variable := range consul.ContainerEnv(consul.Token) {
		args = append(args, "--env", variable)
	}
	testenv.MustDocker(t, append(args, image, "-x", "commands.sh")...)

	as := func(file string) *api.Client {
		token, err := os.ReadFile(filepath.Join(work, file))
		if err != nil {
			t.Fatal(err)
		}
		return consul.As(t, strings.TrimSpace(string(token)))
	}
	for _, tt := range []struct {
		file, key string
		may       bool
	}{
		{"ada.token", "berth/config/app", true},
		{"ada.token", "berth/config/app2", false},
		{"ada.token", "berth/config/app-prod", false},
		{"bob.token", "berth/config/app", true},
		{"bob.token", "berth/config/app-prod", true},
		{"app.token", "service/app/leader", true},
		{"app.token", "berth/config/app", false},
		{"registrar.token", "service/app/leader", true},
		{"registrar.token", "berth/config/app", false},
		{"templater.token", "berth/config/app", false},
		{"templater.token", "berth/serving/lb-1", true},
		{"templater.token", "berth/rollout/shop/app", false},
		{"rollout.token", "berth/rollout/shop/app", true},
		{"rollout.token", "berth/config/app", false},
	} {
		if _, err := as(tt.file).KV().Put(&api.KVPair{Key: tt.key}, nil); tt.may != (err == nil) || !tt.may && !refused(err) {
			t.Errorf("%s writes %s: %v", tt.file, tt.key, err)
		}
	}
	tokens, _, err := consul.ACL().TokenList(nil)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, token := range tokens {
		if token.Description == "registrar of node-1" {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d tokens of the registrar, want the new one only", n)
	}
	keys, err := consul.Operator().KeyringList(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, ring := range keys {
		if len(ring.Keys) != 1 {
			t.Errorf("%d gossip keys, want the new one only", len(ring.Keys))
		}
	}
}
