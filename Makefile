# Every habit has a name. `make help` lists them.
SHELL := /bin/bash
CARGO ?= cargo

.PHONY: help demo cluster-demo test cluster-test build release fmt lint bench deny docs update soak reliability clean

help: ## List the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: ## Build, run the example on real data, show the result, leave nothing running.
	@scripts/setup.sh
	@scripts/demo.sh

cluster-demo: ## The README's Kubernetes example, on a real cluster, Kafka and registry of its own (root).
	@scripts/setup.sh
	@scripts/cluster-demo.sh

test: ## Install what is missing, then every check and test.
	@scripts/setup.sh
	@scripts/test.sh

cluster-test: ## The end-to-end run on a cluster of its own (root; 5 minutes, and 10 more the first time).
	@scripts/setup.sh
	$(CARGO) test --features failpoints --test cluster -- --nocapture

build: ## Debug build.
	$(CARGO) build

release: ## Optimised build.
	$(CARGO) build --release

fmt: ## Format.
	$(CARGO) fmt --all

lint: ## Formatting and clippy, as CI sees them.
	$(CARGO) fmt --all -- --check
	$(CARGO) clippy --all-targets -- -D warnings

bench: ## Benchmarks, each with its limit in the same run.
	$(CARGO) bench --bench guest
	$(CARGO) bench --bench log
	$(CARGO) bench --bench node
	$(CARGO) bench --bench kafka
	$(CARGO) bench --bench kafka -- --latency

deny: ## Advisories, licences and duplicates (needs cargo-deny).
	$(CARGO) deny check

docs: ## API documentation.
	$(CARGO) doc --no-deps

update: ## Rewrite what is generated: CLI and metrics reference, RPC code.
	UPDATE=1 $(CARGO) test --test reference --test cli

soak: ## The crash test, long: 500 kills under load.
	COPROC_KILLS=500 $(CARGO) test --release --test crash -- --nocapture

reliability: ## What must hold on Kafka, long: 100,000 records in each case, three seeds; ends with the table.
	@set -o pipefail; exec 3>&2; \
		COPROC_RECORDS=$${COPROC_RECORDS:-100000} COPROC_SEEDS=$${COPROC_SEEDS:-3} COPROC_STORM=$${COPROC_STORM:-120} \
		$(CARGO) test --release --features kafka,failpoints --test kafka_reliability -- --nocapture --test-threads=1 2>&1 | \
		tee >(cat >&3) | grep -o 'RESULT .*' | sed 's/^RESULT //'

clean: ## Remove build output.
	$(CARGO) clean
