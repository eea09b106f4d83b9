package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"
)

// flagGroups are the groups of flags in --help. An entry is the name of a flag and a placeholder for its value.
var flagGroups = []struct {
	title string
	flags []string
}{
	{"Options", []string{
		"name NAME", "port PORT", "id ID", "address IP", "meta KEY=VALUE", "weight NUMBER", "ready WHEN", "stop-timeout TIME",
		"once", "dry-run", "format FORMAT", "diff", "validate", "explain", "version NUMBER", "raw", "strategy STRATEGY", "wait TIME",
		"timeout TIME", "max TIME", "reason TEXT", "list", "live", "json", "check", "follow",
		"project-name NAME", "compose COMMAND", "parallelism NUMBER", "delay TIME", "order ORDER", "monitor TIME", "failure-action ACTION",
		"max-failure-ratio RATIO", "drain-timeout TIME", "pull", "build", "force", "watch", "resume", "abort",
	}},
	{"Registration", []string{
		"network NAME,...", "internal", "explicit", "ip IP", "tags TAG,...", "ready-timeout TIME", "drain-time TIME",
		"deregister WHEN", "ttl TIME", "resync TIME", "scripts", "publish-secrets", "show-secrets", "adopt HOST", "owner NAME",
	}},
	{"Group", []string{
		"group NAME", "render TEMPLATE:FILE", "defaults FILE", "user-config FILE", "on-change REACTION", "restart WHEN",
		"files DIRECTORY", "on-file REACTION", "bind NAME:SERVICE", "binding-mode MODE", "topology KIND", "priority NUMBER",
	}},
	{"Templates and routes", []string{
		"template FILE", "template-programs", "tls-directory DIRECTORY", "tcp-ports PORTS", "route-grace TIME", "route-hold TIME", "route-hold-max NUMBER",
		"trusted-proxies NETWORK,...", "proxy-protocol PORTS", "ipv6", "error-details",
		"file TEMPLATE:FILE[:COMMAND]",
	}},
	{"Proxy", []string{"proxy KIND", "runtime", "reload-interval TIME", "take-over"}},
	{"HAProxy", []string{
		"haproxy-config FILE", "haproxy-socket SOCKET", "haproxy-binary PROGRAM", "haproxy-timeout TIME", "haproxy-stop-timeout TIME",
		"haproxy-drain-timeout TIME", "haproxy-tunnel-timeout TIME", "haproxy-reload-command COMMAND",
		"haproxy-reload-container CONTAINER", "haproxy-reload-signal SIGNAL",
	}},
	{"nginx", []string{
		"nginx-config FILE", "nginx-socket SOCKET", "nginx-binary PROGRAM", "nginx-timeout TIME", "nginx-stop-timeout TIME",
		"nginx-closing-time TIME", "nginx-reload-command COMMAND", "nginx-reload-container CONTAINER", "nginx-lua",
	}},
	{"Consul", []string{
		"consul-address ADDRESS", "consul-token-file FILE", "consul-connections NUMBER", "consul-grace TIME", "vanish-limit PERCENT",
	}},
	{"General", []string{"config FILE", "listen ADDRESS", "listen-admin-token-file FILE", "log-format FORMAT", "log-level LEVEL", "help", "version"}},
}

// commandGroups are the groups in which berth --help shows commands.
var commandGroups = []struct {
	title    string
	commands []string
}{
	{"Run it", []string{"registrar", "templater", "run", "service"}},
	{"See what it does", []string{"status", "explain", "events", "render", "template", "healthcheck"}},
	{"Change something", []string{"rollout", "drain", "undrain", "pause", "resume"}},
	{"Service groups", []string{"config", "file", "restart"}},
	{"Other commands", []string{"version", "completion", "help"}},
}

