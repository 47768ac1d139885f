// SPDX-License-Identifier: GPL-2.0
/*
 * Large folios, of which one address space maps the same page twice.
 *
 * A write fault may reuse a large folio in place where it finds that all of
 * its references come from one mm. After dput() within a process, or from a
 * child into its parent, that no longer says that the page is mapped once.
 */

#include "kselftest_harness.h"
#include <linux/mman.h>
#include "dput_util.h"

/* Where the two mappings of a page come to be, and where they come from */
#define HUGE_X	(ARENA + (1UL << 28))
#define HUGE_Y	(ARENA + (2UL << 28))
#define HUGE_S	(ARENA + (3UL << 28))
#define HUGE_Z	(ARENA + (5UL << 27))

enum folio_kind { PMD, MTHP };

/* How one process comes to map every page at HUGE_X and at Y */
enum route {
	SELF,		/* copied within the process */
	CHILD_BACK,	/* fork(), and the child's copy put back; the child exits */
	GET_BACK,	/* put into a child, and got back from it; the child exits */
	PUT_TWICE,	/* put into a child twice, and unmapped in the source */
	FORKED,		/* SELF, then fork(), of which the child is looked at */
};

FIXTURE(large_folio)
{
	struct peer me, child;
	struct peer *holder;
	unsigned long ps, x, y;
	size_t npages, len;
};

FIXTURE_VARIANT(large_folio)
{
	enum folio_kind kind;
	enum route route;
	/* Pages by which Y is off from where it would line up with X */
	int shift;
};

