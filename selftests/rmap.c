// SPDX-License-Identifier: GPL-2.0
/*
 * The reverse map of copied pages.
 *
 * A copy that the reverse map does not find reads and writes as it should, and
 * nothing complains. So have a walk do something that can be seen: migrate each
 * page to another node, and look for it in every place that maps it.
 */

#include "kselftest_harness.h"
#include <limits.h>
#include <linux/mempolicy.h>
#include <sched.h>
#include <sys/syscall.h>
#include "dput_util.h"

#define MAX_SHARES	8
#define MAX_PAGES	512

static int nodes[2], nr_nodes;

static void __attribute__((constructor)) prepare(void)
{
	nr_nodes = memory_nodes(nodes);
	ksm_save();
	folios_save();
	setting_save("/proc/sys/kernel/numa_balancing");
}

/* NULL, or why nothing can be shown here */
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
	/* No one else is to move pages. */
	setting_write("/proc/sys/kernel/numa_balancing", "0");
	return NULL;
}

static const char *no_nodes(void)
{
	return nr_nodes < 2 ? "needs two NUMA nodes (numa=fake=2 is as good)" : NULL;
}

/* The node of a page, or -errno */
static int page_node(struct peer *p, unsigned long addr)
{
	void *page = (void *)addr;
	int status = -EINVAL;

	if (syscall(__NR_move_pages, p->pid, 1, &page, NULL, &status, 0))
		return -errno;
	return status;
}

/* Move a page to the other node; 0, or -errno */
static int page_move(struct peer *p, unsigned long addr)
{
	int from = page_node(p, addr), to, status = 0, i;
	void *page = (void *)addr;

	if (from < 0)
		return from;
	to = from == nodes[0] ? nodes[1] : nodes[0];
	/* Migration gives up on a page that someone holds for a moment. */
	for (i = 0; i < 1000; i++) {
		if (syscall(__NR_move_pages, p->pid, 1, &page, &to, &status,
			    MPOL_MF_MOVE_ALL) < 0)
			return -errno;
		if (page_node(p, addr) == to)
			return 0;
		usleep(10000);
	}
	return status < 0 ? status : -EAGAIN;
}

struct share {
	struct peer *p;
	unsigned long addr;
};

/* Who maps the same pages, and where */
struct situation {
	struct peer me, a, b, c;
	struct share share[MAX_SHARES];
	int nr;
	size_t npages, len;
	unsigned long ps;
	int shift;		/* by how many pages the places are misaligned */
	bool huge;
	const char *why;	/* there are no huge pages */
};

#define AT(_n)	(ARENA + (_n) * ((1UL << 28) + s->shift * s->ps))

static void add(struct situation *s, struct peer *p, unsigned long addr)
{
	s->share[s->nr].p = p;
	s->share[s->nr++].addr = addr;
}

static int fresh(struct situation *s, struct peer *p, unsigned long addr, size_t npages)
{
	size_t len = npages * s->ps;

	if (s->huge) {
		s->why = folios_map(p, addr, len, thp_size());
		return s->why ? -1 : 0;
	}
	if (peer_map(p, addr, len, RW) || peer_madvise(p, addr, len, MADV_NOHUGEPAGE))
		return -1;
	return peer_stamp(p, addr, npages, 0, 1, 1);
}

static int copy(struct situation *s, struct peer *from, unsigned long src,
		struct peer *to, unsigned long dst)
{
	return peer_dput(from, src, to, dst, s->len, 0);
}

static int within(struct situation *s)
{
	add(s, &s->me, AT(0));
	add(s, &s->me, AT(1));
	return fresh(s, &s->me, AT(0), s->npages) ||
	       copy(s, &s->me, AT(0), &s->me, AT(1));
}

static int to_lower_address(struct situation *s)
{
	add(s, &s->me, AT(4));
	add(s, &s->me, AT(1));
	return fresh(s, &s->me, AT(4), s->npages) ||
	       copy(s, &s->me, AT(4), &s->me, AT(1));
}

static int put(struct situation *s)
{
	add(s, &s->me, AT(0));
	add(s, &s->a, AT(1));
	return fresh(s, &s->me, AT(0), s->npages) ||
	       copy(s, &s->me, AT(0), &s->a, AT(1));
}

static int put_same_address(struct situation *s)
{
	add(s, &s->me, AT(0));
	add(s, &s->a, AT(0));
	return fresh(s, &s->me, AT(0), s->npages) ||
	       copy(s, &s->me, AT(0), &s->a, AT(0));
}

/* Folios that a child has allocated, in its parent */
static int get(struct situation *s)
{
	add(s, &s->a, AT(0));
	add(s, &s->me, AT(1));
	return fresh(s, &s->a, AT(0), s->npages) ||
	       copy(s, &s->a, AT(0), &s->me, AT(1));
}

static int get_after_exit(struct situation *s)
{
	add(s, &s->me, AT(1));
	add(s, &s->b, AT(2));
	if (fresh(s, &s->a, AT(0), s->npages) ||
	    copy(s, &s->a, AT(0), &s->me, AT(1)) ||
	    copy(s, &s->me, AT(1), &s->b, AT(2)))
		return -1;
	peer_stop(&s->a);
	return 0;
}

