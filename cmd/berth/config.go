package main

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"github.com/spf13/viper"

	"berth/registrar"
	"berth/templater/catalog"
)

// Config is the whole configuration. A key of the YAML file is the name of the flag, and the environment variable is
// BERTH_ and the name in capitals with _ for -.
type Config struct {
	Config          string `mapstructure:"config"`
	ConsulAddress   string `mapstructure:"consul-address"`
	ConsulTokenFile string `mapstructure:"consul-token-file"`
	Listen          string `mapstructure:"listen"`
	LogFormat       string `mapstructure:"log-format"`
	LogLevel        string `mapstructure:"log-level"`

	Network      []string         `mapstructure:"network"`
	Internal     bool             `mapstructure:"internal"`
	Explicit     bool             `mapstructure:"explicit"`
	IP           string           `mapstructure:"ip"`
	Tags         string           `mapstructure:"tags"`
	Deregister   string           `mapstructure:"deregister"`
	TTL          time.Duration    `mapstructure:"ttl"`
	Scripts      bool             `mapstructure:"scripts"`
	Adopt        string           `mapstructure:"adopt"`
	Owner        string           `mapstructure:"owner"`
	Resync       time.Duration    `mapstructure:"resync"`
	ReadyTimeout time.Duration    `mapstructure:"ready-timeout"`
	DrainTime    time.Duration    `mapstructure:"drain-time"`
	Policy       []registrar.Rule `mapstructure:"policy"` // in the file only

	Name        string        `mapstructure:"name"`
	Port        int           `mapstructure:"port"`
	ID          string        `mapstructure:"id"`
	Address     string        `mapstructure:"address"`
	Meta        []string      `mapstructure:"meta"`
	Weight      int           `mapstructure:"weight"`
	Ready       string        `mapstructure:"ready"`
	StopTimeout time.Duration `mapstructure:"stop-timeout"`

	ConsulConnections int           `mapstructure:"consul-connections"`
	ConsulGrace       time.Duration `mapstructure:"consul-grace"`
	VanishLimit       int           `mapstructure:"vanish-limit"`

	Template               string        `mapstructure:"template"`
	TemplatePrograms       bool          `mapstructure:"template-programs"`
	TLSDirectory           string        `mapstructure:"tls-directory"`
	TCPPorts               string        `mapstructure:"tcp-ports"`
	Proxy                  string        `mapstructure:"proxy"` // kindHAProxy or kindNginx
	HAProxyConfig          string        `mapstructure:"haproxy-config"`
	HAProxySocket          string        `mapstructure:"haproxy-socket"`
	HAProxyBinary          string        `mapstructure:"haproxy-binary"`
	HAProxyTimeout         time.Duration `mapstructure:"haproxy-timeout"`
	HAProxyStopTimeout     time.Duration `mapstructure:"haproxy-stop-timeout"`
	HAProxyDrainTimeout    time.Duration `mapstructure:"haproxy-drain-timeout"`
	HAProxyTunnelTimeout   time.Duration `mapstructure:"haproxy-tunnel-timeout"`
	HAProxyReloadCommand   string        `mapstructure:"haproxy-reload-command"`
	HAProxyReloadContainer string        `mapstructure:"haproxy-reload-container"`
	HAProxyReloadSignal    string        `mapstructure:"haproxy-reload-signal"`
	NginxConfig            string        `mapstructure:"nginx-config"`
	NginxSocket            string        `mapstructure:"nginx-socket"`
	NginxBinary            string        `mapstructure:"nginx-binary"`
	NginxTimeout           time.Duration `mapstructure:"nginx-timeout"`
	NginxStopTimeout       time.Duration `mapstructure:"nginx-stop-timeout"`
	NginxClosingTime       time.Duration `mapstructure:"nginx-closing-time"`
	NginxReloadCommand     string        `mapstructure:"nginx-reload-command"`
	NginxReloadContainer   string        `mapstructure:"nginx-reload-container"`
	NginxLua               bool          `mapstructure:"nginx-lua"`
	Runtime                bool          `mapstructure:"runtime"`
	ReloadInterval         time.Duration `mapstructure:"reload-interval"`
	File                   []string      `mapstructure:"file"`
	Files                  []fileEntry   `mapstructure:"files"` // in the file only
}

