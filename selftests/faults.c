// SPDX-License-Identifier: GPL-2.0
/*
 * dput(2) when memory runs out: each allocation in the call fails in turn, until
 * none is left to fail. Needs fault injection in the kernel, and root.
 */

#include "kselftest_harness.h"
#include <fcntl.h>
#include <sys/syscall.h>
#include "dput_util.h"

#define SRC	(ARENA + (1UL << 22))
#define DST	(ARENA + (1UL << 30))
#define DEBUG	"/sys/kernel/debug/"

static const char * const settings[][2] = {
	{ DEBUG "failslab/ignore-gfp-wait", "N" },
	{ DEBUG "failslab/verbose", "0" },
	{ DEBUG "fail_page_alloc/ignore-gfp-wait", "N" },
	{ DEBUG "fail_page_alloc/ignore-gfp-highmem", "N" },
	{ DEBUG "fail_page_alloc/min-order", "0" },
	{ DEBUG "fail_page_alloc/verbose", "0" },
	{ DEBUG "fail_usercopy/verbose", "0" },
};

static void __attribute__((constructor)) settings_save(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(settings); i++)
		setting_save(settings[i][0]);
}

/* Open all the time: opening it could be what fails. */
static int fail_fd;

/*
 * Let the @nth allocation or user copy of this thread fail from now on; 0 is
 * none. That of this very call can be the one that was armed before.
 */
static int fail_nth(int nth)
{
	char buf[16];
	int i, len = snprintf(buf, sizeof(buf), "%d", nth);

	for (i = 0; i < 2; i++)
		if (pwrite(fail_fd, buf, len, 0) == len)
			return 0;
	return -1;
}

/* Has the call done without a failure? */
static bool fail_pending(void)
{
	char buf[16] = "";

	/* If the failure hits this call, it did not hit the one before. */
	return pread(fail_fd, buf, sizeof(buf) - 1, 0) < 0 || atoi(buf);
}

FIXTURE(faults)
{
	struct peer me, child;
	struct peer *src, *dst;
	unsigned long ps;
	size_t len;		/* of the source's memory */
	unsigned long shift;	/* of the destination against it */
	int points;		/* allocations that have failed */
};

FIXTURE_VARIANT(faults)
{
	bool huge;		/* the source is a huge page */
	int shift;		/* in pages */
	bool get, within;
	bool over;		/* the destination has something mapped */
	bool again;		/* that is an older copy (implies over) */
	int ragged;		/* bytes left out at either end */
	bool many;		/* a mapping for each page */
	bool pinned;		/* all pages are pinned, and have to be copied, */
	int pinned_from;	/* or all from this one on */
	bool two;		/* mappings, half and half */
	int first, nr;		/* only these pages; default: all */
};

FIXTURE_VARIANT_ADD(faults, put) { .shift = 0 };
FIXTURE_VARIANT_ADD(faults, put_over) { .over = true };
FIXTURE_VARIANT_ADD(faults, put_ragged) { .ragged = 5 };
FIXTURE_VARIANT_ADD(faults, put_ragged_over) { .ragged = 5, .over = true };
FIXTURE_VARIANT_ADD(faults, put_many) { .many = true, .over = true };
FIXTURE_VARIANT_ADD(faults, put_huge) { .huge = true };
FIXTURE_VARIANT_ADD(faults, put_huge_shifted) { .huge = true, .shift = 3 };
FIXTURE_VARIANT_ADD(faults, put_pinned) { .pinned = true, .over = true };
FIXTURE_VARIANT_ADD(faults, put_again) { .again = true, .over = true };
FIXTURE_VARIANT_ADD(faults, put_again_ragged) { .again = true, .over = true, .ragged = 5 };
FIXTURE_VARIANT_ADD(faults, put_again_pinned) { .again = true, .over = true, .pinned = true };
FIXTURE_VARIANT_ADD(faults, put_again_huge) { .again = true, .over = true, .huge = true };
/* Of one of the two mappings, no more than a page */
FIXTURE_VARIANT_ADD(faults, put_again_from_the_last)
{
	.again = true, .over = true, .pinned = true, .pinned_from = 4,
	.two = true, .first = 3, .nr = 5,
};

FIXTURE_VARIANT_ADD(faults, put_again_to_the_first)
{
	.again = true, .over = true, .pinned = true, .two = true, .nr = 5,
};

FIXTURE_VARIANT_ADD(faults, put_again_to_the_first_pinned)
{
	.again = true, .over = true, .pinned = true, .pinned_from = 4,
	.two = true, .nr = 5,
};

FIXTURE_VARIANT_ADD(faults, put_again_one_page)
{
	.again = true, .over = true, .pinned = true, .first = 3, .nr = 1,
};

FIXTURE_VARIANT_ADD(faults, get_again) { .again = true, .over = true, .get = true };
FIXTURE_VARIANT_ADD(faults, get_over) { .get = true, .over = true };
FIXTURE_VARIANT_ADD(faults, get_many) { .get = true, .many = true };
FIXTURE_VARIANT_ADD(faults, within) { .within = true, .shift = 1 };
FIXTURE_VARIANT_ADD(faults, within_over) { .within = true, .over = true, .ragged = 5 };
FIXTURE_VARIANT_ADD(faults, within_again) { .within = true, .again = true, .over = true };
FIXTURE_VARIANT_ADD(faults, within_again_pinned)
{
	.within = true, .again = true, .over = true, .pinned = true,
};

FIXTURE_VARIANT_ADD(faults, within_huge) { .within = true, .huge = true };
FIXTURE_VARIANT_ADD(faults, within_pinned) { .within = true, .pinned = true };

