# shellcheck shell=bash disable=SC2034
# Sourced by every script in this directory: where things are, how to say no.
set -euo pipefail
export LC_ALL=C

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build=$repo/build
tree=$build/linux
cache=${DPUT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/dput}
CONFIG=${CONFIG:-default}
ARCH=${ARCH:-$(uname -m)}
JOBS=${JOBS:-$(nproc)}
# A direct child of the source tree: then kbuild names the sources "../…", and
# ccache finds the same objects for a clone in any other directory.
obj=$tree/obj-x86_64-$CONFIG
kernel=$obj/arch/x86/boot/bzImage
headers=$obj/usr/include
initramfs=$build/initramfs-$CONFIG.cpio
logs=$build/logs
export KERNEL_SRC=${KERNEL_SRC:-} ACCEL=${ACCEL:-} TESTS=${TESTS:-} ARCH CONFIG JOBS
# Depend mode spares a run of the preprocessor for each file that is not cached.
export CCACHE_DIR=$cache/ccache CCACHE_BASEDIR=$tree CCACHE_NOHASHDIR=1 CCACHE_DEPEND=1
export QUILT_PATCHES=$repo/patches QUILT_SERIES=$repo/series

# Nothing of the caller's make or kernel build may leak into ours.
unset MAKEFLAGS MFLAGS MAKEOVERRIDES MAKELEVEL O V CROSS_COMPILE CC CFLAGS LDFLAGS \
	KBUILD_OUTPUT KCFLAGS KCPPFLAGS KAFLAGS INSTALL_PATH GREP_OPTIONS

say() { printf '%s\n' "$*" >&2; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# usage "$@": --help prints the script's head comment.
usage() {
	[[ ${1:-} == --help || ${1:-} == -h ]] || return 0
	sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$0"
	exit 0
}

# need_space DIR GIB WHAT-FOR
need_space() {
	local free
	mkdir -p "$1" || die "cannot create $1"
	free=$(df -Pk "$1" | awk 'NR == 2 { print $4 }')
	((free >= $2 * 1048576)) ||
		die "$1 has $((free / 1048576)) GiB free; $3 needs $2 GiB"
}

# One writer at a time in build/; released when the script ends.
take_lock() {
	[[ -z ${DPUT_LOCKED:-} ]] || return 0
	mkdir -p "$build"
	exec 9> "$build/.lock"
	flock -n 9 || die "another run is at work in $build; wait for it to end"
	export DPUT_LOCKED=1
}
drop_lock() {
	exec 9>&-
	unset DPUT_LOCKED
}

series_patches() { sed 's/[[:space:]]*#.*//; s/[[:space:]].*//; /^$/d' "$repo/series"; }

# touched_files PATCH…: every path that the patches create, change, remove or rename.
touched_files() {
	(($#)) || return 0
	sed -n -E '/^-- $/q; s@^(---|\+\+\+) [ab]/([^\t]*).*@\2@p; s@^rename (from|to) @@p' "$@" | sort -u
}

# version TREE: "7.3.4" (without EXTRAVERSION), or nothing if TREE is no kernel tree.
version() {
	[[ -f $1/Makefile && -f $1/Kbuild && -d $1/mm && -d $1/arch/x86 ]] || return 0
	awk -F' *= *' '/^(VERSION|PATCHLEVEL|SUBLEVEL) *=/ { v = v (v == "" ? "" : ".") $2 } END { print v }' \
		<(head -n 6 "$1/Makefile")
}

# check_version TREE NAME
check_version() {
	local v
	v=$(version "$1")
	[[ -n $v ]] || die "$2 is not a Linux source tree"
	[[ $v == 7.3 || $v == 7.3.* ]] || die "$2 is Linux $v; the series is made for 7.3.y"
}
