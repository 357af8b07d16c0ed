# make run and make test are all that a newcomer needs; make help lists the rest.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules
.SUFFIXES:

# The tools are pinned in a module of their own: docs/adr/0002-tools-module.md
TOOL := go tool -modfile=tools/go.mod

# The end-to-end path needs a real engine and weights, the browser flow Chromium; the rest needs neither.
E2E := ./test/e2e/...
BROWSER := ./test/browser/...
# Everything else, asked for only where it is used. Those that take longest begin first, so that nobody waits for them at
# the end; go counts a package that is named twice once.
LONGEST := ./internal/loaders/transformers ./internal/loaders/ollama ./internal/manager ./internal/sources/fetch ./internal/store
UNIT = $(LONGEST) $$(go list ./... | grep -v '/test/')

# go-nvml wraps every call there ever was, and the compiler says of each old one that it is old. The same in scripts/say.sh.
export CGO_CFLAGS := -O2 -g -Wno-deprecated-declarations

# Tests of real engines fail where there are none, and name the script that gets them. TESTFLAGS=-short, or
# LLMM_TEST_NO_ENGINE=1 in the environment, leaves them out.
FUZZTIME ?= 20s
BENCHFLAGS ?=
TESTFLAGS ?=

##@ For everybody

.PHONY: help
help: ## Show this
	@awk 'BEGIN { FS = ":.*## " } /^##@/ { printf "\n%s\n", substr($$0, 5) } /^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: run
run: ## Do all set-up there is and start the server (LLMM_LISTEN=127.0.0.1:8080)
	@scripts/setup
	@scripts/run

.PHONY: test
test: ## Do all set-up there is and run the tests, with the real engine (not the browser flow)
	@scripts/setup --strict
	go test -timeout 20m $(TESTFLAGS) $(UNIT)
	go test -count=1 $(TESTFLAGS) $(E2E)

##@ For developers

.PHONY: generate
generate: ## Write the generated files: templates, diagrams
	$(TOOL) templ generate -path web/templates
	go run ./cmd/statediagram -w docs/architecture.md

.PHONY: build
build: ## Build bin/llmm and bin/fakeengine
	go build -ldflags "-X github.com/industriverse/llmmodelmanager/internal/cli.Version=$$(git describe --always --dirty 2>/dev/null || echo dev)" -o bin/llmm .
	go build -o bin/fakeengine ./cmd/fakeengine

.PHONY: race
race: ## Unit and conformance tests with the race detector
	go test -race -timeout 20m $(TESTFLAGS) $(UNIT)

.PHONY: e2e
e2e: ## The whole path on a real engine with real weights
	@scripts/setup --strict
	go test -count=1 -timeout 15m $(TESTFLAGS) $(E2E)

.PHONY: browser
browser: ## The console in a real browser (needs Chromium)
	@scripts/setup --strict
	go test -count=1 -timeout 15m $(TESTFLAGS) $(BROWSER)

.PHONY: lint
lint: ## golangci-lint, import direction included
	$(TOOL) golangci-lint run ./...

.PHONY: fmt
fmt: ## Format Go and templates
	gofmt -w $$(git ls-files -- '*.go')
	$(TOOL) templ fmt web/templates

.PHONY: vet
vet: ## go vet
	go vet ./...

.PHONY: vulncheck
vulncheck: ## Known vulnerabilities in what we use
	@scripts/vulncheck

.PHONY: fuzz
fuzz: ## Every fuzz target for FUZZTIME (20s) each
	@FUZZTIME=$(FUZZTIME) scripts/fuzz

.PHONY: kills
kills: ## Kill every engine a hundred times at random moments; the tests kill each a few times
	LLMM_KILLS=$${LLMM_KILLS:-100} go test -count=1 -v -timeout 60m -run 'Conformance/KillAtRandom' ./internal/loaders/fake ./internal/loaders/command ./internal/loaders/vllm ./internal/loaders/llamacpp ./internal/loaders/ollama ./internal/loaders/transformers

.PHONY: vllm
vllm: ## Install a real vLLM (3 GB, once) and run the conformance suite on it: about half an hour on two CPUs
	vllm=$$(scripts/vllm-tool) && LLMM_TEST_VLLM=$$vllm go test -count=1 -v -timeout 120m -run 'RealVLLM' ./internal/loaders/vllm

.PHONY: bench
bench: ## Measure against the budgets: each line is measured, budget, ratio
	go run ./cmd/bench $(BENCHFLAGS)

.PHONY: screenshots
screenshots: ## Pictures of every page, wide and narrow, into screenshots/
	@scripts/setup
	go run ./cmd/screenshots

.PHONY: check
check: ## What CI runs: all of the above that can fail
	@scripts/check

.PHONY: clean
clean: ## Remove what was built; data/ and the cache of engines and models stay
	rm -rf bin coverage.out screenshots
