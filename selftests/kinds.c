// SPDX-License-Identifier: GPL-2.0
/*
 * dput(2) of every kind of memory, in each of the states it can be in.
 *
 * Two tables: what is copied, with what each page holds and what is done to it
 * first, and what is refused. Every test runs on every line of its table, in
 * each direction. A new kind is a new line.
 */

#include "kselftest_harness.h"
#include <fcntl.h>
#include <glob.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <linux/io_uring.h>
#include <linux/mempolicy.h>
#include <linux/perf_event.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <time.h>
#include "dput_util.h"

#ifndef PR_SET_MDWE
#define PR_SET_MDWE		65
#define PR_MDWE_REFUSE_EXEC_GAIN 1
#endif

#define THP		"/sys/kernel/mm/transparent_hugepage/"
#define HUGETLB		"/proc/sys/vm/nr_hugepages"
#define NUMAB		"/proc/sys/kernel/numa_balancing"
#define NUMAB_DEBUG	"/sys/kernel/debug/sched/numa_balancing/"
#define UNPOISON	HWPOISON "unpoison-pfn"
#define SWAP_SIZE	(48UL << 20)

#define PM_UFFD_WP	(1ULL << 57)

#define FIXED		(MAP_PRIVATE | MAP_FIXED_NOREPLACE)
#define PMD_SIZED	1UL		/* for .folio: as large as huge pages are here */
#define NR		16UL		/* pages of a kind, unless it says otherwise */

/* Who stamped a page */
enum seed { ANON = 1, FILE_PAGE, SAME, NEIGHBOUR, OLD, FIRST, SECOND, THIRD };

/* A range of some kind, and how to make it; executed in the source's process */
struct area {
	unsigned long addr;		/* a suggestion, unless the kind is fixed */
	size_t nr;
	const void *kind;
	char why[64];			/* it cannot be had here */
};

typedef int (*area_fn)(struct area *a);

struct way;				/* from where to where */

enum blocked { NOTHING, WRITES, READS };	/* until settled */

FIXTURE(kind)
{
	struct peer me, a, b;
	struct peer *src, *dst;
	struct area area;
	const struct way *way;
	unsigned long d, e, ps;		/* e: for a third copy */
	size_t len;
};

/*
 * What a page holds, by one character in .pages, which are repeated:
 * a	what was written to it
 * f	what the file has
 * k	written, the same in each page
 * z	nothing, or zeroes
 * m	the same, but the source would wait for it
 * x	it cannot be accessed, on either side
 */
FIXTURE_VARIANT(kind)
{
	const char *pages;
	area_fn map;			/* default: private anonymous memory */
	area_fn state;			/* what happens to it, when written */
	int advice;			/* for madvise() */
	enum file_where where;		/* the file is */
	const char *perms;		/* given when written */
	const char *has;		/* this flag in smaps, or it was not made */
	size_t nr;			/* pages */
	size_t eof;			/* pages that the file has */
	size_t folio;			/* size of the folios, or PMD_SIZED */
	enum blocked blocks;
	int edge_err;			/* of a partial page: default EFAULT */
	bool swap;			/* needs some */
	bool fixed;			/* its address is its own */
	bool within;			/* EACCES into another process */
};

static struct peer here = { .sock = -1 };	/* the process this runs in */

/* Descriptors that keep a state */
static int held[16], nr_held;

static int hold(int fd)
{
	if (fd >= 0)
		held[nr_held++] = fd;
	return fd < 0 ? -1 : 0;
}

static int no(struct area *a, const char *why)
{
	snprintf(a->why, sizeof(a->why), "%s: %s", why, strerror(errno));
	return -1;
}

static size_t area_len(const struct area *a)
{
	return a->nr * page_size();
}

static void *page_at(const struct area *a, size_t i)
{
	return (void *)(a->addr + i * page_size());
}

static char code(const FIXTURE_VARIANT(kind) *k, size_t i)
{
	if (k->eof && i >= k->eof)
		return 'x';
	return k->pages[i % strlen(k->pages)];
}

static int map_at(struct area *a, int prot, int flags, int fd, off_t off)
{
	void *p = mmap((void *)a->addr, area_len(a), prot, flags, fd, off);

	return p == (void *)a->addr ? 0 : -1;
}

/* --- Kinds that are copied ---------------------------------------------- */

static int map_anon(struct area *a)
{
	return map_at(a, RW, FIXED | MAP_ANONYMOUS, -1, 0);
}

static int map_growsdown(struct area *a)
{
	return map_at(a, RW, FIXED | MAP_ANONYMOUS | MAP_GROWSDOWN, -1, 0);
}

