# Builds, tests and runs baton, starting from a fresh machine. "make" alone lists the targets.

# Guest kernels that "make images" builds; the first is the default of every scenario.
KERNELS ?= 7.3.4
# Extra arguments for every cargo call that builds, such as --locked.
CARGO_FLAGS ?=
# Where "make test-kvm-svm" finds KVM: "svm" and "vmx" are hosts with emulated SVM and VMX, "here" is this one.
KVM ?= svm
# Extra arguments for it, such as "--only doctor --rounds 10".
SVM_FLAGS ?=
# How many random scenarios "make nightly" runs, over all kernels that are built, and the seed of the first.
SOUND_RUNS ?= 200
SOUND_SEED ?= 1
# The kernels of "make matrix".
MATRIX ?= 6.17.8+testkho 6.18.15+testkho 6.19.11+testkho 7.1.13+testkho 7.2.12+testkho 7.3.4+testkho
# Extra arguments for the benchmark, such as "--only versus,growth --runs 9 --json bench.json".
BENCH_FLAGS ?=

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# Each step uses all processors on its own, and people read the output in order.
.NOTPARALLEL:

# cargo may be installed for this user alone, and make may have been started without a login shell.
export PATH := $(PATH):$(HOME)/.cargo/bin
# Always build into target/, whatever the environment says.
export CARGO_TARGET_DIR := $(CURDIR)/target

# Panic messages contain paths of source files. Remapped, they do not depend on the folder of the checkout.
AGENT_RUSTFLAGS := -C target-feature=+crt-static -C relocation-model=static -C link-arg=-nostartfiles \
    --remap-path-prefix=$(CURDIR)=. --remap-path-prefix=$(or $(CARGO_HOME),$(HOME)/.cargo)=cargo
BATON := $(CARGO_TARGET_DIR)/release/baton
# The agent goes into the program, if it is built.
export BATON_EMBED_AGENT := $(CARGO_TARGET_DIR)/x86_64-unknown-linux-gnu/agent/guest-agent
# Where "make install" puts things. DESTDIR goes before it, for packages.
PREFIX ?= /usr/local
INSTALLED = $(DESTDIR)$(PREFIX)

