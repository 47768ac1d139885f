// SPDX-License-Identifier: GPL-2.0
/*
 * Everything that walks the reverse map, on everything that dput() makes new.
 *
 * Three tables: situations (who maps the same pages, and where), kinds of
 * folios, and walkers. Each walker is run on each kind that it is for, on small
 * folios in all situations, on the others in some. It has to do its job in every
 * place that maps a page, which is looked at and not believed, and to hurt nothing:
 * contents, protections, mapcounts, and what smaps and the cgroup count. After each
 * pair of the first two, all that was allocated has to be free again.
 *
 * With an argument, only the cells that have it in their names are run.
 */

#include "kselftest.h"
#include <fcntl.h>
#include <limits.h>
#include <linux/mempolicy.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include "dput_util.h"

#define THP		"/sys/kernel/mm/transparent_hugepage/"
#define LRU_GEN		"/sys/kernel/mm/lru_gen/enabled"
#define DEBUGFS		"/sys/kernel/debug/"
#define DAMON		"/sys/kernel/mm/damon/admin/kdamonds/"
#define MEMORY		"/sys/devices/system/memory/"

#define KPF_LRU		(1ULL << 5)
#define KPF_UNEVICTABLE	(1ULL << 18)

/* mm/gup_test.h, which is not exported */
#define PIN_LONGTERM_TEST_START	_IOW('g', 7, struct pin_longterm_test)
#define PIN_LONGTERM_TEST_READ	_IOW('g', 9, __u64)

struct pin_longterm_test {
	__u64 addr, size;
	__u32 flags;
};

#ifndef MADV_SOFT_OFFLINE
#define MADV_SOFT_OFFLINE	101
#endif

#define MAX_PLACES	24
#define MAX_PAGES	512
#define TRIES		100

static unsigned long ps;
static int nodes[2], nr_nodes;
static char pmd_enabled[128], mthp_enabled[128];

/* Pages [first, end) of the region that is copied; page 0 would be at addr. */
struct place {
	struct peer *p;
	unsigned long addr;
	size_t first, end;
	bool read_only;
	unsigned int seed;	/* of what it has to contain */
};

enum { SMALL = 1, FILEMAP = 2, MTHP = 4, PMD = 8, PMD_OFF = 16 };
#define LARGE		(MTHP | PMD | PMD_OFF)
#define HUGE		(PMD | PMD_OFF)
#define ANY		(SMALL | FILEMAP | LARGE)

struct kind {
	const char *name;
	int kind;
	size_t npages;
	size_t folio_pages;
	int shift;		/* pages by which two places are not aligned alike */
};

static const struct kind kinds[] = {
	{ "small", SMALL, 24, 1, 3 },
	{ "file", FILEMAP, 24, 1, 3 },
	{ "64k", MTHP, 32, 16, 5 },
	{ "pmd", PMD, 512, 512, 0 },
	{ "pmd-shifted", PMD_OFF, 512, 512, 3 },
};

struct cell {
	const struct kind *k;
	struct peer me, a, b, c;
	struct place place[MAX_PLACES];
	int nr;
	int fd;			/* what FILEMAP maps */
	size_t npages, len;
	bool failed;
	bool skipped;
};

struct situation {
	const char *name;
	int kinds;
	int (*build)(struct cell *c);
};

struct walker {
	const char *name;
	int kinds;
	bool spends;		/* a new set-up is needed after it */
	void (*walk)(struct cell *c);
};

#define AT(_n)	(ARENA + (_n) * ((1UL << 27) + c->k->shift * ps))

static char running[128];

/* What there is to say of a walker, shared with the parent, which prints it with the result */
struct remarks {
	char text[1000];
};

static struct remarks *remarks;

static void vremark(const char *fmt, va_list args)
{
	char what[200], *at = strchr(remarks->text, '\0');

	vsnprintf(what, sizeof(what), fmt, args);
	/* The first ones tell most. */
	if (at < remarks->text + sizeof(remarks->text) / 2)
		sprintf(at, "# %s: %s\n", running, what);
}

static void __attribute__((format(printf, 1, 2))) remark(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vremark(fmt, args);
	va_end(args);
}

static void __attribute__((format(printf, 2, 3))) complain(struct cell *c, const char *fmt, ...)
{
	va_list args;

	c->failed = true;
	va_start(args, fmt);
	vremark(fmt, args);
	va_end(args);
}

static void lacks(struct cell *c, const char *what)
{
	c->skipped = true;
	remark("%s", what);
}

/* Tell of what is wrong and go on; or leave the walker. */
#define WANT(_cond, ...) do {						\
	if (!(_cond))							\
		complain(c, __VA_ARGS__);				\
} while (0)

#define NEED(_cond, ...) do {						\
	if (!(_cond)) {							\
		complain(c, __VA_ARGS__);				\
		return;							\
	}								\
} while (0)

/* Or it is nothing that this kernel has. */
#define HAVE(_cond, _what) do {						\
	if (!(_cond)) {							\
		lacks(c, _what);					\
		return;							\
	}								\
} while (0)

/* See README: it would not stay with the test. */
#define HAVE_LEAVE(_what)						\
	HAVE(getenv("DPUT_DISPOSABLE"), _what ": DPUT_DISPOSABLE is not set")

/* --- Situations --------------------------------------------------------- */

static void add_part(struct cell *c, struct peer *p, unsigned long addr,
		     size_t first, size_t end, bool read_only)
{
	c->place[c->nr++] = (struct place){ p, addr, first, end, read_only, 1 };
}

static void add(struct cell *c, struct peer *p, unsigned long addr)
{
	add_part(c, p, addr, 0, c->npages, false);
}

/* Is the folio of a page of @order, which is aligned to its size? */
static bool in_folio_of(unsigned long pfn, int order)
{
	unsigned long head = pfn & -(1UL << order), last = head + (1UL << order) - 1;

	if (!order)
		return !(kpageflags(pfn) & (KPF_COMPOUND_HEAD | KPF_COMPOUND_TAIL));
	return kpageflags(head) & KPF_COMPOUND_HEAD &&
	       kpageflags(head + 1) & KPF_COMPOUND_TAIL &&
	       kpageflags(last) & KPF_COMPOUND_TAIL &&
	       !(kpageflags(last + 1) & KPF_COMPOUND_TAIL);
}

static int try_fresh(struct cell *c, struct peer *p, unsigned long addr)
{
	size_t i;

	if (c->k->kind == FILEMAP) {
		if (peer_mmap(p, addr, c->len, RW, MAP_PRIVATE | MAP_FIXED_NOREPLACE,
			      c->fd) != (long)addr)
			return -1;
	} else if (peer_map(p, addr, c->len, RW)) {
		return -1;
	}
	if (peer_madvise(p, addr, c->len,
			 c->k->kind & LARGE ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) ||
	    peer_stamp(p, addr, c->npages, 0, 1, 1))
		return -1;
	if (c->k->kind & HUGE && !is_huge(p->pid, addr, c->len) &&
	    (peer_madvise(p, addr, c->len, MADV_COLLAPSE) ||
	     !is_huge(p->pid, addr, c->len)))
		return -1;
	for (i = 0; i < c->npages; i += c->k->folio_pages)
		if (!in_folio_of(proc_pfn(p->pid, addr + i * ps),
				 __builtin_ctzl(c->k->folio_pages)))
			return -1;
	return 0;
}

static int fresh(struct cell *c, struct peer *p, unsigned long addr)
{
	int try;

	/* Large folios may have to be made first. */
	for (try = 0; try_fresh(c, p, addr); try++) {
		if (try == TRIES)
			return -1;
		peer_munmap(p, addr, c->len);
		usleep(100000);
	}
	return 0;
}

static int copy(struct cell *c, struct peer *from, unsigned long src,
		struct peer *to, unsigned long dst)
{
	return peer_dput(from, src, to, dst, c->len, 0);
}

/* One folio at three addresses of one process */
static int twice(struct cell *c)
{
	add(c, &c->me, AT(0));
	add(c, &c->me, AT(1));
	add(c, &c->me, AT(2));
	return fresh(c, &c->me, AT(0)) ||
	       copy(c, &c->me, AT(0), &c->me, AT(1)) ||
	       copy(c, &c->me, AT(1), &c->me, AT(2));
}

/* A child's folio in its parent, and in another child */
static int child(struct cell *c)
{
	add(c, &c->a, AT(0));
	add(c, &c->me, AT(1));
	add(c, &c->b, AT(2));
	return peer_start(&c->a) || peer_start(&c->b) ||
	       fresh(c, &c->a, AT(0)) ||
	       copy(c, &c->a, AT(0), &c->me, AT(1)) ||
	       copy(c, &c->a, AT(0), &c->b, AT(2));
}

/* The same, when that child is gone */
static int orphan(struct cell *c)
{
	add(c, &c->me, AT(1));
	add(c, &c->b, AT(2));
	add(c, &c->me, AT(3));
	if (peer_start(&c->a) || peer_start(&c->b) ||
	    fresh(c, &c->a, AT(0)) ||
	    copy(c, &c->a, AT(0), &c->me, AT(1)) ||
	    copy(c, &c->me, AT(1), &c->b, AT(2)) ||
	    copy(c, &c->me, AT(1), &c->me, AT(3)))
		return -1;
	peer_stop(&c->a);
	return 0;
}

/* A to B to C to D to A */
static int ring(struct cell *c)
{
	add(c, &c->me, AT(0));
	add(c, &c->a, AT(1));
	add(c, &c->b, AT(2));
	add(c, &c->c, AT(3));
	add(c, &c->me, AT(4));
	return peer_start(&c->a) || peer_start(&c->b) || peer_start(&c->c) ||
	       fresh(c, &c->me, AT(0)) ||
	       copy(c, &c->me, AT(0), &c->a, AT(1)) ||
	       copy(c, &c->a, AT(1), &c->b, AT(2)) ||
	       copy(c, &c->b, AT(2), &c->c, AT(3)) ||
	       copy(c, &c->c, AT(3), &c->me, AT(4));
}

/* Copies of copies and a fork of one, of which those in between are gone */
static int branches(struct cell *c)
{
	add(c, &c->me, AT(0));
	add(c, &c->c, AT(1));
	add(c, &c->me, AT(3));
	add(c, &c->me, AT(4));
	if (peer_start(&c->a) || peer_start(&c->b) ||
	    fresh(c, &c->me, AT(0)) ||
	    copy(c, &c->me, AT(0), &c->a, AT(1)) ||
	    copy(c, &c->a, AT(1), &c->b, AT(2)) ||
	    peer_fork(&c->a, &c->c) ||
	    copy(c, &c->b, AT(2), &c->me, AT(3)) ||
	    copy(c, &c->c, AT(1), &c->me, AT(4)) ||
	    peer_munmap(&c->a, AT(1), c->len))
		return -1;
	peer_stop(&c->b);
	return 0;
}

