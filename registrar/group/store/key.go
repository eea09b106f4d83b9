package store

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Item names something with versions: the configuration of a service or, with a File, one of its files.
type Item struct {
	Service string // in Consul: app, or app-prod for the group prod
	File    string
}

// String names the item in messages.
func (i Item) String() string {
	if i.File == "" {
		return "the configuration of " + i.Service
	}
	return fmt.Sprintf("the file %s of %s", i.File, i.Service)
}

// Key returns the key of the current text. Its Flags are the version.
func (i Item) Key() string {
	if i.File == "" {
		return "berth/config/" + i.Service
	}
	return FilesPrefix(i.Service) + i.File
}

// HistoryKey returns the key of a version in the history. Its value is a line of JSON, the Header, followed by the text.
func (i Item) HistoryKey(version uint64) string {
	return i.historyPrefix() + strconv.FormatUint(version, 10)
}

func (i Item) historyPrefix() string {
	if i.File == "" {
		return "berth/history/" + i.Service + "/"
	}
	return "berth/history/" + i.Service + "/files/" + i.File + "/"
}

func (i Item) validate() error {
	if err := ValidService(i.Service); err != nil || i.File == "" {
		return err
	}
	return ValidFile(i.File)
}

// FilesPrefix begins the keys of a service's files.
func FilesPrefix(service string) string { return "berth/files/" + service + "/" }

// RestartKey returns the key of the newest restart order of a service: its Flags are the Order's number.
func RestartKey(service string) string { return "berth/restart/" + service }

// AppliedPrefix begins the keys of the Reports of a service's instances.
func AppliedPrefix(service string) string { return "berth/applied/" + service + "/" }

// AppliedKey returns the key of an instance's Report.
func AppliedKey(service, id string) string { return AppliedPrefix(service) + url.PathEscape(id) }

// RollingKey returns the key of the lock of a service's rolling change. Its value is a Roll.
func RollingKey(service string) string { return "berth/rolling/" + service }

// LeaderKey returns the key of the lock of a service's leader. While an instance leads, a session holds it, and its value is
// a leader.Leader in JSON.
func LeaderKey(service string) string { return "service/" + service + "/leader" }

const maxName = 200 // of a service; package label has the same rule

var (
	serviceName = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9_.-]*$`)
	groupName   = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9_-]*$`)
)

// ValidService returns an error unless berth can register services under a name.
func ValidService(name string) error {
	if !serviceName.MatchString(name) || len(name) > maxName {
		return fmt.Errorf("%s is not a service name: use up to %d letters, digits, -, _ and dots", quote(name), maxName)
	}
	return nil
}

// ParseService returns the service in Consul that an operator means: app is app, app.prod is the group prod of app, which is
// the service app-prod, and app.default is app. The last dot counts.
func ParseService(text string) (service string, err error) {
	dot := strings.LastIndexByte(text, '.')
	if dot < 0 {
		if err := ValidService(text); err != nil {
			return "", err
		}
		return text, nil
	}
	name, group := text[:dot], text[dot+1:]
	switch {
	case name == "" || group == "":
		return "", fmt.Errorf("%s names no service: write SERVICE or SERVICE.GROUP", quote(text))
	case !groupName.MatchString(group):
		return "", fmt.Errorf("%s is not a group name: use letters, digits, - and _", quote(group))
	case group != "default":
		name += "-" + group
	}
	if err := ValidService(name); err != nil {
		return "", err
	}
	return name, nil
}

// ValidFile returns an error unless a name is a single path element, so that a file stays in its directory.
func ValidFile(name string) error {
	problem := ""
	switch {
	case name == "" || name == "." || name == "..":
		return fmt.Errorf("%s is not a file name", quote(name))
	case len(name) > 255:
		problem = "has more than 255 bytes"
	case strings.ContainsAny(name, `/\`):
		problem = "has a slash: files have no directories"
	case !utf8.ValidString(name):
		problem = "is not UTF-8"
	case strings.ContainsFunc(name, unicode.IsControl):
		problem = "has control characters"
	default:
		return nil
	}
	return errors.New("the file name " + quote(name) + " " + problem)
}

// quote shortens foreign text for a message.
func quote(text string) string {
	if len(text) > 80 {
		text = strings.ToValidUTF8(text[:80], "") + "…"
	}
	return strconv.Quote(text)
}
