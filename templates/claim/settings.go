package claim

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Settings define how routes are served.
type Settings struct {
	Strip, Redirect, Sticky bool
	Balance, Check          string // "" = not set
	MaxConn                 int    // 0 = not set
	SlowStart               time.Duration
	Fallback                string        // name of a service; "" = none
	ToLeader                bool          // only the service's leader serves
	Hold                    time.Duration // how long requests wait without a server; NoHold = not at all, 0 = not set
}

// NoHold is the Settings.Hold for not waiting.
const NoHold = time.Duration(-1)

// MaxHold is the longest time a request may wait.
const MaxHold = 5 * time.Minute

// The values of KeyTo.
const (
	toLeader = "leader"
	toAll    = "all"
)

var (
	// parseBalance accepts algorithms that allow adding and removing servers at run time.
	parseBalance = regexp.MustCompile(`^(roundrobin|leastconn|random|first|source|uri|hdr\([A-Za-z0-9-]{1,64}\))$`).FindString
	parseCheck   = regexp.MustCompile(`^/[A-Za-z0-9_.~%+:@=/?&,;-]{0,511}$`).FindString
)

// settings reads how to serve the routes. An invalid setting that restricts drops all routes, because otherwise more would
// be served than its author meant. Any other invalid setting is ignored.
func (p *parser) settings() {
	s := &p.Settings
	s.Strip = p.yes(KeyStrip)
	s.Sticky = p.yes(KeySticky)
	if value := p.setting(KeyRedirect); value != "" {
		yes, no := IsYes(value), IsNo(value)
		s.Redirect = yes || strings.EqualFold(value, "https")
		if s.Redirect || no {
			p.says(KeyRedirect)
		} else {
			p.drop("its %s %.100q is neither https nor no, so it has no route; set %s", KeyRedirect, value, Label(KeyRedirect))
		}
	}
	if value := p.setting(KeyCheck); value != "" {
		if s.Check = parseCheck(value); s.Check != "" {
			p.says(KeyCheck)
		} else {
			p.drop("its %s %.100q is not a path like /health, so it has no route; set %s", KeyCheck, value, Label(KeyCheck))
		}
	}
	if value := p.setting(KeyMaxConn); value != "" {
		n, err := strconv.ParseUint(value, 10, 32)
		if err == nil && n <= 1_000_000 {
			s.MaxConn = int(n)
			p.says(KeyMaxConn)
		} else {
			p.drop("its %s %.100q is not a number between 0 and 1000000, so it has no route; set %s", KeyMaxConn, value, Label(KeyMaxConn))
		}
	}
	if value := p.setting(KeyTo); value != "" {
		s.ToLeader = !strings.EqualFold(value, toAll) // also for an invalid value: as a fallback the instance serves without a route
		if !s.ToLeader || strings.EqualFold(value, toLeader) {
			p.says(KeyTo)
		} else {
			p.drop("its %s %.100q is neither leader nor all, so it has no route; %s", KeyTo, value, meantTo(value))
		}
	}
	if value := p.setting(KeyBalance); value != "" {
		if s.Balance = parseBalance(value); s.Balance != "" {
			p.says(KeyBalance)
		} else {
			p.problem("its %s %.100q is not one of roundrobin, leastconn, random, first, source, uri and hdr(<name>); set %s", KeyBalance, value, Label(KeyBalance))
		}
	}
	if value := p.setting(KeySlowStart); value != "" {
		if s.SlowStart = parseSlowStart(value); s.SlowStart != 0 {
			p.says(KeySlowStart)
		} else {
			p.problem("its %s %.100q is not a duration between 1s and 1h; set %s", KeySlowStart, value, Label(KeySlowStart))
		}
	}
	if value := p.setting(KeyHold); value != "" {
		if s.Hold = parseHold(value); s.Hold != 0 {
			p.says(KeyHold)
		} else {
			p.problem("its %s %.100q is not a duration between 0 and 5m, such as 30s; set %s", KeyHold, value, Label(KeyHold))
		}
	}
	if value := p.setting(KeyFallback); value != "" {
		if IsServiceName(value) {
			s.Fallback = value
			p.says(KeyFallback)
		} else {
			p.problem("its %s %.100q is not the name of another service; set %s", KeyFallback, value, Label(KeyFallback))
		}
	}
}

