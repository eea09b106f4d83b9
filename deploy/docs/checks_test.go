package docs

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

const sample = "# A page: `code_here`, and *more*!\n\n" +
	"## Twice\n\n## Twice\n\n## [Über](other.md) uns (1.2)\n\n" +
	"berth starts. berth `ends. Never` with 1.7 ms (or does it?) Yes, e.g. here\nand [there](there.md#x)\n— soon.\n\n" +
	"| a | b |\n| --- | --- |\n| Not. A sentence. | [cell](cell.md) |\n\n" +
	"- An item ![shot](shot.png):\n\n      name: value\n\n      docker compose up\n\n" +
	"```yaml\na: 1\n```\n\n    [ini]\n    a: b\n"

func TestPage(t *testing.T) {
	p := parsePage("x.md", []byte(sample))
	texts := func(all []located) (texts []string) {
		for _, one := range all {
			texts = append(texts, one.where+" "+one.text)
		}
		return texts
	}
	var blocks []string
	for _, b := range p.blocks {
		text, is := yamlOf(b)
		if is {
			blocks = append(blocks, b.where+" "+text)
		}
	}
	for _, test := range []struct {
		name       string
		have, want []string
	}{
		{"anchors", p.anchors, []string{"a-page-code_here-and-more", "twice", "twice-1", "über-uns-12"}},
		{"links", texts(p.links), []string{"x.md:7 other.md", "x.md:9 there.md#x", "x.md:15 cell.md", "x.md:17 shot.png"}},
		{"sentences", texts(p.sentences), []string{
			"x.md:9 berth starts.", "x.md:9 berth code with 1.7 ms (or does it?)", "x.md:9 Yes, e.g. here and there — soon.", "x.md:17 An item :",
		}},
		{"YAML", blocks, []string{"x.md:19 name: value\n", "x.md:24 a: 1\n"}},
	} {
		if diff := cmp.Diff(test.want, test.have); diff != "" {
			t.Errorf("%s (- want, + have):\n%s", test.name, diff)
		}
	}
	if n := words(p.sentences[2].text); n != 6 {
		t.Errorf("%q has %d words", p.sentences[2].text, n)
	}
}

func TestChecks(t *testing.T) {
	p, err := readPage(repository + "docs/reference/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	link := func(text string) error { return checkLink(p, text) }
	for _, test := range []struct {
		name  string
		check func(string) error
		text  string
		good  bool
	}{
		{"file", link, "configuration.md", true},
		{"own heading", link, "#berth-run", true},
		{"heading of a file", link, "../../README.md#try-it-in-a-minute", true},
		{"directory", link, "../../deploy", true},
		{"line", link, "../../Makefile#L10", true},
		{"address", link, "https://example.com/#x", true},
		{"no file", link, "configuration.txt", false},
		{"no heading", link, "configuration.md#nothing", false},
		{"not its own heading", link, "#nothing", false},
		{"outside", link, "../../../x", false},
		{"absolute", link, "/docs/use/labels.md", false},
		{"YAML", checkYAML, "a: [1]\n---\nb: {c: 1}\n", true},
		{"bad YAML", checkYAML, "a: [1\n", false},
		{"bad second document", checkYAML, "a: 1\n---\nb: {c\n", false},
		{"a key twice", checkYAML, "a: 1\na: 2\n", false},
		{"template", checkTemplate, `{{ define "x" }}{{ . | anything 1 }}{{ end }}`, true},
		{"template without an end", checkTemplate, `{{ range services }}`, false},
		{"Handlebars", checkTemplate, `{{#if cfg.port}}{{/if}}`, false},
	} {
		if err := test.check(test.text); (err == nil) != test.good {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}
