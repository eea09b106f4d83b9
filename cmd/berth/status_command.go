package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"berth/cmd/berth/status"
	"berth/registrar"
)

// Exit codes of berth status. Without --check they follow Habitat's sup status, with it monitoring plugins.
const (
	exitNotKnown  = 2
	exitNoAnswer  = 3
	exitSomeDown  = 1
	exitDown      = 2
	exitUndecided = 3
)

// statusTime is how long a berth or Consul may take to answer.
const statusTime = 10 * time.Second

func statusCommand() *cobra.Command {
	var asJSON, check, watch bool
	cmd := &cobra.Command{
		Use:   "status [SERVICE]",
		Short: "Show what is served, what is not, and why",
		Long: `Show every service with its routes, the number of instances that take requests, and the reasons why others do not. With
SERVICE, show the instances of this service. The report covers all hosts. It comes from the berth at --listen or, if none
runs here, from what all berths publish in Consul.

Exit codes:

  0  the report was printed
  1  error
  2  there is no such service
  3  neither a berth nor Consul answers

Exit codes with --check, as for monitoring plugins:

  0  all services are served
  1  some instances are down, or a proxy lacks the newest configuration
  2  a service is down
  3  unknown`,
		Args: cobra.MaximumNArgs(1),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return completeServices(serviceNames)(cmd, args, toComplete)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := readConfig(cmd.Flags())
			if err != nil {
				return asUsageError(err)
			}
			s := statusOf{config: c, cmd: cmd, out: cmd.OutOrStdout(), json: asJSON}
			if len(args) > 0 {
				s.service = args[0]
			}
			switch {
			case check && watch, check && asJSON:
				return asUsageError(errors.New("--check prints one line: it excludes --watch and --json"))
			case check:
				return s.check(cmd.Context())
			case watch:
				return s.watch(cmd.Context())
			}
			return s.print(cmd.Context())
		},
	}
	statusFlags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&check, "check", false, "print one line and exit like a monitoring plugin")
	cmd.Flags().BoolVar(&watch, "watch", false, "print the status again whenever it changes")
	return cmd
}

// statusFlags declares the flags that select the berth to ask.
func statusFlags(cmd *cobra.Command) {
	c := newConfig()
	c.commonFlags(cmd.Flags(), "")
	for _, of := range []string{"log-format", "log-level"} {
		cmd.Flags().Lookup(of).Hidden = true // for the file and the environment that it shares
	}
}

// statusOf is one call of berth status.
type statusOf struct {
	config  Config
	cmd     *cobra.Command
	out     io.Writer
	service string // "" = all
	json    bool
}

// code ends berth with a specific exit code, and an error message if there is one.
type code struct {
	error
	exit int
}

func (c code) Error() string {
	if c.error == nil {
		return fmt.Sprintf("exit code %d", c.exit)
	}
	return c.error.Error()
}

func (c code) Unwrap() error { return c.error }

// addresses returns the addresses where a berth of this machine may listen.
func (c Config) addresses(cmd *cobra.Command) []string {
	if c.origin("listen") == "listen" && !cmd.Flags().Changed("listen") {
		return []string{listenTemplater, listenRegistrar}
	}
	if c.Listen == "" {
		return nil
	}
	return []string{c.Listen}
}

// askBerth requests a path from the berths that may listen here, and decodes the first answer into out. It returns the last error.
func askBerth(ctx context.Context, addresses []string, path string, out any) error {
	err := errors.New("no berth listens here")
	for _, address := range addresses {
		if err = askBerthAt(ctx, address, path, out); err == nil {
			return nil
		}
	}
	return err
}

func askBerthAt(ctx context.Context, address, path string, out any) error {
	answer, err := get(ctx, address, path)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no berth listens at %s", address)
	case err != nil:
		return err
	}
	defer answer.Body.Close()
	switch {
	case answer.StatusCode == http.StatusNotFound:
		return fmt.Errorf("%s: %w", address, status.ErrNotKnown)
	case answer.StatusCode != http.StatusOK || !strings.HasPrefix(answer.Header.Get("Content-Type"), "application/json"):
		return fmt.Errorf("the program at %s is not a berth that answers status requests (%s)", address, answer.Status)
	}
	return json.NewDecoder(answer.Body).Decode(out)
}

