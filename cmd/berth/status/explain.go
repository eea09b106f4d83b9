package status

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"berth/registrar"
	"berth/templates/claim"
)

// Explanation says how far one thing has come on its way to requests, why no further, and what to do.
type Explanation struct {
	About   string      `json:"about"`   // container web_1, service shop, http://shop.example.com/
	State   State       `json:"state"`   // Serving, or why not
	Verdict string      `json:"verdict"` // in a sentence
	Steps   []Explained `json:"steps"`
	Do      []string    `json:"do"` // nothing if all is well
}

// Explained is a step with its evidence.
type Explained struct {
	Step     string    `json:"step"`
	Passed   bool      `json:"passed"`
	At       time.Time `json:"at,omitzero"`
	Evidence []string  `json:"evidence"`
}

// ErrNotKnown is wrapped by the error of Explain for an unknown name.
var ErrNotKnown = errors.New("not known")

// Explain explains a container (by name, ID prefix or compose service), a service or an instance (by name or ID in Consul), or the
// URL of a request (with or without http://). report is the report of this host's registrar, with more detail than it publishes;
// nil without a registrar.
func (d *Document) Explain(name string, report *registrar.Report) ([]Explanation, error) {
	x := explainer{d, report}
	if strings.Contains(name, "/") {
		return x.url(name)
	}
	if strings.Trim(name, " ") == "" {
		return nil, fmt.Errorf("the name is empty: give a container, a service or a URL: %w", ErrNotKnown)
	}
	if list := x.containers(func(c found) bool { return c.name == name || c.id == name }); len(list) > 0 {
		return list, nil
	}
	for i := range d.Services {
		if d.Services[i].Name == name {
			return []Explanation{x.service(&d.Services[i])}, nil
		}
	}
	for _, is := range []func(c found) bool{
		func(c found) bool { return slices.Contains(c.instances, name) },
		func(c found) bool { return c.service == name },
		func(c found) bool { return len(name) >= 4 && strings.HasPrefix(c.id, name) },
	} {
		if list := x.containers(is); len(list) > 0 {
			return list, nil
		}
	}
	for i := range d.Services {
		for k := range d.Services[i].Instances {
			if in := &d.Services[i].Instances[k]; in.ID == name {
				return []Explanation{x.instance("instance "+in.ID, &d.Services[i], in, nil, nil)}, nil
			}
		}
	}
	if strings.Contains(name, ".") || strings.Contains(name, ":") {
		return x.url(name)
	}
	return nil, fmt.Errorf("no container, service or instance %q: %w%s", name, ErrNotKnown, x.meant(name))
}

// explainer explains what a document says.
type explainer struct {
	*Document
	report *registrar.Report
}

// meant suggests similar names.
func (x explainer) meant(name string) string {
	var close []string
	consider := func(other string) {
		if other != "" && claim.Distance(name, other) <= 2 && !slices.Contains(close, other) {
			close = append(close, other)
		}
	}
	for _, s := range x.Services {
		consider(s.Name)
	}
	for _, c := range x.all() {
		consider(c.name)
	}
	if len(close) == 0 {
		return "; berth status lists the services, docker ps the containers"
	}
	return "; did you mean " + strings.Join(close[:min(3, len(close))], " or ") + "?"
}

// found is a container with the data of its host's registrar and of the catalog.
type found struct {
	name, id, service string
	instances         []string
	planned           *registrar.Planned
	listed            *Container
}

// evidence returns the published evidence of a container without an instance.
func (f found) evidence() []string {
	if f.listed == nil {
		return nil
	}
	return f.listed.Evidence
}

// all returns all containers that the document or the report has, by their IDs.
func (x explainer) all() map[string]found {
	out := map[string]found{}
	add := func(id string, change func(*found)) {
		c := out[id]
		c.id = id
		change(&c)
		out[id] = c
	}
	for i := range x.Containers {
		c := &x.Containers[i]
		add(c.ID, func(f *found) { f.name, f.service, f.listed = c.Name, c.Service, c })
	}
	for _, s := range x.Services {
		for _, in := range s.Instances {
			if in.ContainerID != "" {
				add(in.ContainerID, func(f *found) { f.name, f.instances = cmp.Or(f.name, in.Container), append(f.instances, in.ID) })
			}
		}
	}
	if x.report != nil {
		for i := range x.report.Containers {
			c := &x.report.Containers[i]
			if c.Container == "" {
				continue
			}
			add(c.ID, func(f *found) {
				f.name, f.service, f.planned = c.Container, c.ComposeService, c
				for _, in := range c.Instances {
					if !slices.Contains(f.instances, in.ID) {
						f.instances = append(f.instances, in.ID)
					}
				}
			})
		}
	}
	return out
}

