package label

import (
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// What looks like a label but was not meant as one registers and publishes nothing, and the reasons name what was meant.
func TestIntent(t *testing.T) {
	oneoff := func(value string) func(*Container) { return label(oneOffLabel, value) }
	publish := with(func(h *Host) { h.PublishSecrets = true })
	secret := "SERVICE_DB_PASSWORD is not published: it looks like a secret"
	tests := []struct {
		name   string
		in     Container
		h      Host
		want   string // metadata of the one instance as key=value; "-" = nothing is registered
		reason string
	}{
		// docker-compose run.
		{"one-off", web(oneoff("True"), label("SERVICE_NAME", "shop")), host, "-", "it is a one-off container of docker-compose run: set SERVICE_ONEOFF=true"},
		{"one-off in lower case", web(oneoff("true")), host, "-", "it is a one-off container"},
		{"no one-off", web(oneoff("False")), host, "", ""},
		{"one-off that insists", web(oneoff("True"), label("SERVICE_ONEOFF", "true")), host, "", ""},
		{"one-off that insists in other words", web(oneoff("True"), env("service_oneoff=Yes")), host, "", ""},
		{"one-off that does not insist", web(oneoff("True"), label("SERVICE_ONEOFF", "no")), host, "-", "it is a one-off container"},
		{"one-off that says neither", web(oneoff("True"), label("SERVICE_ONEOFF", "maybe")), host, "-", "it is a one-off container"},
		{"one-off that the policy does not let insist", web(oneoff("True"), label("SERVICE_ONEOFF", "true")), policyOf(Rule{Keys: []string{"name"}}), "-", "it is a one-off container"},
		{"insisting without need", web(label("SERVICE_ONEOFF", "true")), host, "", ""},
		{"one-off that is ignored", web(oneoff("True"), label("SERVICE_IGNORE", "1")), host, "-", ""},

		// The environment is the program's.
		{"a password in the environment", web(env("SERVICE_PASSWORD_POSTGRES=s3cret")), host, "", "SERVICE_PASSWORD_POSTGRES in the environment: not known to berth, so not published; metadata comes from labels"},
		{"other variables", web(env("SERVICE_REGION=x", "SERVICE_8080_TIER=y")), host, "", "SERVICE_8080_TIER, SERVICE_REGION in the environment"},
		{"many of them", web(env("SERVICE_A1=", "SERVICE_A2=", "SERVICE_A3=", "SERVICE_A4=", "SERVICE_A5=", "SERVICE_A6=", "SERVICE_A7=")), host, "", "SERVICE_A5 and 2 more in the environment"},
		{"not even with --publish-secrets", web(env("SERVICE_PASSWORD_POSTGRES=s3cret")), publish, "", "SERVICE_PASSWORD_POSTGRES in the environment"},
		{"metadata by label", web(label("SERVICE_REGION", " x\n")), host, "region=x", ""},

		// Secrets.
		{"a password in a label", web(label("SERVICE_DB_PASSWORD", "s3cret"), label("SERVICE_REGION", "x")), host, "region=x", secret},
		{"of a port", web(label("SERVICE_8080_DB_PASSWORD", "s3cret")), host, "", "SERVICE_8080_DB_PASSWORD is not published"},
		{"several, in one line", web(label("SERVICE_API_KEY", "a"), label("SERVICE_TOKEN", "b"), label("SERVICE_AWS_CREDENTIALS", "c")), host, "", "SERVICE_API_KEY, SERVICE_AWS_CREDENTIALS, SERVICE_TOKEN is not published"},
		{"with --publish-secrets", web(label("SERVICE_DB_PASSWORD", "s3cret")), publish, "db_password=s3cret", ""},
		{"words that only have one in them", web(label("SERVICE_KEYBOARD", "a"), label("SERVICE_MONKEY", "b"), label("SERVICE_COMPASS", "c")), host, "compass=c keyboard=a monkey=b", ""},
		{"a password in a URL", web(label("SERVICE_DB", "postgres://app:s3cret@db/app")), host, "", "SERVICE_DB is not published"},
		{"a URL without one", web(label("SERVICE_DOCS", "https://docs.example.com/a:b@c")), host, "docs=https://docs.example.com/a:b@c", ""},

		// What was meant.
		{"misspelt name", web(label("SERVICE_NAEM", "a")), host, "naem=a", "SERVICE_NAEM is an unknown key: did you mean SERVICE_NAME?"},
		{"in the environment", web(env("SERVICE_NMAE=a")), host, "", "SERVICE_NMAE is an unknown key: did you mean SERVICE_NAME?"},
		{"of a port", web(label("SERVICE_8080_TAG", "a")), host, "tag=a", "SERVICE_8080_TAG is an unknown key: did you mean SERVICE_8080_TAGS?"},
		{"Kubernetes' port", web(env("SERVICE_PORT=80")), host, "", "SERVICE_PORT is an unknown key: did you mean SERVICE_ROUTE_PORT?"},
		{"another tool's host", web(label("SERVICE_HOST", "a.example")), host, "host=a.example", "SERVICE_HOST is an unknown key: did you mean SERVICE_ROUTE_HOST?"},
		{"another tool's check", web(label("SERVICE_HEALTHCHECK", "/")), host, "healthcheck=/", "did you mean SERVICE_CHECK_HTTP?"},
		{"misspelt check", web(label("SERVICE_CHEK_HTTP", "/")), host, "chek_http=/", "SERVICE_CHEK_HTTP is an unknown key: did you mean SERVICE_CHECK_HTTP?"},
		{"misspelt option of a check", web(env("SERVICE_CHECKS_INTERVAL=5s")), host, "", "did you mean SERVICE_CHECK_INTERVAL?"},
		{"with a hyphen", web(label("SERVICE_STOP-SIGNAL", "QUIT")), host, "stop-signal=QUIT", "did you mean SERVICE_STOP_SIGNAL?"},
		{"a port that is none", web(label("SERVICE_8O80_NAME", "a")), host, "8o80_name=a", `SERVICE_8O80_NAME is an unknown key, as "8o80" is not a port: did you mean SERVICE_<port>_NAME?`},
		{"with the protocol", web(label("SERVICE_8080/TCP_NAME", "a")), host, "", `as "8080/tcp" is not a port`},
		{"words that are near to nothing", web(label("SERVICE_REGION", "a"), label("SERVICE_STAGE", "b"), label("SERVICE_VERSION", "c"), label("SERVICE_S3_NAME", "d")), host, "region=a s3_name=d stage=b version=c", ""},

		// Ports that only labels name.
		{"a port that nobody reaches", web(networks("other", "10.9.0.1"), ports(tcp(8080, "0.0.0.0:80")), label("SERVICE_3000_ROUTE_HOST", "a.example")), host, "",
			"port 3000/tcp: it is not on front, back and the port is not published"},
		{"an empty key opens nothing", web(label("SERVICE_3000_NAME", "")), host, "", "SERVICE_3000_NAME is empty"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, reasons := Instances(tt.in, tt.h)
			if tt.want == "-" {
				if len(got) > 0 {
					t.Errorf("registers %+v", got)
				}
			} else if len(got) != 1 {
				t.Fatalf("registers %+v: %q", got, reasons)
			} else {
				delete(got[0].Meta, MetaOwner)
				delete(got[0].Meta, MetaContainer)
				var pairs []string
				for _, key := range slices.Sorted(maps.Keys(got[0].Meta)) {
					pairs = append(pairs, key+"="+got[0].Meta[key])
				}
				if is := strings.Join(pairs, " "); is != tt.want {
					t.Errorf("metadata %q, want %q", is, tt.want)
				}
			}
			if tt.name == "with the protocol" {
				reasons = reasons[:1] // Consul does not take its slash, either
			}
			expectReason(t, reasons, tt.reason)
			for _, reason := range reasons {
				if strings.Contains(reason, "s3cret") {
					t.Errorf("%q shows it", reason)
				}
			}
		})
	}
}

