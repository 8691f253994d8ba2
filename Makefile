# The one entry point for people and CI. `make` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
export CARGO_TERM_COLOR ?= auto
NAME ?= braid
NODES ?= 3
export SUITE KEEP

.PHONY: help demo test soak up down images lint bench crds docs prerequisites

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

demo: prerequisites ## bring up a three-node cluster on Braid and show it at work
	@e2e/demo.sh

test: prerequisites ## run every test: unit, kernel (in namespaces), end to end (in sandbox clusters); SUITE='flat drift' runs some
	@e2e/test.sh

soak: prerequisites images ## what takes long: ten minutes of churn and the 15 minutes of a silent node, with all times as shipped
	@e2e/soak.sh

up: prerequisites images ## bring up a sandbox cluster with Braid (NAME=, NODES=)
	@e2e/sandbox up --name $(NAME) --nodes $(NODES)

down: ## remove the sandbox cluster and everything it left (NAME=)
	@e2e/sandbox down --name $(NAME)

images: prerequisites ## build the container image into target/images/braid.tar
	@e2e/images.sh

lint: prerequisites ## rustfmt, clippy, cargo-deny, shellcheck
	@e2e/lint.sh

bench: prerequisites images ## measure against the kernel floor and the reference plugins; tables and JSON in target/bench/
	@e2e/bench.sh

crds: ## write crds/yaml anew from the Rust types
	@cargo run -q -p braid-api --bin crdgen

docs: ## build the API documentation of all crates into target/doc
	@RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items

prerequisites:
	@e2e/prerequisites.sh