static int between(struct situation *s)
{
	add(s, &s->a, AT(0));
	add(s, &s->b, AT(1));
	return fresh(s, &s->a, AT(0), s->npages) ||
	       copy(s, &s->a, AT(0), &s->b, AT(1));
}

/* A to B to A */
static int there_and_back(struct situation *s)
{
	add(s, &s->me, AT(0));
	add(s, &s->a, AT(1));
	add(s, &s->me, AT(2));
	return fresh(s, &s->me, AT(0), s->npages) ||
	       copy(s, &s->me, AT(0), &s->a, AT(1)) ||
	       copy(s, &s->a, AT(1), &s->me, AT(2));
}

static int ring(struct situation *s)
{
	add(s, &s->me, AT(0));
	add(s, &s->a, AT(1));
	add(s, &s->b, AT(2));
	add(s, &s->c, AT(3));
	add(s, &s->me, AT(4));
	return fresh(s, &s->me, AT(0), s->npages) ||
	       copy(s, &s->me, AT(0), &s->a, AT(1)) ||
	       copy(s, &s->a, AT(1), &s->b, AT(2)) ||
	       copy(s, &s->b, AT(2), &s->c, AT(3)) ||
	       copy(s, &s->c, AT(3), &s->me, AT(4));
}

static int copy_of_copy(struct situation *s)
{
	add(s, &s->me, AT(0));
	add(s, &s->me, AT(1));
	add(s, &s->me, AT(2));
	add(s, &s->a, AT(3));
	return fresh(s, &s->me, AT(0), s->npages) ||
	       copy(s, &s->me, AT(0), &s->me, AT(1)) ||
	       copy(s, &s->me, AT(1), &s->me, AT(2)) ||
	       copy(s, &s->me, AT(2), &s->a, AT(3));
}

/* The first copies are gone, and what linked the last to the folios with them. */
static int middle_gone(struct situation *s)
{
	add(s, &s->me, AT(0));
	add(s, &s->b, AT(2));
	if (fresh(s, &s->me, AT(0), s->npages) ||
	    copy(s, &s->me, AT(0), &s->a, AT(1)) ||
	    copy(s, &s->a, AT(1), &s->b, AT(2)))
		return -1;
	peer_stop(&s->a);
	return 0;
}

static int twice_source_gone(struct situation *s)
{
	add(s, &s->a, AT(1));
	add(s, &s->a, AT(2));
	return fresh(s, &s->me, AT(0), s->npages) ||
	       copy(s, &s->me, AT(0), &s->a, AT(1)) ||
	       copy(s, &s->me, AT(0), &s->a, AT(2)) ||
	       peer_munmap(&s->me, AT(0), s->len);
}

/* Out of the middle of a mapping, into the middle of another one */
static int sub_range(struct situation *s)
{
	unsigned long src = AT(0) + 5 * s->ps, dst = AT(1) + 3 * s->ps;

	add(s, &s->me, src);
	add(s, &s->a, dst);
	add(s, &s->me, dst);
	return fresh(s, &s->me, AT(0), s->npages + 16) ||
	       fresh(s, &s->a, AT(1), s->npages + 16) ||
	       fresh(s, &s->me, AT(1), s->npages + 16) ||
	       peer_stamp(&s->me, src, s->npages, 0, 1, 1) ||
	       copy(s, &s->me, src, &s->a, dst) ||
	       copy(s, &s->me, src, &s->me, dst);
}

/* The child of either side has them, too. */
static int fork_after(struct situation *s)
{
	struct peer *sc = &s->b, *dc = &s->c;

	add(s, &s->me, AT(0));
	add(s, &s->a, AT(1));
	add(s, sc, AT(0));
	add(s, dc, AT(1));
	peer_stop(sc);
	peer_stop(dc);
	return fresh(s, &s->me, AT(0), s->npages) ||
	       copy(s, &s->me, AT(0), &s->a, AT(1)) ||
	       peer_fork(&s->me, sc) || peer_fork(&s->a, dc);
}

static int fork_before(struct situation *s)
{
	add(s, &s->me, AT(0));
	add(s, &s->b, AT(0));
	add(s, &s->me, AT(1));
	peer_stop(&s->b);
	return fresh(s, &s->me, AT(0), s->npages) ||
	       peer_fork(&s->me, &s->b) ||
	       copy(s, &s->b, AT(0), &s->me, AT(1));
}

static int mremapped(struct situation *s)
{
	add(s, &s->me, AT(2));
	add(s, &s->a, AT(3));
	add(s, &s->me, AT(4));
	return fresh(s, &s->me, AT(0), s->npages) ||
	       copy(s, &s->me, AT(0), &s->a, AT(1)) ||
	       copy(s, &s->me, AT(0), &s->me, AT(1)) ||
	       peer_mremap(&s->me, AT(0), s->len, AT(2)) ||
	       peer_mremap(&s->a, AT(1), s->len, AT(3)) ||
	       peer_mremap(&s->me, AT(1), s->len, AT(4));
}

