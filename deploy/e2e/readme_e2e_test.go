//go:build e2e

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/text"

	"berth/deploy/testenv"
)

const repository = "../../"

// Every command of README.md works, in its order, on a stack that the README's own commands start and remove.
func TestE2EReadme(t *testing.T) {
	steps := stepsOf(t, repository+"README.md")
	s := newStack(t, "")
	r := newReader(t, s)
	r.saveYAML = r.startService
	r.follow(steps)
}

// The page takes a reader from an empty directory to a scaled service, and back to nothing.
func TestE2EFirstStack(t *testing.T) {
	steps := stepsOf(t, repository+"docs/start/first-stack.md")
	home := testenv.Dir(t)
	file := filepath.Join(home, "first-stack", "compose.yml")
	address := func() string { return "127.0.0.1:" + testenv.FreePort(t) }
	r := newReader(t, &stack{
		Compose: testenv.NewCompose(t, testenv.ComposeOptions{Files: []string{file}, Show: []string{"registrar", "templater"}}),
		web:     address(), consul: address(), stats: address(), page: address(),
	})
	r.home = home
	if err := os.Symlink(r.dir, filepath.Join(home, "berth")); err != nil {
		t.Fatal(err)
	}
	r.saveYAML = func(text string) { testenv.File(t, r.dir, "compose.yml", text) }
	r.follow(steps)
}

// step is something that a page has its reader do.
type step struct {
	where string
	kind  stepKind
	text  string
}

type stepKind int

const (
	runCommand  stepKind = iota
	saveCompose          // YAML that begins with services:
	openPage             // an address on 127.0.0.1
)

func (s step) String() string {
	first, _, _ := strings.Cut(s.text, "\n")
	return s.where + ": " + first
}

var (
	yamlBlock = regexp.MustCompile(`^(#.*\n)*[A-Za-z_][\w.-]*:(\s|$)`)
	picture   = regexp.MustCompile(`[─│┌└►◄▲▼]`)
	comment   = regexp.MustCompile(`(^|\s+)#.*`)
	// An inline piece of code is a command if it begins with a program and has arguments.
	inline   = regexp.MustCompile(`^(berth|make|docker-compose|docker compose|docker|curl|go|git|cd) \S`)
	ownPages = regexp.MustCompile(`^http://127\.0\.0\.1:\d+/`)
)

// stepsOf returns the steps of a page. A code block without a language is commands, one in each line, unless it is YAML or a
// picture. What is neither (output, say) has to be fenced with a language.
func stepsOf(t *testing.T, file string) []step {
	t.Helper()
	source, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	steps := parseSteps(strings.TrimPrefix(file, repository), source)
	if len(steps) == 0 {
		t.Fatalf("%s has no commands", file)
	}
	return steps
}

func parseSteps(name string, source []byte) (steps []step) {
	line := 0
	add := func(kind stepKind, text string) {
		steps = append(steps, step{fmt.Sprintf("%s:%d", name, line), kind, text})
	}
	block := func(n ast.Node) {
		switch code := string(n.Lines().Value(source)); {
		case strings.HasPrefix(code, "services:"):
			add(saveCompose, code)
		case yamlBlock.MatchString(code), picture.MatchString(code):
		default:
			for l := range strings.Lines(strings.ReplaceAll(code, "\\\n", "")) {
				if command := strings.TrimSpace(comment.ReplaceAllString(l, "")); command != "" {
					add(runCommand, command)
				}
				line++
			}
		}
	}
	root := goldmark.New().Parser().Parse(text.NewReader(source))
	_ = ast.Walk(root, func(n ast.Node, entering bool) (ast.WalkStatus, error) {
		if !entering {
			return ast.WalkContinue, nil
		}
		if n.Type() == ast.TypeBlock && n.Lines().Len() > 0 {
			line = 1 + bytes.Count(source[:n.Lines().At(0).Start], []byte("\n"))
		}
		switch n := n.(type) {
		case *ast.FencedCodeBlock:
			if language := string(n.Language(source)); language == "" || language == "sh" {
				block(n)
			}
		case *ast.CodeBlock:
			block(n)
		case *ast.AutoLink:
			if url := string(n.URL(source)); ownPages.MatchString(url) {
				add(openPage, url)
			}
		case *ast.CodeSpan:
			var code strings.Builder
			for c := n.FirstChild(); c != nil; c = c.NextSibling() {
				if t, ok := c.(*ast.Text); ok {
					code.Write(t.Value(source))
				}
			}
			if command := strings.Join(strings.Fields(code.String()), " "); inline.MatchString(command) && command != "docker compose" {
				add(runCommand, command)
			}
		}
		return ast.WalkContinue, nil
	})
	return steps
}

