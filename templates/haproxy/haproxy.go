// Package haproxy turns services with routes into the values that fill a configuration of HAProxy.
package haproxy

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"berth/templates/route"
)

// Backend is a service in HAProxy, with the settings that apply. Every value may be written to a configuration as it is.
type Backend struct {
	Name      string
	TCP       bool     // connections, not requests
	Servers   []Server // by name
	Settings  route.Settings
	Hash      bool   // the algorithm is a hash
	Cookie    string // its name; "" = clients do not stay with a server
	CheckHost string // the Host header of health checks; "" = none
	Strips    []Strip
}

// Server is one instance of a service.
type Server struct {
	Name, Address string
	Weight        int    // 0 = the default
	Cookie        string // value that clients of the server send; "" = none
	ID            int    // place in a hash; 0 = any
}

// Backends returns a service's backends: one for HTTP, one for TCP, as it has routes and ports.
func Backends(s *route.Service) []*Backend {
	var all []*Backend
	if len(s.Routes) > 0 {
		b := newBackend(s, s.Name, s.Settings)
		if s.Strip {
			b.Strips = strips(s.Routes)
		}
		if s.Sticky {
			b.Cookie = "berth-" + s.Name // services of one host share its cookies
			for n, server := range b.Servers {
				sum := sha256.Sum256([]byte(server.Name)) // clients need not know the name
				b.Servers[n].Cookie = fmt.Sprintf("%x", sum[:8])
			}
		}
		all = append(all, b)
	}
	if len(s.Ports) > 0 {
		b := newBackend(s, s.Name+".tcp", s.ForTCP())
		b.TCP = true
		all = append(all, b)
	}
	return all
}

// newBackend returns a backend with the parts that HTTP and TCP have in common.
func newBackend(s *route.Service, name string, settings route.Settings) *Backend {
	b := &Backend{Name: name, Settings: settings, Hash: settings.IsHash()}
	for _, server := range s.Servers {
		b.Servers = append(b.Servers, Server{Name: server.Name, Address: server.Address, Weight: server.Weight})
	}
	if b.Hash {
		numberServers(b.Servers)
	}
	if len(s.Routes) > 0 && s.Routes[0].Rank() == 0 {
		b.CheckHost = s.Routes[0].Host
	}
	return b
}

// numberServers gives each server an ID made from its name. HAProxy places a server in a hash by its ID, and without an ID
// by its line in the file, so that most clients would change servers whenever one comes or goes.
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

// Strip is how a path prefix is removed from requests.
type Strip struct {
	Prefix string   // without the slash at its end
	Field  int      // number of the field of the path that follows it, where / separates fields and the first is empty
	Keys   []string // lists of the routes with this prefix, of which one must fit; none = all requests have the prefix
}

// mostPatterns is how many routes are compared in one line. HAProxy takes 64 words on one.
const mostPatterns = 40

// strips returns the prefixes to remove, the longest first. The first prefix that fits is the right one, because txn.key
// begins with the host or wildcard of the request's route.
func strips(routes []route.Route) []Strip {
	keys := map[string][]string{} // by path
	for _, r := range routes {
		keys[r.Path] = append(keys[r.Path], r.String())
	}
	var all []Strip
	for path := range keys {
		prefix := strings.TrimSuffix(path, "/")
		if prefix == "" {
			continue
		}
		s := Strip{Prefix: prefix, Field: strings.Count(path, "/") + 1}
		if len(keys) > 1 {
			for some := range slices.Chunk(keys[path], mostPatterns) {
				s.Keys = append(s.Keys, strings.Join(some, " "))
			}
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b Strip) int {
		return cmp.Or(cmp.Compare(len(b.Prefix), len(a.Prefix)), cmp.Compare(a.Prefix, b.Prefix))
	})
	return all
}

// Map returns the routes as HAProxy's map_beg reads them: "shop.example.com/cart/ cart".
func Map(claims []route.Claim) string {
	var text strings.Builder
	for _, c := range claims {
		for _, part := range [...]string{c.Route.String(), " ", c.Service.Name, "\n"} {
			text.WriteString(part)
		}
	}
	return text.String()
}