static int map_noreserve(struct area *a)
{
	return map_at(a, RW, FIXED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

static size_t folio_size(const FIXTURE_VARIANT(kind) *k)
{
	return k->folio == PMD_SIZED ? thp_size() : k->folio;
}

/* As NEED_LARGE(): in a guest of our own it is no reason to skip. */
static int need_large(struct area *a, const char *why)
{
	bool skip = why && !getenv("DPUT_DISPOSABLE");

	snprintf(a->why, sizeof(a->why), "%s", skip ? why : "");
	return why ? -1 : 0;
}

/* Stamped as what is written to will be */
static int map_folios(struct area *a)
{
	return need_large(a, folios_map(&here, a->addr, area_len(a), folio_size(a->kind)));
}

static int map_huge_zero_page(struct area *a)
{
	return need_large(a, folios_map_zero(&here, a->addr, area_len(a)));
}

/* The end of a piece that malloc() does not know of */
static int map_heap(struct area *a)
{
	/* So much that what malloc() knows of is not next to the area */
	unsigned long size = (1UL << 20) + area_len(a);
	char *p = sbrk(size);

	if (p == (void *)-1)
		return -1;
	a->addr = ((unsigned long)p + size - area_len(a)) & ~(page_size() - 1);
	return 0;
}

/* Where the stack gets when it has grown some more */
static int map_stack(struct area *a)
{
	unsigned long sp = (unsigned long)__builtin_frame_address(0);

	a->addr = (sp & ~(page_size() - 1)) - (256UL << 10) - area_len(a);
	return 0;
}

/* A private mapping, but not from the start of the file */
static int map_file(struct area *a)
{
	const FIXTURE_VARIANT(kind) *k = a->kind;
	size_t nr = k->eof ?: a->nr, ps = page_size(), len = (nr + 1) * ps;
	int fd = file_open(k->where), ret;
	char *p;

	if (fd < 0)
		return no(a, "no file there");
	if (k->where == DISK && !file_on_disk(fd)) {
		close(fd);
		errno = ENODEV;
		return no(a, "the current directory is not on a disk");
	}
	if (ftruncate(fd, len))
		return -1;
	p = mmap(NULL, len, RW, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED || peer_stamp(&here, (unsigned long)p + ps, nr, 0, 1, FILE_PAGE))
		return -1;
	munmap(p, len);
	ret = map_at(a, RW, FIXED, fd, ps);
	close(fd);
	return ret;
}

/* --- and their states --------------------------------------------------- */

static int read_all(struct area *a)
{
	const FIXTURE_VARIANT(kind) *k = a->kind;
	size_t i;

	for (i = 0; i < a->nr; i++)
		if (code(k, i) != 'x')
			*(volatile char *)page_at(a, i);
	return 0;
}

static int swapped(struct area *a)
{
	return pages_out(&here, a->addr, a->nr) ? 0 : -1;
}

/* Read ahead, but not mapped: the page tables have swap entries. */
static int in_swap_cache(struct area *a)
{
	unsigned char vec[NR];
	size_t i;
	int n;

	if (swapped(a) || madvise((void *)a->addr, area_len(a), MADV_WILLNEED))
		return -1;
	/* mincore() looks into the swap cache. */
	for (i = 0, n = 0; i < a->nr && n < 60000; n++) {
		if (mincore((void *)a->addr, area_len(a), vec))
			return -1;
		while (i < a->nr && vec[i] & 1)
			i++;
		usleep(1000);
	}
	return i == a->nr && pages_swapped(&here, a->addr, a->nr) == a->nr ? 0 : -1;
}

static int ksm_merged(struct area *a)
{
	size_t i;

	if (ksm_missing() || madvise((void *)a->addr, area_len(a), MADV_MERGEABLE))
		return no(a, ksm_missing() ?: "MADV_MERGEABLE failed");
	ksm_scan();
	for (i = 0; i < a->nr; i++)
		if (!(kpageflags(proc_pfn(getpid(), (unsigned long)page_at(a, i))) & KPF_KSM))
			return -1;
	return 0;
}

static int pinned(struct area *a)
{
	return hold(pin_memory(a->addr, area_len(a))) ? no(a, "io_uring") : 0;
}

static int guarded(struct area *a)
{
	size_t i;

	for (i = 0; i < a->nr; i++)
		if (code(a->kind, i) == 'x' &&
		    madvise(page_at(a, i), page_size(), MADV_GUARD_INSTALL))
			return no(a, "no guard regions");
	return 0;
}

static int soft_clean(struct area *a)
{
	if (!soft_dirty_supported())
		return no(a, "no soft-dirty tracking");
	return proc_pagemap(getpid(), a->addr) & PM_SOFT_DIRTY ? -1 : 0;
}

static unsigned long poisoned_pfn[NR];
static int nr_poisoned;

static void survive(int sig)
{
}

/* The data is lost, as after a memory error; unpoison() gives the page back. */
static int poison(unsigned long addr)
{
	struct sigaction sa = { .sa_handler = survive }, old;
	int ret;

	poisoned_pfn[nr_poisoned++] = proc_pfn(getpid(), addr);
	/* As if the caller had touched it, it gets a signal. */
	sigaction(SIGBUS, &sa, &old);
	ret = madvise((void *)addr, page_size(), MADV_HWPOISON);
	sigaction(SIGBUS, &old, NULL);
	return ret;
}

static int poisoned(struct area *a)
{
	size_t i;

	/* Or they would be lost until the next boot. */
	if (access(UNPOISON, W_OK))
		return no(a, UNPOISON);
	errno = EPERM;
	if (!getenv("DPUT_DISPOSABLE"))
		return no(a, "they may be lost, and DPUT_DISPOSABLE is not set");
	for (i = 0; i < a->nr; i++) {
		if (code(a->kind, i) != 'x')
			continue;
		if (peer_stamp(&here, a->addr, i + 1, i, 1, OLD) ||
		    poison((unsigned long)page_at(a, i)))
			return no(a, "no MADV_HWPOISON");
	}
	return 0;
}

static void unpoison(void)
{
	char val[32];

	while (nr_poisoned) {
		snprintf(val, sizeof(val), "%#lx", poisoned_pfn[--nr_poisoned]);
		setting_write(UNPOISON, val);
	}
}

static int uffd_register(struct area *a, uint64_t features, uint64_t mode)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	struct uffdio_register reg = {
		.range = { a->addr, area_len(a) }, .mode = mode,
	};
	int fd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (hold(fd) || ioctl(fd, UFFDIO_API, &api))
		return no(a, "no userfaultfd of that mode");
	return ioctl(fd, UFFDIO_REGISTER, &reg) ? -1 : fd;
}

static int uffd_missing(struct area *a)
{
	return uffd_register(a, 0, UFFDIO_REGISTER_MODE_MISSING) < 0 ? -1 : 0;
}

/* Lost as after a memory error, but by a marker, with no page */
static int uffd_poisoned(struct area *a)
{
	struct uffdio_poison lost = { .range.len = page_size() };
	int fd = uffd_register(a, UFFD_FEATURE_POISON, UFFDIO_REGISTER_MODE_MISSING);
	size_t i;

	for (i = 0; fd >= 0 && i < a->nr; i++) {
		lost.range.start = (unsigned long)page_at(a, i);
		if (code(a->kind, i) == 'x' && ioctl(fd, UFFDIO_POISON, &lost))
			return -1;
	}
	return fd < 0 ? -1 : 0;
}

static int uffd_minor(struct area *a)
{
	return uffd_register(a, UFFD_FEATURE_MINOR_SHMEM, UFFDIO_REGISTER_MODE_MINOR) < 0 ? -1 : 0;
}

/* Also of pages that are not there: by a marker */
static int uffd_wp(struct area *a)
{
	struct uffdio_writeprotect wp = {
		.range = { a->addr, area_len(a) }, .mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};
	int fd = uffd_register(a, UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_HUGETLBFS_SHMEM,
			       UFFDIO_REGISTER_MODE_WP);
	size_t i;

	if (fd < 0 || ioctl(fd, UFFDIO_WRITEPROTECT, &wp))
		return -1;
	for (i = 0; i < a->nr; i++)
		if (!(proc_pagemap(getpid(), (unsigned long)page_at(a, i)) & PM_UFFD_WP))
			return -1;
	return 0;
}

static int uffd_wp_swapped(struct area *a)
{
	return swapped(a) ? -1 : uffd_wp(a);
}

static int uffd_rwp(struct area *a)
{
#ifdef UFFDIO_REGISTER_MODE_RWP
	struct uffdio_rwprotect rwp = {
		.range = { a->addr, area_len(a) }, .mode = UFFDIO_RWPROTECT_MODE_RWP,
	};
	int fd = uffd_register(a, UFFD_FEATURE_RWP, UFFDIO_REGISTER_MODE_RWP);

	return fd < 0 || ioctl(fd, UFFDIO_RWPROTECT, &rwp) ? -1 : 0;
#else
	errno = EINVAL;
	return no(a, "no userfaultfd of that mode");
#endif
}

/* How often has NUMA balancing gone through this process's memory? */
static long numa_scans(void)
{
	FILE *f = fopen("/proc/self/sched", "r");
	char line[128];
	long ret = -1;

	while (f && fgets(line, sizeof(line), f))
		if (!strncmp(line, "mm->numa_scan_seq", 17))
			ret = atol(strchr(line, ':') + 1);
	if (f)
		fclose(f);
	return ret;
}

static int run_on_node(int node)
{
	unsigned int cpu, on;
	cpu_set_t set;

	for (cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		CPU_ZERO(&set);
		CPU_SET(cpu, &set);
		if (!sched_setaffinity(0, sizeof(set), &set) && !getcpu(NULL, &on) &&
		    (int)on == node)
			return 0;
	}
	return -1;
}

/*
 * Unmapped by NUMA balancing, for the next access to tell where it comes from. It does
 * so with what is not on the node of a process with one thread.
 */
static int numa_hinting(struct area *a)
{
	long scans = numa_scans(), updates = vmstat("numa_pte_updates");
	int nodes[512], status[512], ret = -1;
	struct timespec start, now;
	void *pages[512];
	cpu_set_t set;
	size_t i;

	if (scans < 0 || access(NUMAB_DEBUG "scan_size_mb", F_OK) ||
	    memory_nodes(nodes) < 2 || nodes[0] != 0 || nodes[1] != 1)
		return no(a, "no NUMA balancing between two nodes");
	for (i = 0; i < a->nr; i++) {
		pages[i] = page_at(a, i);
		nodes[i] = 1;
	}
	/* What is said of each page differs for the tails of a folio: ask again. */
	if (sched_getaffinity(0, sizeof(set), &set) || run_on_node(0) ||
	    syscall(__NR_move_pages, 0, a->nr, pages, nodes, status, MPOL_MF_MOVE) < 0 ||
	    syscall(__NR_move_pages, 0, a->nr, pages, NULL, status, 0))
		return -1;
	for (i = 0; i < a->nr; i++)
		if (status[i] != 1)
			goto out;
	/* It is the scheduler's tick that sets it off; once is from anywhere to the end. */
	setting_write(NUMAB, "1");
	clock_gettime(CLOCK_MONOTONIC, &start);
	do {
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while (numa_scans() < scans + 2 && now.tv_sec < start.tv_sec + 120);
	setting_write(NUMAB, "0");
	if (numa_scans() >= scans + 2 && vmstat("numa_pte_updates") > updates)
		ret = 0;
out:
	sched_setaffinity(0, sizeof(set), &set);
	return ret;
}

static int locked(struct area *a)
{
	return mlock((void *)a->addr, area_len(a));
}

static int locked_on_fault(struct area *a)
{
	return syscall(__NR_mlock2, a->addr, area_len(a), 1 /* MLOCK_ONFAULT */);
}

static int bound(struct area *a)
{
	unsigned long mask = 1;

	if (syscall(__NR_mbind, a->addr, area_len(a), MPOL_BIND, &mask, 8, 0))
		return no(a, "no memory policies");
	return 0;
}

static int named(struct area *a)
{
	if (prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, a->addr, area_len(a), "dput-kind"))
		return no(a, "no names");
	return 0;
}

static int sealed(struct area *a)
{
	return syscall(__NR_mseal, a->addr, area_len(a), 0) ? no(a, "no mseal()") : 0;
}

static int pkey = -1;

static int with_pkey(struct area *a)
{
	pkey = syscall(__NR_pkey_alloc, 0, 0);
	if (pkey < 0)
		return no(a, "no protection keys");
	return syscall(__NR_pkey_mprotect, a->addr, area_len(a), RW, pkey);
}

#define KIND(_name, ...)	FIXTURE_VARIANT_ADD(kind, _name) { __VA_ARGS__ }

#define KB		1024UL

KIND(anon, .pages = "a");
KIND(anon_untouched, .pages = "z");
KIND(anon_zero_page, .pages = "z", .state = read_all);
KIND(anon_some_written, .pages = "azz");
KIND(anon_noreserve, .pages = "az", .map = map_noreserve, .has = "nr");
KIND(anon_16k, .pages = "a", .map = map_folios, .folio = 16 * KB);
KIND(anon_64k, .pages = "a", .map = map_folios, .folio = 64 * KB, .nr = 64);
KIND(anon_huge, .pages = "a", .map = map_folios, .folio = PMD_SIZED);
KIND(anon_huge_zero_page, .pages = "z", .map = map_huge_zero_page, .folio = PMD_SIZED);
KIND(heap, .pages = "az", .map = map_heap, .fixed = true);
KIND(stack, .pages = "a", .map = map_stack, .has = "gd", .fixed = true);
KIND(growsdown, .pages = "az", .map = map_growsdown, .has = "gd");

KIND(prot_none, .pages = "az", .perms = "---");
KIND(prot_read, .pages = "az", .perms = "r--");
KIND(prot_exec, .pages = "az", .perms = "r-x", .within = true);
KIND(prot_all, .pages = "az", .perms = "rwx", .within = true);

#define FILE_KINDS(_name, ...)							\
KIND(_name, .pages = "f", .map = map_file, __VA_ARGS__);			\
KIND(_name##_read, .pages = "f", .map = map_file, .state = read_all, __VA_ARGS__); \
KIND(_name##_written, .pages = "a", .map = map_file, __VA_ARGS__);		\
KIND(_name##_some_written, .pages = "fa", .map = map_file, .state = read_all,	\
	__VA_ARGS__);								\
KIND(_name##_readonly, .pages = "f", .map = map_file, .perms = "r--", __VA_ARGS__); \
KIND(_name##_text, .pages = "f", .map = map_file, .perms = "r-x", .within = true, \
	.state = read_all, __VA_ARGS__);						\
KIND(_name##_past_eof, .pages = "fa", .map = map_file, .eof = 11, .state = read_all, \
	__VA_ARGS__)

FILE_KINDS(memfd, .where = MEMFD);
FILE_KINDS(disk, .where = DISK);
KIND(tmpfs_some_written, .pages = "fa", .map = map_file, .where = TMPFS);

KIND(swapped, .pages = "a", .state = swapped, .swap = true);
KIND(swapped_64k, .pages = "a", .map = map_folios, .folio = 64 * KB, .state = swapped,
	.swap = true);
KIND(swapped_huge, .pages = "a", .map = map_folios, .folio = PMD_SIZED,
	.state = swapped, .swap = true);
KIND(swapped_file, .pages = "a", .map = map_file, .where = DISK, .state = swapped,
	.swap = true);
KIND(swap_cache, .pages = "a", .state = in_swap_cache, .swap = true);
KIND(ksm, .pages = "k", .state = ksm_merged, .has = "mg");
KIND(pinned, .pages = "a", .state = pinned);
KIND(pinned_huge, .pages = "a", .map = map_folios, .folio = PMD_SIZED,
	.state = pinned);
KIND(pinned_file, .pages = "a", .map = map_file, .where = DISK, .state = pinned);
KIND(guarded, .pages = "axz", .state = guarded, .has = "gu");
KIND(guarded_file, .pages = "fx", .map = map_file, .where = DISK, .state = guarded,
	.has = "gu");
KIND(soft_clean, .pages = "a", .state = soft_clean);
KIND(poisoned, .pages = "aaax", .state = poisoned, .edge_err = EHWPOISON);
KIND(lazily_freed, .pages = "a", .advice = MADV_FREE);
KIND(uffd_missing, .pages = "am", .state = uffd_missing, .has = "um", .blocks = READS);
KIND(uffd_poisoned, .pages = "aaax", .state = uffd_poisoned, .has = "um",
	.edge_err = EHWPOISON);
KIND(uffd_minor, .pages = "fa", .map = map_file, .where = MEMFD, .state = uffd_minor,
	.has = "ui", .blocks = READS);
KIND(uffd_wp, .pages = "az", .state = uffd_wp, .has = "uw", .blocks = WRITES);
KIND(uffd_wp_swapped, .pages = "a", .state = uffd_wp_swapped, .has = "uw",
	.blocks = WRITES, .swap = true);
KIND(uffd_wp_file, .pages = "fa", .map = map_file, .where = MEMFD, .state = uffd_wp,
	.has = "uw", .blocks = WRITES);
KIND(uffd_wp_huge, .pages = "a", .map = map_folios, .folio = PMD_SIZED,
	.state = uffd_wp, .has = "uw", .blocks = WRITES);
KIND(uffd_rwp, .pages = "a", .state = uffd_rwp, .has = "ur", .blocks = READS);
KIND(uffd_rwp_huge, .pages = "a", .map = map_folios, .folio = PMD_SIZED,
	.state = uffd_rwp, .has = "ur", .blocks = READS);
KIND(numa_hinting, .pages = "a", .state = numa_hinting);
KIND(numa_hinting_huge, .pages = "a", .map = map_folios, .folio = PMD_SIZED,
	.state = numa_hinting);

KIND(locked, .pages = "a", .state = locked, .has = "lo");
KIND(locked_on_fault, .pages = "az", .state = locked_on_fault, .has = "lf");
KIND(policy, .pages = "az", .state = bound);
KIND(name, .pages = "az", .state = named);
KIND(sealed, .pages = "az", .state = sealed, .has = "sl");
KIND(pkey, .pages = "a", .state = with_pkey);
KIND(pkey_untouched, .pages = "z", .state = with_pkey);
KIND(pkey_huge, .pages = "a", .map = map_folios, .folio = PMD_SIZED,
	.state = with_pkey);
KIND(pkey_file, .pages = "fa", .map = map_file, .where = DISK, .state = with_pkey);
KIND(hugepage, .pages = "az", .advice = MADV_HUGEPAGE, .has = "hg");
KIND(nohugepage, .pages = "az", .advice = MADV_NOHUGEPAGE, .has = "nh");
KIND(mergeable, .pages = "az", .advice = MADV_MERGEABLE, .has = "mg");
KIND(dontdump, .pages = "az", .advice = MADV_DONTDUMP, .has = "dd");
KIND(sequential, .pages = "fa", .map = map_file, .where = DISK,
	.advice = MADV_SEQUENTIAL, .has = "sr");
KIND(random, .pages = "fa", .map = map_file, .where = DISK, .advice = MADV_RANDOM,
	.has = "rr");

/* --- Making, looking at and writing to an area, in any process ---------- */

static int prot_of(const char *perms)
{
	return (perms[0] == 'r' ? PROT_READ : 0) | (perms[1] == 'w' ? PROT_WRITE : 0) |
	       (perms[2] == 'x' ? PROT_EXEC : 0);
}

static long op_make(void *arg)
{
	const FIXTURE_VARIANT(kind) *k = ((struct area *)arg)->kind;
	struct area *a = arg;
	size_t i;

	peer_self(&here);
	if (k->map ? k->map(a) : map_anon(a))
		return -1;
	for (i = 0; i < a->nr; i++) {
		unsigned long base = a->addr;

		if (code(k, i) == 'a' && peer_stamp(&here, base, i + 1, i, 1, ANON))
			return -1;
		base += i * page_size();
		if (code(k, i) == 'k' && peer_stamp(&here, base, 1, 0, 1, SAME))
			return -1;
	}
	if (k->advice && madvise((void *)a->addr, area_len(a), k->advice))
		return no(a, "no such advice");
	if (k->state && k->state(a))
		return -1;
	if (k->perms && mprotect((void *)a->addr, area_len(a), prot_of(k->perms)))
		return -1;
	if (k->has && !proc_vmflag(getpid(), a->addr, k->has))
		return -1;
	return 0;
}

/* Let go of what keeps others from the memory, or its pages from being freed. */
static long op_settle(void *arg)
{
	while (nr_held)
		close(held[--nr_held]);
	return 0;
}

static long op_clear(void *arg)
{
	struct area *a = arg;

	op_settle(NULL);
	/* With the neighbours; sealed memory stays. */
	munmap((void *)a->addr - page_size(), area_len(a) + 3 * page_size());
	if (pkey >= 0)
		syscall(__NR_pkey_free, pkey);
	pkey = -1;
	unpoison();
	return 0;
}

struct look {
	struct area a;			/* with the address to look at */
	size_t first, end;		/* pages */
	enum seed seed;			/* or 0: what was there at first */
};

static bool page_holds(const struct look *l, size_t i, char c)
{
	static const char zeroes[65536];
	unsigned long addr = l->a.addr + i * page_size();

	if (c == 'x')
		return !peer_readable(&here, addr);
	if (l->seed)
		return peer_check(&here, l->a.addr, i + 1, i, 1, l->seed) == -1;
	switch (c) {
	case 'a':
		return peer_check(&here, l->a.addr, i + 1, i, 1, ANON) == -1;
	case 'f':
		return peer_check(&here, l->a.addr, i + 1, i, 1, FILE_PAGE) == -1;
	case 'k':
		return peer_check(&here, addr, 1, 0, 1, SAME) == -1;
	}
	return peer_readable(&here, addr) && !memcmp((void *)addr, zeroes, page_size());
}

/* A signal takes the right to use keys away, and it was not returned from. */
static void look_prepare(void)
{
	peer_self(&here);
	if (pkey >= 0)
		pkey_set(pkey, 0);
}

/* The first page that is not as it should be, or -1 */
static long op_look(void *arg)
{
	struct look *l = arg;
	size_t i;

	look_prepare();
	for (i = l->first; i < l->end; i++)
		if (!page_holds(l, i, code(l->a.kind, i)))
			return i;
	return -1;
}

static long op_write(void *arg)
{
	struct look *l = arg;
	size_t i;

	look_prepare();
	for (i = l->first; i < l->end; i++)
		if (code(l->a.kind, i) != 'x' &&
		    peer_stamp(&here, l->a.addr, i + 1, i, 1, l->seed))
			return -1;
	return 0;
}

static long look(struct peer *p, const struct area *a, unsigned long addr, size_t first,
		 size_t end, enum seed seed)
{
	struct look l = { .a = *a, .first = first, .end = end, .seed = seed };
	long ret;

	l.a.addr = addr;
	ret = peer_call(p, op_look, &l, sizeof(l));
	return ret == -1 && errno == EPIPE ? -2 : ret;
}

static long write_all(struct peer *p, const struct area *a, unsigned long addr, enum seed seed)
{
	struct look l = { .a = *a, .end = a->nr, .seed = seed };

	l.a.addr = addr;
	return peer_call(p, op_write, &l, sizeof(l));
}

/* --- What /proc says of a mapping --------------------------------------- */

struct attrs {
	unsigned long start, end, off, ino;
	char perms[8], dev[16], name[160], flags[192], policy[64];
	long pkey;
};

/* The flags of a copy of a mapping that has these */
static void copied_flags(const char *from, char *to, size_t size)
{
	static const char * const lost[] = {
		"lo", "lf", "um", "uw", "ui", "ur", "sl", "gd", "sd",
	};
	char buf[192], *tok, *rest = buf;
	size_t i;

	snprintf(buf, sizeof(buf), "%s", from);
	*to = '\0';
	while ((tok = strsep(&rest, "\n "))) {
		for (i = 0; i < ARRAY_SIZE(lost); i++)
			if (!strcmp(tok, lost[i]))
				break;
		if (*tok && i == ARRAY_SIZE(lost))
			snprintf(to + strlen(to), size - strlen(to), " %s", tok);
	}
}

static int attrs_get(pid_t pid, unsigned long addr, struct attrs *at)
{
	char path[64], line[512];
	unsigned long s, e;
	bool in = false;
	FILE *f;

	memset(at, 0, sizeof(*at));
	snprintf(path, sizeof(path), "/proc/%d/smaps", pid);
	f = fopen(path, "r");
	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx", &s, &e) == 2) {
			in = s <= addr && e > addr;
			if (in && sscanf(line, "%lx-%lx %7s %lx %15s %lu %159[^\n]",
					 &at->start, &at->end, at->perms, &at->off, at->dev,
					 &at->ino, at->name) < 6)
				break;
		} else if (in && !strncmp(line, "VmFlags:", 8)) {
			snprintf(at->flags, sizeof(at->flags), "%.180s", line + 8);
		} else if (in && !strncmp(line, "ProtectionKey:", 14)) {
			at->pkey = atol(line + 14);
		}
	}
	if (f)
		fclose(f);
	snprintf(path, sizeof(path), "/proc/%d/numa_maps", pid);
	f = fopen(path, "r");
	while (f && fgets(line, sizeof(line), f))
		if (strtoul(line, NULL, 16) == at->start &&
		    sscanf(line, "%*x %63s", at->policy) != 1)
			at->policy[0] = '\0';
	if (f)
		fclose(f);
	return at->end ? 0 : -1;
}

/* --- Ways --------------------------------------------------------------- */

enum direction { PUT, GET, BETWEEN, SELF, WITHIN };	/* SELF: the caller; WITHIN: a child */
enum place { CONGRUENT, ODD, SAME_PLACE };		/* modulo the size of a huge page */

static const struct way {
	const char *name;
	enum direction dir;
	enum place place;
	bool short_list;
} ways[] = {
	{ "put", PUT, ODD, true },
	{ "get", GET, CONGRUENT, true },
	{ "between", BETWEEN, SAME_PLACE, true },
	{ "self", SELF, CONGRUENT, true },
	{ "within a child", WITHIN, ODD, true },
	{ "put, congruent", PUT, CONGRUENT },
	{ "put, same address", PUT, SAME_PLACE },
	{ "get, odd", GET, ODD },
	{ "get, same address", GET, SAME_PLACE },
	{ "between, odd", BETWEEN, ODD },
	{ "between, congruent", BETWEEN, CONGRUENT },
	{ "self, odd", SELF, ODD },
	{ "within a child, congruent", WITHIN, CONGRUENT },
};

#define NR_WAYS		ARRAY_SIZE(ways)
/* Each way has addresses of its own, which do not meet a 32-bit process' stack. */
#define STEP		(1UL << (__SIZEOF_LONG__ == 8 ? 26 : 25))
#define APART		(16 * STEP)

static char swap_path[64];
static const char *swap_error = "no swap file was made";

/* A file on the disk that the tests run on */
static const char *swap_make(void)
{
	int fd, ret;

	snprintf(swap_path, sizeof(swap_path), "./dput-swap-%d", getpid());
	fd = open(swap_path, O_RDWR | O_CREAT | O_EXCL, 0600);
	if (fd < 0)
		return "cannot write to the current directory";
	ret = file_on_disk(fd) ? posix_fallocate(fd, 0, SWAP_SIZE) : -1;
	close(fd);
	if (ret || swap_format(swap_path, SWAP_SIZE))
		return "no room for swap, or the current directory is not on a disk";
	return swap_refused(swap_path);
}

static void swap_unmake(void)
{
	swapoff(swap_path);
	unlink(swap_path);
}

static void folio_path(char *path, size_t size, size_t folio)
{
	snprintf(path, size, THP "hugepages-%zukB/enabled", folio >> 10);
}

static size_t folios[] = { 16 * KB, 64 * KB, 0 };	/* and that of huge pages */

static void __attribute__((constructor)) prepare(void)
{
	char path[96];
	int i;

	if (!dput_supported() || geteuid() || nothing_runs())
		return;
	folios[2] = thp_size();
	undo_also(swap_unmake);
	swap_error = swap_make();
	ksm_save();
	setting_save(HUGETLB);
	setting_save(THP "enabled");
	setting_save(THP "defrag");
	setting_save(KHUGEPAGED_SLEEP);
	setting_save(THP "use_zero_page");
	setting_save(NUMAB);
	setting_save(NUMAB_DEBUG "scan_delay_ms");
	setting_save(NUMAB_DEBUG "scan_period_min_ms");
	setting_save(NUMAB_DEBUG "scan_size_mb");
	for (i = 0; i < 3; i++) {
		folio_path(path, sizeof(path), folios[i]);
		setting_save(path);
	}
	/* What is there must not change by itself. */
	setting_write(NUMAB, "0");
	khugepaged_rest();
	setting_write(THP "defrag", "always");
	/* When asked, at once: a process takes these when it is created. */
	setting_write(NUMAB_DEBUG "scan_delay_ms", "1");
	setting_write(NUMAB_DEBUG "scan_period_min_ms", "1");
	setting_write(NUMAB_DEBUG "scan_size_mb", "16");
}

static const char *folios_prepare(size_t folio)
{
	char path[96];
	int i;

	if (!thp_size())
		return folio ? "no transparent huge pages" : NULL;
	if (folio == PMD_SIZED)
		folio = thp_size();
	if (setting_write(THP "enabled", folio ? "madvise" : "never"))
		return "cannot change the settings of huge pages";
	for (i = 0; i < 3; i++) {
		folio_path(path, sizeof(path), folios[i]);
		if (setting_write(path, folios[i] == folio ? "madvise" : "never") &&
		    folios[i] == folio)
			return "no folios of that size";
	}
	return NULL;
}

FIXTURE_SETUP(kind)
{
	const char *why;

	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	if (geteuid())
		SKIP(return, "needs root");
	why = folios_prepare(variant->folio);
	if (!why && variant->swap)
		why = swap_error;
	if (why)
		SKIP(return, "%s", why);
	if (variant->swap) {
		/* What a test that was killed has left */
		swapoff(swap_path);
		ASSERT_EQ(0, swapon(swap_path, SWAP_FIRST))
			TH_LOG("swapon: %s", strerror(errno));
	}
	self->ps = page_size();
	peer_self(&self->me);
	ASSERT_EQ(0, peer_start(&self->a));
	ASSERT_EQ(0, peer_start(&self->b));
}

FIXTURE_TEARDOWN(kind)
{
	peer_kill(&self->a);
	peer_kill(&self->b);
	op_settle(NULL);
	unpoison();
	if (variant->swap)
		swapoff(swap_path);
}

#define ARGS	struct __test_metadata *_metadata, FIXTURE_DATA(kind) *self,	\
		const FIXTURE_VARIANT(kind) *variant
#define PASS	_metadata, self, variant

/* The source of a way, made; -1 if that failed, or cannot be done here */
static int way_begin(ARGS, size_t n)
{
	const struct way *w = &ways[n];
	struct area *a = &self->area;
	long ret;

	self->way = w;
	self->src = w->dir == PUT || w->dir == SELF ? &self->me : &self->a;
	self->dst = w->dir == GET || w->dir == SELF ? &self->me :
		    w->dir == BETWEEN ? &self->b : &self->a;
	*a = (struct area){ .kind = variant, .nr = variant->nr ?: NR };
	if (variant->folio == PMD_SIZED)
		a->nr = thp_size() / self->ps;
	a->addr = ARENA + n * STEP + STEP / 2;
	ret = peer_call(self->src, op_make, a, sizeof(*a));
	if (ret && a->why[0])
		SKIP(return -1, "%s", a->why);
	EXPECT_EQ(0, ret)
		TH_LOG("%s: the source could not be made: %s", w->name, strerror(errno));
	if (ret)
		return -1;
	self->len = area_len(a);
	self->d = w->place == SAME_PLACE ? a->addr :
		  ARENA + APART + n * STEP + (thp_size() ? a->addr % thp_size() : 0) +
		  (w->place == ODD ? 7 * self->ps : 0);
	self->e = ARENA + 2 * APART + n * STEP + 3 * self->ps;
	return 0;
}

static long op_unmap(void *arg)
{
	unsigned long *a = arg;

	return munmap((void *)a[0], a[1]);
}

/* false if something has failed */
static bool way_end(ARGS)
{
	unsigned long d[] = { self->d - self->ps, self->len + 3 * self->ps };
	unsigned long e[] = { self->e - self->ps, self->len + 3 * self->ps };

	peer_call(self->dst, op_unmap, d, sizeof(d));
	peer_call(&self->me, op_unmap, e, sizeof(e));
	peer_call(&self->a, op_unmap, e, sizeof(e));
	peer_call(&self->b, op_unmap, e, sizeof(e));
	peer_call(self->src, op_clear, &self->area, sizeof(self->area));
	if (_metadata->exit_code != KSFT_FAIL)
		return true;
	TH_LOG("that was: %s", self->way->name);
	return false;
}

#define S	(self->area.addr)
#define D	(self->d)
#define DPUT(_from, _saddr, _to, _daddr, _len, _flags)				\
	ASSERT_EQ(0, peer_dput(_from, _saddr, _to, _daddr, _len, _flags))	\
		TH_LOG("%s: %s", self->way->name, strerror(errno))

/* Every way, or the short list; _across unless the kind is not copied so. */
#define FOR_EACH_WAY(_n, _all)							\
	for (size_t _n = 0; _n < NR_WAYS; _n++)					\
		if ((_all) || (ways[_n].short_list &&				\
			       (!variant->within || ways[_n].dir >= SELF)))

static bool readable(const FIXTURE_VARIANT(kind) *k)
{
	return !k->perms || k->perms[0] == 'r';
}

/* Make the source, and what was copied of it, accessible to the tests. */
static void settle(ARGS, struct peer *p, unsigned long addr)
{
	peer_call(self->src, op_settle, NULL, 0);
	if (!variant->perms)
		return;
	ASSERT_EQ(0, peer_mprotect(self->src, S, self->len, RW));
	ASSERT_EQ(0, peer_mprotect(p, addr, self->len, RW));
}

#define HOLDS(_p, _addr)							\
	EXPECT_EQ(-1, look(_p, &self->area, _addr, 0, self->area.nr, 0))
#define HOLDS_SEED(_p, _addr, _seed)						\
	EXPECT_EQ(-1, look(_p, &self->area, _addr, 0, self->area.nr, _seed))
#define WRITE(_p, _addr, _seed)							\
	ASSERT_EQ(0, write_all(_p, &self->area, _addr, _seed))

/* Two places with what was there at first, and no write of one seen by the other */
static void isolated(ARGS, struct peer *p, unsigned long p_addr, struct peer *q,
		     unsigned long q_addr)
{
	HOLDS(p, p_addr);
	HOLDS(q, q_addr);
	WRITE(p, p_addr, FIRST);
	HOLDS(q, q_addr);
	WRITE(q, q_addr, SECOND);
	HOLDS_SEED(p, p_addr, FIRST);
	HOLDS_SEED(q, q_addr, SECOND);
	WRITE(p, p_addr, THIRD);
	HOLDS_SEED(q, q_addr, SECOND);
}

/* What goes with a mapping has gone with it, and nothing else. */
static void same_attrs(ARGS, size_t page)
{
	char want[192], got[192];
	struct attrs s, d;

	ASSERT_EQ(0, attrs_get(self->src->pid, S + page * self->ps, &s));
	ASSERT_EQ(0, attrs_get(self->dst->pid, D + page * self->ps, &d));
	EXPECT_STREQ(s.perms, d.perms);
	copied_flags(s.flags, want, sizeof(want));
	copied_flags(d.flags, got, sizeof(got));
	EXPECT_STREQ(want, got)
		TH_LOG("source:%s copy:%s", s.flags, d.flags);
	for (char *c = d.flags; (c = strstr(c, " ")); c++) {
		EXPECT_FALSE(!strncmp(c, " gd", 3) || !strncmp(c, " lo", 3) ||
			     !strncmp(c, " lf", 3) || !strncmp(c, " u", 2) ||
			     !strncmp(c, " sl", 3))
			TH_LOG("copy:%s", d.flags);
	}
	EXPECT_EQ(self->src == self->dst ? s.pkey : 0, d.pkey);
	EXPECT_STREQ(s.policy, d.policy);
	EXPECT_EQ(s.ino, d.ino);
	EXPECT_STREQ(s.dev, d.dev);
	if (s.ino)
		EXPECT_EQ(S - s.start + s.off, D - d.start + d.off);
	/* [heap] and [stack] are what is at a certain address. */
	if (s.ino || s.name[strspn(s.name, " ")] != '[' || strstr(s.name, "[anon:"))
		EXPECT_STREQ(s.name, d.name);
}

/* It counts as the source does, but for pages of a file, which need not be there. */
static void same_sizes(ARGS)
{
	static const char * const fields[] = { "Anonymous", "Swap", "Size" };
	long s, d;
	int i;

	for (i = 0; i < 3; i++) {
		s = proc_smaps_kb(self->src->pid, S, S + self->len, fields[i]);
		d = proc_smaps_kb(self->dst->pid, D, D + self->len, fields[i]);
		EXPECT_EQ(s, d)
			TH_LOG("%s", fields[i]);
	}
	s = proc_smaps_kb(self->src->pid, S, S + self->len, "Rss");
	d = proc_smaps_kb(self->dst->pid, D, D + self->len, "Rss");
	EXPECT_GE(s, d);
	if (!variant->where)
		EXPECT_EQ(s, d);
}

static char *maps_around(struct peer *p, unsigned long addr, size_t len)
{
	return proc_maps(p->pid, addr - 4 * page_size(), addr + len + 4 * page_size());
}

#define EXPECT_SAME_MAPS(_p, _addr, _before) do {				\
	char *_now = maps_around(_p, _addr, self->len);				\
										\
	EXPECT_STREQ(_before, _now);						\
	free(_now);								\
} while (0)

static void refused(ARGS, int err, unsigned long off, size_t len, unsigned int flags)
{
	char *s = maps_around(self->src, S, self->len);
	char *d = maps_around(self->dst, D, self->len);

	errno = 0;
	EXPECT_EQ(-1, peer_dput(self->src, S + off, self->dst, D + off, len, flags));
	EXPECT_EQ(err, errno);
	EXPECT_SAME_MAPS(self->src, S, s);
	EXPECT_SAME_MAPS(self->dst, D, d);
	free(s);
	free(d);
}

/* --- Tests of what is copied -------------------------------------------- */

static void check_image(ARGS)
{
	long size = proc_status_kb(self->dst->pid, "VmSize");
	bool into_hole = !proc_mapped(self->dst->pid, D - self->ps, self->len + self->ps);
	char *maps = maps_around(self->src, S, self->len);
	size_t i;

	DPUT(self->src, S, self->dst, D, self->len, 0);
	EXPECT_SAME_MAPS(self->src, S, maps);
	free(maps);
	same_attrs(PASS, 0);
	same_attrs(PASS, self->area.nr - 1);
	if (!variant->fixed)
		same_sizes(PASS);
	for (i = 0; i < self->area.nr; i++)
		if (proc_pagemap(self->dst->pid, D + i * self->ps) & PM_UFFD_WP)
			break;
	EXPECT_EQ(self->area.nr, i);
	if (!readable(variant))
		EXPECT_FALSE(peer_readable(self->dst, D));
	if (variant->perms && variant->perms[1] != 'w')
		EXPECT_FALSE(peer_writable(self->dst, D));
	/* A stack's copy does not grow. */
	if (into_hole)
		EXPECT_FALSE(peer_readable(self->dst, D - self->ps));
	if (readable(variant)) {
		HOLDS(self->dst, D);
		if (variant->blocks != READS)
			HOLDS(self->src, S);
	}
	settle(PASS, self->dst, D);
	if (self->way->place == ODD)
		isolated(PASS, self->dst, D, self->src, S);
	else
		isolated(PASS, self->src, S, self->dst, D);
	ASSERT_EQ(0, peer_munmap(self->dst, D, self->len));
	EXPECT_EQ(0, proc_mapped(self->dst->pid, D, self->len));
	if (into_hole)
		EXPECT_EQ(size, proc_status_kb(self->dst->pid, "VmSize"));
	HOLDS_SEED(self->src, S, self->way->place == ODD ? SECOND : THIRD);
}

TEST_F(kind, image)
{
	/* Large ones take longer, and are tested more in thp.c. */
	FOR_EACH_WAY(n, variant->folio != PMD_SIZED) {
		if (way_begin(PASS, n))
			return;
		if (variant->within && self->src != self->dst)
			refused(PASS, EACCES, 0, self->len, 0);
		else
			check_image(PASS);
		if (!way_end(PASS))
			return;
	}
}

/* From the middle, to the middle */
TEST_F(kind, middle)
{
	FOR_EACH_WAY(n, false) {
		size_t nr, off = 2 * page_size();

		if (way_begin(PASS, n))
			return;
		nr = self->area.nr;
		DPUT(self->src, S + off, self->dst, D + off, self->len - 2 * off, 0);
		settle(PASS, self->src, S);
		if (variant->perms)
			ASSERT_EQ(0, peer_mprotect(self->dst, D + off, self->len - 2 * off, RW));
		EXPECT_EQ(-1, look(self->dst, &self->area, D, 2, nr - 2, 0));
		HOLDS(self->src, S);
		EXPECT_EQ(0, proc_mapped(self->dst->pid, D, off));
		EXPECT_EQ(0, proc_mapped(self->dst->pid, D + self->len - off, off));
		WRITE(self->src, S, FIRST);
		EXPECT_EQ(-1, look(self->dst, &self->area, D, 2, nr - 2, 0));
		if (!way_end(PASS))
			return;
	}
}

/* Words of a page that is copied in part, and who wrote them */
static void check_words(ARGS, size_t page, const int *who)
{
	const size_t at[] = { 0, 1, self->ps / 16 - 1, self->ps / 8 - 1 };
	uint64_t v;
	int i;

	for (i = 0; i < 4; i++) {
		ASSERT_EQ(0, peer_read(self->dst, D + page * self->ps + at[i] * 8, &v, 8));
		EXPECT_EQ(who[i], v >> 48)
			TH_LOG("page %zu, word %zu", page, at[i]);
	}
}

static int who_wrote(char c)
{
	return c == 'a' ? ANON : c == 'f' ? FILE_PAGE : c == 'k' ? SAME : 0;
}

/* From one half page to another, over old memory or not */
TEST_F(kind, ragged)
{
	FOR_EACH_WAY(n, false) {
		size_t nr, half = page_size() / 2 - 64, len, over;

		for (over = 0; over < 2; over++) {
			int head, tail, old = over ? OLD : 0, err = 0;

			/* What was sealed stays, and would be in the way. */
			if (over && variant->state == sealed)
				break;
			if (way_begin(PASS, n))
				return;
			/* Or the call would wait for the userfaultfd's owner. */
			if (variant->blocks == READS)
				peer_call(self->src, op_settle, NULL, 0);
			nr = self->area.nr;
			len = self->len - 2 * half;
			head = who_wrote(code(variant, 0));
			tail = who_wrote(code(variant, nr - 1));
			if (over && self->way->place == SAME_PLACE)
				peer_munmap(self->dst, D, self->len);
			if (over) {
				ASSERT_EQ(0, peer_map(self->dst, D, self->len, RW));
				ASSERT_EQ(0, peer_stamp(self->dst, D, nr, 0, 1, OLD));
			}
			if (!readable(variant))
				err = EFAULT;
			else if (variant->within && !over)
				err = EACCES;
			else if (code(variant, nr - 1) == 'x')
				err = variant->edge_err ?: EFAULT;
			if (err) {
				refused(PASS, err, half, len, 0);
			} else {
				DPUT(self->src, S + half, self->dst, D + half, len, 0);
				check_words(PASS, 0, (int []){ old, old, head, head });
				check_words(PASS, nr - 1, (int []){ tail, tail, tail, old });
				EXPECT_EQ(-1, look(self->dst, &self->area, D, 1, nr - 1, 0));
				HOLDS(self->src, S);
				peer_call(self->src, op_settle, NULL, 0);
				if (variant->perms)
					ASSERT_EQ(0, peer_mprotect(self->src, S, self->len, RW));
				WRITE(self->src, S, FIRST);
				check_words(PASS, 0, (int []){ old, old, head, head });
				EXPECT_EQ(-1, look(self->dst, &self->area, D, 1, nr - 1, 0));
			}
			if (!way_end(PASS))
				return;
		}
	}
}

/* With a neighbour before it, and one behind a hole */
TEST_F(kind, across)
{
	FOR_EACH_WAY(n, false) {
		unsigned long ps = page_size(), before, after;

		if (way_begin(PASS, n))
			return;
		before = S - ps;
		after = S + self->len + ps;
		if (variant->fixed) {
			/* Its neighbours are what they are. */
			DPUT(self->src, before, self->dst, D - ps, self->len + 2 * ps,
			     DPUT_HOLES);
			isolated(PASS, self->src, S, self->dst, D);
			if (!way_end(PASS))
				return;
			continue;
		}
		ASSERT_EQ(0, peer_map(self->src, before, ps, RW));
		ASSERT_EQ(0, peer_map(self->src, after, ps, RW));
		ASSERT_EQ(0, peer_stamp(self->src, before, 1, 0, 1, NEIGHBOUR));
		ASSERT_EQ(0, peer_stamp(self->src, after, 1, 0, 1, NEIGHBOUR));
		refused(PASS, EFAULT, -ps, self->len + 3 * ps, 0);
		DPUT(self->src, before, self->dst, D - ps, self->len + 3 * ps, DPUT_HOLES);
		settle(PASS, self->dst, D);
		EXPECT_EQ(-1, peer_check(self->dst, D - ps, 1, 0, 1, NEIGHBOUR));
		EXPECT_EQ(-1, peer_check(self->dst, D + self->len + ps, 1, 0, 1, NEIGHBOUR));
		EXPECT_EQ(0, proc_mapped(self->dst->pid, D + self->len, ps));
		isolated(PASS, self->src, S, self->dst, D);
		if (!way_end(PASS))
			return;
	}
}

/* Over what was there, and over an earlier copy; what is around it stays. */
TEST_F(kind, replaces)
{
	FOR_EACH_WAY(n, false) {
		unsigned long ps = page_size();
		int i;

		if (way_begin(PASS, n))
			return;
		peer_munmap(self->dst, D, self->len);
		ASSERT_EQ(0, peer_map(self->dst, D - ps, self->len + 2 * ps, RW));
		ASSERT_EQ(0, peer_stamp(self->dst, D - ps, self->area.nr + 2, 0, 1, OLD));
		ASSERT_EQ(0, peer_mprotect(self->dst, D + 3 * ps, 2 * ps, PROT_READ));
		for (i = 0; i < 2; i++)
			DPUT(self->src, S, self->dst, D, self->len, 0);
		settle(PASS, self->dst, D);
		isolated(PASS, self->dst, D, self->src, S);
		EXPECT_EQ(-1, peer_check(self->dst, D - ps, 1, 0, 1, OLD));
		EXPECT_EQ(-1, peer_check(self->dst, D - ps, self->area.nr + 2,
					 self->area.nr + 1, 1, OLD));
		if (!way_end(PASS))
			return;
	}
}

/* A copy of the copy, and one of that in the source's process */
TEST_F(kind, copy_of_copy)
{
	FOR_EACH_WAY(n, false) {
		struct peer *third;
		unsigned long e, f;

		if (way_begin(PASS, n))
			return;
		third = variant->within ? self->dst : &self->b;
		e = self->e;
		f = e + STEP / 2;
		DPUT(self->src, S, self->dst, D, self->len, 0);
		DPUT(self->dst, D, third, e, self->len, 0);
		DPUT(third, e, self->src, f, self->len, 0);
		settle(PASS, self->dst, D);
		if (variant->perms) {
			ASSERT_EQ(0, peer_mprotect(third, e, self->len, RW));
			ASSERT_EQ(0, peer_mprotect(self->src, f, self->len, RW));
		}
		HOLDS(self->dst, D);
		ASSERT_EQ(0, peer_munmap(third, e, self->len));
		isolated(PASS, self->src, f, self->dst, D);
		HOLDS(self->src, S);
		WRITE(self->src, S, FIRST);
		HOLDS_SEED(self->src, f, THIRD);
		HOLDS_SEED(self->dst, D, SECOND);
		ASSERT_EQ(0, peer_munmap(self->src, f, self->len));
		if (!way_end(PASS))
			return;
	}
}

TEST_F(kind, fork_after)
{
	FOR_EACH_WAY(n, false) {
		struct peer child;

		if (way_begin(PASS, n))
			return;
		DPUT(self->src, S, self->dst, D, self->len, 0);
		settle(PASS, self->dst, D);
		ASSERT_EQ(0, peer_fork(self->dst, &child));
		isolated(PASS, &child, D, self->dst, D);
		HOLDS(self->src, S);
		WRITE(self->src, S, FIRST);
		HOLDS_SEED(&child, D, THIRD);
		if (self->dst == &self->me)
			peer_stop(&child);
		else
			peer_stop_child(self->dst, &child);
		HOLDS_SEED(self->dst, D, SECOND);
		HOLDS_SEED(self->src, S, FIRST);
		if (!way_end(PASS))
			return;
	}
}

/* --- Kinds that are refused --------------------------------------------- */

FIXTURE(refused)
{
	struct peer me, a, b;
	struct peer *src, *dst;
	struct area area;
	const struct way *way;
	unsigned long d, ps;
	size_t len;
};

FIXTURE_VARIANT(refused)
{
	area_fn map;
	size_t nr;		/* pages; default 1 */
	int advice;		/* for private anonymous memory with a pattern */
	int edge_err;		/* as a partial page, that bytes are to be copied from */
	bool uncut;		/* a part of it cannot be replaced */
	bool fixed;		/* its address is its own */
};

static int map_shared_anon(struct area *a)
{
	return map_at(a, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
}

static int map_file_of(struct area *a, int fd, int prot, int flags)
{
	int ret = map_at(a, prot, flags | MAP_FIXED_NOREPLACE, fd, 0);

	close(fd);
	return ret;
}

static int map_shared_file(struct area *a, enum file_where where)
{
	int fd = file_open(where);

	if (fd < 0 && where != MEMFD)
		return no(a, "no file there");
	return fd < 0 || ftruncate(fd, area_len(a)) ? -1 : map_file_of(a, fd, RW, MAP_SHARED);
}

static int map_shared_memfd(struct area *a)
{
	return map_shared_file(a, MEMFD);
}

static int map_shared_disk(struct area *a)
{
	return map_shared_file(a, DISK);
}

/* Of a file that cannot be written: VM_SHARED is not set. */
static int map_shared_readonly(struct area *a)
{
	return map_file_of(a, open("/proc/self/exe", O_RDONLY), PROT_READ, MAP_SHARED);
}

static int map_shm(struct area *a)
{
	int id = shmget(IPC_PRIVATE, area_len(a), IPC_CREAT | 0600);
	void *p = id < 0 ? (void *)-1 : shmat(id, (void *)a->addr, 0);

	if (id < 0)
		return no(a, "no shared memory segments");
	shmctl(id, IPC_RMID, NULL);
	return p == (void *)a->addr ? 0 : -1;
}

static int map_dev_zero(struct area *a)
{
	return map_file_of(a, open("/dev/zero", O_RDWR), RW, MAP_PRIVATE);
}

static int map_dev_zero_written(struct area *a)
{
	return map_dev_zero(a) ? -1 : peer_stamp(&here, a->addr, a->nr, 0, 1, ANON);
}

/* Memory of some device, in a private mapping */
static int map_io(struct area *a)
{
	glob_t g = {};
	size_t i;
	int fd;

	glob("/sys/bus/pci/devices/*/resource[0-5]", 0, NULL, &g);
	for (i = 0; i < g.gl_pathc; i++) {
		fd = open(g.gl_pathv[i], O_RDONLY);
		if (fd >= 0 && !map_file_of(a, fd, PROT_READ, MAP_PRIVATE))
			break;
	}
	globfree(&g);
	errno = ENODEV;
	return i < g.gl_pathc ? 0 : no(a, "no device with memory");
}

static int map_perf(struct area *a)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_SOFTWARE, .size = sizeof(attr),
		.config = PERF_COUNT_SW_DUMMY,
	};
	int fd = syscall(__NR_perf_event_open, &attr, 0, -1, -1, 0);

	return fd < 0 ? no(a, "perf_event_open") : map_file_of(a, fd, RW, MAP_SHARED);
}

