package group

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/hashicorp/consul/api"

	"berth/templates/claim"
)

// Binding is an application's name for a service that it needs.
type Binding struct{ Name, Service string }

func (b Binding) String() string { return b.Name + ":" + b.Service }

// Bind is a needed service that has an instance.
type Bind struct {
	Name, Service string
	// The leader's address. In a service without a leader it is the oldest instance's, which stays the same when others
	// come and go.
	Host      string
	Port      int
	Address   string     // as in Instance
	Instances []Instance // by ID
}

var bindName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]*$`)

// ParseBinds reads name:service, such as cache:redis or cache:redis@dc2.
func ParseBinds(texts []string) ([]Binding, error) {
	var all []Binding
	variables := map[string]Binding{}
	for _, text := range texts {
		name, service, ok := strings.Cut(text, ":")
		b := Binding{name, service}
		inConsul, datacenter, elsewhere := strings.Cut(service, "@")
		switch {
		case !ok || name == "" || service == "":
			return nil, fmt.Errorf("bind %q must be name:service, such as redis:redis", text)
		case !bindName.MatchString(name):
			return nil, fmt.Errorf("bind %q: its name may contain only letters, digits, -, _ and dots, and must begin with a letter", text)
		case !claim.IsServiceName(inConsul) || elsewhere && !claim.ConsistsOf(datacenter, "-_."):
			return nil, fmt.Errorf("bind %q: %q cannot be a service in Consul", text, service)
		}
		if other, taken := variables[b.variable()]; taken {
			return nil, fmt.Errorf("bind %q and %q would both be %s_HOST: choose another name", other, text, b.variable())
		}
		variables[b.variable()] = b
		all = append(all, b)
	}
	return all, nil
}

// variable returns the prefix of the binding's environment variables.
func (b Binding) variable() string {
	return strings.ToUpper(strings.NewReplacer("-", "_", ".", "_").Replace(b.Name))
}

// Unbound returns the binds whose service has no healthy instance.
func Unbound(binds []Binding, ask Ask) []Binding {
	var all []Binding
	for _, b := range binds {
		if b.bind(ask) == nil {
			all = append(all, b)
		}
	}
	return all
}

// Environment returns the variables that describe a command's binds, such as REDIS_HOST=10.0.0.1 and REDIS_PORT=6379. A
// bind whose service has no instance has no variables, and a service without a port has no REDIS_PORT.
func Environment(binds []Binding, ask Ask) []string {
	var all []string
	for _, b := range binds {
		bound := b.bind(ask)
		if bound == nil {
			continue
		}
		all = append(all, b.variable()+"_HOST="+bound.Host)
		if bound.Port != 0 {
			all = append(all, b.variable()+"_PORT="+strconv.Itoa(bound.Port))
		}
	}
	return all
}

// find returns the binding with a name.
func find(binds []Binding, name string) (Binding, error) {
	var names []string
	for _, b := range binds {
		if b.Name == name {
			return b, nil
		}
		names = append(names, b.Name)
	}
	if len(names) == 0 {
		return Binding{}, fmt.Errorf("nothing is bound: declare it with --bind %.100s:SERVICE", name)
	}
	return Binding{}, fmt.Errorf("%.100q is not bound, only %s: declare it with --bind", name, strings.Join(names, ", "))
}

// bind returns the bound service, nil if it has no healthy instance. An instance with a warning counts as healthy, as in
// Consul's DNS.
func (b Binding) bind(ask Ask) *Bind {
	list := members(ask(b.Service), func(e *api.ServiceEntry) bool { return isIn(e, api.HealthPassing, api.HealthWarning) })
	if len(list) == 0 {
		return nil
	}
	first := leader(list)
	if first == nil {
		first = oldest(list)
	}
	i := newInstance(first)
	bound := &Bind{Name: b.Name, Service: b.Service, Host: i.Host, Port: i.Port, Address: i.Address}
	for _, e := range list {
		bound.Instances = append(bound.Instances, newInstance(e))
	}
	return bound
}