// examples are the examples in --help, by the command's path below berth.
var examples = map[string]string{
	"registrar": `# Register the containers of this host with their addresses on the network front:
berth registrar --consul-address http://127.0.0.1:8500 --network front

# Print what would be registered and why, in a compose stack; then for one service:
docker compose exec registrar berth registrar --dry-run
docker compose exec registrar berth registrar --dry-run --format json web`,
	"templater": `# Next to a HAProxy that was started with haproxy -W -S /run/haproxy/master.sock ...:
berth templater --consul-address http://127.0.0.1:8500

# With your own template:
berth templater --template /etc/berth/haproxy.ctmpl`,
	"run": `# On a host with HAProxy from the Debian package:
berth run --haproxy-socket /run/haproxy-master.sock --network bridge

# In one container, with HAProxy as a child of berth:
berth run -- haproxy -W -db`,
	"service": `berth service --name www --port 20001 --meta route_path=/ -- ./www 20001

# With Redis, and a configuration that 'berth config apply www' changes at run time:
berth service --name www --port 20001 --defaults default.toml --render www.ctmpl:/etc/www.toml \
  --bind redis:redis --binding-mode strict -- ./www /etc/www.toml`,
	"render": `# Print what would change in the proxy's configuration:
berth render --diff

# In a compose stack, try a template that you are editing:
docker compose exec templater berth render --template /etc/berth/haproxy.ctmpl`,
	"template": `# Start your own template from the built-in one:
berth template haproxy > haproxy.ctmpl`,
	"status": `# All services on all hosts; then one service:
berth status
docker compose exec templater berth status shop

# For a monitoring system:
berth status --check`,
	"explain": `berth explain shop_web_1
berth explain shop
berth explain https://shop.example.com/cart`,
	"events": `berth events --follow`,
	"healthcheck": `# In compose.yml:
#   healthcheck: {test: [CMD, berth, healthcheck], interval: 10s}
docker compose exec templater berth healthcheck`,
	"rollout": `# After a change of the compose file or the image, in the directory of the compose file:
berth rollout app
berth rollout --pull --parallelism 2 app worker

# After an interrupted rollout, continue it or undo its last step:
berth rollout --resume app
berth rollout --abort app

# Whenever 'docker tag' or 'docker pull' gives the image's name to a new image:
berth rollout --watch app

# As a docker CLI plugin (docker berth rollout app):
ln -s "$(command -v berth)" ~/.docker/cli-plugins/docker-berth`,
	"drain":   `berth drain shop-app-3 --reason "replacing a disk"`,
	"undrain": `berth undrain shop-app-3`,
	"pause": `# Requests wait, up to a minute each, while data is migrated:
berth pause shop --max 60s --reason "new database"
# Afterwards: berth resume shop

berth pause --list`,
	"resume": `berth resume shop`,
	"config": `berth config apply app config.toml --wait 60s
berth config status app`,
	"config apply": `# Apply the next version and wait until every instance runs it:
berth config apply app config.toml --wait 60s

# Apply a text from standard input to the group prod of app:
echo 'greeting = "Hi"' | berth config apply app.prod -`,
	"config status":   `berth config status app --format json`,
	"config get":      `berth config get app 7 > config.toml`,
	"config history":  `berth config history app`,
	"config diff":     `berth config diff app 5 7`,
	"config rollback": `berth config rollback app 5 --wait 60s`,
	"file": `berth file put app logo.png
berth file list app`,
	"file put":     `berth file put app build/logo-2.png --name logo.png`,
	"file get":     `berth file get app logo.png > logo.png`,
	"file list":    `berth file list app`,
	"file rm":      `berth file rm app logo.png`,
	"file history": `berth file history app logo.png`,
	"restart":      `berth restart app --wait 5m`,
	"completion": `# For bash, for this user:
berth completion bash > ~/.local/share/bash-completion/completions/berth`,
}

// setHelp sets the help of a command and its subcommands.
func setHelp(root *cobra.Command) {
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) {
		w := cmd.OutOrStdout()
		writeWrapped(w, cmp.Or(cmd.Long, cmd.Short+"."), helpWidth())
		fmt.Fprintln(w)
		writeUsage(w, cmd)
	})
	root.SetUsageFunc(func(cmd *cobra.Command) error {
		writeUsage(cmd.OutOrStderr(), cmd)
		return nil
	})
	for _, cmd := range root.Commands() {
		if cmd.Name() == "completion" {
			cmd.Short = "Print a shell completion script"
			cmd.Long = "Print a shell completion script for berth's commands, flags, values and containers. The --help of each shell's command explains how to install it."
			cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
		}
		completeHelp(cmd)
	}
}

// completeHelp sets the examples of a command and its subcommands, and hides unused flags.
func completeHelp(cmd *cobra.Command) {
	_, path, _ := strings.Cut(cmd.CommandPath(), " ")
	cmd.Example = examples[path]
	// Commands that do not listen accept the option, because they share the file and the environment.
	if f := cmd.Flags().Lookup("listen"); f != nil && f.DefValue == "none" {
		f.Hidden = true
	}
	for _, below := range cmd.Commands() {
		completeHelp(below)
	}
}

