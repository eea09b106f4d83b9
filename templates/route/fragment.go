package route

import (
	"crypto/sha256"
	"fmt"
	"maps"
)

// Fragment is a service with the text that a template has made of it.
type Fragment struct {
	*Service
	Text   string
	Stream string // the text for TCP, where a proxy has that in another place

	used int // the last rendering that made or claimed it
}

// Fragments hands services, with their routes and texts as they are, from the partials in which a template reads them to
// the whole in which they meet. A partial is executed only when the instances of its service change, and what it returns
// is text; so it returns a key, which changes with the service, and the fragment waits here.
type Fragments struct {
	byKey     map[string]*Fragment
	rendering int // counts
	complete  int // the last rendering that came to its end
}

// Keep returns the key of a fragment. Equal fragments have equal keys.
func (k *Fragments) Keep(s *Service, text string, stream ...string) string {
	f := &Fragment{Service: s, Text: text, used: k.rendering}
	if len(stream) > 0 {
		f.Stream = stream[0]
	}
	sum := sha256.Sum256(fmt.Append(nil, s.Routes, s.Ports, s.Settings, len(text), text, f.Stream))
	key := fmt.Sprintf("%s-%x", s.Name, sum[:16])
	if k.byKey == nil {
		k.byKey = map[string]*Fragment{}
	}
	k.byKey[key] = f
	return key
}

// Begin begins a rendering, and forgets the fragments that the last complete one did without.
func (k *Fragments) Begin() {
	maps.DeleteFunc(k.byKey, func(_ string, f *Fragment) bool { return f.used < k.complete })
	k.rendering++
}

// Claim returns the fragment of a key, for the rendering that has begun; nil if there is none.
func (k *Fragments) Claim(key string) *Fragment {
	f := k.byKey[key]
	if f != nil {
		f.used = k.rendering
	}
	return f
}

// End says that the rendering has claimed all that it is made of.
func (k *Fragments) End() { k.complete = k.rendering }
