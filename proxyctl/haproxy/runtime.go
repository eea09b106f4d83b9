package haproxy

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"berth/proxyctl"
	"berth/proxyctl/configfile"
)

// refusal is HAProxy's answer when it does not add or remove a server, a backend or a certificate.
type refusal struct{ does, server, words string }

func (r *refusal) Error() string {
	return fmt.Sprintf("HAProxy refuses to %s %s: %s", r.does, r.server, r.words)
}
func (r *refusal) Unwrap() error { return proxyctl.ErrUnexpected }

// key identifies other servers that would be refused for the same reason: all in the backend, or all with the same keywords. It
// is "" for a reason that may pass.
func (r *refusal) key(c *config) string {
	backend, name, _ := strings.Cut(r.server, "/")
	switch {
	case r.does == string(opCertificateAdd) || r.does == string(opCertificateSet):
		return certificateKey(r.server, c.certificate(r.server))
	case r.does == string(opCertificateDelete):
		return ""
	case r.does == "remove":
		return removalKey(backend, name)
	case name == "" && !strings.Contains(r.words, "already used"):
		return creationKey(c.bare[backend].from)
	case name == "":
		return ""
	case strings.Contains(r.words, "dynamic load balancing"):
		return backend
	case strings.Contains(r.words, "lready"): // a server of that name, or an ID
		return ""
	}
	s, _ := c.backends[backend].get(name)
	return refusalKey(backend, s)
}

func refusalKey(backend string, s server) string { return backend + " " + s.keywords }
func removalKey(backend, name string) string     { return "remove " + backend + "/" + name }
func creationKey(from string) string             { return "from " + from }

// answer is the kind of reply that a command expects. An error is an unexpected line, and may follow any command.
type answer int

const (
	answerNothing answer = iota
	answerAdded
	answerMoved
	answerDeleted // deleted, or not deletable yet
	answerCreated
	answerPublished
	answerUnpublished
)

// command is one command to the worker.
type command struct {
	text   string
	answer answer
}

// HAProxy's replies, 2.6 to 3.4.
const (
	saidCreated        = "New backend registered."
	saidPublished      = "Backend published."
	saidUnpublished    = "Backend unpublished."
	saidBackendDeleted = "Backend deleted."
	saidNoBackend      = "No such backend."
	saidPointedTo      = "This proxy cannot be removed at runtime due to other configuration elements pointing to it."

	saidAdded      = "New server registered."
	saidDeleted    = "Server deleted."
	saidNoServer   = "No such server."
	saidConnected  = "Server still has connections attached to it, cannot remove it."
	saidReferenced = "This server cannot be removed at runtime due to other configuration elements pointing to it."
)

// accepts reports whether a line is a reply of this kind.
func (a answer) accepts(line string) bool {
	switch a {
	case answerAdded:
		return line == saidAdded
	case answerMoved:
		return strings.HasSuffix(line, "by 'stats socket command'") || line == "nothing changed"
	case answerCreated:
		return line == saidCreated
	case answerPublished:
		return line == saidPublished
	case answerUnpublished:
		return line == saidUnpublished
	case answerDeleted:
		return line == saidDeleted || line == saidNoServer || line == saidConnected
	default:
		return false
	}
}

// commands returns the commands that carry out an op. id is the ID of an added server, 0 to leave it to HAProxy.
func (o op) commands(id int) []command {
	at := o.backend + "/" + o.name
	switch o.kind {
	case opCreate:
		return []command{{fmt.Sprintf("add backend %s from %s", o.backend, o.value), answerCreated}}
	case opPublish:
		return []command{{"publish backend " + o.backend, answerPublished}}
	case opUnpublish:
		return []command{{"unpublish backend " + o.backend, answerUnpublished}}
	case opMapAdd:
		return []command{{fmt.Sprintf("add map %s %s %s", o.backend, o.name, o.value), answerNothing}}
	case opMapSet:
		return []command{{fmt.Sprintf("set map %s %s %s", o.backend, o.name, o.value), answerNothing}}
	case opMapDelete:
		return []command{{fmt.Sprintf("del map %s %s", o.backend, o.name), answerNothing}}
	case opAdd:
		out := []command{{"add server " + at + " " + o.server.line(id), answerAdded}}
		if o.server.checked {
			out = append(out, command{"enable health " + at, answerNothing}) // first, otherwise it is never checked
		}
		if !o.server.disabled {
			out = append(out, command{"enable server " + at, answerNothing})
		}
		return out
	case opMove:
		out := []command{{fmt.Sprintf("set server %s addr %s port %d", at, o.server.address.Addr(), o.server.address.Port()), answerMoved}}
		if o.server.checked {
			// The results of its checks are about the old address.
			out = append(out, command{"set server " + at + " health up", answerNothing})
		}
		return out
	case opWeight:
		return []command{{fmt.Sprintf("set server %s weight %d", at, o.server.weight), answerNothing}}
	case opBack:
		return []command{{"set server " + at + " state ready", answerNothing}}
	case opLinger:
		entry := "add map"
		if o.again {
			entry = "set map"
		}
		out := []command{{fmt.Sprintf("%s %s %s 1", entry, o.value, o.backend), answerNothing}}
		if o.server.checked {
			out = append(out, command{"disable health " + at, answerNothing}) // otherwise it is soon down
		}
		return out
	case opCheck:
		return []command{{"enable health " + at, answerNothing}, {"set server " + at + " health up", answerNothing}}
	case opMaint:
		return []command{{"set server " + at + " state maint", answerNothing}}
	default:
		var out []command
		if o.server.checked { // it lingered without its checks
			out = append(out, command{"enable health " + at, answerNothing})
		}
		return append(out, command{"set server " + at + " state maint", answerNothing}, command{"del server " + at, answerDeleted})
	}
}