// helpCommand replaces cobra's help command, which does not fail on an unknown command.
func helpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Show help for a command",
		RunE: func(_ *cobra.Command, args []string) error {
			cmd, rest, err := root.Find(args)
			if err != nil {
				return usageError{err, root.Name()}
			}
			if len(rest) > 0 {
				return usageError{fmt.Errorf("no help for %q", strings.Join(args, " ")), root.Name()}
			}
			cmd.InitDefaultHelpFlag()
			cmd.InitDefaultVersionFlag()
			return cmd.Help()
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) (names []string, _ cobra.ShellCompDirective) {
			if len(args) == 0 {
				for _, cmd := range root.Commands() {
					names = append(names, cobra.CompletionWithDesc(cmd.Name(), cmd.Short))
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
	}
}

// section is a part of a help text: names with their descriptions.
type section struct {
	title string
	lines [][2]string
}

const environmentText = `Every option has an environment variable: BERTH_ and the option's name in capitals, with _ instead of -. A flag overrides its
variable, and the variable overrides the file. An empty variable counts as unset. Separate list values with commas, and those
of BERTH_FILE with newlines.`

// environmentHelp makes the help topic environment.
func environmentHelp() *cobra.Command {
	cmd := &cobra.Command{Use: "environment", Short: "Environment variables that berth reads"}
	cmd.SetHelpFunc(func(cmd *cobra.Command, _ []string) {
		w := cmd.OutOrStdout()
		writeWrapped(w, environmentText, helpWidth())
		for _, s := range environmentSections() {
			fmt.Fprintf(w, "\n%s:\n", s.title)
			writeColumns(w, s.lines, 34)
		}
	})
	return cmd
}

// environmentSections returns the variables that berth reads, in the groups of their flags.
func environmentSections() (sections []section) {
	known := options()
	for _, g := range flagGroups {
		s := section{title: g.title}
		for _, entry := range g.flags {
			name, _, _ := strings.Cut(entry, " ")
			if f := known.Lookup(name); f != nil {
				s.lines = append(s.lines, [2]string{variableName(name), f.Usage})
			}
		}
		if s.lines != nil {
			sections = append(sections, s)
		}
	}
	return append(sections, section{"Standard variables", [][2]string{
		{"CONSUL_HTTP_ADDR", "Consul agent, e.g. http://consul:8500"},
		{"CONSUL_HTTP_TOKEN", "ACL token; CONSUL_HTTP_TOKEN_FILE is a file with it"},
		{"CONSUL_HTTP_SSL, CONSUL_CACERT, CONSUL_CLIENT_CERT, CONSUL_CLIENT_KEY", "TLS to Consul"},
		{"CONSUL_NAMESPACE, CONSUL_PARTITION", "for Consul Enterprise"},
		{"DOCKER_HOST", "Docker socket (default unix:///var/run/docker.sock)"},
		{"DOCKER_TLS_VERIFY, DOCKER_CERT_PATH", "TLS to Docker"},
		{"VAULT_*, NOMAD_*", "for templates that read secrets or Nomad's services"},
	}})
}

// writeUsage writes the usage of a command, with its flags in groups.
func writeUsage(w io.Writer, cmd *cobra.Command) {
	fmt.Fprintln(w, "Usage:")
	for _, call := range calls(cmd) {
		fmt.Fprintln(w, " ", call)
	}
	if cmd.Example != "" {
		fmt.Fprintf(w, "\nExamples:\n")
		for line := range strings.Lines(strings.TrimRight(cmd.Example, "\n")) {
			fmt.Fprintln(w, strings.TrimRight("  "+strings.TrimRight(line, "\n"), " "))
		}
	}
	for _, s := range commandSections(cmd) {
		fmt.Fprintf(w, "\n%s:\n", s.title)
		writeColumns(w, s.lines, 12)
	}
	writeFlags(w, cmd.Flags())
	if cmd.HasAvailableSubCommands() {
		fmt.Fprintf(w, "\nRun '%s COMMAND --help' for more about a command.\n", cmd.CommandPath())
		if !cmd.HasParent() {
			fmt.Fprintf(w, "Run '%s help environment' for the environment variables.\n", cmd.CommandPath())
		}
	}
}

// calls returns the usage lines of a command: alone, and with a subcommand.
func calls(cmd *cobra.Command) (lines []string) {
	if cmd.Runnable() {
		lines = append(lines, cmd.UseLine())
	}
	if cmd.HasAvailableSubCommands() {
		lines = append(lines, cmd.CommandPath()+" COMMAND")
	}
	return lines
}

// commandSections returns the subcommands in their groups.
func commandSections(parent *cobra.Command) (sections []section) {
	left := map[string]*cobra.Command{}
	for _, cmd := range parent.Commands() {
		if cmd.IsAvailableCommand() || cmd.Name() == "help" {
			left[cmd.Name()] = cmd
		}
	}
	add := func(title string, names []string) {
		s := section{title: title}
		for _, name := range names {
			if cmd := left[name]; cmd != nil {
				s.lines = append(s.lines, [2]string{name, cmd.Short})
				delete(left, name)
			}
		}
		if s.lines != nil {
			sections = append(sections, s)
		}
	}
	if !parent.HasParent() {
		for _, g := range commandGroups {
			add(g.title, g.commands)
		}
	}
	var rest []string
	for _, cmd := range parent.Commands() {
		rest = append(rest, cmd.Name())
	}
	add("Commands", rest)
	return sections
}

// writeFlags writes flags in their groups, with all texts at one column.
func writeFlags(w io.Writer, flags *pflag.FlagSet) {
	sections := flagSections(flags)
	column := 0
	for _, s := range sections {
		for _, line := range s.lines {
			column = max(column, min(len(line[0])-len("--"), 30)+2)
		}
	}
	for _, s := range sections {
		fmt.Fprintf(w, "\n%s:\n", s.title)
		writeColumns(w, s.lines, column)
	}
}

// flagSections returns flags in their groups; flags without a group come last.
func flagSections(flags *pflag.FlagSet) (sections []section) {
	left := map[string]*pflag.Flag{}
	flags.VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			left[f.Name] = f
		}
	})
	add := func(title string, entries []string) {
		s := section{title: title}
		for _, entry := range entries {
			name, _, valued := strings.Cut(entry, " ")
			f := left[name]
			if f == nil || name == "version" && valued == (f.Value.Type() == "bool") { // berth has the bool, other commands a number
				continue
			}
			delete(left, name)
			usage := f.Usage + defaultOf(f)
			switch entry { // cobra says "help for templater"
			case "help":
				entry, usage = entry+", -h", "print this help"
			case "version":
				usage = "print the version"
			}
			s.lines = append(s.lines, [2]string{"--" + entry, usage})
		}
		if s.lines != nil {
			sections = append(sections, s)
		}
	}
	for _, g := range flagGroups {
		add(g.title, g.flags)
	}
	var rest []string
	flags.VisitAll(func(f *pflag.Flag) { rest = append(rest, f.Name) })
	add("Other options", rest)
	return sections
}

