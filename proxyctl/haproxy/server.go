package haproxy

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// server is a server line with what it inherits from default-server lines: a server added at run time inherits nothing.
type server struct {
	address      netip.AddrPort
	weight       int
	disabled     bool
	keywords     string // all other keywords and their values, sorted
	checked      bool   // "check" is among them
	ownID        bool   // "id" is among them
	agent        bool   // an agent may change its weight and take it out of service
	reloadReason string // why it cannot be added or changed at run time, "" if it can; if set, keywords is the line as written

	draining bool // it is not in the text any more, and finishes its connections
	unknown  bool // it was found in HAProxy, so its keywords are unknown
}

// newServer parses a server line: its name, its address, and its words, inherited ones first.
func newServer(name, address string, words []string) server {
	s := server{weight: 1}
	for _, w := range words {
		if w == "disabled" || w == "enabled" {
			s.disabled = w == "disabled"
		}
		s.agent = s.agent || w == "agent-check"
	}
	if err := s.read(name, address, words); err != nil {
		s.fix(err.Error(), strings.Join(append([]string{address}, words...), " "))
	}
	return s
}

// fix marks the server as one that cannot be added or changed at run time.
func (s *server) fix(why, line string) { s.reloadReason, s.keywords = why, line }

// mostWords is the maximum number of words in one command of HAProxy, and on one line of its file.
const mostWords = 50

// names matches names of servers and backends that HAProxy accepts and that have no special meaning on its command line.
var names = regexp.MustCompile(`^[A-Za-z0-9_.:-]{1,200}$`)

func (s *server) read(name, address string, words []string) error {
	if !names.MatchString(name) {
		return fmt.Errorf("the name %q cannot be given at run time", name)
	}
	if len(words) > mostWords {
		return fmt.Errorf("%d keywords and values, HAProxy takes about %d at most", len(words), mostWords)
	}
	var err error
	// HAProxy accepts an unresolvable name for a server at run time, and then answers 503 for it.
	if s.address, err = netip.ParseAddrPort(address); err != nil || s.address.Addr().Zone() != "" || s.address.Addr().Is4In6() || s.address.Addr().IsUnspecified() || s.address.Port() == 0 {
		return fmt.Errorf("its address %q is not ip:port", address)
	}
	keywords := map[string]string{}
	for len(words) > 0 {
		word := words[0]
		words = words[1:]
		value := ""
		form, known := keywordForms[word]
		switch {
		case strings.HasPrefix(word, "no-") && known:
			delete(keywords, strings.TrimPrefix(word, "no-"))
			continue
		case word == "disabled" || word == "enabled":
			continue
		case !known:
			return fmt.Errorf("%s is not known to work at run time", word)
		case form != nil:
			if len(words) == 0 || !form.MatchString(words[0]) {
				return fmt.Errorf("the value of %s cannot be given at run time", word)
			}
			value, words = words[0], words[1:]
		}
		if word == "weight" {
			if s.weight, err = strconv.Atoi(value); err != nil || s.weight > 256 {
				return fmt.Errorf("weight %s is not between 0 and 256", value)
			}
			continue
		}
		keywords[word] = value
	}
	_, s.checked = keywords["check"]
	_, s.ownID = keywords["id"]
	var out []string
	for _, word := range slices.Sorted(maps.Keys(keywords)) {
		out = append(out, strings.TrimSuffix(word+" "+keywords[word], " "))
	}
	s.keywords = strings.Join(out, " ")
	return nil
}

// The forms of values. HAProxy checks little of what commands contain ("weight abc" becomes 0), and a blank, a semicolon, a
// backslash or << would end or alter the command. Any other value is left to a reload.
var (
	formNumber = regexp.MustCompile(`^[0-9]{1,9}$`)
	formTime   = regexp.MustCompile(`^[0-9]{1,9}(us|ms|s|m|h|d)?$`)
	formWord   = regexp.MustCompile(`^[A-Za-z0-9_.:,/@%+=*~()!\[\]-]{1,300}$`)
)

// keywordForms has the keywords of a server line that every HAProxy from 2.6 on accepts at run time or refuses with an error, and
// the form of their values; a nil form is a flag.
var keywordForms = func() map[string]*regexp.Regexp {
	forms := map[string]*regexp.Regexp{}
	for form, list := range map[*regexp.Regexp]string{
		nil: "allow-0rtt backup check check-send-proxy check-ssl force-tlsv10 force-tlsv11 force-tlsv12 force-tlsv13 " +
			"no-backup no-check no-check-ssl no-send-proxy no-send-proxy-v2 no-ssl " +
			"send-proxy send-proxy-v2 send-proxy-v2-ssl send-proxy-v2-ssl-cn ssl tfo",
		formNumber: "error-limit fall id maxconn maxqueue minconn pool-low-conn pool-max-conn port rise weight",
		formTime:   "downinter fastinter inter pool-purge-delay slowstart",
		formWord: "addr alpn ca-file check-alpn check-proto check-sni ciphers ciphersuites cookie crl-file crt guid hash-key init-state " +
			"npn observe on-error on-marked-down on-marked-up pool-conn-name proto proxy-v2-options sni ssl-max-ver ssl-min-ver verify verifyhost ws",
	} {
		for word := range strings.FieldsSeq(list) {
			forms[word] = form
		}
	}
	return forms
}()

// written returns the address as host:port, "" if it has another form. The address of a server with a host name is only in its
// line.
func (s server) written() string {
	if s.address.IsValid() {
		return s.address.String()
	}
	if s.reloadReason == "" {
		return ""
	}
	w, _ := words(s.keywords)
	if len(w) > 2 && w[0] == "server" { // the whole line
		w = w[2:]
	}
	if len(w) == 0 {
		return ""
	}
	if _, _, err := net.SplitHostPort(w[0]); err != nil {
		return ""
	}
	return w[0]
}

// equal reports whether two servers are the same, ignoring draining.
func (s server) equal(o server) bool {
	return s.disabled == o.disabled && s.sameLine(o)
}

// sameLine reports whether two servers differ at most in being in service.
func (s server) sameLine(o server) bool {
	return s.address == o.address && s.weight == o.weight && s.keywords == o.keywords && s.reloadReason == o.reloadReason && s.unknown == o.unknown
}

// line returns the server's address and keywords for the command "add server". id is omitted if it is 0 or the server has its
// own.
func (s server) line(id int) string {
	out := s.address.String()
	if s.weight != 1 {
		out += fmt.Sprint(" weight ", s.weight)
	}
	if id != 0 && !s.ownID {
		out += fmt.Sprint(" id ", id)
	}
	return strings.TrimSuffix(out+" "+s.keywords, " ")
}