func commonFlags(f *pflag.FlagSet, listen string) {
	f.String("config", "", "YAML file with further options")
	f.String("consul-address", "", "Consul agent, like http://127.0.0.1:8500 or unix:///run/consul.sock (default $CONSUL_HTTP_ADDR)")
	f.String("consul-token-file", "", "file that holds the Consul ACL token (default $CONSUL_HTTP_TOKEN_FILE)")
	f.String("listen", listen, "address of /healthz, /readyz and /metrics, or none")
	f.String("log-format", "auto", "text, json, or auto: text on a terminal")
	f.String("log-level", "info", "debug, info, warn or error")
}

func registrarFlags(f *pflag.FlagSet) {
	f.StringSlice("network", nil, "networks on which the load balancer reaches containers, best first (default: those of berth's own container)")
	f.Bool("internal", false, "register containers' own addresses and exposed ports, whatever the network")
	f.Bool("explicit", false, "register only what has a SERVICE_NAME")
	f.String("ip", "", "address to register for published ports (default: none, so that Consul uses its node's)")
	f.String("tags", "", "tags for everything, separated by commas; a Go template over what docker inspect says")
	f.String("deregister", "always", "always, or on-success: what ended with an error stays registered, in maintenance mode")
	f.Duration("ttl", 0, "let registrations turn critical when the registrar is away for so long (default: never)")
	f.Bool("scripts", false, "allow SERVICE_CHECK_SCRIPT and SERVICE_CHECK_CMD, if the Consul agent does, too")
	f.String("adopt", "", "host name in the service IDs of a Registrator whose registrations to take over")
	f.String("owner", "", "a name of its own for each of several registrars on one Docker host")
	f.Duration("resync", time.Minute, "how often to compare everything, whatever the events said")
	f.Duration("ready-timeout", 30*time.Second, "how long an instance may take to be ready before it is registered as critical")
	f.Duration("drain-time", 2*time.Second, "from the sign to stop to the signal that SERVICE_STOP_SIGNAL names")
}

