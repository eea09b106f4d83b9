// Command testreport runs all end-to-end tests of a module and fails unless each of them ran and passed: go test alone is content with
// a test that was skipped, and with one that nothing ran.
//
//	testreport [-allow-skips] [-json FILE]
//
// A test is an end-to-end test if its file needs the build tag e2e; its name begins with TestE2E. The output is like
// go test -v prints it. The last line is "N passed, N failed, N skipped", subtests included.
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
)

func main() {
	file := flag.String("json", "", "`file` that gets what go test -json prints")
	allowSkips := flag.Bool("allow-skips", false, "do not fail if tests were skipped")
	flag.Parse()
	ok, err := run(os.Stdout, *file, *allowSkips)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testreport:", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

func run(out io.Writer, file string, allowSkips bool) (ok bool, err error) {
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
	cmd := exec.Command("go", "test", "-json", "-tags", tag, "-run", "^"+prefix, "-count=1", "-p=1", "-timeout=60m", "./...")
	cmd.Stderr = os.Stderr
	events, err := cmd.StdoutPipe()
	if err != nil {
		return false, err
	}
	if err := cmd.Start(); err != nil {
		return false, err
	}
	r := newResults()
	for in := bufio.NewReader(events); ; {
		line, err := in.ReadBytes('\n')
		if _, err := kept.Write(line); err != nil {
			return false, err
		}
		fmt.Fprint(out, r.add(line))
		if err != nil {
			break
		}
	}
	if err := cmd.Wait(); err != nil {
		problems = append(problems, fmt.Sprintf("go test: %v", err))
	}
	problems = append(problems, r.problems(want)...)
	if n := len(r.skipped()); n > 0 && !allowSkips {
		problems = append(problems, fmt.Sprintf("%d skipped", n))
	}
	r.print(out, slices.Compact(slices.Sorted(slices.Values(problems))))
	return len(problems) == 0, nil
}

// test is a test function of a package; the package is its import path.
type test struct{ pkg, name string }

func (t test) String() string { return t.pkg + " " + t.name }

func compare(a, b test) int { return cmp.Or(cmp.Compare(a.pkg, b.pkg), cmp.Compare(a.name, b.name)) }