// defaultOf returns the default of a flag in parentheses, "" if there is none or the usage text has it.
func defaultOf(f *pflag.Flag) string {
	if strings.Contains(f.Usage, "(default") || slices.Contains([]string{"", "false", "0", "0s", "[]"}, f.DefValue) {
		return ""
	}
	value := f.DefValue
	if f.Value.Type() == "duration" { // 5m0s
		if short, ok := strings.CutSuffix(value, "m0s"); ok {
			value = short + "m"
		}
		if short, ok := strings.CutSuffix(value, "h0m"); ok {
			value = short + "h"
		}
	}
	return " (default " + value + ")"
}

// writeColumns writes names and their texts, with the texts aligned at a column.
func writeColumns(w io.Writer, lines [][2]string, column int) {
	for _, line := range lines {
		head := "  " + line[0]
		text := wrap(line[1], max(30, helpWidth()-column-4))
		if utf8.RuneCountInString(head) > column+2 {
			fmt.Fprintln(w, head)
			head = ""
		}
		for i, part := range text {
			if i > 0 {
				head = ""
			}
			fmt.Fprintln(w, head+strings.Repeat(" ", column+4-utf8.RuneCountInString(head))+part)
		}
	}
}

// writeWrapped wraps paragraphs. Indented paragraphs stay unchanged.
func writeWrapped(w io.Writer, text string, width int) {
	for i, paragraph := range strings.Split(strings.TrimSpace(text), "\n\n") {
		if i > 0 {
			fmt.Fprintln(w)
		}
		if strings.HasPrefix(paragraph, " ") {
			fmt.Fprintln(w, paragraph)
			continue
		}
		for _, line := range wrap(paragraph, width) {
			fmt.Fprintln(w, line)
		}
	}
}

// wrap breaks a text into lines of a width.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(text) {
		switch {
		case line == "":
			line = word
		case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width:
			lines = append(lines, line)
			line = word
		default:
			line += " " + word
		}
	}
	return append(lines, line)
}

// helpWidth returns the width of the terminal, within limits, or 80 without a terminal.
func helpWidth() int {
	if width, _, err := term.GetSize(int(os.Stdout.Fd())); err == nil && width > 0 {
		return min(max(width, 60), 110)
	}
	return 80
}