/*
 * There and back, until the last copy is linked to more anon_vmas than dput() looks
 * through for something to share
 */
#define GENERATIONS	20

static unsigned long generation(struct cell *c, int n)
{
	return AT(n / 4) + n % 4 * 2 * c->len;
}

static int chain(struct cell *c)
{
	struct peer *side[] = { &c->me, &c->a };
	int n;

	if (peer_start(&c->a) || fresh(c, &c->me, AT(0)))
		return -1;
	add(c, &c->me, AT(0));
	for (n = 1; n < GENERATIONS; n++) {
		add(c, side[n % 2], generation(c, n));
		if (copy(c, side[(n - 1) % 2], generation(c, n - 1),
			 side[n % 2], generation(c, n)))
			return -1;
	}
	return 0;
}

/* Copies that were moved, cut, and changed in part */
static int cut(struct cell *c)
{
	size_t q = c->npages / 4;

	add(c, &c->me, AT(0));
	add_part(c, &c->a, AT(3), 2 * q, 4 * q, false);
	add_part(c, &c->me, AT(4), 0, q, false);
	add_part(c, &c->me, AT(4), q, 2 * q, true);
	add_part(c, &c->me, AT(4), 2 * q, 3 * q, false);
	return peer_start(&c->a) ||
	       fresh(c, &c->me, AT(0)) ||
	       copy(c, &c->me, AT(0), &c->a, AT(1)) ||
	       copy(c, &c->a, AT(1), &c->me, AT(2)) ||
	       peer_mremap(&c->a, AT(1), c->len, AT(3)) ||
	       peer_mremap(&c->me, AT(2), c->len, AT(4)) ||
	       peer_munmap(&c->a, AT(3), 2 * q * ps) ||
	       peer_munmap(&c->me, AT(4) + 3 * q * ps, q * ps) ||
	       peer_mprotect(&c->me, AT(4) + q * ps, q * ps, PROT_READ);
}

static const struct situation situations[] = {
	{ "twice", ANY, twice },
	{ "child", ANY & ~PMD_OFF, child },
	{ "orphan", ANY & ~PMD_OFF, orphan },
	{ "ring", SMALL | MTHP | PMD, ring },
	{ "branches", SMALL | MTHP | PMD, branches },
	{ "chain", SMALL, chain },
	{ "cut", ANY & ~PMD_OFF, cut },
};

/* --- What is where ------------------------------------------------------ */

#define for_each_place(_pl)	for (_pl = c->place; _pl < c->place + c->nr; _pl++)

static unsigned long place_start(const struct place *pl)
{
	return pl->addr + pl->first * ps;
}

static unsigned long place_end(const struct place *pl)
{
	return pl->addr + pl->end * ps;
}

static size_t place_len(const struct place *pl)
{
	return (pl->end - pl->first) * ps;
}

static bool covers(const struct place *pl, size_t page)
{
	return page >= pl->first && page < pl->end;
}

static int nr_covering(struct cell *c, size_t page)
{
	struct place *pl;
	int n = 0;

	for_each_place(pl)
		n += covers(pl, page);
	return n;
}

/* The pagemap entries of a place; 0 for pages that it does not cover */
static void place_read(const struct place *pl, uint64_t *entry)
{
	size_t n = pl->end - pl->first;
	char path[64];
	int fd;

	memset(entry, 0, MAX_PAGES * sizeof(*entry));
	snprintf(path, sizeof(path), "/proc/%d/pagemap", pl->p->pid);
	fd = open(path, O_RDONLY);
	if (pread(fd, entry + pl->first, n * 8, place_start(pl) / ps * 8) != (ssize_t)n * 8)
		memset(entry, 0, MAX_PAGES * sizeof(*entry));
	close(fd);
}

/* Page frame numbers; 0 for pages that are not present */
static void place_pfns(const struct place *pl, unsigned long *pfn)
{
	uint64_t entry[MAX_PAGES];
	size_t i;

	place_read(pl, entry);
	for (i = 0; i < MAX_PAGES; i++)
		pfn[i] = entry[i] & PM_PRESENT ? entry[i] & PM_PFN_MASK : 0;
}

/* Nodes; -errno where there is no page */
static void place_nodes(const struct place *pl, int *status)
{
	void *pages[MAX_PAGES];
	size_t i;

	for (i = pl->first; i < pl->end; i++)
		pages[i] = (void *)(pl->addr + i * ps);
	if (syscall(__NR_move_pages, pl->p->pid, pl->end - pl->first, pages + pl->first,
		    NULL, status + pl->first, 0))
		status[pl->first] = -1;
}

static bool place_on_node(const struct place *pl, int node)
{
	int status[MAX_PAGES];
	size_t i;

	place_nodes(pl, status);
	for (i = pl->first; i < pl->end; i++)
		if (status[i] != node)
			return false;
	return true;
}

static int other_node(const struct place *pl)
{
	int status[MAX_PAGES];

	place_nodes(pl, status);
	return status[pl->first] == nodes[0] ? nodes[1] : nodes[0];
}

static size_t place_swapped(const struct place *pl)
{
	uint64_t entry[MAX_PAGES];
	size_t i, n = 0;

	place_read(pl, entry);
	for (i = 0; i < MAX_PAGES; i++)
		n += !!(entry[i] & PM_SWAP);
	return n;
}

static bool all_swapped(struct cell *c)
{
	struct place *pl;

	for_each_place(pl)
		if (place_swapped(pl) != pl->end - pl->first)
			return false;
	return true;
}

static void check_contents(struct cell *c)
{
	struct place *pl;
	long bad;

	for_each_place(pl) {
		bad = peer_check(pl->p, pl->addr, pl->end, pl->first, 1, pl->seed);
		WANT(bad == -1, "place %td: page %ld has a wrong content", pl - c->place, bad);
	}
}

/*
 * Each page is the same one in all places; if not @swapped, it is mapped there
 * and nowhere else. @pfn is of place 0, which covers all pages.
 */
static void check_shared_as(struct cell *c, bool swapped, unsigned long *pfn)
{
	uint64_t entry[MAX_PLACES][MAX_PAGES], again[MAX_PAGES];
	size_t i;
	long n;
	int k, try = 0;

	/* Nobody moved them while one place was read after the other. */
	do {
		for (k = 0; k < c->nr; k++)
			place_read(&c->place[k], entry[k]);
		place_read(&c->place[0], again);
	} while (memcmp(entry[0], again, sizeof(again)) && ++try < TRIES);
	for (i = 0; i < c->npages; i++) {
		uint64_t e = entry[0][i];

		NEED(e & (swapped ? PM_SWAP : PM_PRESENT), "page %zu is not there", i);
		for (k = 1; k < c->nr; k++)
			NEED(!covers(&c->place[k], i) ||
			     (entry[k][i] & (PM_PFN_MASK | PM_PRESENT | PM_SWAP)) ==
			     (e & (PM_PFN_MASK | PM_PRESENT | PM_SWAP)),
			     "page %zu is another one in place %d", i, k);
		if (pfn)
			pfn[i] = e & PM_PFN_MASK;
		if (swapped)
			continue;
		n = kpagecount(e & PM_PFN_MASK);
		NEED(n == nr_covering(c, i), "page %zu is mapped %ld times, not %d", i, n,
		     nr_covering(c, i));
	}
}

static void check_shared(struct cell *c)
{
	check_shared_as(c, false, NULL);
}

/* Sums of smaps: what is mapped N times counts for one Nth in each place. */
static void check_smaps(struct cell *c, bool swapped)
{
	long sum = 0, vmas = 0, kb;
	struct place *pl;

	for_each_place(pl) {
		unsigned long start = place_start(pl), end = place_end(pl);

		kb = proc_smaps_kb(pl->p->pid, start, end, swapped ? "Swap" : "Rss");
		WANT(kb == (long)(place_len(pl) >> 10), "place %td: %s %ld kB, not %zu",
		     pl - c->place, swapped ? "Swap" : "Rss", kb, place_len(pl) >> 10);
		sum += proc_smaps_kb(pl->p->pid, start, end, swapped ? "SwapPss" : "Pss");
		vmas += proc_count_vmas(pl->p->pid, start, end);
	}
	kb = c->len >> 10;
	WANT(sum <= kb && sum >= kb - vmas, "the sum of %s is %ld kB, not %ld",
	     swapped ? "SwapPss" : "Pss", sum, kb);
}

/* All is as it was set up. */
static void check_all(struct cell *c)
{
	struct place *pl;

	check_contents(c);
	check_shared(c);
	check_smaps(c, false);
	for_each_place(pl) {
		const char *want = pl->read_only ? "r--p" : "rw-p";

		WANT(!strcmp(proc_perms(pl->p->pid, place_start(pl)), want),
		     "place %td is not %s", pl - c->place, want);
	}
}

/* Each place is written in turn, and no other sees it. */
static void check_isolated(struct cell *c)
{
	struct place *pl;

	check_contents(c);
	for_each_place(pl) {
		if (pl->read_only) {
			WANT(!peer_writable(pl->p, place_start(pl)), "place %td is writable",
			     pl - c->place);
			continue;
		}
		pl->seed = 10 + (pl - c->place);
		NEED(!peer_stamp(pl->p, pl->addr, pl->end, pl->first, 1, pl->seed),
		     "place %td cannot be written", pl - c->place);
		check_contents(c);
	}
}

/* Wait for something that others do, for as long as that may take. */
#define PATIENCE	120000L	/* ms */
#define WAIT_FOR(_cond)	WAIT_MS(PATIENCE, _cond)
#define WAIT_MS(_ms, _cond) ({						\
	long _until = now_ms() + (_ms);					\
	bool _done;							\
									\
	/* Whoever was not let run for long has another look. */	\
	while (!(_done = (_cond)) && now_ms() < _until)			\
		usleep(1000);						\
	_done || (_cond);						\
})

/* Pages on their way to the LRU lists cannot be isolated. */
static void drain(void)
{
	setting_write("/proc/sys/vm/drop_caches", "1");
}

/* --- Migration ---------------------------------------------------------- */

/* Each page has left its frame, in all places, and is on that node if any. */
static void check_moved(struct cell *c, const struct place *by, const unsigned long *old,
			int node)
{
	int status[MAX_PAGES];
	unsigned long pfn[MAX_PAGES];
	struct place *pl;
	size_t i;

	check_shared_as(c, false, pfn);
	check_contents(c);
	for (i = by->first; i < by->end; i++)
		NEED(pfn[i] != old[i], "page %zu has not moved", i);
	if (node < 0)
		return;
	for_each_place(pl) {
		place_nodes(pl, status);
		for (i = pl->first; i < pl->end; i++)
			NEED(status[i] == node || !covers(by, i),
			     "page %zu is on node %d in place %td, not on %d", i, status[i],
			     pl - c->place, node);
	}
}

