// Command testreport runs all end-to-end tests of a module and fails unless each of them ran and passed. go test alone accepts
// tests that were skipped or never run.
//
//	testreport [-allow-skips] [-json FILE] [PACKAGES...]
//
// PACKAGES are comma-separated package patterns. Packages of one argument are tested one after the other, different arguments at
// the same time: tests that must not see each other's containers belong in one argument. Without arguments all packages are
// tested one after the other. In any case all end-to-end tests of the module have to run.
//
// A test is an end-to-end test if its file needs the build tag e2e; its name begins with TestE2E. The output is that of
// go test -v, with each test's output in one piece. The last line is "N passed, N failed, N skipped", including subtests.
package main

import (
	"bufio"
	"cmp"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
)

func main() {
	file := flag.String("json", "", "`file` that gets what go test -json prints")
	allowSkips := flag.Bool("allow-skips", false, "do not fail if tests were skipped")
	flag.Parse()
	lanes := flag.Args()
	if len(lanes) == 0 {
		lanes = []string{"./..."}
	}
	ok, err := run(os.Stdout, *file, *allowSkips, lanes)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testreport:", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

func run(out io.Writer, file string, allowSkips bool, lanes []string) (ok bool, err error) {
	want, problems, err := findTests(".")
	if err != nil {
		return false, err
	}
	kept := io.Discard
	if file != "" {
		f, err := os.Create(file)
		if err != nil {
			return false, err
		}
		defer f.Close()
		kept = f
	}
	lines, ended := make(chan []byte), make(chan error)
	for _, lane := range lanes {
		go func() { ended <- goTest(strings.Split(lane, ","), lines) }()
	}
	r := newResults()
	for running := len(lanes); running > 0; {
		select {
		case line := <-lines:
			if _, err := kept.Write(line); err != nil {
				return false, err
			}
			fmt.Fprint(out, r.add(line))
		case err := <-ended:
			running--
			if err != nil {
				problems = append(problems, fmt.Sprintf("go test: %v", err))
			}
		}
	}
	fmt.Fprint(out, r.rest())
	problems = append(problems, r.problems(want)...)
	if n := len(r.skipped()); n > 0 && !allowSkips {
		problems = append(problems, fmt.Sprintf("%d skipped", n))
	}
	r.print(out, slices.Compact(slices.Sorted(slices.Values(problems))))
	return len(problems) == 0, nil
}

// goTest runs the end-to-end tests of packages, one package after the other, and passes the lines of go test -json on.
func goTest(packages []string, lines chan<- []byte) error {
	cmd := exec.Command("go", append([]string{"test", "-json", "-tags", tag, "-run", "^" + prefix, "-count=1", "-p=1", "-timeout=60m"}, packages...)...)
	cmd.Stderr = os.Stderr
	events, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	for in := bufio.NewReader(events); ; {
		line, err := in.ReadBytes('\n')
		lines <- line
		if err != nil {
			break
		}
	}
	return cmd.Wait()
}

// test is a test function of a package; the package is its import path.
type test struct{ pkg, name string }

func (t test) String() string { return t.pkg + " " + t.name }

func compare(a, b test) int { return cmp.Or(cmp.Compare(a.pkg, b.pkg), cmp.Compare(a.name, b.name)) }
