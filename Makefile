# Everything a developer or CI does, one target each. `make demo` and `make test` do their own
# set-up, so that a machine with git, make and rustup's Rust needs nothing else first.

SHELL := /bin/sh
.DEFAULT_GOAL := help
# rustup puts cargo here; a shell opened before it was installed does not know that yet.
export PATH := $(PATH):$(HOME)/.cargo/bin
CARGO := cargo
PEERS := tests/support/peers

.PHONY: help demo test check fmt generated lint docs licences tests fuzz bench bench-counts bench-compare bench-stress \
    image release-pgo setup-build setup-test setup-counts clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: setup-build ## Five mock vendors and the proxy on loopback; Ctrl-C ends it (ARGS=--once: call each vendor once)
	$(CARGO) run --locked -- demo $(ARGS)

# One after the other even under -j: the cheap answers come first, the test runner's lines last.
test: setup-test ## Everything CI runs: format, lints, docs, licences, tests
	@$(MAKE) --no-print-directory -j1 lint docs licences tests

check: setup-build ## Type-check only; the fastest answer
	$(CARGO) check --locked --workspace --all-targets

fmt: ## Format the sources
	$(CARGO) fmt --all

# Written aside first: a build that fails must not leave half a file.
generated: setup-build ## Write proxy.schema.json and docs/configuration.md anew from the sources
	$(CARGO) build --locked
	$(CARGO) run --locked -q -- schema >proxy.schema.json.new && mv proxy.schema.json.new proxy.schema.json
	$(CARGO) run --locked -q -- schema --markdown >docs/configuration.md.new && mv docs/configuration.md.new docs/configuration.md

lint: setup-build ## rustfmt and clippy, warnings denied
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) clippy --locked --no-default-features --all-targets -- -D warnings

docs: setup-build ## Build the documentation, warnings denied
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps

licences: ## Check the dependencies' licences and the bans
	python3 scripts/licences.py --self-test
	python3 scripts/licences.py

# nextest runs no documentation tests, so those go first either way.
tests: setup-test ## Run the tests alone
	$(CARGO) test --locked --workspace --doc --quiet
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
	    set -x; $(CARGO) nextest run --locked --workspace; \
	else \
	    set -x; $(CARGO) test --locked --workspace --lib --bins --tests; \
	fi

fuzz: setup-build ## Fuzz every target for a minute (SECONDS=600: longer); the first build takes minutes
	sh scripts/fuzz.sh $(or $(SECONDS),60)

bench: setup-build ## How long the parts take, by criterion (ARGS=routes: only those; ARGS=--help: more)
	$(CARGO) bench --locked --bench parts -- $(ARGS)

# Counts, not times: two machines agree on them. The released program, the yardstick, and both with
# their allocations counted.
bench-counts: setup-build setup-counts ## Instructions and allocations of a warm request against benches/counts.json (ARGS=--accept: the new baseline; ARGS=--help: where they are, and more)
	$(CARGO) build --locked --release --bin countersign --example bare_pingora --example counts
	python3 benches/counts.py $(ARGS)

# Not what `make test` runs: a release build takes minutes.
image: setup-build ## Put a release into a container image (NAME=countersign; PROGRAM=target/pgo/countersign: that one)
ifndef PROGRAM
	$(CARGO) build --locked --release
endif
	sh deploy/image.sh $(or $(PROGRAM),target/release/countersign) $(or $(NAME),countersign)

# Installs what it compares with; `make test` needs none of that.
bench-compare: setup-build ## Countersign beside nginx, HAProxy, Envoy, Caddy (ARGS=--quick: two minutes)
	@sh benches/compare/setup.sh
	$(CARGO) build --locked --release --bin countersign --example bare_pingora
	python3 benches/compare/compare.py $(ARGS)

bench-stress: setup-build ## Latency while tokens change, reloads, idle connections, many vendors
	@sh benches/compare/setup.sh
	$(CARGO) build --locked --release --bin countersign --example bare_pingora --example open_loop
	python3 benches/compare/stress.py $(ARGS)

# Two whole builds, and two minutes of load between them.
release-pgo: setup-build ## Build a release with a profile of itself under load, into target/pgo/countersign
	@sh scripts/setup.sh pgo
	@sh benches/compare/setup.sh
	sh scripts/pgo.sh $(ARGS)

setup-build:
	@sh scripts/setup.sh build

setup-test:
	@sh scripts/setup.sh test

setup-counts:
	@sh scripts/setup.sh counts

clean: ## Remove what was built
	$(CARGO) clean
	rm -rf $(PEERS)/node_modules $(PEERS)/newer-node $(PEERS)/venv $(PEERS)/glewlwyd $(PEERS)/squid \
	    $(PEERS)/nginx $(PEERS)/prometheus $(PEERS)/kubectl