// A label that names a port exposes it, wherever the image's own ports are.
func TestPortsByLabel(t *testing.T) {
	tests := []struct {
		name string
		in   Container
		want string // name@host:port
	}{
		{"beside another", web(label("SERVICE_3000_ROUTE_HOST", "a.example")), "shop-3000@10.0.0.2:3000 shop@10.0.0.2:8080"},
		{"alone", web(ports(), label("SERVICE_3000_ROUTE_HOST", "a.example")), "shop@10.0.0.2:3000"},
		{"with a name", web(ports(), env("SERVICE_3000_NAME=app")), "app@10.0.0.2:3000"},
		{"several", web(ports(), label("SERVICE_3000_ROUTE_PATH", "/"), label("SERVICE_4000_ROUTE_PORT", "4000")), "shop-3000@10.0.0.2:3000 shop-4000@10.0.0.2:4000"},
		{"on the host's network", web(hostNetwork, ports(), label("SERVICE_3000_NAME", "app")), "app@:3000"},
		{"exposed for UDP", web(ports(udp(53)), label("SERVICE_53_NAME", "dns")), "dns@10.0.0.2:53"},
		{"ignored", web(label("SERVICE_3000_NAME", "a"), label("SERVICE_3000_IGNORE", "1")), "shop@10.0.0.2:8080"},
		{"in another's network, published there", web(networks(), ports(), label("SERVICE_3000_NAME", "app")).Within(Container{Ports: []Port{tcp(3000, "0.0.0.0:80")}}), "app@:80"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			instances, reasons := Instances(tt.in, host)
			var got []string
			for _, in := range instances {
				at := net.JoinHostPort(in.Address, strconv.Itoa(in.Port))
				got = append(got, in.Name+"@"+at)
			}
			if strings.Join(got, " ") != tt.want {
				t.Errorf("registers %q, want %q: %q", got, tt.want, reasons)
			}
		})
	}
}

