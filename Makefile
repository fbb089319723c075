# What a contributor runs. `make` alone lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo
CARGO_DENY := .tools/cargo-deny-0.20.2/bin/cargo-deny
NATS_OLDEST := 2.10.26
NATS_NEWEST := 2.15.1

# What `make bench-load` measures unless told otherwise.
LOAD ?= --spawn --target bare,sidestream

# The test files that start a nats-server: these run a second time with the oldest one supported.
NATS_TESTS = $(shell grep -lwE 'Nats|Cluster' tests/*.rs | sed -E 's|tests/(.*)\.rs|--test \1|')

.PHONY: help
help: ## List the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

.PHONY: build
build: ## Build the binary as it is shipped
	@$(CARGO) build --release --quiet --locked

.PHONY: demo
demo: ## Everything on this machine: nats-server, a publisher, the sidecar
	@scripts/tools.sh demo
	@$(CARGO) build --release --locked
	@target="$${CARGO_TARGET_DIR:-target}"; exec "$$target/release/sidestream" demo

.PHONY: test
test: ## The whole suite, then what talks to NATS once more with the oldest nats-server
	@scripts/tools.sh test
	@$(CARGO) test --quiet --locked --no-fail-fast
	@echo "--- the patch of the NATS client library"
	@$(CARGO) test --quiet --locked -p async-nats --lib -- connection
	@echo "--- the load tool, briefly: is anything missing or doubled?"
	@$(CARGO) test --quiet --locked --bench load -- --scenario smoke --spawn
	@$(CARGO) test --quiet --locked --bench load -- --scenario replay --from archive --clients 50 --behind 200 --spawn
	@echo "--- the soak, briefly: is anything left behind?"
	@$(CARGO) test --quiet --locked --bench soak -- --seconds 20
	@echo "--- again with nats-server $(NATS_OLDEST)"
	@SIDESTREAM_TEST_NATS=$(NATS_OLDEST) $(CARGO) test --quiet --locked --no-fail-fast $(NATS_TESTS)

.PHONY: test-long
test-long: ## The tests that take minutes, marked #[ignore]
	@scripts/tools.sh test
	@scripts/tools.sh traefik
	@$(CARGO) test --quiet --locked --no-fail-fast --release -- --ignored

.PHONY: simulate
simulate: ## 100,000 seeds of the simulation of the feed core
	@$(CARGO) test --quiet --locked --release --test feed_simulation -- --ignored

.PHONY: clients
clients: ## Some thirty client libraries over drains and kills, and the table of docs/clients.md; CLIENTS=--only=tail for some
	@scripts/tools.sh clients
	@$(CARGO) build --quiet --locked
	@target="$${CARGO_TARGET_DIR:-target}"; .tools/clients/python/bin/python tests/clients/matrix/matrix.py --write \
		--sidestream "$$target/debug/sidestream" --nats-server .tools/nats-$(NATS_NEWEST)/bin/nats-server $(CLIENTS)

.PHONY: bench
bench: ## Everything that docs/benchmarks.md says, and write it there: an hour on a quiet machine
	@scripts/tools.sh bench || echo "--- without the other servers"
	@$(CARGO) bench --quiet --locked --bench micro
	@$(CARGO) bench --quiet --locked --bench load -- suite --write docs/benchmarks.md

.PHONY: bench-micro
bench-micro: ## The steps of the hot path one by one
	@$(CARGO) bench --quiet --locked --bench micro

.PHONY: bench-load
bench-load: ## One scenario of the sidecar under load; LOAD="..." replaces the options
	@scripts/tools.sh demo
	@$(CARGO) build --release --quiet --locked
	@$(CARGO) bench --quiet --locked --bench load -- $(LOAD)

.PHONY: soak
soak: ## Half an hour of clients that come and go at random
	@scripts/tools.sh demo
	@$(CARGO) bench --quiet --locked --bench soak -- --seconds 1800

.PHONY: fmt
fmt: ## Format the code
	@$(CARGO) fmt

.PHONY: lint
lint: ## Formatting and lints, warnings denied
	@$(CARGO) fmt --check
	@$(CARGO) clippy --quiet --locked --all-targets -- -D warnings

.PHONY: doc
doc: ## The documentation of the code, warnings denied
	@RUSTDOCFLAGS="-D warnings" $(CARGO) doc --quiet --locked --no-deps --document-private-items

.PHONY: deny
deny: ## Licences, banned crates and sources of every dependency
	@scripts/tools.sh deny
	@$(CARGO_DENY) --log-level error check --hide-inclusion-graph --show-stats bans licenses sources

.PHONY: advisories
advisories: ## Known vulnerabilities in dependencies; needs the network
	@scripts/advisories.sh

.PHONY: tools
tools: ## Everything that the targets above need, into .tools/
	@scripts/tools.sh all

.PHONY: clean
clean: ## Remove what was built; .tools/ stays
	@$(CARGO) clean --quiet
	@rm -rf tests/clients/node_modules benches/load/peers/node_modules