// document asks a local berth, otherwise Consul.
func (c Config) document(ctx context.Context, cmd *cobra.Command, query string) (doc status.Document, err error) {
	ctx, cancel := context.WithTimeout(ctx, statusTime)
	defer cancel()
	addresses := c.addresses(cmd)
	if err = askBerth(ctx, addresses, statusPath+query, &doc); err == nil {
		return doc, nil
	}
	consul, err2 := consulClient(c)
	if err2 != nil {
		return doc, err2
	}
	in, err2 := status.Gather(ctx, consul)
	if err2 != nil {
		return doc, code{fmt.Errorf("neither a berth nor Consul answers: %w; %s", err, oneLine(err2)), exitNoAnswer}
	}
	return status.Build(in), nil
}

// read returns the document, limited to one service if requested.
func (s statusOf) read(ctx context.Context) (status.Document, error) {
	query := "?instances=no"
	switch {
	case s.service != "":
		query = "?service=" + url.QueryEscape(s.service)
	case s.json:
		query = ""
	}
	doc, err := s.config.document(ctx, s.cmd, query)
	if err != nil {
		return doc, err
	}
	if s.service == "" {
		return doc, nil
	}
	one, there := doc.Only(s.service)
	if !there {
		var names []string
		for _, s := range doc.Services {
			names = append(names, s.Name)
		}
		return doc, code{fmt.Errorf("%s: no such service%s; berth status lists all services", s.service, didYouMean(closest(s.service, names)...)), exitNotKnown}
	}
	return one, nil
}

func (s statusOf) print(ctx context.Context) error {
	doc, err := s.read(ctx)
	if err != nil {
		return err
	}
	if s.json {
		e := json.NewEncoder(s.out)
		e.SetIndent("", "  ")
		return e.Encode(doc)
	}
	return s.show(doc)
}