// known are the commands that a reader can run. The first pattern that matches counts.
var known = []struct {
	pattern string
	run     func(r *reader, command string, groups []string)
	last    bool // it is run when all else has been, wherever the page has it
}{
	{pattern: `cd (\S+)`, run: (*reader).cd},
	{pattern: `mkdir ~/[\w-]+|sed -n \S+ \S+ \S+ >\.env|sed -n '[^']+' \S+ >\.env`, run: (*reader).works},
	{pattern: `make demo`, run: func(r *reader, _ string, _ []string) { r.demo("up") }},
	{pattern: `make demo-down`, run: func(r *reader, _ string, _ []string) { r.demo("down"); r.isGone() }, last: true},
	// These are what runs this test, or what it depends on.
	{pattern: `make ([a-z-]+)`, run: func(r *reader, _ string, groups []string) { r.target(groups[1]) }},
	{pattern: `docker-compose up -d`, run: (*reader).works},
	{pattern: `docker-compose up -d --scale app=(\d+)( --no-recreate)?`, run: (*reader).scales},
	{pattern: `curl (-s |-sS |-H 'Host: \S+' )?http://127\.0\.0\.1:8080/`, run: func(r *reader, command string, _ []string) { r.says(command, `^Hosted by `) }},
	{pattern: `docker-compose exec \w+ berth explain \S+`, run: func(r *reader, command string, _ []string) {
		r.says(command, `(?m)^→ (it takes requests$|serving: )`)
	}},
	{pattern: `docker-compose exec \w+ berth status( [a-z]\S*)?`, run: func(r *reader, command string, _ []string) { r.says(command, `(?m)^app +serving`) }},
	{pattern: `docker-compose exec \w+ berth events`, run: func(r *reader, command string, _ []string) { r.says(command, `berth starts`) }},
	{pattern: `docker-compose (ps|logs)( [a-z]\w*)*`, run: (*reader).works},
	{pattern: `docker-compose down -v`, run: func(r *reader, command string, _ []string) { r.works(command, nil); r.isGone() }},
	{pattern: `berth (registrar|templater)( --template \S+)?`, run: func(r *reader, _ string, groups []string) { r.runs(groups[1]) }},
	{pattern: `berth render --diff --template haproxy\.ctmpl`, run: (*reader).compares},
	{pattern: `berth (status|status --check|status app|events|version|healthcheck|help|--help|--version)`, run: func(r *reader, command string, _ []string) {
		r.works("docker-compose exec templater "+command, nil)
	}},
	{pattern: `berth explain \S+`, run: func(r *reader, command string, _ []string) {
		r.says("docker-compose exec registrar "+command, `(?m)^→ `)
	}},
	{pattern: `berth (explain|run|service|rollout|drain|undrain|template|render|pause|resume)`, run: func(r *reader, command string, _ []string) {
		r.says(command+" --help", "(?m)^  "+command) // it is only mentioned
	}},
	{pattern: `go install \./cmd/berth`, run: func(r *reader, command string, _ []string) {
		r.works("GOBIN="+testenv.Dir(r)+" "+command, nil)
	}},
}

// runner returns how to run a command, nil if that is not known.
func runner(command string) (run func(*reader), last bool) {
	for _, k := range known {
		if groups := regexp.MustCompile(`^(?:` + k.pattern + `)$`).FindStringSubmatch(command); groups != nil {
			return func(r *reader) { k.run(r, command, groups) }, k.last
		}
	}
	return nil, false
}

// reader is somebody who does what a page says.
type reader struct {
	*stack
	dir      string // where the reader is
	home     string // ~
	env      []string
	here     *strings.Replacer // from the addresses and names of the page to those of the stack
	saveYAML func(text string)
}

// newReader returns a reader in the directory of the repository, whose commands docker-compose and berth are those of the stack.
func newReader(t *testing.T, s *stack) *reader {
	t.Helper()
	dir, err := filepath.Abs(repository)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "build", "berth-app")); err != nil {
		t.Fatalf("%v: run make build, as make test does", err)
	}
	r := &reader{stack: s, dir: dir, home: testenv.Dir(t)}
	bin := filepath.Dir(testenv.Berth(t))
	compose := s.Command()
	compose.Args[0] = compose.Path
	// There is no terminal here.
	script := "#!/bin/sh\ncase $1 in exec) shift; set -- exec -T \"$@\" ;; esac\nexec " +
		strings.Join(compose.Args[:slices.Index(compose.Args, "-f")], " ") + " \"$@\"\n"
	if err := os.Chmod(testenv.File(t, bin, "docker-compose", script), 0o755); err != nil {
		t.Fatal(err)
	}
	r.env = append(s.Env(), "PATH="+bin+":"+os.Getenv("PATH"), "CONSUL_HTTP_ADDR=http://"+s.consul,
		"HTTP_PORT="+testenv.Port(s.web), "CONSUL_PORT="+testenv.Port(s.consul), "STATS_PORT="+testenv.Port(s.stats), "PAGE_PORT="+testenv.Port(s.page),
		"MAKEFLAGS=", "MAKELEVEL=")
	r.adapt()
	return r
}

