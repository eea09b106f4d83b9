package main

import (
	"sync"

	"berth/proxyctl/nginx"
)

// nginxVersion is the version of nginx as far as it is known: what looks after nginx learns it, and templates ask for it.
type nginxVersion struct {
	rerender wake // templates would be told something else

	mu       sync.Mutex
	known    string
	answered map[string]bool // what templates were told, by the version they asked for
}

// atLeast says whether nginx is of a version or a later one.
func (v *nginxVersion) atLeast(version string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.answered == nil {
		v.answered = map[string]bool{}
	}
	v.answered[version] = nginx.AtLeast(v.known, version)
	return v.answered[version]
}

// learn makes a version the known one, and has the templates rendered again if they would be told something else now.
func (v *nginxVersion) learn(known string) (rerenders bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.known = known
	for version, was := range v.answered {
		rerenders = rerenders || was != nginx.AtLeast(known, version)
	}
	if rerenders {
		v.rerender.up()
	}
	return rerenders
}
