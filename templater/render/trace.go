package render

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	texttemplate "text/template"
)

// dataFunctions names the functions of consul-template that ask for data.
var dataFunctions = []string{
	"caLeaf", "caRoots", "connect", "datacenters", "exportedServices", "file", "importedServices", "key", "keyExists",
	"keyOrDefault", "ls", "node", "nodes", "nomadService", "nomadServices", "nomadVar", "nomadVarExists", "nomadVarList",
	"nomadVarListSafe", "partitions", "peerings", "pkiCert", "safeLs", "safeTree", "secret", "secrets", "service", "services",
	"tree",
}

// tracing returns the version's functions, and replacements for consul-template's dataFunctions. These return the same values and
// record the dependencies, which the library reports only if the execution succeeds.
func (v *version) tracing() texttemplate.FuncMap {
	funcs := maps.Clone(v.funcs)
	for _, name := range dataFunctions {
		if funcs[name] == nil {
			funcs[name] = func(args ...any) (any, error) { return v.trace(name, args) }
		}
	}
	return funcs
}

// trace calls a function in a separate template.
func (v *version) trace(name string, args []any) (value any, err error) {
	call := name
	for n := range args {
		call += fmt.Sprintf(" (argument %d)", n)
	}
	result, err := v.run(v.compile("{{ result ("+call+") }}", texttemplate.FuncMap{
		"argument": func(n int) any { return args[n] },
		"result":   func(v any) string { value = v; return "" },
	}))
	if err != nil {
		if _, cause, found := strings.Cut(err.Error(), "error calling "+name+": "); found {
			err = errors.New(cause)
		}
		return nil, err
	}
	v.running.uses(result)
	return value, nil
}