/* Moved first, so that its page offset is not that of its address */
static int mremapped_before(struct situation *s)
{
	add(s, &s->me, AT(1));
	add(s, &s->me, AT(2));
	add(s, &s->a, AT(3));
	return fresh(s, &s->me, AT(0), s->npages) ||
	       peer_mremap(&s->me, AT(0), s->len, AT(1)) ||
	       copy(s, &s->me, AT(1), &s->me, AT(2)) ||
	       copy(s, &s->me, AT(2), &s->a, AT(3));
}

/* Copied page by page, so that the copy's mappings merge */
static int page_by_page(struct situation *s)
{
	size_t i;

	add(s, &s->me, AT(0));
	add(s, &s->me, AT(1));
	add(s, &s->a, AT(1));
	if (fresh(s, &s->me, AT(0), s->npages))
		return -1;
	for (i = 0; i < s->npages; i++)
		if (peer_dput(&s->me, AT(0) + i * s->ps, &s->me, AT(1) + i * s->ps,
			      s->ps, 0) ||
		    peer_dput(&s->me, AT(0) + i * s->ps, &s->a, AT(1) + i * s->ps,
			      s->ps, 0))
			return -1;
	return 0;
}

static int page_by_page_backwards(struct situation *s)
{
	size_t i;

	add(s, &s->me, AT(0));
	add(s, &s->me, AT(1));
	add(s, &s->a, AT(1));
	if (fresh(s, &s->me, AT(0), s->npages))
		return -1;
	for (i = s->npages; i-- > 0;)
		if (peer_dput(&s->me, AT(0) + i * s->ps, &s->me, AT(1) + i * s->ps,
			      s->ps, 0) ||
		    peer_dput(&s->me, AT(0) + i * s->ps, &s->a, AT(1) + i * s->ps,
			      s->ps, 0))
			return -1;
	return 0;
}

/* Split by protections, and merged again */
static int split_and_merged(struct situation *s)
{
	unsigned long third = s->len / 3 & -s->ps;
	int i;

	add(s, &s->me, AT(0));
	add(s, &s->me, AT(1));
	add(s, &s->a, AT(2));
	if (fresh(s, &s->me, AT(0), s->npages) ||
	    copy(s, &s->me, AT(0), &s->me, AT(1)) ||
	    copy(s, &s->me, AT(0), &s->a, AT(2)))
		return -1;
	for (i = 0; i < 3; i++)
		if (peer_mprotect(s->share[i].p, s->share[i].addr + third, third, PROT_READ) ||
		    peer_mprotect(s->share[i].p, s->share[i].addr + third, third, RW))
			return -1;
	return 0;
}

/* A source that had no folio when it was copied, and got the copy's back */
static int unfaulted_first(struct situation *s)
{
	add(s, &s->a, AT(1));
	add(s, &s->me, AT(0));
	add(s, &s->me, AT(2));
	return peer_map(&s->me, AT(0), s->len, RW) ||
	       copy(s, &s->me, AT(0), &s->a, AT(1)) ||
	       copy(s, &s->me, AT(0), &s->me, AT(2)) ||
	       peer_madvise(&s->a, AT(1), s->len, MADV_NOHUGEPAGE) ||
	       peer_stamp(&s->a, AT(1), s->npages, 0, 1, 1) ||
	       copy(s, &s->a, AT(1), &s->me, AT(0)) ||
	       copy(s, &s->me, AT(0), &s->me, AT(2));
}

/* Back and forth, with pages written on either side in between */
static int ping_pong(struct situation *s)
{
	int i;

	add(s, &s->me, AT(0));
	add(s, &s->a, AT(1));
	if (fresh(s, &s->me, AT(0), s->npages))
		return -1;
	for (i = 0; i < 20; i++) {
		if (copy(s, &s->me, AT(0), &s->a, AT(1)) ||
		    peer_stamp(&s->a, AT(1), s->npages, i % 5, 5, 1) ||
		    copy(s, &s->a, AT(1), &s->me, AT(0)) ||
		    peer_stamp(&s->me, AT(0), s->npages, i % 7, 7, 1))
			return -1;
	}
	return copy(s, &s->me, AT(0), &s->a, AT(1));
}

FIXTURE(migrate)
{
	struct situation s;
};

FIXTURE_VARIANT(migrate)
{
	int (*build)(struct situation *s);
	bool huge;
	int shift;
};

#define MIGRATE_VARIANT(_build)						\
FIXTURE_VARIANT_ADD(migrate, _build)					\
{									\
	.build = _build, .shift = 3,					\
}