static bool move_place(const struct place *pl, int to)
{
	int node[MAX_PAGES], status[MAX_PAGES], try;
	void *pages[MAX_PAGES];
	size_t i;

	for (i = pl->first; i < pl->end; i++) {
		pages[i] = (void *)(pl->addr + i * ps);
		node[i] = to;
	}
	/* Migration gives up on a page that someone holds for a moment. */
	for (try = 0; try < TRIES; try++) {
		if (syscall(__NR_move_pages, pl->p->pid, pl->end - pl->first,
			    pages + pl->first, node + pl->first, status, MPOL_MF_MOVE_ALL) < 0)
			return false;
		if (place_on_node(pl, to))
			return true;
		drain();
	}
	return false;
}

static void walk_move_pages(struct cell *c)
{
	unsigned long old[MAX_PAGES];
	struct place *pl;

	/* They may come from both nodes. */
	NEED(move_place(&c->place[0], nodes[0]), "not moved to one node");
	for_each_place(pl) {
		int to = other_node(pl);

		place_pfns(&c->place[0], old);
		NEED(move_place(pl, to), "not moved by place %td", pl - c->place);
		check_moved(c, pl, old, to);
	}
}

static void walk_migrate_pages(struct cell *c)
{
	unsigned long from = 1UL << nodes[0] | 1UL << nodes[1], mask;
	unsigned long old[MAX_PAGES];
	struct place *pl;
	int try;

	for (pl = c->place; pl < c->place + c->nr; pl += c->nr - 1) {
		int to = other_node(pl);

		/* To this one first, so that all pages can be seen to move. */
		NEED(move_place(pl, nodes[0] + nodes[1] - to), "cannot be moved");
		place_pfns(&c->place[0], old);
		mask = 1UL << to;
		for (try = 0; try < TRIES && !place_on_node(pl, to); try++)
			WANT(syscall(__NR_migrate_pages, pl->p->pid, 64, &from, &mask) >= 0,
			     "migrate_pages: %s", strerror(errno));
		check_moved(c, pl, old, to);
	}
}

struct mbind_arg {
	unsigned long addr, len, mask;
	int mode, flags;
};

static long op_mbind(void *arg)
{
	struct mbind_arg *a = arg;

	return syscall(__NR_mbind, a->addr, a->len, a->mode, &a->mask, 64, a->flags);
}

static void walk_mbind(struct cell *c)
{
	unsigned long old[MAX_PAGES];
	struct place *pl;
	int try;

	for_each_place(pl) {
		int to = other_node(pl);
		struct mbind_arg a = {
			place_start(pl), place_len(pl), 1UL << to, MPOL_BIND,
			MPOL_MF_MOVE_ALL
		}, none = { a.addr, a.len, 0, MPOL_DEFAULT, 0 };

		NEED(move_place(pl, nodes[0] + nodes[1] - to), "cannot be moved");
		place_pfns(&c->place[0], old);
		for (try = 0; try < TRIES && !place_on_node(pl, to); try++)
			WANT(!peer_call(pl->p, op_mbind, &a, sizeof(a)), "mbind: %s",
			     strerror(errno));
		WANT(!peer_call(pl->p, op_mbind, &none, sizeof(none)), "mbind: %s",
		     strerror(errno));
		check_moved(c, pl, old, to);
	}
}

/* Has each place a page that was seen to move? */
static bool moved_everywhere(struct cell *c, const bool *moved)
{
	struct place *pl;
	size_t i;

	for_each_place(pl) {
		for (i = pl->first; i < pl->end && !moved[i]; i++)
			;
		if (i == pl->end)
			return false;
	}
	return true;
}

/* Memory on a node, of which one page in 64 stays; to be unmapped */
struct ballast {
	char *start;
	size_t len;
};

