package docker

import (
	"regexp"
	"strings"
	"text/template"

	docker "github.com/fsouza/go-dockerclient"

	"berth/registrar/label"
)

// ParseTags parses a template of further tags for every instance, separated by commas. Its data is the output of `docker
// inspect` for the container: `{{.Config.Hostname}},prod`. It has Registrator's functions, except those that query the
// network.
func ParseTags(text string) (*template.Template, error) {
	return template.New("tags").Option("missingkey=zero").Funcs(template.FuncMap{
		"strSlice": strSlice,
		"sIndex":   sIndex,
		"mIndex":   func(key string, m map[string]string) string { return m[key] },
		"toUpper":  strings.ToUpper,
		"toLower":  strings.ToLower,
		"replace":  func(n int, from, to, s string) string { return strings.Replace(s, from, to, n) },
		"join":     func(sep string, s []string) string { return strings.Join(s, sep) },
		"split":    func(sep, s string) []string { return strings.Split(s, sep) },
		"splitIndex": func(i int, sep, s string) string {
			return sIndex(i, strings.Split(s, sep))
		},
		"matchFirstElement": func(pattern string, s []string) (string, error) {
			found, err := matching(pattern, s)
			return sIndex(0, found), err
		},
		"matchAllElements": matching,
	}).Parse(text)
}

// strSlice returns s[from:] or s[from:to], or s if s is shorter.
func strSlice(s string, bounds ...int) string {
	from, to := 0, len(s)
	if len(bounds) > 0 {
		from = bounds[0]
	}
	if len(bounds) > 1 && bounds[1] >= from {
		to = bounds[1]
	}
	if len(bounds) > 2 || from < 0 || from > len(s) || to > len(s) {
		return s
	}
	return s[from:to]
}

// sIndex returns an element of a list; a negative i counts from the end. Beyond the list it returns the last or first
// element, and "" for an empty list.
func sIndex(i int, list []string) string {
	if len(list) == 0 {
		return ""
	}
	if i < 0 {
		i += len(list)
	}
	return list[max(0, min(i, len(list)-1))]
}

// matching returns the elements that match a regular expression.
func matching(pattern string, list []string) (found []string, err error) {
	re, err := regexp.Compile(pattern)
	if err != nil {
		return nil, err
	}
	for _, s := range list {
		if re.MatchString(s) {
			found = append(found, s)
		}
	}
	return found, nil
}

// extraTags returns the tags that the template makes for a container, or why it makes none.
func extraTags(t *template.Template, in *docker.Container) (tags []string, problem string) {
	if t == nil {
		return nil, ""
	}
	var out strings.Builder
	if err := t.Execute(&out, in); err != nil {
		return nil, strings.Join(strings.Fields(err.Error()), " ") // on one line
	}
	return label.SplitTags(out.String()), ""
}
