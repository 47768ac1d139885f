// SPDX-License-Identifier: GPL-2.0
/* Copies of memory that is swapped out, and memory that is swapped out as a copy. */

#include "kselftest_harness.h"
#include <time.h>
#include "dput_util.h"

#define THP		"/sys/kernel/mm/transparent_hugepage/"
#define MAX_MAP_COUNT	"/proc/sys/vm/max_map_count"

#define AT(_n)		(ARENA + (_n) * ((1UL << 28) + 5 * page_size()))
#define MTHP_SIZE	mthp_size()

static void __attribute__((constructor)) prepare(void)
{
	if (dput_supported())
		swap_prepare();
	cgroup_prepare();
	ksm_save();
	setting_save("/proc/sys/vm/page-cluster");
	setting_save(MAX_MAP_COUNT);
	folios_save();
}

enum kind { SMALL, MTHP, PMD };

FIXTURE(swap)
{
	struct peer me, a;
	struct peer *src, *dst;
	unsigned long ps, s, d;
	size_t npages, len;
};

FIXTURE_VARIANT(swap)
{
	enum kind kind;
	bool src_child, dst_child;
};

#define SWAP_VARIANTS(_kind)						\
FIXTURE_VARIANT_ADD(swap, _kind##_within) { .kind = _kind };		\
FIXTURE_VARIANT_ADD(swap, _kind##_put)					\
{									\
	.kind = _kind, .dst_child = true,				\
};									\
FIXTURE_VARIANT_ADD(swap, _kind##_get)					\
{									\
	.kind = _kind, .src_child = true,				\
}

SWAP_VARIANTS(SMALL);
SWAP_VARIANTS(MTHP);
SWAP_VARIANTS(PMD);

static size_t folio_size(enum kind kind)
{
	return kind == PMD ? thp_size() : MTHP_SIZE;
}

static const char *kind_prepare(enum kind kind)
{
	if (kind != SMALL)
		return folios_enable(folio_size(kind));
	if (!access(THP, F_OK) && setting_write(THP "enabled", "never"))
		return "cannot change the settings of huge pages";
	return NULL;
}

FIXTURE_SETUP(swap)
{
	const char *reason;

	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	reason = swap_missing();
	if (!reason)
		reason = cgroup_enter();
	if (!reason)
		reason = kind_prepare(variant->kind);
	if (reason)
		SKIP(return, "%s", reason);
	self->ps = page_size();
	self->len = variant->kind == PMD ? thp_size() : 4 * MTHP_SIZE;
	self->npages = self->len / self->ps;
	peer_self(&self->me);
	/* It is in the cgroup, too. */
	ASSERT_EQ(0, peer_start(&self->a));
	self->src = variant->src_child ? &self->a : &self->me;
	self->dst = variant->dst_child ? &self->a : &self->me;
	self->s = AT(0);
	self->d = AT(1);
	if (variant->kind == SMALL) {
		ASSERT_EQ(0, peer_map(self->src, self->s, self->len, RW));
		ASSERT_EQ(0, peer_stamp(self->src, self->s, self->npages, 0, 1, 1));
	} else {
		NEED_LARGE(folios_map(self->src, self->s, self->len, folio_size(variant->kind)));
	}
	ASSERT_EQ(0, swap_on())
		TH_LOG("swapon: %s", strerror(errno));
}

FIXTURE_TEARDOWN(swap)
{
	peer_kill(&self->a);
	swap_off();
}

/* Out with memory that is mapped in two places: by way of the reverse map */
static bool reclaim(struct peer *p, unsigned long p_addr, struct peer *q,
		    unsigned long q_addr, size_t npages)
{
	int i;

	for (i = 0; i < 1000; i++) {
		cgroup_reclaim("16M");
		if (pages_swapped(p, p_addr, npages) == npages &&
		    pages_swapped(q, q_addr, npages) == npages)
			return true;
	}
	return false;
}

#define DPUT(_src, _saddr, _dst, _daddr)					\
	ASSERT_EQ(0, peer_dput(_src, _saddr, _dst, _daddr, self->len, 0))	\
		TH_LOG("dput: %s", strerror(errno))

#define CHECK(_p, _addr, _first, _step, _seed)					\
	EXPECT_EQ(-1, peer_check(_p, _addr, self->npages, _first, _step, _seed))

#define STAMP(_p, _addr, _first, _step, _seed)					\
	ASSERT_EQ(0, peer_stamp(_p, _addr, self->npages, _first, _step, _seed))

#define PAGE_OUT(_p, _addr)							\
	ASSERT_TRUE(pages_out(_p, _addr, self->npages))				\
		TH_LOG("%zu of %zu pages are out",				\
		       pages_swapped(_p, _addr, self->npages), self->npages)

/* Each side is written, and the other does not see it. */
#define ISOLATED(_p, _paddr, _q, _qaddr, _seed) do {				\
	STAMP(_q, _qaddr, 0, 2, 10);						\
	CHECK(_p, _paddr, 0, 1, _seed);						\
	STAMP(_p, _paddr, 0, 1, 11);						\
	CHECK(_q, _qaddr, 0, 2, 10);						\
	CHECK(_q, _qaddr, 1, 2, _seed);						\
	STAMP(_q, _qaddr, 0, 1, 12);						\
	CHECK(_p, _paddr, 0, 1, 11);						\
} while (0)

TEST_F(swap, source_is_out)
{
	PAGE_OUT(self->src, self->s);
	DPUT(self->src, self->s, self->dst, self->d);
	CHECK(self->dst, self->d, 0, 1, 1);
	CHECK(self->src, self->s, 0, 1, 1);
	ISOLATED(self->src, self->s, self->dst, self->d, 1);
}

/* Written without having been read */
TEST_F(swap, written_at_once)
{
	PAGE_OUT(self->src, self->s);
	DPUT(self->src, self->s, self->dst, self->d);
	STAMP(self->dst, self->d, 0, 3, 2);
	STAMP(self->src, self->s, 1, 3, 3);
	CHECK(self->dst, self->d, 0, 3, 2);
	CHECK(self->dst, self->d, 1, 3, 1);
	CHECK(self->dst, self->d, 2, 3, 1);
	CHECK(self->src, self->s, 0, 3, 1);
	CHECK(self->src, self->s, 1, 3, 3);
	CHECK(self->src, self->s, 2, 3, 1);
	STAMP(self->dst, self->d, 0, 1, 4);
	STAMP(self->src, self->s, 0, 1, 5);
	CHECK(self->dst, self->d, 0, 1, 4);
	CHECK(self->src, self->s, 0, 1, 5);
}

TEST_F(swap, swapoff_after_copy)
{
	size_t i;

	PAGE_OUT(self->src, self->s);
	DPUT(self->src, self->s, self->dst, self->d);
	ASSERT_EQ(0, swap_off());
	for (i = 0; i < self->npages; i++) {
		EXPECT_NE(0, proc_pagemap(self->src->pid, self->s + i * self->ps) & PM_PRESENT);
		EXPECT_NE(0, proc_pagemap(self->dst->pid, self->d + i * self->ps) & PM_PRESENT);
	}
	CHECK(self->src, self->s, 0, 1, 1);
	CHECK(self->dst, self->d, 0, 1, 1);
	ISOLATED(self->src, self->s, self->dst, self->d, 1);
}

/* Half of the source is out, and some of it in the swap cache. */
TEST_F(swap, mixed)
{
	size_t i;

	PAGE_OUT(self->src, self->s);
	for (i = 0; i < self->npages; i += 5)
		ASSERT_TRUE(peer_readable(self->src, self->s + i * self->ps));
	STAMP(self->src, self->s, 1, 4, 2);
	DPUT(self->src, self->s, self->dst, self->d);
	CHECK(self->dst, self->d, 1, 4, 2);
	CHECK(self->dst, self->d, 0, 4, 1);
	CHECK(self->dst, self->d, 2, 4, 1);
	STAMP(self->dst, self->d, 0, 1, 3);
	CHECK(self->src, self->s, 1, 4, 2);
	CHECK(self->src, self->s, 0, 4, 1);
	CHECK(self->src, self->s, 3, 4, 1);
	STAMP(self->src, self->s, 0, 1, 4);
	CHECK(self->dst, self->d, 0, 1, 3);
}

/* The ragged ends are out, on either side. */
TEST_F(swap, ragged_ends)
{
	size_t len = self->len - self->ps;
	uint64_t v;

	ASSERT_EQ(0, peer_map(self->dst, self->d, self->len, RW));
	STAMP(self->dst, self->d, 0, 1, 2);
	PAGE_OUT(self->src, self->s);
	PAGE_OUT(self->dst, self->d);
	ASSERT_EQ(0, peer_dput(self->src, self->s + self->ps / 2, self->dst,
			       self->d + self->ps / 2, len, 0));
	EXPECT_EQ(-1, peer_check(self->dst, self->d, self->npages - 1, 1, 1, 1));
	CHECK(self->src, self->s, 0, 1, 1);
	/* The last word that is stamped is in the second half of a page. */
	ASSERT_EQ(0, peer_read(self->dst, self->d, &v, 8));
	EXPECT_EQ(2, v >> 48);
	ASSERT_EQ(0, peer_read(self->dst, self->d + self->ps - 8, &v, 8));
	EXPECT_EQ(1, v >> 48);
	v = self->d + self->len - self->ps;
	ASSERT_EQ(0, peer_read(self->dst, v, &v, 8));
	EXPECT_EQ(1, v >> 48);
	ASSERT_EQ(0, peer_read(self->dst, self->d + self->len - 8, &v, 8));
	EXPECT_EQ(2, v >> 48);
}

TEST_F(swap, source_exits)
{
	if (self->src != &self->a)
		SKIP(return, "the source is the test itself");
	PAGE_OUT(self->src, self->s);
	DPUT(self->src, self->s, self->dst, self->d);
	peer_stop(&self->a);
	CHECK(self->dst, self->d, 0, 1, 1);
	STAMP(self->dst, self->d, 0, 1, 2);
	CHECK(self->dst, self->d, 0, 1, 2);
}

/* A destination that is out itself gives its slots back. */
TEST_F(swap, destination_is_out)
{
	ASSERT_EQ(0, peer_map(self->dst, self->d, self->len, RW));
	STAMP(self->dst, self->d, 0, 1, 2);
	PAGE_OUT(self->dst, self->d);
	DPUT(self->src, self->s, self->dst, self->d);
	CHECK(self->dst, self->d, 0, 1, 1);
	EXPECT_EQ(0, proc_smaps_kb(self->dst->pid, self->d, self->d + self->len, "Swap"));
	ISOLATED(self->src, self->s, self->dst, self->d, 1);
}

/*
 * Reclaim unmaps the pages in both places, or they would not leave. Once for
 * pages that were never out, and once for such as came back.
 */
TEST_F(swap, reclaim_after_copy)
{
	int i;

	DPUT(self->src, self->s, self->dst, self->d);
	for (i = 0; i < 2; i++) {
		ASSERT_TRUE(reclaim(self->src, self->s, self->dst, self->d, self->npages))
			TH_LOG("round %d: %zu and %zu of %zu pages are out", i,
			       pages_swapped(self->src, self->s, self->npages),
			       pages_swapped(self->dst, self->d, self->npages), self->npages);
		CHECK(self->src, self->s, 0, 1, 1);
		CHECK(self->dst, self->d, 0, 1, 1);
	}
	ASSERT_TRUE(reclaim(self->src, self->s, self->dst, self->d, self->npages));
	ISOLATED(self->src, self->s, self->dst, self->d, 1);
}

TEST_F(swap, reclaim_and_swapoff)
{
	DPUT(self->src, self->s, self->dst, self->d);
	ASSERT_TRUE(reclaim(self->src, self->s, self->dst, self->d, self->npages));
	ASSERT_EQ(0, swap_off());
	EXPECT_EQ(0, pages_swapped(self->src, self->s, self->npages));
	EXPECT_EQ(0, pages_swapped(self->dst, self->d, self->npages));
	CHECK(self->src, self->s, 0, 1, 1);
	CHECK(self->dst, self->d, 0, 1, 1);
	ISOLATED(self->dst, self->d, self->src, self->s, 1);
}

/* What the source gives up by MADV_FREE, its copy keeps */
TEST_F(swap, lazily_freed)
{
	const char *reason;

	ASSERT_EQ(0, peer_madvise(self->src, self->s, self->len, MADV_FREE));
	DPUT(self->src, self->s, self->dst, self->d);
	reason = cgroup_reclaim_given_up();
	CHECK(self->dst, self->d, 0, 1, 1);
	if (reason)
		SKIP_REST(return, "%s", reason);
}

/* The same in the middle of a migration: an entry for that cannot be dirty */
/* For up to a minute, but some rounds in any case */
TEST_F_TIMEOUT(swap, lazily_freed_while_migrated, 900)
{
	time_t until = time(NULL) + 60;
	const char *reason = NULL;
	int round, nodes[2];
	pid_t pid;
	long from;

	if (memory_nodes(nodes) < 2)
		SKIP(return, "needs two NUMA nodes (numa=fake=2 is as good)");
	for (round = 0; !reason && round < 30 && (round < 5 || time(NULL) < until); round++) {
		STAMP(self->src, self->s, 0, 1, 1);
		ASSERT_EQ(0, peer_madvise(self->src, self->s, self->len, MADV_FREE));
		pid = start_migrating(self->src->pid, self->s, self->npages);
		ASSERT_LT(0, pid);
		from = vmstat("pgmigrate_success");
		ASSERT_LE(0, from);
		while (vmstat("pgmigrate_success") == from)
			ASSERT_EQ(0, waitpid(pid, NULL, WNOHANG));
		DPUT(self->src, self->s, self->dst, self->d);
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		reason = cgroup_reclaim_given_up();
		CHECK(self->dst, self->d, 0, 1, 1);
	}
	if (reason)
		SKIP_REST(return, "%s", reason);
}

/* Swapped out, copied to two places of one process, and out again */
TEST_F(swap, two_places)
{
	unsigned long e = AT(2);

	PAGE_OUT(self->src, self->s);
	DPUT(self->src, self->s, self->dst, self->d);
	DPUT(self->src, self->s, self->dst, e);
	ASSERT_EQ(0, peer_munmap(self->src, self->s, self->len));
	CHECK(self->dst, self->d, 0, 1, 1);
	CHECK(self->dst, e, 0, 1, 1);
	ASSERT_TRUE(reclaim(self->dst, self->d, self->dst, e, self->npages))
		TH_LOG("%zu and %zu of %zu pages are out",
		       pages_swapped(self->dst, self->d, self->npages),
		       pages_swapped(self->dst, e, self->npages), self->npages);
	STAMP(self->dst, self->d, 0, 3, 2);
	CHECK(self->dst, e, 0, 1, 1);
	STAMP(self->dst, e, 0, 1, 3);
	CHECK(self->dst, self->d, 0, 3, 2);
	CHECK(self->dst, self->d, 1, 3, 1);
	CHECK(self->dst, self->d, 2, 3, 1);
	ASSERT_TRUE(reclaim(self->dst, self->d, self->dst, e, self->npages));
	STAMP(self->dst, self->d, 0, 1, 4);
	CHECK(self->dst, e, 0, 1, 3);
	STAMP(self->dst, e, 0, 1, 5);
	CHECK(self->dst, self->d, 0, 1, 4);
}

/* There and back, three places in all */
TEST_F(swap, there_and_back)
{
	unsigned long e = AT(2);

	DPUT(self->src, self->s, self->dst, self->d);
	ASSERT_TRUE(reclaim(self->src, self->s, self->dst, self->d, self->npages));
	DPUT(self->dst, self->d, self->src, e);
	ASSERT_TRUE(reclaim(self->src, self->s, self->dst, self->d, self->npages));
	ASSERT_TRUE(reclaim(self->src, e, self->dst, self->d, self->npages));
	CHECK(self->src, e, 0, 1, 1);
	CHECK(self->src, self->s, 0, 1, 1);
	CHECK(self->dst, self->d, 0, 1, 1);
	STAMP(self->src, self->s, 0, 1, 2);
	CHECK(self->src, e, 0, 1, 1);
	ISOLATED(self->src, e, self->dst, self->d, 1);
	CHECK(self->src, self->s, 0, 1, 2);
}

/*
 * Merged pages that are out in a row can come back as one large folio. It belongs
 * to the mapping that was touched, and its copies by dput(); any other mapping has
 * to get pages of its own, since the reverse map does not lead to it.
 */
FIXTURE(merged)
{
	struct peer me, a;
	struct peer *other;
	unsigned long ps, block;
};

FIXTURE_VARIANT(merged)
{
	bool child, swapoff;
};

FIXTURE_VARIANT_ADD(merged, within) {};
FIXTURE_VARIANT_ADD(merged, child) { .child = true };
FIXTURE_VARIANT_ADD(merged, within_swapoff) { .swapoff = true };
FIXTURE_VARIANT_ADD(merged, child_swapoff) { .child = true, .swapoff = true };

FIXTURE_SETUP(merged)
{
	const char *reason;

	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	reason = swap_missing();
	if (!reason)
		reason = ksm_missing();
	if (!reason)
		reason = cgroup_enter();
	if (!reason)
		reason = kind_prepare(MTHP);
	if (reason)
		SKIP(return, "%s", reason);
	self->ps = page_size();
	self->block = MTHP_SIZE;
	peer_self(&self->me);
	ASSERT_EQ(0, peer_start(&self->a));
	self->other = variant->child ? &self->a : &self->me;
	ASSERT_EQ(0, swap_on())
		TH_LOG("swapon: %s", strerror(errno));
}

FIXTURE_TEARDOWN(merged)
{
	setting_write(KSM "run", "0");
	peer_kill(&self->a);
	swap_off();
}

/*
 * A large folio has to be aligned in memory and in the swap area, and where that
 * begins is not known: extents of two blocks, each at another offset from a block.
 */
#define EXTENT(_i)	((_i) * (3 * self->block + self->ps))

static bool is_large(struct peer *p, unsigned long addr)
{
	return kpageflags(proc_pfn(p->pid, addr)) & (KPF_COMPOUND_HEAD | KPF_COMPOUND_TAIL);
}

/* What is swapped out, and where, is not up to the test: for this long, in seconds */
#define MERGED_TRIES	300

TEST_F(merged, in_as_large_folio)
{
	struct peer *me = &self->me, *q = self->other;
	size_t n = self->block / self->ps, i, j, k, large = 0, shared = 0;
	unsigned long addr[] = { AT(0), AT(1), AT(2) }, at, pfn;
	time_t start = time(NULL);
	struct peer *peers[] = { me, q, me };
	int try;

	for (try = 0; !large && time(NULL) < start + MERGED_TRIES; try++) {
		for (k = 0; k < 3; k++)
			peer_munmap(peers[k], addr[k], EXTENT(n));
		if (try && variant->swapoff)
			ASSERT_EQ(0, swap_on());
		for (k = 0; k < 2; k++) {
			ASSERT_EQ(0, peer_map(peers[k], addr[k], EXTENT(n), RW));
			ASSERT_EQ(0, peer_madvise(peers[k], addr[k], EXTENT(n), MADV_MERGEABLE));
			for (i = 0; i < n; i++)
				ASSERT_EQ(0, peer_stamp(peers[k], addr[k] + EXTENT(i), 2 * n,
							0, 1, i));
		}
		ASSERT_EQ(0, ksm_scan());
		setting_write(KSM "run", "0");
		ASSERT_EQ(0, peer_dput(me, addr[0], me, addr[2], EXTENT(n), 0));
		for (k = 0; k < 3; k++)
			ASSERT_EQ(0, peer_madvise(peers[k], addr[k], EXTENT(n), MADV_HUGEPAGE));
		for (i = 0; i < n; i++)
			for (j = 0; j < 2 * n; j++) {
				at = EXTENT(i) + j * self->ps;
				pfn = proc_pfn(q->pid, addr[1] + at);
				ASSERT_NE(0, kpageflags(pfn) & KPF_KSM);
			}
		for (i = 0; i < n; i++)
			for (k = 1; k < 3; k++)
				ASSERT_TRUE(reclaim(me, addr[0] + EXTENT(i), peers[k],
						    addr[k] + EXTENT(i), 2 * n));

		for (k = 0; k < 3; k++) {
			for (i = 0; i < n; i++)
				EXPECT_EQ(-1, peer_check(peers[k], addr[k] + EXTENT(i), 2 * n,
							 0, 1, i));
			/* It brings in what the others have not touched. */
			if (variant->swapoff && !k)
				ASSERT_EQ(0, swap_off());
		}
		for (i = 0; i < n; i++)
			for (j = 0; j < 2 * n; j++) {
				at = EXTENT(i) + j * self->ps;
				if (!is_large(me, addr[0] + at))
					continue;
				large++;
				pfn = proc_pfn(me->pid, addr[0] + at);
				EXPECT_NE(pfn, proc_pfn(q->pid, addr[1] + at));
				shared += pfn == proc_pfn(me->pid, addr[2] + at);
			}
	}
	TH_LOG("%d times", try);
	EXPECT_LT(0, large);
	EXPECT_EQ(large, shared);
	if (variant->swapoff)
		ASSERT_EQ(0, swap_on());
	/* Out by way of the reverse map */
	for (k = 1; k < 3; k++)
		for (i = 0; i < n; i++)
			EXPECT_TRUE(reclaim(me, addr[0] + EXTENT(i), peers[k],
					    addr[k] + EXTENT(i), 2 * n));
	for (i = 0; i < n; i++)
		ASSERT_EQ(0, peer_stamp(q, addr[1] + EXTENT(i), 2 * n, 0, 1, n + i));
	for (k = 0; k < 3; k++)
		for (i = 0; i < n; i++)
			EXPECT_EQ(-1, peer_check(peers[k], addr[k] + EXTENT(i), 2 * n, 0, 1,
						 k == 1 ? n + i : i));
}

/* Beyond the limit of references, which depends on the size of huge pages */
#define MANY_MAPPINGS	"3000000"
#define MANY_AT_ONCE	(1UL << 16)

FIXTURE(references)
{
	struct peer me, child, other;
	unsigned long ps;
};

FIXTURE_SETUP(references)
{
	const char *reason = swap_missing();

	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	if (reason)
		SKIP(return, "%s", reason);
	if (sizeof(long) < 8)
		SKIP(return, "so many mappings need more than 32 bits");
	if (!getenv("DPUT_DISPOSABLE"))
		SKIP(return, "it takes half a gigabyte for mappings: DPUT_DISPOSABLE is not set");
	if (kind_prepare(SMALL))
		SKIP(return, "cannot change the settings of huge pages");
	ASSERT_EQ(0, setting_write(MAX_MAP_COUNT, MANY_MAPPINGS));
	self->ps = page_size();
	peer_self(&self->me);
	ASSERT_EQ(0, swap_on())
		TH_LOG("swapon: %s", strerror(errno));
}

FIXTURE_TEARDOWN(references)
{
	peer_kill(&self->child);
	peer_kill(&self->other);
	swap_off();
	setting_restore(MAX_MAP_COUNT);
}

/*
 * A swap entry has as many references as it may have, all but two of which are
 * those of a child. That must not keep its parent from forking.
 */
TEST_F_TIMEOUT(references, fork_beyond_the_limit, 7200)
{
	struct peer *c = &self->child;
	time_t start = time(NULL), seconds;
	size_t have = 1, step = 1;
	bool full = false;

	ASSERT_EQ(0, peer_map(&self->me, AT(0), 2 * self->ps, RW));
	ASSERT_EQ(0, peer_stamp(&self->me, AT(0), 2, 0, 1, 1));
	ASSERT_TRUE(pages_out(&self->me, AT(0), 2));
	ASSERT_EQ(0, peer_start(c));

	ASSERT_EQ(0, peer_dput(c, AT(0), c, AT(1), self->ps, 0));
	while (step) {
		if (!peer_dput(c, AT(1), c, AT(1) + have * self->ps, step * self->ps, 0)) {
			have += step;
			/* CONFIG_DEBUG_VM_MAPLE_TREE looks at all of them for each. */
			seconds = time(NULL) - start;
			if (seconds > 60 && seconds * 1000000UL / have > 2000)
				SKIP(return, "%zu mappings took %ld s; a million would take hours",
				     have, (long)seconds);
			if (!full)
				step = have < MANY_AT_ONCE ? have : MANY_AT_ONCE;
			continue;
		}
		ASSERT_EQ(ENOMEM, errno);
		full = true;
		step /= 2;
	}
	TH_LOG("%zu copies", have);
	ASSERT_LT(100000, have);
	/* It is not the number of mappings, nor memory. */
	ASSERT_EQ(0, peer_dput(c, AT(0) + self->ps, c, AT(1) + have * self->ps, self->ps, 0));
	ASSERT_EQ(1, pages_swapped(&self->me, AT(0), 1));

	ASSERT_EQ(0, peer_start(&self->other));
	EXPECT_EQ(-1, peer_check(&self->other, AT(0), 2, 0, 1, 1));
	EXPECT_EQ(-1, peer_check(&self->me, AT(0), 2, 0, 1, 1));
	EXPECT_EQ(-1, peer_check(c, AT(1) + (have - 1) * self->ps, 1, 0, 1, 1));
	peer_kill(c);
	EXPECT_EQ(-1, peer_check(&self->me, AT(0), 2, 0, 1, 1));
}

TEST_HARNESS_MAIN
