package haproxy

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"berth/proxyctl"
)

const statHead = "# pxname,svname,qcur,qmax,scur,status,weight,last_chk,addr,check_status,check_code,check_desc,\n"

func TestParseServers(t *testing.T) {
	at := netip.MustParseAddrPort
	got, err := parseServers(statHead +
		"app,a,0,0,3,no check,1,,10.0.0.1:80,\n" +
		"app,b,0,0,0,UP,256,\"L4OK, in 0ms\",[::1]:81,\n" +
		"app,c,0,0,0,UP 1/2,1,,10.0.0.3:80,\n" +
		"app,d,0,0,0,DOWN 1/2,1,Connection refused,10.0.0.4:80,* L4CON,\n" +
		"app,e,0,0,2,MAINT,1,,10.0.0.5:80,\n" +
		"app,f,0,0,0,MAINT (via app/e),1,,10.0.0.6:80,\n" +
		"app,g,0,0,0,DRAIN,0,,10.0.0.7:80,\n" +
		"app,h,0,0,0,NOLB 1/2,1,,10.0.0.8:80,\n" +
		"app,i,0,0,0,UP,0,,10.0.0.9:80,\n" +
		"app,j,0,0,0,no check,1,,/run/app.sock,\n\n")
	want := []proxyctl.Server{
		{Backend: "app", Name: "a", State: "no check", Weight: 1, Address: at("10.0.0.1:80"), Usable: true, InFlight: 3},
		{Backend: "app", Name: "b", State: "UP", Weight: 256, Address: at("[::1]:81"), Usable: true},
		{Backend: "app", Name: "c", State: "UP 1/2", Weight: 1, Address: at("10.0.0.3:80"), Usable: true},
		{Backend: "app", Name: "d", State: "DOWN 1/2", Weight: 1, Check: "L4CON: Connection refused", Address: at("10.0.0.4:80")},
		{Backend: "app", Name: "e", State: "MAINT", Weight: 1, Address: at("10.0.0.5:80"), InFlight: 2},
		{Backend: "app", Name: "f", State: "MAINT (via app/e)", Weight: 1, Address: at("10.0.0.6:80")},
		{Backend: "app", Name: "g", State: "DRAIN", Address: at("10.0.0.7:80")},
		{Backend: "app", Name: "h", State: "NOLB 1/2", Weight: 1, Address: at("10.0.0.8:80")},
		{Backend: "app", Name: "i", State: "UP", Address: at("10.0.0.9:80")},
		{Backend: "app", Name: "j", State: "no check", Weight: 1, Usable: true},
	}
	if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.AddrPort{})); d != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	for _, bad := range []string{"", "Unknown command\n", "# pxname,svname,scur\n", statHead + "app,a,0,0,many,UP,1,,10.0.0.1:80,\n"} {
		if got, err := parseServers(bad); err == nil {
			t.Errorf("%q: %+v", bad, got)
		}
	}
}

// A check result is one short line, whatever the server chose to say; without the columns it is empty.
func TestWhatChecksSaid(t *testing.T) {
	const long = "\x1b[31mno" // with a server's own reason phrase
	for row, want := range map[string]string{
		"app,a,0,0,0,DOWN,1,Connection refused,10.0.0.1:80,L4CON,,Layer4 connection problem,":       "L4CON: Connection refused",
		"app,a,0,0,0,DOWN,1,Service Unavailable,10.0.0.1:80,* L7STS,503,Layer7 wrong status,":       "L7STS/503: Service Unavailable",
		"app,a,0,0,0,DOWN,1,,10.0.0.1:80,L4TOUT,,Layer4 timeout,":                                   "L4TOUT: Layer4 timeout",
		"app,a,0,0,0,DOWN,1,\"General socket error, really\",10.0.0.1:80,SOCKERR,,Socket error,":    "SOCKERR: General socket error, really",
		"app,a,0,0,0,NOLB 1/2,1,Not Found,10.0.0.1:80,L7OKC,404,Layer7 check conditionally passed,": "L7OKC/404: Not Found",
		"app,a,0,0,0,DOWN (agent),1,,10.0.0.1:80,,,,":                                               "",
		"app,a,0,0,0,UP 1/2,1,Connection refused,10.0.0.1:80,L4CON,,Layer4 connection problem,":     "",
		"app,a,0,0,0,MAINT,1,Connection refused,10.0.0.1:80,L4CON,,Layer4 connection problem,":      "",
		"app,a,0,0,0,DOWN,1," + long + strings.Repeat("x", 500) + ",10.0.0.1:80,L7STS,500,,":        "L7STS/500: [31mno" + strings.Repeat("x", 183) + " …",
	} {
		got, err := parseServers(statHead + row + "\n\n")
		if err != nil || len(got) != 1 || got[0].Check != want {
			t.Errorf("%s: %+v, %v, want %q", row, got, err, want)
		}
	}
	got, err := parseServers("# pxname,svname,scur,status,weight,addr,\napp,a,0,DOWN,1,10.0.0.1:80,\n\n")
	if err != nil || len(got) != 1 || got[0].Check != "" || got[0].State != "DOWN" {
		t.Errorf("an older HAProxy: %+v, %v", got, err)
	}
}

// Requests in flight in old workers count, also for servers that left.
func TestAddInFlight(t *testing.T) {
	at := netip.MustParseAddrPort
	now := []proxyctl.Server{{Backend: "app", Name: "a", Address: at("10.0.0.1:80"), Usable: true, InFlight: 1}, {Backend: "app", Name: "b", Address: at("10.0.0.9:80"), Usable: true}}
	old := []proxyctl.Server{
		{Backend: "app", Name: "a", Address: at("10.0.0.1:80"), Usable: true, InFlight: 2}, {Backend: "app", Name: "a", Address: at("10.0.0.1:80"), InFlight: 4},
		{Backend: "app", Name: "b", Address: at("10.0.0.2:80"), Usable: true, InFlight: 5}, {Backend: "app", Name: "c", Address: at("10.0.0.3:80"), Usable: true},
	}
	want := []proxyctl.Server{
		{Backend: "app", Name: "a", Address: at("10.0.0.1:80"), Usable: true, InFlight: 7}, {Backend: "app", Name: "b", Address: at("10.0.0.9:80"), Usable: true},
		{Backend: "app", Name: "b", Address: at("10.0.0.2:80"), InFlight: 5},
	}
	if d := cmp.Diff(want, addInFlight(now, old), cmpopts.EquateComparable(netip.AddrPort{})); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// Two exchanges ask HAProxy for the servers of its worker and of the old one.
func TestServersOfProxy(t *testing.T) {
	dir := t.TempDir()
	m, p := startMaster(t, dir), newProxy(dir)
	m.says = map[string]string{showServers: statHead + "app,a,0,0,1,UP,1,,10.0.0.1:80,\n\n"}
	m.oldSays = statHead + "app,a,0,0,2,UP,1,,10.0.0.1:80,\n\n"
	servers, err := p.Servers(t.Context())
	if err != nil || len(servers) != 1 || servers[0].InFlight != 3 || !servers[0].Usable {
		t.Errorf("%+v, %v", servers, err)
	}
	m.says[showServers] = "Permission denied\n\n"
	if servers, err := p.Servers(t.Context()); err == nil {
		t.Errorf("%+v", servers)
	}
	if servers, err := New(Options{}).Servers(t.Context()); err == nil {
		t.Errorf("without a socket: %+v", servers)
	}
}
