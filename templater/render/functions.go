package render

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	texttemplate "text/template"
	"time"

	"github.com/hashicorp/consul-template/config"
	"github.com/hashicorp/consul-template/dependency"
	"github.com/hashicorp/consul/api"

	"berth/templater/catalog"
)

// The functions that every template has in addition to consul-template's.
const (
	funcPartial   = "partial"
	funcAsFile    = "asFile"
	funcAsMap     = "asMap"
	funcAsCrtList = "asCrtList"
	funcDirectory = "directory"
	funcInstances = "instances"
	funcPaused    = "paused"
	// Internal: the argument of a partial, and the end of an execution.
	funcArgument = "berthArgument"
	funcStop     = "berthStop"
)

// functions returns berth's own template functions. Some replace functions of consul-template.
func (v *version) functions() texttemplate.FuncMap {
	funcs := texttemplate.FuncMap{
		funcPartial: v.partial, funcAsFile: v.asFile, funcAsMap: v.asMap, funcAsCrtList: v.asCrtList, funcDirectory: v.directory, funcInstances: v.instances, funcPaused: v.paused,
		funcArgument: func() any { return v.running.of.arg },
		funcStop:     func() (string, error) { return "", errStop },
	}
	maps.Copy(funcs, denied(&v.set.opts))
	if v.Funcs != nil {
		maps.Copy(funcs, v.Funcs(func(reason string) { v.running.leftOut[reason] = true }, v.instances))
	}
	return funcs
}

// denied returns failing replacements for functions of consul-template: for those that run programs or write files, unless these
// are allowed, and for those without a client (the library would dereference nil).
func denied(opts *Options) texttemplate.FuncMap {
	funcs := texttemplate.FuncMap{}
	deny := func(why string, names ...string) {
		for _, name := range names {
			funcs[name] = func(...any) (string, error) { return "", errors.New("function is disabled: " + why) }
		}
	}
	if !opts.Programs {
		deny("template-programs enables functions that run programs or write files", "plugin", "writeToFile")
	}
	if opts.Library == nil || !config.BoolVal(opts.Library.Vault.Enabled) {
		deny("set VAULT_ADDR to the address of Vault", "secret", "secrets", "pkiCert")
	}
	if opts.Library == nil || !config.BoolVal(opts.Library.Nomad.Enabled) {
		deny("set NOMAD_ADDR to the address of Nomad",
			"nomadServices", "nomadService", "nomadVarList", "nomadVarListSafe", "nomadVar", "nomadVarExists")
	}
	return funcs
}

// environment returns the variables through which consul-template exposes its configuration to templates.
func environment(opts *Options) []string {
	if opts.Consul == nil {
		return nil
	}
	return []string{
		fmt.Sprint("CONSUL_HTTP_SSL=", opts.Consul.Scheme == "https"),
		fmt.Sprint("CONSUL_HTTP_SSL_VERIFY=", !opts.Consul.TLSConfig.InsecureSkipVerify),
	}
}

// partial is the template function: it returns the text of a {{ define }} for an argument, and executes it only if an input has
// changed.
func (v *version) partial(name string, args ...any) (string, error) {
	key := fragmentKey{name: name}
	switch {
	case len(args) > 1:
		return "", fmt.Errorf("partial takes a name and one argument, not %d", len(args))
	case len(args) == 1:
		key.arg = args[0]
	}
	switch kind := reflect.ValueOf(key.arg).Kind(); kind {
	case reflect.Invalid, reflect.String, reflect.Bool, reflect.Int, reflect.Int64, reflect.Uint64, reflect.Float64:
	default:
		return "", fmt.Errorf("partial %q: its argument must be a string, a number or a bool, because it is the key of the cached text, not %T", name, key.arg)
	}
	f := v.partials[key]
	if f == nil {
		compiled, err := v.compiledPartial(name)
		if err != nil {
			return "", err
		}
		f = &fragment{fragmentKey: key, compiled: compiled, dirty: true}
		v.partials[key] = f
	}
	if f.refreshing {
		return "", fmt.Errorf("partial %q of %v calls itself", name, key.arg)
	}
	v.refresh(f)
	v.running.calls[f] = f.generation
	return f.text(), nil
}

