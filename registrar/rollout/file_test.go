package rollout

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func parse(t *testing.T, text string) map[string]Service {
	t.Helper()
	file, err := ParseFile([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// The output of docker-compose 1.29 and compose v2 for one file.
func TestParseFile(t *testing.T) {
	for name, text := range map[string]string{
		"1.29": `services:
  app:
    depends_on:
      db:
        condition: service_started
    deploy:
      replicas: 3
      update_config: {delay: 10s, failure_action: pause, max_failure_ratio: 0.25, monitor: 1m, order: stop-first, parallelism: 2}
    image: app:2
    ports:
    - 8080/tcp
  db:
    build: {context: /src}
    scale: 2
version: '3.9'
`,
		"v2": `name: shop
services:
  app:
    depends_on:
      db:
        condition: service_started
        required: true
    deploy:
      replicas: 3
      update_config:
        parallelism: 2
        delay: 10s
        failure_action: pause
        monitor: 1m0s
        max_failure_ratio: 0.25
        order: stop-first
    image: app:2
    ports:
      - mode: ingress
        target: 8080
        protocol: tcp
  db:
    build: {context: /src}
    scale: 2
`} {
		t.Run(name, func(t *testing.T) {
			file := parse(t, text)
			app, db := file["app"], file["db"]
			want := Defaults()
			want.Parallelism, want.Delay, want.FailureAction, want.MaxFailureRatio, want.Monitor, want.Order = 2, 10*time.Second, Pause, 0.25, time.Minute, StopFirst
			if app.Options != want || app.Image != "app:2" || app.Replicas != 3 || app.Alone != "" || !slices.Equal(app.After, []string{"db"}) {
				t.Errorf("%+v", app)
			}
			if db.Options != Defaults() || db.Image != "" || db.Replicas != 2 {
				t.Errorf("%+v", db)
			}
		})
	}
}

func TestParseFileRefuses(t *testing.T) {
	for _, tt := range []struct{ update, says string }{
		{"{parallelism: many}", `app: deploy.update_config: parallelism is "many"`},
		{"{delay: 10}", `app: deploy.update_config: delay is "10"`},
		{"{order: both}", `order must be start-first or stop-first, not "both"`},
		{"{failure_action: cry}", `failure-action must be pause, continue or rollback, not "cry"`},
		{"{max_failure_ratio: 1.5}", "max-failure-ratio must be from 0 to 1, not 1.5"},
		{"{max_failure_ratio: NaN}", "max-failure-ratio must be from 0 to 1"},
		{"{parallelism: -1}", "parallelism must be 0 (all at once) or more, not -1"},
	} {
		_, err := ParseFile([]byte("services: {app: {deploy: {update_config: " + tt.update + "}}}"))
		if err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v", tt.update, err)
		}
	}
	if _, err := ParseFile([]byte("services: [")); err == nil {
		t.Error("no file")
	}
}

// Things that two containers cannot share are reported with a remedy.
func TestAlone(t *testing.T) {
	for _, tt := range []struct{ service, says string }{
		{"{image: a}", ""},
		{"{container_name: shop}", "container_name shop"},
		{`{ports: ["8080"]}`, ""},
		{`{ports: ["8080-8081/udp"]}`, ""},
		{`{ports: ["80:8080"]}`, "host port 80,"},
		{`{ports: ["127.0.0.1:80:8080/tcp"]}`, "host port 80,"},
		{`{ports: ["[::1]:80:8080"]}`, "host port 80,"},
		{`{ports: ["9000-9010:8080"]}`, ""},
		{`{ports: ["127.0.0.1::8080"]}`, ""},
		{`{ports: [{target: 8080}]}`, ""},
		{`{ports: [{target: 8080, published: 80}]}`, "host port 80,"},
		{`{ports: [{target: 8080, published: "80"}]}`, "host port 80,"},
		{`{ports: [{target: 8080, published: "0"}]}`, ""},
		{`{ports: [{target: 8080, published: "9000-9010"}]}`, ""},
		{`{networks: {front: null}}`, ""},
		{`{networks: [front]}`, ""},
		{`{networks: {front: {ipv4_address: 172.20.0.5}}}`, "address 172.20.0.5 on the network front"},
		{`{networks: {front: {ipv6_address: "fd00::5"}}}`, "address fd00::5 on the network front"},
		{`{network_mode: bridge}`, ""},
		{`{network_mode: host}`, "network_mode host"},
		{`{network_mode: "service:vpn"}`, "network_mode service:vpn"},
		{`{labels: {SERVICE_SINGLE: "true"}}`, "SERVICE_SINGLE=true"},
		{`{labels: [SERVICE_SINGLE=yes]}`, "SERVICE_SINGLE=yes"},
		{`{labels: {SERVICE_SINGLE: "false"}}`, ""},
		{`{labels: {SERVICE_ROUTE_TO: leader}}`, "app has SERVICE_ROUTE_TO=leader"},
		{`{labels: [service_8080_route_to=Leader]}`, "app has SERVICE_8080_ROUTE_TO=leader"},
		{`{environment: [SERVICE_ROUTE_TO=leader]}`, "app has SERVICE_ROUTE_TO=leader"},
		{`{environment: [SERVICE_ROUTE_TO=leader], labels: {SERVICE_ROUTE_TO: all}}`, ""},
	} {
		got := parse(t, "services: {app: "+tt.service+"}")["app"].Alone
		if !strings.Contains(got, tt.says) || (tt.says == "") != (got == "") {
			t.Errorf("%s: %q, want %q", tt.service, got, tt.says)
		}
		if got != "" && !strings.Contains(got, "--order stop-first") {
			t.Errorf("%s: no remedy: %s", tt.service, got)
		}
	}
}

func TestSort(t *testing.T) {
	file := parse(t, `services: {a: {depends_on: [c]}, b: {}, c: {depends_on: {d: {}}}, d: {depends_on: [b]}, x: {depends_on: [y]}, y: {depends_on: [x]}}`)
	for _, tt := range []struct{ given, want string }{
		{"a b c", "b c a"}, {"b a", "b a"}, {"a b", "b a"}, {"a", "a"}, {"x y", "y x"},
	} {
		if got := strings.Join(Sort(strings.Fields(tt.given), file), " "); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.given, got, tt.want)
		}
	}
}