// A container with too many ports keeps those that labels name.
func TestNamedPortsAreNotCut(t *testing.T) {
	c := web(ports(), label("SERVICE_60000_NAME", "app"))
	for n := range 1000 {
		c.Ports = append(c.Ports, tcp(uint16(n+1)))
	}
	c.Ports = append(c.Ports, tcp(60000))
	got, _ := Instances(c, host)
	if len(got) != maxPorts || got[maxPorts-1].Name != "app" {
		t.Errorf("%d instances, the last is %+v", len(got), got[len(got)-1])
	}
}

func TestMeant(t *testing.T) {
	for _, tt := range []struct {
		name string
		in   Container
		want bool
	}{
		{"nothing", web(), false},
		{"a label", web(label("SERVICE_X", "")), true},
		{"a label in lower case", web(label("service_name", "a")), true},
		{"a known variable", web(env("SERVICE_8080_NAME=a")), true},
		{"a misspelt variable", web(env("SERVICE_ROUT_HOST=a")), true},
		{"the program's own variable", web(env("SERVICE_URL=a")), false},
		{"a one-off", web(label(oneOffLabel, "True"), label("SERVICE_NAME", "a")), false},
		{"a one-off that insists", web(label(oneOffLabel, "True"), label("SERVICE_ONEOFF", "true")), true},
	} {
		if got := AskedOf(tt.in).Meant; got != tt.want {
			t.Errorf("%s: %t", tt.name, got)
		}
	}
}

func TestValidateIP(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1": "", "2001:db8::1": "", "127.0.0.1": "",
		"0.0.0.0": "0.0.0.0 is not an address that clients can connect to", "::": ":: is not an address", "::ffff:0.0.0.0": "is not an address that",
		"224.0.0.1": "is not an address that", "ff02::1": "is not an address that", "fe80::1%eth0": "is not an address that", "shop.example": `"shop.example" is not an IP address`,
	} {
		err := ValidateIP(in)
		if (err == nil) != (want == "") || (err != nil && !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v", in, err)
		}
	}
}
