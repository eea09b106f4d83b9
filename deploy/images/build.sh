#!/bin/sh
# Builds the images of the demo and the tests, and writes their names to deploy/.env for compose.
#
# berth and its demo app are compiled here. For HAProxy and Consul, the official images are used if they are present or can be
# pulled. Without a registry, replacements are built from Debian's packages and from Consul's source. Existing images are
# kept, so a second run takes seconds. The output of every step is in build/*.log.
#
# --nginx also provides nginx and the needs of the chat example. --all adds, for the tests, the other versions of both proxies
# in Debian (IMAGES_HAPROXY and IMAGES_NGINX in deploy/.env) and compose v2 (COMPOSE_V2).
set -eu

images=$(cd "$(dirname "$0")" && pwd)
deploy=$(dirname "$images")
root=$(dirname "$deploy")
build=$root/build

# All versions, except for the other proxies at the end. The versions of Consul and compose come from their go.mod files.
debian=trixie
haproxy=3.0
nginx=1.26
redis=8
prometheus=v3.5.0
consul=$(sed -n 's|^require github.com/hashicorp/consul v||p' "$images/consul/go.mod")
compose=$(sed -n 's|^.*github.com/docker/compose/v2 \(v[^ ]*\).*|\1|p' "$images/compose/go.mod")

# shellcheck source=deploy/docker.sh
. "$deploy/docker.sh"
case ${1:-} in
--all) all=1 with_nginx=1 ;;
--nginx) all= with_nginx=1 ;;
"") all= with_nginx= ;;
*) fail "usage: $0 [--nginx | --all]" ;;
esac
command -v go >/dev/null || fail "Go is missing: install it from https://go.dev/dl (berth is compiled on this machine)."
command -v make >/dev/null || fail "make is missing: install it with your package manager."

say() { printf '%s\n' "$*"; }

# logged NAME COMMAND... runs a step with its output in build/NAME.log, and shows the end of the log if the step fails.
logged() {
	log=$build/$1.log
	shift
	"$@" >"$log" 2>&1 || {
		tail -n 25 "$log" >&2
		fail "'$*' failed; its complete output is in $log"
	}
}

have() { docker image inspect "$1" >/dev/null 2>&1; }

# pull IMAGE succeeds if the image is present afterwards. After one failure it tries no other pull.
no_registry=
pull() {
	[ -z "$no_registry" ] || return 1
	say "pulling $1"
	timeout 300 docker pull "$1" >"$build/pull.log" 2>&1 && return 0
	no_registry=1
	say "no registry reachable, building the image here"
	return 1
}

# pick OFFICIAL REPLACEMENT sets $picked to the image to use; it fails if that has to be built first.
pick() {
	picked=$1
	have "$1" && return
	picked=$2
	have "$2" && return
	picked=$1
	pull "$1" && return
	picked=$2
	return 1
}

