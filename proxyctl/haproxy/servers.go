package haproxy

import (
	"cmp"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"berth/proxyctl"
)

// showServers shows the statistics of all servers.
const showServers = "show stat -1 4 -1"

// Servers implements proxyctl.Driver. Requests in old workers count as in flight.
func (d *driver) Servers(ctx context.Context) ([]proxyctl.Server, error) {
	if d.opts.Socket == "" {
		return nil, errors.New(noSocket)
	}
	reply, err := d.master.command(ctx, "show proc; @1 "+showServers)
	if err != nil {
		return nil, err
	}
	head, now, _ := strings.Cut(reply, "\n\n")
	servers, err := parseServers(now)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", proxyctl.ErrUnreachable, err)
	}
	d.hideLingering(servers)
	old := parseProcesses(head).old
	if len(old) == 0 {
		return servers, nil
	}
	line := "show proc"
	for _, pid := range old {
		line += fmt.Sprintf("; @!%d %s", pid, showServers)
	}
	if reply, err = d.master.command(ctx, line); err != nil {
		return nil, err
	}
	_, before, _ := strings.Cut(reply, "\n\n")
	theirs, _ := parseServers(before) // a worker that has just ended shows none
	return addInFlight(servers, theirs), nil
}

// addInFlight adds the requests that old workers have in flight.
func addInFlight(servers, old []proxyctl.Server) []proxyctl.Server {
	at := map[serverName]int{}
	for i, s := range servers {
		at[serverName{s.Backend, s.Name}] = i
	}
	for _, s := range old {
		n := serverName{s.Backend, s.Name}
		i, there := at[n]
		switch {
		case s.InFlight == 0:
		case there && servers[i].Address == s.Address:
			servers[i].InFlight += s.InFlight
		default: // it has left since, or its address has changed
			s.Usable = false
			servers = append(servers, s)
		}
	}
	return servers
}

// serverColumns are the columns of "show stat" that are read.
var serverColumns = []string{"pxname", "svname", "scur", "status", "weight", "addr"}

// checkColumns are read if present: what a check said, and what that means in general.
var checkColumns = []string{"check_status", "check_code", "last_chk", "check_desc"}

// parseServers parses one or more replies to "show stat" for servers.
func parseServers(reply string) (servers []proxyctl.Server, err error) {
	at := strings.Index(reply, "# pxname,")
	if at < 0 {
		return nil, fmt.Errorf("not server statistics: %s", oneLine(reply))
	}
	lines := csv.NewReader(strings.NewReader(reply[at:]))
	lines.FieldsPerRecord, lines.LazyQuotes, lines.ReuseRecord = -1, true, true
	var columns, checks []int
	for {
		f, err := lines.Read()
		switch {
		case errors.Is(err, io.EOF):
			return servers, nil
		case err != nil:
			return nil, fmt.Errorf("server statistics: %w", err)
		case strings.HasPrefix(f[0], "# "):
			f[0] = strings.TrimPrefix(f[0], "# ")
			columns = nil
			for _, name := range serverColumns {
				i := slices.Index(f, name)
				if i < 0 {
					return nil, fmt.Errorf("server statistics: no column %s", name)
				}
				columns = append(columns, i)
			}
			checks = nil
			for _, name := range checkColumns {
				checks = append(checks, slices.Index(f, name))
			}
			continue
		case len(f) <= slices.Max(columns): // the answer of a worker without this command, or an empty line
			continue
		}
		field := func(n int) string { return f[columns[n]] }
		s := proxyctl.Server{Backend: strings.Clone(field(0)), Name: strings.Clone(field(1))}
		if s.InFlight, err = strconv.Atoi(field(2)); err != nil {
			return nil, fmt.Errorf("server statistics: the sessions of %s/%s are %q", s.Backend, s.Name, field(2))
		}
		s.Address, _ = netip.ParseAddrPort(field(5))
		s.State = strings.Clone(field(3))
		if s.Weight, err = strconv.Atoi(field(4)); err != nil {
			s.Weight = proxyctl.UnknownWeight
		}
		s.Usable = usable(s.State) && s.Weight != 0
		if strings.HasPrefix(s.State, "DOWN") || strings.HasPrefix(s.State, "NOLB") {
			s.Check = checkSaid(f, checks)
		}
		servers = append(servers, s)
	}
}

// checkSaid returns the result of a server's last check on one line: "L4CON: Connection refused", "L7STS/503: Service
// Unavailable". The server may have chosen the words.
func checkSaid(f []string, columns []int) string {
	field := func(n int) string {
		if i := columns[n]; i >= 0 && i < len(f) {
			return f[i]
		}
		return ""
	}
	said := strings.TrimPrefix(field(0), "* ") // a check is running
	if code := field(1); code != "" {
		said += "/" + code
	}
	words := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, cmp.Or(field(2), field(3)))
	return shorten(oneLine(strings.Trim(said+": "+words, ": ")), mostSaid)
}

// mostSaid limits what is kept of a check result.
const mostSaid = 200

// usable reports whether a server with this status gets new requests: "UP", "UP 1/3" (going down), "no check", but not "DOWN
// 1/2", "MAINT", "MAINT (via b/s)", "DRAIN", "NOLB".
func usable(status string) bool {
	return status == "no check" || status == "UP" || strings.HasPrefix(status, "UP ")
}
