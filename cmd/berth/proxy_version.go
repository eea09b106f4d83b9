package main

import (
	"sync"

	"berth/proxyctl"
)

// proxyVersion is the known version of a proxy, and whether HAProxy was built with Lua. The driver learns both, templates ask for
// them.
type proxyVersion struct {
	rerender chan struct{} // of capacity 1: templates would be told something else

	mu       sync.Mutex
	known    string
	answered map[string]bool // to templates, by the version that they asked for
	lualess  bool            // HAProxy was built without Lua
	askedLua bool            // a template asked
}

func newProxyVersion() *proxyVersion {
	return &proxyVersion{rerender: make(chan struct{}, 1), answered: map[string]bool{}}
}

// atLeast reports whether the proxy has this version or a later one.
func (v *proxyVersion) atLeast(version string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.answered[version] = proxyctl.AtLeast(v.known, version)
	return v.answered[version]
}

// now returns the version, "" if it is not known.
func (v *proxyVersion) now() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.known
}

// learn sets the known version, and renders the templates again if an earlier answer to them has changed.
func (v *proxyVersion) learn(known string) (rerenders bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.known = known
	for version, was := range v.answered {
		rerenders = rerenders || was != proxyctl.AtLeast(known, version)
	}
	if rerenders {
		v.notify()
	}
	return rerenders
}

// notify requests that the templates are rendered again. The caller holds the lock.
func (v *proxyVersion) notify() {
	if len(v.rerender) == 0 { // nobody else sends
		v.rerender <- struct{}{}
	}
}

// lua reports whether HAProxy has Lua, which is true unless proven otherwise.
func (v *proxyVersion) lua() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.askedLua = true
	return !v.lualess
}

// withoutLua records that HAProxy was built without Lua, and renders the templates again if one asked. It reports whether this was
// new.
func (v *proxyVersion) withoutLua() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.lualess {
		return false
	}
	v.lualess = true
	if v.askedLua {
		v.notify()
	}
	return true
}
