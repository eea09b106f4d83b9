package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// module creates a module of files as the working directory.
func module(t *testing.T, files map[string]string) {
	t.Helper()
	t.Chdir(t.TempDir())
	files["go.mod"] = "module m\n\ngo 1.24\n"
	for name, text := range files {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

const (
	header = "//go:build e2e\n\npackage a\n\nimport \"testing\"\n\n"
	passes = "func TestE2EPasses(t *testing.T) { t.Run(\"part\", func(t *testing.T) {}) }\n"
)

// meets is a test that passes only if a test of another package, with the names exchanged, runs at the same time.
func meets(mine, other string) string {
	return "func TestE2EMeets(t *testing.T) {\n" +
		"\tif err := os.WriteFile(\"../" + mine + "\", nil, 0o644); err != nil {\n\t\tt.Fatal(err)\n\t}\n" +
		"\tfor end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {\n" +
		"\t\tif _, err := os.Stat(\"../" + other + "\"); err == nil {\n\t\t\treturn\n\t\t}\n\t}\n\tt.Fatal(\"alone\")\n}\n"
}

func TestRun(t *testing.T) {
	for name, tt := range map[string]struct {
		files      map[string]string
		allowSkips bool
		lanes      []string
		want       []string // abbreviated lines of the report's end
	}{
		"all pass": {
			files: map[string]string{"a/a_test.go": header + passes, "b/b.go": "package b\n", "c/c_test.go": "package c\n\nimport \"testing\"\n\nfunc TestUnit(t *testing.T) { t.Skip() }\n"},
			want:  []string{"ok m/a", "2 passed, 0 failed, 0 skipped"},
		},
		"two at the same time": {
			files: map[string]string{
				"a/a_test.go": strings.Replace(header, "\"testing\"", "(\n\t\"os\"\n\t\"testing\"\n\t\"time\"\n)", 1) + meets("mine", "other"),
				"b/b_test.go": strings.Replace(header, "\"testing\"", "(\n\t\"os\"\n\t\"testing\"\n\t\"time\"\n)", 1) + meets("other", "mine"),
				"c/c_test.go": header + passes,
			},
			lanes: []string{"./a,./c", "./b"},
			want:  []string{"ok m/a", "ok m/b", "ok m/c", "4 passed, 0 failed, 0 skipped"},
		},
		"a package is in no argument": {
			files: map[string]string{"a/a_test.go": header + passes, "b/b_test.go": header + passes},
			lanes: []string{"./a"},
			want:  []string{"problem: m/b has end-to-end tests, but none ran", "ok m/a", "2 passed, 0 failed, 0 skipped"},
		},
		"a test is skipped": {
			files: map[string]string{"a/a_test.go": header + passes + "func TestE2ESkipped(t *testing.T) { t.Skip(\"needs root\") }\n"},
			want: []string{
				"m/a TestE2ESkipped was skipped: a_test.go:8: needs root",
				"problem: 1 skipped",
				"ok m/a", "2 passed, 0 failed, 1 skipped",
			},
		},
		"a test may be skipped": {
			files:      map[string]string{"a/a_test.go": header + passes + "func TestE2ESkipped(t *testing.T) { t.Skip(\"needs root\") }\n"},
			allowSkips: true,
			want:       []string{"m/a TestE2ESkipped was skipped: a_test.go:8: needs root", "ok m/a", "2 passed, 0 failed, 1 skipped"},
		},
		"a part of a test is skipped": {
			files: map[string]string{"a/a_test.go": header + "func TestE2EParts(t *testing.T) { t.Run(\"part\", func(t *testing.T) { t.Skip(\"no IPv6\") }) }\n"},
			want: []string{
				"m/a TestE2EParts/part was skipped: a_test.go:7: no IPv6",
				"problem: 1 skipped",
				"ok m/a", "1 passed, 0 failed, 1 skipped",
			},
		},
		"a package runs nothing": {
			files: map[string]string{
				"a/a_test.go": header + passes,
				"b/b_test.go": "//go:build e2e\n\npackage b\n\nimport \"testing\"\n\nfunc TestMain(*testing.M) {}\n\n" + passes,
			},
			want: []string{"problem: m/b has end-to-end tests, but none ran", "ok m/a", "ok m/b", "2 passed, 0 failed, 0 skipped"},
		},
		"a package has no test": {
			files: map[string]string{"a/a_test.go": header + passes, "b/b_test.go": "//go:build e2e\n\npackage b\n"},
			want:  []string{"problem: m/b has files with the tag e2e, but no test in them", "ok m/a", "2 passed, 0 failed, 0 skipped"},
		},
		"a package has benchmarks only": {
			files: map[string]string{
				"a/a_test.go":    header + passes,
				"b/b_test.go":    "//go:build e2e\n\npackage b\n\nimport \"testing\"\n\nfunc BenchmarkB(*testing.B) {}\n",
				"b/help_test.go": "//go:build e2e\n\npackage b\n",
			},
			want: []string{"ok m/a", "2 passed, 0 failed, 0 skipped"},
		},
		"a test has another name": {
			files: map[string]string{"a/a_test.go": header + passes + "func TestOther(t *testing.T) {}\n"},
			want: []string{
				"problem: m/a TestOther is never run: in a file with the tag e2e its name has to begin with TestE2E",
				"ok m/a", "2 passed, 0 failed, 0 skipped",
			},
		},
		"a file is in no package": {
			files: map[string]string{
				"a/a_test.go":      header + passes,
				"a/b_test.go":      strings.Replace(header, "e2e", "e2e && plan9", 1) + "func TestE2EOther(t *testing.T) {}\n",
				"_old/old_test.go": header + passes,
			},
			want: []string{
				"problem: _old/old_test.go: no package has this file",
				"problem: a/b_test.go: no package has this file",
				"ok m/a", "2 passed, 0 failed, 0 skipped",
			},
		},
		"a test fails": {
			files: map[string]string{"a/a_test.go": header + passes + "func TestE2EFails(t *testing.T) { t.Fatal(\"no\") }\n"},
			want:  []string{"    a_test.go:8: no", "problem: go test: exit status 1", "problem: m/a TestE2EFails failed", "2 passed, 1 failed, 0 skipped"},
		},
		"a test does not end": {
			files: map[string]string{"a/a_test.go": strings.Replace(header, "\"testing\"", "(\n\t\"os\"\n\t\"testing\"\n)", 1) + passes + "func TestE2EZ(t *testing.T) { os.Exit(1) }\n"},
			want:  []string{"problem: go test: exit status 1", "problem: m/a TestE2EZ did not end", "2 passed, 0 failed, 0 skipped"},
		},
		"a package does not compile": {
			files: map[string]string{"a/a_test.go": header + passes + "var x int = \"\"\n"},
			want:  []string{"problem: go test: exit status 1", "problem: m/a has end-to-end tests, but none ran", "0 passed, 0 failed, 0 skipped"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			module(t, tt.files)
			var out strings.Builder
			if tt.lanes == nil {
				tt.lanes = []string{"./..."}
			}
			ok, err := run(&out, "e2e.json", tt.allowSkips, tt.lanes)
			if err != nil {
				t.Fatal(err)
			}
			_, end, _ := strings.Cut(out.String(), "--- end-to-end tests, in short\n")
			end = regexp.MustCompile(`(?m)^ok\s+(\S+).*`).ReplaceAllString(end, "ok $1")
			got := strings.Split(strings.TrimSpace(end), "\n")
			slices.Sort(got[:len(got)-1]) // packages may end in any order
			slices.Sort(tt.want[:len(tt.want)-1])
			if !slices.Equal(got, tt.want) {
				t.Errorf("the report ends with\n%s\nwant\n%s", end, strings.Join(tt.want, "\n"))
			}
			if want := !strings.Contains(end, "problem:"); ok != want {
				t.Errorf("ok is %t, want %t", ok, want)
			}
			if kept, err := os.ReadFile("e2e.json"); err != nil || !strings.Contains(string(kept), `"Action":"start"`) && !strings.Contains(string(kept), `"Action":"build-fail"`) {
				t.Errorf("the file has %q, %v", kept, err)
			}
		})
	}
}

// Notices tests in the source that go test does not report, and reported tests that are not in the source.
func TestProblems(t *testing.T) {
	r := newResults()
	for _, line := range []string{
		`{"Action":"run","Package":"m/a","Test":"TestE2ERuns"}`,
		`{"Action":"pass","Package":"m/a","Test":"TestE2ERuns"}`,
		`{"Action":"run","Package":"m/a","Test":"TestE2EUnknown"}`,
		`{"Action":"pass","Package":"m/a","Test":"TestE2EUnknown"}`,
		`{"Action":"run","Package":"m/a","Test":"TestE2ECut"}`,
		`go: some other line`,
	} {
		r.add([]byte(line))
	}
	got := r.problems([]test{{"m/a", "TestE2ERuns"}, {"m/a", "TestE2ECut"}, {"m/a", "TestE2EMissing"}, {"m/b", "TestE2EElsewhere"}})
	slices.Sort(got)
	want := []string{
		"m/a TestE2ECut did not end",
		"m/a TestE2EMissing did not run",
		"m/a TestE2EUnknown ran, but is not in the source",
		"m/b has end-to-end tests, but none ran",
	}
	if !slices.Equal(got, want) {
		t.Errorf("problems %q, want %q", got, want)
	}
}

// Every end-to-end test of this repository is run.
func TestRepository(t *testing.T) {
	tests, problems, err := findTests(filepath.Join("..", "..", "..", ".."))
	if err != nil || len(problems) > 0 {
		t.Errorf("%q, %v", problems, err)
	}
	if len(tests) == 0 {
		t.Error("there are none")
	}
}