#define LARGE_FOLIO_VARIANT(_kind, _route, _shift)			\
FIXTURE_VARIANT_ADD(large_folio, _kind##_##_route##_##_shift)		\
{									\
	.kind = _kind, .route = _route, .shift = _shift,		\
}

LARGE_FOLIO_VARIANT(PMD, SELF, 0);
LARGE_FOLIO_VARIANT(PMD, SELF, 1);
LARGE_FOLIO_VARIANT(PMD, SELF, 17);
LARGE_FOLIO_VARIANT(PMD, CHILD_BACK, 0);
LARGE_FOLIO_VARIANT(PMD, CHILD_BACK, 17);
LARGE_FOLIO_VARIANT(PMD, GET_BACK, 0);
LARGE_FOLIO_VARIANT(PMD, GET_BACK, 17);
LARGE_FOLIO_VARIANT(PMD, PUT_TWICE, 0);
LARGE_FOLIO_VARIANT(PMD, PUT_TWICE, 17);
LARGE_FOLIO_VARIANT(PMD, FORKED, 0);
LARGE_FOLIO_VARIANT(PMD, FORKED, 17);
LARGE_FOLIO_VARIANT(MTHP, SELF, 0);
LARGE_FOLIO_VARIANT(MTHP, SELF, 1);
LARGE_FOLIO_VARIANT(MTHP, SELF, 17);
LARGE_FOLIO_VARIANT(MTHP, CHILD_BACK, 0);
LARGE_FOLIO_VARIANT(MTHP, CHILD_BACK, 17);
LARGE_FOLIO_VARIANT(MTHP, GET_BACK, 0);
LARGE_FOLIO_VARIANT(MTHP, GET_BACK, 17);
LARGE_FOLIO_VARIANT(MTHP, PUT_TWICE, 0);
LARGE_FOLIO_VARIANT(MTHP, PUT_TWICE, 17);
LARGE_FOLIO_VARIANT(MTHP, FORKED, 0);
LARGE_FOLIO_VARIANT(MTHP, FORKED, 17);

#define MTHP_SIZE	mthp_size()

static void __attribute__((constructor)) prepare(void)
{
	folios_save();
	cgroup_prepare();
}

static size_t folio_size(enum folio_kind kind)
{
	return kind == PMD ? thp_size() : MTHP_SIZE;
}

static size_t region_len(enum folio_kind kind)
{
	return kind == PMD ? thp_size() : 16 * MTHP_SIZE;
}

/* Large folios at @addr, each page with a stamp of seed 1 */
static const char *large_map(struct peer *p, unsigned long addr, size_t len,
			     enum folio_kind kind)
{
	return folios_map(p, addr, len, folio_size(kind));
}

static int large_route(FIXTURE_DATA(large_folio) *self, enum route route)
{
	size_t len = self->len;
	struct peer tmp;

	self->holder = &self->me;
	switch (route) {
	case SELF:
		return sys_dput(PIDFD_SELF, self->x, PIDFD_SELF, self->y, len, 0);
	case CHILD_BACK:
		if (peer_start(&tmp) ||
		    sys_dput(tmp.pidfd, self->x, PIDFD_SELF, self->y, len, 0))
			return -1;
		peer_stop(&tmp);
		return 0;
	case GET_BACK:
		if (sys_dput(PIDFD_SELF, self->x, self->child.pidfd, self->y, len, 0) ||
		    sys_dput(self->child.pidfd, self->y, PIDFD_SELF, self->y, len, 0))
			return -1;
		peer_stop(&self->child);
		return 0;
	case PUT_TWICE:
		/* The folios are at HUGE_S of the caller. */
		self->holder = &self->child;
		if (sys_dput(PIDFD_SELF, HUGE_S, self->child.pidfd, self->x, len, 0) ||
		    sys_dput(PIDFD_SELF, HUGE_S, self->child.pidfd, self->y, len, 0) ||
		    munmap((void *)HUGE_S, len))
			return -1;
		return 0;
	case FORKED:
		if (sys_dput(PIDFD_SELF, self->x, PIDFD_SELF, self->y, len, 0) ||
		    peer_start(&tmp) ||
		    munmap((void *)self->x, len) || munmap((void *)self->y, len))
			return -1;
		peer_stop(&self->child);
		self->child = tmp;
		self->holder = &self->child;
		return 0;
	}
	return -1;
}

FIXTURE_SETUP(large_folio)
{
	const char *reason;

	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	reason = folios_enable(folio_size(variant->kind));
	if (reason)
		SKIP(return, "%s", reason);
	self->ps = page_size();
	self->len = region_len(variant->kind);
	self->npages = self->len / self->ps;
	self->x = HUGE_X;
	self->y = HUGE_Y + variant->shift * self->ps;
	peer_self(&self->me);
	ASSERT_EQ(0, peer_start(&self->child));
	reason = large_map(&self->me, variant->route == PUT_TWICE ? HUGE_S : HUGE_X,
			   self->len, variant->kind);
	NEED_LARGE(reason);
	ASSERT_EQ(0, large_route(self, variant->route))
		TH_LOG("dput: %s", strerror(errno));
	ASSERT_EQ(-1, peer_check(self->holder, self->x, self->npages, 0, 1, 1));
	ASSERT_EQ(-1, peer_check(self->holder, self->y, self->npages, 0, 1, 1));
}

FIXTURE_TEARDOWN(large_folio)
{
	peer_kill(&self->child);
}

#define STAMP(_at, _first, _step, _seed)					\
	ASSERT_EQ(0, peer_stamp(self->holder, self->_at, self->npages,		\
				_first, _step, _seed))

/* Of a failure, the number of the first page that differs is shown. */
#define CHECK(_at, _first, _step, _seed)					\
	EXPECT_EQ(-1, peer_check(self->holder, self->_at, self->npages,		\
				 _first, _step, _seed))

TEST_F(large_folio, write_first)
{
	STAMP(x, 0, 1, 2);
	CHECK(y, 0, 1, 1);
	CHECK(x, 0, 1, 2);
	STAMP(y, 0, 1, 3);
	CHECK(x, 0, 1, 2);
	CHECK(y, 0, 1, 3);
}

TEST_F(large_folio, write_second)
{
	STAMP(y, 0, 1, 2);
	CHECK(x, 0, 1, 1);
	CHECK(y, 0, 1, 2);
	STAMP(x, 0, 1, 3);
	CHECK(y, 0, 1, 2);
	CHECK(x, 0, 1, 3);
}

/* One page at a time, each looked at through the other mapping at once */
TEST_F(large_folio, write_in_turn)
{
	size_t i;

	for (i = 0; i < self->npages; i += 7) {
		struct peer *p = self->holder;
		unsigned long w = i % 2 ? self->x : self->y;
		unsigned long r = i % 2 ? self->y : self->x;

		ASSERT_EQ(0, peer_stamp(p, w, i + 1, i, 1, 2));
		ASSERT_EQ(-1, peer_check(p, r, i + 1, i, 1, 1));
		ASSERT_EQ(0, peer_stamp(p, r, i + 1, i, 1, 3));
		ASSERT_EQ(-1, peer_check(p, w, i + 1, i, 1, 2));
	}
}

/* One mapping is gone but for every third page; that page is mapped twice. */
TEST_F(large_folio, unmap_most)
{
	unsigned long i;

	for (i = 0; i + 3 <= self->npages; i += 3)
		ASSERT_EQ(0, peer_munmap(self->holder, self->y + (i + 1) * self->ps,
					 2 * self->ps));
	STAMP(x, 0, 1, 2);
	CHECK(y, 0, 3, 1);
	STAMP(y, 0, 3, 3);
	CHECK(x, 0, 1, 2);
}

/* Half of it was written, and so is no longer shared, before the rest is. */
TEST_F(large_folio, write_half_first)
{
	STAMP(x, 0, 2, 2);
	STAMP(y, 0, 2, 3);
	CHECK(x, 0, 2, 2);
	CHECK(x, 1, 2, 1);
	CHECK(y, 1, 2, 1);
	STAMP(y, 1, 2, 4);
	CHECK(x, 1, 2, 1);
	STAMP(x, 1, 2, 5);
	CHECK(y, 1, 2, 4);
	CHECK(x, 0, 2, 2);
	CHECK(y, 0, 2, 3);
}

/* A child inherits both mappings, and outlives its parent's. */
TEST_F(large_folio, fork)
{
	struct peer c;

	ASSERT_EQ(0, peer_fork(self->holder, &c));
	ASSERT_EQ(0, peer_munmap(self->holder, self->x, self->len));
	ASSERT_EQ(0, peer_munmap(self->holder, self->y, self->len));
	ASSERT_EQ(0, peer_stamp(&c, self->x, self->npages, 0, 1, 2));
	EXPECT_EQ(-1, peer_check(&c, self->y, self->npages, 0, 1, 1));
	ASSERT_EQ(0, peer_stamp(&c, self->y, self->npages, 0, 1, 3));
	EXPECT_EQ(-1, peer_check(&c, self->x, self->npages, 0, 1, 2));
	peer_kill(&c);
}

/* A child comes and goes, so that the folios were shared, and are not. */
TEST_F(large_folio, fork_and_exit)
{
	struct peer c;

	ASSERT_EQ(0, peer_fork(self->holder, &c));
	ASSERT_EQ(-1, peer_check(&c, self->x, self->npages, 0, 1, 1));
	if (self->holder == &self->me)
		peer_stop(&c);
	else
		peer_stop_child(self->holder, &c);
	STAMP(y, 0, 1, 2);
	CHECK(x, 0, 1, 1);
	STAMP(x, 0, 1, 3);
	CHECK(y, 0, 1, 2);
}

TEST_F(large_folio, mremap)
{
	ASSERT_EQ(0, peer_mremap(self->holder, self->y, self->len, HUGE_Z + 3 * self->ps));
	self->y = HUGE_Z + 3 * self->ps;
	CHECK(y, 0, 1, 1);
	STAMP(x, 0, 1, 2);
	CHECK(y, 0, 1, 1);
	STAMP(y, 0, 1, 3);
	CHECK(x, 0, 1, 2);
}

/* A third mapping, out of the second */
TEST_F(large_folio, three_times)
{
	unsigned long z = HUGE_Z + 5 * self->ps;

	ASSERT_EQ(0, peer_dput(self->holder, self->y, self->holder, z, self->len, 0));
	STAMP(x, 0, 1, 2);
	CHECK(y, 0, 1, 1);
	EXPECT_EQ(-1, peer_check(self->holder, z, self->npages, 0, 1, 1));
	STAMP(y, 0, 1, 3);
	EXPECT_EQ(-1, peer_check(self->holder, z, self->npages, 0, 1, 1));
	ASSERT_EQ(0, peer_stamp(self->holder, z, self->npages, 0, 1, 4));
	CHECK(x, 0, 1, 2);
	CHECK(y, 0, 1, 3);
}

/* Read-only and back: the fault that follows must still copy. */
TEST_F(large_folio, mprotect)
{
	ASSERT_EQ(0, peer_mprotect(self->holder, self->x, self->len, PROT_READ));
	ASSERT_EQ(0, peer_mprotect(self->holder, self->x, self->len, RW));
	ASSERT_EQ(0, peer_mprotect(self->holder, self->y, self->len, PROT_READ));
	ASSERT_EQ(0, peer_mprotect(self->holder, self->y, self->len, RW));
	STAMP(y, 0, 1, 2);
	CHECK(x, 0, 1, 1);
	STAMP(x, 0, 1, 3);
	CHECK(y, 0, 1, 2);
}

TEST_F(large_folio, collapse)
{
	/* Whether there is anything to collapse does not matter. */
	peer_madvise(self->holder, self->y, self->len, MADV_COLLAPSE);
	CHECK(x, 0, 1, 1);
	CHECK(y, 0, 1, 1);
	STAMP(x, 0, 2, 2);
	CHECK(y, 0, 1, 1);
	peer_madvise(self->holder, self->x, self->len, MADV_COLLAPSE);
	CHECK(x, 0, 2, 2);
	CHECK(x, 1, 2, 1);
	STAMP(y, 0, 1, 3);
	CHECK(x, 0, 2, 2);
	CHECK(x, 1, 2, 1);
	STAMP(x, 0, 1, 4);
	CHECK(y, 0, 1, 3);
}

struct pin_arg {
	unsigned long addr, len;
};

static long op_pin(void *arg)
{
	struct pin_arg *a = arg;

	return pin_memory(a->addr, a->len);
}

/* A pin for writing takes a page of its own, as a write would. */
TEST_F(large_folio, pin)
{
	struct pin_arg arg = { self->y + 5 * self->ps, 32 * self->ps };
	unsigned long i;

	if (peer_call(self->holder, op_pin, &arg, sizeof(arg)) < 0)
		SKIP(return, "io_uring: %s", strerror(errno));
	for (i = 5; i < 37; i++)
		EXPECT_NE(proc_pfn(self->holder->pid, self->x + i * self->ps),
			  proc_pfn(self->holder->pid, self->y + i * self->ps));
	STAMP(y, 0, 1, 2);
	CHECK(x, 0, 1, 1);
	STAMP(x, 0, 1, 3);
	CHECK(y, 0, 1, 2);
}

TEST_F(large_folio, populate)
{
	ASSERT_EQ(0, peer_madvise(self->holder, self->y, self->len, MADV_POPULATE_READ));
	CHECK(x, 0, 1, 1);
	ASSERT_EQ(0, peer_madvise(self->holder, self->y, self->len, MADV_POPULATE_WRITE));
	STAMP(y, 0, 1, 2);
	CHECK(x, 0, 1, 1);
	ASSERT_EQ(0, peer_madvise(self->holder, self->x, self->len, MADV_POPULATE_WRITE));
	STAMP(x, 0, 1, 3);
	CHECK(y, 0, 1, 2);
}

TEST_F(large_folio, dontneed)
{
	ASSERT_EQ(0, peer_madvise(self->holder, self->x, self->len / 2, MADV_DONTNEED));
	CHECK(y, 0, 1, 1);
	STAMP(x, 0, 1, 2);
	CHECK(y, 0, 1, 1);
	STAMP(y, 0, 1, 3);
	CHECK(x, 0, 1, 2);
}

/* What has been written is right when it is copied on, once more. */
TEST_F(large_folio, copy_back)
{
	STAMP(x, 0, 3, 2);
	ASSERT_EQ(0, peer_dput(self->holder, self->x, self->holder, self->y, self->len, 0));
	CHECK(y, 0, 3, 2);
	CHECK(y, 1, 3, 1);
	STAMP(y, 0, 1, 3);
	CHECK(x, 0, 3, 2);
	CHECK(x, 1, 3, 1);
	ASSERT_EQ(0, peer_dput(self->holder, self->y, self->holder, self->x, self->len, 0));
	CHECK(x, 0, 1, 3);
	STAMP(x, 0, 1, 4);
	CHECK(y, 0, 1, 3);
}

/*
 * Lazily freed memory: what one mapping gives away is still the other's.
 * Reclaim is made to happen in a cgroup of the test's own.
 */

FIXTURE(lazyfree)
{
	struct peer me;
};

FIXTURE_VARIANT(lazyfree)
{
	enum folio_kind kind;
	int shift;
};

FIXTURE_VARIANT_ADD(lazyfree, PMD_0) { .kind = PMD, .shift = 0 };
FIXTURE_VARIANT_ADD(lazyfree, PMD_1) { .kind = PMD, .shift = 1 };
FIXTURE_VARIANT_ADD(lazyfree, MTHP_0) { .kind = MTHP, .shift = 0 };
FIXTURE_VARIANT_ADD(lazyfree, MTHP_1) { .kind = MTHP, .shift = 1 };

FIXTURE_SETUP(lazyfree)
{
	const char *reason;

	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	reason = folios_enable(folio_size(variant->kind));
	if (!reason)
		reason = cgroup_enter();
	if (reason)
		SKIP(return, "%s", reason);
	peer_self(&self->me);
}

FIXTURE_TEARDOWN(lazyfree)
{
}

static bool any_lost(unsigned long addr, size_t npages)
{
	unsigned long ps = page_size();
	size_t i;

	for (i = 0; i < npages; i++)
		if (!*(volatile uint64_t *)(addr + i * ps))
			return true;
	return false;
}

TEST_F(lazyfree, reclaim)
{
	size_t len = region_len(variant->kind), npages = len / page_size();
	unsigned long x = HUGE_X, y = HUGE_Y + variant->shift * page_size();
	unsigned long control = HUGE_S;
	const char *reason;
	int i;

	reason = large_map(&self->me, control, len, variant->kind);
	if (!reason)
		reason = large_map(&self->me, x, len, variant->kind);
	NEED_LARGE(reason);
	ASSERT_EQ(0, sys_dput(PIDFD_SELF, x, PIDFD_SELF, y, len, 0))
		TH_LOG("dput: %s", strerror(errno));
	/* MADV_FREE passes over what is still in another CPU's batch. */
	setting_write("/proc/sys/vm/drop_caches", "1");
	ASSERT_EQ(0, madvise((void *)x, len, MADV_FREE));
	ASSERT_EQ(0, madvise((void *)control, len, MADV_FREE));
	setting_write("/proc/sys/vm/drop_caches", "1");
	for (i = 0; i < 10; i++) {
		/* It fails where it gets less than asked for. */
		cgroup_reclaim("64M");
		if (any_lost(control, npages))
			break;
	}
	EXPECT_EQ(-1, peer_check(&self->me, y, npages, 0, 1, 1));
	/* Freed, or as it was; nothing else */
	for (i = 0; i < (int)npages; i++) {
		unsigned long *p = (unsigned long *)(x + i * page_size());

		EXPECT_TRUE(!*p || *p == *(unsigned long *)(y + i * page_size()));
	}
	ASSERT_EQ(0, peer_stamp(&self->me, x, npages, 0, 1, 2));
	EXPECT_EQ(-1, peer_check(&self->me, y, npages, 0, 1, 1));
	if (!any_lost(control, npages) && _metadata->exit_code == KSFT_PASS)
		SKIP(return, "nothing could be reclaimed");
}

/* The other way: both are given away, one is then written again. */
TEST_F(lazyfree, rewrite)
{
	size_t len = region_len(variant->kind), npages = len / page_size();
	unsigned long x = HUGE_X, y = HUGE_Y + variant->shift * page_size();
	const char *reason;

	NEED_LARGE(large_map(&self->me, x, len, variant->kind));
	ASSERT_EQ(0, sys_dput(PIDFD_SELF, x, PIDFD_SELF, y, len, 0));
	ASSERT_EQ(0, madvise((void *)x, len, MADV_FREE));
	ASSERT_EQ(0, madvise((void *)y, len, MADV_FREE));
	ASSERT_EQ(0, peer_stamp(&self->me, y, npages, 0, 1, 2));
	reason = cgroup_reclaim_given_up();
	EXPECT_EQ(-1, peer_check(&self->me, y, npages, 0, 1, 2));
	ASSERT_EQ(0, peer_stamp(&self->me, x, npages, 0, 1, 3));
	EXPECT_EQ(-1, peer_check(&self->me, y, npages, 0, 1, 2));
	if (reason)
		SKIP_REST(return, "%s", reason);
}

/* What stays huge, and what cannot */

FIXTURE(pmd)
{
	struct peer me, child;
	size_t size, len;
};

FIXTURE_VARIANT(pmd)
{
	bool to_child, from_child;
};

FIXTURE_VARIANT_ADD(pmd, self) {};
FIXTURE_VARIANT_ADD(pmd, put) { .to_child = true };
FIXTURE_VARIANT_ADD(pmd, get) { .from_child = true };

FIXTURE_SETUP(pmd)
{
	const char *reason;

	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	reason = folios_enable(thp_size());
	if (reason)
		SKIP(return, "%s", reason);
	self->size = thp_size();
	self->len = 2 * self->size;
	peer_self(&self->me);
	ASSERT_EQ(0, peer_start(&self->child));
	NEED_LARGE(large_map(variant->from_child ? &self->child : &self->me,
			     HUGE_X, self->len, PMD));
}

FIXTURE_TEARDOWN(pmd)
{
	peer_kill(&self->child);
}

#define PMD_SIDES()								\
	struct peer *src = variant->from_child ? &self->child : &self->me;	\
	struct peer *dst = variant->to_child ? &self->child : &self->me;	\
	size_t npages = self->len / page_size()

TEST_F(pmd, stays_huge)
{
	PMD_SIDES();

	ASSERT_EQ(0, peer_dput(src, HUGE_X, dst, HUGE_Y, self->len, 0));
	EXPECT_TRUE(is_huge(src->pid, HUGE_X, self->len));
	EXPECT_TRUE(is_huge(dst->pid, HUGE_Y, self->len));
	EXPECT_EQ(-1, peer_check(dst, HUGE_Y, npages, 0, 1, 1));
	/* Copied on, back, and over an old copy */
	ASSERT_EQ(0, peer_dput(dst, HUGE_Y, src, HUGE_Z + (1UL << 26), self->len, 0));
	EXPECT_TRUE(is_huge(src->pid, HUGE_Z + (1UL << 26), self->len));
	ASSERT_EQ(0, peer_dput(src, HUGE_X, dst, HUGE_Y, self->len, 0));
	EXPECT_TRUE(is_huge(dst->pid, HUGE_Y, self->len));
	/* The pages are the same ones. */
	EXPECT_EQ(proc_pfn(src->pid, HUGE_X), proc_pfn(dst->pid, HUGE_Y));
	ASSERT_EQ(0, peer_stamp(dst, HUGE_Y, npages, 0, 1, 2));
	EXPECT_EQ(-1, peer_check(src, HUGE_X, npages, 0, 1, 1));
	EXPECT_EQ(-1, peer_check(src, HUGE_Z + (1UL << 26), npages, 0, 1, 1));
}

TEST_F(pmd, shifted_by_page)
{
	unsigned long y = HUGE_Y + page_size();

	PMD_SIDES();

	ASSERT_EQ(0, peer_dput(src, HUGE_X, dst, y, self->len, 0));
	EXPECT_EQ(0, proc_smaps_kb(dst->pid, y, y + self->len, "AnonHugePages"));
	EXPECT_EQ(self->len >> 10, proc_smaps_kb(dst->pid, y, y + self->len, "Rss"));
	EXPECT_EQ(-1, peer_check(dst, y, npages, 0, 1, 1));
	EXPECT_EQ(-1, peer_check(src, HUGE_X, npages, 0, 1, 1));
	ASSERT_EQ(0, peer_stamp(src, HUGE_X, npages, 0, 1, 2));
	EXPECT_EQ(-1, peer_check(dst, y, npages, 0, 1, 1));
}

/* Some pages out of the middle, across the end of the first huge page */
TEST_F(pmd, part_of_it)
{
	unsigned long off = self->size - 9 * page_size();
	size_t n = 17, len = n * page_size();

	PMD_SIDES();

	ASSERT_EQ(0, peer_dput(src, HUGE_X + off, dst, HUGE_Y + off, len, 0));
	ASSERT_EQ(0, peer_stamp(dst, HUGE_Y + off, n, 0, 1, 2));
	EXPECT_EQ(-1, peer_check(src, HUGE_X, npages, 0, 1, 1));
	ASSERT_EQ(0, peer_dput(src, HUGE_X + off, dst, HUGE_Y + off, len, 0));
	ASSERT_EQ(0, peer_stamp(src, HUGE_X, npages, 0, 1, 3));
	EXPECT_EQ(0, proc_mapped(dst->pid, HUGE_Y + off - page_size(), page_size()));
	for (size_t i = 0; i < n; i++) {
		uint64_t a, b;

		/* The stamps are those of the place that they come from. */
		ASSERT_EQ(0, peer_read(dst, HUGE_Y + off + i * page_size(), &a, 8));
		ASSERT_EQ(0, peer_read(src, HUGE_X + off + i * page_size(), &b, 8));
		EXPECT_EQ((a & 0xffffffffffff), (b & 0xffffffffffff));
		EXPECT_EQ(1, a >> 48);
		EXPECT_EQ(3, b >> 48);
	}
}

/* Within one folio, with a partial page at the end: the whole ones are shared. */
TEST_F(pmd, ragged_within_folio)
{
	struct peer *p = variant->from_child ? &self->child : &self->me;
	unsigned long y = HUGE_X + self->size / 2, ps = page_size(), i;
	uint64_t was[9], is;

	for (i = 0; i < 9; i++)
		ASSERT_EQ(0, peer_read(p, HUGE_X + i * ps, &was[i], sizeof(was[i])));
	ASSERT_EQ(0, peer_dput(p, HUGE_X, p, y, 8 * ps + 16, 0));
	for (i = 0; i < 8; i++)
		EXPECT_EQ(proc_pfn(p->pid, HUGE_X + i * ps), proc_pfn(p->pid, y + i * ps));
	ASSERT_EQ(0, peer_stamp(p, HUGE_X, 9, 0, 1, 2));
	for (i = 0; i < 9; i++) {
		ASSERT_EQ(0, peer_read(p, y + i * ps, &is, sizeof(is)));
		EXPECT_EQ(was[i], is);
	}
}

/* A destination of huge pages is cut, and its other pages stay. */
TEST_F(pmd, into_middle)
{
	size_t ps = page_size(), n = self->size / ps, at = n / 5;
	unsigned long y = HUGE_Y + at * ps;

	PMD_SIDES();

	NEED_LARGE(large_map(dst, HUGE_Y, self->len, PMD));
	ASSERT_EQ(0, peer_stamp(dst, HUGE_Y, npages, 0, 1, 2));
	ASSERT_EQ(0, peer_dput(src, HUGE_X, dst, y, self->size, 0));
	EXPECT_EQ(-1, peer_check(dst, HUGE_Y, at, 0, 1, 2));
	EXPECT_EQ(-1, peer_check(dst, y, n, 0, 1, 1));
	EXPECT_EQ(-1, peer_check(dst, HUGE_Y, npages, n + at, 1, 2));
	ASSERT_EQ(0, peer_stamp(dst, y, n, 0, 1, 3));
	EXPECT_EQ(-1, peer_check(src, HUGE_X, npages, 0, 1, 1));
}

/* The huge zero page, which is nobody's */
TEST_F(pmd, huge_zero_page)
{
	PMD_SIDES();
	unsigned long s = HUGE_S;
	size_t i;

	NEED_LARGE(folios_map_zero(src, s, self->len));
	for (i = 0; i < 2; i++) {
		unsigned long y = HUGE_Y + i * page_size(), v = 1;

		ASSERT_EQ(0, peer_dput(src, s, dst, y, self->len, 0));
		ASSERT_EQ(0, peer_read(dst, y + self->len - 8, &v, 8));
		EXPECT_EQ(0, v);
		ASSERT_EQ(0, peer_stamp(dst, y, npages, 0, 1, 1));
		ASSERT_EQ(0, peer_read(src, s, &v, 8));
		EXPECT_EQ(0, v);
		EXPECT_EQ(-1, peer_check(dst, y, npages, 0, 1, 1));
		ASSERT_EQ(0, peer_munmap(dst, y, self->len));
	}
}

TEST_HARNESS_MAIN
