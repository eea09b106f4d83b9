// Package group has the template functions for an application whose instances are a group in Consul: the group's
// configuration (cfg), the services that it needs (bind), and its members (svc).
package group

import (
	"text/template"

	"github.com/hashicorp/consul/api"
)

// Ask returns the instances of a service in every state of health, as Consul describes them; none while they are unknown.
type Ask = func(service string) []*api.ServiceEntry

// Options are the sources of the functions.
type Options struct {
	// Config returns the merged configuration: tables are map[string]any, lists []any. It is called at each execution and
	// must not block; its result must not be changed. nil = no configuration.
	Config func() map[string]any
	Binds  []Binding
	Self   func() Identity // called like Config
}

// Funcs returns the template functions:
//
//	cfg "db" "host"                    the value of a key of the configuration; cfg "db.host" is the same, cfg all of it
//	cfgOrDefault "db" "host" "::1"     the same, or the last argument if there is no such key
//	bind "redis"                       a *Bind; nil if the service has no instance that is well
//	svc                                a Service: this one
//
// A missing key and an undeclared bind are errors. Only the services of binds and groups that a template uses are watched.
func Funcs(o Options) func(report func(string), ask Ask) template.FuncMap {
	config := func() map[string]any {
		if o.Config == nil {
			return nil
		}
		return o.Config()
	}
	return func(_ func(string), ask Ask) template.FuncMap {
		return template.FuncMap{
			"cfg": func(keys ...string) (any, error) { return lookUp(config(), keys) },
			"cfgOrDefault": func(key string, rest ...any) (any, error) {
				return lookUpOr(config(), key, rest)
			},
			"bind": func(name string) (*Bind, error) {
				b, err := find(o.Binds, name)
				if err != nil {
					return nil, err
				}
				return b.bind(ask), nil
			},
			"svc": func() Service { return newService(o.Self(), ask) },
		}
	}
}
