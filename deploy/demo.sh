#!/bin/sh
# demo.sh up     starts the demo, waits for a page through HAProxy, and prints what to try
# demo.sh down   removes it with its volumes
set -eu
cd "$(dirname "$0")"

. ./docker.sh
[ -f .env ] || fail "deploy/.env is missing: run 'make images' first."
env_value() { sed -n "s/^$1=//p" .env | tail -n 1; }
project=${COMPOSE_PROJECT_NAME:-$(env_value COMPOSE_PROJECT_NAME)}
app=${IMAGE_APP:-$(env_value IMAGE_APP)}
network=${project}_default

up() {
	$compose up -d || fail "compose did not start the demo. If a port is in use, set another in deploy/.env:" \
		"HTTP_PORT, STATS_PORT, PAGE_PORT or CONSUL_PORT, for example HTTP_PORT=18080."
	front=http://$($compose port haproxy 8080)
	wait_for_app || {
		$compose ps
		$compose logs --tail=15
		fail "no application answered through HAProxy on $front within 60 seconds; see the states and logs above."
	}
	cat <<-EOF

		$answer

		  application, through HAProxy   $front/
		  berth status page              http://$($compose port templater 9652)/
		  Consul UI                      http://$($compose port consul 8500)/ui/
		  HAProxy statistics             http://$($compose port haproxy 8404)/stats

		In another terminal, run:
		  while sleep 0.2; do curl -s $front/ | head -n 1; done
		Then try here:
		  cd deploy
		  $compose up -d --scale app=5 --no-recreate
		  $compose up -d --scale app=2 --no-recreate
		  $compose exec templater berth status
		  $compose exec registrar berth explain app
		  docker run -d --network $network -e SERVICE_NAME=app -e SERVICE_ROUTE_PATH=/ $app
		  $compose logs -f registrar templater
		Stop the demo with: make demo-down
	EOF
}

wait_for_app() {
	deadline=$(($(date +%s) + 60))
	printf 'waiting for the first page from %s/ ' "$front"
	while [ "$(date +%s)" -lt "$deadline" ]; do
		answer=$(../build/berth-app get "$front/" 2>/dev/null) || true
		case $answer in "Hosted by "*) echo; return 0 ;; esac
		printf .
		sleep 0.5
	done
	echo
	return 1
}

# shellcheck disable=SC2086 # container names are words
# Containers started by hand belong to no compose project and would keep its network in use.
down() {
	by_hand=$(docker ps -a --filter "network=$network" --filter label=org.opencontainers.image.title=berth-app \
		--format '{{.ID}} {{.Names}} {{.Label "com.docker.compose.project"}}' | awk 'NF == 2 { print $2 }')
	if [ -n "$by_hand" ]; then
		echo "removing the applications started by hand:" $by_hand
		docker rm -f $by_hand >/dev/null
	fi
	$compose down -v --remove-orphans && return
	others=$(docker ps -a --filter "network=$network" --format '{{.Names}}')
	[ -z "$others" ] || fail "containers that the demo did not start still use the network $network. Remove them, and try again:" \
		"docker rm -f" $others
	fail "compose could not remove the demo; see its message above."
}

case ${1:-} in
up | down) "$1" ;;
*) fail "usage: demo.sh up|down" ;;
esac
