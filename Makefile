# replypath: build, try, test and package. `make help` lists the targets.
#
# Needed beforehand: Go, make, git and apt, and root or sudo. Building and
# `make demo` need nothing else: generated code and the compiled eBPF objects
# are committed. What tests and generation need, they install.

GO          ?= go
CGO_ENABLED ?= 0
export CGO_ENABLED

# The tree may belong to somebody else than who builds it (sudo make, containers):
# git, which Go asks for the commit too, is told that this is meant.
export GIT_CONFIG_COUNT   := 1
export GIT_CONFIG_KEY_0   := safe.directory
export GIT_CONFIG_VALUE_0 := $(CURDIR)

VERSION := $(or $(VERSION),$(shell GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='$(CURDIR)' \
	git describe --tags --always --dirty 2>/dev/null),unknown)

PREFIX ?= /usr/local
IMAGE  ?= replypath.test/agent:$(VERSION)

# Packages that test and test-unit test, and extra arguments for go test:
# make test PKG=./internal/lab TESTFLAGS='-run TestLab -v'
PKG       ?= ./...
TESTFLAGS ?=
FUZZTIME  ?= 10s

# What test-vm boots: series of Debian's kernels, those that take longest first. MATRIX=-check compares the outcome with docs/kernels.md instead of writing it.
KERNELS       ?= 5.10 7.2 6.1 6.12 6.18
ARM64_KERNELS ?= 6.1-arm64 6.12-arm64 6.18-arm64 7.2-arm64
MATRIX        ?=

BUILDFLAGS := -trimpath -ldflags '-s -w -X github.com/replypath/replypath/internal/version.version=$(VERSION)'

# Tests of the whole ask these programs, rather than build some of their own as root.
export REPLYPATH_BIN := $(CURDIR)/bin

# nft and ip are in sbin, which is not in everybody's PATH.
export PATH := $(PATH):/usr/sbin:/sbin

# Privileged steps alone go through sudo, and only when make does not run as
# root. They run what was built before, so nothing in the tree or in Go's
# caches ever belongs to root.
ifneq ($(shell id -u),0)
SUDO    := sudo env "PATH=$(PATH)" "REPLYPATH_BIN=$(REPLYPATH_BIN)"
AS_ROOT := -exec '$(SUDO)'
endif

# The peers that tests run the real thing against: rules that nft and iptables
# wrote, entries that conntrack lists, networks that ip and sysctl set up, resolvers and their clients.
TEST_PACKAGES := nftables iptables conntrack iproute2 procps openvswitch-switch dnsmasq-base bind9-dnsutils dnsperf
# The machines that other kernels run in, and what shares this one's root with them: before Debian 13 that came with qemu.
VM_PACKAGES = qemu-system-x86 $(if $(findstring -arm64,$(KERNELS)),qemu-system-arm) cpio kmod $(shell apt-cache pkgnames virtiofsd 2>/dev/null | grep -x virtiofsd)
# The compilers of the eBPF programs and of the API.
GENERATE_PACKAGES := clang-19 llvm-19 libbpf-dev protobuf-compiler libprotobuf-dev

# What `make generate` writes.
GENERATED := ':(glob)**/*.pb.go' ':(glob)**/*_bpfe[bl].go' ':(glob)**/*_bpfe[bl].o' docs/findings.md docs/metrics.md

.PHONY: help
help: ## list the targets (this is the default)
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## compile bin/replypath and bin/replypath-agent
	$(GO) build $(BUILDFLAGS) -o bin/replypath ./cmd/cli
	$(GO) build $(BUILDFLAGS) -o bin/replypath-agent ./cmd/agent

# replypath exits with 1 when it found a fault, which is what a demo is for.
.PHONY: demo
demo: build root ## see a lost reply explained, in a network of its own (root)
	@status=0; $(SUDO) bin/replypath lab run dsr-no-route || status=$$?; \
	case $$status in \
	1) ;; \
	0) echo 'demo: the fault was not found' >&2; exit 1;; \
	*) exit $$status;; \
	esac

# The packages are compiled side by side and run one by one: an agent under test
# sees the whole machine, the bursts of another package's tests included.
define run-tests
	@$(2) $(GO) test -c -o /dev/null $(1) $(PKG) >/dev/null
	$(2) $(GO) test $(1) -p 1 -count=1 $(AS_ROOT) $(TESTFLAGS) $(PKG)
endef