#define MIGRATE_VARIANT_HUGE(_build, _shift)				\
FIXTURE_VARIANT_ADD(migrate, _build##_huge_##_shift)			\
{									\
	.build = _build, .huge = true, .shift = _shift,			\
}

MIGRATE_VARIANT(within);
MIGRATE_VARIANT(to_lower_address);
MIGRATE_VARIANT(put);
MIGRATE_VARIANT(put_same_address);
MIGRATE_VARIANT(get);
MIGRATE_VARIANT(get_after_exit);
MIGRATE_VARIANT(between);
MIGRATE_VARIANT(there_and_back);
MIGRATE_VARIANT(ring);
MIGRATE_VARIANT(copy_of_copy);
MIGRATE_VARIANT(middle_gone);
MIGRATE_VARIANT(twice_source_gone);
MIGRATE_VARIANT(sub_range);
MIGRATE_VARIANT(fork_after);
MIGRATE_VARIANT(fork_before);
MIGRATE_VARIANT(mremapped);
MIGRATE_VARIANT(mremapped_before);
MIGRATE_VARIANT(page_by_page);
MIGRATE_VARIANT(page_by_page_backwards);
MIGRATE_VARIANT(split_and_merged);
MIGRATE_VARIANT(unfaulted_first);
MIGRATE_VARIANT(ping_pong);
MIGRATE_VARIANT_HUGE(within, 0);
MIGRATE_VARIANT_HUGE(within, 3);
MIGRATE_VARIANT_HUGE(put, 0);
MIGRATE_VARIANT_HUGE(put, 3);
MIGRATE_VARIANT_HUGE(get, 0);
MIGRATE_VARIANT_HUGE(get, 3);
MIGRATE_VARIANT_HUGE(there_and_back, 0);
MIGRATE_VARIANT_HUGE(there_and_back, 3);
MIGRATE_VARIANT_HUGE(twice_source_gone, 0);
MIGRATE_VARIANT_HUGE(twice_source_gone, 3);
MIGRATE_VARIANT_HUGE(fork_before, 3);
MIGRATE_VARIANT_HUGE(mremapped, 3);
MIGRATE_VARIANT_HUGE(split_and_merged, 3);

FIXTURE_SETUP(migrate)
{
	const char *reason = why_not() ?: no_nodes();
	struct situation *s = &self->s;
	int err;

	if (reason)
		SKIP(return, "%s", reason);
	s->ps = page_size();
	s->shift = variant->shift;
	s->huge = variant->huge;
	s->npages = 24;
	if (s->huge) {
		s->npages = thp_size() / s->ps;
		if (!s->npages || s->npages > MAX_PAGES)
			SKIP(return, "no transparent huge pages, or too big ones");
		reason = folios_enable(thp_size());
		if (reason)
			SKIP(return, "%s", reason);
	}
	s->len = s->npages * s->ps;
	peer_self(&s->me);
	ASSERT_EQ(0, peer_start(&s->a));
	ASSERT_EQ(0, peer_start(&s->b));
	ASSERT_EQ(0, peer_start(&s->c));
	err = variant->build(s);
	NEED_LARGE(s->why);
	ASSERT_EQ(0, err)
		TH_LOG("%s", strerror(errno));
}

FIXTURE_TEARDOWN(migrate)
{
	peer_kill(&self->s.a);
	peer_kill(&self->s.b);
	peer_kill(&self->s.c);
}

static unsigned long share_pfn(struct situation *s, int k, size_t page)
{
	return proc_pfn(s->share[k].p->pid, s->share[k].addr + page * s->ps);
}

static void check_shares(struct __test_metadata *_metadata, struct situation *s)
{
	int k;

	for (k = 0; k < s->nr; k++)
		EXPECT_EQ(-1, peer_check(s->share[k].p, s->share[k].addr, s->npages, 0, 1, 1))
			TH_LOG("place %d", k);
}

/* Migrate page by page, by each place in turn, and find it in all of them. */
TEST_F(migrate, all_places)
{
	struct situation *s = &self->s;
	size_t i, step = s->huge ? s->npages / 5 : 1;
	unsigned long old, new;
	int k;

	check_shares(_metadata, s);
	for (i = 0; i < s->npages; i += step) {
		struct share *by = &s->share[i / step % s->nr];

		old = share_pfn(s, 0, i);
		ASSERT_NE(0, old);
		/* That there is something to be seen at all */
		for (k = 1; k < s->nr; k++) {
			ASSERT_EQ(old, share_pfn(s, k, i))
				TH_LOG("page %zu is not shared by place %d", i, k);
		}
		if (!s->huge) {
			EXPECT_EQ(s->nr, kpagecount(old));
		}
		ASSERT_EQ(0, page_move(by->p, by->addr + i * s->ps))
			TH_LOG("page %zu does not move by place %td", i, by - s->share);
		new = share_pfn(s, by - s->share, i);
		EXPECT_NE(old, new);
		for (k = 0; k < s->nr; k++) {
			EXPECT_EQ(new, share_pfn(s, k, i))
				TH_LOG("page %zu was not found in place %d", i, k);
			EXPECT_EQ(page_node(by->p, by->addr + i * s->ps),
				  page_node(s->share[k].p, s->share[k].addr + i * s->ps));
		}
		if (!s->huge) {
			EXPECT_EQ(s->nr, kpagecount(new));
		}
	}
	check_shares(_metadata, s);

	/* And back, once they have been written in one place */
	ASSERT_EQ(0, peer_stamp(s->share[0].p, s->share[0].addr, s->npages, 0, 1, 2));
	for (k = 1; k < s->nr; k++)
		EXPECT_EQ(-1, peer_check(s->share[k].p, s->share[k].addr, s->npages, 0, 1, 1));
	for (i = 0; i < s->npages; i += step) {
		EXPECT_EQ(0, page_move(s->share[0].p, s->share[0].addr + i * s->ps));
		EXPECT_EQ(0, page_move(s->share[1].p, s->share[1].addr + i * s->ps));
		for (k = 2; k < s->nr; k++)
			EXPECT_EQ(share_pfn(s, 1, i), share_pfn(s, k, i))
				TH_LOG("page %zu was not found in place %d", i, k);
	}
	EXPECT_EQ(-1, peer_check(s->share[0].p, s->share[0].addr, s->npages, 0, 1, 2));
	for (k = 1; k < s->nr; k++)
		EXPECT_EQ(-1, peer_check(s->share[k].p, s->share[k].addr, s->npages, 0, 1, 1));
}

/* Each place is written, and no other sees it. */
TEST_F(migrate, then_written)
{
	struct situation *s = &self->s;
	int j, k;

	for (k = 0; k < s->nr; k++)
		ASSERT_EQ(0, page_move(s->share[k].p, s->share[k].addr));
	for (k = 0; k < s->nr; k++) {
		ASSERT_EQ(0, peer_stamp(s->share[k].p, s->share[k].addr, s->npages,
					0, 1, 10 + k));
		for (j = 0; j < s->nr; j++)
			EXPECT_EQ(-1, peer_check(s->share[j].p, s->share[j].addr, s->npages,
						 0, 1, j <= k ? 10 + j : 1));
	}
}

/* Pages that KSM has merged are found by way of something else. */

FIXTURE(ksm)
{
	struct situation s;
};

FIXTURE_VARIANT(ksm)
{
	bool merge_last;	/* the pages are merged when they have been copied */
	bool child;
};

FIXTURE_VARIANT_ADD(ksm, within) {};
FIXTURE_VARIANT_ADD(ksm, put) { .child = true };
FIXTURE_VARIANT_ADD(ksm, within_merged_later) { .merge_last = true };
FIXTURE_VARIANT_ADD(ksm, put_merged_later) { .merge_last = true, .child = true };

/* Pages 2n and 2n+1 are the same. */
static int ksm_fill(struct situation *s, struct peer *p, unsigned long addr)
{
	size_t i;

	for (i = 0; i < s->npages; i++)
		if (peer_fill(p, addr + i * s->ps, s->ps, 1 + i / 2))
			return -1;
	return 0;
}

static bool ksm_check(struct situation *s, struct peer *p, unsigned long addr)
{
	size_t i;

	for (i = 0; i < s->npages; i++)
		if (peer_verify(p, addr + i * s->ps, s->ps, 1 + i / 2) != -1)
			return false;
	return true;
}

/* Zero it by stores. */
static long op_clear(void *arg)
{
	unsigned long *a = arg;

	memset((void *)a[0], 0, a[1]);
	return 0;
}

FIXTURE_SETUP(ksm)
{
	const char *reason = why_not();
	struct situation *s = &self->s;

	if (reason)
		SKIP(return, "%s", reason);
	if (ksm_missing())
		SKIP(return, "%s", ksm_missing());
	s->ps = page_size();
	s->npages = 16;
	s->len = s->npages * s->ps;
	s->shift = 3;
	peer_self(&s->me);
	ASSERT_EQ(0, peer_start(&s->a));
	add(s, &s->me, AT(0));
	add(s, variant->child ? &s->a : &s->me, AT(1));
	add(s, &s->me, AT(2));
	ASSERT_EQ(0, peer_map(&s->me, AT(0), s->len, RW));
	ASSERT_EQ(0, ksm_fill(s, &s->me, AT(0)));
	ASSERT_EQ(0, peer_madvise(&s->me, AT(0), s->len, MADV_MERGEABLE));
	if (!variant->merge_last)
		ASSERT_EQ(0, ksm_scan());
	ASSERT_EQ(0, copy(s, &s->me, AT(0), s->share[1].p, AT(1)));
	ASSERT_EQ(0, copy(s, s->share[1].p, AT(1), &s->me, AT(2)));
	if (variant->merge_last)
		ASSERT_EQ(0, ksm_scan());
}

FIXTURE_TEARDOWN(ksm)
{
	setting_write(KSM "run", "0");
	setting_restore(KSM "use_zero_pages");
	peer_kill(&self->s.a);
}

TEST_F(ksm, migrate)
{
	struct situation *s = &self->s;
	unsigned long pfn[3][16], new;
	size_t i, j, merged = 0;
	int k, n;

	if (no_nodes())
		SKIP(return, "%s", no_nodes());
	for (i = 0; i < s->npages; i++) {
		/* Whoever had this page must have the new one. */
		for (k = 0; k < s->nr; k++)
			for (j = 0; j < s->npages; j++)
				pfn[k][j] = share_pfn(s, k, j);
		ASSERT_NE(0, pfn[0][i]);
		merged += !!(kpageflags(pfn[0][i]) & KPF_KSM);
		n = i % s->nr;
		ASSERT_EQ(0, page_move(s->share[n].p, s->share[n].addr + i * s->ps))
			TH_LOG("page %zu does not move by place %d", i, n);
		new = share_pfn(s, n, i);
		EXPECT_NE(pfn[n][i], new);
		for (k = 0; k < s->nr; k++)
			for (j = 0; j < s->npages; j++) {
				if (pfn[k][j] != pfn[n][i])
					continue;
				EXPECT_EQ(new, share_pfn(s, k, j))
					TH_LOG("page %zu was not found in place %d", j, k);
			}
	}
	EXPECT_LT(0, merged);
	for (k = 0; k < s->nr; k++)
		EXPECT_TRUE(ksm_check(s, s->share[k].p, s->share[k].addr));
}

TEST_F(ksm, unmerge)
{
	struct situation *s = &self->s;
	size_t i, merged = 0;
	int k;

	for (i = 0; i < s->npages; i++)
		merged += !!(kpageflags(share_pfn(s, 0, i)) & KPF_KSM);
	ASSERT_LT(0, merged);
	for (k = 0; k < s->nr; k++) {
		ASSERT_EQ(0, peer_madvise(s->share[k].p, s->share[k].addr, s->len,
					  MADV_UNMERGEABLE));
		for (i = 0; i < s->npages; i++)
			EXPECT_EQ(0, kpageflags(share_pfn(s, k, i)) & KPF_KSM);
	}
	for (k = 0; k < s->nr; k++)
		EXPECT_TRUE(ksm_check(s, s->share[k].p, s->share[k].addr));
	ASSERT_EQ(0, peer_fill(s->share[0].p, s->share[0].addr, s->len, 99));
	EXPECT_TRUE(ksm_check(s, s->share[1].p, s->share[1].addr));
	EXPECT_TRUE(ksm_check(s, s->share[2].p, s->share[2].addr));
}

/*
 * Everything is unmerged, process by process, and pages of one whose turn is still to
 * come are copied to one that has had it.
 */
FIXTURE(ksm_all)
{
	struct peer first, between, last;
	size_t ps, len, many;
};

FIXTURE_VARIANT(ksm_all)
{
	bool older;		/* over an older copy, which has been unmerged */
};

FIXTURE_VARIANT_ADD(ksm_all, fresh) {};
FIXTURE_VARIANT_ADD(ksm_all, older) { .older = true };

FIXTURE_SETUP(ksm_all)
{
	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	if (ksm_missing())
		SKIP(return, "%s", ksm_missing());
	self->ps = page_size();
	self->len = 16 * self->ps;
	self->many = 4096 * self->ps;
	ASSERT_EQ(0, peer_start(&self->first));
	ASSERT_EQ(0, peer_start(&self->between));
	ASSERT_EQ(0, peer_start(&self->last));
}

FIXTURE_TEARDOWN(ksm_all)
{
	setting_write(KSM "run", "0");
	peer_kill(&self->first);
	peer_kill(&self->between);
	peer_kill(&self->last);
}

static long ksm_merging(pid_t pid)
{
	char path[64], line[128];
	long n = -1;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/ksm_stat", pid);
	f = fopen(path, "r");
	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "ksm_merging_pages %ld", &n) == 1)
			break;
	if (f)
		fclose(f);
	return n;
}

/* Pages that are all the same */
static long op_same(void *arg)
{
	unsigned long *a = arg;

	memset((void *)a[0], 0x5a, a[1]);
	return 0;
}

static int map_same(struct peer *p, unsigned long addr, size_t len)
{
	unsigned long arg[2] = { addr, len };

	return peer_map(p, addr, len, RW) || peer_call(p, op_same, arg, sizeof(arg)) ||
	       peer_madvise(p, addr, len, MADV_MERGEABLE);
}

static size_t ksm_pages(struct peer *p, unsigned long addr, size_t len)
{
	size_t n = 0, at;

	for (at = 0; at < len; at += page_size())
		n += !!(kpageflags(proc_pfn(p->pid, addr + at)) & KPF_KSM);
	return n;
}

TEST_F_TIMEOUT(ksm_all, unmerged, 600)
{
	unsigned long from = ARENA, there = ARENA, to = ARENA + 3 * self->len;
	pid_t unmerger;
	bool hit = false;
	int round, status;

	/* They have their turns in the order in which they come to KSM. */
	ASSERT_EQ(0, setting_write(KSM "run", "0"));
	ASSERT_EQ(0, map_same(&self->first, there, self->len));
	ASSERT_EQ(0, map_same(&self->between, ARENA, self->many));
	ASSERT_EQ(0, map_same(&self->last, from, self->len));
	for (round = 0; round < 20 && !hit; round++) {
		ASSERT_EQ(0, ksm_scan());
		if (variant->older) {
			ASSERT_EQ(0, peer_dput(&self->last, from, &self->first, to,
					       self->len, 0));
		}
		ASSERT_LT(0, ksm_merging(self->first.pid));
		ASSERT_LT(0, ksm_merging(self->last.pid));
		unmerger = fork();
		ASSERT_LE(0, unmerger);
		if (!unmerger)
			_exit(!!setting_write(KSM "run", "2"));
		while (ksm_merging(self->first.pid) > 0)
			;
		ASSERT_EQ(0, peer_dput(&self->last, from, &self->first, to, self->len, 0));
		hit = ksm_merging(self->last.pid) > 0;
		ASSERT_EQ(unmerger, waitpid(unmerger, &status, 0));
		ASSERT_EQ(0, status);
		EXPECT_EQ(0, ksm_pages(&self->last, from, self->len));
		EXPECT_EQ(0, ksm_pages(&self->first, there, self->len));
		EXPECT_EQ(0, ksm_pages(&self->first, to, self->len));
	}
	EXPECT_TRUE(hit);
}