FIXTURE_SETUP(faults)
{
	unsigned long i;

	if (!dput_supported())
		SKIP(return, "no dput()");
	for (i = 0; i < ARRAY_SIZE(settings); i++)
		if (setting_write(settings[i][0], settings[i][1]))
			SKIP(return, "no fault injection, or not root: %s",
			     settings[i][0]);
	fail_fd = open("/proc/thread-self/fail-nth", O_RDWR);
	if (fail_fd < 0)
		SKIP(return, "no /proc/thread-self/fail-nth");
	self->ps = page_size();
	self->len = variant->huge ? thp_size() : 8 * self->ps;
	if (!self->len)
		SKIP(return, "no transparent huge pages");
	self->shift = variant->shift * self->ps;
	peer_self(&self->me);
	ASSERT_EQ(0, peer_start(&self->child));
	self->src = variant->get ? &self->child : &self->me;
	self->dst = variant->get || variant->within ? &self->me : &self->child;

	ASSERT_EQ(0, peer_map(self->src, SRC, self->len, RW));
	if (variant->huge)
		ASSERT_EQ(0, peer_madvise(self->src, SRC, self->len, MADV_HUGEPAGE));
	ASSERT_EQ(0, peer_fill(self->src, SRC, self->len, 1));
	for (i = 1; variant->many && i < 8; i += 2)
		ASSERT_EQ(0, peer_mprotect(self->src, SRC + i * self->ps, self->ps,
					   PROT_READ));
	if (variant->two)
		ASSERT_EQ(0, peer_madvise(self->src, SRC + self->len / 2, self->len / 2,
					  MADV_DONTDUMP));
	if (variant->pinned && pin_memory(SRC + variant->pinned_from * self->ps,
					  self->len - variant->pinned_from * self->ps) < 0)
		SKIP(return, "io_uring: %s", strerror(errno));
}

FIXTURE_TEARDOWN(faults)
{
	peer_stop(&self->child);
	munmap((void *)ARENA, ARENA_SIZE);
	close(fail_fd);
}

/* As peer_verify(), for a part of what was filled. */
static ssize_t verify_part(struct peer *p, unsigned long base, size_t off, size_t len,
			   unsigned int seed)
{
	char *want = malloc(2 * len + 1), *got = want + len;
	ssize_t bad = -1;

	pattern(want, len, off, seed);
	if (len && (peer_read(p, base + off, got, len) || memcmp(want, got, len)))
		bad = off;
	free(want);
	return bad;
}

TEST_F_TIMEOUT(faults, each_allocation, 300)
{
	unsigned long dst = DST + self->shift, ragged = variant->ragged;
	unsigned long from = variant->first * self->ps;
	size_t n = variant->nr ? variant->nr * self->ps : self->len, rest;
	unsigned long start = dst + from, end = start + n;
	int nth, ret, err, mapped;
	bool pending;

	rest = self->len - from - n;
	if (ragged) {
		start += self->ps;
		end -= self->ps;
	}
	for (nth = 1;; nth++) {
		peer_munmap(self->dst, dst, self->len);
		if (variant->over && !variant->again)
			ASSERT_EQ(0, peer_map(self->dst, dst, self->len, RW));
		if (variant->again)
			ASSERT_EQ(0, peer_dput(self->src, SRC, self->dst, dst,
					       self->len, 0));
		if (variant->over)
			ASSERT_EQ(0, peer_fill(self->dst, dst, self->len, 2));

		ASSERT_EQ(0, fail_nth(nth));
		ret = peer_dput(self->src, SRC + from + ragged, self->dst,
				dst + from + ragged, n - 2 * ragged, 0);
		err = errno;
		pending = fail_pending();
		ASSERT_EQ(0, fail_nth(0));

		ASSERT_EQ(-1, peer_verify(self->src, SRC, self->len, 1));
		/* What is not in the range is as it was. */
		ASSERT_EQ(-1, verify_part(self->dst, dst, 0, from, 2));
		ASSERT_EQ(-1, verify_part(self->dst, dst, from + n, rest, 2));
		if (!ret) {
			ASSERT_EQ(-1, verify_part(self->dst, dst, from + ragged,
						  n - 2 * ragged, 1));
			if (pending)
				break;
			continue;	/* it did without that allocation */
		}
		self->points++;
		ASSERT_EQ(ENOMEM, err) TH_LOG("%s at allocation %d", strerror(err), nth);

		/* The whole pages: all as they were, or all unmapped. */
		mapped = proc_mapped(self->dst->pid, start, end - start);
		ASSERT_LE(0, mapped) TH_LOG("allocation %d: mapped in part", nth);
		if (!variant->over)
			ASSERT_EQ(0, mapped);
		if (mapped) {
			ASSERT_EQ(-1, verify_part(self->dst, dst, from, n, 2));
		} else if (variant->over && ragged) {
			char want[8], got[8];

			pattern(want, 8, 0, 2);
			ASSERT_EQ(0, peer_read(self->dst, dst, got, 8));
			ASSERT_EQ(0, memcmp(want, got, 8));
		} else if (ragged) {
			/* Nor is anything left of what was mapped for the ends. */
			ASSERT_EQ(0, proc_mapped(self->dst->pid, dst, self->len));
		}
	}
	TH_LOG("%d allocations failed in turn", self->points);
	/* Small pages take next to no memory to bring up to date, and none to fail. */
	if (!variant->again || variant->huge || variant->pinned)
		EXPECT_LT(variant->again ? 0 : 3, self->points);
}

TEST_HARNESS_MAIN