.PHONY: test
test: build deps-test root ## run all tests, those of kernel and network as root
	$(call run-tests)

.PHONY: test-unit
test-unit: ## run the tests as you are: without root, those that need it are skipped
	$(GO) test $(TESTFLAGS) $(PKG)

.PHONY: test-vm
test-vm: deps-test deps-vm root ## run labs and tests on other kernels, in virtual machines; write docs/kernels.md
	GO='$(GO)' test/vm/run $(KERNELS)
	$(GO) run ./test/vm/matrix $(MATRIX) $(KERNELS)

.PHONY: test-arm64
test-arm64: ## the same with emulated arm64 machines: labs, and what tests need no more than a kernel
	$(MAKE) test-vm KERNELS='$(ARM64_KERNELS)'

.PHONY: race
race: build deps-test root ## run all tests under the race detector (needs a C compiler, CC)
	$(call run-tests,-race,CGO_ENABLED=1)

.PHONY: fuzz
fuzz: ## run each fuzz target for FUZZTIME (10s)
	@set -e; grep -rlE '^func Fuzz' --include='*_test.go' . | xargs -r -n1 dirname | sort -u | while read -r package; do \
		targets=$$($(GO) test -list '^Fuzz' "$$package" | grep '^Fuzz'); \
		for target in $$targets; do \
			echo "$$package $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) "$$package" </dev/null; \
		done; \
	done

.PHONY: lint
lint: ## check format, go vet, staticcheck, go.mod
	@files=$$(find . -name '*.go' -not -path './build/*' | xargs gofmt -l); \
	[ -z "$$files" ] || { echo "not formatted (make fmt):" $$files >&2; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(GO) mod tidy -diff

.PHONY: fmt
fmt: ## format Go, and C where clang-format-19 is installed
	find . -name '*.go' -not -path './build/*' | xargs gofmt -w
	if command -v clang-format-19 >/dev/null; then find bpf -name '*.[ch]' -not -name vmlinux.h | xargs -r clang-format-19 -i; fi

.PHONY: generate
generate: deps-generate ## compile eBPF and the API, write the generated docs
	$(GO) generate ./...

.PHONY: check-generated
check-generated: generate ## fail when generated files differ from the committed ones
	@git diff --exit-code --stat -- $(GENERATED) || { echo 'generated files differ: commit what make generate wrote' >&2; exit 1; }
	@new=$$(git ls-files --others --exclude-standard -- $(GENERATED)); \
	[ -z "$$new" ] || { echo "generated files are not committed:" $$new >&2; exit 1; }

.PHONY: image
image: build ## write build/replypath-agent.tar, an image for docker load and ctr images import
	@mkdir -p build
	$(GO) run ./deploy/image -o build/replypath-agent.tar -name $(IMAGE) -version $(VERSION) \
		-revision "$$(git rev-parse HEAD 2>/dev/null)" \
		-time "$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct 2>/dev/null || echo 0)}" \
		bin/replypath-agent bin/replypath

.PHONY: install
install: build ## install both programs in PREFIX/bin (/usr/local/bin)
	$(if $(DESTDIR),,$(SUDO)) install -D -m 0755 -t '$(DESTDIR)$(PREFIX)/bin' bin/replypath bin/replypath-agent

.PHONY: clean
clean: ## remove what make built
	rm -rf bin build

# Asks for a password here, once, so that later failures of sudo are not taken for those of what it runs.
.PHONY: root
root:
ifdef SUDO
	@command -v sudo >/dev/null || { echo 'this step needs root: run make as root, or install sudo' >&2; exit 1; }
	@$(SUDO) true
endif

.PHONY: deps-test deps-vm deps-generate
deps-test: PACKAGES = $(TEST_PACKAGES)
deps-vm: PACKAGES = $(VM_PACKAGES)
deps-generate: PACKAGES = $(GENERATE_PACKAGES)
deps-test deps-vm deps-generate: root
	@command -v dpkg-query >/dev/null || { echo 'no Debian packages here: these are needed, under their names on this system: $(PACKAGES)' >&2; exit 0; }; \
	missing=$$(for p in $(PACKAGES); do dpkg-query -Wf '$${db:Status-Status}' "$$p" 2>/dev/null | grep -qx installed || echo "$$p"; done); \
	[ -n "$$missing" ] || exit 0; \
	echo "installing:" $$missing; \
	apt() { $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 "$$@"; }; \
	apt update && apt install -y --no-install-recommends $$missing
