# What a person types. Everything here also works step by step; see
# CONTRIBUTING.md.

SHELL := /bin/bash
export CGO_ENABLED := 0
# gVisor is built with our patches; see scripts/gvisor, which makes build/go.mod.
export GOFLAGS := $(shell go env GOFLAGS) -trimpath -tags=gvisor_patched -modfile=$(CURDIR)/build/go.mod
LDFLAGS := -ldflags "-s -w -X github.com/skerry-dev/skerry/internal/version.Version=$(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)"

.PHONY: run stop build gvisor test workloads check bench soak hostile lint vulncheck deps test-deps clean

# run installs what is missing, builds, makes the default image, starts the
# server and runs a first command in a sandbox.
run: deps build
	@scripts/up

# stop ends the server that run started, and its sandboxes.
stop:
	@bin/sandboxd stop

build: bin/sandboxd bin/sandbox

gvisor:
	@scripts/gvisor >/dev/null

# The guest agent runs inside every sandbox and is carried inside sandboxd.
internal/guest/bin/agent: gvisor FORCE
	@go build $(LDFLAGS) -o $@ ./cmd/skerry-agent

bin/sandboxd: internal/guest/bin/agent FORCE
	@echo "building $@"
	@go build $(LDFLAGS) -o $@ ./cmd/sandboxd

bin/sandbox: gvisor FORCE
	@echo "building $@"
	@go build $(LDFLAGS) -o $@ ./cmd/sandbox

# test runs every test there is, on this machine, as root.
test: deps test-deps build
	@scripts/test

# check is what to run while one works: a minute and a half on two cores.
check: build
	@scripts/check

# workloads installs containers, browsers, databases and the like in sandboxes
# and runs them; it takes minutes.
workloads: deps test-deps build
	@scripts/test --workloads

bench: deps test-deps build
	@scripts/bench

# soak uses an installation for a long time, with faults, and compares every answer
# with a model: make soak DURATION=4h, and SEED=n to repeat the choices of another run.
soak: deps test-deps build
	@scripts/soak $(if $(DURATION),-duration $(DURATION)) $(if $(SEED),-seed $(SEED))

# hostile is half an hour of hostile sandboxes beside a well-behaved one.
hostile: deps test-deps build
	@scripts/hostile

lint:
	@scripts/lint

# vulncheck looks for known vulnerabilities in what is called.
vulncheck:
	@scripts/vulncheck

deps:
	@scripts/install-deps

test-deps:
	@scripts/install-deps --test

clean:
	rm -rf bin build internal/guest/bin/agent

FORCE:
