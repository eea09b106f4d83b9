package render

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"

	"github.com/hashicorp/consul-template/dependency"
)

// located inserts the template's source, which the library does not know, and removes secrets: "execute: template: :3:5:
// executing" becomes "web.ctmpl:3:5: executing".
func (v *version) located(err error) error {
	text := v.redacted(err.Error())
	if _, message, found := strings.Cut(text, "template: :"); found {
		return fmt.Errorf("%s:%s", v.Source, message)
	}
	return fmt.Errorf("%s: %s", v.Source, text)
}

// redacted returns an error's text without secrets. The library redacts only values at the top level of the data, and none of
// traced functions.
func (v *version) redacted(text string) string {
	used := map[string]dependency.Dependency{}
	for f := range v.fragments {
		maps.Copy(used, f.used)
	}
	for x := v.running; x != nil; x = x.outer {
		maps.Copy(used, x.used)
	}
	var pairs []string
	for _, d := range used {
		data, _ := v.set.brain.Recall(d)
		switch data := data.(type) {
		case *dependency.Secret:
			if data != nil {
				pairs = append(pairs, secrets(data.Data)...)
			}
		case *dependency.NomadVarItems:
			if data != nil {
				for _, value := range data.Values() {
					pairs = append(pairs, secrets(value)...)
				}
			}
		}
	}
	return strings.NewReplacer(pairs...).Replace(text)
}

// secrets returns the strings and numbers in a secret, at any depth, each followed by its replacement.
func secrets(data any) (pairs []string) {
	switch v := data.(type) {
	case map[string]any:
		for _, inner := range v {
			pairs = append(pairs, secrets(inner)...)
		}
	case []any:
		for _, inner := range v {
			pairs = append(pairs, secrets(inner)...)
		}
	case string:
		if v != "" {
			pairs = append(pairs, v, "[redacted]")
		}
	case json.Number: // a short number may be a line number
		if len(v) > 3 {
			pairs = append(pairs, v.String(), "[redacted]")
		}
	}
	return pairs
}
