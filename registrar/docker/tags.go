package docker

import (
	"regexp"
	"strings"
	"text/template"

	docker "github.com/fsouza/go-dockerclient"

	"berth/registrar/label"
)

// ParseTags parses a template of further tags for every instance, separated by commas. Its data is what `docker
// inspect` says of the container: `{{.Config.Hostname}},prod`. It has Registrator's functions, apart from those that
// ask the network.
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

// strSlice returns s[from:], or s[from:to], or s if it is not that long.
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

// sIndex returns an element of a list, counted from its end if i is negative: the last or first one if there are not so
// many, and "" if there is none.
func sIndex(i int, list []string) string {
	if len(list) == 0 {
		return ""
	}
	if i < 0 {
		i += len(list)
	}
	return list[max(0, min(i, len(list)-1))]
}

// matching returns the elements that a regular expression matches.
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
