#!/bin/sh
# Docker Compose with the image names that make nginx-images wrote to deploy/.env: ./compose.sh up -d --build
#
# PROJECT is the compose project, separate from the demo's.
set -eu
cd "$(dirname "$0")"

# shellcheck source=deploy/docker.sh
. ../../docker.sh
grep -q '^IMAGE_REDIS=' ../../.env 2>/dev/null || fail "deploy/.env names no Redis: run 'make nginx-images' at the top of the repository first."
case " $* " in *" up "* | *" build "*)
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o bin/hello ./hello
	;;
esac
exec $compose --env-file ../../.env --project-name "${PROJECT:-hello}" "$@"
