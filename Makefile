# make help says what there is. The work is done by cargo and scripts/; nothing outside of target/ is written, except by
# install and by the Debian packages that scripts/setup.sh finds missing.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.NOTPARALLEL:
.DEFAULT_GOAL := help

PG ?= 15
WORLD ?=
PROFILE ?= debug
MINUTES ?= 10
SECONDS ?= 60
STATE := $(shell . scripts/common.sh && echo "$$STATE")
TARGET := $(or $(CARGO_TARGET_DIR),target)
export LITMUS_PGNATS_STATE := $(STATE)

ifeq ($(STATE),)
$(error scripts/common.sh gave no directory for the state)
endif
ifeq ($(filter $(PG),15 16 17 18),)
$(error PG=$(PG): litmus_pgnats is built for PostgreSQL 15, 16, 17 and 18)
endif
ifeq ($(filter $(PROFILE),debug release),)
$(error PROFILE=$(PROFILE): debug or release)
endif

# The private PostgreSQL. The release build goes into a copy of it, so that demo and benchmarks leave tests alone, which
# may run at the same time.
private := $(STATE)/pg$(PG)/bin/pg_config
home := $(STATE)/$(if $(filter release,$(PROFILE)),release/)pg$(PG)
# What tests, demo and benchmarks are told. psql and pgbench are those of 15, which speak to every major.
served = $(private)
servers = env PG_CONFIG="$(served)" PSQL="$(STATE)/pg15/bin/psql" PGBENCH="$(STATE)/pg15/bin/pgbench" \
	NATS_SERVER="$(STATE)/nats/bin/nats-server"
# The demo's and the benchmarks' own clients of NATS. They are built in a place of their own: the library is among what
# they are built with, without PostgreSQL, and each of the two builds would have the other repeated.
clients := $(abspath $(TARGET))/clients
demo demo-ha bench: served = $(STATE)/release/pg$(PG)/bin/pg_config
# The server that `build` builds for.
against = $(private)
# Cargo optimizes across crates (lto in Cargo.toml) only what is a shared library alone, and the package is a Rust
# library as well, for the tests.
compile := $(if $(filter release,$(PROFILE)),rustc --release --lib --crate-type cdylib,build)
# A release says nothing of the machine that it was built on, and is the same wherever it is built.
cargo_home := $(or $(CARGO_HOME),$(HOME)/.cargo)
flags := $(if $(filter release,$(PROFILE)),RUSTFLAGS="$(RUSTFLAGS) --remap-path-prefix=$(cargo_home)=/cargo --remap-path-prefix=$(CURDIR)=/litmus_pgnats")