static int map_io_uring(struct area *a)
{
	struct io_uring_params params = {};
	int fd = syscall(__NR_io_uring_setup, 4, &params);
	void *p;

	if (fd < 0)
		return no(a, "io_uring");
	p = mmap(NULL, area_len(a), RW, MAP_SHARED, fd, IORING_OFF_SQ_RING);
	close(fd);
	a->addr = (unsigned long)p;
	return p == MAP_FAILED ? -1 : 0;
}

static int map_aio(struct area *a)
{
	aio_context_t ctx = 0;

	if (syscall(__NR_io_setup, 1, &ctx))
		return no(a, "io_setup");
	a->addr = ctx;
	return 0;
}

static int map_secret(struct area *a)
{
	int fd = syscall(__NR_memfd_secret, 0);

	if (fd < 0)
		return no(a, "memfd_secret");
	return ftruncate(fd, area_len(a)) ? -1 : map_file_of(a, fd, RW, MAP_SHARED);
}

static int map_droppable(struct area *a)
{
	int ret = map_at(a, RW, MAP_DROPPABLE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	/* 32-bit kernels have no flag left for it. */
	return ret && errno == EOPNOTSUPP ? no(a, "MAP_DROPPABLE") : ret;
}

static int map_hugetlb(struct area *a)
{
	if (!thp_size())
		return no(a, "huge pages are too big, or there are none");
	return map_at(a, RW, FIXED | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
}

/* A mapping that the kernel made, all of it */
static int map_special(struct area *a, const char *name)
{
	unsigned long end;

	if (proc_find(getpid(), name, &a->addr, &end))
		return no(a, "not in this process");
	a->nr = (end - a->addr) / page_size();
	return 0;
}

static int map_vdso(struct area *a)
{
	return map_special(a, "[vdso]");
}

static int map_vvar(struct area *a)
{
	return map_special(a, "[vvar]");
}

/* A breakpoint for everyone in the first page of a file */
#define PROBED		64

/* Code with a uprobe in its first page; held until op_settle() */
static int map_probed(struct area *a)
{
	char path[] = "./dput-XXXXXX", nops[256];
	int fd = mkstemp(path), probe;

	memset(nops, 0x90, sizeof(nops));
	if (fd < 0 || ftruncate(fd, area_len(a)) || pwrite(fd, nops, sizeof(nops), 0) < 0)
		return -1;
	/* Executable or not, it gets the breakpoint. */
	if (map_at(a, PROT_READ, FIXED, fd, 0))
		return -1;
	probe = uprobe_open(path, PROBED);
	unlink(path);
	close(fd);
	if (probe < 0)
		return no(a, "uprobes");
	hold(probe);
	return *((unsigned char *)a->addr + PROBED) == 0x90 ? -1 : 0;
}

#define REFUSED(_name, ...)	FIXTURE_VARIANT_ADD(refused, _name) { __VA_ARGS__ }

REFUSED(shared_anon, .map = map_shared_anon);
REFUSED(shared_memfd, .map = map_shared_memfd);
REFUSED(shared_disk, .map = map_shared_disk);
REFUSED(shared_readonly, .map = map_shared_readonly);
REFUSED(shm, .map = map_shm);
REFUSED(dev_zero, .map = map_dev_zero);
REFUSED(dev_zero_written, .map = map_dev_zero_written);
REFUSED(io, .map = map_io, .edge_err = EFAULT);
REFUSED(perf, .map = map_perf, .nr = 2, .uncut = true, .edge_err = EFAULT);
REFUSED(io_uring, .map = map_io_uring, .fixed = true);
REFUSED(aio, .map = map_aio, .fixed = true);
REFUSED(secretmem, .map = map_secret, .edge_err = EFAULT);
REFUSED(dontfork, .advice = MADV_DONTFORK);
REFUSED(wipeonfork, .advice = MADV_WIPEONFORK);
REFUSED(droppable, .map = map_droppable);
REFUSED(hugetlb, .map = map_hugetlb, .uncut = true);
REFUSED(vdso, .map = map_vdso, .fixed = true, .uncut = true);
REFUSED(vvar, .map = map_vvar, .fixed = true, .uncut = true, .edge_err = EFAULT);
REFUSED(uprobe, .map = map_probed);

FIXTURE_SETUP(refused)
{
	char val[32];

	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	if (geteuid())
		SKIP(return, "needs root");
	if (variant->map == map_hugetlb && !setting_read(HUGETLB, val, sizeof(val))) {
		snprintf(val, sizeof(val), "%ld", atol(val) + 4);
		setting_write(HUGETLB, val);
	}
	self->ps = page_size();
	peer_self(&self->me);
	ASSERT_EQ(0, peer_start(&self->a));
	ASSERT_EQ(0, peer_start(&self->b));
}

FIXTURE_TEARDOWN(refused)
{
	peer_kill(&self->a);
	peer_kill(&self->b);
	op_settle(NULL);
	if (variant->map == map_hugetlb)
		setting_restore(HUGETLB);
}

static long op_make_refused(void *arg)
{
	const FIXTURE_VARIANT(refused) *v = ((struct area *)arg)->kind;
	struct area *a = arg;

	peer_self(&here);
	if (v->map)
		return v->map(a);
	if (map_anon(a) || peer_stamp(&here, a->addr, a->nr, 0, 1, ANON))
		return -1;
	return madvise((void *)a->addr, area_len(a), v->advice);
}

#undef ARGS
#define ARGS	struct __test_metadata *_metadata, FIXTURE_DATA(refused) *self,	\
		const FIXTURE_VARIANT(refused) *variant

/* Made in the source, or @in another process */
static int refused_begin(ARGS, struct peer *in, size_t n)
{
	const struct way *w = &ways[n];
	struct area *a = &self->area;
	long ret;

	self->way = w;
	self->src = w->dir == PUT || w->dir == SELF ? &self->me : &self->a;
	self->dst = w->dir == GET || w->dir == SELF ? &self->me :
		    w->dir == BETWEEN ? &self->b : &self->a;
	*a = (struct area){ .kind = variant, .nr = variant->nr ?: 1 };
	if (variant->map == map_hugetlb && thp_size())
		a->nr = thp_size() / self->ps;
	a->addr = ARENA + n * STEP + STEP / 2;
	ret = peer_call(in ? in : self->src, op_make_refused, a, sizeof(*a));
	if (ret && a->why[0])
		SKIP(return -1, "%s", a->why);
	EXPECT_EQ(0, ret)
		TH_LOG("%s: it could not be made: %s", w->name, strerror(errno));
	self->len = area_len(a);
	self->d = ARENA + APART + n * STEP + 7 * self->ps;
	return ret ? -1 : 0;
}

static bool refused_end(ARGS, struct peer *in)
{
	unsigned long d[] = { self->d - self->ps, self->len + 2 * self->ps };

	peer_call(self->dst, op_unmap, d, sizeof(d));
	peer_call(self->src, op_unmap, d, sizeof(d));
	if (!variant->fixed)
		peer_call(in, op_clear, &self->area, sizeof(self->area));
	if (_metadata->exit_code != KSFT_FAIL)
		return true;
	TH_LOG("that was: %s", self->way->name);
	return false;
}

/* Nothing changes: the mappings on both sides, the destination's memory */
#define EXPECT_REFUSED(_err, _src, _dst, _len, _flags) do {			\
	char *_s = maps_around(self->src, S, self->len);			\
	char *_d = maps_around(self->dst, D, self->len);			\
										\
	errno = 0;								\
	EXPECT_EQ(-1, peer_dput(self->src, _src, self->dst, _dst, _len, _flags)); \
	EXPECT_EQ(_err, errno);							\
	EXPECT_SAME_MAPS(self->src, S, _s);					\
	EXPECT_SAME_MAPS(self->dst, D, _d);					\
	EXPECT_EQ(-1, peer_check(self->dst, D - self->ps, self->area.nr + 2, 0, 1, OLD)); \
	free(_s);								\
	free(_d);								\
} while (0)

TEST_F(refused, as_source)
{
	for (size_t n = 0; n < 5; n++) {
		unsigned long ps = page_size(), before;
		char bytes[2][16];

		if (refused_begin(PASS, NULL, n))
			return;
		ASSERT_EQ(0, peer_map(self->dst, D - ps, self->len + 2 * ps, RW));
		ASSERT_EQ(0, peer_stamp(self->dst, D - ps, self->area.nr + 2, 0, 1, OLD));
		EXPECT_REFUSED(EOPNOTSUPP, S, D, self->len, 0);
		EXPECT_REFUSED(EOPNOTSUPP, S, D, ps, DPUT_HOLES);
		if (!variant->fixed) {
			/* Between two that could be copied */
			before = S - ps;
			ASSERT_EQ(0, peer_map(self->src, before, ps, RW));
			ASSERT_EQ(0, peer_map(self->src, S + self->len, ps, RW));
			ASSERT_EQ(0, peer_stamp(self->src, before, 1, 0, 1, NEIGHBOUR));
			ASSERT_EQ(0, peer_stamp(self->src, S + self->len, 1, 0, 1, NEIGHBOUR));
			EXPECT_REFUSED(EOPNOTSUPP, before, D - ps, self->len + 2 * ps, 0);
			EXPECT_REFUSED(EOPNOTSUPP, before + 8, D - ps + 8,
				       self->len + 2 * ps - 16, DPUT_HOLES);
			EXPECT_EQ(-1, peer_check(self->src, before, 1, 0, 1, NEIGHBOUR));
			EXPECT_EQ(-1, peer_check(self->src, S + self->len, 1, 0, 1, NEIGHBOUR));
		}
		/* Its bytes may be had where process_vm_readv() would have them. */
		if (variant->edge_err) {
			EXPECT_REFUSED(variant->edge_err, S + 8, D + 8, 16, 0);
		} else {
			EXPECT_EQ(0, peer_dput(self->src, S + 2048, self->dst, D + 2048, 16, 0));
			ASSERT_EQ(0, peer_read(self->src, S + 2048, bytes[0], 16));
			ASSERT_EQ(0, peer_read(self->dst, D + 2048, bytes[1], 16));
			EXPECT_EQ(0, memcmp(bytes[0], bytes[1], 16));
			/* None that was stamped is among them. */
			EXPECT_EQ(-1, peer_check(self->dst, D - ps, self->area.nr + 2, 0, 1, OLD));
		}
		if (!refused_end(PASS, self->src))
			return;
	}
}

/* As a destination it is as good as any, if it can be cut. */
TEST_F(refused, as_destination)
{
	/* Once in each process, where there is but one */
	for (size_t n = 0; n < (variant->fixed ? 3 : 5); n++) {
		unsigned long ps = page_size(), from;
		struct peer *dst;

		if (variant->map == map_vdso && sizeof(long) == 4)
			SKIP(return, "system calls may go through the vdso");
		dst = ways[n].dir == GET || ways[n].dir == SELF ? &self->me :
		      ways[n].dir == BETWEEN ? &self->b : &self->a;
		if (refused_begin(PASS, dst, n))
			return;
		from = self->d;
		ASSERT_EQ(0, peer_map(self->src, from, self->len, RW));
		ASSERT_EQ(0, peer_stamp(self->src, from, self->area.nr, 0, 1, OLD));
		/* The vdso may be a single page. */
		if (variant->uncut && self->len > ps) {
			errno = 0;
			EXPECT_EQ(-1, peer_dput(self->src, from, dst, S, self->len - ps, 0));
			EXPECT_EQ(EOPNOTSUPP, errno);
			EXPECT_EQ(1, proc_mapped(dst->pid, S, self->len));
		}
		EXPECT_EQ(0, peer_dput(self->src, from, dst, S, self->len, 0))
			TH_LOG("%s", strerror(errno));
		EXPECT_EQ(-1, peer_check(dst, S, self->area.nr, 0, 1, OLD));
		ASSERT_EQ(0, peer_stamp(dst, S, self->area.nr, 0, 1, FIRST));
		EXPECT_EQ(-1, peer_check(self->src, from, self->area.nr, 0, 1, OLD));
		EXPECT_STREQ("rw-p", proc_perms(dst->pid, S));
		if (!refused_end(PASS, dst))
			return;
	}
}

/* --- Some that take more than a table ----------------------------------- */

FIXTURE(special)
{
	struct peer me, a, b;
	struct peer *src, *dst;
	struct area area;
	unsigned long ps;
	size_t len;
};

FIXTURE_VARIANT(special)
{
	enum direction dir;
};

FIXTURE_VARIANT_ADD(special, put) { .dir = PUT };
FIXTURE_VARIANT_ADD(special, get) { .dir = GET };
FIXTURE_VARIANT_ADD(special, between) { .dir = BETWEEN };
FIXTURE_VARIANT_ADD(special, self) { .dir = SELF };
FIXTURE_VARIANT_ADD(special, within) { .dir = WITHIN };

#undef S
#undef D
#define S	(ARENA + (1UL << 25))
#define D	(ARENA + (1UL << 30) + 5 * page_size())

FIXTURE_SETUP(special)
{
	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	if (geteuid())
		SKIP(return, "needs root");
	self->ps = page_size();
	self->len = NR * self->ps;
	peer_self(&self->me);
	ASSERT_EQ(0, peer_start(&self->a));
	ASSERT_EQ(0, peer_start(&self->b));
	self->src = variant->dir == PUT || variant->dir == SELF ? &self->me : &self->a;
	self->dst = variant->dir == GET || variant->dir == SELF ? &self->me :
		    variant->dir == BETWEEN ? &self->b : &self->a;
	ASSERT_EQ(0, peer_map(self->src, S, self->len, RW));
	ASSERT_EQ(0, peer_stamp(self->src, S, NR, 0, 1, ANON));
}

FIXTURE_TEARDOWN(special)
{
	peer_kill(&self->a);
	peer_kill(&self->b);
}

/* A ring with one registered buffer */
struct ring {
	int fd;
	struct io_uring_params p;
	char *sq, *sqes;		/* the first one has the CQ, too */
};

static struct ring ring;

struct pin_arg {
	unsigned long addr, len;
	unsigned char byte;
};

static long op_pin(void *arg)
{
	struct pin_arg *a = arg;
	struct iovec iov = { .iov_base = (void *)a->addr, .iov_len = a->len };

	ring.fd = syscall(__NR_io_uring_setup, 4, &ring.p);
	if (ring.fd < 0)
		return -1;
	ring.sq = mmap(NULL, 65536, RW, MAP_SHARED | MAP_POPULATE, ring.fd, IORING_OFF_SQ_RING);
	ring.sqes = mmap(NULL, 4 * sizeof(struct io_uring_sqe), RW, MAP_SHARED | MAP_POPULATE,
			 ring.fd, IORING_OFF_SQES);
	if (ring.sq == MAP_FAILED || ring.sqes == MAP_FAILED)
		return -1;
	return syscall(__NR_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS, &iov, 1);
}

/* Have the kernel write bytes into the buffer, by way of the pin. */
static long op_read_fixed(void *arg)
{
	unsigned int *array = (unsigned int *)(ring.sq + ring.p.sq_off.array);
	unsigned int *tail = (unsigned int *)(ring.sq + ring.p.sq_off.tail);
	unsigned int *head = (unsigned int *)(ring.sq + ring.p.cq_off.head);
	struct io_uring_sqe *sqe = (struct io_uring_sqe *)ring.sqes;
	struct io_uring_cqe *cqe;
	struct pin_arg *a = arg;
	int fd = memfd_create("dput", 0);
	char buf[256];
	long ret;

	memset(buf, a->byte, sizeof(buf));
	if (fd < 0 || pwrite(fd, buf, sizeof(buf), 0) != sizeof(buf))
		return -1;
	memset(sqe, 0, sizeof(*sqe));
	sqe->opcode = IORING_OP_READ_FIXED;
	sqe->fd = fd;
	sqe->addr = a->addr;
	sqe->len = sizeof(buf);
	array[*tail & 3] = 0;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	ret = syscall(__NR_io_uring_enter, ring.fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0);
	close(fd);
	/* Take the completion out, so that the next call waits for its own. */
	cqe = (void *)(ring.sq + ring.p.cq_off.cqes);
	cqe += *head & (ring.p.cq_entries - 1);
	__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
	return ret == 1 && cqe->res == sizeof(buf) ? 0 : -1;
}

/* The owner of a pin keeps its page, and alone gets what is written through it. */
TEST_F(special, write_through_pin)
{
	struct pin_arg pin = { .addr = S + 2 * self->ps, .len = 4 * self->ps };
	struct pin_arg io = { .addr = pin.addr + self->ps + 1024 };
	unsigned long pfn = proc_pfn(self->src->pid, io.addr);
	unsigned char byte;
	int i;

	if (peer_call(self->src, op_pin, &pin, sizeof(pin)))
		SKIP(return, "io_uring: %s", strerror(errno));
	ASSERT_EQ(0, peer_dput(self->src, S, self->dst, D, self->len, 0));
	for (i = 1; i < 4; i++) {
		io.byte = 0x40 + i;
		ASSERT_EQ(0, peer_call(self->src, op_read_fixed, &io, sizeof(io)));
		ASSERT_EQ(0, peer_read(self->src, io.addr + 100, &byte, 1));
		EXPECT_EQ(io.byte, byte);
		ASSERT_EQ(0, peer_read(self->dst, io.addr - S + D + 100, &byte, 1));
		EXPECT_EQ(0, byte);
		EXPECT_EQ(-1, peer_check(self->src, S, NR, 0, 1, ANON));
		EXPECT_EQ(-1, peer_check(self->dst, D, NR, 0, 1, i == 1 ? ANON : SECOND));
		/* Both are written to, and that makes no difference. */
		ASSERT_EQ(0, peer_stamp(self->src, S, NR, 0, 1, ANON));
		ASSERT_EQ(0, peer_stamp(self->dst, D, NR, 0, 1, SECOND));
		EXPECT_EQ(pfn, proc_pfn(self->src->pid, io.addr));
	}
}

/*
 * What NUMA balancing has unmapped is so in the copy. (A fault there may move the
 * page, which maps it in the source again.)
 */
TEST_F(special, numa_hinting_faults)
{
	struct area a = { .addr = S, .nr = NR };
	long faults;

	if (peer_call(self->src, (peer_fn)numa_hinting, &a, sizeof(a))) {
		ASSERT_NE(0, a.why[0])
			TH_LOG("nothing was unmapped");
		SKIP(return, "%s", a.why);
	}
	ASSERT_EQ(0, peer_dput(self->src, S, self->dst, D, self->len, 0));
	faults = vmstat("numa_hint_faults");
	EXPECT_EQ(-1, peer_check(self->dst, D, NR, 0, 1, ANON));
	EXPECT_LE(faults + (long)NR, vmstat("numa_hint_faults"));
	EXPECT_EQ(-1, peer_check(self->src, S, NR, 0, 1, ANON));
}

static long migrated(void)
{
	return vmstat("pgmigrate_success");
}

TEST_F(special, under_migration)
{
	long from = migrated(), round = 0;
	int nodes[2];
	pid_t pid;

	if (memory_nodes(nodes) < 2)
		SKIP(return, "needs two NUMA nodes (numa=fake=2 is as good)");
	pid = start_migrating(self->src->pid, S, NR);
	ASSERT_LT(0, pid);
	/* Until enough pages have been on their way meanwhile; they may have been already */
	do {
		ASSERT_EQ(0, peer_dput(self->src, S, self->dst, D, self->len, 0));
		EXPECT_EQ(-1, peer_check(self->dst, D, NR, 0, 1, round ? FIRST : ANON));
		ASSERT_EQ(0, peer_stamp(self->dst, D, NR, 0, 1, SECOND));
		EXPECT_EQ(-1, peer_check(self->src, S, NR, 0, 1, round ? FIRST : ANON));
		ASSERT_EQ(0, peer_stamp(self->src, S, NR, 0, 1, FIRST));
		EXPECT_EQ(-1, peer_check(self->dst, D, NR, 0, 1, SECOND));
		round++;
	} while (_metadata->exit_code != KSFT_FAIL && migrated() < from + 2000);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

/* Who watches the destination's mappings is told that they go. */
static struct uffd_msg unmap_msg;
static pthread_t monitor;

static void *monitor_events(void *arg)
{
	if (read((long)arg, &unmap_msg, sizeof(unmap_msg)) != sizeof(unmap_msg))
		unmap_msg.event = 0;
	return NULL;
}

static long op_monitor_start(void *arg)
{
	unsigned long *range = arg;
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_EVENT_UNMAP };
	struct uffdio_register reg = {
		.range = { range[0], range[1] }, .mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	long fd = syscall(__NR_userfaultfd, O_CLOEXEC);

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &reg))
		return -1;
	return pthread_create(&monitor, NULL, monitor_events, (void *)fd) ? -1 : 0;
}