// Limits of one exchange: HAProxy 3.2 refuses a line longer than its buffer, 16 kB by default, and every "add server" stops all
// its threads for a moment.
const (
	maxLine     = 12000 // leaves room for the commands at the end that show servers
	maxCommands = 60
)

// mostShown is up to how many backends are asked for one by one instead of all.
const mostShown = 20

// exchange carries out ops in the worker whose mark has this shape, and returns the resulting state of their backends. Everything
// is added before anything else is touched, because HAProxy may refuse an addition. An error that wraps proxyctl.ErrUnexpected
// says what HAProxy did not accept.
func (m master) exchange(ctx context.Context, ops []op, nextID func(backend string) int, shape string) (state, error) {
	backends := map[string]bool{}
	var enter, rest []command
	var certificates, gone []op
	for _, o := range ops {
		if !o.isEntry() {
			backends[o.backend] = true
		}
		switch o.kind {
		case opCertificateAdd, opCertificateSet:
			certificates = append(certificates, o)
		case opCertificateDelete:
			gone = append(gone, o)
		case opAdd:
			enter = append(enter, o.commands(nextID(o.backend))...)
		case opCreate:
			enter = append(enter, o.commands(0)...)
		default:
			rest = append(rest, o.commands(0)...)
		}
	}
	show := []string{"show servers state"}
	if len(backends) <= mostShown {
		show = nil
		for _, backend := range slices.Sorted(maps.Keys(backends)) {
			show = append(show, "show servers state "+backend)
		}
	}
	if err := m.changeLists(ctx, certificates, shape); err != nil {
		return nil, err
	}
	reply := ""
	chunks := slices.Concat(inChunks(enter), inChunks(rest))
	if len(chunks) == 0 {
		return state{}, m.changeLists(ctx, gone, shape)
	}
	for i, some := range chunks {
		lines := []string{"show env " + markName}
		for _, c := range some {
			lines = append(lines, c.text)
		}
		if i == len(chunks)-1 {
			lines = append(lines, show...)
		}
		var err error
		if reply, err = m.worker(ctx, lines...); err != nil {
			return nil, err
		}
		if reply, err = checkMark(reply, shape); err != nil {
			return nil, err
		}
		if reply, err = checkReplies(some, reply); err != nil {
			return nil, err
		}
	}
	st, err := parseState(reply)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", proxyctl.ErrUnexpected, err)
	}
	return st, m.changeLists(ctx, gone, shape)
}

// inChunks splits commands into chunks of one exchange each.
func inChunks(commands []command) (out [][]command) {
	size := 0
	for _, c := range commands {
		if size += len(c.text) + 5; len(out) == 0 || size > maxLine || len(out[len(out)-1]) == maxCommands {
			out, size = append(out, nil), len(c.text)+5
		}
		out[len(out)-1] = append(out[len(out)-1], c)
	}
	return out
}

// nextLine cuts off the first non-empty line.
func nextLine(reply string) (line, rest string) {
	line, rest, _ = strings.Cut(strings.TrimLeft(reply, "\n"), "\n")
	return strings.TrimSpace(line), rest
}

// lastLine cuts off the first reply, and returns its last line: HAProxy puts what it logged meanwhile before its answer to "del
// backend".
func lastLine(reply string) (line, rest string) {
	one, rest, _ := strings.Cut(strings.TrimLeft(reply, "\n"), "\n\n")
	return strings.TrimSpace(one[strings.LastIndexByte(one, '\n')+1:]), rest
}

// checkMark checks the reply to "show env" and returns what follows it.
func checkMark(reply, shape string) (rest string, err error) {
	line, rest := nextLine(reply)
	value, _ := strings.CutPrefix(line, markName+"=")
	if configfile.ParseGeneration(value).Shape != shape {
		return "", fmt.Errorf("%w: HAProxy runs another configuration: %s", proxyctl.ErrUnexpected, oneLine(line))
	}
	return rest, nil
}

// checkReplies checks the replies against what the commands expect, and returns what follows them.
func checkReplies(commands []command, reply string) (rest string, err error) {
	for _, c := range commands {
		if c.answer == answerNothing {
			continue // an error would appear before the next expected line
		}
		line, rest := nextLine(reply)
		switch {
		case c.answer.accepts(line):
		case c.answer == answerAdded && line != "":
			name, _, _ := strings.Cut(strings.TrimPrefix(c.text, "add server "), " ")
			return "", &refusal{"add", name, oneLine(line)}
		case c.answer == answerCreated && line != "":
			name, _, _ := strings.Cut(strings.TrimPrefix(c.text, "add backend "), " ")
			return "", &refusal{"add backend", name, oneLine(line)}
		case line == saidReferenced:
			return "", &refusal{"remove", strings.TrimPrefix(c.text, "del server "), line}
		default:
			return "", fmt.Errorf("%w answer to %q: %q", proxyctl.ErrUnexpected, c.text, oneLine(line))
		}
		reply = rest
	}
	if line, _ := nextLine(reply); line != "" && line != "1" {
		return "", fmt.Errorf("%w answer to one of %d commands: %q", proxyctl.ErrUnexpected, len(commands), oneLine(line))
	}
	return reply, nil
}
