package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	docker "github.com/fsouza/go-dockerclient"
	"github.com/spf13/pflag"

	"github.com/prometheus/client_golang/prometheus"

	"berth/proxyctl"
	"berth/registrar/rollout"
)

// dockerWith is a Docker with containers of compose, which are listed and nothing else.
type dockerWith struct {
	rollout.Docker
	list []docker.APIContainers
}

func (d dockerWith) ListContainers(o docker.ListContainersOptions) (out []docker.APIContainers, err error) {
	for _, c := range d.list {
		if has := "com.docker.compose.service=" + c.Labels["com.docker.compose.service"]; o.Filters["label"][0] == has {
			out = append(out, c)
		}
	}
	return out, nil
}

func composed(project, service, dir string) docker.APIContainers {
	return docker.APIContainers{Labels: map[string]string{"com.docker.compose.project": project, "com.docker.compose.service": service, "com.docker.compose.project.working_dir": dir}}
}

// The project is the one that is named, or in this directory, or the only one.
func TestFindProject(t *testing.T) {
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	once := composed("once", "app", "/once")
	once.Labels["com.docker.compose.oneoff"] = "True"
	two := []docker.APIContainers{composed("a", "app", "/a"), composed("b", "app", "/b"), once}
	for name, tt := range map[string]struct {
		list     []docker.APIContainers
		named    string
		services string
		want     string // the project, or part of the error
	}{
		"the only one":        {two[:1], "", "app", "a"},
		"one of two":          {two, "", "app", "app is a service of the projects a, b: choose one with --project-name"},
		"named":               {two, "b", "app", "b"},
		"named, not there":    {two, "c", "app", "no container of service app of project c on this host: start it with 'docker compose up -d app'"},
		"in this directory":   {append(two, composed("here", "app", here)), "", "app", "here"},
		"none":                {two, "", "db", "no container of service db on this host"},
		"the first decides":   {append(two, composed("a", "db", "/a")), "", "db app", "a"},
		"of another project":  {append(two, composed("c", "db", "/c")), "", "db app", "no container of service app of project c"},
		"only of compose run": {two[2:], "", "app", "no container of service app on this host"},
	} {
		c := &rolling{rolloutFlags: rolloutFlags{project: tt.named}, docker: dockerWith{list: tt.list}}
		var err error
		for _, service := range strings.Fields(tt.services) {
			err = errors.Join(err, c.find(t.Context(), service))
		}
		got := c.name
		if err != nil {
			got = err.Error()
		}
		if got != tt.want && !(err != nil && strings.Contains(got, tt.want)) {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
}

// A flag counts for what the file says, and only if it is set.
func TestRolloutFlags(t *testing.T) {
	f := rolloutFlags{options: rollout.Defaults()}
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	f.flags(flags)
	if err := flags.Parse([]string{"--parallelism", "0", "--monitor", "1s", "--drain-timeout=1m"}); err != nil {
		t.Fatal(err)
	}
	file := rollout.Defaults()
	file.Parallelism, file.Delay, file.Monitor, file.Order = 3, time.Second, time.Hour, rollout.StopFirst
	want := file
	want.Parallelism, want.Monitor, want.DrainTimeout = 0, time.Second, time.Minute
	if got := f.understand(flags, file); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// Flags that would be of no effect are refused.
func TestRolloutFlagsExclude(t *testing.T) {
	for args, says := range map[string]string{
		"--resume --abort":             "exclude each other",
		"--resume --build":             "--build cannot be combined with --resume or --abort",
		"--abort --parallelism 2":      "--parallelism cannot be combined with",
		"--resume --project-name shop": "",
		"--watch --build":              "--watch and --build exclude each other",
		"--watch --pull --force":       "",
	} {
		f := rolloutFlags{}
		flags := pflag.NewFlagSet("", pflag.ContinueOnError)
		f.options = rollout.Defaults()
		f.flags(flags)
		if err := flags.Parse(strings.Fields(args)); err != nil {
			t.Fatal(err)
		}
		if err := f.check(flags); (err == nil) != (says == "") || err != nil && !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", args, err)
		}
	}
}

// What is begun is said with its order.
func TestRolloutHow(t *testing.T) {
	for want, tt := range map[string]struct {
		total, parallelism int
		order              string
	}{
		"starting the new one first":                {1, 1, rollout.StartFirst},
		"stopping the old one first":                {1, 0, rollout.StopFirst},
		"one at a time":                             {3, 1, rollout.StartFirst},
		"one at a time, stopping the old one first": {3, 1, rollout.StopFirst},
		"2 at a time":                               {3, 2, rollout.StartFirst},
		"2 at a time, stopping the old ones first":  {3, 2, rollout.StopFirst},
		"all at once":                               {3, 3, rollout.StartFirst},
		"all at once, stopping the old ones first":  {3, 0, rollout.StopFirst},
	} {
		if got := how(tt.total, rollout.Options{Parallelism: tt.parallelism, Order: tt.order}); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// What cannot be pulled is said, and compose is not asked for it.
func TestRolloutFetch(t *testing.T) {
	for flags, want := range map[string]string{
		"":                      "",
		"--pull shop:1":         "app: pulling its image\ncompose pull app\n",
		"--pull":                "app: nothing to pull: its image is built here, set --build to build it\n",
		"--pull --build":        "app: nothing to pull: its image is built here\napp: building its image\ncompose build app\n",
		"--pull --build shop:1": "app: pulling its image\ncompose pull app\napp: building its image\ncompose build app\n",
	} {
		said := filepath.Join(t.TempDir(), "said")
		out, err := os.OpenFile(said, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644) // compose writes there, too
		if err != nil {
			t.Fatal(err)
		}
		c := &rolling{out: out, rolloutFlags: rolloutFlags{pull: strings.Contains(flags, "--pull"), build: strings.Contains(flags, "--build")}}
		compose := rollout.Compose{Command: []string{"sh", "-c", `echo "compose $*" >>"$0"`, said}}
		s := rollout.Service{Name: "app"}
		if strings.HasSuffix(flags, "shop:1") {
			s.Image = "shop:1"
		}
		err = c.fetch(t.Context(), compose, s)
		out.Close()
		if got, _ := os.ReadFile(said); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v, want %q", flags, got, err, want)
		}
	}
}

// Docker asks a plugin what it is, and calls it by its name.
func TestPlugin(t *testing.T) {
	var out bytes.Buffer
	root := rootCommand()
	root.SetOut(&out)
	if done, err := asPlugin(root, []string{"/root/.docker/cli-plugins/docker-berth", "docker-cli-plugin-metadata"}); !done || err != nil {
		t.Error("it goes on")
	}
	about := map[string]string{}
	if err := json.Unmarshal(out.Bytes(), &about); err != nil || about["SchemaVersion"] != "0.1.0" || about["Vendor"] == "" || about["ShortDescription"] == "" {
		t.Errorf("%s, %v", out.Bytes(), err)
	}
	for args, want := range map[string]bool{"docker-berth berth version": true, "docker-berth --debug berth version": true, "berth berth version": false} {
		root := rootCommand()
		out.Reset()
		root.SetOut(&out)
		root.SetErr(&out)
		words := strings.Fields(args)
		root.SetArgs(words[1:])
		if done, err := asPlugin(root, words); done || err != nil {
			t.Errorf("%s: it does nothing: %v", args, err)
		}
		if err := root.Execute(); (err == nil) != want {
			t.Errorf("%s: %v", args, err)
		}
	}
}

// Which Docker is meant must not be misunderstood.
func TestPluginOfAnotherDocker(t *testing.T) {
	for _, args := range []string{"--context x", "--context=x", "-c x", "-cx", "--host tcp://x", "--host=tcp://x", "-H tcp://x"} {
		words := slices.Concat([]string{"docker-berth"}, strings.Fields(args), []string{"berth", "rollout", "app"})
		if _, err := asPlugin(rootCommand(), words); err == nil || !strings.Contains(err.Error(), "set DOCKER_HOST instead") {
			t.Errorf("%s: %v", args, err)
		}
	}
}

// proxyWith is a proxy with servers.
type proxyWith struct {
	proxyctl.Proxy
	list []proxyctl.Server
}

func (p proxyWith) Servers(context.Context) ([]proxyctl.Server, error) { return p.list, nil }

// An address is served when all backends have it that have a server there.
func TestPublishedServers(t *testing.T) {
	at := netip.MustParseAddrPort
	p := &process{proxy: newHAProxy(), metrics: prometheus.NewRegistry()}
	publisher, err := p.newPublisher(output{proxy: proxyWith{list: []proxyctl.Server{
		{Backend: "a", Address: at("10.0.0.1:80"), Usable: true, InFlight: 1}, {Backend: "b", Address: at("10.0.0.1:80"), Usable: true, InFlight: 2},
		{Backend: "a", Address: at("10.0.0.2:80"), Usable: true}, {Backend: "b", Address: at("10.0.0.2:80"), InFlight: 4},
		{Backend: "b", Address: at("10.0.0.3:80")}, {Backend: "a", Address: at("10.0.0.3:80"), Usable: true},
		{Backend: "a", Address: at("[fd00::1]:80"), Usable: true, InFlight: proxyctl.UnknownInFlight}, {Backend: "a", Name: "socket", Usable: true},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	got, err := publisher.Servers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]rollout.Server{
		"10.0.0.1:80": {There: true, Usable: true, InFlight: 3}, "10.0.0.2:80": {There: true, InFlight: 4}, "10.0.0.3:80": {There: true},
		"[fd00::1]:80": {There: true, Usable: true, InFlight: -1},
	}
	for address, is := range want {
		if got[address] != is {
			t.Errorf("%s: %+v, want %+v", address, got[address], is)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%+v", got)
	}
	host, _ := os.Hostname()
	if publisher.Balancer != host+":/etc/haproxy/haproxy.cfg" {
		t.Error(publisher.Balancer)
	}
}