func templaterFlags(f *pflag.FlagSet) {
	f.String("template", "", "consul-template file to render (default: the built-in template)")
	f.Bool("template-programs", false, "allow the template functions plugin and writeToFile, which run programs and write files")
	f.String("tls-directory", "", "directory of certificates (PEM files with their keys) for the built-in template (default: no TLS)")
	f.String("tcp-ports", "1024-65535", "ports that SERVICE_ROUTE_PORT may ask the built-in template for, like 5432,6000-6099, or none")
	f.Int("consul-connections", catalog.DefaultConnections, "connections to Consul that may be open at a time (Consul's own limit is 200)")
	f.Duration("consul-grace", 30*time.Second, "how long to keep what a Consul that failed or lost its state no longer lists")
	f.Int("vanish-limit", 100, "percentage of a list that may vanish at once; if it is more, what is gone is kept for consul-grace")
	f.StringArray("file", nil, "template:destination[:command], a plain file to render, and a shell command to run when it has changed")
	f.String("proxy", "", "haproxy or nginx (default: the one behind --, else haproxy)")
	f.String("haproxy-config", "/etc/haproxy/haproxy.cfg", "HAProxy's configuration file, in a directory that berth may write to, or none")
	f.String("haproxy-socket", "/run/haproxy/master.sock", "HAProxy's master socket (haproxy -W -S ...), or none")
	f.String("haproxy-reload-command", "", "shell command that makes HAProxy load its file, instead of its socket")
	f.String("haproxy-reload-container", "", "container of a HAProxy that is told so by a signal through Docker, instead of its socket")
	f.String("haproxy-reload-signal", "USR2", "the signal")
	f.String("haproxy-binary", kindHAProxy, "program to validate a configuration with before it is loaded, if it is here, or none")
	f.Duration("haproxy-timeout", 10*time.Second, "how long HAProxy may take to answer or to reload")
	f.Duration("haproxy-stop-timeout", 8*time.Second, "how long an HAProxy that berth runs may finish its connections when berth is stopped")
	f.Duration("haproxy-drain-timeout", 5*time.Minute, "how long requests may go on at a server that was removed")
	f.Duration("haproxy-tunnel-timeout", time.Hour, "the same for TCP connections and websockets")
	f.String("nginx-config", "/etc/nginx/nginx.conf", "nginx's configuration file, in a directory that berth may write to, or none")
	f.String("nginx-socket", "/run/nginx/berth.sock", "control socket for nginx to listen on, in a directory for nginx and berth alone")
	f.String("nginx-binary", kindNginx, "program to validate a configuration with before it is loaded, if it is here, or none")
	f.Duration("nginx-timeout", 10*time.Second, "how long nginx may take to answer or to reload")
	f.Duration("nginx-stop-timeout", 8*time.Second, "how long an nginx that berth runs may finish its connections when berth is stopped")
	f.Duration("nginx-closing-time", 0, "how long before a reload an nginx before 1.27.4 ends the connections that clients keep, besides 100ms after it")
	f.String("nginx-reload-command", "", "shell command that makes nginx load its file, instead of a signal to its master process")
	f.String("nginx-reload-container", "", "container of an nginx that is told so by SIGHUP through Docker")
	f.Bool("nginx-lua", false, "change servers without a reload by a balancer in Lua, in the built-in template (needs lua-nginx-module)")
	f.Bool("runtime", true, "change servers in the running HAProxy, or in nginx's Lua balancer; if false, every change is a reload")
	f.Duration("reload-interval", 200*time.Millisecond, "least time between two reloads; the first is done at once")
}

const (
	envPrefix = "BERTH_"

	// leastConnections leaves enough queries that block beside those that share some.
	leastConnections = 40
)

// readConfig joins flags, environment, file and defaults, in this order.
func readConfig(flags *pflag.FlagSet) (Config, error) {
	all := allFlags()
	known := map[string]bool{}
	all.VisitAll(func(f *pflag.Flag) { known[f.Name] = true })
	inFile := maps.Clone(known)
	inFile["policy"], inFile["files"] = true, true
	for _, kv := range os.Environ() {
		name, value, _ := strings.Cut(kv, "=") // an empty value counts as none, as in a compose file
		if key, ours := strings.CutPrefix(name, envPrefix); ours && value != "" && !known[strings.ToLower(strings.ReplaceAll(key, "_", "-"))] {
			return Config{}, fmt.Errorf("environment variable %s is no option of berth: see berth %s --help", name, flags.Name())
		}
	}
	v := viper.New()
	v.SetEnvPrefix(strings.TrimSuffix(envPrefix, "_"))
	v.SetEnvKeyReplacer(strings.NewReplacer("-", "_"))
	v.AutomaticEnv()
	var unbound error
	flags.VisitAll(func(f *pflag.Flag) {
		if known[f.Name] { // all but --help
			unbound = errors.Join(unbound, v.BindPFlag(f.Name, f))
		}
	})
	if unbound != nil {
		return Config{}, unbound
	}
	if file := v.GetString("config"); file != "" {
		if err := readFile(v, file, inFile); err != nil {
			return Config{}, err
		}
	}
	if err := checkDurations(v, all); err != nil {
		return Config{}, err
	}
	if err := checkFiles(v.Get("files")); err != nil {
		return Config{}, err
	}
	var c Config
	if err := v.UnmarshalExact(&c); err != nil {
		return Config{}, fmt.Errorf("configuration: %s", oneLine(err))
	}
	if lines, ok := v.Get("file").(string); ok { // from the environment: a command may have commas
		c.File = strings.FieldsFunc(lines, func(r rune) bool { return r == '\n' })
	}
	for _, s := range []*string{&c.Listen, &c.HAProxyBinary, &c.HAProxyConfig, &c.HAProxySocket, &c.NginxBinary, &c.NginxConfig, &c.NginxSocket} {
		if *s == "none" {
			*s = ""
		}
	}
	var err error
	if c.Proxy, err = proxyKind(c.Proxy, flags.Args()); err != nil {
		return Config{}, err
	}
	return c, c.validate()
}

