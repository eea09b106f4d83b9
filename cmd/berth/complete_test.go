package main

import (
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

// completed returns what a shell is offered for the last word, and the directive that says what else.
func completed(t *testing.T, words ...string) (offered []string, directive string) {
	t.Helper()
	var out strings.Builder
	cmd := rootCommand()
	cmd.SetArgs(append([]string{"__complete"}, words...))
	cmd.SetOut(&out)
	cmd.SetErr(new(strings.Builder))
	if err := cmd.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out.String()) {
		word, _, _ := strings.Cut(strings.TrimSpace(line), "\t")
		if d, ok := strings.CutPrefix(word, ":"); ok {
			return offered, d
		}
		offered = append(offered, word)
	}
	t.Fatalf("no directive: %s", out.String())
	return nil, ""
}

func TestCompletion(t *testing.T) {
	path := filepath.Join(t.TempDir(), "docker.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	daemon := httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/containers/json"):
			_, _ = w.Write([]byte(`[{"Id":"1","Image":"shop:1","Names":["/shop-1","/other/shop"]},{"Id":"2","Image":"shop:1","Names":["/shop-2"]}]`))
		case strings.HasSuffix(r.URL.Path, "/networks"):
			_, _ = w.Write([]byte(`[{"Name":"front"},{"Name":"bridge"}]`))
		}
	})}}
	daemon.Start()
	defer daemon.Close()
	t.Setenv("DOCKER_HOST", "unix://"+path)

	const files, nothingElse, extensions, directories = "0", "4", "8", "16"
	for _, tt := range []struct{ words, offered, directive string }{
		{"templater --proxy ", "haproxy nginx", nothingElse},
		{"registrar --deregister ", "always on-success", nothingElse},
		{"run --log-level ", "debug info warn error", nothingElse},
		{"run --log-format ", "text json auto", nothingElse},
		{"run --network ", "front bridge", nothingElse},
		{"run --resync ", "", nothingElse},
		{"run --template ", "", files},
		{"run --file ", "", files},
		{"run --haproxy-config ", "", files},
		{"run --haproxy-reload-container ", "shop-1 shop-2", nothingElse},
		{"run --tls-directory ", "", directories},
		{"run --config ", "yml yaml", extensions},
		{"drain ", "shop-1 shop-2", nothingElse},
		{"undrain shop-1 ", "shop-2", nothingElse},
		{"template ", "haproxy nginx", nothingElse},
		{"healthcheck ", "", nothingElse},
		{"run -- ", "", files},
		{"completion ", "bash fish powershell zsh", nothingElse},
		{"config ", "apply diff get history rollback status", nothingElse},
		{"config apply app ", "", files},
		{"config apply app x.toml ", "", nothingElse},
		{"config apply --strategy ", "rolling at-once none", nothingElse},
		{"file history --format ", "table json", nothingElse},
	} {
		offered, directive := completed(t, strings.Split(tt.words, " ")...)
		if got := strings.Join(offered, " "); got != tt.offered || directive != tt.directive {
			t.Errorf("%q: %q :%s, want %q :%s", tt.words, got, directive, tt.offered, tt.directive)
		}
	}
	if offered, _ := completed(t, ""); !slices.Contains(offered, "completion") || !slices.Contains(offered, "healthcheck") {
		t.Errorf("commands are %q", offered)
	}
	t.Setenv("DOCKER_HOST", "unix:///nosuch.sock")
	if offered, directive := completed(t, "drain", ""); offered != nil || directive != nothingElse {
		t.Errorf("without Docker: %q :%s", offered, directive)
	}
}

// Every flag of every command has its place in --help, and every command an example.
func TestFlagsAreInGroups(t *testing.T) {
	commands := rootCommand().Commands()
	for n := 0; n < len(commands); n++ {
		cmd := commands[n]
		if cmd.Name() == "completion" {
			continue
		}
		commands = append(commands, cmd.Commands()...)
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if title, _ := placeOf(f.Name); title == "" && !f.Hidden {
				t.Errorf("%s --%s: add it to a group in flagGroups", cmd.CommandPath(), f.Name)
			}
		})
		if cmd.Runnable() && cmd.Example == "" && !slices.Contains([]string{"version", "help"}, cmd.Name()) {
			t.Errorf("%s: add an example to examples", cmd.CommandPath())
		}
	}
}

