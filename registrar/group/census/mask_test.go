package census

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"berth/registrar/group/format"
)

func TestSecretKey(t *testing.T) {
	for _, key := range []string{
		"password", "Password", "DB_PASSWORD", "dbPassword", "dbpassword", "password2", "pass_word", "passwd", "passphrase", "pass", "db-pass", "PWD",
		"token", "AUTH_TOKEN", "authToken", "authtoken", "tokens", "token.value", "tokenID", "TOKENs", "x-token-2",
		"secret", "secrets", "client_secret", "clientSecret", "SECRETS", "credential", "credentials", "aws.credentials",
		"key", "keys", "api_key", "apiKey", "APIKey", "APIKEY", "apikeys", "APIKEYs", "apiKEYs", "KEYId", "key2", "ssh-key", "private", "privateKey", "private_addr",
	} {
		if !secretKey(key) {
			t.Errorf("%s is taken for no secret", key)
		}
	}
	for _, key := range []string{
		"", "monkey", "monkeys", "Monkey", "donkey_kong", "keyboard", "keynote", "tokenizer", "tokenize", "turkey", "hockey", "hotkeys", "passenger", "bypass",
		"compass", "privacy", "privateer", "greeting", "port", "ключ", "k e y",
	} {
		if secretKey(key) {
			t.Errorf("%s is taken for a secret", key)
		}
	}
}

func TestMaskText(t *testing.T) {
	for text, want := range map[string]string{
		"":                                    "",
		"Hello nolan!":                        "Hello nolan!",
		"http://app:8080/a?b=c":               "http://app:8080/a?b=c",
		"10:30 me@example.org":                "10:30 me@example.org",
		"redis://user:pw@host:6379/0":         "redis://***@host:6379/0",
		"redis://:p@w/x#y@host":               "redis://***@host",
		"https://token@github.com/a":          "https://***@github.com/a",
		"redis://a:b@h1,redis://c:d@h2":       "redis://***@h2",
		"at redis://a:b@h1\nor at x://c:d@h2": "at redis://***@h1\nor at x://***@h2",
		"root:pw@tcp(db:3306)/app":            "***@tcp(db:3306)/app",
		"root:pw@h,http://c:d@h2":             "***@h2",
		"host=db password=a b port=5":         "host=db password=***",
		"host=db PWD = 'ü'":                   "host=db PWD = ***",
		"x=token=abc":                         "x=token=***",
		"http://h/?a=b&api_key=c&d=e":         "http://h/?a=b&api_key=***",
		`{"user":"a","password":"b"}`:         `{"user":"a","password":***`,
		`{\"password\":\"b\"}`:                `{\"password\":***`,
		"<password>b</password>":              "<password>***",
		"secret:\n  b":                        "secret:\n  ***",
		"Your token:":                         "Your token:",
		"monkey=1":                            "monkey=1",
		"password=a:b@c":                      "***",
		"redis://u:token=x@h":                 "***",
		"-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----": "***",
	} {
		if got := maskText(text); got != want {
			t.Errorf("%q is shown as %q, want %q", text, got, want)
		}
	}
}

func TestMask(t *testing.T) {
	table, _, err := format.Parse([]byte(`
greeting = "Sup"
api_key = "a"
pin_token = 1234
use_token = true
day = 2026-01-02
far = inf
[redis]
url = "redis://u:p@h"
password = { old = "b", new = ["c"] }
[[servers]]
name = "x"
Secret = "d"
`), format.TOML)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		show bool
		want string
	}{
		{false, `{"api_key":"***","day":"2026-01-02","far":"+Inf","greeting":"Sup","pin_token":"***","redis":{"password":"***","url":"redis://***@h"},` +
			`"servers":[{"Secret":"***","name":"x"}],"use_token":true}`},
		{true, `{"api_key":"a","day":"2026-01-02","far":"+Inf","greeting":"Sup","pin_token":1234,"redis":{"password":{"new":["c"],"old":"b"},"url":"redis://u:p@h"},` +
			`"servers":[{"Secret":"d","name":"x"}],"use_token":true}`},
	} {
		before := fmt.Sprint(table)
		out, found, err := mask(table, tt.show)
		got, _ := json.Marshal(out)
		if err != nil || found == tt.show || string(got) != tt.want {
			t.Errorf("show %t: %v, %t\n%s\nwant\n%s", tt.show, err, found, got, tt.want)
		}
		if fmt.Sprint(table) != before {
			t.Fatal("the table was changed")
		}
	}
	for v, want := range map[any]string{math.NaN(): "NaN", time.Unix(0, 0).UTC(): "1970-01-01T00:00:00Z", struct{ P string }{"x"}: masked} {
		if out, _, _ := mask(map[string]any{"a": v}, false); !reflect.DeepEqual(out, map[string]any{"a": want}) {
			t.Errorf("%v becomes %v, want %s", v, out, want)
		}
	}
}

