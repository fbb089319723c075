# Commands for contributors. `make` without a target lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo
CARGO_DENY := .tools/cargo-deny-0.20.2/bin/cargo-deny
NATS_OLDEST := 2.10.26
NATS_NEWEST := 2.15.1

# Default options of `make bench-load`.
LOAD ?= --spawn --target bare,sidestream

# Modules of tests/it that start a nats-server. They run a second time with the oldest supported version,
# except those that test HTTP and use NATS only as a source of events.
NATS_MODULES = $(filter-out examples:: front:: rejections:: slow:: upstream::,$(sort \
	$(shell grep -rlwE 'Nats|Cluster' tests/it | sed -E 's,tests/it/([a-z_]+).*,\1::,'))) \
	$(addprefix --skip authentication::,browser issuer key_attacks manual renewal token_attacks)

.PHONY: help
help: ## List the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

.PHONY: build
build: ## Build the release binary
	@$(CARGO) build --release --quiet --locked

.PHONY: demo
demo: ## Run everything on this machine: nats-server, a publisher, the sidecar, a page
	@scripts/tools.sh demo
	@$(CARGO) build --release --locked
	@target="$${CARGO_TARGET_DIR:-target}"; exec "$$target/release/sidestream" demo

.PHONY: test
test: ## Run the whole suite, then the tests that use NATS with the oldest supported nats-server
	@scripts/tools.sh test
	@$(CARGO) test --quiet --locked --workspace --no-fail-fast
	@echo "--- the patch of the NATS client library"
	@$(CARGO) test --quiet --locked -p async-nats --lib -- connection
	@echo "--- the load tool, a short run: no event missing or duplicated"
	@$(CARGO) test --quiet --locked --workspace --bench load -- --scenario smoke --spawn
	@for framing in websocket grpc; do \
		$(CARGO) test --quiet --locked --workspace --bench load -- --scenario smoke --framing $$framing --spawn; done
	@$(CARGO) test --quiet --locked --workspace --bench load -- --scenario replay --from archive --clients 50 --missed 200 --spawn
	@echo "--- the guard for speed, a short run: one binary compared with itself"
	@target="$${CARGO_TARGET_DIR:-target}"; $(CARGO) test --quiet --locked --workspace --bench load -- guard --brief --rounds 1 \
		--only broadcast --base "$$target/debug/sidestream" | grep -E '^broadcast .* (ok|noise)$$'
	@echo "--- the soak, a short run: no resource leaked"
	@$(CARGO) test --quiet --locked --workspace --bench soak -- --seconds 20
	@echo "--- again with nats-server $(NATS_OLDEST)"
	@SIDESTREAM_TEST_NATS=$(NATS_OLDEST) $(CARGO) test --quiet --locked --workspace --no-fail-fast --test it -- $(NATS_MODULES)

.PHONY: test-long
test-long: ## Run the tests that take minutes, marked #[ignore]
	@scripts/tools.sh test
	@scripts/tools.sh traefik
	@$(CARGO) test --quiet --locked --no-fail-fast --release -- --ignored

.PHONY: simulate
simulate: ## Run 100,000 seeds of the simulations of the feed core and of event streams
	@$(CARGO) test --quiet --locked --release --test simulation -- --ignored

.PHONY: clients
clients: ## Run about thirty client libraries over drains and kills, and update docs/clients.md; CLIENTS=--only=tail for one
	@scripts/tools.sh clients
	@$(CARGO) build --quiet --locked
	@target="$${CARGO_TARGET_DIR:-target}"; .tools/clients/python/bin/python tests/clients/matrix/matrix.py --write \
		--sidestream "$$target/debug/sidestream" --nats-server .tools/nats-$(NATS_NEWEST)/bin/nats-server $(CLIENTS)

.PHONY: bench
bench: ## Run all benchmarks and update docs/benchmarks.md: an hour on a quiet machine
	@scripts/tools.sh bench || echo "--- without the other servers"
	@$(CARGO) bench --quiet --locked --bench micro
	@$(CARGO) bench --quiet --locked --bench load -- suite --write docs/benchmarks.md
	@$(CARGO) bench --quiet --locked --bench load -- framings --write docs/benchmarks.md

.PHONY: bench-micro
bench-micro: ## Measure the steps of the hot path one by one
	@$(CARGO) bench --quiet --locked --bench micro

.PHONY: bench-load
bench-load: ## Run one load scenario; LOAD="..." replaces the options
	@scripts/tools.sh demo
	@$(CARGO) build --release --quiet --locked
	@$(CARGO) bench --quiet --locked --bench load -- $(LOAD)

.PHONY: bench-guard
bench-guard: ## Compare the speed of the working tree with BASE=<commit>: ten minutes; ROUNDS=5, ONLY=storm,idle
	@scripts/tools.sh demo
	@scripts/bench-guard.sh "$(BASE)" $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(ONLY),--only $(ONLY))

.PHONY: soak
soak: ## Run clients with random behaviour for half an hour
	@scripts/tools.sh demo
	@$(CARGO) bench --quiet --locked --bench soak -- --seconds 1800

.PHONY: fmt
fmt: ## Format the code
	@$(CARGO) fmt

.PHONY: lint
lint: ## Check formatting and lints, warnings denied
	@$(CARGO) fmt --check
	@$(CARGO) clippy --quiet --locked --workspace --all-targets -- -D warnings

.PHONY: doc
doc: ## Build the documentation of the code, warnings denied
	@RUSTDOCFLAGS="-D warnings" $(CARGO) doc --quiet --locked --workspace --no-deps --document-private-items

.PHONY: deny
deny: ## Check licences, banned crates and sources of every dependency
	@scripts/tools.sh deny
	@$(CARGO_DENY) --log-level error --workspace check --hide-inclusion-graph --show-stats bans licenses sources

.PHONY: advisories
advisories: ## Check dependencies for known vulnerabilities; needs the network
	@scripts/advisories.sh

.PHONY: tools
tools: ## Install everything that the targets above need, into .tools/
	@scripts/tools.sh all

.PHONY: clean
clean: ## Remove build results; .tools/ stays
	@$(CARGO) clean --quiet
	@rm -rf clients/js/{dist,LICENSE} {clients/js,examples/node,tests/{clients,examples,issuer},benches/load/peers}/node_modules