static bool ballast_get(struct ballast *b, int node)
{
	unsigned long mask = 1UL << node;

	b->len = 1024 * ps;
	b->start = mmap(NULL, b->len, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return b->start != MAP_FAILED &&
	       !madvise(b->start, b->len, MADV_NOHUGEPAGE) &&
	       !syscall(__NR_mbind, b->start, b->len, MPOL_BIND, &mask, 64, 0) &&
	       !madvise(b->start, b->len, MADV_POPULATE_WRITE);
}

static void ballast_punch(struct ballast *b)
{
	size_t i;

	for (i = 0; i < 1024; i += 64)
		madvise(b->start + (i + 1) * ps, 63 * ps, MADV_DONTNEED);
}

/*
 * Compaction takes pages from the beginning of a zone and puts them into holes
 * near its end: into page blocks that are in use, but not fully. So there have
 * to be such, above the pages that are to be seen moving. Where they come to be is
 * up to the kernel, and so is whose pages it moves: again, until some of each place
 * have moved. (None can that has a mapping which the walk does not find.) Not for
 * huge pages, which are as large as what compaction makes room for.
 */
static void walk_compaction(struct cell *c)
{
	unsigned long old[MAX_PAGES], new[MAX_PAGES];
	long until = now_ms() + PATIENCE;
	bool moved[MAX_PAGES] = {};
	struct ballast below, above;
	char node[64];
	size_t i;
	int to;

	while (!moved_everywhere(c, moved) && !c->failed) {
		NEED(now_ms() < until, "nothing was compacted");
		to = other_node(&c->place[0]);
		NEED(ballast_get(&below, to) && move_place(&c->place[0], to) &&
		     ballast_get(&above, to), "no ballast");
		ballast_punch(&below);
		ballast_punch(&above);
		drain();
		place_pfns(&c->place[0], old);
		snprintf(node, sizeof(node), "/sys/devices/system/node/node%d/compact", to);
		NEED(!setting_write(node, "1"), "cannot compact");
		check_shared_as(c, false, new);
		for (i = 0; i < c->npages; i++)
			moved[i] |= old[i] != new[i];
		munmap(below.start, below.len);
		munmap(above.start, above.len);
	}
	check_all(c);
}

static bool block_write(unsigned long block, const char *val)
{
	char path[96];

	snprintf(path, sizeof(path), MEMORY "memory%lu/state", block);
	return !setting_write(path, val);
}

static unsigned long pages_per_block(void)
{
	char buf[64];

	return setting_read(MEMORY "block_size_bytes", buf, sizeof(buf)) ? 0 :
		strtoul(buf, NULL, 16) / ps;
}

/* Is it a block that could be taken offline, but for what the kernel has there? */
static bool block_is_movable(unsigned long block)
{
	char path[96], buf[64];

	snprintf(path, sizeof(path), MEMORY "memory%lu/valid_zones", block);
	return !setting_read(path, buf, sizeof(buf)) && strstr(buf, "Movable");
}

#define CHUNK	(2UL << 20)

/* Memory on the first node that this process has from now on */
static char *take_chunk(bool huge)
{
	char *mem = mmap(NULL, 2 * CHUNK, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *at;
	unsigned long mask = 1UL << nodes[0];

	if (mem == MAP_FAILED)
		return NULL;
	at = (char *)(((unsigned long)mem + CHUNK - 1) & -CHUNK);
	if (syscall(__NR_mbind, at, CHUNK, MPOL_BIND, &mask, 64, 0) ||
	    madvise(at, CHUNK, MADV_DONTFORK) ||
	    madvise(at, CHUNK, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) ||
	    madvise(at, CHUNK, MADV_POPULATE_WRITE))
		return NULL;
	return at;
}

static void interrupted(int sig)
{
}

/* The block that is offline, and 1; shared with the parent */
static unsigned long *offline_block;

/*
 * Take a block offline. The kernel tries for as long as somebody holds a page there,
 * be it for good; a signal ends that.
 */
static bool block_offline(unsigned long block)
{
	struct sigaction sa = { .sa_handler = interrupted };
	pid_t parent = getpid(), pid;
	bool ok;

	sigaction(SIGUSR1, &sa, NULL);
	pid = fork();
	if (!pid) {
		for (sleep(30); getppid() == parent; usleep(100000))
			kill(parent, SIGUSR1);
		_exit(0);
	}
	ok = block_write(block, "offline");
	if (ok)
		*offline_block = block + 1;
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	return ok;
}

/* Also what a walker that failed has left offline */
static bool block_online(void)
{
	if (*offline_block && !block_write(*offline_block - 1, "online_movable"))
		return false;
	*offline_block = 0;
	return true;
}

/*
 * Pages come to be where the kernel has room, and some blocks have memory of the
 * kernel's own: again, elsewhere, until some of each place have had to leave. Not for
 * huge pages: when they are split on the way, parts of them end up again and again
 * in the block that cannot go offline.
 */
static void walk_hotplug(struct cell *c)
{
	unsigned long old[MAX_PAGES], new[MAX_PAGES], per_block = pages_per_block(), block;
	bool moved[MAX_PAGES] = {}, movable = false, again = false;
	long until = now_ms() + PATIENCE;
	size_t i, j;

	HAVE(per_block, "no memory hotplug");
	HAVE_LEAVE("it takes memory offline");
#ifdef __aarch64__
	HAVE(false, "arm64 keeps the memory that it has booted with");
#endif
	while (!moved_everywhere(c, moved) && !c->failed) {
		if (now_ms() > until) {
			HAVE(movable, "no movable memory: boot with movablecore=");
			NEED(false, "no pages have left their block");
		}
		NEED(place_on_node(&c->place[0], nodes[1]) ||
		     move_place(&c->place[0], nodes[1]), "cannot be moved");
		/* Not to the same place again */
		drain();
		NEED(!again || take_chunk(false), "no memory");
		NEED(move_place(&c->place[0], nodes[0]), "cannot be moved");
		drain();
		place_pfns(&c->place[0], old);
		again = true;
		for (i = 0; i < c->npages; i++) {
			block = old[i] / per_block;
			for (j = 0; j < i && old[j] / per_block != block; j++)
				;
			if (j < i || !block_is_movable(block))
				continue;
			movable = true;
			if (!block_offline(block))
				continue;
			again = false;
			check_shared_as(c, false, new);
			for (j = 0; j < c->npages; j++) {
				WANT(new[j] / per_block != block, "page %zu is still there", j);
				moved[j] |= old[j] / per_block == block;
			}
			WANT(block_online(), "block %lu stays offline", block);
		}
	}
	check_all(c);
}

/* --- Reclaim ------------------------------------------------------------ */

static bool reclaim_all(struct cell *c)
{
	int try;

	for (try = 0; try < TRIES; try++) {
		cgroup_reclaim("64M");
		if (all_swapped(c))
			return true;
		drain();
	}
	return false;
}

static void check_swapped(struct cell *c)
{
	check_shared_as(c, true, NULL);
	check_smaps(c, true);
}

/* Out and in, and out again as what came in */
static void walk_reclaim(struct cell *c)
{
	int i;

	for (i = 0; i < 2; i++) {
		NEED(reclaim_all(c), "not reclaimed");
		check_swapped(c);
		check_all(c);
	}
	check_isolated(c);
	NEED(reclaim_all(c), "not reclaimed when it was written");
	check_contents(c);
}

static void walk_swapoff(struct cell *c)
{
	struct place *pl;

	NEED(reclaim_all(c), "not reclaimed");
	NEED(!swap_off(), "swapoff: %s", strerror(errno));
	for_each_place(pl)
		WANT(!place_swapped(pl), "place %td has pages in swap", pl - c->place);
	check_all(c);
	check_isolated(c);
}

static void unmap_but(struct cell *c, const struct place *keep)
{
	struct place *pl, last = *keep;

	for_each_place(pl)
		if (pl != keep)
			peer_munmap(pl->p, place_start(pl), place_len(pl));
	c->place[0] = last;
	c->nr = 1;
}

/* What is mapped elsewhere is left alone or goes everywhere. */
static void walk_pageout(struct cell *c)
{
	uint64_t entry[MAX_PLACES][MAX_PAGES];
	struct place *pl;
	size_t i;
	int k, try;

	for_each_place(pl) {
		NEED(!peer_madvise(pl->p, place_start(pl), place_len(pl), MADV_PAGEOUT),
		     "MADV_PAGEOUT: %s", strerror(errno));
		for (k = 0; k < c->nr; k++)
			place_read(&c->place[k], entry[k]);
		for (i = 0; i < c->npages; i++)
			for (k = 1; k < c->nr; k++)
				NEED(!covers(&c->place[k], i) ||
				     !((entry[k][i] ^ entry[0][i]) & (PM_PRESENT | PM_SWAP)),
				     "page %zu was paged out in one place", i);
		check_contents(c);
	}
	/* Mapped in one place only, it has to go. */
	unmap_but(c, &c->place[c->nr - 1]);
	check_contents(c);
	for (try = 0; try < TRIES && !all_swapped(c); try++) {
		peer_madvise(c->place[0].p, place_start(&c->place[0]),
			     place_len(&c->place[0]), MADV_PAGEOUT);
		drain();
	}
	WANT(all_swapped(c), "not paged out");
	check_contents(c);
}

static void walk_cold(struct cell *c)
{
	struct place *pl;

	for_each_place(pl)
		NEED(!peer_madvise(pl->p, place_start(pl), place_len(pl), MADV_COLD),
		     "MADV_COLD: %s", strerror(errno));
	check_all(c);
}

/* Pages of a place that read as zeroes; -1 if one holds anything else foreign */
static long place_lost(struct place *pl)
{
	uint64_t v, want;
	long n = 0;
	size_t i;

	for (i = pl->first; i < pl->end; i++) {
		if (peer_read(pl->p, pl->addr + i * ps, &v, sizeof(v)))
			return -1;
		want = ((uint64_t)pl->seed << 48) + ((uint64_t)i << 8) + 1;
		if (v && v != want)
			return -1;
		n += !v;
	}
	return n;
}

/* What one place gives away, the others keep. */
static void walk_madv_free(struct cell *c)
{
	struct place *pl, *last = &c->place[c->nr - 1];
	int try;
	long n;

	pl = &c->place[0];
	NEED(!peer_madvise(pl->p, place_start(pl), place_len(pl), MADV_FREE),
	     "MADV_FREE: %s", strerror(errno));
	for (try = 0; try < 3; try++)
		cgroup_reclaim("64M");
	NEED(place_lost(pl) >= 0, "place 0 has a foreign content");
	for (pl = c->place + 1; pl <= last; pl++)
		WANT(peer_check(pl->p, pl->addr, pl->end, pl->first, 1, pl->seed) == -1,
		     "place %td has lost what place 0 has given away", pl - c->place);
	/* The only place: now it has to be freed. */
	unmap_but(c, last);
	pl = &c->place[0];
	check_contents(c);
	for (n = try = 0; try < TRIES && n == 0; try++) {
		drain();
		peer_madvise(pl->p, place_start(pl), place_len(pl), MADV_FREE);
		cgroup_reclaim("64M");
		n = place_lost(pl);
	}
	WANT(n > 0, "nothing was freed");
}

/* --- mlock() ------------------------------------------------------------ */

/* Of what is there; mlock() would write to it, and have pages of its own. */
static long op_mlock(void *arg)
{
	unsigned long *a = arg;

	return mlock2((void *)a[0], a[1], MLOCK_ONFAULT);
}

static long op_munlock(void *arg)
{
	unsigned long *a = arg;

	return munlock((void *)a[0], a[1]);
}

static bool lock_place(struct place *pl, bool lock)
{
	unsigned long a[2] = { place_start(pl), place_len(pl) };

	return !peer_call(pl->p, lock ? op_mlock : op_munlock, a, sizeof(a));
}

static size_t nr_unevictable(struct cell *c)
{
	unsigned long pfn[MAX_PAGES];
	size_t i, n = 0;

	drain();
	place_pfns(&c->place[0], pfn);
	for (i = 0; i < c->npages; i++)
		n += !!(kpageflags(pfn[i]) & KPF_UNEVICTABLE);
	return n;
}

/* Locked in one place, a page stays; locked in two, until both let go. */
static void walk_mlock(struct cell *c)
{
	struct place *first = &c->place[0], *last = &c->place[c->nr - 1];
	int i, j;

	/* A large folio is only marked where all of it is in one mapping. */
	bool marked = !(c->k->kind & LARGE);

	NEED(lock_place(first, true), "mlock: %s", strerror(errno));
	WANT(proc_status_kb(first->p->pid, "VmLck") == (long)(place_len(first) >> 10),
	     "VmLck %ld kB", proc_status_kb(first->p->pid, "VmLck"));
	for (i = 0; i < 2; i++) {
		for (j = 0; j < 3; j++)
			cgroup_reclaim("64M");
		WANT(!place_swapped(i ? last : first), "reclaimed in round %d", i);
		check_contents(c);
		if (marked)
			WANT(nr_unevictable(c) == (i ? last->end - last->first : c->npages),
			     "%zu pages are unevictable in round %d", nr_unevictable(c), i);
		if (i)
			break;
		NEED(lock_place(last, true), "mlock: %s", strerror(errno));
		NEED(lock_place(first, false), "munlock: %s", strerror(errno));
	}
	NEED(lock_place(last, false), "munlock: %s", strerror(errno));
	WANT(!nr_unevictable(c), "%zu pages stay unevictable", nr_unevictable(c));
	WANT(!proc_status_kb(last->p->pid, "VmLck"), "VmLck is left");
	NEED(reclaim_all(c), "not reclaimed when it is not locked any more");
	check_contents(c);
}

/* --- Who has accessed it ------------------------------------------------ */

struct touch_arg {
	unsigned long addr, len;
	int prot;
};

/* An access that a CPU cannot satisfy by what it knows already */
static long op_touch(void *arg)
{
	struct touch_arg *a = arg;
	unsigned long i;

	if (mprotect((void *)a->addr, a->len, PROT_NONE) ||
	    mprotect((void *)a->addr, a->len, a->prot))
		return -1;
	for (i = 0; i < a->len; i += ps)
		(void)*(volatile char *)(a->addr + i);
	return 0;
}

static bool touch_place(struct place *pl)
{
	struct touch_arg a = {
		place_start(pl), place_len(pl), pl->read_only ? PROT_READ : RW
	};

	return !peer_call(pl->p, op_touch, &a, sizeof(a));
}

static bool idle_read(unsigned long pfn, uint64_t *word)
{
	int fd = open("/sys/kernel/mm/page_idle/bitmap", O_RDONLY);
	bool ok = pread(fd, word, 8, pfn / 64 * 8) == 8;

	close(fd);
	return ok;
}

static bool idle_get(unsigned long pfn)
{
	uint64_t word;

	return idle_read(pfn, &word) && word >> pfn % 64 & 1;
}

static bool idle_set(unsigned long pfn)
{
	uint64_t word = 1ULL << pfn % 64;
	int fd = open("/sys/kernel/mm/page_idle/bitmap", O_WRONLY);
	bool ok = pwrite(fd, &word, 8, pfn / 64 * 8) == 8;

	close(fd);
	return ok;
}

/* Migration may have split what was large. */
static unsigned long folio_head(unsigned long pfn, size_t n)
{
	return kpageflags(pfn) & (KPF_COMPOUND_HEAD | KPF_COMPOUND_TAIL) ? pfn & -n : pfn;
}

/* The last pages of memory cannot be asked about, if they are no multiple of 64. */
static bool idle_known(struct cell *c)
{
	unsigned long pfn[MAX_PAGES];
	uint64_t word;
	size_t i;

	place_pfns(&c->place[0], pfn);
	for (i = 0; i < c->npages; i++)
		if (!idle_read(pfn[i], &word))
			return false;
	return true;
}

/* Pages may be on both nodes: those that are where they shall be do not move. */
static bool idle_make_known(struct cell *c)
{
	size_t i;

	for (i = 0; i < 2 && !idle_known(c); i++)
		if (!move_place(&c->place[0], nodes[i]))
			return false;
	return idle_known(c);
}

/* false if there is a page, of those at @head, that did not become idle */
static bool idle_set_all(struct cell *c, unsigned long *head)
{
	bool ok = true;
	size_t i;

	place_pfns(&c->place[0], head);
	for (i = 0; i < c->npages; i++) {
		head[i] = folio_head(head[i], c->k->folio_pages);
		if (!i || head[i] != head[i - 1])
			ok &= idle_set(head[i]) && idle_get(head[i]);
	}
	return ok;
}

/*
 * An access by any of its places makes a page busy. The kernel gives up on a page that
 * somebody holds for a moment, so it is asked again; what it says in the end lasts.
 * NULL if all is well, or else what is not.
 */
static const char *idle_round(struct cell *c, struct place *pl)
{
	unsigned long head[MAX_PAGES], now[MAX_PAGES];
	static char wrong[64];
	size_t i, j, k;
	bool used;

	if (!WAIT_MS(5000, ({ drain(); idle_set_all(c, head); })))
		return "a page does not become idle";
	if (!touch_place(pl))
		return "a place cannot be accessed";
	for (i = 0; i < c->npages; i = j) {
		for (used = false, j = i; j < c->npages && head[j] == head[i]; j++)
			used |= covers(pl, j);
		if (WAIT_MS(1000, idle_get(head[i]) == !used))
			continue;
		place_pfns(&c->place[0], now);
		snprintf(wrong, sizeof(wrong), "page %zu is %s", i, used ? "idle" : "not idle");
		for (k = 0; k < c->npages; k++)
			if (folio_head(now[k], c->k->folio_pages) != head[k])
				return "pages are being moved";
		return wrong;
	}
	return NULL;
}

static void walk_idle(struct cell *c)
{
	const char *wrong;
	struct place *pl;
	char buf[32];

	/* The multi-generational LRU takes note of an access, but not for page_idle. */
	if (!setting_read(LRU_GEN, buf, sizeof(buf)) && strtoul(buf, NULL, 0)) {
		HAVE_LEAVE("what lru_gen knows of all memory would be forgotten");
		setting_write(LRU_GEN, "0");
	}
	NEED(idle_make_known(c), "pages that page_idle does not tell about");
	/* Others may use a page, too: by reading its memory, say. */
	for_each_place(pl)
		WANT(WAIT_FOR(!(wrong = idle_round(c, pl))), "%s, by place %td", wrong,
		     pl - c->place);
	setting_restore(LRU_GEN);
	check_all(c);
}

/* --- DAMON -------------------------------------------------------------- */

static bool damon_write(const char *file, const char *fmt, ...)
{
	char path[160], val[64];
	va_list args;

	va_start(args, fmt);
	vsnprintf(val, sizeof(val), fmt, args);
	va_end(args);
	snprintf(path, sizeof(path), DAMON "%s", file);
	return !setting_write(path, val);
}

/* Bytes that a scheme has found so far: in each aggregation, all or none */
static long damon_stat(int scheme)
{
	char path[128], buf[32];

	damon_write("0/state", "update_schemes_stats");
	snprintf(path, sizeof(path), DAMON "0/contexts/0/schemes/%d/stats/sz_tried", scheme);
	return setting_read(path, buf, sizeof(buf)) ? -1 : atol(buf);
}

static bool damon_scheme(int n, const char *action, unsigned int min, unsigned int max)
{
	char path[96];

#define SCHEME(_file, ...) ({						\
	snprintf(path, sizeof(path), "0/contexts/0/schemes/%d/" _file, n); \
	damon_write(path, __VA_ARGS__);					\
})
	return SCHEME("action", "%s", action) &&
	       SCHEME("access_pattern/sz/max", "%lu", -1UL) &&
	       SCHEME("access_pattern/nr_accesses/min", "%u", min) &&
	       SCHEME("access_pattern/nr_accesses/max", "%u", max) &&
	       SCHEME("access_pattern/age/max", "%u", 1U << 30);
#undef SCHEME
}