// watch prints the document again whenever it has changed.
func (s statusOf) watch(ctx context.Context) error {
	terminal := isTerminal(s.out)
	last := ""
	for {
		doc, err := s.read(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		at := doc.At
		doc.At = time.Time{}
		text := string(must(json.Marshal(doc)))
		if text != last {
			last = text
			doc.At = at
			if terminal {
				fmt.Fprint(s.out, "\x1b[H\x1b[2J")
			}
			if s.json {
				err = json.NewEncoder(s.out).Encode(doc)
			} else {
				err = s.show(doc)
			}
			if err != nil {
				return err
			}
		}
		if !pause(ctx, time.Second) {
			return nil
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// pause waits, and reports whether ctx is not done.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

func isTerminal(w io.Writer) bool {
	f, is := w.(*os.File)
	return is && term.IsTerminal(int(f.Fd()))
}

// check prints one line for a monitoring system.
func (s statusOf) check(ctx context.Context) error {
	doc, err := s.read(ctx)
	var exit code
	switch {
	case errors.As(err, &exit):
		return code{fmt.Errorf("UNKNOWN: %w", err), exitUndecided}
	case err != nil:
		return code{fmt.Errorf("UNKNOWN: %w", err), exitUndecided}
	}
	line, n := verdictOf(doc)
	fmt.Fprintln(s.out, line)
	if n != 0 {
		return code{nil, n}
	}
	return nil
}

// verdictOf summarises the state of all services in a line, and returns the exit code of a monitoring plugin.
func verdictOf(doc status.Document) (line string, exit int) {
	var down, degraded, unknown []string
	served := 0
	for _, s := range doc.Services {
		switch s.State {
		case status.Down:
			down = append(down, s.Name)
		case status.Degraded:
			degraded = append(degraded, s.Name)
		case status.Unknown:
			unknown = append(unknown, s.Name)
		case status.Serving:
			served++
		}
	}
	var failing []string
	for _, p := range doc.Proxies {
		if p.Failure != "" {
			failing = append(failing, p.Name)
		}
	}
	some := func(what string, names []string) string {
		const most = 5
		text := strings.Join(names[:min(len(names), most)], ", ")
		if n := len(names) - most; n > 0 {
			text += fmt.Sprintf(" and %d more", n)
		}
		return what + text
	}
	switch {
	case len(down) > 0:
		return some("CRITICAL: down: ", down), exitDown
	case len(degraded) > 0:
		return some("WARNING: some instances are down: ", degraded), exitSomeDown
	case len(failing) > 0:
		return some("WARNING: proxies without the newest configuration: ", failing), exitSomeDown
	case len(unknown) > 0:
		return some("UNKNOWN: no berth reports ", unknown), exitUndecided
	case len(doc.Proxies) == 0:
		return "UNKNOWN: no templater reports a proxy", exitUndecided
	}
	return fmt.Sprintf("OK: %d services are served", served), 0
}

// Colours of states on a terminal.
var colours = map[status.State]string{
	status.Serving: "\x1b[32m", status.Degraded: "\x1b[33m", status.Down: "\x1b[31m", status.Starting: "\x1b[36m",
	status.Draining: "\x1b[35m", status.Unrouted: "\x1b[2m", status.Unknown: "\x1b[2m",
}

// statusWidth is how wide the table is.
const statusWidth = 100

// show prints the document as a table.
func (s statusOf) show(doc status.Document) error {
	w := &strings.Builder{}
	coloured := isTerminal(s.out) && os.Getenv("NO_COLOR") == ""
	paint := func(state status.State, width int) string {
		text := fit(string(state), width)
		if coloured {
			return colours[state] + text + "\x1b[0m"
		}
		return text
	}
	if s.service != "" {
		s.showService(w, doc, paint)
	} else {
		s.showAll(w, doc, paint)
	}
	_, err := io.WriteString(s.out, w.String())
	return err
}

// fit pads or cuts a text to a width, in characters.
func fit(text string, width int) string {
	r := []rune(visible(text, ""))
	if len(r) > width {
		return string(r[:max(0, width-1)]) + "…"
	}
	return string(r) + strings.Repeat(" ", width-len(r))
}

// wrapText writes a text below a column, in lines of the table's width.
func wrapText(w io.Writer, indent int, text string) {
	width := statusWidth - indent
	line := ""
	flush := func() {
		if line != "" {
			fmt.Fprintf(w, "%s%s\n", strings.Repeat(" ", indent), line)
			line = ""
		}
	}
	for _, word := range strings.Fields(visible(text, "")) {
		for len([]rune(word)) > width {
			flush()
			r := []rune(word)
			line, word = string(r[:width]), string(r[width:])
			flush()
		}
		if line != "" && len([]rune(line))+1+len([]rune(word)) > width {
			flush()
		}
		line = strings.TrimPrefix(line+" "+word, " ")
	}
	flush()
}

// since shows how long ago something was.
func since(at, now time.Time) string {
	if at.IsZero() {
		return "-"
	}
	d := now.Sub(at)
	switch {
	case d < 0:
		return "now"
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// rank sorts states: trouble comes first.
func rank(s status.State) int {
	return slices.Index([]status.State{status.Down, status.Degraded, status.Starting, status.Draining, status.Unknown, status.Serving, status.Unrouted}, s)
}

func (s statusOf) showAll(w io.Writer, doc status.Document, paint func(status.State, int) string) {
	const name, state, up, route = 26, 9, 9, 52
	fmt.Fprintf(w, "%s %s %s %s\n", fit("SERVICE", name), fit("STATE", state), fit("SERVING", up), "ROUTES")
	services := slices.Clone(doc.Services)
	slices.SortStableFunc(services, func(a, b status.Service) int {
		return cmp.Or(cmp.Compare(rank(a.State), rank(b.State)), cmp.Compare(a.Name, b.Name))
	})
	for _, one := range services {
		var routes []string
		for _, r := range one.Routes {
			if r.Lost == "" && !slices.Contains(routes, r.Route) {
				routes = append(routes, r.Route)
			}
		}
		text := cmp.Or(strings.Join(routes, " "), "-")
		line := fmt.Sprintf("%s %s %s %s", fit(one.Name, name), paint(one.State, state), fit(fmt.Sprintf("%d/%d", one.Serving, one.Total), up), fit(text, route))
		fmt.Fprintln(w, strings.TrimRight(line, " "))
		if one.State != status.Unrouted {
			wrapText(w, 2, one.Reason)
		}
	}
	if len(doc.Services) == 0 {
		fmt.Fprintln(w, "no services")
	}
	var silent []status.Container
	for _, c := range doc.Containers {
		if c.Meant {
			silent = append(silent, c)
		}
	}
	if len(silent) > 0 {
		fmt.Fprintln(w, "\nCONTAINERS that register nothing")
		for _, c := range silent {
			fmt.Fprintf(w, "%s on %s\n", fit(c.Name, min(60, len([]rune(c.Name)))), visible(c.Host, ""))
			for _, reason := range c.Reasons {
				wrapText(w, 2, reason)
			}
		}
	}
	fmt.Fprintln(w, "\nPROXIES")
	for _, p := range doc.Proxies {
		how := "no configuration applied yet"
		if !p.Since.IsZero() {
			how = fmt.Sprintf("%d servers in %d backends, live for %s", p.Servers, p.Backends, since(p.Since, doc.At))
			if p.By != "" {
				how += " (by " + p.By + ")"
			}
		}
		if p.OldWorkers > 0 {
			how += fmt.Sprintf(", %d old workers", p.OldWorkers)
		}
		fmt.Fprintln(w, strings.TrimRight(fit(fmt.Sprintf("%s %s: %s", p.Name, strings.TrimSpace(p.Kind+" "+p.Version), how), statusWidth), " "))
		wrapText(w, 2, p.Failure)
	}
	fmt.Fprintln(w, "\nBERTHS")
	for _, b := range doc.Berths {
		line := fmt.Sprintf("%s %s %s, up %s", b.Role, b.Name, b.Version, since(b.Started, doc.At))
		if b.Host != "" && b.Host != b.Name {
			line = fmt.Sprintf("%s of %s (%s) %s, up %s", b.Role, b.Host, b.Name, b.Version, since(b.Started, doc.At))
		}
		if len(b.Waits) == 0 {
			line += ", ready"
		}
		fmt.Fprintln(w, strings.TrimRight(fit(line, statusWidth), " "))
		for _, why := range b.Waits {
			wrapText(w, 2, "waits: "+why)
		}
	}
	if len(doc.Incomplete) > 0 {
		fmt.Fprintln(w, "\nNOTES")
		for _, why := range doc.Incomplete {
			wrapText(w, 2, why)
		}
	}
}

func (s statusOf) showService(w io.Writer, doc status.Document, paint func(status.State, int) string) {
	one := doc.Services[0]
	fmt.Fprintf(w, "%s: %s, %d of %d instances take requests\n", visible(one.Name, ""), strings.TrimRight(paint(one.State, len(one.State)), " "), one.Serving, one.Total)
	for _, r := range one.Routes {
		line := fmt.Sprintf("route %s at %s, backend %s", r.Route, r.Proxy, r.Backend)
		if r.Lost != "" {
			line = "no route " + r.Route + " at " + r.Proxy + ": " + r.Lost
		} else if len(r.Losers) > 0 {
			line += "; also requested by " + strings.Join(r.Losers, ", ")
		}
		wrapText(w, 2, line)
	}
	for _, reason := range one.LeftOut {
		if !slices.ContainsFunc(one.Routes, func(r status.Route) bool { return r.Lost == reason }) {
			wrapText(w, 2, "ignored: "+reason)
		}
	}
	if one.Paused != "" {
		wrapText(w, 2, one.Paused)
	}
	if one.Waiting > 0 {
		wrapText(w, 2, fmt.Sprintf("%d requests are waiting", one.Waiting))
	}
	const id, state, reached, address, age, flight = 34, 9, 16, 22, 7, 6
	fmt.Fprintf(w, "\n%s %s %s %s %s %s\n", fit("INSTANCE", id), fit("STATE", state), fit("REACHED", reached), fit("ADDRESS", address), fit("UP", age), "BUSY")
	for _, in := range one.Instances {
		busy := "-"
		for _, srv := range in.Servers {
			if srv.InFlight >= 0 {
				busy = fmt.Sprint(srv.InFlight)
			}
		}
		line := fmt.Sprintf("%s %s %s %s %s %s", fit(in.ID, id), paint(in.State, state), fit(string(in.Reached), reached), fit(in.Address, address),
			fit(since(in.Times.Started, doc.At), age), fit(busy, flight))
		fmt.Fprintln(w, strings.TrimRight(line, " "))
		wrapText(w, 2, in.Reason)
	}
	if len(one.Instances) == 0 {
		fmt.Fprintln(w, "none")
	}
}

// hostReport asks the local registrar for its report; nil if none answers: berth explain works without it.
func (c Config) hostReport(ctx context.Context, cmd *cobra.Command) *registrar.Report {
	ctx, cancel := context.WithTimeout(ctx, statusTime/2)
	defer cancel()
	addresses := c.addresses(cmd)
	slices.Reverse(addresses) // a registrar's first
	for _, address := range addresses {
		if report, err := runningReport(ctx, address); err == nil {
			return &report
		}
	}
	return nil
}
