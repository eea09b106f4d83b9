package catalog

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/hashicorp/consul-template/dependency"
	"github.com/hashicorp/consul/api"

	"berth/templater/leftout"
)

// clean removes catalog data that would break the configuration line it is put into: otherwise anyone who can register a service
// could inject configuration. It drops an instance with a control character in its names or a blank in an address, and returns
// the reason. In tags and metadata, which may hold lists with one item per line, it replaces control characters by blanks.
func clean(data any) (cleaned any, leftOut []string) {
	// isBad records what is wrong with a service or its instance; "" = nothing.
	isBad := func(service, instance, why string) bool {
		if why != "" {
			leftOut = append(leftOut, leftout.Sentence(service, instance, why))
		}
		return why != ""
	}
	isBadNode := func(n *dependency.Node) bool {
		why := badNode(n)
		if why != "" {
			leftOut = append(leftOut, fmt.Sprintf("node %.100q: %s", n.Node, why))
		}
		return why != ""
	}
	switch list := data.(type) {
	case pausedAnswer:
		return list.clean()
	case []*dependency.HealthService:
		data = slices.DeleteFunc(list, func(s *dependency.HealthService) bool {
			s.Tags = blanks(s.Tags)
			s.ServiceMeta, s.NodeMeta = cleanMeta(s.ServiceMeta), cleanMeta(s.NodeMeta)
			return isBad(s.Name, s.ID, cmp.Or(badName("id", s.ID), badName("name", s.Name), badName("node", s.Node),
				badAddress(s.Address), badAddress(s.NodeAddress), badServiceAddresses(s.ServiceTaggedAddresses), badNodeAddresses(s.NodeTaggedAddresses)))
		})
	case []*api.ServiceEntry:
		data = slices.DeleteFunc(list, func(e *api.ServiceEntry) bool {
			s := e.Service
			s.Tags = blanks(s.Tags)
			s.Meta, e.Node.Meta = cleanMeta(s.Meta), cleanMeta(e.Node.Meta)
			return isBad(s.Service, s.ID, cmp.Or(badName("id", s.ID), badName("name", s.Service), badName("node", e.Node.Node),
				badAddress(s.Address), badAddress(e.Node.Address), badServiceAddresses(s.TaggedAddresses), badNodeAddresses(e.Node.TaggedAddresses)))
		})
	case []*dependency.CatalogSnippet:
		data = slices.DeleteFunc(list, func(s *dependency.CatalogSnippet) bool {
			s.Tags = blanks(s.Tags)
			return isBad(s.Name, "", badName("name", s.Name))
		})
	case []*dependency.Node:
		data = slices.DeleteFunc(list, isBadNode)
	case *dependency.CatalogNode:
		switch {
		case list == nil || list.Node == nil:
		case isBadNode(list.Node):
			data = &dependency.CatalogNode{}
		default:
			list.Services = slices.DeleteFunc(list.Services, func(s *dependency.CatalogNodeService) bool {
				s.Tags, s.Meta = blanks(s.Tags), cleanMeta(s.Meta)
				return isBad(s.Service, s.ID, cmp.Or(badName("id", s.ID), badName("name", s.Service), badAddress(s.Address)))
			})
		}
	}
	return data, leftOut
}

func badName(what, text string) string {
	if !strings.ContainsFunc(text, unicode.IsControl) {
		return ""
	}
	return fmt.Sprintf("its %s %.100q has a line break or another control character; register it with another", what, text)
}

func badAddress(text string) string {
	if !strings.ContainsFunc(text, func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) }) {
		return ""
	}
	return fmt.Sprintf("its address %.100q has a blank or a control character; register it with another", text)
}

// badNode cleans the metadata of a node, and returns what is wrong with its name or addresses.
func badNode(n *dependency.Node) string {
	n.Meta = cleanMeta(n.Meta)
	return cmp.Or(badName("name", n.Node), badAddress(n.Address), badNodeAddresses(n.TaggedAddresses))
}

func badServiceAddresses(all map[string]api.ServiceAddress) (first string) {
	for _, a := range all {
		first = firstReason(first, badAddress(a.Address))
	}
	return first
}

func badNodeAddresses(all map[string]string) (first string) {
	for _, a := range all {
		first = firstReason(first, badAddress(a))
	}
	return first
}

// firstReason returns the first of two reasons in sort order, so the log does not depend on map order; "" = none.
func firstReason(a, b string) string {
	if a == "" || b != "" && b < a {
		return b
	}
	return a
}

// blanks replaces control characters in the texts by blanks.
func blanks(texts []string) []string {
	for n, text := range texts {
		texts[n] = blank(text)
	}
	return texts
}

func blank(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, text)
}

// cleanMeta replaces control characters in the values; Consul allows none in keys.
func cleanMeta(meta map[string]string) map[string]string {
	for key, value := range meta {
		if clean := blank(value); clean != value {
			meta[key] = clean
		}
	}
	return meta
}