// What the examples call is there.
func TestExamples(t *testing.T) {
	for name, text := range examples {
		for line := range strings.Lines(text) {
			_, call, found := strings.Cut(line, "berth ")
			if !found || strings.HasPrefix(line, "#") {
				continue
			}
			cmd, args, err := rootCommand().Find(strings.Fields(call))
			if err == nil {
				err = cmd.ParseFlags(args)
			}
			if err != nil || !strings.HasPrefix(cmd.CommandPath(), "berth "+name) {
				t.Errorf("example of %s: %q: %v", name, line, err)
			}
		}
	}
}

// somethingNamed runs a Docker with the container shop_web_1 and a Consul with the services mail and shop, which answer after before.
func somethingNamed(t *testing.T, before http.HandlerFunc) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "docker.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	daemon := httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		before(w, r)
		_, _ = w.Write([]byte(`[{"Id":"1","Image":"shop:1","Names":["/shop_web_1"]}]`))
	})}}
	daemon.Start()
	t.Cleanup(daemon.Close)
	consul := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"shop":[],"mail":[]}`))
	}))
	t.Cleanup(consul.Close)
	t.Setenv("DOCKER_HOST", "unix://"+path)
	t.Setenv("CONSUL_HTTP_ADDR", consul.URL)
}

// A shell offers containers and services where either may be named.
func TestCompletionOfNames(t *testing.T) {
	somethingNamed(t, func(http.ResponseWriter, *http.Request) {})
	for words, want := range map[string]string{"explain ": "mail shop shop_web_1", "status ": "mail shop", "explain shop ": "", "status shop ": "", "events ": ""} {
		offered, directive := completed(t, strings.Split(words, " ")...)
		slices.Sort(offered)
		if got := strings.Join(offered, " "); got != want || directive != "4" {
			t.Errorf("%q: offered are %q, %s, want %q", words, got, directive, want)
		}
	}
}

// A Docker that hangs keeps no service from being offered.
func TestCompletionWithoutDocker(t *testing.T) {
	somethingNamed(t, func(_ http.ResponseWriter, r *http.Request) { hang(r) })
	began := time.Now()
	offered, _ := completed(t, "explain", "")
	slices.Sort(offered)
	if took := time.Since(began); !slices.Equal(offered, []string{"mail", "shop"}) || took > 5*time.Second {
		t.Errorf("offered are %q after %s", offered, took)
	}
}

// shells are programs that print what a shell offers behind the words of a line, with the script of berth completion. What they
// have of bash-completion and of zsh's own functions is the least that the script calls.
var shells = map[string]string{
	"bash": `
source <(berth completion bash)
_get_comp_words_by_ref() { words=("${COMP_WORDS[@]}") cword=$COMP_CWORD cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}; }
compopt() { :; }
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${#COMP_LINE} COMP_TYPE=9
__start_berth
printf '%s\n' "${COMPREPLY[@]}"`,
	"zsh": `
compdef() { :; }
_describe() { while [[ $1 == -* ]]; do shift; done; print -l -- "${(P@)2}"; }
source <(berth completion zsh)
words=("$@") CURRENT=$#
_berth`,
	"fish": `
berth completion fish | source
complete -C "$(string join -- ' ' $argv)"`,
}

// The scripts of berth completion offer the names in the shells that are here.
func TestCompletionInShells(t *testing.T) {
	somethingNamed(t, func(http.ResponseWriter, *http.Request) {})
	for shell, program := range shells {
		t.Run(shell, func(t *testing.T) {
			if _, err := exec.LookPath(shell); err != nil {
				t.Skipf("%s is not installed", shell)
			}
			args := map[string][]string{"bash": {"--norc", "-c", program, "bash"}, "zsh": {"-f", "-c", program, "zsh"}, "fish": {"-N", "-c", program}}[shell]
			for words, want := range map[string]string{
				"berth explain ":          "mail shop shop_web_1",
				"berth drain shop":        "shop_web_1",
				"berth pause mail ":       "shop",
				"berth run --proxy ":      "haproxy nginx",
				"berth config rollb":      "rollback",
				"berth version --format ": "json text",
			} {
				cmd := exec.CommandContext(t.Context(), shell, append(slices.Clone(args), strings.Split(words, " ")...)...)
				cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "TERM=dumb")
				out, err := cmd.Output()
				var offered []string
				for line := range strings.Lines(string(out)) { // a name, and what it is behind blanks, a tab or a colon
					if fields := strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(" \t\n:", r) }); len(fields) > 0 {
						offered = append(offered, fields[0])
					}
				}
				slices.Sort(offered)
				if got := strings.Join(offered, " "); err != nil || got != want {
					t.Errorf("%q: offered are %q, want %q: %v", words, got, want, err)
				}
			}
		})
	}
}
