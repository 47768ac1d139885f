# dput(2): a Linux patch series, and what it takes to build, boot and test it.
# The work is done by the scripts in qemu/; each has --help.

export KERNEL_SRC ARCH ACCEL CONFIG TESTS JOBS DEMO_MIB BENCH
export ARCHES CONFIGS COMPILER DPUT_CACHE DPUT_BUILD DPUT_MIRROR
export SENDER VERSION RFC BASE_COMMIT REPOSITORY SINCE BASE CONFIG_FILE FIRST LAST TRAILER

# What make test-all runs: targets, with variables after colons. Those after the first
# line take hours each where there is no KVM.
TEST_ALL := test check:BASE=newest analyze docs image regress sabotage bisect bench-compare \
	test:CONFIG=debug test:CONFIG=kcsan coverage stress cross cross:COMPILER=clang deb \
	test:ARCH=i386 test:ARCH=i386:CONFIG=pae test:ARCH=arm64 test:ARCH=arm64:CONFIG=64k \
	test:ARCH=arm64:CONFIG=va39 test:ARCH=arm64:CONFIG=va48 test:ARCH=riscv64 test:ARCH=s390x \
	test:ARCH=ppc64le test:ARCH=ppc64le:CONFIG=hash

.DEFAULT_GOAL := help
.PHONY: help deps prepare build initramfs run test check regress shell sabotage apply export clean distclean
.PHONY: test-names coverage bisect mbox series-diff analyze docs image deb test-all stress cross
.PHONY: bench bench-compare bench-docs

help:
	@echo 'make run        build the kernel and run the demonstration in a guest'
	@echo 'make test       every check and every selftest'
	@echo 'make check      only the checks that need no guest; with BASE=newest, BASE=SUITE or'
	@echo '                BASE=PATH only: does the series apply to that Linux, too?'
	@echo 'make test-all   test, and all that does not fit into its time (a day without KVM);'
	@echo '                TEST_ALL="TARGET[:VARIABLE=VALUE]…": only these'
	@echo "make regress    the kernel's own selftests, with the series and without it"
	@echo 'make shell      an interactive guest with the selftests, strace and the demo'
	@echo 'make sabotage   break the kernel on purpose: which test notices?'
	@echo 'make coverage   which lines of the series do the selftests reach? [TESTS="NAME…"]'
	@echo 'make stress     random operations and races with new seeds: SECONDS=N (3600) SEED=N ROUNDS=N'
	@echo 'make bisect     is the kernel sound after each patch in turn? FIRST=N LAST=N limit it'
	@echo 'make cross      compile what the series touches, each architecture: [ARCHES="NAME…"]'
	@echo '                [COMPILER=clang]'
	@echo 'make analyze    what sparse, clang, coccinelle and others find that the base has not'
	@echo "make docs       the kernel's documentation, built by sphinx"
	@echo 'make mbox       the series as mails: SENDER="Name <address>" [VERSION=N] [RFC=yes] [BASE_COMMIT=ID] [REPOSITORY=URL]'
	@echo '                FIRST=N LAST=N: only these, as mails of their own: the fixes, say'
	@echo '                TRAILER="Name: text": one more line for each, Assisted-by, say'
	@echo 'make series-diff  what changed in the series: SINCE=TAG'
	@echo 'make bench      what the call costs, and what else would do the same; BENCH=targets: only that'
	@echo 'make bench-compare  is any instruction count 1 % above Documentation/bench/baseline.tsv?'
	@echo 'make bench-docs  all of it, into Documentation/bench'
	@echo 'make image      kernel, initramfs and a line to boot them, to take along: build/image'
	@echo 'make deb        Debian packages of the kernel, for a real machine: [CONFIG_FILE=FILE]'
	@echo 'make apply      put the series onto your own tree: KERNEL_SRC=DIR'
	@echo 'make prepare    build/linux: Linux 7.3.y with the series'
	@echo "make build      the kernel; make initramfs: the guest's files as well"
	@echo 'make deps       install the Debian packages that are missing'
	@echo 'make export     patches/ and series from a git tree: TREE=DIR BASE=COMMIT'
	@echo 'make clean      remove build/, not another DPUT_BUILD; make distclean: the cache, too'
	@echo
	@echo 'KERNEL_SRC=PATH  Linux 7.3.y to start from: a tarball, a git checkout or a tree; only'
	@echo "                 copied, but for make apply (default: Debian's linux-source-7.3)"
	@echo 'ARCH=NAME        the guest'"'"'s architecture: x86_64, i386, arm64, riscv64,'
	@echo '                 s390x or ppc64le'
	@echo 'ACCEL=kvm|tcg    how to run the guest (default: KVM if it really boots, else TCG)'
	@echo "CONFIG=NAME      adds kernel-config/NAME.config to the kernel's configuration"
	@echo 'TESTS="NAME…"    only these test programs (shell patterns), and no checks'
	@echo 'JOBS=N           compilers at a time (default: one for each CPU)'
	@echo 'DEMO_MIB=N       how much data the demonstration works on'
	@echo 'DPUT_CACHE=DIR   downloads and ccache (default: ~/.cache/dput)'
	@echo 'DPUT_BUILD=DIR   everything else that is made (default: build)'
	@echo "DPUT_MIRROR=URL  a Debian mirror (default: the one in apt's sources)"

deps:
	@qemu/deps

prepare: deps
	@qemu/prepare

build: prepare
	@qemu/build

initramfs: build
	@qemu/initramfs

run: initramfs
	@qemu/run

test: test-names initramfs
	@qemu/test

test-names:
	@qemu/test --names

check: prepare
	@qemu/check

regress: build
	@qemu/regress

shell: initramfs
	@qemu/shell

sabotage: initramfs
	@qemu/sabotage

coverage: export CONFIG := gcov
coverage: test-names initramfs
	@qemu/coverage

bisect: deps
	@qemu/bisect $(or $(FIRST),0) $(LAST)

mbox: prepare
	@qemu/mbox

series-diff: prepare
	@qemu/series-diff

bench: prepare
	@qemu/deps bench
	@qemu/bench

bench-compare: prepare
	@qemu/bench --compare

bench-docs: prepare
	@qemu/deps bench
	@qemu/bench --docs

analyze: prepare
	@qemu/analyze

docs: prepare
	@qemu/docs

cross: prepare
	@[ "$(COMPILER)" = clang ] || qemu/deps cross
	@qemu/cross

image: initramfs
	@qemu/image

deb: prepare
	@qemu/deb

test-all: deps
	@qemu/test-all $(TEST_ALL)

# SECONDS is bash's own.
stress: initramfs
	@SECONDS_TO_RUN="$(SECONDS)" SEED="$(SEED)" ROUNDS="$(ROUNDS)" qemu/stress

apply:
	@qemu/apply

export:
	@qemu/export-series "$(TREE)" "$(BASE)"

clean:
	rm -rf build

distclean: clean
	@qemu/clean-cache