// adapt has r.here replace more.
func (r *reader) adapt(more ...string) {
	r.here = strings.NewReplacer(append([]string{"127.0.0.1:8080", r.web, "127.0.0.1:8404", r.stats, "127.0.0.1:8500", r.consul, "127.0.0.1:9652", r.page}, more...)...)
}

// follow does the steps of a page, if it can do all of them.
func (r *reader) follow(steps []step) {
	r.Helper()
	var now, last []func()
	for _, s := range steps {
		do := func() { r.open(s.text) }
		atLast := false
		switch s.kind {
		case saveCompose:
			do = func() { r.saveYAML(r.here.Replace(s.text)) }
		case runCommand:
			var run func(*reader)
			if run, atLast = runner(strings.Replace(s.text, "docker compose ", "docker-compose ", 1)); run == nil {
				r.Errorf("%s: the test does not know how to run %q. Add it to the variable known in readme_e2e_test.go; "+
					"if it is no command, fence its block with a language", s.where, s.text)
				continue
			}
			do = func() { run(r) }
		}
		logged := func() {
			began := time.Now()
			do()
			r.Logf("%v (%.1fs)", s, time.Since(began).Seconds())
		}
		if atLast {
			last = append(last, logged)
		} else {
			now = append(now, logged)
		}
	}
	if r.Failed() {
		r.FailNow()
	}
	for _, do := range slices.Concat(now, last) {
		do()
	}
}

// try runs a shell command, and returns its standard output.
func (r *reader) try(command string) (string, error) {
	command = strings.ReplaceAll(r.here.Replace(command), "~/", r.home+"/")
	cmd := exec.CommandContext(r.Context(), "sh", "-c", command)
	cmd.Dir, cmd.Env = r.dir, r.env
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s%s", command, err, stdout.String(), stderr.String())
	}
	return stdout.String(), err
}

// works runs a command that has to succeed.
func (r *reader) works(command string, _ []string) {
	r.Helper()
	if _, err := r.try(command); err != nil {
		r.Fatal(err)
	}
}

// says runs a command until it prints what it should.
func (r *reader) says(command, pattern string) {
	r.Helper()
	r.Eventually(time.Minute, command, func() error {
		out, err := r.try(command)
		if err == nil && !regexp.MustCompile(pattern).MatchString(out) {
			err = fmt.Errorf("it does not print %q:\n%s", pattern, out)
		}
		return err
	})
}

func (r *reader) cd(_ string, groups []string) {
	r.Helper()
	to := groups[1]
	if rest, ok := strings.CutPrefix(to, "~/"); ok {
		to = filepath.Join(r.home, rest)
	} else {
		to = filepath.Join(r.dir, to)
	}
	if _, err := os.Stat(to); err != nil {
		r.Fatal(err)
	}
	r.dir = to
}

// target is fine if the Makefile has this target.
func (r *reader) target(name string) string {
	r.Helper()
	out, err := r.try("make -n -C " + root(r) + " " + name)
	if err != nil {
		r.Fatal(err)
	}
	return out
}

// demo does what make demo and make demo-down do, without building the images anew.
func (r *reader) demo(what string) {
	r.Helper()
	target := map[string]string{"up": "demo", "down": "demo-down"}[what]
	if out := r.target(target); !strings.Contains(out, "deploy/demo.sh "+what) {
		r.Fatalf("make %s does not run demo.sh %s:\n%s", target, what, out)
	}
	r.works(root(r)+"/deploy/demo.sh "+what, nil)
}

func (r *reader) scales(command string, groups []string) {
	r.Helper()
	r.works(command, nil)
	r.Eventually(30*time.Second, groups[1]+" hosts answer", func() error {
		hosts, err := testenv.Hosts(r.web)
		if err == nil && fmt.Sprint(len(hosts)) != groups[1] {
			err = fmt.Errorf("%v answer", hosts)
		}
		return err
	})
}

// open gets a page that a reader is told to look at.
func (r *reader) open(url string) {
	r.Helper()
	r.Eventually(20*time.Second, url, func() error {
		_, err := testenv.Get(r.here.Replace(url))
		return err
	})
}

