package main

import (
	"encoding/json"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"
)

// pluginName is the name under which berth is a plugin of the docker command: docker berth rollout ...
const pluginName = "docker-berth"

// asPlugin prepares the command for being called as a plugin, and reports whether all that docker wanted was to be told about it.
func asPlugin(root *cobra.Command, args []string) (done bool) {
	if filepath.Base(args[0]) != pluginName || len(args) < 2 {
		return false
	}
	if args[1] == "docker-cli-plugin-metadata" {
		about := map[string]string{"SchemaVersion": "0.1.0", "Vendor": "berth", "Version": version, "ShortDescription": root.Short}
		return json.NewEncoder(root.OutOrStdout()).Encode(about) == nil
	}
	if at := slices.Index(args, "berth"); at > 0 { // options of docker itself go before it
		root.SetArgs(args[at+1:])
	}
	return false
}