.PHONY: help demo test test-kvm test-kvm-svm test-kvm-vmx nightly matrix bench check build install uninstall agent images selftests setup toolchain clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: build images ## set up, then run the scenarios: five live updates, each with its verdict
	$(BATON) run tests/scenarios/*.toml

test: build images ## set up, then run every test
	images/check
	images/setup test
	@for kernel in 6.19.11 7.3.4+jump 7.3.4+kaslr; do images/build "$$kernel" >/dev/null; done
	cargo test --workspace --no-fail-fast $(CARGO_FLAGS)

test-kvm: build images ## run the scenarios on this host's KVM (make test runs two of them there)
	$(BATON) run --backend kvm tests/scenarios/*.toml

test-kvm-svm: build selftests ## compare KVM on a host with emulated SVM with softcpu (KVM=here: on this host's own KVM)
	@host=(--here); \
	if [ "$(KVM)" != here ]; then folder=$$(images/kvm-host "$(KVM)"); host=(--host "$$folder"); fi; \
	program() { \
	    cargo test "$$@" --no-run --message-format json $(CARGO_FLAGS) | \
	        sed -n '/"kind":\["test"\]/s/^.*"executable":"\([^"]*\)".*$$/\1/p'; \
	}; \
	guests=$$(program -p vmm --test guests); \
	killed=$$(program -p tests --test killed); \
	cargo run --release -p tests --bin nested $(CARGO_FLAGS) -- "$${host[@]}" --baton $(BATON) \
	    --guests "$$guests" --killed "$$killed" $(SVM_FLAGS)

test-kvm-vmx: ## run what takes one processor on a host with emulated VMX, which takes some 20 minutes
	$(MAKE) test-kvm-svm KVM=vmx

nightly: build images ## run what takes hours: kernels that check themselves, KASLR, other versions, 200 random sound scenarios
	@for kernel in 6.17.8+kfence 6.17.8+testkho 6.18.15+kfence 6.18.15+testkho 7.1.13 7.2.12 7.3.4+checks 7.3.4+hugetlb 7.3.4+jump 7.3.4+kaslr 7.3.4+testkho 6.19.11 6.19.11+jump; do images/build "$$kernel" >/dev/null; done
	$(BATON) run tests/scenarios/nightly/*.toml
	BATON_NIGHTLY=1 cargo test -p tests --test symbols --test steps --test jump_back --test bugs $(CARGO_FLAGS)
	BATON_SOUND_RUNS=$(SOUND_RUNS) BATON_SOUND_SEED=$(SOUND_SEED) BATON_SOUND_GUEST_MS=60000 \
	    cargo test -p tests --test sound $(CARGO_FLAGS) -- --nocapture sound_scenarios_pass

matrix: build ## run every pair of the six kernel versions, and compare what each keeps with the facts
	@for kernel in $(MATRIX); do images/build "$$kernel" >/dev/null; done
	BATON_NIGHTLY=1 BATON_MATRIX="$(MATRIX)" cargo test -p tests --test matrix $(CARGO_FLAGS) -- --nocapture

bench: build images ## compare a live update with QEMU's TCG; where time goes, and how it grows; preservation schemes
	images/setup bench
	images/build 6.19.11 >/dev/null
	@# A busy host misses goals of the first, which must not keep the second from being run.
	qemus=(--qemu qemu-system-x86_64); missed=0; \
	if folder=$$(images/kvm-host svm); then qemus+=(--qemu "$$folder/qemu"); fi; \
	cargo run --release -p tests --bin bench $(CARGO_FLAGS) -- --baton $(BATON) --kvm-cycle "$${qemus[@]}" \
	    $(BENCH_FLAGS) || missed=$$?; \
	cargo bench -p kho-core --bench schemes $(CARGO_FLAGS); \
	exit $$missed

check: toolchain setup ## check formatting, lints and documentation
	cargo fmt --all --check
	cargo clippy --workspace --all-targets $(CARGO_FLAGS) -- -D warnings
	RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" \
	    cargo doc --workspace --no-deps --document-private-items $(CARGO_FLAGS)

build: toolchain setup agent ## build target/release/baton and the agent that runs in guests
	cargo build --release -p baton $(CARGO_FLAGS)

# The program alone is enough to work: agent, list of kernels and the scripts that build them are in it.
install: build ## install the program, man pages and shell completions below PREFIX (/usr/local)
	install -d $(INSTALLED)/bin $(INSTALLED)/share/man/man1 $(INSTALLED)/share/bash-completion/completions \
	    $(INSTALLED)/share/zsh/site-functions $(INSTALLED)/share/fish/vendor_completions.d
	install $(BATON) $(INSTALLED)/bin/baton
	$(BATON) man $(INSTALLED)/share/man/man1
	$(BATON) completions bash > $(INSTALLED)/share/bash-completion/completions/baton
	$(BATON) completions zsh > $(INSTALLED)/share/zsh/site-functions/_baton
	$(BATON) completions fish > $(INSTALLED)/share/fish/vendor_completions.d/baton.fish

uninstall: ## remove what "make install" has installed
	rm -f $(INSTALLED)/bin/baton $(INSTALLED)/share/man/man1/baton.1 $(INSTALLED)/share/man/man1/baton-*.1 \
	    $(INSTALLED)/share/bash-completion/completions/baton $(INSTALLED)/share/zsh/site-functions/_baton \
	    $(INSTALLED)/share/fish/vendor_completions.d/baton.fish

# Static and without a C library. --target keeps these flags away from build scripts.
agent: toolchain setup
	RUSTFLAGS="$(AGENT_RUSTFLAGS)" \
	    cargo build -p guest-agent --bin guest-agent --profile agent --target x86_64-unknown-linux-gnu $(CARGO_FLAGS)

images: setup ## build guest kernels in ~/.cache/baton
	@for version in $(KERNELS); do images/build "$$version" >/dev/null; done

selftests: images ## build upstream's own tests of live update, for the scenarios of tests/scenarios/payload
	ln -sfn "$$(images/selftests $(firstword $(KERNELS)))" target/selftests

setup: ## install missing Debian packages
	@images/setup

toolchain:
	@command -v cargo >/dev/null || { \
	    echo "baton: error: cargo was not found; install Rust $$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml) or newer (rustup), then try again" >&2; \
	    exit 1; }

clean: ## remove what cargo built; guest kernels stay in ~/.cache/baton
	cargo clean