static long op_monitor_end(void *arg)
{
	unsigned long *range = arg;

	pthread_join(monitor, NULL);
	range[0] = unmap_msg.arg.remove.start;
	range[1] = unmap_msg.arg.remove.end;
	return unmap_msg.event;
}

TEST_F(special, uffd_event_unmap)
{
	unsigned long range[2] = { D, self->len };

	ASSERT_EQ(0, peer_map(self->dst, D, self->len, RW));
	ASSERT_EQ(0, peer_stamp(self->dst, D, NR, 0, 1, SECOND));
	if (peer_call(self->dst, op_monitor_start, range, sizeof(range)))
		SKIP(return, "no userfaultfd with events");
	/* All but the first page, and part of the last one */
	ASSERT_EQ(0, peer_dput(self->src, S + self->ps, self->dst, D + self->ps,
			       self->len - self->ps - 8, 0));
	ASSERT_EQ(UFFD_EVENT_UNMAP, peer_call(self->dst, op_monitor_end, range, sizeof(range)));
	EXPECT_EQ(D + self->ps, range[0]);
	EXPECT_EQ(D + self->len - self->ps, range[1]);
	EXPECT_EQ(-1, peer_check(self->dst, D, NR - 1, 1, 1, ANON));
}

static long op_uffd_missing(void *arg)
{
	return uffd_missing(arg);
}

