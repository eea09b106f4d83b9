package status

import (
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
)

// The documentation has every key of the document.
func TestDocumentIsDocumented(t *testing.T) {
	text, err := os.ReadFile("../../../docs/operate/status.md")
	if err != nil {
		t.Fatal(err)
	}
	_, documented, found := strings.Cut(string(text), "## The document")
	if !found {
		t.Fatal("there is no section about the document")
	}
	seen := map[reflect.Type]bool{}
	keys := 0
	var check func(reflect.Type)
	check = func(of reflect.Type) {
		for of.Kind() == reflect.Slice || of.Kind() == reflect.Pointer {
			of = of.Elem()
		}
		if of.Kind() != reflect.Struct || of == reflect.TypeFor[time.Time]() || seen[of] {
			return
		}
		seen[of] = true
		for i := range of.NumField() {
			f := of.Field(i)
			if key, _, _ := strings.Cut(f.Tag.Get("json"), ","); key != "" {
				if keys++; !strings.Contains(documented, "`"+key+"`") {
					t.Errorf("docs/operate/status.md has no key %s of %s", key, of.Name())
				}
			}
			check(f.Type)
		}
	}
	check(reflect.TypeFor[Document]())
	check(reflect.TypeFor[Numbered]())
	if keys < 70 {
		t.Errorf("%d keys were compared", keys)
	}
}