/*
 * One page at very many places of a process. What looks for all of them may take
 * time with their number, but not with its square: then it takes much longer than
 * it took to make them.
 */
FIXTURE(ksm_many)
{
	struct peer p;
};

FIXTURE_SETUP(ksm_many)
{
	const char *reason = why_not();

	if (reason || ksm_missing())
		SKIP(return, "%s", reason ?: ksm_missing());
	ASSERT_EQ(0, peer_start(&self->p));
}

FIXTURE_TEARDOWN(ksm_many)
{
	setting_write(KSM "run", "0");
	peer_kill(&self->p);
}

TEST_F_TIMEOUT(ksm_many, migrate, 900)
{
	const size_t ps = page_size(), places = 8000;
	const unsigned long to = ARENA + 16 * ps;
	struct peer *p = &self->p;
	long copied, moved;
	uint64_t pfn;
	size_t i;

	if (no_nodes())
		SKIP(return, "%s", no_nodes());
	ASSERT_EQ(0, map_same(p, ARENA, 2 * ps));
	ASSERT_EQ(0, ksm_scan());
	ASSERT_EQ(2, ksm_pages(p, ARENA, 2 * ps));
	/* None of them next to another one. */
	copied = now_ms();
	for (i = 0; i < places; i++) {
		ASSERT_EQ(0, peer_dput(p, ARENA, p, to + 2 * i * ps, ps, 0));
		if (now_ms() - copied > 60000)
			SKIP(return, "each new mapping is checked against all others here");
	}
	copied = now_ms() - copied;
	ASSERT_EQ(0, ksm_scan());
	/* It knows each of them. */
	ASSERT_LE((long)places, ksm_merging(p->pid));

	pfn = proc_pfn(p->pid, ARENA);
	moved = now_ms();
	ASSERT_EQ(0, page_move(p, to + places * ps));
	moved = now_ms() - moved;
	EXPECT_GT(2000 + 5 * copied, moved)
		TH_LOG("%ld ms to copy, %ld ms to move", copied, moved);
	ASSERT_NE(pfn, proc_pfn(p->pid, ARENA));
	pfn = proc_pfn(p->pid, ARENA);
	for (i = 0; i < places; i++)
		ASSERT_EQ(pfn, proc_pfn(p->pid, to + 2 * i * ps)) TH_LOG("place %zu", i);
	ASSERT_EQ(pfn, proc_pfn(p->pid, ARENA + ps));
}