var fileName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,100}(\.[A-Za-z0-9_-]{1,20})?$`)

// asFile is the template function: it returns the path of a file with the text. The path changes with the text, so the
// configuration changes as well and never shares a file with the previous one.
func (v *version) asFile(name, text string) (string, error) {
	if v.FilePrefix == "" {
		return "", errors.New("asFile: this text has no directory for additional files")
	}
	if !fileName.MatchString(name) {
		return "", fmt.Errorf("asFile: %q must be a name like routes.map, of letters, digits, - and _", name)
	}
	ext := filepath.Ext(name)
	sum := sha256.Sum256([]byte(text))
	path := fmt.Sprintf("%s%s-%x%s", v.FilePrefix, strings.TrimSuffix(name, ext), sum[:8], ext)
	v.running.files[path] = text
	return path, nil
}

// asMap is the template function: it returns the path of a map with the text. The path stays the same, so new content does not
// change the configuration: the proxy receives it at run time.
func (v *version) asMap(name, text string) (string, error) {
	return v.asLive(funcAsMap, ".map", "routes", name, text)
}

// asCrtList is the template function: like asMap, for a list of certificates (HAProxy's crt-list).
func (v *version) asCrtList(name, text string) (string, error) {
	return v.asLive(funcAsCrtList, ".crt-list", "certificates", name, text)
}

var liveName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,100}$`)

// asLive returns the path of a file with this extension. The content may change while the path stays the same.
func (v *version) asLive(function, ext, example, name, text string) (string, error) {
	if v.MapPrefix == "" {
		return "", fmt.Errorf("%s: only HAProxy's configuration has files that change while it runs", function)
	}
	if base, ok := strings.CutSuffix(name, ext); !ok || !liveName.MatchString(base) {
		return "", fmt.Errorf("%s: %q must be a name like %s%s, of letters, digits, - and _", function, name, example, ext)
	}
	path := v.MapPrefix + name
	if was, twice := v.running.maps[path]; twice && was != text {
		return "", fmt.Errorf("%s: %s is defined twice with different texts", function, name)
	}
	v.running.maps[path] = text
	return path, nil
}

// directory is the template function: it returns the names of a directory's files.
func (v *version) directory(path string) (Directory, error) {
	if !filepath.IsAbs(path) {
		return Directory{}, fmt.Errorf("directory: %q is not an absolute path", path)
	}
	data, ok := v.recall(newDirectoryQuery(path))
	if !ok {
		return Directory{Path: path}, nil
	}
	return data.(Directory), nil
}

// instances is the template function: it returns the instances of a service in every state of health.
func (v *version) instances(service string) []*api.ServiceEntry {
	if service == "" {
		return nil // like consul-template's functions
	}
	d, err := catalog.NewInstances(service)
	if err != nil { // names in the catalog are untrusted
		v.running.leftOut[err.Error()] = true
		return nil
	}
	list, _ := v.recall(d)
	instances, _ := list.([]*api.ServiceEntry)
	return instances
}

// paused is the template function: it returns the services paused by hand, with the time a request waits. It is empty while the
// pauses are unknown.
func (v *version) paused() map[string]time.Duration {
	d := &catalog.Paused{}
	key := d.String()
	v.running.used[key] = d
	data, ok := v.brain().Recall(d)
	if !ok && v.set.late[key] == nil {
		v.running.missing = append(v.running.missing, key)
	}
	list, _ := data.([]*catalog.Pause)
	services := map[string]time.Duration{}
	for _, p := range list {
		services[p.Service] = p.Max
	}
	return services
}

// recall returns the data of a dependency and records its use.
func (v *version) recall(d dependency.Dependency) (data any, ok bool) {
	key := d.String()
	v.running.used[key] = d
	if data, ok = v.brain().Recall(d); !ok {
		v.running.missing = append(v.running.missing, key)
	}
	return data, ok
}
