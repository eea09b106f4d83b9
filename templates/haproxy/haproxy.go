// Package haproxy turns services with routes into values for a HAProxy configuration.
package haproxy

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"

	"berth/templates/claim"
	"berth/templates/route"
)

// Backend is a group of routes in HAProxy, with its settings. Every value is safe in a configuration.
type Backend struct {
	Name      string
	TCP       bool           // connections, not requests
	Servers   []Server       // by name
	Settings  claim.Settings // Check applies to all servers that have one
	Checks    string         // map of server names to checks, if these differ; "" = they do not
	Defaults  Defaults       // the section with the other settings
	Cookie    string         // name of the cookie; "" = clients do not stay with a server
	CheckHost string         // the Host header of health checks; "" = none
}

// Server is one instance of a service.
type Server struct {
	Name, Address string
	Weight        int    // 0 = the default
	Drained       bool   // gets no new requests
	Unchecked     bool   // the backend's checks do not apply to it
	Cookie        string // cookie value of the server's clients; "" = none
	ID            int    // place in a hash; 0 = any
}

// Backends returns a group's backends: one for HTTP if it has routes, one for TCP if it has ports.
func Backends(g *route.Group) []*Backend {
	var all []*Backend
	if len(g.Routes) > 0 {
		b := newBackend(g, g.Name, g.Settings, false)
		if g.Sticky {
			b.Cookie = "berth-" + g.Name // the services of a host share its cookies
			for n, server := range b.Servers {
				sum := sha256.Sum256([]byte(server.Name)) // clients need not know the name
				b.Servers[n].Cookie = fmt.Sprintf("%x", sum[:8])
			}
		}
		all = append(all, b)
	}
	if len(g.Ports) > 0 {
		all = append(all, newBackend(g, tcpName(g), g.ForTCP(), true))
	}
	return all
}

// tcpName returns the name of a group's backend for TCP.
func tcpName(g *route.Group) string { return g.Name + ".tcp" }

// newBackend returns a backend with the parts common to HTTP and TCP.
func newBackend(g *route.Group, name string, settings claim.Settings, tcp bool) *Backend {
	b := &Backend{Name: name, TCP: tcp, Settings: settings, Defaults: newDefaults(settings, tcp)}
	for _, server := range g.Servers {
		b.Servers = append(b.Servers, Server{Name: server.Name, Address: server.Address, Weight: server.Weight, Drained: server.Drained})
	}
	if b.Defaults.Hash {
		numberServers(b.Servers)
	}
	if len(g.Routes) > 0 && g.Routes[0].Rank() == 0 {
		b.CheckHost = g.Routes[0].Host
	}
	b.setChecks(g.Servers)
	return b
}

// setChecks sets each server's own check path. A backend has one kind of check, so servers without a path are unchecked if
// others have one.
func (b *Backend) setChecks(servers []route.Server) {
	var paths []string
	unnamed := 0
	for _, s := range servers {
		if s.Check == "" {
			unnamed++
		} else if !slices.Contains(paths, s.Check) {
			paths = append(paths, s.Check)
		}
	}
	if len(servers) > 0 {
		b.Settings.Check = ""
	}
	if len(paths) == 1 {
		b.Settings.Check = paths[0]
	}
	if len(paths) == 0 || len(paths) == 1 && unnamed == 0 {
		return
	}
	for n, s := range servers {
		b.Servers[n].Unchecked = s.Check == ""
		if s.Check != "" && len(paths) > 1 {
			b.Checks += s.Name + " " + s.Check + "\n"
		}
	}
}

// numberServers gives each server an ID made from its name. HAProxy places a server in a hash by its ID. Without an ID it
// uses the server's position in the file, and most clients would change servers whenever one comes or goes.
func numberServers(servers []Server) {
	taken := map[int]bool{}
	for n := range servers {
		sum := sha256.Sum256([]byte(servers[n].Name))
		id := int(binary.BigEndian.Uint32(sum[:])%999_999_999) + 1
		for taken[id] {
			id = id%999_999_999 + 1
		}
		taken[id] = true
		servers[n].ID = id
	}
}
