package store

import (
	"net/http"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"
)

// Another server's 404 is distinguished from a refusal by Consul, whichever query meets it first.
func TestExplainReadOfAnotherServer(t *testing.T) {
	page := api.StatusError{Code: http.StatusNotFound, Body: "<html>no such page</html>"}
	for name, err := range map[string]error{
		"a key":     ExplainRead("shop", &api.QueryMeta{}, nil),
		"instances": ExplainRead("shop", nil, page),
	} {
		if err == nil || !strings.HasPrefix(err.Error(), "read shop: something other than Consul answers there") {
			t.Errorf("%s: %v", name, err)
		}
	}
	refused := ExplainRead("shop", nil, api.StatusError{Code: http.StatusForbidden, Body: "Permission denied"})
	if refused == nil || refused.Error() != "read shop: Consul refuses it: Permission denied" {
		t.Errorf("a refusal: %v", refused)
	}
}