// containers explains the matching containers, sorted by name.
func (x explainer) containers(is func(found) bool) (out []Explanation) {
	all := x.all()
	ids := slices.SortedFunc(maps.Keys(all), func(a, b string) int { return cmp.Or(cmp.Compare(all[a].name, all[b].name), cmp.Compare(a, b)) })
	for _, id := range ids {
		if c := all[id]; is(c) {
			out = append(out, x.container(c)...)
		}
	}
	return out
}

// container explains a container: each of its instances, or why it has none.
func (x explainer) container(c found) (out []Explanation) {
	about := "container " + c.name
	for i := range x.Services {
		for k := range x.Services[i].Instances {
			s, in := &x.Services[i], &x.Services[i].Instances[k]
			if in.ContainerID != c.id && !slices.Contains(c.instances, in.ID) {
				continue
			}
			var planned *registrar.PlannedInstance
			if c.planned != nil {
				for n := range c.planned.Instances {
					if c.planned.Instances[n].ID == in.ID {
						planned = &c.planned.Instances[n]
					}
				}
			}
			out = append(out, x.instance(about+", instance "+in.ID, s, in, c.planned, planned))
		}
	}
	if len(out) > 0 {
		return out
	}
	e := Explanation{About: about, State: Down, Steps: []Explained{{Step: string(StepContainer), Passed: true, Evidence: asked(c.planned, c.evidence())}}}
	var reasons []string
	switch {
	case c.planned != nil && len(c.planned.Instances) > 0: // the registrar is about to tell, or Consul is away
		for n := range c.planned.Instances {
			in := &c.planned.Instances[n]
			e.Steps = append(e.Steps, Explained{Step: string(StepReady), Evidence: nonEmpty(in.Service+" at "+in.Endpoint, in.String())})
			reasons = append(reasons, in.String())
		}
	case c.planned != nil:
		reasons = c.planned.Reasons
		e.Steps = append(e.Steps, Explained{Step: string(StepReady), Evidence: reasons})
	case c.listed != nil:
		reasons = c.listed.Reasons
		e.Steps[0].At = c.listed.Started
		e.Steps = append(e.Steps, Explained{Step: string(StepReady), Evidence: reasons})
	}
	e.Verdict = "not served: " + cmp.Or(strings.Join(reasons, "; "), "its registrar gives no reason")
	e.Do = remedies(StepContainer, c.name, reasons)
	return []Explanation{e}
}

// asked returns what a container asks for and how its host sees it, from its registrar's report or as published.
func asked(p *registrar.Planned, published []string) []string {
	switch {
	case p != nil:
		return evidence(p)
	case len(published) > 0:
		return published
	}
	return []string{"for more details, run berth explain next to the registrar of its Docker host"}
}

// evidence returns what a registrar sees of a container, one fact per line.
func evidence(p *registrar.Planned) (evidence []string) {
	if p.Image != "" {
		evidence = append(evidence, "image "+p.Image)
	}
	if len(p.Networks) > 0 {
		evidence = append(evidence, "networks: "+strings.Join(p.Networks, ", "))
	}
	if p.Health != "" {
		evidence = append(evidence, "its HEALTHCHECK says "+p.Health)
	}
	if len(p.Asks) == 0 {
		return append(evidence, "it has no SERVICE_* label")
	}
	var asks []string
	for _, name := range slices.Sorted(maps.Keys(p.Asks)) {
		asks = append(asks, name+"="+p.Asks[name])
	}
	return append(evidence, "settings: "+strings.Join(asks, ", "))
}

// nonEmpty returns the texts that are not empty.
func nonEmpty(texts ...string) []string {
	return slices.DeleteFunc(texts, func(s string) bool { return s == "" })
}

