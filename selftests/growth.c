// SPDX-License-Identifier: GPL-2.0
/* What must not grow: anon_vmas, their chains, and mappings. */

#include "kselftest_harness.h"
#include "dput_util.h"

#define AT(_n)		(ARENA + (_n) * ((1UL << 26) + 3 * page_size()))

/*
 * DPUT_ITERATIONS in the environment makes the tests longer or shorter. What
 * would show in 100,000 rounds shows in 1,000: a bound is a part of their number.
 */
static long iterations(long def)
{
	char *s = getenv("DPUT_ITERATIONS");
	long n = s ? atol(s) : 0;

	return n > 0 ? n : def;
}

/* The kernel counts everybody's objects: those of others are to be few beside these. */
#define ALONE		getenv("DPUT_DISPOSABLE")
#define ROUNDS		(ALONE ? 1000 : 10000)
#define MANY_PAGES	10000L

static long pages(long def)
{
	/* There are 64 MiB for them. */
	long n = iterations(def), max = MANY_PAGES * 4096 / page_size();

	return n < max ? n : max;
}

/* Enough for 100,000 on a slow machine */
#define SECONDS		3600

FIXTURE(growth)
{
	struct peer me, a, b;
	unsigned long ps;
	size_t npages, len;
	long n;
	long before[NR_SLABS];
};

FIXTURE_VARIANT(growth)
{
	bool write;		/* to a page of the copy, each time */
};

FIXTURE_VARIANT_ADD(growth, unwritten) {};
FIXTURE_VARIANT_ADD(growth, written) { .write = true };

FIXTURE_SETUP(growth)
{
	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	if (slabs_read(self->before))
		SKIP(return, "no numbers of slab objects: needs root and SLUB_DEBUG");
	self->ps = page_size();
	self->npages = 16;
	self->len = self->npages * self->ps;
	self->n = iterations(ROUNDS);
	peer_self(&self->me);
	ASSERT_EQ(0, peer_start(&self->a));
	ASSERT_EQ(0, peer_start(&self->b));
	ASSERT_EQ(0, peer_map(&self->me, AT(0), self->len, RW));
	ASSERT_EQ(0, peer_stamp(&self->me, AT(0), self->npages, 0, 1, 1));
}

FIXTURE_TEARDOWN(growth)
{
	peer_kill(&self->a);
	peer_kill(&self->b);
}

/* One object lost in every fourth round would be seen; where others run, one in each. */
#define LIMIT	(ALONE ? self->n / 4 : 1000 + self->n * 3 / 4)

struct hop {
	struct peer *p;
	unsigned long addr;
};

/* How many of three processes have now another number of mappings? */
static int count_vmas(FIXTURE_DATA(growth) *self, int *vmas)
{
	struct peer *p[] = { &self->me, &self->a, &self->b };
	int i, now, changed = 0;

	for (i = 0; i < 3; i++) {
		now = proc_count_vmas(p[i]->pid, 0, -1);
		changed += now != vmas[i];
		vmas[i] = now;
	}
	return changed;
}

/* Hand a region round from place to place. */
static void go_round(struct __test_metadata *_metadata, FIXTURE_DATA(growth) * self,
		     bool write, struct hop *hops, int nr)
{
	int k, vmas[3] = {};
	size_t page;
	long i;

	for (i = -50; i < self->n; i++) {
		/* Some rounds to warm up */
		if (!i) {
			slabs_read(self->before);
			count_vmas(self, vmas);
		}
		for (k = 0; k < nr; k++) {
			struct hop *from = &hops[k], *to = &hops[(k + 1) % nr];

			ASSERT_EQ(0, peer_dput(from->p, from->addr, to->p, to->addr,
					       self->len, 0))
				TH_LOG("round %ld, %d: %s", i, k, strerror(errno));
			page = (i + 50) % self->npages;
			if (write)
				ASSERT_EQ(0, peer_stamp(to->p, to->addr, page + 1, page, 1, 1));
		}
	}
	for (k = 0; k < nr; k++) {
		EXPECT_EQ(-1, peer_check(hops[k].p, hops[k].addr, self->npages, 0, 1, 1));
		EXPECT_EQ(1, proc_count_vmas(hops[k].p->pid, hops[k].addr,
					     hops[k].addr + self->len));
	}
	EXPECT_EQ(0, count_vmas(self, vmas));
	EXPECT_TRUE(slabs_within(self->before, LIMIT));
}

TEST_F_TIMEOUT(growth, ping_pong, SECONDS)
{
	struct hop hops[] = { { &self->me, AT(0) }, { &self->a, AT(1) } };

	go_round(_metadata, self, variant->write, hops, 2);
}

TEST_F_TIMEOUT(growth, ring, SECONDS)
{
	struct hop hops[] = {
		{ &self->me, AT(0) }, { &self->a, AT(1) }, { &self->b, AT(2) },
	};

	go_round(_metadata, self, variant->write, hops, 3);
}

TEST_F_TIMEOUT(growth, within, SECONDS)
{
	struct hop hops[] = { { &self->me, AT(0) }, { &self->me, AT(1) } };

	go_round(_metadata, self, variant->write, hops, 2);
}

TEST_F_TIMEOUT(growth, through_another, SECONDS)
{
	struct hop hops[] = {
		{ &self->me, AT(0) }, { &self->a, AT(1) }, { &self->me, AT(2) },
		{ &self->b, AT(3) },
	};

	go_round(_metadata, self, variant->write, hops, 4);
}

/* The same source again and again, as a process that restores a snapshot does */
TEST_F_TIMEOUT(growth, restore, SECONDS)
{
	long i;

	for (i = -50; i < self->n; i++) {
		if (!i)
			slabs_read(self->before);
		ASSERT_EQ(0, peer_dput(&self->me, AT(0), &self->a, AT(1), self->len, 0));
		if (variant->write)
			ASSERT_EQ(0, peer_stamp(&self->a, AT(1), self->npages, 0, 4, 2));
	}
	EXPECT_EQ(-1, peer_check(&self->me, AT(0), self->npages, 0, 1, 1));
	EXPECT_TRUE(slabs_within(self->before, LIMIT));
	/* What the copy has, before and after it is put again */
	if (variant->write) {
		EXPECT_EQ(-1, peer_check(&self->a, AT(1), self->npages, 0, 4, 2));
		EXPECT_EQ(-1, peer_check(&self->a, AT(1), self->npages, 1, 4, 1));
		ASSERT_EQ(0, peer_dput(&self->me, AT(0), &self->a, AT(1), self->len, 0));
	}
	EXPECT_EQ(-1, peer_check(&self->a, AT(1), self->npages, 0, 1, 1));
}

/* Page 0 to page 1, that to page 2, and so on: each is a copy of a copy. */
TEST_F_TIMEOUT(growth, page_after_page, SECONDS)
{
	unsigned long addr = AT(4);
	uint64_t want, got;
	long i;

	self->n = pages(ROUNDS);
	ASSERT_EQ(0, peer_map(&self->me, addr, (self->n + 1) * self->ps, RW));
	ASSERT_EQ(0, peer_stamp(&self->me, addr, 1, 0, 1, 1));
	ASSERT_EQ(0, peer_read(&self->me, addr, &want, 8));
	slabs_read(self->before);
	for (i = 0; i < self->n; i++) {
		ASSERT_EQ(0, sys_dput(PIDFD_SELF, addr + i * self->ps, PIDFD_SELF,
				      addr + (i + 1) * self->ps, self->ps, 0))
			TH_LOG("page %ld: %s", i, strerror(errno));
		if (variant->write)
			*(volatile uint64_t *)(addr + (i + 1) * self->ps + 64) = i;
	}
	for (i = 0; i <= self->n; i++) {
		ASSERT_EQ(0, peer_read(&self->me, addr + i * self->ps, &got, 8));
		ASSERT_EQ(want, got);
	}
	/* A few objects for each page, but not for each pair of pages */
	EXPECT_TRUE(slabs_within(self->before, 4 * self->n));
	ASSERT_EQ(0, munmap((void *)addr, (self->n + 1) * self->ps));
	EXPECT_TRUE(slabs_within(self->before, LIMIT));
}

/*
 * Copies of copies that go to and fro and are all kept: each has one link more
 * than the one before. There is an end to this, and it changes nothing.
 */
TEST_F_TIMEOUT(growth, all_kept, SECONDS)
{
	struct peer *p[] = { &self->me, &self->a };
	struct snapshot before[2];
	long i, max = 2000;

	ASSERT_EQ(0, peer_dput(&self->me, AT(0), &self->a, AT(5), self->len, 0));
	for (i = 0; i < max; i++) {
		unsigned long from = AT(5) + i * 2 * self->len, to = from + 2 * self->len;

		if (peer_dput(p[(i + 1) % 2], from, p[i % 2], to, self->len, 0))
			break;
		if (variant->write)
			ASSERT_EQ(0, peer_stamp(p[i % 2], to, 2, 1, 1, 1));
	}
	TH_LOG("%ld copies of copies", i);
	ASSERT_LT(i, max);
	EXPECT_EQ(ENOMEM, errno);
	EXPECT_LT(100, i);
	ASSERT_EQ(0, snapshot_take(&before[0], p[0]));
	ASSERT_EQ(0, snapshot_take(&before[1], p[1]));
	EXPECT_EQ(-1, peer_dput(p[(i + 1) % 2], AT(5) + i * 2 * self->len, p[i % 2],
				AT(1), self->len, 0));
	EXPECT_EQ(ENOMEM, errno);
	EXPECT_TRUE(snapshot_same(&before[0], p[0]));
	EXPECT_TRUE(snapshot_same(&before[1], p[1]));
	/* All of them are right, and what is not as deep can be copied. */
	EXPECT_EQ(-1, peer_check(p[(i + 1) % 2], AT(5) + i * 2 * self->len, self->npages,
				 0, 1, 1));
	EXPECT_EQ(0, peer_dput(&self->me, AT(0), &self->a, AT(1), self->len, 0));
	EXPECT_EQ(-1, peer_check(&self->a, AT(1), self->npages, 0, 1, 1));
}

/* Neighbours that are copied one by one are one mapping. */

FIXTURE(neighbours)
{
	struct peer me, a;
	struct peer *src, *dst;
	unsigned long ps;
	long n;
};

FIXTURE_VARIANT(neighbours)
{
	bool src_child, dst_child;
	bool untouched;		/* the source has no pages yet */
	long pages;		/* if not a few */
};

FIXTURE_VARIANT_ADD(neighbours, within) {};
FIXTURE_VARIANT_ADD(neighbours, put) { .dst_child = true, .pages = MANY_PAGES };
FIXTURE_VARIANT_ADD(neighbours, get) { .src_child = true };
FIXTURE_VARIANT_ADD(neighbours, within_untouched) { .untouched = true };
FIXTURE_VARIANT_ADD(neighbours, put_untouched) { .dst_child = true, .untouched = true };

FIXTURE_SETUP(neighbours)
{
	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	self->ps = page_size();
	self->n = pages(variant->pages ?: 500);
	peer_self(&self->me);
	ASSERT_EQ(0, peer_start(&self->a));
	self->src = variant->src_child ? &self->a : &self->me;
	self->dst = variant->dst_child ? &self->a : &self->me;
	ASSERT_EQ(0, peer_map(self->src, AT(0), self->n * self->ps, RW));
	if (!variant->untouched)
		ASSERT_EQ(0, peer_stamp(self->src, AT(0), self->n, 0, 1, 1));
}

FIXTURE_TEARDOWN(neighbours)
{
	peer_kill(&self->a);
}

