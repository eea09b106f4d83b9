package docker

import (
	"slices"
	"strings"
	"testing"

	docker "github.com/fsouza/go-dockerclient"
)

// One row per function of Registrator, most with the example from its documentation.
func TestTagsTemplate(t *testing.T) {
	in := &docker.Container{
		ID: "e20f9c1a76565d62ae24a3bb877b17b8",
		Config: &docker.Config{
			Hostname: "foo",
			Env:      []string{"ENVIRONMENT=test", "SERVICE_8105_NAME=foo", "HOME=/home/foobar", "SERVICE_9404_NAME=bar"},
			Labels:   map[string]string{"com.amazonaws.ecs.task-arn": "arn:aws:ecs:region:task/368f4403", "evil": "a\nb"},
		},
	}
	tests := []struct {
		template string
		want     []string
		err      string // part of it
	}{
		{"{{.Config.Hostname}},prod", []string{"foo", "prod"}, ""},
		{"prod", []string{"prod"}, ""},
		{"{{strSlice .ID 0 12}}", []string{"e20f9c1a7656"}, ""},
		{"{{strSlice .ID 30}}", []string{"b8"}, ""},
		{"{{strSlice .ID 30 4}}", []string{"b8"}, ""},
		{"{{strSlice .ID 0 99}}", []string{in.ID}, ""},
		{"{{strSlice .ID -1}}", []string{in.ID}, ""},
		{"{{sIndex 0 .Config.Env}}", []string{"ENVIRONMENT=test"}, ""},
		{"{{sIndex -1 .Config.Env}}", []string{"SERVICE_9404_NAME=bar"}, ""},
		{"{{sIndex 9 .Config.Env}}", []string{"SERVICE_9404_NAME=bar"}, ""},
		{"{{sIndex -9 .Config.Env}}", []string{"ENVIRONMENT=test"}, ""},
		{"{{sIndex 0 .Config.Cmd}}", nil, ""},
		{`{{mIndex "com.amazonaws.ecs.task-arn" .Config.Labels}}`, []string{"arn:aws:ecs:region:task/368f4403"}, ""},
		{`{{mIndex "none" .Config.Labels}}`, nil, ""},
		{"{{.Config.Labels.none}}", nil, ""},
		{`{{toUpper "foo"}}{{toLower "BAR"}}`, []string{"FOObar"}, ""},
		{`{{replace -1 "=" "" "=foo="}}`, []string{"foo"}, ""},
		{`{{join "," .Config.Env}}`, in.Config.Env, ""},
		{`{{split "/" "a/b" | join "-"}}`, []string{"a-b"}, ""},
		{`{{splitIndex -1 "/" (mIndex "com.amazonaws.ecs.task-arn" .Config.Labels)}}`, []string{"368f4403"}, ""},
		{`{{matchFirstElement "^SERVICE_" .Config.Env}}`, []string{"SERVICE_8105_NAME=foo"}, ""},
		{`{{matchFirstElement "^NOTHING_" .Config.Env}}`, nil, ""},
		{`{{matchAllElements "^SERVICE_" .Config.Env | join ","}}`, []string{"SERVICE_8105_NAME=foo", "SERVICE_9404_NAME=bar"}, ""},
		{`{{matchAllElements "(" .Config.Env}}`, nil, "missing closing )"},
		{"{{.Config.Hostnane}}", nil, "Hostnane"},
		{"{{index .Config.Cmd 1}}", nil, "out of range"},
		{"{{.NetworkSettings.Networks}}", nil, "nil pointer"},
	}
	for _, tt := range tests {
		t.Run(tt.template, func(t *testing.T) {
			tmpl, err := ParseTags(tt.template)
			if err != nil {
				t.Fatal(err)
			}
			c := FromInspect(in, tmpl)
			if !slices.Equal(c.ExtraTags, tt.want) {
				t.Errorf("got %q, want %q", c.ExtraTags, tt.want)
			}
			if !strings.Contains(c.ExtraTagsErr, tt.err) || (tt.err == "") != (c.ExtraTagsErr == "") || strings.Contains(c.ExtraTagsErr, "\n") {
				t.Errorf("error %q, want %q", c.ExtraTagsErr, tt.err)
			}
		})
	}
	for _, bad := range []string{"{{.Config", `{{httpGet "http://a.example"}}`} {
		if _, err := ParseTags(bad); err == nil {
			t.Errorf("%q is taken for a template", bad)
		}
	}
}
