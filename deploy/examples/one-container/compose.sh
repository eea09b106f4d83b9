#!/bin/sh
# Docker Compose with the image names that make images wrote to deploy/.env: ./compose.sh up -d
#
# PROJECT is the compose project, separate from the demo's.
set -eu
cd "$(dirname "$0")"

# shellcheck source=deploy/docker.sh
. ../../docker.sh
[ -f ../../.env ] || fail "deploy/.env is missing: run 'make images' at the top of the repository first."
exec $compose --env-file ../../.env --project-name "${PROJECT:-one-container}" "$@"