/* A copy of a mergeable range is merged too, in a process new to KSM. */
TEST_F(ksm, copy_is_scanned)
{
	struct situation *s = &self->s;
	size_t i, merged = 0;

	/* Make them differ from everything, then the same again. */
	ASSERT_EQ(0, peer_fill(s->share[1].p, AT(1), s->len, 77));
	for (i = 0; i < s->npages; i++)
		ASSERT_EQ(0, peer_fill(s->share[1].p, AT(1) + i * s->ps, s->ps, 200 + i / 2));
	ASSERT_EQ(0, ksm_scan());
	for (i = 0; i < s->npages; i++)
		merged += !!(kpageflags(share_pfn(s, 1, i)) & KPF_KSM);
	EXPECT_EQ(s->npages, merged);
}

/* In the process, or in all of them; LONG_MIN if that is not known */
static long zero_pages_of(pid_t pid)
{
	char path[64] = KSM "ksm_zero_pages", line[128];
	long n = LONG_MIN;
	FILE *f;

	if (pid)
		snprintf(path, sizeof(path), "/proc/%d/ksm_stat", pid);
	f = fopen(path, "r");
	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, pid ? "ksm_zero_pages %ld" : "%ld", &n) == 1)
			break;
	if (f)
		fclose(f);
	return n;
}

