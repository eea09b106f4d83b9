package templater

import (
	"cmp"
	"maps"
	"slices"

	"github.com/hashicorp/consul-template/dependency"
	"github.com/hashicorp/consul/api"

	"berth/templater/catalog"
)

// heard holds the services and instances received by the watches, for Options.Services and Options.Instances.
type heard struct {
	instances map[string]*heardOf // by service
	of        map[string]string   // the service of a watch for instances, by its Key
	services  map[string][]string // by the watch's Key
}

// heardOf holds the received instances of a service.
type heardOf struct {
	all  []*api.ServiceEntry            // in every state of health; nil = no template asks for them
	some map[string][]*api.ServiceEntry // for consul-template's own functions, by the watch's Key
}

func newHeard() heard {
	return heard{instances: map[string]*heardOf{}, of: map[string]string{}, services: map[string][]string{}}
}

// list returns all received instances, nil if no template asks for any.
func (h *heardOf) list() []*api.ServiceEntry {
	if h.all != nil || len(h.some) == 0 {
		return h.all
	}
	list := slices.Concat(slices.Collect(maps.Values(h.some))...)
	compare := func(a, b *api.ServiceEntry) int {
		return cmp.Or(cmp.Compare(a.Node.Node, b.Node.Node), cmp.Compare(a.Service.ID, b.Service.ID))
	}
	slices.SortFunc(list, compare)
	list = slices.CompactFunc(list, func(a, b *api.ServiceEntry) bool { return compare(a, b) == 0 })
	return slices.Grow(list, 1) // not nil
}

// hear stores the new data of a watch and passes its services and instances on.
func (t *Templater) hear(w *catalog.Watch, data any) {
	switch list := data.(type) {
	case []*api.ServiceEntry:
		if of, is := w.Dependency.(*catalog.Instances); is && t.opts.Instances != nil {
			t.heardOf(w, of.Service()).all = list
			t.tellInstances(of.Service())
		}
	case []*dependency.HealthService:
		service := t.heard.of[w.Key]
		if len(list) > 0 {
			service = list[0].Name
		}
		if service != "" && t.opts.Instances != nil {
			t.heardOf(w, service).some[w.Key] = catalog.Entries(list)
			t.tellInstances(service)
		}
	case []*dependency.CatalogSnippet:
		if t.opts.Services == nil {
			return
		}
		names := make([]string, len(list))
		for n, s := range list {
			names[n] = s.Name
		}
		t.heard.services[w.Key] = names
		t.tellServices()
	}
}

func (t *Templater) heardOf(w *catalog.Watch, service string) *heardOf {
	t.heard.of[w.Key] = service
	h := t.heard.instances[service]
	if h == nil {
		h = &heardOf{some: map[string][]*api.ServiceEntry{}}
		t.heard.instances[service] = h
	}
	return h
}

// unhear forgets the data of a stopped watch.
func (t *Templater) unhear(w *catalog.Watch) {
	if service, there := t.heard.of[w.Key]; there {
		h := t.heard.instances[service]
		if _, is := w.Dependency.(*catalog.Instances); is {
			h.all = nil
		}
		delete(h.some, w.Key)
		delete(t.heard.of, w.Key)
		t.tellInstances(service)
	}
	if _, there := t.heard.services[w.Key]; there {
		delete(t.heard.services, w.Key)
		t.tellServices()
	}
}

func (t *Templater) tellInstances(service string) {
	list := t.heard.instances[service].list()
	if list == nil {
		delete(t.heard.instances, service)
	}
	t.opts.Instances(service, list)
}

func (t *Templater) tellServices() {
	var names []string
	if len(t.heard.services) > 0 {
		names = slices.Compact(slices.Sorted(slices.Values(slices.Concat(slices.Collect(maps.Values(t.heard.services))...))))
		names = slices.Grow(names, 1) // not nil
	}
	t.opts.Services(names)
}
