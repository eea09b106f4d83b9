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

// clean returns data from the catalog without what would break the line that it is put into: otherwise whoever may register a
// service could write the configuration. An instance with a control character in its names, or with a blank in an address, is
// left out, with the reason. In tags and metadata, where lists may be on lines of their own, a control character is read as a
// blank.
func clean(data any) (cleaned any, leftOut []string) {
	// isBad reports what is bad about a service, or an instance of it; "" = nothing.
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

// badNode cleans the metadata of a node, and returns what is bad about its name or its addresses.
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

// firstReason returns the first of two reasons, so that the order of a map does not decide which one is logged; "" is none.
func firstReason(a, b string) string {
	if a == "" || b != "" && b < a {
		return b
	}
	return a
}

// blanks replaces control characters in the texts.
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

// cleanMeta replaces control characters in the values; the keys have none in Consul.
func cleanMeta(meta map[string]string) map[string]string {
	for key, value := range meta {
		if clean := blank(value); clean != value {
			meta[key] = clean
		}
	}
	return meta
}
