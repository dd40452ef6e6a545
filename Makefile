# ring3. "make help" lists what there is to make.

GO    ?= go
BIN   := bin
RING3 := $(BIN)/ring3

# What "make run" and "make test" need beside Go. The tests compare with
# objdump, build small guests with gcc, check the ACPI tables with iasl, and
# disks with e2fsck and qemu-img, and boot a Debian that mmdebstrap installs.
RUN_PACKAGES  := apt
TEST_PACKAGES := apt acpica-tools binutils busybox-static e2fsprogs fakechroot fakeroot fdisk gcc gcc-multilib libc6-dev \
	mmdebstrap qemu-utils

# What "make bench" measures with and beside ring3; what cannot be installed
# is left out. gVisor is built from its Go module at this version.
BENCH_PACKAGES := apt gcc libc6-dev qemu-system-x86 user-mode-linux
GVISOR_VERSION := v0.0.0-20260905035102-160fafc42237
RUNSC          := $(BIN)/runsc-$(GVISOR_VERSION)

# The linter is built at this version and kept under bin/.
STATICCHECK_VERSION := v0.8.2
STATICCHECK         := $(BIN)/staticcheck-$(STATICCHECK_VERSION)

# One package may take this long; the whole suite stays under 15 minutes.
TEST_TIMEOUT := 14m

# Packages whose tests start processes or machines, or ask the host.
USER_PACKAGES := $(addprefix ./,$(wildcard cmd/ring3 internal/agent internal/console internal/control internal/direct internal/disk \
	internal/hostcheck internal/kernelstore internal/machine internal/native internal/netfd internal/share internal/usernet \
	internal/virtio/vsock internal/vmdir test/boot))

export CGO_ENABLED := 0

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## build bin/ring3
	$(GO) build -o $(RING3) ./cmd/ring3

.PHONY: run-deps
run-deps:
	@.ci/deps $(RUN_PACKAGES)

.PHONY: run
run: run-deps build ## boot the default kernel to a shell in this terminal
	@$(RING3) run

.PHONY: test-deps
test-deps:
	@.ci/deps $(TEST_PACKAGES)

# Guest kernels for the tests that boot some. Without them those tests say so.
.PHONY: kernels
kernels: build
	@$(RING3) kernel fetch --missing cloud generic >/dev/null || echo "guest kernels could not be fetched" >&2

# A disk with Debian installed on it. Without it the tests that boot it make it.
.PHONY: debian
debian: test-deps ## make the disk with Debian that tests boot, 1 to 2 minutes at first
	@test/debian/make-image

.PHONY: test
test: test-deps kernels debian ## run every test
	$(GO) test -count=1 -timeout $(TEST_TIMEOUT) ./...

.PHONY: test-interp
test-interp: test-deps kernels ## run the tests with guest kernels again, interpreted
	RING3_TEST_ENGINE=interp $(GO) test -count=1 -timeout $(TEST_TIMEOUT) ./test/boot

.PHONY: test-user
test-user: kernels ## as root: run the tests that need the host again as user nobody
	@GO=$(GO) .ci/unprivileged $(USER_PACKAGES)

$(RUNSC):
	@mkdir -p $(BIN)/tmp
	GOBIN=$(CURDIR)/$(BIN)/tmp $(GO) install gvisor.dev/gvisor/runsc@$(GVISOR_VERSION)
	@mv $(BIN)/tmp/runsc $@ && rmdir $(BIN)/tmp

.PHONY: bench-deps
bench-deps:
	@.ci/deps $(BENCH_PACKAGES) || true
	@$(MAKE) -s $(RUNSC) || echo "gVisor could not be built" >&2

# Other flags: make bench BENCH_FLAGS="-rounds 1 -systems native,ring3"
BENCH_FLAGS := -out bench

.PHONY: bench
bench: bench-deps kernels ## measure ring3 beside native, QEMU and others, into bench/
	@$(GO) run ./test/bench $(BENCH_FLAGS)

.PHONY: soak
soak: test-deps kernels ## boots and random code for a long time, about 30 minutes
	$(GO) test -count=1 -v -tags soak -run 'TestBoots|TestRandomCodeLong' -timeout 60m ./test/boot

.PHONY: soak-debian
soak-debian: test-deps debian ## Debian booted 20 times, and killed 50 times while it writes; about 30 minutes
	$(GO) test -count=1 -v -tags soak -run TestDebian -timeout 120m ./cmd/ring3

# One machine under everything at once; SOAK_TIME=1h for longer, and
# RING3_TEST_ENGINE=interp for the other engine.
SOAK_TIME := 10m
soak-mixed: export RING3_TEST_ENGINE ?= translate

.PHONY: soak-mixed
soak-mixed: test-deps kernels ## one machine under mixed load for a long time, SOAK_TIME=10m
	RING3_SOAK_TIME=$(SOAK_TIME) $(GO) test -count=1 -v -tags soak -run TestMixed -timeout 0 ./test/boot

.PHONY: fmt
fmt: ## format the sources in place
	gofmt -w $$(git ls-files '*.go')

$(STATICCHECK):
	@mkdir -p $(BIN)/tmp
	GOBIN=$(CURDIR)/$(BIN)/tmp $(GO) install honnef.co/go/tools/cmd/staticcheck@$(STATICCHECK_VERSION)
	@mv $(BIN)/tmp/staticcheck $@ && rmdir $(BIN)/tmp

.PHONY: lint-tool
lint-tool: $(STATICCHECK)

.PHONY: check
check: check-format check-vet check-lint check-tree ## formatting, vet, linter, clean tree

.PHONY: check-format
check-format:
	@bad=$$(gofmt -l $$(git ls-files '*.go')); \
	[ -z "$$bad" ] || { echo "not formatted (make fmt):"; echo "$$bad"; exit 1; }

.PHONY: check-vet
check-vet:
	$(GO) vet ./...

.PHONY: check-lint
check-lint: $(STATICCHECK)
	$(STATICCHECK) ./...

.PHONY: unused
unused: $(STATICCHECK) ## list what nothing uses (fields used by assembly, too)
	@$(STATICCHECK) -checks U1000 ./... || true

.PHONY: check-tree
check-tree:
	@bad=$$(git status --porcelain); \
	[ -z "$$bad" ] || { echo "the tree is not clean:"; echo "$$bad"; exit 1; }

.PHONY: clean
clean: ## remove what was built
	rm -rf $(BIN)