/* No userfaultfd supplies the pages of what has replaced its memory. */
TEST_F(special, uffd_registration_goes)
{
	struct area a = { .addr = D, .nr = NR };
	unsigned long ps = self->ps;
	char c = 1;

	ASSERT_EQ(0, peer_map(self->dst, D, self->len, RW));
	if (peer_call(self->dst, op_uffd_missing, &a, sizeof(a))) {
		ASSERT_NE(0, a.why[0]);
		SKIP(return, "%s", a.why);
	}
	ASSERT_TRUE(proc_vmflag(self->dst->pid, D, "um"));
	/* What is around it stays registered. */
	ASSERT_EQ(0, peer_dput(self->src, S + ps, self->dst, D + ps, self->len - 2 * ps, 0));
	EXPECT_TRUE(proc_vmflag(self->dst->pid, D, "um"));
	EXPECT_TRUE(proc_vmflag(self->dst->pid, D + self->len - ps, "um"));
	ASSERT_FALSE(proc_vmflag(self->dst->pid, D + ps, "um"));
	ASSERT_EQ(0, peer_madvise(self->dst, D + ps, ps, MADV_DONTNEED));
	EXPECT_EQ(0, peer_read(self->dst, D + ps, &c, 1));
	EXPECT_EQ(0, c);
	EXPECT_EQ(-1, peer_check(self->dst, D, NR - 1, 2, 1, ANON));
	peer_call(self->dst, op_settle, NULL, 0);
}

/* A userfaultfd that tells by PAGEMAP_SCAN which pages have been written to */
static long op_uffd_wp_async(void *arg)
{
	struct area *a = arg;
	struct uffdio_writeprotect wp = {
		.range = { a->addr, area_len(a) }, .mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};
	int fd = uffd_register(a, UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED,
			       UFFDIO_REGISTER_MODE_WP);

	return fd < 0 ? -1 : ioctl(fd, UFFDIO_WRITEPROTECT, &wp);
}

struct scan {
	unsigned long addr, len;
	uint64_t flags;
};

/* How many regions were written to; -1 and errno */
static long op_scan(void *arg)
{
	struct scan *s = arg;
	struct page_region regions[4];
	struct pm_scan_arg scan = {
		.size = sizeof(scan), .flags = s->flags,
		.start = s->addr, .end = s->addr + s->len,
		.vec = (unsigned long)regions, .vec_len = ARRAY_SIZE(regions),
		.category_mask = PAGE_IS_WRITTEN, .return_mask = PAGE_IS_WRITTEN,
	};
	int fd = open("/proc/self/pagemap", O_RDONLY), err;
	long ret = ioctl(fd, PAGEMAP_SCAN, &scan);

	err = errno;
	close(fd);
	errno = err;
	return ret;
}

/* Who asks that way finds that the image is not tracked, rather than not written to. */
TEST_F(special, uffd_tracking_goes)
{
	struct area a = { .addr = D, .nr = NR };
	struct scan all = { D, self->len, PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC };
	struct scan tracked = { D, self->len, PM_SCAN_WP_MATCHING };

	ASSERT_EQ(0, peer_map(self->dst, D, self->len, RW));
	ASSERT_EQ(0, peer_stamp(self->dst, D, NR, 0, 1, OLD));
	if (peer_call(self->dst, op_uffd_wp_async, &a, sizeof(a))) {
		ASSERT_NE(0, a.why[0]);
		SKIP(return, "%s", a.why);
	}
	ASSERT_EQ(0, peer_call(self->dst, op_scan, &all, sizeof(all)));
	ASSERT_EQ(0, peer_stamp(self->dst, D, NR, 3, 4, OLD));
	ASSERT_EQ(4, peer_call(self->dst, op_scan, &all, sizeof(all)));

	ASSERT_EQ(0, peer_dput(self->src, S, self->dst, D, self->len, 0));
	EXPECT_EQ(-1, peer_call(self->dst, op_scan, &all, sizeof(all)));
	EXPECT_EQ(EPERM, errno);
	EXPECT_EQ(0, peer_call(self->dst, op_scan, &tracked, sizeof(tracked)));
	EXPECT_EQ(-1, peer_check(self->dst, D, NR, 0, 1, ANON));
	peer_call(self->dst, op_settle, NULL, 0);
}

