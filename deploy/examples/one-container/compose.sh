#!/bin/sh
# Docker Compose with the names of the images that make images has put into deploy/.env: ./compose.sh up -d
#
# PROJECT is the compose project, so that the example does not meet the demo's containers.
set -eu
cd "$(dirname "$0")"

# shellcheck source=deploy/docker.sh
. ../../docker.sh
[ -f ../../.env ] || fail "deploy/.env is missing: run 'make images' at the top of the repository first."
exec $compose --env-file ../../.env --project-name "${PROJECT:-one-container}" "$@"
