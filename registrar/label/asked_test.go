package label

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// Labels are shown as they count: a label overrides a variable, in upper case, without what berth does not read.
func TestAsked(t *testing.T) {
	for _, tt := range []struct {
		name string
		in   Container
		want string
	}{
		{"nothing", web(), ""},
		{"labels and variables", web(env("SERVICE_NAME=a", "PATH=/bin"), label("SERVICE_TAGS", " x "), label("other", "y")), "SERVICE_NAME=a SERVICE_TAGS=x"},
		{"a label wins", web(env("SERVICE_NAME=a"), label("service_name", "b")), "SERVICE_NAME=b"},
		{"of a port", web(label("SERVICE_8080_NAME", "a"), label("service_name", "b")), "SERVICE_8080_NAME=a SERVICE_NAME=b"},
		{"metadata", web(label("SERVICE_REGION", "eu")), "SERVICE_REGION=eu"},
		{"the program's own variable", web(env("SERVICE_URL=a")), ""},
		{"what is no text", web(label("SERVICE_NAME", "a\x1b[2Jb")), `SERVICE_NAME="a\x1b[2Jb"`},
		{"empty", web(label("SERVICE_NAME", "")), "SERVICE_NAME="},
	} {
		var pairs []string
		for key, value := range AskedOf(tt.in).Values {
			pairs = append(pairs, key+"="+value)
		}
		slices.Sort(pairs)
		if got := strings.Join(pairs, " "); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

func TestAskedHidesSecrets(t *testing.T) {
	for key, value := range map[string]string{
		"SERVICE_PASSWORD": "s3cret", "SERVICE_DB_PASS": "s3cret", "SERVICE_ApiKey": "s3cret", "SERVICE_API-KEY": "s3cret", "SERVICE_8080_TOKEN": "s3cret",
		"SERVICE_JWT": "s3cret", "SERVICE_DSN": "s3cret", "SERVICE_COOKIE": "s3cret", "SERVICE_AUTH": "s3cret", "SERVICE_SECRET_NAME": "s3cret",
		"SERVICE_CHECK_HEADER_AUTHORIZATION": "s3cret", "SERVICE_CHECK_HEADER_X_AUTH": "s3cret", "SERVICE_CHECK_HEADER_COOKIE": "s3cret",
		"SERVICE_DB": "postgres://app:s3cret@db/app", "SERVICE_CHECK_SCRIPT": "curl -H 'Authorization: Bearer s3cret'",
		"SERVICE_CHECK_HTTP": "/health?token=s3cret", "SERVICE_READY": "http:/health?key=s3cret", "SERVICE_URL": "app:s3cret@db",
	} {
		values := AskedOf(web(label(key, value))).Values
		if shown := fmt.Sprint(values); len(values) != 1 || strings.Contains(shown, "s3cret") || !strings.Contains(shown, hidden) {
			t.Errorf("%s=%s is shown as %s", key, value, shown)
		}
	}
	for _, key := range nearKeys {
		if shown := AskedOf(web(label(spelling(0, key), "x"))).Values[spelling(0, key)]; shown != "x" {
			t.Errorf("%s is shown as %q", key, shown)
		}
	}
}

// However many labels exist, few are shown, and known ones come first.
func TestAskedIsBounded(t *testing.T) {
	all := []func(*Container){label("SERVICE_TAGS", strings.Repeat("ä", 1000)), label("SERVICE_NAME", strings.Repeat("\x01", 1000)), label("SERVICE_"+strings.Repeat("x", 10000), "x")}
	for n := range 1000 {
		all = append(all, label(fmt.Sprintf("SERVICE_A%d", n), "x"), label(fmt.Sprintf("SERVICE_ROUTE_HOST%d", n), "x"))
	}
	a := AskedOf(web(all...))
	size := 0
	for key, value := range a.Values {
		if size += len(key) + len(value); len(value) > maxAskedValue || !utf8.ValidString(value) {
			t.Errorf("%s=%s", key, value)
		}
	}
	if len(a.Values) != maxAsked || len(a.misspelt) > maxAsked || size > 5000 || a.Values["SERVICE_TAGS"] == "" {
		t.Errorf("%d values of %d bytes, %d misspelt", len(a.Values), size, len(a.misspelt))
	}
}

func TestMisspeltIn(t *testing.T) {
	c := web(label("SERVICE_ROUTE_HOSTS", "a.example"), label("SERVICE_8080_TAG", "x"), env("SERVICE_NAEM=y"), label("SERVICE_8O80_ID", "z"))
	a := AskedOf(c)
	_, reasons := Instances(c, host)
	var got []string
	for _, reason := range append(reasons, "the container is paused") {
		if m, is := a.MisspeltIn(reason); is {
			got = append(got, m.Label+" "+m.Meant)
		}
	}
	slices.Sort(got)
	want := []string{"SERVICE_8080_TAG SERVICE_8080_TAGS", "SERVICE_8O80_ID SERVICE_<port>_ID", "SERVICE_NAEM SERVICE_NAME", "SERVICE_ROUTE_HOSTS SERVICE_ROUTE_HOST"}
	if !slices.Equal(got, want) {
		t.Errorf("%q of %q, want %q", got, reasons, want)
	}
}
