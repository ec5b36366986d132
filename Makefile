# `make help` lists the targets. Everything that is downloaded or built stays in a cache outside the tree:
# LENO_CACHE, by default $XDG_CACHE_HOME/leno or ~/.cache/leno.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

export LENO_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/leno
export CARGO_TARGET_DIR ?= $(LENO_CACHE)/cargo
export CARGO_TERM_COLOR ?= never
TRIPLE = $(shell rustc -vV | sed -n 's/^host: //p')
BIN = $(CARGO_TARGET_DIR)/$(TRIPLE)/release
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
# The release before this one. Until there is one, the tree stands in for it under this version.
PREVIOUS := 0.0.9
# One set of flags for every build: nothing is compiled twice.
CARGO = cargo $(1) --release --locked --workspace

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: build ## Start a local Kubernetes, install Leno on it, and run a canary release (needs root; or set KUBECONFIG); ENGINE=envoy|mixed
	@$(BIN)/leno-e2e demo --bin-dir $(BIN) --version $(VERSION) --previous-version $(PREVIOUS) $(if $(ENGINE),--engine $(ENGINE))

.PHONY: demo-page
demo-page: ## Lead http://127.0.0.1:8080 to the front page of the demo shop
	@$(BIN)/leno-cluster forward --name demo shop/front:80

.PHONY: demo-down
demo-down: ## Remove all that `make demo` made
	@test -x $(BIN)/leno-e2e || { echo "leno-e2e is not built, so there is no demo to remove"; exit 0; }; $(BIN)/leno-e2e demo-down

.PHONY: test
test: ## Everything: format, lints, units, golden files, a real Envoy, scenarios on a local Kubernetes
test: check unit judge differential scenarios

.PHONY: tools
tools:
	@hack/check-tools

.PHONY: build
build: tools ## Build all programs, in the profile that is deployed
	@e2e/install-deps.sh
	@echo "building Leno $(VERSION)"
	@$(call CARGO,build) --bins

.PHONY: check
check: build ## Format, lints, rules between the rooms, generated files
	@cargo fmt --all --check || { echo "remedy: cargo fmt --all"; exit 1; }
	@hack/check-rooms $(BIN)
	@$(BIN)/crdgen --check
	@HELM=$$($(BIN)/leno-cluster binaries | awk '$$1 == "node" {print $$2}')/helm helm/test.sh
	@$(call CARGO,clippy) --all-targets -- -D warnings

.PHONY: unit
unit: build ## Unit, golden and component tests
	@LENO_ENVOY=$$($(BIN)/leno-cluster envoy) LENO_H2SPEC=$$($(BIN)/leno-cluster h2spec) \
		LENO_XDS_SERVER=$$($(BIN)/leno-cluster xds-server) LENO_GRPC_INTEROP=$$($(BIN)/leno-cluster grpc-interop) \
		LENO_WEBSOCKET_SUITE=$$($(BIN)/leno-cluster websocket-suite) $(call CARGO,test)

.PHONY: judge
judge: build ## A stock Envoy takes every golden case from our control plane
	@$(BIN)/leno-e2e judge --bin-dir $(BIN)

.PHONY: differential
differential: build ## Our proxy beside a stock Envoy, same configuration, same requests; ONLY=name, RANDOM_REQUESTS=10000, SEED=n
	@export LENO_ENVOY=$$($(BIN)/leno-cluster envoy); \
	compare() { $(BIN)/leno-e2e differential --leno $(BIN)/leno-proxy $(if $(ONLY),--only $(ONLY)) $(if $(RANDOM_REQUESTS),--random $(RANDOM_REQUESTS)) $(if $(SEED),--seed $(SEED)); }; \
	compare || { echo "differential: machines are shared and noisy, so what differed is looked at once more"; compare; }

.PHONY: bench
bench: build ## Leno, Envoy, nginx and HAProxy on the same work; QUICK=1: five cases in two minutes; ONLY=name; WRITE_DOCS=1
	@e2e/install-deps.sh --bench
	@LENO_ENVOY=$$($(BIN)/leno-cluster envoy) $(BIN)/leno-e2e bench --leno $(BIN)/leno-proxy $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY)) $(if $(WRITE_DOCS),--write-docs)

.PHONY: flamegraph
flamegraph: build ## Where the proxy's time goes: target/bench/flame.svg; CASE=http2-64k
	@e2e/install-deps.sh --bench
	@RUSTFLAGS="-C target-feature=+crt-static -C force-frame-pointers=yes" CARGO_TARGET_DIR=$(LENO_CACHE)/profiling CARGO_PROFILE_RELEASE_STRIP=none CARGO_PROFILE_RELEASE_DEBUG=line-tables-only cargo build --release --locked -p leno-proxy
	@$(BIN)/leno-e2e flamegraph --leno $(LENO_CACHE)/profiling/$(TRIPLE)/release/leno-proxy $(if $(CASE),--case $(CASE))

.PHONY: scenarios
scenarios: build ## Scenario tests on a local Kubernetes (needs root); ONLY=name, ENGINE=envoy|mixed
	@$(BIN)/leno-e2e scenarios --bin-dir $(BIN) --version $(VERSION) --previous-version $(PREVIOUS) $(if $(ENGINE),--engine $(ENGINE)) $(if $(ONLY),--only $(ONLY))

.PHONY: test-upgrade
test-upgrade: build ## Change releases under load on a local Kubernetes (needs root); ONLY=name,name PODS=30 WRITE_DOCS=1
	@$(BIN)/leno-e2e upgrades --bin-dir $(BIN) --version $(VERSION) --previous-version $(PREVIOUS) --pods $(or $(PODS),30) $(if $(ONLY),--only $(ONLY)) $(if $(WRITE_DOCS),--write-docs)

.PHONY: generate
generate: tools ## Write the generated files anew: CRDs, Envoy's descriptors, golden files
	@cd xds/gen && go run . ../envoy.binpb
	@cargo run -q --release --locked -p leno-crds --bin crdgen
	@UPDATE_GOLDEN=1 cargo test -q --release --locked -p leno-controlplane --test component golden

.PHONY: clean-cache
clean-cache: ## Remove what was downloaded and built
	rm -rf $(CARGO_TARGET_DIR) $(LENO_CACHE)/bin
