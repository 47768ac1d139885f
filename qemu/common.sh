# shellcheck shell=bash disable=SC2034
# Sourced by every script in this directory: where things are, how to say no.
set -euo pipefail
export LC_ALL=C
unset CDPATH

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Another build directory (qemu/bisect has one of its own), and whose selftests.
build=$(realpath -m "${DPUT_BUILD:-$repo/build}")
selftests=${DPUT_SELFTESTS:-$repo/selftests}
# DPUT_TREE=base: Linux without the series, for qemu/regress to compare with.
DPUT_TREE=${DPUT_TREE:-linux}
tree=$build/$DPUT_TREE
cache=${DPUT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/dput}
CONFIG=${CONFIG:-default}
ARCH=${ARCH:-$(uname -m)}
[[ $ARCH != aarch64 ]] || ARCH=arm64
JOBS=${JOBS:-$(nproc)}

# What differs between architectures: kbuild's name, the compiler's, what QEMU
# boots, QEMU's program, Debian's names, and the guest's two ports: for messages
# of its kernel, and for what its programs print.
architectures='x86_64 i386 arm64 riscv64 s390x ppc64le'
console_port=ttyS0 output_port=hvc0
case $ARCH in
x86_64) karch=x86_64 triple=x86_64-linux-gnu image=arch/x86/boot/bzImage system=x86_64 debarch=amd64 output_port=ttyS1 ;;
i386) karch=i386 triple=i686-linux-gnu image=arch/x86/boot/bzImage system=i386 debarch=i386 output_port=ttyS1 ;;
arm64) karch=arm64 triple=aarch64-linux-gnu image=arch/arm64/boot/Image system=aarch64 debarch=arm64 console_port=ttyAMA0 ;;
riscv64) karch=riscv triple=riscv64-linux-gnu image=arch/riscv/boot/Image system=riscv64 debarch=riscv64 ;;
s390x) karch=s390 triple=s390x-linux-gnu image=arch/s390/boot/bzImage system=s390x debarch=s390x console_port=ttysclp0 ;;
ppc64le) karch=powerpc triple=powerpc64le-linux-gnu image=vmlinux system=ppc64 debarch=ppc64el console_port=hvc0 output_port=hvc1 ;;
*) echo "ARCH=$ARCH: there is no guest for it, only for $architectures" >&2; exit 1 ;;
esac
variant=$CONFIG
[[ $ARCH == x86_64 ]] || variant=$ARCH-$CONFIG
# Empty if gcc itself makes code for ARCH.
cross=$triple-
[[ $(gcc -dumpmachine 2> /dev/null) != "${triple%%-*}"-* ]] || cross=

# A direct child of the source tree: then kbuild names the sources "../…", and
# ccache finds the same objects for a clone in any other directory.
obj=$tree/obj-$ARCH-$CONFIG
kernel=$obj/$image
headers=$obj/usr/include
initramfs=${DPUT_INITRAMFS:-$build/initramfs-$variant.cpio}
logs=$build/logs
prepared=$build/prepared
[[ $DPUT_TREE == linux ]] || prepared+=-$DPUT_TREE
export KERNEL_SRC=${KERNEL_SRC:-} DPUT_TREE ACCEL=${ACCEL:-} TESTS=${TESTS:-} ARCH CONFIG JOBS
# Depend mode spares a run of the preprocessor for each file that is not cached.
export CCACHE_DIR=$cache/ccache CCACHE_BASEDIR=$tree CCACHE_NOHASHDIR=1 CCACHE_DEPEND=1
export QUILT_PATCHES=$repo/patches QUILT_SERIES=$repo/series

# Nothing of the caller's make or kernel build may leak into ours.
unset MAKEFLAGS MFLAGS MAKEOVERRIDES MAKELEVEL O V CROSS_COMPILE CC CFLAGS LDFLAGS \
	KBUILD_OUTPUT KCFLAGS KCPPFLAGS KAFLAGS INSTALL_PATH GREP_OPTIONS \
	LLVM LLVM_IAS LD AR HOSTCC HOSTCFLAGS KCONFIG_CONFIG KCONFIG_ALLCONFIG KBUILD_EXTMOD