// instance explains one instance, step by step.
func (x explainer) instance(about string, s *Service, in *Instance, c *registrar.Planned, p *registrar.PlannedInstance) Explanation {
	e := Explanation{About: about, State: in.State, Do: []string{}}
	reached := slices.Index(Steps, in.Reached)
	passed := func(step Step) bool { return slices.Index(Steps, step) <= reached }
	add := func(step Step, at time.Time, evidence ...string) {
		e.Steps = append(e.Steps, Explained{string(step), passed(step), at, nonEmpty(evidence...)})
	}
	var reasons []string
	if c != nil {
		reasons = c.Reasons
	}
	if in.ContainerID != "" {
		add(StepContainer, in.Times.Started, append(asked(c, in.Evidence), reasons...)...)
	}
	if p != nil {
		add(StepReady, in.Times.Ready, "it is ready when "+p.ReadyWhen, p.Endpoint, p.Probe)
		add(StepRegistered, p.RegisteredAt, "service "+s.Name+", instance "+in.ID, p.String())
	} else {
		add(StepReady, in.Times.Ready)
		add(StepRegistered, in.Times.Registered, "service "+s.Name+", instance "+in.ID)
	}
	place := "at " + in.Address
	if in.Node != "" {
		place += ", on node " + in.Node
	}
	add(StepCatalog, in.Times.Catalog, place)
	var routes []string
	for _, r := range s.Routes {
		line := fmt.Sprintf("%s: %s → backend %s", r.Proxy, r.Route, r.Backend)
		if r.Lost != "" {
			line = r.Lost
		}
		if !slices.Contains(routes, line) {
			routes = append(routes, line)
		}
	}
	for _, reason := range s.LeftOut {
		if !slices.Contains(routes, reason) {
			routes = append(routes, reason)
		}
	}
	if len(routes) == 0 {
		routes = append(routes, "no proxy has a route for service "+s.Name)
	}
	add(StepRendered, time.Time{}, routes...)
	var servers []string
	for _, srv := range in.Servers {
		line := fmt.Sprintf("%s: server %s/%s %s", srv.Proxy, srv.Backend, srv.Name, cmp.Or(srv.State, map[bool]string{true: "usable", false: "not usable"}[srv.Usable]))
		if srv.Weight >= 0 {
			line += fmt.Sprintf(", weight %d", srv.Weight)
		}
		if srv.InFlight >= 0 {
			line += fmt.Sprintf(", %d in flight", srv.InFlight)
		}
		if srv.Check != "" {
			line += ", " + srv.Check
		}
		servers = append(servers, line)
	}
	add(StepProxy, in.Times.Live, servers...)
	add(StepServing, time.Time{}, s.Paused)
	if in.State == Serving {
		e.Verdict = "it takes requests"
		if in.Reason != "" {
			e.Verdict += ", but " + in.Reason
		}
		if more := besides(in.Reason, reasons); len(more) > 0 {
			e.Verdict += ", but " + strings.Join(more, "; ")
		}
		if len(reasons) > 0 || in.Reason != "" {
			e.Do = clauses(append([]string{in.Reason}, reasons...))
		}
		return e
	}
	reasons = besides(in.Reason, reasons)
	why := cmp.Or(in.Reason, strings.Join(reasons, "; "))
	e.Verdict = fmt.Sprintf("%s: it reached the step %q and no further", in.State, in.Reached)
	if why != "" {
		e.Verdict += ": " + why
	}
	e.Do = remedies(in.Reached, cmp.Or(in.Container, in.ID), nonEmpty(append([]string{why}, reasons...)...))
	if in.State == Unrouted && len(reasons) == 0 {
		e.Do = []string{"set SERVICE_ROUTE_HOST, SERVICE_ROUTE_PATH or SERVICE_ROUTE_PORT on it if it should get requests"}
	}
	return e
}

// besides returns the reasons that add something to said: a registrar and a templater may reject the same label.
func besides(said string, reasons []string) (out []string) {
	for _, r := range reasons {
		_, what, _ := strings.Cut(r, ": ") // after the port
		if said == "" || !strings.Contains(said, cmp.Or(what, r)) && !strings.Contains(said, r) {
			out = append(out, r)
		}
	}
	return out
}

// advice matches the beginning of a clause that says what to do.
var advice = regexp.MustCompile(`^(?:set|unset|choose|attach|publish|free|give|did you mean|stop|connect|name|make|have|run|copy|write|deregister|use|call|take|put|add|` +
	`restart|see|remove|rename|allow|enable|expose|grant|correct|leave)\b`)

// clauses returns the remedies in reasons.
func clauses(reasons []string) (out []string) {
	for _, r := range reasons {
		for _, clause := range strings.FieldsFunc(strings.ReplaceAll(r, ": ", "; "), func(c rune) bool { return c == ';' }) {
			if clause = strings.TrimSpace(clause); advice.MatchString(clause) && !slices.Contains(out, clause) {
				out = append(out, clause)
			}
		}
	}
	return out
}

// remedies returns what to do about something that has stopped at a step. Reasons already name the label to set; remedies add where
// to look.
func remedies(reached Step, container string, reasons []string) []string {
	why := strings.Join(reasons, "; ")
	has := func(words ...string) bool {
		return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(why, w) })
	}
	switch {
	case has("HEALTHCHECK"):
		return []string{"read the output of its HEALTHCHECK: docker inspect --format '{{json .State.Health}}' " + container}
	case has("connection refused", "not ready", "i/o timeout", "no route to host"):
		return []string{"make it listen on that port on all addresses (0.0.0.0, not 127.0.0.1), see docker logs " + container,
			"or register another port with SERVICE_PORT or SERVICE_<port>_NAME, or change the readiness check with SERVICE_READY"}
	case has("policy"):
		return []string{"change its labels, or the policy in the registrar's configuration (docs/operate/policy.md)"}
	case has("check in Consul is critical"):
		return []string{"make the check pass, or change SERVICE_CHECK_*"}
	case has("told to stop", "maintenance", "berth drain"):
		return []string{"if berth drain took it out of service, put it back with berth undrain " + container}
	case reached == StepRendered:
		return []string{"run berth render --validate to see what the proxy refuses; everything else is still served"}
	case reached == StepProxy:
		return []string{"the proxy's own check fails, or the proxy cannot reach the address: put both on one Docker network; SERVICE_ROUTE_CHECK is the path that the proxy requests"}
	case len(clauses(reasons)) > 0:
		return clauses(reasons)
	case why == "":
		return []string{"the berth on that host reports nothing: check that its registrar runs and that its token may write berth/status/"}
	}
	return []string{why}
}

// service explains a service.
func (x explainer) service(s *Service) Explanation {
	e := Explanation{About: "service " + s.Name, State: s.State, Do: []string{}}
	var routes, servers []string
	for _, r := range s.Routes {
		line := fmt.Sprintf("%s has %s → backend %s", r.Proxy, r.Route, r.Backend)
		if r.Lost != "" {
			line = r.Lost
		} else if len(r.Losers) > 0 {
			line += fmt.Sprintf("; also requested by %s", strings.Join(r.Losers, ", "))
		}
		routes = append(routes, line)
	}
	for _, reason := range s.LeftOut {
		if !slices.Contains(routes, reason) {
			routes = append(routes, reason)
		}
	}
	own := x.ownTemplates()
	if len(routes) == 0 {
		routes = own
	}
	if len(routes) == 0 {
		routes = []string{"none; SERVICE_ROUTE_HOST, SERVICE_ROUTE_PATH or SERVICE_ROUTE_PORT adds one"}
	}
	routed := slices.ContainsFunc(s.Routes, func(r Route) bool { return r.Lost == "" }) || len(s.Routes) == 0 && len(own) > 0
	e.Steps = append(e.Steps, Explained{Step: "routes", Passed: routed, Evidence: routes})
	const most = 20
	for i, in := range s.Instances {
		if i == most {
			servers = append(servers, fmt.Sprintf("and %d more: berth status %s", len(s.Instances)-most, s.Name))
			break
		}
		line := fmt.Sprintf("%s at %s: %s", in.ID, in.Address, in.State)
		if in.Reason != "" {
			line += ": " + in.Reason
		}
		servers = append(servers, line)
	}
	e.Steps = append(e.Steps, Explained{Step: "instances", Passed: s.Serving > 0, Evidence: servers})
	if s.Paused != "" {
		e.Steps = append(e.Steps, Explained{Step: "paused", Evidence: []string{s.Paused}})
		e.Do = append(e.Do, "end the pause with berth resume "+s.Name)
	}
	e.Verdict = fmt.Sprintf("%s: %d of %d instances take requests", s.State, s.Serving, s.Total)
	if s.Reason != "" {
		e.Verdict += "; " + s.Reason
	}
	if s.State == Serving {
		return e
	}
	for i := range s.Instances {
		if in := &s.Instances[i]; in.State != Serving && in.Reason != "" {
			e.Do = append(e.Do, fmt.Sprintf("berth explain %s", cmp.Or(in.Container, in.ID)))
			break
		}
	}
	if len(e.Do) == 0 && !routed {
		e.Do = append(e.Do, cmp.Or(strings.Join(s.LeftOut, "; "), "set SERVICE_ROUTE_HOST, SERVICE_ROUTE_PATH or SERVICE_ROUTE_PORT"))
	}
	return e
}

