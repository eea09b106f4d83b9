package main

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// pluginName is the name under which berth is a plugin of the docker command: docker berth rollout ...
const pluginName = "docker-berth"

// asPlugin prepares the command for a call as a plugin, and reports whether docker only asked for the plugin's metadata. Docker's
// options that select a Docker host are errors: berth would use a different host.
func asPlugin(root *cobra.Command, args []string) (done bool, err error) {
	if filepath.Base(args[0]) != pluginName || len(args) < 2 {
		return false, nil
	}
	if args[1] == "docker-cli-plugin-metadata" {
		about := map[string]string{"SchemaVersion": "0.1.0", "Vendor": "berth", "Version": version, "ShortDescription": root.Short}
		return json.NewEncoder(root.OutOrStdout()).Encode(about) == nil, nil
	}
	if at := slices.Index(args, "berth"); at > 0 { // options of docker itself go before it
		for _, word := range args[1:at] {
			name, _, _ := strings.Cut(word, "=")
			long := strings.HasPrefix(name, "--")
			if long && slices.Contains([]string{"--host", "--context"}, name) || !long && (strings.HasPrefix(name, "-H") || strings.HasPrefix(name, "-c")) {
				return false, fmt.Errorf("berth ignores docker's option %s: set DOCKER_HOST instead", name)
			}
		}
		root.SetArgs(args[at+1:])
	}
	return false, nil
}