say() { printf '%s\n' "$*" >&2; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# new_dir DIR: a directory that nobody has yet, by a name of mktemp -u. Whoever is to
# remove it knows the name before it is there: an interrupt in between leaves nothing.
# Nor does one that would end mkdir when it has made it, as if it had failed.
new_dir() { (trap '' INT TERM HUP; exec mkdir -m 700 -- "$1"); }

# at_end COMMAND: runs it when the script ends, by a signal as well. One that comes
# meanwhile ends neither the command nor what it started.
at_end() {
	# shellcheck disable=SC2064 # now
	trap "trap '' INT TERM HUP; $1" EXIT
	# Here, too: the trap for EXIT may have begun, and does not begin again.
	# shellcheck disable=SC2064 # now
	trap "trap '' INT TERM HUP; $1; exit 130" INT TERM HUP
}

# in_own_group COMMAND…: in the background and without a terminal to read from, so that
# a signal to this script ends the wait; end_groups, first, makes it end all that the
# command started as well. It takes the place of make_tmp's at_end.
in_own_group() {
	local status=0
	set -m # with a process group of its own
	"$@" < /dev/null &
	group=$!
	set +m
	wait "$group" || status=$?
	group=''
	return $status
}
end_groups() {
	group=''
	# shellcheck disable=SC2016 # then
	at_end '[[ -z $group ]] || kill -TERM -- "-$group" 2> /dev/null || true'
}

# make_tmp TEMPLATE: a directory of this run's own, $tmp, that goes when the run ends.
make_tmp() {
	tmp=''
	# shellcheck disable=SC2016 # then
	at_end 'rm -rf "$tmp"'
	tmp=$(mktemp -u "$1")
	new_dir "$tmp" || { tmp=''; exit 1; }
}

[[ $JOBS =~ ^[1-9][0-9]*$ ]] || die "JOBS=$JOBS: not a number of compilers"
[[ $CONFIG == default || -f $repo/kernel-config/$CONFIG.config ]] ||
	die "CONFIG=$CONFIG: there is no kernel-config/$CONFIG.config; there are: default$(
		cd "$repo/kernel-config" && for f in *.config; do [[ " common $architectures " == *" ${f%.config} "* ]] || printf ' %s' "${f%.config}"; done)"

# trait NAME DEFAULT: what the line "# dput: NAME=VALUE…" in CONFIG's fragment says of its guest.
trait() {
	local value=''
	[[ $CONFIG == default ]] ||
		value=$(sed -n "s/^# dput:.* $1=\([0-9]*\).*/\1/p" "$repo/kernel-config/$CONFIG.config")
	echo "${value:-$2}"
}

# Neither kbuild nor quilt can work in such a place; better said before a download.
[[ $build != *[[:space:]:]* ]] || die "$build: a kernel cannot be built where the path has a space or a colon; clone to another place, or set DPUT_BUILD"

