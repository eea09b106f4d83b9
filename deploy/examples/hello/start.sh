#!/bin/sh
# Runs the application as an instance of the service hello, with this container's address. Without the address, Consul would use
# its own.
set -eu
exec berth service --name hello --port 8080 --address "$(hostname -i)" --ready http:/health --meta route_path=/ \
	--defaults /etc/hello/default.toml \
	--bind redis:redis --binding-mode strict \
	--render /etc/hello/hello.toml.ctmpl:/run/hello/hello.toml \
	"$@" -- hello /run/hello/hello.toml