// closed reports whether a proxy's port for HTTPS is closed, as far as is known.
func (x explainer) closed(proxy string) bool {
	return slices.ContainsFunc(x.Proxies, func(p Proxy) bool { return p.Name == proxy && p.Template == "" && p.Certificates == 0 })
}

// ownTemplates returns a line for each proxy whose template is not the built-in one.
func (x explainer) ownTemplates() (lines []string) {
	for _, p := range x.Proxies {
		if p.Template != "" {
			lines = append(lines, fmt.Sprintf("the proxy of %s has a template of its own, %s, whose routes berth does not know", p.Name, p.Template))
		}
	}
	return lines
}

// unserved returns a line for each container on this host that asks for a host name and is no instance of a service in the catalog.
func (x explainer) unserved(host string) (lines []string) {
	if x.report == nil {
		return nil
	}
	there := map[string]bool{}
	for _, s := range x.Services {
		for _, in := range s.Instances {
			there[in.ContainerID] = there[in.ContainerID] || in.Reached != StepContainer && in.Reached != StepReady
		}
	}
	for _, c := range x.report.Containers {
		asks := slices.ContainsFunc(slices.Collect(maps.Keys(c.Asks)), func(key string) bool {
			return strings.HasSuffix(key, "ROUTE_HOST") &&
				slices.ContainsFunc(claim.Hosts(c.Asks[key]), func(asked string) bool { return strings.EqualFold(asked, host) })
		})
		if asks && !there[c.ID] {
			lines = append(lines, fmt.Sprintf("%s asks for this host and is not registered: berth explain %s says why", c.Container, c.Container))
		}
	}
	return lines
}