func readFile(v *viper.Viper, file string, known map[string]bool) error {
	v.SetConfigFile(file)
	v.SetConfigType("yaml")
	if err := v.ReadInConfig(); err != nil {
		return fmt.Errorf("configuration file %s: %s", file, oneLine(err))
	}
	for _, key := range slices.Sorted(slices.Values(v.AllKeys())) {
		if v.InConfig(key) && !known[key] {
			return fmt.Errorf("configuration file %s: unknown key %q: the keys are the names of the flags, see berth run --help", file, key)
		}
	}
	return nil
}

// allFlags are those of all commands: registrar and templater may share a file and an environment.
func allFlags() *pflag.FlagSet {
	all := pflag.NewFlagSet("", pflag.ContinueOnError)
	commonFlags(all, "")
	registrarFlags(all)
	templaterFlags(all)
	serviceFlags(all)
	return all
}

// checkDurations says what is wrong with a duration better than decoding would, which takes 30 for nanoseconds.
func checkDurations(v *viper.Viper, all *pflag.FlagSet) error {
	var errs []error
	all.VisitAll(func(f *pflag.Flag) {
		if f.Value.Type() != "duration" || !v.IsSet(f.Name) {
			return
		}
		s := v.GetString(f.Name)
		switch d, err := time.ParseDuration(s); {
		case err != nil:
			errs = append(errs, fmt.Errorf("%s must be a duration like 200ms, 30s or 1m, not %q", f.Name, s))
		case d < 0:
			errs = append(errs, fmt.Errorf("%s must not be negative, it is %s", f.Name, s))
		}
	})
	return errors.Join(errs...)
}

func (c Config) validate() error {
	if !slices.Contains([]string{"auto", "text", "json"}, c.LogFormat) {
		return fmt.Errorf("log-format must be auto, text or json, not %q", c.LogFormat)
	}
	if _, err := parseLevel(c.LogLevel); err != nil {
		return err
	}
	if c.Deregister != "" && c.Deregister != "always" && c.Deregister != "on-success" {
		return fmt.Errorf("deregister must be always or on-success, not %q", c.Deregister)
	}
	if c.IP != "" {
		if _, err := netip.ParseAddr(c.IP); err != nil {
			return fmt.Errorf("ip must be an IP address, not %q", c.IP)
		}
	}
	if _, err := registrar.ParseTags(c.Tags); err != nil {
		return fmt.Errorf("tags: %w", err)
	}
	if c.TLSDirectory != "" && !filepath.IsAbs(c.TLSDirectory) {
		return fmt.Errorf("tls-directory must be an absolute path, as the proxy has it, not %q", c.TLSDirectory)
	}
	if c.VanishLimit < 0 || c.VanishLimit > 100 { // a command without it has 0
		return fmt.Errorf("vanish-limit is a percentage from 1 to 100, not %d", c.VanishLimit)
	}
	if c.ConsulConnections != 0 && c.ConsulConnections < leastConnections { // a command without it has 0
		return fmt.Errorf("consul-connections must be at least %d, not %d", leastConnections, c.ConsulConnections)
	}
	if err := c.proxy().check(); err != nil {
		return err
	}
	if err := registrar.ValidatePolicy(c.Policy); err != nil {
		return fmt.Errorf("policy: %w", err)
	}
	_, err := c.fileEntries()
	return err
}

func oneLine(err error) string {
	return strings.Join(strings.Fields(err.Error()), " ")
}