/* Empty pages that KSM has replaced by the zero page count on each side. */
TEST_F(ksm, zero_pages)
{
	struct situation *s = &self->s;
	struct peer *src = &s->me, *dst = s->share[1].p;
	unsigned long saddr = AT(3), daddr = AT(4), arg[] = { saddr, s->len };
	long n = s->npages, from, half = n / 2;
	bool both = src == dst;

	if (zero_pages_of(src->pid) == LONG_MIN || zero_pages_of(0) == LONG_MIN)
		SKIP(return, "KSM does not count zero pages");
	ASSERT_EQ(0, setting_write(KSM "use_zero_pages", "1"));
	from = zero_pages_of(0);
	ASSERT_EQ(0, peer_map(src, saddr, s->len, RW));
	/* Written to, and empty */
	ASSERT_EQ(0, peer_fill(src, saddr, s->len, 1));
	ASSERT_EQ(0, peer_call(src, op_clear, arg, sizeof(arg)));
	ASSERT_EQ(0, peer_madvise(src, saddr, s->len, MADV_MERGEABLE));
	ASSERT_EQ(0, ksm_scan());
	ASSERT_EQ(from + n, zero_pages_of(0));
	EXPECT_EQ(n, zero_pages_of(src->pid));

	ASSERT_EQ(0, peer_dput(src, saddr, dst, daddr, s->len, 0));
	EXPECT_EQ(from + 2 * n, zero_pages_of(0));
	EXPECT_EQ(both ? 2 * n : n, zero_pages_of(dst->pid));
	/* Over itself, and over something else */
	ASSERT_EQ(0, peer_dput(src, saddr, dst, daddr, s->len, 0));
	EXPECT_EQ(from + 2 * n, zero_pages_of(0));
	ASSERT_EQ(0, peer_fill(dst, daddr, s->len / 2, 2));
	EXPECT_EQ(from + 2 * n - half, zero_pages_of(0));
	EXPECT_EQ((both ? 2 * n : n) - half, zero_pages_of(dst->pid));
	ASSERT_EQ(0, peer_dput(src, saddr, dst, daddr, s->len, 0));
	EXPECT_EQ(from + 2 * n, zero_pages_of(0));
	ASSERT_EQ(0, peer_munmap(src, saddr, s->len));
	EXPECT_EQ(from + n, zero_pages_of(0));
	EXPECT_EQ(n, zero_pages_of(dst->pid));
	ASSERT_EQ(0, peer_munmap(dst, daddr, s->len));
	EXPECT_EQ(from, zero_pages_of(0));
	EXPECT_EQ(0, zero_pages_of(src->pid));
	EXPECT_EQ(0, zero_pages_of(dst->pid));
}

/*
 * Whoever asked to be told at once of the failure of a merged page is told an
 * address that has it, not the one where KSM found it, if that has it no more.
 */
TEST_F(ksm, memory_failure)
{
	struct situation *s = &self->s;
	struct peer *peers[] = { &s->me, &s->a };
	struct mce m = {};
	unsigned long pfn;
	bool has[3][2], told[2];
	char buf[32];
	size_t i, j;
	int k;

	if (access(HWPOISON "corrupt-pfn", W_OK))
		SKIP(return, "no debugfs file to let memory fail by");
	if (!getenv("DPUT_DISPOSABLE"))
		SKIP(return, "the page may be lost: DPUT_DISPOSABLE is not set");
	pfn = share_pfn(s, 1, 0);
	ASSERT_NE(0, kpageflags(pfn) & KPF_KSM);
	/* Pages 0 and 1 are alike. */
	ASSERT_EQ(0, peer_fill(s->share[0].p, s->share[0].addr, 2 * s->ps, 77));
	for (k = 0; k < s->nr; k++)
		for (j = 0; j < 2; j++)
			has[k][j] = share_pfn(s, k, j) == pfn;
	EXPECT_FALSE(has[0][0] || has[0][1]);
	for (i = 0; i < ARRAY_SIZE(peers); i++)
		ASSERT_EQ(0, peer_mce_early(peers[i], true));
	snprintf(buf, sizeof(buf), "0x%lx", pfn);
	ASSERT_EQ(0, setting_write(HWPOISON "corrupt-pfn", buf));

	for (i = 0; i < ARRAY_SIZE(peers); i++) {
		bool mapped = false, right = false;

		ASSERT_EQ(0, peer_mce_seen(peers[i], &m));
		told[i] = m.count;
		for (k = 0; k < s->nr; k++)
			for (j = 0; j < 2; j++) {
				if (s->share[k].p != peers[i] || !has[k][j])
					continue;
				mapped = true;
				right |= (m.addr & -s->ps) == s->share[k].addr + j * s->ps;
			}
		EXPECT_EQ(mapped, told[i]);
		EXPECT_TRUE(!told[i] || (m.code == BUS_MCEERR_AO && right))
			TH_LOG("process %zu: code %d, address %lx", i, m.code, m.addr);
	}
	EXPECT_TRUE(told[0] || told[1]);
	/* Reading it kills, by the right address; the others have lost nothing. */
	for (k = 0; k < s->nr; k++) {
		for (j = 0; j < 2; j++) {
			m.addr = s->share[k].addr + j * s->ps;
			ASSERT_EQ(0, peer_mce_probe(s->share[k].p, &m));
			EXPECT_EQ(has[k][j], m.count);
			EXPECT_TRUE(!has[k][j] || (m.code == BUS_MCEERR_AR &&
				    (m.addr & -s->ps) == s->share[k].addr + j * s->ps))
				TH_LOG("place %d: code %d, address %lx", k, m.code, m.addr);
		}
		for (i = 2; i < s->npages; i++)
			EXPECT_EQ(-1, peer_verify(s->share[k].p, s->share[k].addr + i * s->ps,
						  s->ps, 1 + i / 2));
	}

	/* Nobody has it any more: it is made sound, for what runs next. */
	for (k = 0; k < s->nr; k++)
		ASSERT_EQ(0, peer_munmap(s->share[k].p, s->share[k].addr, s->len));
	for (i = 0; kpageflags(pfn) & KPF_HWPOISON; i++) {
		ASSERT_GT(6000, i);
		if (setting_write(HWPOISON "unpoison-pfn", buf))
			usleep(10000);
	}
}

TEST_HARNESS_MAIN