static int by_pfn(const void *a, const void *b)
{
	unsigned long x = *(const unsigned long *)a, y = *(const unsigned long *)b;

	return x < y ? -1 : x > y;
}

/* Did nobody use it when this program began? */
static bool damon_is_free;

static void damon_look(void)
{
	char buf[32];

	damon_is_free = !setting_read(DAMON "nr_kdamonds", buf, sizeof(buf)) && !atol(buf);
}

static bool has_damon(void)
{
	return damon_is_free && !access(DAMON "nr_kdamonds", W_OK);
}

/* Have the physical memory of that many pages watched. */
static bool damon_prepare(struct cell *c, size_t npages, int schemes)
{
	unsigned long pfn[MAX_PAGES];
	char path[96];
	size_t i, n;

	place_pfns(&c->place[0], pfn);
	qsort(pfn, npages, sizeof(*pfn), by_pfn);
	/* Neighbours are one region. */
	for (n = 0, i = 1; i < npages; i++)
		n += pfn[i] != pfn[i - 1] + 1;
	if (!damon_write("nr_kdamonds", "1") ||
	    !damon_write("0/contexts/nr_contexts", "1") ||
	    !damon_write("0/contexts/0/operations", "paddr") ||
	    !damon_write("0/contexts/0/monitoring_attrs/intervals/sample_us", "1000") ||
	    !damon_write("0/contexts/0/monitoring_attrs/intervals/aggr_us", "10000") ||
	    !damon_write("0/contexts/0/targets/nr_targets", "1") ||
	    !damon_write("0/contexts/0/targets/0/regions/nr_regions", "%zu", n + 1) ||
	    !damon_write("0/contexts/0/schemes/nr_schemes", "%d", schemes))
		return false;
	for (n = 0, i = 0; i < npages; i++) {
		bool first = !i || pfn[i] != pfn[i - 1] + 1;
		bool last = i == npages - 1 || pfn[i + 1] != pfn[i] + 1;

		snprintf(path, sizeof(path), "0/contexts/0/targets/0/regions/%zu/%s", n, "start");
		if (first && !damon_write(path, "%lu", pfn[i] * ps))
			return false;
		snprintf(path, sizeof(path), "0/contexts/0/targets/0/regions/%zu/%s", n, "end");
		if (last && !damon_write(path, "%lu", (pfn[i] + 1) * ps))
			return false;
		n += last;
	}
	return true;
}

static void damon_off(void)
{
	if (!has_damon())
		return;
	damon_write("0/state", "off");
	damon_write("nr_kdamonds", "0");
}

/* Is it cold for three aggregations? */
static bool damon_quiet(size_t len)
{
	long hot = damon_stat(0), cold = damon_stat(1), until = now_ms() + PATIENCE / 4;

	while (damon_stat(1) < cold + 3 * (long)len)
		if (damon_stat(0) != hot || now_ms() > until)
			return false;
	return hot >= 0 && damon_stat(0) == hot;
}

/*
 * It is cold until any of its places is accessed. Three times: what others do with
 * it does not come as regularly as that.
 */
static void damon_watch(struct cell *c, size_t len)
{
	struct place *pl;
	long hot;
	int i;

	for_each_place(pl) {
		if (!covers(pl, 0))
			continue;
		for (i = 0; i < 3; i++) {
			NEED(WAIT_FOR(damon_quiet(len)), "never cold, by place %td",
			     pl - c->place);
			hot = damon_stat(0);
			NEED(WAIT_FOR(touch_place(pl) && damon_stat(0) > hot),
			     "an access by place %td is not seen", pl - c->place);
		}
	}
}

static void walk_damon_access(struct cell *c)
{
	HAVE(has_damon(), "no DAMON, or somebody uses it");
	drain();
	NEED(damon_prepare(c, c->k->folio_pages, 2) &&
	     damon_write("0/contexts/0/monitoring_attrs/nr_regions/min", "3") &&
	     damon_write("0/contexts/0/monitoring_attrs/nr_regions/max", "3") &&
	     damon_scheme(0, "stat", 1, 1000) && damon_scheme(1, "stat", 0, 0) &&
	     damon_write("0/state", "on"), "no DAMON");
	damon_watch(c, c->k->folio_pages * ps);
	damon_off();
	check_all(c);
}

static void walk_damon_migrate(struct cell *c)
{
	struct place *pl = &c->place[0];
	int to = other_node(pl);
	unsigned long old[MAX_PAGES];

	HAVE(has_damon(), "no DAMON, or somebody uses it");
	drain();
	NEED(move_place(pl, nodes[0] + nodes[1] - to), "cannot be moved");
	place_pfns(pl, old);
	NEED(damon_prepare(c, c->npages, 1) && damon_scheme(0, "migrate_cold", 0, 1000) &&
	     damon_write("0/contexts/0/schemes/0/target_nid", "%d", to) &&
	     damon_write("0/state", "on"), "no DAMON");
	WANT(WAIT_FOR(place_on_node(pl, to)), "not migrated");
	damon_off();
	check_moved(c, pl, old, to);
}

static void walk_damon_pageout(struct cell *c)
{
	HAVE(has_damon(), "no DAMON, or somebody uses it");
	drain();
	NEED(damon_prepare(c, c->npages, 1) && damon_scheme(0, "pageout", 0, 1000) &&
	     damon_write("0/state", "on"), "no DAMON");
	WANT(WAIT_FOR(all_swapped(c)), "not paged out");
	damon_off();
	check_isolated(c);
}

/* --- Large folios ------------------------------------------------------- */

static bool split_by(struct place *pl, int order)
{
	char buf[96];

	snprintf(buf, sizeof(buf), "%d,0x%lx,0x%lx,%d", pl->p->pid, place_start(pl),
		 place_end(pl), order);
	return !setting_write(DEBUGFS "split_huge_pages", buf);
}

static bool is_split(struct place *pl, int order)
{
	unsigned long pfn[MAX_PAGES];
	size_t i;

	place_pfns(pl, pfn);
	for (i = pl->first; i < pl->end; i += 1UL << order)
		if (!pfn[i] || !in_folio_of(pfn[i], order))
			return false;
	return true;
}

static bool split_place(struct place *pl, int order)
{
	int try;

	for (try = 0; try < TRIES && !is_split(pl, order); try++) {
		/* It gives up on a folio that someone holds for a moment. */
		drain();
		if (!split_by(pl, order))
			return false;
	}
	return is_split(pl, order);
}

static void split_to(struct cell *c, struct place *pl, int order)
{
	unsigned long old[MAX_PAGES], new[MAX_PAGES];
	struct place same = c->place[0];

	same.first = pl->first;
	same.end = pl->end;
	place_pfns(&c->place[0], old);
	NEED(split_place(pl, order), "not split to order %d", order);
	WANT(is_split(&same, order), "not split in place 0");
	check_shared_as(c, false, new);
	WANT(!memcmp(old, new, sizeof(old)), "other pages than before");
	check_all(c);
}

static void walk_split(struct cell *c)
{
	split_to(c, &c->place[c->nr - 1], 0);
	check_isolated(c);
}

static void walk_split_to_order(struct cell *c)
{
	int order = c->k->kind == MTHP ? 2 : 4;

	split_to(c, &c->place[0], order);
	/* What is left are large folios in all of the places. */
	walk_move_pages(c);
	check_isolated(c);
}

/* A part that is mapped nowhere any more has the folio split in time. */
static void walk_deferred_split(struct cell *c)
{
	size_t keep = c->npages - c->k->folio_pages / 2;
	struct place *pl, tail;
	int try;

	for_each_place(pl) {
		if (pl->end <= keep)
			continue;
		if (pl->first < keep) {
			peer_munmap(pl->p, pl->addr + keep * ps, (pl->end - keep) * ps);
			pl->end = keep;
		} else {
			peer_munmap(pl->p, place_start(pl), place_len(pl));
			*pl-- = c->place[--c->nr];
		}
	}
	c->npages = keep;
	c->len = keep * ps;
	tail = c->place[0];
	tail.first = c->npages - c->k->folio_pages / 2;
	for (try = 0; try < TRIES && !is_split(&tail, 0); try++)
		setting_write("/proc/sys/vm/drop_caches", "3");
	WANT(is_split(&tail, 0), "not split");
	check_all(c);
	check_isolated(c);
}

