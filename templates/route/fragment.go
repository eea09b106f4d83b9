package route

import (
	"crypto/sha256"
	"fmt"
	"maps"
)

// Fragments hands services, with their routes and texts as they are, from the partials in which a template reads them to
// the whole in which they meet. A partial is executed only when the instances of its service change, and returns
// nothing but text; so it returns a key, which changes with the service, and the fragment waits here.
type Fragments struct {
	byKey     map[string]*fragment
	rendering int // counts
	complete  int // the last rendering that came to its end
}

// fragment is a service with the text that a template has made of it.
type fragment struct {
	Service
	text   string
	stream string // the text for TCP, where a proxy has that in another place
	used   int    // the last rendering that made or used it
}

// Keep returns the key of a service with its text. Equal ones have equal keys.
func (k *Fragments) Keep(s *Service, text string, stream ...string) string {
	f := &fragment{Service: *s, text: text, used: k.rendering}
	f.Servers, f.report = nil, nil // they are in the text
	if len(stream) > 0 {
		f.stream = stream[0]
	}
	var b []byte
	for _, r := range s.Routes {
		b = append(append(b, r.String()...), ' ')
	}
	sum := sha256.Sum256(fmt.Append(b, s.Ports, s.Strip, s.Redirect, s.Sticky, len(text), text, f.stream))
	key := fmt.Sprintf("%s-%x", s.Name, sum[:16])
	if k.byKey == nil {
		k.byKey = map[string]*fragment{}
	}
	k.byKey[key] = f
	return key
}

// NewTable begins a rendering with a table in which no service has anything yet, and forgets the fragments that the last
// complete rendering did without. Without tls there is no HTTPS to redirect to. Refused ports are not opened.
func (k *Fragments) NewTable(tls bool, refused *Refused, report func(string)) *Table {
	maps.DeleteFunc(k.byKey, func(_ string, f *fragment) bool { return f.used < k.complete })
	k.rendering++
	return &Table{
		Claims: make([]Claim, 0, len(k.byKey)), fragments: k, tls: tls, refused: refused, report: report,
		routes: make(map[Route]*Service, len(k.byKey)), owners: map[int]*Service{},
	}
}