// runs is fine if the stack has a container that runs this command of berth, and is healthy.
func (r *reader) runs(service string) {
	r.Helper()
	containers := r.Containers(service)
	if len(containers) != 1 {
		r.Fatalf("the stack has %d containers of %s", len(containers), service)
	}
	if command := r.Docker("inspect", "--format", `{{join .Config.Entrypoint " "}} {{join .Config.Cmd " "}}`, containers[0]); command != "berth "+service {
		r.Fatalf("the container %s runs %s", service, command)
	}
	r.says("docker-compose exec "+service+" berth healthcheck", "")
}

// isGone is fine if nothing is left of the stack.
func (r *reader) isGone() {
	r.Helper()
	if left := r.Docker("ps", "--all", "--quiet", "--filter", "label=com.docker.compose.project="+r.Project); left != "" {
		r.Fatalf("these containers are left: %s", left)
	}
}

// startService starts the service that the README has its reader begin with, with the demo's image. Its container is the one
// that the README explains.
func (r *reader) startService(text string) {
	r.Helper()
	const name = "shop"
	text = regexp.MustCompile(`image: registry\.example/\S+`).ReplaceAllString(text, "image: "+testenv.Image(r, "IMAGE_APP"))
	r.Do("-f", testenv.File(r, testenv.Dir(r), "compose.yml", text), "up", "-d", "--no-recreate", name)
	container := r.Containers(name)
	if len(container) != 1 {
		r.Fatalf("there are %d containers of %s", len(container), name)
	}
	actual := strings.TrimPrefix(r.Docker("inspect", "--format", "{{.Name}}", container[0]), "/")
	r.adapt("shop_web_1", actual, "shop-web-1", actual)
}

// compares looks at what a template would change, as in the four steps of the README. The template is a copy of the
// configuration, with the loop that docs/start/own-haproxy.md has instead of servers.
func (r *reader) compares(command string, _ []string) {
	r.Helper()
	const before = "defaults\n    mode http\n\n"
	page, err := os.ReadFile(repository + "docs/start/own-haproxy.md")
	if err != nil {
		r.Fatal(err)
	}
	loop := regexp.MustCompile(`(?m)^    backend app\n(    .*\n)+`).Find(page)
	if loop == nil {
		r.Fatal("docs/start/own-haproxy.md has no template")
	}
	at := *r
	at.dir = testenv.Dir(r)
	config := testenv.File(r, at.dir, "haproxy.cfg", before+"backend app\n    server old 127.0.0.1:1 check\n")
	testenv.File(r, at.dir, "haproxy.ctmpl", before+regexp.MustCompile(`(?m)^    `).ReplaceAllString(string(loop), ""))
	at.env = append(at.env, "BERTH_HAPROXY_CONFIG="+config)
	out, err := at.try(command)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(out, "\n-    server old 127.0.0.1:1 check\n") ||
		!regexp.MustCompile(`\n\+    server \S+:8080 \S+:8080 check\n`).MatchString(out) {
		r.Fatalf("%s: %v\n%s", command, err, out)
	}
}

func root(t testing.TB) string {
	t.Helper()
	dir, err := filepath.Abs(repository)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// What is no command is not taken for one, and no command is missed.
func TestE2EReadmeSteps(t *testing.T) {
	const page = "# Title\n\nRun `make x` and `berth`, or `docker compose`, or `docker compose ps`. See <http://127.0.0.1:1/x> or <https://example.com/>.\n\n" +
		"    a b     # why\n\n    # nothing\n    c \\\n        d\n\n- item:\n\n      e\n\n```sh\nf\n```\n\n```text\noutput\n```\n\n    a ──► b\n\n" +
		"text\n\n    key: value\n\ntext\n\n    services:\n      x: {}\n\n`berth\nexplain x`\n"
	var have []string
	for _, s := range parseSteps("x.md", []byte(page)) {
		have = append(have, fmt.Sprintf("%v %d", s, s.kind))
	}
	want := []string{
		"x.md:3: make x 0", "x.md:3: docker compose ps 0", "x.md:3: http://127.0.0.1:1/x 2", "x.md:5: a b 0", "x.md:8: c     d 0",
		"x.md:13: e 0", "x.md:16: f 0", "x.md:31: services: 1", "x.md:34: berth explain x 0",
	}
	if !slices.Equal(have, want) {
		t.Errorf("steps\n%q\nwant\n%q", have, want)
	}
	if run, _ := runner("rm -rf build"); run != nil {
		t.Error("rm is known")
	}
}