static void check_neighbours(struct __test_metadata *_metadata,
			     FIXTURE_DATA(neighbours) * self, bool untouched,
			     bool merged)
{
	size_t len = self->n * self->ps;

	/* As many as one call makes of it */
	ASSERT_EQ(0, peer_dput(self->src, AT(0), self->dst, AT(3), len, 0));
	EXPECT_EQ(1, proc_count_vmas(self->dst->pid, AT(3), AT(3) + len));
	if (merged) {
		EXPECT_EQ(1, proc_count_vmas(self->dst->pid, AT(1), AT(1) + len));
	}
	EXPECT_EQ(1, proc_count_vmas(self->src->pid, AT(0), AT(0) + len));
	if (untouched)
		return;
	EXPECT_EQ(-1, peer_check(self->dst, AT(1), self->n, 0, 1, 1));
	ASSERT_EQ(0, peer_stamp(self->dst, AT(1), self->n, 0, 3, 2));
	EXPECT_EQ(-1, peer_check(self->src, AT(0), self->n, 0, 1, 1));
	ASSERT_EQ(0, peer_stamp(self->src, AT(0), self->n, 0, 1, 3));
	EXPECT_EQ(-1, peer_check(self->dst, AT(1), self->n, 0, 3, 2));
	EXPECT_EQ(-1, peer_check(self->dst, AT(1), self->n, 1, 3, 1));
}

#define PAGE(_i)								\
	ASSERT_EQ(0, peer_dput(self->src, AT(0) + (_i) * self->ps, self->dst,	\
			       AT(1) + (_i) * self->ps, self->ps, 0))		\
		TH_LOG("page %ld: %s", (long)(_i), strerror(errno))

TEST_F_TIMEOUT(neighbours, in_order, SECONDS)
{
	long i;

	for (i = 0; i < self->n; i++)
		PAGE(i);
	check_neighbours(_metadata, self, variant->untouched, true);
}

TEST_F_TIMEOUT(neighbours, backwards, SECONDS)
{
	long i;

	for (i = self->n; i-- > 0;)
		PAGE(i);
	check_neighbours(_metadata, self, variant->untouched, true);
}

/*
 * The even ones first, and the odd ones into the holes between them. How many
 * of them can merge then is not promised.
 */
TEST_F_TIMEOUT(neighbours, interleaved, SECONDS)
{
	const long start = now_ms();
	long i;

	for (i = 0; i < self->n; i += 2) {
		PAGE(i);
		if (i < self->n - 2 && now_ms() - start > 120000) {
			self->n = i + 2;
			/* With DEBUG_VM_MAPLE_TREE each is compared with all others. */
			TH_LOG("no more than %ld pages: these took 120 s", self->n);
		}
	}
	for (i = 1; i < self->n; i += 2)
		PAGE(i);
	check_neighbours(_metadata, self, variant->untouched, false);
}

/* Over a mapping that is there already, whose rest gets ever smaller */
TEST_F_TIMEOUT(neighbours, over_old_mapping, SECONDS)
{
	long i;

	ASSERT_EQ(0, peer_map(self->dst, AT(1), self->n * self->ps, RW));
	ASSERT_EQ(0, peer_stamp(self->dst, AT(1), self->n, 0, 1, 9));
	for (i = 0; i < self->n; i++)
		PAGE(i);
	check_neighbours(_metadata, self, variant->untouched, true);
}

/* Mappings that become one when they are copied, and one with what comes after them */
TEST(parts_and_what_follows)
{
	size_t half = 4 * page_size(), len = 2 * half;
	struct peer me, a;

	if (!dput_supported())
		SKIP(return, "dput() is not supported");
	peer_self(&me);
	ASSERT_EQ(0, peer_start(&a));
	ASSERT_EQ(0, peer_map(&me, AT(0), len, RW));
	if (mlock2((void *)(AT(0) + half), half, MLOCK_ONFAULT)) {
		peer_stop(&a);
		SKIP(return, "mlock2(): %s", strerror(errno));
	}
	EXPECT_EQ(2, proc_count_vmas(me.pid, AT(0), AT(0) + len));
	ASSERT_EQ(0, peer_map(&a, AT(1) + len, len, RW));
	ASSERT_EQ(0, peer_dput(&me, AT(0), &a, AT(1), len, 0));
	EXPECT_EQ(1, proc_count_vmas(a.pid, AT(1), AT(1) + 2 * len));
	peer_stop(&a);
}

TEST_HARNESS_MAIN