// meantTo returns the remedy for an invalid value of KeyTo.
func meantTo(value string) string {
	value = strings.ToLower(value)
	switch {
	case len(value) > 2*len(toLeader):
	case strings.HasPrefix(value, toLeader) || Distance(value, toLeader) <= 2:
		return "did you mean " + Label(KeyTo) + "=" + toLeader + "?"
	case Distance(value, toAll) == 1:
		return "did you mean " + Label(KeyTo) + "=" + toAll + "?"
	}
	return fmt.Sprintf("set %s to %s, or remove it", Label(KeyTo), toLeader)
}

// setting returns a trimmed value. An empty value has no effect, which is reported.
func (p *parser) setting(key string) string {
	value, there := p.meta[key]
	value = strings.TrimSpace(value)
	if there && value == "" {
		p.problem("its %s is empty and has no effect; set %s, or remove it", key, Label(key))
	}
	return value
}

func (p *parser) yes(key string) bool {
	value := p.setting(key)
	yes := IsYes(value)
	if yes || IsNo(value) {
		p.says(key)
	} else if value != "" {
		p.problem("its %s %.100q is neither yes nor no and counts as no; set %s to true or false", key, value, Label(key))
	}
	return yes
}

func (p *parser) says(key string) { p.Says = append(p.Says, key) }

// IsYes reports whether a word means yes, in either case.
func IsYes(s string) bool {
	return slices.Contains([]string{"yes", "true", "on", "1", "y", "t", "enabled", "enable"}, strings.ToLower(strings.TrimSpace(s)))
}

// IsNo reports whether a word means no, in either case.
func IsNo(s string) bool {
	return slices.Contains([]string{"no", "false", "off", "0", "n", "f", "disabled", "disable", "none"}, strings.ToLower(strings.TrimSpace(s)))
}

// parseSlowStart rounds to whole seconds, HAProxy's unit.
func parseSlowStart(s string) time.Duration {
	d, err := time.ParseDuration(s)
	if err != nil || d < time.Second || d > time.Hour {
		return 0
	}
	return d.Round(time.Second)
}

// parseHold rounds up to milliseconds, the proxies' unit. It returns 0 for an invalid or unsupported duration.
func parseHold(s string) time.Duration {
	if IsNo(s) {
		return NoHold
	}
	d, err := time.ParseDuration(s)
	switch {
	case err != nil || d < 0 || d > MaxHold:
		return 0
	case d == 0:
		return NoHold
	}
	return (d + time.Millisecond - 1).Truncate(time.Millisecond)
}

// HoldOr returns how long requests wait without a server: the service's own time, or the standard.
func (s Settings) HoldOr(standard time.Duration) time.Duration {
	switch {
	case s.Hold == 0:
		return standard
	case s.Hold < 0:
		return 0
	}
	return s.Hold
}

// ForTCP returns the settings for connections, which have no requests to inspect.
func (s Settings) ForTCP() Settings {
	s.Strip, s.Redirect, s.Sticky = false, false, false
	if s.NeedsHTTP() {
		s.Balance = ""
	}
	return s
}

// IsHash reports whether the algorithm sends equal requests to the same server.
func (s Settings) IsHash() bool { return s.Balance == "source" || s.NeedsHTTP() }

// NeedsHTTP reports whether the algorithm inspects requests.
func (s Settings) NeedsHTTP() bool { return s.Balance == "uri" || s.BalanceHeader() != "" }

// BalanceHeader returns the name of the header that the algorithm uses, "" without one.
func (s Settings) BalanceHeader() string {
	_, header, _ := strings.Cut(strings.TrimSuffix(s.Balance, ")"), "hdr(")
	return header
}
