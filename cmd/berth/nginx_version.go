package main

import (
	"sync"

	"berth/proxyctl/nginx"
)

// nginxVersion is the version of nginx as far as it is known: what looks after nginx learns it, and templates ask for it.
type nginxVersion struct {
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

// set makes a version the known one, and says whether templates would be told something else now.
func (v *nginxVersion) set(known string) (differs bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.known = known
	for version, was := range v.answered {
		differs = differs || was != nginx.AtLeast(known, version)
	}
	return differs
}