static bool can_be_huge(struct cell *c, struct place *pl)
{
	return pl->end - pl->first == c->npages && !(pl->addr & (c->len - 1));
}

static void walk_collapse(struct cell *c)
{
	struct place *pl;
	int n = 0;

	NEED(split_place(&c->place[0], 0), "not split");
	check_all(c);
	for_each_place(pl) {
		if (!can_be_huge(c, pl))
			continue;
		n++;
		/* Not while someone holds one of the pages for a moment */
		WANT(WAIT_FOR(({ drain(); !peer_madvise(pl->p, pl->addr, c->len,
							 MADV_COLLAPSE); })),
		     "MADV_COLLAPSE: %s", strerror(errno));
		WANT(is_huge(pl->p->pid, pl->addr, c->len), "place %td did not collapse",
		     pl - c->place);
		check_contents(c);
	}
	NEED(n || c->k->kind == PMD_OFF, "no place can be huge");
	check_isolated(c);
}

/*
 * The same by khugepaged, which is told not to mind shared pages. It always
 * minds if all of them are.
 */
static void walk_khugepaged(struct cell *c)
{
	struct place *pl;

	NEED(split_place(&c->place[0], 0), "not split");
	NEED(!setting_write(THP "khugepaged/max_ptes_shared", "511") &&
	     !setting_write(THP "khugepaged/pages_to_scan", "100000") &&
	     !setting_write(THP "khugepaged/alloc_sleep_millisecs", "100") &&
	     !setting_write(THP "khugepaged/scan_sleep_millisecs", "10"), "no khugepaged");
	for_each_place(pl) {
		if (!can_be_huge(c, pl))
			continue;
		WANT(!peer_stamp(pl->p, pl->addr, 1, 0, 1, pl->seed), "cannot be written");
		WANT(WAIT_FOR(touch_place(pl) && is_huge(pl->p->pid, pl->addr, c->len)),
		     "khugepaged did not collapse place %td", pl - c->place);
	}
	khugepaged_rest();
	check_isolated(c);
}

/* --- KSM ---------------------------------------------------------------- */

static long ksm_read(const char *file)
{
	char path[64], buf[32];

	snprintf(path, sizeof(path), KSM "%s", file);
	return setting_read(path, buf, sizeof(buf)) ? -1 : atol(buf);
}

static size_t nr_ksm(struct place *pl, size_t npages)
{
	unsigned long pfn[MAX_PAGES];
	size_t i, n = 0;

	place_pfns(pl, pfn);
	for (i = pl->first; i < pl->end && i < npages; i++)
		n += pfn[i] && kpageflags(pfn[i]) & KPF_KSM;
	return n;
}

/* Merged with a twin of the same content; found, moved, swapped out, unmerged */
static void walk_ksm(struct cell *c)
{
	unsigned long twin = AT(9);
	size_t n = c->npages < 32 ? c->npages : 32;
	struct place *pl, whole;
	unsigned long old[MAX_PAGES];
	size_t all = c->npages;

	HAVE(!ksm_missing(), ksm_missing());
	NEED(!peer_map(&c->me, twin, n * ps, RW) &&
	     !peer_madvise(&c->me, twin, n * ps, MADV_NOHUGEPAGE) &&
	     !peer_stamp(&c->me, twin, n, 0, 1, 1) &&
	     !peer_madvise(&c->me, twin, n * ps, MADV_MERGEABLE), "no twin");
	for_each_place(pl) {
		size_t end = pl->end < n ? pl->end : n;

		if (pl->first < end)
			NEED(!peer_madvise(pl->p, place_start(pl), (end - pl->first) * ps,
					   MADV_MERGEABLE), "MADV_MERGEABLE: %s", strerror(errno));
	}
	add_part(c, &c->me, twin, 0, n, false);
	NEED(!setting_write(KSM "run", "1"), "no KSM");
	for_each_place(pl) {
		size_t end = pl->end < n ? pl->end : n;

		WANT(WAIT_FOR(pl->first >= end || nr_ksm(pl, n) == end - pl->first),
		     "only %zu pages of place %td were merged", nr_ksm(pl, n), pl - c->place);
	}
	setting_write(KSM "run", "0");
	check_contents(c);
	if (c->failed)
		return;

	/* Only these from here on */
	c->npages = n;
	for_each_place(pl)
		if (pl->end > n)
			pl->end = pl->first < n ? n : pl->first;
	check_shared(c);
	for_each_place(pl) {
		int to;

		if (pl->first == pl->end)
			continue;
		to = other_node(pl);
		/* Parts of it may be there already. */
		NEED(move_place(pl, nodes[0] + nodes[1] - to), "KSM pages cannot be moved");
		place_pfns(&c->place[0], old);
		NEED(move_place(pl, to), "KSM pages are not moved by place %td", pl - c->place);
		check_moved(c, pl, old, to);
	}
	NEED(reclaim_all(c), "KSM pages are not reclaimed");
	check_contents(c);
	NEED(!setting_write(KSM "run", "2"), "cannot unmerge");
	setting_write(KSM "run", "0");
	for_each_place(pl) {
		whole = *pl;
		WANT(!nr_ksm(&whole, n), "place %td is not unmerged", pl - c->place);
	}
	check_isolated(c);
	WANT(ksm_read("pages_shared") == 0, "%ld KSM pages are left", ksm_read("pages_shared"));
	c->npages = all;
}

/* --- Memory failure ----------------------------------------------------- */

/* What is to be made sound again, as a block with such a page stays offline. */
struct poisoned {
	unsigned long pfn[MAX_PLACES];
	int nr;
};

static struct poisoned *poisoned;	/* shared with the parent */

static void poison_note(unsigned long pfn)
{
	poisoned->pfn[poisoned->nr++] = pfn;
}

/* When nobody has them any more */
static bool poison_clear(void)
{
	unsigned long pfn;
	char buf[32];
	bool ok = true;

	while (poisoned->nr) {
		pfn = poisoned->pfn[--poisoned->nr];
		snprintf(buf, sizeof(buf), "0x%lx", pfn);
		if (!(kpageflags(pfn) & KPF_HWPOISON) ||
		    WAIT_FOR(!setting_write(HWPOISON "unpoison-pfn", buf)))
			continue;
		remark("page frame %lx stays poisoned", pfn);
		ok = false;
	}
	return ok;
}

/* Reading it kills, by the right address; what is next to it is sound. */
static void check_poisoned(struct cell *c, size_t page)
{
	struct place *pl;

	for_each_place(pl) {
		unsigned long addr = pl->addr + page * ps;
		struct mce m = { .addr = addr };

		if (!covers(pl, page))
			continue;
		NEED(!peer_mce_probe(pl->p, &m), "place %td is gone",
		     pl - c->place);
		WANT(m.count == 1 && m.code == BUS_MCEERR_AR && (m.addr & -ps) == addr,
		     "place %td: %d signals, code %d, address %lx, not %lx", pl - c->place,
		     m.count, m.code, m.addr, addr);
	}
}

static void check_contents_but(struct cell *c, size_t x, size_t y)
{
	const size_t part[][2] = { { 0, x }, { x + 1, y }, { y + 1, c->npages } };
	struct place *pl;
	size_t first, end;
	int i;

	for_each_place(pl)
		for (i = 0; i < 3; i++) {
			first = part[i][0] > pl->first ? part[i][0] : pl->first;
			end = part[i][1] < pl->end ? part[i][1] : pl->end;
			WANT(peer_check(pl->p, pl->addr, end, first, 1, pl->seed) == -1,
			     "place %td has lost a sound page", pl - c->place);
		}
}

static void walk_memory_failure(struct cell *c)
{
	/*
	 * Both are in several places, also where places are parts. Of a folio
	 * that is still large nobody is told early: splitting it unmaps the page.
	 */
	size_t late = c->npages / 2 + 1, early = late + 1;
	struct peer *peers[] = { &c->me, &c->a, &c->b, &c->c };
	struct peer other = {};
	struct place *pl, *by = NULL;
	struct mce m = {};
	char buf[32];
	unsigned long pfn;
	size_t i;

	HAVE(!access(HWPOISON "corrupt-pfn", W_OK), "no corrupt-pfn");
	HAVE_LEAVE("a page that cannot be made sound again would be lost");
	/* One that has had the pages, and has them no more */
	NEED(!peer_start(&other) && !peer_munmap(&other, ARENA, ARENA_SIZE) &&
	     !peer_mce_early(&other, true), "no other process");
	for_each_place(pl)
		NEED(!peer_mce_early(pl->p, false), "no PR_MCE_KILL");
	drain();
	pl = &c->place[0];
	pfn = proc_pfn(pl->p->pid, pl->addr + late * ps);
	poison_note(pfn);
	snprintf(buf, sizeof(buf), "0x%lx", pfn);
	NEED(!setting_write(HWPOISON "corrupt-pfn", buf), "corrupt-pfn: %s",
	     strerror(errno));
	for_each_place(pl) {
		peer_mce_seen(pl->p, &m);
		WANT(!m.count, "place %td was signalled early", pl - c->place);
	}
	check_poisoned(c, late);

	/* Those who want to be told at once are, all of them and no one else. */
	for_each_place(pl) {
		NEED(!peer_mce_early(pl->p, true), "no PR_MCE_KILL");
		if (covers(pl, early))
			by = pl;
	}
	drain();
	poison_note(by ? proc_pfn(by->p->pid, by->addr + early * ps) : 0);
	NEED(by && !peer_madvise(by->p, by->addr + early * ps, ps, MADV_HWPOISON),
	     "MADV_HWPOISON: %s", strerror(errno));
	for (i = 0; i < ARRAY_SIZE(peers); i++) {
		bool has = false, right = false;

		if (!peers[i]->pid)
			continue;
		peer_mce_seen(peers[i], &m);
		for_each_place(pl) {
			if (pl->p != peers[i] || !covers(pl, early))
				continue;
			has = true;
			right |= (m.addr & -ps) == pl->addr + early * ps;
		}
		/* To whoever asked for it, it is an access of its own. */
		WANT(!has ? !m.count : m.count && right &&
		     m.code == (by->p == peers[i] ? BUS_MCEERR_AR : BUS_MCEERR_AO),
		     "process %zu: %d signals, code %d, address %lx", i, m.count, m.code, m.addr);
	}
	peer_mce_seen(&other, &m);
	WANT(!m.count, "another process was signalled");
	check_poisoned(c, early);
	check_contents_but(c, late, early);
	peer_kill(&other);
}