# context NAME makes a build context with the files of that image's directory.
context() {
	context=$build/context/$1
	rm -rf "$context"
	mkdir -p "$context"
	cp "$images/$1"/* "$context/"
}

docker_build() {
	tag=$1
	shift
	logged "image-$(printf '%s' "$tag" | tr '/:' '--')" docker build --force-rm -t "$tag" "$@" "$context"
}

make_berth() {
	say "compiling berth and its demo app (a minute or two the first time)"
	make -s -C "$root" build

	context berth
	install -m 0755 "$build/berth" "$context/berth"
	install -d -m 0755 "$context/etc/haproxy" "$context/run/haproxy"
	# Without these, BuildKit would also give /etc and /run to HAProxy's user.
	install -d -m 0755 "$context/root/etc" "$context/root/run"
	install -d -m 1777 "$context/root/tmp"
	# Also in the path, for docker exec CONTAINER berth ...
	install -d -m 0755 "$context/root/usr/local/bin"
	ln -s /berth "$context/root/usr/local/bin/berth"
	install -m 0644 "$images/berth/haproxy.cfg" "$context/etc/haproxy/haproxy.cfg"
	docker_build "$image_berth"

	context app
	install -m 0755 "$build/berth-app" "$context/berth-app"
	docker_build "$image_app"
}

# make_base SUITE makes debian:SUITE-slim.
make_base() {
	base=debian:$1-slim
	have "$base" && return
	pull "$base" && return
	if ! command -v mmdebstrap >/dev/null; then
		command -v apt-get >/dev/null ||
			fail "no registry is reachable, and $base can be built only on Debian or Ubuntu: load the image with 'docker load'."
		[ "$(id -u)" = 0 ] || fail "mmdebstrap is missing: run 'sudo apt-get install mmdebstrap' and try again."
		say "installing mmdebstrap"
		logged apt-update apt-get update
		logged apt-install env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends mmdebstrap debian-archive-keyring
	fi
	say "building $base with mmdebstrap (half a minute, once)"
	# sid's index expires after a week, and mirrors can lag behind more. The option stays in the image for its apt-get.
	check=true
	[ "$1" != sid ] || check=false
	log=$build/mmdebstrap-$1.log
	if [ "$(id -u)" = 0 ]; then
		logged "mmdebstrap-$1" mmdebstrap --variant=minbase --aptopt="Acquire::Check-Valid-Until $check" "$1" "$build/base.tar"
	else
		mmdebstrap --mode=unshare --variant=minbase --aptopt="Acquire::Check-Valid-Until $check" "$1" "$build/base.tar" \
			>"$log" 2>&1 || fail "mmdebstrap failed without root ($log): run 'sudo mmdebstrap --variant=minbase" \
			"--aptopt=\"Acquire::Check-Valid-Until $check\" $1 - | docker import - $base' and try again."
	fi
	logged import docker import "$build/base.tar" "$base"
	rm -f "$build/base.tar"
}

# make_haproxy IMAGE SUITE VERSION [SUITE]; VERSION is a regular expression for the beginning of the package's version. The last
# suite provides the package if it has no base image of its own.
make_haproxy() {
	make_base "$2"
	say "building $1 from Debian's package (half a minute, once)"
	context haproxy
	docker_build "$1" --build-arg DEBIAN="$2" --build-arg HAPROXY="$3" --build-arg SUITE="${4:-}"
}

# make_nginx IMAGE SUITE VERSION [PACKAGES], as make_haproxy; the packages are additional modules.
make_nginx() {
	make_base "$2"
	say "building $1 from Debian's package (half a minute, once)"
	context nginx
	docker_build "$1" --build-arg DEBIAN="$2" --build-arg NGINX="$3" --build-arg MODULES="libnginx-mod-stream ${4:-}"
}

make_redis() {
	make_base "$debian"
	say "building $1 from Debian's package (half a minute, once)"
	context redis
	docker_build "$1" --build-arg DEBIAN="$debian" --build-arg REDIS="$redis"
}

# make_chromium builds the browser for the tests.
make_chromium() {
	make_base "$debian"
	say "building $1 from Debian's package (a minute, once)"
	context chromium
	docker_build "$1" --build-arg DEBIAN="$debian"
}

# make_prometheus builds Prometheus, which scrapes and checks rules in the tests.
make_prometheus() {
	make_base "$debian"
	say "building $1 from Debian's package (half a minute, once)"
	context prometheus
	docker_build "$1" --build-arg DEBIAN="$debian"
}

# make_chat compiles the application of the example chat-nginx.
make_chat() {
	make -s -C "$root" build/berth-chat
	context=$build/context/chat
	rm -rf "$context"
	mkdir -p "$context"
	cp "$deploy/examples/chat-nginx/Dockerfile" "$context/"
	install -m 0755 "$build/berth-chat" "$context/berth-chat"
	docker_build "$image_chat"
}

# other PROXY OFFICIAL REPLACEMENT SUITE VERSION [SUITE] adds an image to $images_others; without --all only if it is present.
other() {
	if ! pick "$2" "$3"; then
		[ -n "$all" ] || return 0
		"make_$1" "$3" "$4" "$5" ${6:+"$6"}
	fi
	images_others=$images_others,$picked
}

version_of() { docker run --rm --network none "$1" sh -c 'haproxy -v || nginx -v' 2>&1 | sed -n 's/.* version:* \([^ ]*\).*/\1/p'; }

make_consul() {
	if ! "$build/consul" version 2>/dev/null | grep -q "^Consul v$consul\$"; then
		say "building Consul $consul from source (4 to 6 minutes on 2 cores, once)"
		logged consul env CGO_ENABLED=0 go build -C "$images/consul" -trimpath -ldflags '-s -w' \
			-o "$build/consul" github.com/hashicorp/consul
	fi
	say "building $1"
	context consul
	install -m 0755 "$build/consul" "$context/consul"
	install -d -m 0755 "$context/data" "$context/config"
	docker_build "$1"
}

# make_compose compiles compose v2, which the tests use whichever compose this machine has.
make_compose() {
	"$build/docker-compose" docker-cli-plugin-metadata 2>/dev/null | grep -q "\"Version\": *\"$compose\"" && return
	say "building compose $compose from source (4 to 5 minutes on 2 cores, once)"
	logged compose env CGO_ENABLED=0 go build -C "$images/compose" -trimpath \
		-ldflags "-s -w -X github.com/docker/compose/v2/internal.Version=$compose" \
		-o "$build/docker-compose" github.com/docker/compose/v2/cmd
}

# write_env writes deploy/.env, and keeps lines that an operator added or changed (HTTP_PORT, COMPOSE_PROJECT_NAME).
write_env() {
	socket=/var/run/docker.sock
	case ${DOCKER_HOST:-} in unix://*) socket=${DOCKER_HOST#unix://} ;; esac
	# With rootless Docker or Docker in a virtual machine, a container sees another group than the host: ask a container.
	gid=$(docker run --rm --network none --entrypoint stat -v "$socket:/docker.sock:ro" "$image_haproxy" \
		-c %g /docker.sock) || fail "the Docker socket $socket cannot be mounted into a container."
	"$images/env.sh" "$deploy/.env" <<-EOF
		COMPOSE_PROJECT_NAME=berth
		IMAGE_BERTH=$image_berth
		IMAGE_APP=$image_app
		IMAGE_HAPROXY=$image_haproxy
		IMAGES_HAPROXY=$images_haproxy
		IMAGE_CONSUL=$image_consul
		$images_more
		DOCKER_SOCKET=$socket
		DOCKER_GID=$gid
	EOF
}

mkdir -p "$build"
image_berth=berth:dev
image_app=berth-app:dev
make_berth
if ! pick "haproxy:$haproxy" "berth-haproxy:$haproxy"; then make_haproxy "$picked" "$debian" "$haproxy"; fi
image_haproxy=$picked
if ! pick "hashicorp/consul:$consul" "berth-consul:$consul"; then make_consul "$picked"; fi
image_consul=$picked
if [ -n "$with_nginx" ]; then
	if ! pick "nginx:$nginx" "berth-nginx:$nginx"; then make_nginx "$picked" "$debian" "$nginx"; fi
	image_nginx=$picked
	# No official image has lua-nginx-module.
	image_nginx_lua=berth-nginx-lua:$nginx
	have "$image_nginx_lua" || make_nginx "$image_nginx_lua" "$debian" "$nginx" libnginx-mod-http-lua
	if ! pick "redis:$redis" "berth-redis:$redis"; then make_redis "$picked"; fi
	image_redis=$picked
	image_chat=berth-chat:dev
	make_chat
fi
if [ -n "$all" ]; then
	image_chromium=berth-chromium:$debian
	have "$image_chromium" || make_chromium "$image_chromium"
	if ! pick "prom/prometheus:$prometheus" "berth-prometheus:$debian"; then make_prometheus "$picked"; fi
	image_prometheus=$picked
	make_compose
fi

# The default comes first, then the others from the oldest. Images from sid and experimental are named after the suite, because
# their versions change; to get newer ones: docker rmi berth-haproxy:sid berth-haproxy:experimental berth-nginx:sid debian:sid-slim
[ -n "$all" ] || no_registry=1
images_others=$image_haproxy
other haproxy haproxy:2.6 berth-haproxy:2.6 bookworm 2.6
other haproxy haproxy:3.2 berth-haproxy:sid sid '[0-9]*'
other haproxy haproxy:3.4 berth-haproxy:experimental sid '[0-9]*' experimental
images_haproxy=$images_others
images_more=
if [ -n "$with_nginx" ]; then
	images_others=$image_nginx
	other nginx nginx:1.22 berth-nginx:1.22 bookworm 1.22
	other nginx nginx:1.30 berth-nginx:sid sid '[0-9]*'
	images_more="IMAGE_NGINX=$image_nginx
IMAGES_NGINX=$images_others
IMAGE_NGINX_LUA=$image_nginx_lua
IMAGE_REDIS=$image_redis
IMAGE_CHAT=$image_chat"
fi
[ -z "$all" ] || images_more="$images_more
IMAGE_CHROMIUM=$image_chromium
IMAGE_PROMETHEUS=$image_prometheus
COMPOSE_V2=$build/docker-compose"
write_env
say "images: $image_berth $image_app $image_haproxy $image_consul (named in deploy/.env)"
if [ -n "$all" ]; then
	say "versions of the proxies to test with (build/proxy-versions):"
	for image in $(printf '%s' "$images_haproxy,$images_others" | tr , ' ') "$image_nginx_lua"; do
		say "$image $(version_of "$image")"
	done | tee "$build/proxy-versions"
fi
