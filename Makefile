# A plain "make" lists the targets. "berth version" reports VERSION, COMMIT and DATE; SOURCE_DATE_EPOCH sets the date.
VERSION = $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT = $(shell git rev-parse --short=12 HEAD 2>/dev/null)
DATE = $(shell date -u $(if $(SOURCE_DATE_EPOCH),-d @$(SOURCE_DATE_EPOCH)) +%Y-%m-%d)
LDFLAGS = -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT) -X main.date=$(DATE)
GO_BUILD = CGO_ENABLED=0 go build -trimpath -ldflags "$(LDFLAGS)"

.PHONY: help
help:
	@echo "make build            compile berth to build/berth"
	@echo "make man              write manual pages to build/man/man1 and shell completions to build/completion"
	@echo "make demo             start Consul, HAProxy, berth and an application in Docker, and say what to try"
	@echo "make demo-down        remove the demo"
	@echo "make check            run gofmt, vet, staticcheck, unit tests and docs-check; needs no Docker"
	@echo "make docs-check       check the documentation: links, code blocks, sentence length, generated reference"
	@echo "make reference        generate docs/reference from the commands and their flags"
	@echo "make test             run check, then the end-to-end tests with real Docker, Consul, HAProxy and nginx"
	@echo "make bench-e2e        time from a new container to its first request through HAProxy, with and without reloads"
	@echo "make bench-replace    what requests notice when the only instance is replaced: ten times each way, on each HAProxy version"
	@echo "make bench-proxy      time and cost of server changes in a busy HAProxy, at run time and by reload"
	@echo "make bench-nginx      the same for nginx, by reload and with Lua, next to HAProxy"
	@echo "make bench-registrar  time to register containers, one and 200 at once, and the cost of an idle registrar"
	@echo "make bench-templater  time from a change in Consul to the rendered text, with 10,000 instances, next to consul-template"
	@echo "make bench-page       time to load the page and berth status with 1,000 services of 10 instances, and their cost"
	@echo "make bench-groups     time until 50 instances have a new configuration, a rolling change, a new leader, and memory"
	@echo "make images           build the images of the demo: 4 to 7 minutes once if they cannot be pulled"
	@echo "make nginx-images     also build the images for nginx and the chat example: 2 minutes more"
	@echo "make test-images      also build the images for the tests, with a browser and compose v2: 9 minutes more"
	@echo "make clean            remove build/ (images and the demo stay)"

.PHONY: build
build:
	@mkdir -p build
	$(GO_BUILD) -o build/berth ./cmd/berth
	$(GO_BUILD) -o build/berth-app ./deploy/app
build/berth-chat: .FORCE
	$(GO_BUILD) -o $@ ./deploy/examples/chat-nginx/chat
.FORCE:

# "man build/man/man1/berth.1" shows a page. The pages' date is SOURCE_DATE_EPOCH, or else the commit's.
.PHONY: man
man:
	@rm -rf build/man build/completion && mkdir -p build/completion
	$(GO_BUILD) -tags man -o build/berth-man ./cmd/berth
	SOURCE_DATE_EPOCH=$(or $(SOURCE_DATE_EPOCH),$(shell git log -1 --format=%ct 2>/dev/null)) build/berth-man man build/man/man1
	@for shell in bash zsh fish; do build/berth-man completion $$shell >build/completion/berth.$$shell || exit 1; done

.PHONY: images nginx-images test-images
images:
	@deploy/images/build.sh
nginx-images:
	@deploy/images/build.sh --nginx
test-images:
	@deploy/images/build.sh --all

.PHONY: demo demo-down
demo: images
	@deploy/demo.sh up
demo-down:
	@deploy/demo.sh down