// url explains which route a request takes.
func (x explainer) url(text string) ([]Explanation, error) {
	full := text
	if !strings.Contains(full, "://") {
		full = "http://" + full
	}
	u, err := url.Parse(full)
	if err != nil || u.Host == "" && u.Path == "" {
		return nil, fmt.Errorf("%q is not a URL like http://shop.example.com/cart: %w", text, ErrNotKnown)
	}
	host, path := u.Host, cmp.Or(u.EscapedPath(), "/")
	e := Explanation{About: full, State: Down, Do: []string{}, Steps: []Explained{{Step: "request", Passed: true,
		Evidence: []string{fmt.Sprintf("host %s, path %s", cmp.Or(u.Hostname(), "any"), path)}}}}
	type candidate struct {
		Route
		service *Service
	}
	var fit []candidate
	for i := range x.Services {
		for _, r := range x.Services[i].Routes {
			if (claim.Route{Host: r.Host, Path: r.Path, Port: r.Port}).Matches(host, path) {
				fit = append(fit, candidate{r, &x.Services[i]})
			}
		}
	}
	slices.SortStableFunc(fit, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.Proxy, b.Proxy), claim.Compare(claim.Route{Host: a.Host, Path: a.Path}, claim.Route{Host: b.Host, Path: b.Path}),
			cmp.Compare(min(len(a.Lost), 1), min(len(b.Lost), 1)), cmp.Compare(a.service.Name, b.service.Name))
	})
	if len(fit) == 0 {
		if own := x.ownTemplates(); len(own) > 0 {
			e.State = Unknown
			e.Steps = append(e.Steps, Explained{Step: "route", Evidence: own})
			e.Verdict = "berth does not know the routes of a template of your own"
			e.Do = []string{"read the template, or berth render, and ask about the service that it names"}
			return []Explanation{e}, nil
		}
		var hosts []string
		for _, s := range x.Services {
			for _, r := range s.Routes {
				if r.Host != "" && !slices.Contains(hosts, r.Host) && claim.Distance(strings.ToLower(u.Hostname()), r.Host) <= 2 {
					hosts = append(hosts, r.Host)
				}
			}
		}
		e.Steps = append(e.Steps, Explained{Step: "route", Evidence: append([]string{"no route matches: the answer is 404"}, x.unserved(u.Hostname())...)})
		e.Verdict = "no service has a route for it"
		e.Do = []string{fmt.Sprintf("set SERVICE_ROUTE_HOST=%s on the container that should answer", u.Hostname())}
		if len(hosts) > 0 {
			e.Do = append(e.Do, "or request "+strings.Join(hosts, " or "))
		}
		return []Explanation{e}, nil
	}
	var out []Explanation
	for len(fit) > 0 {
		n := slices.IndexFunc(fit, func(c candidate) bool { return c.Proxy != fit[0].Proxy })
		if n < 0 {
			n = len(fit)
		}
		of := e
		of.Steps = slices.Clone(e.Steps)
		var taken *candidate
		var lines []string
		for i := range fit[:n] {
			c := &fit[i]
			switch {
			case c.Lost != "":
				lines = append(lines, fmt.Sprintf("%s loses: %s", c.service.Name, c.Lost))
			case taken == nil:
				taken = c
				lines = append(lines, fmt.Sprintf("%s of service %s takes it, with backend %s", c.Route.Route, c.service.Name, c.Backend))
			default:
				lines = append(lines, fmt.Sprintf("%s of service %s matches too, but is less specific", c.Route.Route, c.service.Name))
			}
		}
		if taken != nil && !strings.EqualFold(taken.Host, u.Hostname()) {
			lines = append(lines, x.unserved(u.Hostname())...)
		}
		of.Steps = append(of.Steps, Explained{Step: "route at " + fit[0].Proxy, Passed: taken != nil, Evidence: lines})
		switch {
		case u.Scheme == "https" && x.closed(fit[0].Proxy):
			of.Steps = append(of.Steps, Explained{Step: "TLS", Evidence: []string{"the proxy has no certificate, so its port for HTTPS is closed"}})
			of.Verdict = "nothing answers: the proxy has no certificate for HTTPS"
			of.Do = []string{"put a certificate into --tls-directory (berth help templater)"}
		case taken == nil:
			of.Verdict = "no service has this route now: " + fit[0].Lost
			of.Do = []string{fit[0].Lost}
		case u.Scheme == "http" && taken.Redirect:
			to := *u
			to.Scheme, to.Host = "https", u.Hostname()
			of.State = Serving
			of.Steps = append(of.Steps, Explained{Step: "redirect", Passed: true, Evidence: []string{"SERVICE_ROUTE_REDIRECT: the answer is 308, to " + to.String()}})
			of.Verdict = "the proxy redirects to HTTPS; berth explain " + to.String() + " says who answers there"
		default:
			if taken.Strip && taken.Path != "/" {
				of.Steps = append(of.Steps, Explained{Step: "path", Passed: true, Evidence: []string{
					fmt.Sprintf("%s is stripped: servers get /%s", taken.Path, strings.TrimPrefix(path+"/", taken.Path))}})
			}
			about := x.service(taken.service)
			for _, s := range about.Steps {
				if s.Step != "routes" {
					of.Steps = append(of.Steps, s)
				}
			}
			of.State, of.Do = taken.service.State, about.Do
			of.Verdict = "service " + taken.service.Name + " answers"
			if taken.service.Serving == 0 {
				of.Verdict = "it goes to service " + taken.service.Name + ", which is " + about.Verdict
			}
		}
		out = append(out, of)
		fit = fit[n:]
	}
	return out, nil
}