static void walk_soft_offline(struct cell *c)
{
	size_t page = c->npages / 2 + 1;
	unsigned long old[MAX_PAGES], new[MAX_PAGES];
	struct place *pl;
	int try;

	HAVE(!access(HWPOISON "unpoison-pfn", W_OK), "no unpoison-pfn");
	HAVE_LEAVE("a page that cannot be made sound again would be lost");
	for_each_place(pl) {
		if (!covers(pl, page))
			continue;
		place_pfns(&c->place[0], old);
		poison_note(old[page]);
		for (try = 0; try < TRIES; try++) {
			drain();
			if (!peer_madvise(pl->p, pl->addr + page * ps, ps, MADV_SOFT_OFFLINE) &&
			    proc_pfn(pl->p->pid, pl->addr + page * ps) != old[page])
				break;
		}
		WANT(try < TRIES, "not taken offline: %s", strerror(errno));
		check_shared_as(c, false, new);
		WANT(new[page] != old[page], "the page is still the bad one");
		WANT(kpageflags(old[page]) & KPF_HWPOISON, "the old page is not marked");
		check_contents(c);
	}
	check_isolated(c);
}

/* --- Others ------------------------------------------------------------- */

struct move_arg {
	unsigned long src, dst;
	int prot, err;
};

/* UFFDIO_MOVE of one page to somewhere else in the same process */
static long op_uffd_move(void *arg)
{
	struct move_arg *a = arg;
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_MOVE };
	struct uffdio_register reg = {
		.range = { a->dst, ps }, .mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	struct uffdio_move move = { .dst = a->dst, .src = a->src, .len = ps };
	int fd = syscall(__NR_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	long ret = -1;

	if (fd < 0)
		return -1;
	if (mmap((void *)a->dst, ps, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) !=
	    (void *)a->dst ||
	    ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &reg))
		goto out;
	ret = 0;
	a->err = ioctl(fd, UFFDIO_MOVE, &move) ? errno : 0;
out:
	close(fd);
	return ret;
}

/* Refused as long as the page is somewhere else, too */
static void walk_uffd_move(struct cell *c)
{
	struct place *pl, moved;
	int want;

	for_each_place(pl) {
		struct move_arg a = { place_start(pl), AT(9) };

		/* Not anonymous memory; not the same protection */
		want = c->k->kind == FILEMAP || pl->read_only ? EINVAL : EBUSY;
		NEED(!peer_call(pl->p, op_uffd_move, &a, sizeof(a)), "userfaultfd: %s",
		     strerror(errno));
		WANT(a.err == want, "place %td: %s, not %s", pl - c->place, strerror(a.err),
		     strerror(want));
	}
	check_all(c);
	if (c->k->kind == FILEMAP)
		return;

	/* Written, it is no one else's: it moves, and the reverse map finds it. */
	pl = &c->place[c->nr - 1];
	NEED(!peer_stamp(pl->p, pl->addr, pl->first + 1, pl->first, 1, 2), "cannot be written");
	struct move_arg a = { place_start(pl), AT(9) };

	NEED(!peer_call(pl->p, op_uffd_move, &a, sizeof(a)), "userfaultfd: %s", strerror(errno));
	NEED(!a.err, "not moved: %s", strerror(a.err));
	moved = (struct place){ pl->p, AT(9) - pl->first * ps, pl->first, pl->first + 1, false, 2 };
	pl->first++;
	check_contents(c);
	c->place[c->nr++] = moved;
	NEED(move_place(&moved, other_node(&moved)), "the moved page is not found");
	check_isolated(c);
}

struct pin_arg {
	unsigned long addr, len;
};

static long op_pin(void *arg)
{
	struct pin_arg *a = arg;

	return pin_memory(a->addr, a->len);
}

static long op_close(void *arg)
{
	return close(*(int *)arg);
}

/* Pinned for writing, by io_uring: a page of its own that stays where it is */
static void walk_pin_write(struct cell *c)
{
	unsigned long old[MAX_PAGES], new[MAX_PAGES];
	struct place *pl = &c->place[0], *q;
	struct pin_arg a = { place_start(pl), 8 * ps };
	int fd = peer_call(pl->p, op_pin, &a, sizeof(a));
	size_t i;

	HAVE(fd >= 0 || (errno != ENOSYS && errno != EPERM), "no io_uring");
	NEED(fd >= 0, "io_uring: %s", strerror(errno));
	place_pfns(pl, old);
	for_each_place(q) {
		place_pfns(q, new);
		for (i = 0; i < 8 && q != pl; i++)
			WANT(!covers(q, i) || new[i] != old[i], "page %zu is pinned in place %td",
			     i, q - c->place);
	}
	/* A copy does not take the pinned page away, nor share it. */
	NEED(!peer_dput(pl->p, place_start(pl), &c->me, AT(8), 16 * ps, 0), "dput: %s",
	     strerror(errno));
	add_part(c, &c->me, AT(8), 0, 16, false);
	place_pfns(&c->place[c->nr - 1], new);
	for (i = 0; i < 8; i++)
		WANT(new[i] && new[i] != old[i], "pinned page %zu is shared", i);
	cgroup_reclaim("64M");
	check_isolated(c);
	place_pfns(pl, new);
	WANT(!memcmp(old, new, 8 * sizeof(*old)), "a pinned page was replaced");
	peer_call(pl->p, op_close, &fd, sizeof(fd));
}

struct gup_arg {
	unsigned long addr, npages;
	int fd;
	uint64_t word[8];
};

static long op_pin_read(void *arg)
{
	struct gup_arg *a = arg;
	struct pin_longterm_test test = { a->addr, a->npages * ps, 0 };

	a->fd = open(DEBUGFS "gup_test", O_RDWR);
	return a->fd < 0 ? -1 : ioctl(a->fd, PIN_LONGTERM_TEST_START, &test);
}

/* What the pin's owner sees */
static long op_pinned(void *arg)
{
	struct gup_arg *a = arg;
	char *buf = malloc(a->npages * ps);
	uint64_t addr = (unsigned long)buf;
	unsigned long i;
	long ret;

	ret = ioctl(a->fd, PIN_LONGTERM_TEST_READ, &addr);
	for (i = 0; i < a->npages; i++)
		memcpy(&a->word[i], buf + i * ps, sizeof(a->word[i]));
	free(buf);
	return ret;
}

static void check_pinned(struct cell *c, struct place *pl, struct gup_arg *a)
{
	uint64_t v;
	size_t i;

	NEED(!peer_call(pl->p, op_pinned, a, sizeof(*a)), "gup_test: %s", strerror(errno));
	for (i = 0; i < a->npages; i++) {
		NEED(!peer_read(pl->p, place_start(pl) + i * ps, &v, sizeof(v)), "unreadable");
		WANT(v == a->word[i], "page %zu is not the pinned one", i);
	}
}

/* Pinned for reading: the owner of the pin sees what the place has, always. */
static void walk_pin_read(struct cell *c)
{
	struct place *pl = &c->place[c->nr - 1];
	struct gup_arg a = { place_start(pl), 4 };

	HAVE(!access(DEBUGFS "gup_test", W_OK), "no gup_test");
	NEED(!peer_call(pl->p, op_pin_read, &a, sizeof(a)), "gup_test: %s", strerror(errno));
	check_pinned(c, pl, &a);
	check_isolated(c);
	check_pinned(c, pl, &a);
	cgroup_reclaim("64M");
	check_contents(c);
	check_pinned(c, pl, &a);
	NEED(!peer_stamp(pl->p, pl->addr, pl->end, pl->first, 1, 99), "cannot be written");
	pl->seed = 99;
	check_pinned(c, pl, &a);
	peer_call(pl->p, op_close, &a.fd, sizeof(a.fd));
	check_contents(c);
}

static void walk_nothing(struct cell *c)
{
	check_all(c);
}

static void walk_write(struct cell *c)
{
	check_isolated(c);
}

/* Those that leave the pages as they are come first, on one set-up. */
static const struct walker walkers[] = {
	{ "counts", ANY, false, walk_nothing },
	{ "move_pages", ANY, false, walk_move_pages },
	{ "migrate_pages", ANY, false, walk_migrate_pages },
	{ "mbind", ANY, false, walk_mbind },
	{ "compaction", ANY & ~HUGE, false, walk_compaction },
	{ "hotplug", SMALL | FILEMAP | MTHP, false, walk_hotplug },
	{ "idle", ANY, false, walk_idle },
	{ "damon-access", ANY, false, walk_damon_access },
	{ "damon-migrate", ANY, false, walk_damon_migrate },
	{ "cold", ANY, false, walk_cold },
	{ "write", ANY, true, walk_write },
	{ "uffd-move", ANY, true, walk_uffd_move },
	{ "damon-pageout", ANY, true, walk_damon_pageout },
	{ "reclaim", ANY, true, walk_reclaim },
	{ "swapoff", ANY, true, walk_swapoff },
	{ "pageout", ANY, true, walk_pageout },
	{ "madv-free", ANY & ~FILEMAP, true, walk_madv_free },
	{ "mlock", ANY, true, walk_mlock },
	{ "ksm", ANY, true, walk_ksm },
	{ "split", LARGE, true, walk_split },
	{ "split-to-order", LARGE, true, walk_split_to_order },
	{ "deferred-split", LARGE, true, walk_deferred_split },
	{ "collapse", HUGE, true, walk_collapse },
	{ "khugepaged", HUGE, true, walk_khugepaged },
	{ "memory-failure", ANY, true, walk_memory_failure },
	{ "soft-offline", ANY, true, walk_soft_offline },
	{ "pin-write", ANY, true, walk_pin_write },
	{ "pin-read", ANY, true, walk_pin_read },
};

#define NR_WALKERS	ARRAY_SIZE(walkers)
#define NR_KINDS	ARRAY_SIZE(kinds)
#define NR_SITUATIONS	ARRAY_SIZE(situations)

/* --- The tables' product ------------------------------------------------ */

/* What a child tells the parent */
struct report {
	size_t at;			/* the walker that is being run */
	bool ok[NR_WALKERS], skipped[NR_WALKERS];
	struct remarks remarks[NR_WALKERS];
	struct poisoned poisoned;
	unsigned long offline_block;
};

static const char *filter;

static bool selected(const struct situation *s, const struct kind *k, const struct walker *w)
{
	if (!(s->kinds & k->kind) || (w && !(w->kinds & k->kind)))
		return false;
	snprintf(running, sizeof(running), "%s %s %s", s->name, k->name, w ? w->name : "leaks");
	return !filter || strstr(running, filter);
}