# What libFuzzer learns from: the code that an input reaches, and what the input was compared with there.
coverage := -Cpasses=sancov-module $(foreach name,level=4 inline-8bit-counters pc-table trace-compares,-Cllvm-args=-sanitizer-coverage-$(name))
fuzzing := $(abspath $(TARGET))/fuzz
fuzz_targets := $(patsubst fuzz/fuzz_targets/%.rs,%,$(wildcard fuzz/fuzz_targets/*.rs))

.PHONY: help setup build private install test test-all test-ha soak fuzz package test-package test-pg-upgrade test-reproducible deny lint demo demo-ha bench clean distclean

help: ## say what there is
	@echo 'make TARGET [PG=15|16|17|18]'
	sed -nE 's/^([a-z-]+):.*## (.*)/  \1\t\2/p' Makefile | expand -t 18

setup: ## install everything that building, testing and the demo need
	@scripts/setup.sh

build: ## build the extension; PG=15, PROFILE=debug|release
	@[ "$(against)" != "$(private)" ] || scripts/setup.sh rust pg$(PG)
	PGRX_PG_CONFIG_PATH="$(against)" $(flags) cargo $(compile) --locked --no-default-features --features pg$(PG)
	# Each major overwrites this file.
	mkdir -p "$(TARGET)/ext/pg$(PG)/$(PROFILE)"
	cp "$(TARGET)/$(PROFILE)/liblitmus_pgnats.so" "$(TARGET)/ext/pg$(PG)/$(PROFILE)/litmus_pgnats.so"

# Build for the private PostgreSQL and put it there.
private: build
	@if ! cmp -s "$(STATE)/pg$(PG)/.source" "$(home)/.source"; then
		rm -rf "$(home)" "$(home).new"
		mkdir -p "$(dir $(home))"
		cp -a "$(STATE)/pg$(PG)" "$(home).new"
		mv "$(home).new" "$(home)"
	fi
	stage=$$(scripts/stage.sh $(PG) $(PROFILE))
	"$$stage/install.sh" "$(home)/bin/pg_config" >/dev/null

install: ## build for your server and install there; PG_CONFIG=/path/to/pg_config, else the one in PATH
	@. scripts/common.sh
	pg_config="$(or $(PG_CONFIG),$(shell command -v pg_config))"
	[ -n "$$pg_config" ] || die "no pg_config in PATH; say make install PG_CONFIG=/path/to/pg_config"
	major=$$("$$pg_config" --version | sed -nE 's/^PostgreSQL ([0-9]+).*/\1/p')
	[ -f "$$("$$pg_config" --includedir-server)/postgres.h" ] ||
		die "$$pg_config has no server headers; install postgresql-server-dev-$$major or postgresql$$major-devel"
	scripts/setup.sh rust
	$(MAKE) --no-print-directory build PG="$$major" PROFILE=release against="$$pg_config"
	stage=$$(scripts/stage.sh "$$major" release)
	if [ -w "$$("$$pg_config" --pkglibdir)" ]; then
		"$$stage/install.sh" "$$pg_config"
	else
		as_root "$$(realpath "$$stage")/install.sh" "$$pg_config"
	fi

package: ## make the zip and the Debian package for PG=15, in target/package
	@scripts/setup.sh rust pg15 pg$(PG)
	$(MAKE) --no-print-directory build PROFILE=release
	scripts/package.sh zip $(PG)
	scripts/package.sh deb $(PG)

test: ## run the tests, but those of test-ha, on a private PostgreSQL and nats-server; PG=15, WORLD=narrow (the core tests with a NATS user of few rights), ARGS=(for cargo nextest run)
	@scripts/setup.sh rust pg15 pg$(PG) nats nats29 natspy prometheus
	$(MAKE) --no-print-directory private PROFILE=debug
	$(servers) NATS_SERVER_OLD="$(STATE)/nats29/bin/nats-server" NATS_PY="$(STATE)/natspy" \
		PROMETHEUS="$(STATE)/prometheus" WORLD="$(WORLD)" \
		cargo nextest run --locked $(if $(WORLD),--profile $(WORLD)) $(ARGS)
	# cargo nextest runs no documentation tests. Building for them costs time, so only if there are any.
	doctests='/^ *\/\/[\/!] *```/ { open = !open; if (open && /```(rust.*)?$$/) found = 1 } END { exit !found }'
	if find src -name '*.rs' -exec cat {} + | awk "$$doctests"; then cargo test --locked --doc; fi

test-all: ## run every test on PostgreSQL 15, and on 16, 17 and 18 those that a major may change; on 17 with a NATS user of few rights
	@$(MAKE) --no-print-directory test PG=15
	for pg in 16 18; do $(MAKE) --no-print-directory test PG=$$pg ARGS='--profile core $(ARGS)'; done
	$(MAKE) --no-print-directory test PG=17 WORLD=narrow

test-pg-upgrade: ## have clusters with handlers go from PostgreSQL 15 and 16 to 18 by pg_upgrade
	@scripts/setup.sh rust pg15 pg16 pg18 nats
	for pg in 15 16 18; do $(MAKE) --no-print-directory private PG=$$pg PROFILE=debug; done
	for pg in 15 16; do scripts/test-pg-upgrade.sh $$pg 18; done

# Patroni needs pg_basebackup and pg_rewind, which the other majors' private servers lack.
test-ha: ## run the tests of high availability (tests/ha_*), with Patroni, etcd and a NATS cluster; on PostgreSQL 15, ARGS=(for cargo nextest run)
	@[ "$(PG)" = 15 ] || { echo 'error: make test-ha is for PG=15' >&2; exit 1; }
	scripts/setup.sh rust pg15 nats etcd patroni
	$(MAKE) --no-print-directory private PROFILE=debug
	$(servers) cargo nextest run --locked --profile ha --test 'ha_*' --success-output immediate $(ARGS)

soak: ## use everything at random for MINUTES=10 while everything is broken, and look what is lost, doubled or leaked; SOAK_SEED=(to repeat the choices of a run)
	@scripts/setup.sh rust pg15 pg$(PG) nats
	$(MAKE) --no-print-directory private PROFILE=debug
	$(servers) SOAK_MINUTES="$(MINUTES)" cargo nextest run --locked --profile soak --test soak --no-capture $(ARGS)

test-package: package ## try the packages for PG=15 as a new user, on a bare Debian 12 without Rust (chroot, needs root)
	@scripts/setup.sh nats rootfs
	scripts/test-package.sh "$$(scripts/package.sh zip $(PG))" "$$(scripts/package.sh deb $(PG))" $(PG)

test-reproducible: ## build the release of the last commit for PG=15 a second time, elsewhere, and compare
	@[ -z "$$(git status --porcelain)" ] || { echo 'error: commit your changes first: the other build does not have them' >&2; exit 1; }
	$(MAKE) --no-print-directory build PROFILE=release
	elsewhere=$$(mktemp -d "$(abspath $(TARGET))/elsewhere.XXXXXX")
	trap 'rm -rf "$$elsewhere"' EXIT
	git clone --quiet . "$$elsewhere/litmus_pgnats"
	env -u CARGO_TARGET_DIR $(MAKE) --no-print-directory -C "$$elsewhere/litmus_pgnats" build PROFILE=release STATE="$(STATE)"
	built=ext/pg$(PG)/release/litmus_pgnats.so
	cmp "$(TARGET)/$$built" "$$elsewhere/litmus_pgnats/target/$$built"
	sha256sum "$(TARGET)/$$built"

deny: ## check the licences and duplicates of what the library is made of, as deny.toml allows them
	@scripts/setup.sh rust deny
	cargo fetch --locked
	PATH="$(STATE)/deny/bin:$$PATH" cargo deny --offline check licenses bans sources

lint: ## formatting, clippy, shellcheck, and that the layers without PostgreSQL stay so
	@scripts/setup.sh rust pg15
	cargo fmt --check
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	# Its lock file has what the library is made of too.
	cargo metadata --locked --format-version 1 --manifest-path fuzz/Cargo.toml >/dev/null
	cargo clippy --locked --all-targets -- -D warnings
	PGRX_PG_CONFIG_PATH="$(STATE)/pg15/bin/pg_config" \
		cargo clippy --locked --all-targets --no-default-features --features pg15 -- -D warnings
	# grep ends with 1 when it finds nothing and with 2 when a file is not there (renamed?): only the first will do.
	status=0
	grep -rnE 'pgrx|pg_sys' src/actors src/channel src/settings src/nats || status=$$?
	[ $$status = 1 ] || { echo 'error: src/actors, src/channel, src/settings and src/nats must be there, and free of pgrx' >&2; exit 1; }
	if command -v shellcheck >/dev/null; then
		shellcheck -x install.sh .ci/run scripts/*.sh scripts/patroni/*.sh packaging/*.sh docker/*.sh $(wildcard demo/*.sh demo/ha/*.sh bench/*.sh)
	fi

fuzz: ## have libFuzzer look for input that breaks what reads input; SECONDS=60 (for all), ONLY=frame|options|texts|wire, INPUT=(a file, to run that alone), ARGS=(for libFuzzer)
	@[ -z "$(INPUT)" ] || [ -n "$(ONLY)" ] || { echo 'error: INPUT is for one program, say ONLY=NAME too' >&2; exit 1; }
	scripts/setup.sh rust cxx
	host=$$(rustc --print host-tuple)
	# With --target the flags are not for what runs while building, which has no libFuzzer in it.
	RUSTFLAGS="$(RUSTFLAGS) --cfg fuzzing $(coverage)" cargo build --locked --manifest-path fuzz/Cargo.toml \
		--target "$$host" --target-dir "$(fuzzing)"
	seconds=$$(($(SECONDS) / $(words $(or $(ONLY),$(fuzz_targets)))))
	for target in $(or $(ONLY),$(fuzz_targets)); do
		program="$(fuzzing)/$$host/debug/$$target" corpus="$(fuzzing)/corpus/$$target" log="$(fuzzing)/$$target.log"
		limits=(-max_len=8192 -timeout=10 -rss_limit_mb=1024 -artifact_prefix="$(fuzzing)/$$target-")
		if [ -n "$(INPUT)" ]; then
			RUST_BACKTRACE=1 "$$program" "$${limits[@]}" $(ARGS) "$(INPUT)"
			continue
		fi
		echo "$$target, for $$seconds s"
		mkdir -p "$$corpus"
		# 0 seconds would be for ever.
		"$$program" "$${limits[@]}" -max_total_time=$$((seconds > 0 ? seconds : 1)) $(ARGS) \
			"$$corpus" $$(compgen -G "fuzz/corpus/$$target") 2>&1 |
			tee "$$log" | grep --line-buffered -E '(INITED|pulse|DONE) ' || {
			grep -vE '^(#|INFO|WARNING)' "$$log" >&2 || true
			input=$$(ls -t "$(fuzzing)/$$target"-* | head -1)
			echo "error: $$target has failed. Run this input again: make fuzz ONLY=$$target INPUT=$$input" >&2
			exit 1
		}
	done

demo: ## a guided tour in psql, on throw-away servers
	@scripts/setup.sh rust pg15 pg$(PG) nats
	$(MAKE) --no-print-directory private PROFILE=release
	cargo build --locked --release --example nats --target-dir "$(clients)"
	$(servers) EXAMPLES="$(clients)/release/examples" demo/run.sh

demo-ha: ## a Patroni cluster of two nodes, a switchover, and the notifications as they come; PostgreSQL 15
	@[ "$(PG)" = 15 ] || { echo 'error: make demo-ha is for PG=15' >&2; exit 1; }
	scripts/setup.sh rust pg15 nats etcd patroni
	$(MAKE) --no-print-directory private PROFILE=release
	cargo build --locked --release --example nats --target-dir "$(clients)"
	$(servers) EXAMPLES="$(clients)/release/examples" demo/ha/run.sh

bench: ## measure, against yardsticks of the same run; ONLY=publish|bulk|request|stream|kv|object|drain|latency|responder|outbox|durable, DURATION=5 (seconds), RUNS=3
	@scripts/setup.sh rust pg15 pg$(PG) nats
	$(MAKE) --no-print-directory private PROFILE=release
	cargo build --locked --release --example bench_client --target-dir "$(clients)"
	$(servers) EXAMPLES="$(clients)/release/examples" bench/run.sh

clean: ## remove what was built
	@[ ! -d "$(TARGET)" ] || find "$(TARGET)" -mindepth 1 -maxdepth 1 ! -name state -exec rm -rf {} +

distclean: clean ## remove also what setup has put into the project's state directory
	@rm -rf "$(STATE)"