.PHONY: check
check:
	@files=$$(gofmt -l .) && test -z "$$files" || { echo "gofmt -w is needed on:" $$files >&2; exit 1; }
	go vet ./...
	go vet -tags e2e ./...
	go vet -tags man ./cmd/berth
	go tool staticcheck ./...
	go tool staticcheck -tags e2e ./...
	@cc=$$(go env CC) && race=-race && { command -v $${cc%% *} >/dev/null || { race=; echo "no C compiler here: the tests run without the race detector"; }; } && \
	echo go test $$race ./... && go test $$race ./...
	@$(MAKE) --no-print-directory docs-check

# docs/reference is generated; docs-check fails if it differs from the code.
.PHONY: reference docs-check
reference:
	go run -tags man ./cmd/berth reference docs/reference
docs-check:
	go test -v ./deploy/docs
	go test -tags man -run 'TestManual|TestRoff|TestPageDate|TestReference' ./cmd/berth

# With CI set, a skipped test is a failure. A registrar registers every container it finds, so packages that run one are tested one
# after the other; the rest run in parallel with them.
E2E = ./cmd/...,./deploy/e2e/...,./deploy/examples/...,./deploy/observability/...,./registrar ./proxyctl/...,./registrar/group/...,./deploy/consul/...,./templater/...,./templates/...
.PHONY: test
test: check test-images
	@mkdir -p build
	@set -a && . deploy/.env && set +a && go run ./deploy/testenv/cmd/testreport -json build/e2e.json $(if $(CI),,-allow-skips) $(E2E)

.PHONY: bench-e2e
bench-e2e: images
	@set -a && . deploy/.env && set +a && go test -tags e2e -run '^$$' -bench E2EStart -benchtime 25x -timeout 20m ./deploy/e2e

# BENCH_HAPROXY=image,image limits the benchmark to these HAProxy images.
.PHONY: bench-replace
bench-replace: test-images
	@set -a && . deploy/.env && set +a && go test -tags e2e -run '^$$' -bench E2EReplace -benchtime 1x -timeout 30m ./deploy/e2e

.PHONY: bench-page
bench-page: test-images build
	@set -a && . deploy/.env && BERTH=$(CURDIR)/build/berth && set +a && \
	go test -tags e2e -run '^$$' -bench E2EPage -benchtime 1x -timeout 10m ./cmd/berth

# BENCH_HAPROXY=image,image benchmarks these HAProxy images instead of the default one.
.PHONY: bench-proxy
bench-proxy: images
	@set -a && . deploy/.env && set +a && go test -tags e2e -run '^$$' -bench E2EProxy -benchtime 1x -timeout 30m ./proxyctl/haproxy

.PHONY: bench-nginx
bench-nginx: nginx-images
	@set -a && . deploy/.env && set +a && go test -tags e2e -run '^$$' -bench E2E -benchtime 1x -timeout 30m ./proxyctl/nginx

.PHONY: bench-registrar
bench-registrar: images
	@set -a && . deploy/.env && BERTH=$(CURDIR)/build/berth && set +a && \
	go test -tags e2e -run '^$$' -bench E2E -benchtime 1x -timeout 30m ./registrar

.PHONY: bench-templater
bench-templater: images
	@set -a && . deploy/.env && set +a && go test -tags e2e -run '^$$' -bench E2E -benchtime 1x -timeout 30m ./templater

# consul-template is built in the version that berth uses as a library.
.PHONY: bench-groups
bench-groups: images build
	GOBIN=$(CURDIR)/build CGO_ENABLED=0 go install -trimpath -ldflags "-s -w" \
		github.com/hashicorp/consul-template@$$(go list -m -f '{{.Version}}' github.com/hashicorp/consul-template)
	@set -a && . deploy/.env && BERTH=$(CURDIR)/build/berth && DEMO_APP=$(CURDIR)/build/berth-app && \
	CONSUL_TEMPLATE=$(CURDIR)/build/consul-template && set +a && \
	go test -tags e2e -run '^$$' -bench E2EGroups -benchtime 1x -timeout 10m ./registrar/group/bench

.PHONY: clean
clean:
	rm -rf build