// docker-compose 1.29 reports file names as given where it was called: in the project's directory, above or below it, or
// elsewhere.
func TestFiles(t *testing.T) {
	top := t.TempDir()
	dir := filepath.Join(top, "deploy")
	for _, name := range []string{"deploy/compose.yml", "deploy/more.yml", "other.yml", "deploy/sub/x"} {
		path := filepath.Join(top, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{
		"compose.yml":                         "deploy/compose.yml",
		"deploy/compose.yml":                  "deploy/compose.yml",
		"../compose.yml":                      "deploy/compose.yml",
		"../other.yml":                        "other.yml",
		"other.yml":                           "other.yml",
		filepath.Join(top, "deploy/more.yml"): "deploy/more.yml",
		"none.yml":                            "",
	} {
		got, err := findFile(dir, name)
		if want == "" && err == nil || want != "" && (err != nil || got != filepath.Join(top, want)) {
			t.Errorf("%s: %s, %v, want %s", name, got, err, want)
		}
	}

	labels := map[string]string{labelProject: "shop", labelDir: dir, labelFiles: "compose.yml,../other.yml", labelEnv: "more.yml"}
	c, err := NewCompose(labels, "docker compose")
	want := "docker compose --project-name shop --project-directory " + dir + " --file " + dir + "/compose.yml --file " + top + "/other.yml --env-file " + dir + "/more.yml"
	if got := strings.Join(c.Command, " "); err != nil || got != want || c.Dir != dir {
		t.Errorf("%s in %s, %v\nwant %s", got, c.Dir, err, want)
	}
	c, err = NewCompose(labels, "docker-compose -f mine.yml")
	if got := strings.Join(c.Command, " "); err != nil || got != "docker-compose -f mine.yml --project-name shop --project-directory "+dir || c.Dir != "" {
		t.Errorf("%s in %q, %v", got, c.Dir, err)
	}
	labels[labelFiles] = "other.yml" // it was removed from the project's directory
	if c, err := NewCompose(labels, "docker compose"); err == nil || !strings.Contains(err.Error(), "the file other.yml of the project shop does not exist here") {
		t.Errorf("another project's file: %q, %v", c.Command, err)
	}
	for label, says := range map[string]string{labelFiles: "the file none.yml of the project shop does not exist here", labelEnv: "the environment file none.yml", labelDir: "the directory none.yml"} {
		bad := map[string]string{labelProject: "shop", labelDir: dir}
		bad[label] = "none.yml"
		if _, err := NewCompose(bad, "docker compose"); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", label, err)
		}
	}
}

func TestCompose(t *testing.T) {
	c := Compose{Command: []string{"sh", "-c", `echo "$@" >&2; echo "app f00d"; case "$*" in *up*) exit 3;; esac`, "compose"}, Dir: t.TempDir()}
	if hash, err := c.Hash(t.Context(), "app"); hash != "f00d" || err != nil {
		t.Errorf("%q, %v", hash, err)
	}
	c.Command[2] = `echo "app $COMPOSE_PROFILES"; case "$*" in *up*) exit 3;; esac`
	if hash, err := c.Hash(t.Context(), "app"); hash != "*" || err != nil {
		t.Errorf("services with a profile are left out: %q, %v", hash, err)
	}
	c.Command[2] = `echo "$@" >&2; echo "app f00d"; case "$*" in *up*) exit 3;; esac`
	err := c.Up(t.Context(), "app", 3)
	if err == nil || !strings.Contains(err.Error(), "exit status 3: up --detach --no-deps --no-recreate --scale app=3 app") || strings.Contains(err.Error(), "f00d") {
		t.Error(err)
	}
}

// The error contains the reason for compose's failure in one line, without its progress, its warnings, or the steps of a
// build.
func TestComplaint(t *testing.T) {
	const offline = `Get "https://registry-1.docker.io/v2/": dial tcp: no such host`
	const ignored = "The following deploy sub-keys are not supported and have been ignored: update_config\n"
	for name, tt := range map[string]struct{ stderr, stdout, want string }{
		"1.29 pulls": {ignored + "Pulling app ... \r\nPulling app ... error\r\n\nERROR: for app  " + offline + "\n" + offline + "\n", "", "ERROR: for app  " + offline},
		"v2 pulls":   {" app Pulling \n app Error " + offline + "\nError response from daemon: " + offline + "\n", "", "Error response from daemon: " + offline},
		"1.29 builds": {ignored + "Building app\nDEPRECATED: The legacy builder is deprecated.\n            Install the buildx component.\n\n" +
			"COPY failed: stat nothing: file does not exist\nService 'app' failed to build : Build failed\n", "Step 2/2 : COPY nothing /\n",
			"Building app; COPY failed: stat nothing: file does not exist; Service 'app' failed to build : Build failed"},
		"v2 builds": {"time=\"2026-01-01T00:00:00Z\" level=warning msg=\"buildx isn't installed\"\nfailed to solve: \"/nothing\": not found\n",
			"#6 [app 2/2] COPY nothing /\n------\n", "failed to solve: \"/nothing\": not found"},
		"on stdout only": {"", "it is\n\x1b[1mbroken\n", "it is; \uFFFD[1mbroken"},
		"many lines":     {"1\n2\n3\n4\n5\n6\n", "", "2; 3; 4; 5; 6"},
	} {
		if got := complaint(tt.stderr, tt.stdout); got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

// A build ended by ^C ends with all of its processes: docker starts compose as another one.
func TestComposeIsEnded(t *testing.T) {
	dir := t.TempDir()
	started, ended := filepath.Join(dir, "started"), filepath.Join(dir, "ended")
	if err := syscall.Mkfifo(started, 0o600); err != nil {
		t.Fatal(err)
	}
	c := Compose{Command: []string{"sh", "-c", `sh -c 'trap "echo > ended; exit" TERM; echo > started; while :; do sleep 0.05; done'; :`}, Dir: dir}
	ctx, stop := context.WithCancelCause(t.Context())
	go func() {
		_, _ = os.ReadFile(started)
		stop(errKilled)
	}()
	if err := c.Build(ctx, "app"); !errors.Is(err, errKilled) {
		t.Error(err)
	}
	if _, err := os.Stat(ended); err != nil {
		t.Error(err)
	}
}

// SERVICE_SINGLE counts wherever it counts for the registrar: also in the environment and in the image.
func TestSingle(t *testing.T) {
	for text, alone := range map[string]bool{
		"services: {db: {environment: {SERVICE_SINGLE: 'true'}}}":                            true,
		"services: {db: {environment: [SERVICE_SINGLE=yes]}}":                                true,
		"services: {db: {labels: {service_single: 'true'}}}":                                 true,
		"services: {db: {labels: {SERVICE_SINGLE: 'disabled'}}}":                             false,
		"services: {db: {labels: {SERVICE_SINGLE: 'no'}, environment: {SERVICE_SINGLE: 1}}}": false,
	} {
		if s := parse(t, text)["db"]; (s.Alone != "") != alone {
			t.Errorf("%s: %q", text, s.Alone)
		}
	}
	s := parse(t, "services: {db: {image: db}}")["db"]
	c := Container{}
	c.Name, c.ID, c.Labels = "shop-db-1", "abcdef", map[string]string{"SERVICE_SINGLE": "true"}
	if why := s.Fits([]Container{c}, "sha256:1"); !strings.Contains(why, "shop-db-1 (abcdef) has SERVICE_SINGLE=true") {
		t.Errorf("%q", why)
	}
	s.Options.Order = StopFirst
	if why := s.Fits([]Container{c}, "sha256:1"); why != "" {
		t.Errorf("%q", why)
	}
	if why := s.Fits([]Container{c}, ""); !strings.Contains(why, "--pull") {
		t.Errorf("the old one is stopped before the image is there: %q", why)
	}
}

// If only the leader is served, a new container is not, unless it is the only one.
func TestToLeader(t *testing.T) {
	c := Container{}
	c.Name, c.ID, c.Env = "shop-db-1", "abcdef", []string{"SERVICE_ROUTE_TO=leader"}
	for _, tt := range []struct {
		service    string
		order      string
		containers []Container
		says       string
	}{
		{"{image: db}", StartFirst, []Container{c}, "shop-db-1 (abcdef) has SERVICE_ROUTE_TO=leader"},
		{"{image: db}", StartFirst, []Container{{}}, ""},
		{"{image: db}", StopFirst, []Container{c}, ""},
		{"{image: db}", StopFirst, []Container{c, c}, "'docker compose up -d'"},
		{"{image: db, labels: [SERVICE_ROUTE_TO=leader]}", StartFirst, []Container{{}}, "db has SERVICE_ROUTE_TO=leader"},
		{"{image: db, labels: [SERVICE_ROUTE_TO=leader]}", StopFirst, []Container{{}}, ""},
		{"{image: db, scale: 2, labels: [SERVICE_ROUTE_TO=leader]}", StopFirst, []Container{{}}, "'docker compose up -d'"},
	} {
		s := parse(t, "services: {db: "+tt.service+"}")["db"]
		s.Options.Order = tt.order
		why := s.Fits(tt.containers, "sha256:1")
		if !strings.Contains(why, tt.says) || (tt.says == "") != (why == "") {
			t.Errorf("%s, %s, %d containers: %q, want %q", tt.service, tt.order, len(tt.containers), why, tt.says)
		}
		if why != "" && strings.Contains(why, "--order stop-first") != (len(tt.containers) == 1 && tt.order == StartFirst) {
			t.Errorf("%s, %s, %d containers: the remedy: %s", tt.service, tt.order, len(tt.containers), why)
		}
	}
}