// YAML aliases share memory until they are encoded.
func TestMaskBounds(t *testing.T) {
	text := "a: &a " + strings.Repeat("x", 100_000) + "\nb: [" + strings.Repeat("*a,", 2_000) + "]\n"
	table, _, err := format.Parse([]byte(text), format.YAML)
	if err != nil {
		t.Fatal(err)
	}
	if out, _, err := mask(table, false); err == nil {
		t.Errorf("200 MB become %T", out)
	}
}

// No secret of any table appears in its masked form.
func TestPropertyMask(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var secrets []string
		fresh := func() string {
			tail := rapid.StringMatching(`[a-zA-Z0-9/@:=&%!$ü-]{0,8}`).Draw(t, "tail")
			secrets = append(secrets, fmt.Sprintf("S%dS", len(secrets)))
			return secrets[len(secrets)-1] + tail
		}
		affix := rapid.SampledFrom([]string{"", "db_", "DB-", "my.", "x9_"})
		secret := rapid.SampledFrom([]string{"password", "PASSWD", "apiKey", "api_key", "AUTH_TOKEN", "token", "clientSecret", "credentials", "private"})
		plain := rapid.SampledFrom([]string{"greeting", "url", "monkey", "list", "tokenizer"})
		var value func(depth int, hide bool) any
		value = func(depth int, hide bool) any {
			kinds := 6
			if depth == 0 {
				kinds = 4
			}
			kind := rapid.IntRange(0, kinds-1).Draw(t, "kind")
			switch {
			case kind == 4:
				return []any{value(depth-1, hide), value(depth-1, hide)}
			case kind == 5:
				out := map[string]any{}
				for range rapid.IntRange(0, 3).Draw(t, "keys") {
					if rapid.Bool().Draw(t, "secret") {
						out[affix.Draw(t, "affix")+secret.Draw(t, "key")] = value(depth-1, true)
					} else {
						out[affix.Draw(t, "affix")+plain.Draw(t, "key")] = value(depth-1, hide)
					}
				}
				return out
			case hide:
				return fresh()
			case kind == 0:
				return "redis://user:" + fresh() + "@host/0"
			case kind == 1:
				return "host=db " + secret.Draw(t, "key") + rapid.SampledFrom([]string{"=", ": ", " = '"}).Draw(t, "sign") + fresh()
			case kind == 2:
				return "me:" + fresh() + "@tcp(db)"
			}
			return "plain"
		}
		table := map[string]any{"top": value(4, false), "password": value(2, true)}
		out, _, err := mask(table, false)
		if err != nil {
			t.Fatal(err)
		}
		got, err := json.Marshal(out)
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(table)
		if err != nil {
			t.Fatal(err)
		}
		var c config
		(&handler{}).text(&c, text)
		shown, _ := json.Marshal(c)
		for _, s := range secrets {
			if strings.Contains(string(got), s) || strings.Contains(string(shown), s) {
				t.Fatalf("%s of %s is in\n%s\nor in\n%s", s, text, got, shown)
			}
		}
	})
}

// The masked form has each key of the table, and each value that is not secret.
func TestPropertyMaskKeeps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table := rapid.MapOf(rapid.SampledFrom([]string{"a", "b", "monkey", "port"}),
			rapid.OneOf(rapid.StringMatching(`[a-z ]*`).AsAny(), rapid.Int64().AsAny(), rapid.Bool().AsAny())).Draw(t, "table")
		out, found, err := mask(table, false)
		if err != nil || found || !reflect.DeepEqual(out, any(table)) {
			t.Fatalf("%v becomes %v, keys %v: %v", table, out, slices.Sorted(maps.Keys(table)), err)
		}
	})
}

func BenchmarkMaskText(b *testing.B) {
	for name, text := range map[string]string{"letters": strings.Repeat("x", 1<<20), "assignments": strings.Repeat("a=", 1<<19), "logins": strings.Repeat("a:b ", 1<<18) + "@"} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(1 << 20)
			for b.Loop() {
				maskText(text)
			}
		})
	}
}
