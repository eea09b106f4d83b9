package label

import (
	"fmt"
	"strings"
	"testing"
)

func TestAsks(t *testing.T) {
	c := Container{
		Env: []string{"SERVICE_NAME=shop", "SERVICE_DATABASE=private", "PATH=/bin"},
		Labels: map[string]string{
			"SERVICE_ROUTE_HOST": "shop.example.com", "SERVICE_CHECK_HEADER": "Authorization: Bearer x", "other": "y",
			"SERVICE_TAGS": strings.Repeat("t", 1000),
		},
	}
	got := c.Asks()
	if got["SERVICE_NAME"] != "shop" || got["SERVICE_ROUTE_HOST"] != "shop.example.com" || len(got) != 4 {
		t.Errorf("asks for %v", got)
	}
	if got["SERVICE_CHECK_HEADER"] != "(not shown)" || len(got["SERVICE_TAGS"]) > 300 {
		t.Errorf("what may be secret, or is long, is shown: %v", got)
	}
	for n := range 1000 {
		c.Labels[fmt.Sprintf("SERVICE_X%d", n)] = ""
	}
	if n := len(c.Asks()); n > mostAsked {
		t.Errorf("%d are shown, want %d at most", n, mostAsked)
	}
}
