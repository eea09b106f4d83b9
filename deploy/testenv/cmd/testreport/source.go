package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/build/constraint"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

const (
	tag    = "e2e"
	prefix = "TestE2E"
)

// source is a test file.
type source struct {
	endToEnd   bool     // compiled only with the tag
	tests      []string // test functions
	benchmarks bool     // has benchmarks, which do not run as tests
}

// findTests returns the end-to-end tests in the source of a module, and why other tests cannot run: a name that go test
// does not know, or a file that belongs to no package.
func findTests(root string) (tests []test, problems []string, err error) {
	list := exec.Command("go", "list", "-tags", tag, "-json=Dir,ImportPath,TestGoFiles,XTestGoFiles", "./...")
	list.Dir, list.Stderr = root, os.Stderr
	out, err := list.Output()
	if err != nil {
		return nil, nil, fmt.Errorf("go list: %w", err)
	}
	run := map[string]bool{} // files
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			Dir, ImportPath           string
			TestGoFiles, XTestGoFiles []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, nil, err
		}
		before, endToEnd, benchmarks := len(tests), false, false
		for _, name := range slices.Concat(p.TestGoFiles, p.XTestGoFiles) {
			path := filepath.Join(p.Dir, name)
			run[path] = true
			src, err := read(path)
			if err != nil {
				return nil, nil, err
			}
			endToEnd, benchmarks = endToEnd || src.endToEnd, benchmarks || src.benchmarks
			for _, name := range src.tests {
				switch e2e := strings.HasPrefix(name, prefix); {
				case e2e:
					tests = append(tests, test{p.ImportPath, name})
				case src.endToEnd:
					problems = append(problems, fmt.Sprintf("%s is never run: in a file with the tag %s its name has to begin with %s", test{p.ImportPath, name}, tag, prefix))
				}
			}
		}
		if endToEnd && !benchmarks && len(tests) == before {
			problems = append(problems, fmt.Sprintf("%s has files with the tag %s, but no test in them", p.ImportPath, tag))
		}
	}
	slices.SortFunc(tests, compare)
	left, err := leftOut(root, run)
	return tests, append(problems, left...), err
}

// leftOut returns the end-to-end test files below root that are missing from run.
func leftOut(root string, run map[string]bool) (problems []string, err error) {
	if root, err = filepath.Abs(root); err != nil {
		return nil, err
	}
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") || d.IsDir() || run[path] {
			return err
		}
		src, err := read(path)
		if err == nil && src.endToEnd {
			path, err = filepath.Rel(root, path)
			problems = append(problems, path+": no package has this file")
		}
		return err
	})
	return problems, err
}

func read(path string) (s source, err error) {
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return s, err
	}
	for _, group := range file.Comments {
		for _, c := range group.List {
			if c.Pos() > file.Package || !constraint.IsGoBuild(c.Text) {
				continue
			}
			expr, err := constraint.Parse(c.Text)
			if err != nil {
				return s, fmt.Errorf("%s: %w", path, err)
			}
			// The tag is needed if nothing else satisfies the constraint.
			s.endToEnd = !expr.Eval(func(t string) bool { return t != tag })
		}
	}
	for _, d := range file.Decls {
		f, ok := d.(*ast.FuncDecl)
		if ok && f.Recv == nil && strings.HasPrefix(f.Name.Name, "Benchmark") {
			s.benchmarks = true
		}
		if ok && f.Recv == nil && strings.HasPrefix(f.Name.Name, "Test") && f.Name.Name != "TestMain" {
			s.tests = append(s.tests, f.Name.Name)
		}
	}
	return s, nil
}