# usage "$@": --help prints the script's head comment.
usage() {
	[[ ${1:-} == --help || ${1:-} == -h ]] || return 0
	sed -n '2,/^[^#]/{/^# shellcheck /d; s/^# \{0,1\}//p}' "$0"
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

keyring=/usr/share/keyrings/debian-archive-keyring.gpg
# The Debian mirror: DPUT_MIRROR, or the one in the system's apt sources, if it is Debian.
mirror() {
	local site
	# Other distributions' mirrors have no Debian.
	[[ -n ${DPUT_MIRROR:-} ]] || grep -qsx 'ID=debian' /etc/os-release || { echo https://deb.debian.org/debian; return; }
	# shellcheck disable=SC2016 # apt's variable
	site=${DPUT_MIRROR:-$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' |
		grep -v security | sort | uniq -c | sort -rn | awk 'NR == 1 { print $2 }')}
	[[ -n $site ]] || die "no mirror in the system's apt sources: set DPUT_MIRROR to a Debian mirror's URL"
	echo "$site"
}

# is_checkout DIR: of git? 1 if not; 2, and git's words, if git will not say.
is_checkout() {
	local top
	[[ -e $1/.git ]] || return 1
	top=$(git -C "$1" rev-parse --show-toplevel) || { say "${0##*/}: $1 has a .git, but git does not read it"; return 2; }
	[[ $top == "$1" ]]
}

# spec_libraries: gen_init_cpio's lines for the libraries that ldd's output names.
spec_libraries() {
	local lib dir
	{ grep -oE '/[^ :]*\.so[^ :]*( |$)' || true; } | sort -u | while read -r lib; do
		dir=$(dirname "$lib")
		while [[ $dir != / ]]; do echo "dir $dir 755 0 0"; dir=$(dirname "$dir"); done | tac
		echo "file $lib $(realpath "$lib") 755 0 0"
	done | awk '!seen[$0]++'
}

series_patches() { [[ $DPUT_TREE == base ]] || sed 's/[[:space:]]*#.*//; s/[[:space:]].*//; /^$/d' "$repo/series"; }

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

# base_file PATH: that file before the first patch, of which quilt has a copy; fails
# if the base has no such file.
base_file() {
	local p
	while read -r p; do
		[[ ! -s $tree/.pc/$p/$1 ]] || { cat "$tree/.pc/$p/$1"; return; }
		# An empty one stands for a file that was not there.
		[[ ! -e $tree/.pc/$p/$1 ]] || return 1
	done < <(cat "$tree/.pc/applied-patches" 2> /dev/null)
	[[ -f $tree/$1 ]] && cat "$tree/$1"
}

# base_files DIR PATCH…: into DIR, the base's version of what the patches touch.
base_files() {
	local f
	touched_files "${@:2}" | while read -r f; do
		mkdir -p "$1/$(dirname "$f")"
		base_file "$f" > "$1/$f" || rm "$1/$f"
		[[ ! -x $tree/$f || ! -f $1/$f ]] || chmod +x "$1/$f"
	done
}

# Git as it is, whatever the user has configured.
plain_git() { GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null git -c core.abbrev=12 "$@"; }

# base_repo DIR PATCH…: a git repository of base_files; its only commit is "base".
base_repo() {
	mkdir -p "$1"
	plain_git init -q -b base "$1"
	base_files "$1" "${@:2}"
	plain_git -C "$1" add -A -f
	plain_git -C "$1" -c user.name=base -c user.email=base@localhost commit -q --allow-empty -m "Linux $(version "$tree")"
}

# as_mbox NAME ADDRESS PATCH…: for git am. The patches name no author.
as_mbox() {
	local f
	for f in "${@:3}"; do
		printf 'From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001\nFrom: %s <%s>\n' "$1" "$2"
		cat "$f"
		echo
	done
}

# checkpatch FILE [OPTION…]: what checkpatch.pl --strict says about a patch.
# New files are covered by the series' own MAINTAINERS entry, which a patch by
# itself does not show, and there is no history here to look up what a Fixes: tag
# names. mm/ breaks long parameter lists by two tabs. Selftests use the harness, whose
# macros are statements and declarations, and poke at memory that others change.
checkpatch() {
	local ignore=FILE_PATH_CHANGES,PARENTHESIS_ALIGNMENT,UNKNOWN_COMMIT_ID
	if ! touched_files "$1" | grep -qv '^tools/testing/selftests/'; then
		ignore+=,BIT_MACRO,BRACES,COMPLEX_MACRO,MACRO_ARG_PRECEDENCE,MACRO_ARG_REUSE,SPACING
		ignore+=,MULTISTATEMENT_MACRO_USE_DO_WHILE,PREFER_DEFINED_ATTRIBUTE_MACRO,VOLATILE,ENOSYS
		ignore+=,EMBEDDED_FUNCTION_NAME,STATIC_CONST_CHAR_ARRAY,MACRO_WITH_FLOW_CONTROL
	fi
	# It looks for .git where it is run, and is less strict then: not this repository's.
	# What goes to stderr is about the SPDX checker's own dependencies.
	GIT_DIR=/nonexistent perl "$tree/scripts/checkpatch.pl" --root="$tree" --strict --no-summary --quiet \
		--ignore "$ignore" "${@:2}" "$1" 2> /dev/null
}