/* Take a range away from this thread by a key, and give it back. */
static long op_take_away(void *arg)
{
	unsigned long *a = arg;
	int key = syscall(__NR_pkey_alloc, 0, PKEY_DISABLE_ACCESS);

	return key < 0 ? -1 : syscall(__NR_pkey_mprotect, a[0], a[1], RW, key);
}

static long op_give_back(void *arg)
{
	unsigned long *a = arg;

	return syscall(__NR_pkey_mprotect, a[0], a[1], RW, 0);
}

/* What a thread may do by protection keys, its own calls and others' can do anyway. */
TEST_F(special, pkey_rights)
{
	unsigned long s[] = { S, self->len }, d[] = { D, self->len };
	/* The first and the last word of the range, and the ones beyond them */
	const size_t at[] = { 0, 8, self->len - 8 };
	const uint64_t who[] = { 0, ANON, OLD };
	uint64_t v;
	int i;

	ASSERT_EQ(0, peer_map(self->dst, D, self->len, RW));
	ASSERT_EQ(0, peer_stamp(self->dst, D, NR, 0, 1, OLD));
	if (peer_call(self->src, op_take_away, s, sizeof(s)))
		SKIP(return, "no protection keys: %s", strerror(errno));
	ASSERT_EQ(0, peer_call(self->dst, op_take_away, d, sizeof(d)));
	/* The caller may not use a key of these numbers either. */
	while (syscall(__NR_pkey_alloc, 0, PKEY_DISABLE_ACCESS) >= 0)
		;
	ASSERT_FALSE(peer_readable(self->src, S));
	ASSERT_FALSE(peer_readable(self->dst, D));
	/* One page has to be faulted in. */
	ASSERT_EQ(0, peer_madvise(self->dst, D, self->ps, MADV_DONTNEED));
	EXPECT_EQ(0, peer_dput(self->src, S + 8, self->dst, D + 8, self->len - 16, 0))
		TH_LOG("dput: %s", strerror(errno));
	ASSERT_EQ(0, peer_call(self->src, op_give_back, s, sizeof(s)));
	ASSERT_EQ(0, peer_call(self->dst, op_give_back, d, sizeof(d)));
	EXPECT_EQ(-1, peer_check(self->dst, D, NR - 1, 1, 1, ANON));
	for (i = 0; i < 3; i++) {
		ASSERT_EQ(0, peer_read(self->dst, D + at[i], &v, sizeof(v)));
		EXPECT_EQ(who[i], v >> 48)
			TH_LOG("at %zu", at[i]);
	}
}

static long op_mdwe(void *arg)
{
	return prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0);
}

/*
 * A process that may not make memory executable can copy what is executable
 * already, as it can move it; and the copy is under the same rule.
 */
TEST_F(special, deny_write_exec)
{
	unsigned long half = self->len / 2;

	ASSERT_EQ(0, peer_mprotect(self->src, S, half, PROT_READ | PROT_EXEC));
	if (peer_call(self->dst, op_mdwe, NULL, 0))
		SKIP(return, "PR_SET_MDWE: %s", strerror(errno));
	errno = 0;
	if (self->src != self->dst) {
		EXPECT_EQ(-1, peer_dput(self->src, S, self->dst, D, self->len, 0));
		EXPECT_EQ(EACCES, errno);
		EXPECT_EQ(0, proc_mapped(self->dst->pid, D, self->len));
		return;
	}
	EXPECT_EQ(0, peer_dput(self->src, S, self->dst, D, self->len, 0));
	EXPECT_EQ(-1, peer_check(self->dst, D, NR, 0, 1, ANON));
	EXPECT_STREQ("r-xp", proc_perms(self->dst->pid, D));
	EXPECT_STREQ("rw-p", proc_perms(self->dst->pid, D + half));
	EXPECT_EQ(-1, peer_mprotect(self->dst, D + half, half, PROT_READ | PROT_EXEC));
	EXPECT_EQ(EACCES, errno);
	EXPECT_EQ(-1, peer_mprotect(self->dst, D, half, RW | PROT_EXEC));
	EXPECT_EQ(EACCES, errno);
	/* Nor can bytes get into the executable part. */
	EXPECT_EQ(-1, peer_dput(self->src, S + half + 8, self->dst, D + 8, 16, 0));
	EXPECT_EQ(EFAULT, errno);
}

/* Next to a uprobe, and after it, code can be copied. */
TEST_F(special, uprobe_elsewhere)
{
	unsigned long at = S + (1UL << 24), to = D + (1UL << 24);
	struct area a = { .addr = at, .nr = 3 };
	unsigned char byte;

	if (peer_call(self->src, (peer_fn)map_probed, &a, sizeof(a))) {
		ASSERT_NE(0, a.why[0]);
		SKIP(return, "%s", a.why);
	}
	EXPECT_EQ(-1, peer_dput(self->src, at, self->dst, to, 3 * self->ps, 0));
	EXPECT_EQ(EOPNOTSUPP, errno);
	EXPECT_EQ(0, peer_dput(self->src, at + self->ps, self->dst, to + self->ps, self->ps, 0));
	/* Where the mapping is cut, the breakpoint stays. */
	ASSERT_EQ(0, peer_map(self->dst, D, self->ps, RW));
	EXPECT_EQ(0, peer_dput(self->dst, D, self->src, at + 2 * self->ps, self->ps, 0));
	EXPECT_EQ(2, proc_count_vmas(self->src->pid, at, at + 3 * self->ps));
	ASSERT_EQ(0, peer_read(self->src, at + PROBED, &byte, 1));
	EXPECT_NE(0x90, byte);
	peer_call(self->src, op_settle, NULL, 0);
	ASSERT_EQ(0, peer_dput(self->src, at, self->dst, to, 3 * self->ps, 0));
	ASSERT_EQ(0, peer_read(self->dst, to + PROBED, &byte, 1));
	EXPECT_EQ(0x90, byte);
}

static long op_poison(void *arg)
{
	return poison(*(unsigned long *)arg);
}

static long op_unpoison(void *arg)
{
	unpoison();
	return 0;
}

/* The copy of a range with a poisoned page has it too, and a partial page is not read. */
TEST_F(special, poisoned_edge)
{
	unsigned long addr = S;

	if (access(UNPOISON, W_OK))
		SKIP(return, UNPOISON ": %s", strerror(errno));
	if (!getenv("DPUT_DISPOSABLE"))
		SKIP(return, "the page may be lost: DPUT_DISPOSABLE is not set");
	if (peer_call(self->src, op_poison, &addr, sizeof(addr))) {
		ASSERT_EQ(EINVAL, errno);
		SKIP(return, "no MADV_HWPOISON");
	}
	ASSERT_EQ(0, peer_map(self->dst, D, self->ps, RW));
	ASSERT_EQ(0, peer_stamp(self->dst, D, 1, 0, 1, OLD));
	EXPECT_EQ(-1, peer_dput(self->src, S + 8, self->dst, D + 8, self->len - 8, 0));
	EXPECT_EQ(EHWPOISON, errno);
	EXPECT_EQ(-1, peer_check(self->dst, D, 1, 0, 1, OLD));
	/* Over it, there is a page that can be used again. */
	ASSERT_EQ(0, peer_dput(self->dst, D, self->src, S, self->ps, 0));
	EXPECT_EQ(-1, peer_check(self->src, S, 1, 0, 1, OLD));
	peer_call(self->src, op_unpoison, NULL, 0);
}

static long op_uffd_poison(void *arg)
{
	struct area *a = arg;
	struct uffdio_poison lost = { .range = { a->addr, area_len(a) } };
	int fd = uffd_register(a, UFFD_FEATURE_POISON, UFFDIO_REGISTER_MODE_MISSING);

	return fd < 0 ? -1 : ioctl(fd, UFFDIO_POISON, &lost);
}

/* What a userfaultfd says is lost is so in each copy, until it is not any more. */
TEST_F(special, poisoned_by_userfaultfd)
{
	unsigned long ps = self->ps, lost = 3 * ps;
	struct area a = { .addr = S + lost, .nr = 1 };
	struct mce m;
	int round;
	char c = 1;

	ASSERT_EQ(0, peer_madvise(self->src, S + lost, ps, MADV_DONTNEED));
	if (peer_call(self->src, op_uffd_poison, &a, sizeof(a))) {
		ASSERT_NE(0, a.why[0]);
		SKIP(return, "%s", a.why);
	}
	for (round = 0; round < 2; round++) {
		/* The first time anew, and then over an older copy */
		ASSERT_EQ(0, peer_dput(self->src, S, self->dst, D, self->len, 0));
		EXPECT_EQ(-1, peer_check(self->dst, D, 3, 0, 1, ANON));
		EXPECT_EQ(-1, peer_check(self->dst, D, NR, 4, 1, ANON));
		ASSERT_EQ(0, peer_mce_early(self->src, false));
		ASSERT_EQ(0, peer_mce_early(self->dst, false));
		m.addr = S + lost;
		ASSERT_EQ(0, peer_mce_probe(self->src, &m));
		EXPECT_EQ(1, m.count);
		EXPECT_EQ(BUS_MCEERR_AR, m.code);
		m.addr = D + lost;
		ASSERT_EQ(0, peer_mce_probe(self->dst, &m));
		EXPECT_EQ(1, m.count);
		EXPECT_EQ(BUS_MCEERR_AR, m.code);
		EXPECT_EQ(D + lost, m.addr);
		/* Its bytes are nobody's, on either side. */
		EXPECT_EQ(-1, peer_dput(self->src, S, self->dst, D, lost + 8, 0));
		EXPECT_EQ(EHWPOISON, errno);
		EXPECT_EQ(-1, peer_dput(self->src, S + lost + ps + 8, self->dst, D + lost + 8,
					16, 0));
		EXPECT_EQ(EHWPOISON, errno);
		ASSERT_EQ(0, peer_stamp(self->dst, D, NR, 4, 1, OLD));
	}
	/* The marker goes with what the source has there. */
	peer_call(self->src, op_settle, NULL, 0);
	ASSERT_EQ(0, peer_madvise(self->src, S + lost, ps, MADV_DONTNEED));
	ASSERT_EQ(0, peer_dput(self->src, S, self->dst, D, self->len, 0));
	m.addr = D + lost;
	ASSERT_EQ(0, peer_mce_probe(self->dst, &m));
	EXPECT_EQ(0, m.count);
	EXPECT_EQ(0, peer_read(self->dst, D + lost, &c, 1));
	EXPECT_EQ(0, c);
	EXPECT_EQ(-1, peer_check(self->dst, D, NR, 4, 1, ANON));
}

TEST_HARNESS_MAIN
