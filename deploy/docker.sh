# Source this file. It defines fail and $compose, and checks that Docker and Docker Compose are installed and answer.
# shellcheck shell=sh disable=SC2034

fail() {
	printf 'error: %s\n' "$*" >&2
	exit 1
}

command -v docker >/dev/null || fail "docker is missing: install Docker Engine, https://docs.docker.com/engine/install."

if docker compose version >/dev/null 2>&1; then
	compose="docker compose"
elif command -v docker-compose >/dev/null; then
	compose=docker-compose
else
	fail "Docker Compose is missing: install the docker-compose-plugin or the docker-compose package."
fi

if ! answer=$(docker version --format '{{.Server.Version}}' 2>&1); then
	case $answer in
	*"permission denied"*)
		fail "you may not use Docker: run 'sudo usermod -aG docker $(id -un)' and log in again, or run this as root." ;;
	*) fail "the Docker daemon does not answer; is it running? Error: $(printf '%s' "$answer" | tail -n 1)" ;;
	esac
fi