static const char *kind_prepare(const struct kind *k)
{
	if (k->kind & HUGE && thp_size() != k->npages * ps)
		return "no huge pages of this size";
	if (setting_write(THP "enabled", "madvise") && k->kind & LARGE)
		return "cannot change the settings of huge pages";
	setting_write(THP "defrag", "always");
	khugepaged_rest();
	setting_write(pmd_enabled, k->kind & HUGE ? "inherit" : "never");
	if (setting_write(mthp_enabled, k->kind == MTHP ? "madvise" : "never") &&
	    k->kind == MTHP)
		return "no large folios of 16 pages";
	return NULL;
}

static void set_up(struct cell *c, const struct situation *s, const struct kind *k)
{
	const char *reason = cgroup_enter();

	memset(c, 0, sizeof(*c));
	c->k = k;
	c->npages = k->npages;
	c->len = c->npages * ps;
	peer_self(&c->me);
	if (k->kind == FILEMAP) {
		c->fd = memfd_create("walkers", MFD_CLOEXEC);
		if (c->fd < 0 || ftruncate(c->fd, c->len))
			reason = "no memfd";
	}
	if (reason)
		complain(c, "%s", reason);
	else if (s->build(c))
		complain(c, "cannot be set up: %s", strerror(errno));
}

/* Run walkers from the @at'th one on until a new set-up is needed. */
static void run_some(const struct situation *s, const struct kind *k, struct report *r)
{
	size_t at = r->at;
	struct cell c;

	alarm(1200);
	remarks = &r->remarks[at];
	set_up(&c, s, k);
	for (; at < NR_WALKERS; at++) {
		if (!selected(s, k, &walkers[at]))
			continue;
		r->at = at;
		remarks = &r->remarks[at];
		alarm(1200);
		if (!c.failed)
			walkers[at].walk(&c);
		r->ok[at] = !c.failed;
		r->skipped[at] = c.skipped;
		c.skipped = false;
		if (c.failed || walkers[at].spends)
			break;
	}
	damon_off();
	if (!ksm_missing())
		setting_write(KSM "run", "0");
	peer_kill(&c.a);
	peer_kill(&c.b);
	peer_kill(&c.c);
	fflush(stdout);
	_exit(0);
}

/* What is to be free again, and how much of it others may come to have */
enum {
	ANON_VMA, CHAIN, VMA, ANON_PAGES, ISOLATED, MLOCKED, KSM_PAGES, CGROUP_ANON, CGROUP_SWAP,
	NR_LEFT
};

static const struct {
	const char *name;
	long limit, others;		/* others: where other programs run, too */
} left[NR_LEFT] = {
	{ "anon_vma", 50, 10000 }, { "anon_vma_chain", 100, 20000 },
	{ "vm_area_struct", 100, 20000 },
	/* Of pages, the cgroup tells better. KSM is not used then. */
	{ "nr_anon_pages", 512, LONG_MAX / 2 }, { "nr_isolated_anon", 0, 512 },
	{ "nr_mlock", 0, 65536 },
	{ "pages_shared", 0, LONG_MAX / 2 }, { "memory.stat", 0 }, { "memory.swap.current", 0 },
};

static void left_read(long *n)
{
	char buf[64];
	int i;

	/* Objects are freed by RCU; this waits for it. */
	syscall(__NR_membarrier, 1 /* MEMBARRIER_CMD_GLOBAL */, 0, 0);
	setting_read("/proc/sys/vm/stat_refresh", buf, sizeof(buf));
	for (i = 0; i < NR_LEFT; i++) {
		if (i <= VMA) {
			slab_shrink(left[i].name);
			n[i] = slab_objects(left[i].name);
		} else if (i <= MLOCKED) {
			n[i] = vmstat(left[i].name);
		} else if (i == KSM_PAGES) {
			n[i] = ksm_read(left[i].name);
		} else {
			n[i] = cgroup_number(NULL, left[i].name, i == CGROUP_ANON ? "anon" : NULL);
		}
	}
}

/* Counters are late, and the system has work of its own that comes and goes. */
static bool nothing_left(const long *before)
{
	bool alone = getenv("DPUT_DISPOSABLE"), ok;
	long now[NR_LEFT];
	int i, over = 0;

	ok = WAIT_FOR(({
		left_read(now);
		for (over = -1, i = 0; i < NR_LEFT; i++)
			/* What is not known is not known to be free. */
			if (before[i] < 0 || now[i] < 0 ||
			    now[i] > before[i] + left[i].limit + (alone ? 0 : left[i].others))
				over = i;
		over < 0;
	}));
	if (!ok)
		printf("# %s: %s was %ld and is %ld\n", running, left[over].name, before[over],
		       now[over]);
	return ok;
}

static void run_group(const struct situation *s, const struct kind *k, struct report *r)
{
	const char *reason = kind_prepare(k);
	int status = 0, nr = 0;
	long before[NR_LEFT];
	size_t w;
	pid_t pid;

	left_read(before);
	memset(r, 0, sizeof(*r));
	while (!reason && r->at < NR_WALKERS) {
		for (w = r->at; w < NR_WALKERS && !selected(s, k, &walkers[w]); w++)
			;
		r->at = w;
		if (w == NR_WALKERS)
			break;
		remarks = &r->remarks[r->at];
		poisoned = &r->poisoned;
		offline_block = &r->offline_block;
		/* A swapoff that failed half way */
		swap_on();
		fflush(stdout);
		pid = fork();
		if (!pid)
			run_some(s, k, r);
		waitpid(pid, &status, 0);
		block_online();
		damon_off();
		/* Or a walker that failed has left it off. */
		setting_restore(LRU_GEN);
		selected(s, k, &walkers[r->at]);
		remarks = &r->remarks[r->at];
		if (status) {
			remark("%s", WIFSIGNALED(status) ? strsignal(WTERMSIG(status)) : "ended");
			r->ok[r->at] = false;
		}
		if (!poison_clear())
			r->ok[r->at] = false;
		r->at++;
	}
	for (w = 0; w < NR_WALKERS; w++) {
		if (!selected(s, k, &walkers[w]))
			continue;
		nr++;
		printf("%s", r->remarks[w].text);
		if (reason || r->skipped[w])
			ksft_test_result_skip("%s: %s\n", running, reason ?: "see above");
		else
			ksft_test_result(r->ok[w], "%s\n", running);
	}
	if (selected(s, k, NULL) || nr)
		ksft_test_result(nothing_left(before), "%s\n", running);
}

static const char *why_not(void)
{
	int here = 0;

	if (!dput_supported())
		return "dput() is not supported";
	if (geteuid())
		return "needs root";
	/* In a user namespace, root is not told. */
	if (!proc_pfn(getpid(), (unsigned long)&here))
		return "cannot see page frame numbers";
	if (nr_nodes < 2)
		return "needs two NUMA nodes (numa=fake=2 is as good)";
	return swap_missing() ?: cgroup_missing();
}

/* What a walker has left */
static void undo(void)
{
	damon_off();
	if (!poisoned)
		return;
	poison_clear();
	block_online();
}

static void __attribute__((constructor)) prepare(void)
{
	ps = page_size();
	nr_nodes = memory_nodes(nodes);
	if (!dput_supported())
		return;
	damon_look();
	undo_also(undo);
	swap_prepare();
	cgroup_prepare();
	mthp_setting(mthp_enabled, sizeof(mthp_enabled));
	snprintf(pmd_enabled, sizeof(pmd_enabled), THP "hugepages-%zukB/enabled",
		 thp_size() >> 10);
	setting_save(THP "enabled");
	setting_save(THP "defrag");
	setting_save(KHUGEPAGED_SLEEP);
	setting_save(THP "khugepaged/alloc_sleep_millisecs");
	setting_save(THP "khugepaged/pages_to_scan");
	setting_save(THP "khugepaged/max_ptes_shared");
	setting_save(pmd_enabled);
	setting_save(mthp_enabled);
	ksm_save();
	setting_save(LRU_GEN);
	setting_save("/proc/sys/kernel/numa_balancing");
	setting_save("/proc/sys/vm/compaction_proactiveness");
}

/*
 * The kernel's own memory at the end of a node keeps that block from going
 * offline. Have this process take what else is free in it, for good.
 */
static void fill_last_block(void)
{
	unsigned long per_block = pages_per_block(), block, last = 0;
	char *other[512] = {};
	char path[96], *at;
	size_t i, odd = 0;

	for (block = 0; block < 4096; block++) {
		snprintf(path, sizeof(path), "/sys/devices/system/node/node%d/memory%lu", nodes[0],
			 block);
		if (!access(path, F_OK))
			last = block;
	}
	setting_write(THP "enabled", "madvise");
	setting_write(pmd_enabled, "inherit");
	/* What is elsewhere is given back in the end, or it would be had again. */
	for (i = 0; last && i < ARRAY_SIZE(other); i++) {
		at = take_chunk(i % 16);
		block = at ? proc_pfn(getpid(), (unsigned long)at) / per_block : 0;
		if (block != last)
			other[odd++] = at;
		/* There is no more of the movable memory. */
		if (!block_is_movable(block))
			break;
	}
	while (odd--)
		if (other[odd])
			munmap(other[odd], CHUNK);
}

int main(int argc, char **argv)
{
	struct report *r = mmap(NULL, sizeof(*r), RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	const char *reason = why_not();
	unsigned int plan = 0;
	size_t s, k, w, n;

	filter = argv[1];
	ksft_print_header();
	if (reason)
		ksft_exit_skip("%s\n", reason);
	/* Pages are to be where they were put. */
	setting_write("/proc/sys/kernel/numa_balancing", "0");
	setting_write("/proc/sys/vm/compaction_proactiveness", "0");
	if (!ksm_missing()) {
		setting_write(KSM "pages_to_scan", "1000");
		setting_write(KSM "sleep_millisecs", "0");
		setting_write(KSM "smart_scan", "0");
	}
	for (s = 0; s < NR_SITUATIONS; s++)
		for (k = 0; k < NR_KINDS; k++) {
			for (n = w = 0; w < NR_WALKERS; w++)
				n += selected(&situations[s], &kinds[k], &walkers[w]);
			plan += n + (n || selected(&situations[s], &kinds[k], NULL));
		}
	ksft_set_plan(plan);
	if (getenv("DPUT_DISPOSABLE"))
		fill_last_block();
	for (s = 0; s < NR_SITUATIONS; s++)
		for (k = 0; k < NR_KINDS; k++)
			run_group(&situations[s], &kinds[k], r);
	swap_off();
	ksft_finished();
}
