package label

import (
	"maps"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestProcess(t *testing.T) {
	in, err := Process{
		Host:    "vm",
		Name:    "www",
		Port:    20001,
		Address: "fd00::1",
		Tags:    "a, b",
		Meta:    []string{"route_host=a.example,b.example", "route_path=/x=y"},
		Weight:  7,
		Ready:   "https:/health?a=b",
		TTL:     15 * time.Second,
	}.Instance()
	if err != nil {
		t.Fatal(err)
	}
	if in.ID != "vm:www:20001" || in.Name != "www" || in.Address != "fd00::1" || in.Port != 20001 || in.Weight != 7 {
		t.Errorf("%+v", in)
	}
	if diff := cmp.Diff([]string{"a", "b"}, in.Tags); diff != "" {
		t.Error(diff)
	}
	if want := map[string]string{"route_host": "a.example,b.example", "route_path": "/x=y"}; !maps.Equal(in.Meta, want) {
		t.Errorf("meta is %v", in.Meta)
	}
	if want := "https://[fd00::1]:20001/health?a=b"; in.Ready.URL != want {
		t.Errorf("it is asked at %s, want %s", in.Ready.URL, want)
	}
	if d := in.Checks[0].Definition; d.TTL != "15s" || d.DeregisterCriticalServiceAfter != "10m0s" {
		t.Errorf("its check is %+v", d)
	}
}
