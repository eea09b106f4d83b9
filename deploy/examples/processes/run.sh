#!/bin/sh
# Starts the whole example: Consul, berth with HAProxy, and two processes of each service. Ctrl-C stops everything.
#
# BIN is a directory with berth, data and www; without it they are built into bin/.
set -eu
cd "$(dirname "$0")"

for program in consul haproxy; do
	command -v $program >/dev/null || {
		echo "$program is missing: README.md says how to get it" >&2
		exit 1
	}
done
if [ -z "${BIN:-}" ]; then
	BIN=bin
	go build -o bin/ ./data ./www ../../../cmd/berth
fi
mkdir -p run

# In its own session, so that Ctrl-C reaches only this script: the services have to drain while Consul and HAProxy still run.
start() { setsid "$@" & }

# end PID... stops processes and waits for them.
end() {
	kill "$@" 2>/dev/null || true
	wait "$@" || true
}

start consul agent -dev -log-level warn >run/consul.log 2>&1
consul=$!
start "$BIN/berth" templater --template haproxy.cfg.ctmpl --haproxy-config run/haproxy.cfg \
	--haproxy-socket "$PWD/run/master.sock" -- haproxy -W -db
berth=$!
services=
for port in 20101 20102; do
	start "$BIN/data" $port
	services="$services $!"
done
for port in 20001 20002; do
	start "$BIN/www" $port
	services="$services $!"
done

# shellcheck disable=SC2086
stop() {
	trap '' INT TERM
	end $services
	end $berth
	end $consul
	exit 0
}
trap stop INT TERM
echo "try: curl http://127.0.0.1:8080/ and http://127.0.0.1:8000/admin?stats and http://127.0.0.1:8500/ui; ctrl-C ends it"
wait
