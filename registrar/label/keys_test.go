package label

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestKeys(t *testing.T) {
	tests := []struct {
		name string
		in   Container
		want map[string]string // of port 8080
	}{
		{"environment", web(env("SERVICE_NAME=a")), map[string]string{"name": "a"}},
		{"label", web(label("SERVICE_NAME", "a")), map[string]string{"name": "a"}},
		{"a label wins over the environment", web(env("SERVICE_NAME=a"), label("SERVICE_NAME", "b")), map[string]string{"name": "b"}},
		{"an empty label, too", web(env("SERVICE_NAME=a"), label("SERVICE_NAME", "")), map[string]string{"name": ""}},
		{"the port wins over all", web(label("SERVICE_NAME", "a"), label("SERVICE_8080_NAME", "b")), map[string]string{"name": "b"}},
		{"the port in the environment wins over a label for all", web(env("SERVICE_8080_NAME=b"), label("SERVICE_NAME", "a")), map[string]string{"name": "b"}},
		{"other ports", web(label("SERVICE_80_NAME", "a"), label("SERVICE_99999_NAME", "b"), label("SERVICE_-1_NAME", "c"), label("SERVICE_70000_X", "d")), map[string]string{"99999_name": "b", "-1_name": "c"}},
		{"upper case wins", web(label("SERVICE_Name", "a"), label("SERVICE_NAME", "b"), label("SERVICE_name", "c")), map[string]string{"name": "b"}},
		{"lower case will do", web(label("SERVICE_route_host", "a")), map[string]string{"route_host": "a"}},
		{"nothing behind the prefix", web(label("SERVICE_", "a")), map[string]string{}},
		{"nothing behind the port", web(label("SERVICE_8080_", "a")), map[string]string{"8080_": "a"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := keysOf(tt.in).forPort(8080).values; !maps.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

// A reason names the label as set on the container.
func TestLabelNames(t *testing.T) {
	keys := keysOf(web(label("SERVICE_8080_X", "a"), label("SERVICE_Y", "b"))).forPort(8080)
	for key, want := range map[string]string{"x": "SERVICE_8080_X", "y": "SERVICE_Y", "a\nb": `"SERVICE_A\nB"`} {
		if got := keys.spelling(key); got != want {
			t.Errorf("label(%q) = %s, want %s", key, got, want)
		}
	}
}

// Whatever the labels, environment, ports and networks of a container, and in whatever order Docker lists them: the answer
// is the same.
func TestOrderDoesNotMatter(t *testing.T) {
	keys := []string{
		"SERVICE_NAME", "SERVICE_Name", "SERVICE_80_NAME", "SERVICE_ID", "SERVICE_TAGS", "SERVICE_81_IGNORE", "SERVICE_X", "SERVICE_81_X",
		"SERVICE_CHECK_HTTP", "SERVICE_CHECK_TCP", "SERVICE_80_CHECK_HTTPS", "SERVICE_CHECK_2_HTTP", "SERVICE_CHECK_INTERVAL", "SERVICE_CHECK_HTPP",
		"SERVICE_CHECK_HEADER_A", "SERVICE_CHECK_HEADER_B", "SERVICE_READY", "SERVICE_NETWORK", "SERVICE_ADDRESS", "SERVICE_WEIGHT", "SERVICE_STOP_SIGNAL",
		"SERVICE_REPLACE", "SERVICE_81_REPLACE", "SERVICE_SINGLE",
	}
	values := []string{"", "a", "b", "/", "10s", "tcp", "front", "internal", "published", "10.0.0.9", "9", "x\n", "start-first"}
	rapid.Check(t, func(t *rapid.T) {
		c := web(ports())
		set := rapid.MapOfN(rapid.SampledFrom(keys), rapid.SampledFrom(values), 0, 12)
		for key, value := range set.Draw(t, "env") {
			c.Env = append(c.Env, key+"="+value)
		}
		c.Labels = set.Draw(t, "labels")
		for _, n := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"80/tcp", "81/tcp", "81/udp", "82/sctp"}), 0, 4, rapid.ID[string]).Draw(t, "ports") {
			var p Port
			fmt.Sscanf(n, "%d/%s", &p.Number, &p.Protocol)
			if rapid.Bool().Draw(t, "published") {
				p = port(p.Protocol, p.Number, "0.0.0.0:1080", "[::1]:81")
			}
			c.Ports = append(c.Ports, p)
		}
		networks("front", "10.0.0.2", "back", "10.0.0.3", "other", "fd00::9")(&c)
		h := with(func(h *Host) { h.Internal = rapid.Bool().Draw(t, "internal") })

		first, why := Instances(c, h)
		before := fmt.Sprint(c)
		c.Env = rapid.Permutation(c.Env).Draw(t, "shuffled env")
		c.Ports = rapid.Permutation(c.Ports).Draw(t, "shuffled ports")
		c.Labels, c.Networks = rebuilt(c.Labels), rebuilt(c.Networks)
		again, whyAgain := Instances(c, h)
		if !reflect.DeepEqual(first, again) || !slices.Equal(why, whyAgain) {
			t.Fatalf("of %s\n%+v %q, and shuffled\n%+v %q", before, first, why, again, whyAgain)
		}
		ids := map[string]bool{}
		for _, in := range first {
			if ids[in.ID] {
				t.Fatalf("two instances with the ID %s", in.ID)
			}
			ids[in.ID] = true
		}
	})
}

// rebuilt returns the same map in another order.
func rebuilt[V any](m map[string]V) map[string]V {
	out := make(map[string]V, 2*len(m))
	for _, k := range slices.Backward(slices.Sorted(maps.Keys(m))) {
		out[k] = m[k]
	}
	return out
}

func FuzzKeys(f *testing.F) {
	f.Add("SERVICE_8080_NAME", "app", "SERVICE_TAGS", `a\,b,c`)
	f.Add("SERVICE_", "", "SERVICE_8080_", "x")
	f.Add("SERVICE_CHECK_HTTP", "/%zz", "SERVICE_CHECK_1_HEADER_X", "a\r\nb")
	f.Add("SERVICE_CHECK_SCRIPT", "nc $SERVICE_IP", "SERVICE_CHECK_TIMEOUT", "-1s")
	f.Add("SERVICE_READY", "http:/a", "SERVICE_ADDRESS", "::1%x")
	f.Add("SERVICE_STOP_SIGNAL", "RTMIN+99999999999", "SERVICE_WEIGHT", "1e9")
	f.Fuzz(func(t *testing.T, k1, v1, k2, v2 string) {
		c := web(label(k1, v1), label(k2, v2), env(k2+"="+v1))
		h := with(func(h *Host) { h.Scripts = true })
		instances, reasons := Instances(c, h)
		for _, in := range instances {
			if !serviceName.MatchString(in.Name) || !serviceID.MatchString(in.ID) {
				t.Errorf("registers %q as %q", in.Name, in.ID)
			}
			if len(in.Meta) > maxMeta || in.Meta[MetaOwner] != host.EngineID || in.Meta[MetaContainer] != c.ID {
				t.Errorf("metadata %v", in.Meta)
			}
			if in.Port != 8080 || in.Weight < 0 || in.Weight > maxWeight {
				t.Errorf("port %d, weight %d", in.Port, in.Weight)
			}
			for _, s := range append(slices.Collect(maps.Values(in.Meta)), in.Tags...) {
				if !isPlain(s) {
					t.Errorf("%q is no text", s)
				}
			}
			for _, check := range in.Checks {
				harmless(t, in, check)
			}
			if in.Ready.Kind == ReadyHTTP {
				if req, err := in.Ready.Request(t.Context()); err != nil || req.URL.Host != "10.0.0.2:8080" {
					t.Errorf("readiness asks %+v: %v", in.Ready, err)
				}
			}
		}
		for _, r := range reasons {
			if !isPlain(r) || len(r) > 1000 {
				t.Errorf("no reason on one line that one reads: %q", r)
			}
		}
	})
}

// harmless fails for a check that asks anything other than the instance.
func harmless(t *testing.T, in Instance, check Check) {
	d := check.Definition
	target := hostPort(in.Address, uint16(in.Port))
	if (d.TCP != "" && d.TCP != target) || (d.GRPC != "" && d.GRPC != target) {
		t.Errorf("check asks %s%s, not %s", d.TCP, d.GRPC, target)
	}
	if d.HTTP != "" && !strings.HasPrefix(d.HTTP, "http://"+target+"/") && !strings.HasPrefix(d.HTTP, "https://"+target+"/") {
		t.Errorf("check asks %s, not %s", d.HTTP, target)
	}
	for _, s := range []string{d.Name, d.HTTP, d.Method, fmt.Sprint(d.Header)} {
		if !isPlain(s) {
			t.Errorf("check has %q", s)
		}
	}
}
