# What a person types. Everything here also works step by step; see
# CONTRIBUTING.md.

SHELL := /bin/bash
export CGO_ENABLED := 0
GOFLAGS_STATIC := -ldflags "-s -w -X github.com/skerry-dev/skerry/internal/version.Version=$(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)"

.PHONY: run stop build test bench lint deps test-deps clean

# run installs what is missing, builds, makes the default image, starts the
# server and runs a first command in a sandbox.
run: deps build
	@scripts/up

# stop ends the server that run started, and its sandboxes.
stop:
	@bin/sandboxd stop

build: bin/sandboxd bin/sandbox

# The guest agent runs inside every sandbox and is carried inside sandboxd.
internal/guest/bin/agent: FORCE
	@go build $(GOFLAGS_STATIC) -o $@ ./cmd/skerry-agent

bin/sandboxd: internal/guest/bin/agent FORCE
	@echo "building $@"
	@go build $(GOFLAGS_STATIC) -o $@ ./cmd/sandboxd

bin/sandbox: FORCE
	@echo "building $@"
	@go build $(GOFLAGS_STATIC) -o $@ ./cmd/sandbox

# test runs every test there is, on this machine, as root.
test: deps test-deps build
	@scripts/test

bench: deps test-deps build
	@scripts/bench

lint:
	@scripts/lint

deps:
	@scripts/install-deps

test-deps:
	@scripts/install-deps --test

clean:
	rm -rf bin internal/guest/bin/agent

FORCE:
