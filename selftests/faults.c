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
#define KSM_TWIN	(1UL << 26)
#define DEBUG	"/sys/kernel/debug/"

static const char * const settings[][2] = {
	{ DEBUG "failslab/ignore-gfp-wait", "N" },
	/* 2 is a stack trace of each failure. */
	{ DEBUG "failslab/verbose", "2" },
	{ DEBUG "fail_page_alloc/ignore-gfp-wait", "N" },
	{ DEBUG "fail_page_alloc/ignore-gfp-highmem", "N" },
	{ DEBUG "fail_page_alloc/min-order", "0" },
	{ DEBUG "fail_page_alloc/verbose", "2" },
	{ DEBUG "fail_usercopy/verbose", "2" },
};

/* Where something has failed, by the functions on the way there; of all tests */
static struct places {
	unsigned int failures, untold, nr;
	uint64_t hash[4096];
} *places;
static pid_t first_process;

static void __attribute__((constructor)) prepare(void)
{
	if (dput_supported())
		swap_prepare();
	cgroup_prepare();
	ksm_save();
	for (size_t i = 0; i < ARRAY_SIZE(settings); i++)
		setting_save(settings[i][0]);
	folios_save();
	first_process = getpid();
	places = mmap(NULL, sizeof(*places), RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

static void __attribute__((destructor)) report(void)
{
	if (getpid() == first_process && places != MAP_FAILED && places->failures)
		printf("# %u failures in all, at %u places; of %u the kernel did not say where\n",
		       places->failures, places->nr, places->untold);
}

/* --- Where it failed ---------------------------------------------------- */

static int kmsg_fd;

/* A frame of a stack trace, " function+0x1/0x2", that the kernel is sure of */
static bool is_frame(const char *text)
{
	const char *plus = strchr(text, '+');

	return *text == ' ' && plus && !strncmp(plus, "+0x", 3) && strchr(plus, '/') &&
	       text[strspn(text, " ")] != '?';
}

/* Note the place of the failure that the kernel's log has told of since @kmsg_fd. */
static int note_place(void)
{
	uint64_t hash = 14695981039346656037ULL;
	char record[2048], *text;
	bool inside = false, told = false;
	unsigned int i;
	ssize_t n;

	while ((n = read(kmsg_fd, record, sizeof(record) - 1)) > 0 || errno == EPIPE) {
		if (n <= 0)
			continue;
		record[n] = 0;
		text = strchr(record, ';');
		if (!text)
			continue;
		text++;
		if (strstr(text, "FAULT_INJECTION: forcing a failure"))
			inside = true;
		if (!inside || !is_frame(text))
			continue;
		told = true;
		/* Up to the call: how it was called makes no difference. */
		if (strstr(text, "sys_dput+")) {
			inside = false;
			continue;
		}
		for (; *text && *text != '\n'; text++)
			hash = (hash ^ (unsigned char)*text) * 1099511628211ULL;
	}
	places->failures++;
	places->untold += !told;
	if (!told)
		return -1;
	for (i = 0; i < places->nr && places->hash[i] != hash; i++)
		;
	if (i == places->nr && i < ARRAY_SIZE(places->hash))
		places->hash[places->nr++] = hash;
	return i;
}

/* --- One failure -------------------------------------------------------- */

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
	int fd;			/* of the source's file */
	long slabs[NR_SLABS];
};

FIXTURE_VARIANT(faults)
{
	bool huge;		/* the source is a huge page, */
	bool mthp;		/* or smaller large folios, */
	bool file;		/* or a private file mapping, half of it written, */
	bool swapped;		/* or swapped out, every other page, */
	bool ksm;		/* or merged with other memory */
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

#define KIND_VARIANTS(_name, _kind)						\
FIXTURE_VARIANT_ADD(faults, put_##_name) { ._kind = true, .over = true };	\
FIXTURE_VARIANT_ADD(faults, put_##_name##_ragged) { ._kind = true, .ragged = 5 }; \
FIXTURE_VARIANT_ADD(faults, put_##_name##_again)				\
{										\
	._kind = true, .over = true, .again = true,				\
};										\
FIXTURE_VARIANT_ADD(faults, get_##_name) { ._kind = true, .get = true };	\
FIXTURE_VARIANT_ADD(faults, within_##_name) { ._kind = true, .within = true }

KIND_VARIANTS(mthp, mthp);
KIND_VARIANTS(file, file);
KIND_VARIANTS(swapped, swapped);
KIND_VARIANTS(ksm, ksm);

/* Does a process have as much as it has mapped, says the kernel? Nothing is locked. */
static bool accounts_hold(pid_t pid)
{
	unsigned long start, end, all = 0, data = 0;
	char path[64], line[512], perms[8];
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	f = fopen(path, "r");
	if (!f)
		return false;
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx %7s", &start, &end, perms) != 3 ||
		    strstr(line, "[vsyscall]"))
			continue;
		all += (end - start) >> 10;
		if (perms[1] == 'w' && perms[3] == 'p' && !strstr(line, "[stack]"))
			data += (end - start) >> 10;
	}
	fclose(f);
	if (proc_status_kb(pid, "VmSize") == (long)all &&
	    proc_status_kb(pid, "VmData") == (long)data && !proc_status_kb(pid, "VmLck"))
		return true;
	printf("# VmSize %ld kB, mapped %lu; VmData %ld kB, %lu; VmLck %ld kB\n",
	       proc_status_kb(pid, "VmSize"), all, proc_status_kb(pid, "VmData"), data,
	       proc_status_kb(pid, "VmLck"));
	return false;
}

/* What the source is to be made of; NULL, or why it cannot be. */
static const char *kind_prepare(const FIXTURE_VARIANT(faults) *variant)
{
	const char *reason = NULL;

	if (variant->swapped) {
		reason = swap_missing();
		if (!reason)
			reason = cgroup_enter();
		if (!reason && swap_on())
			reason = "swapon() fails";
	}
	if (variant->ksm)
		reason = ksm_missing();
	if (variant->huge || variant->mthp)
		reason = folios_enable(variant->huge ? thp_size() : mthp_size());
	return reason;
}

FIXTURE_SETUP(faults)
{
	const char *reason;
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
	kmsg_fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK);
	if (kmsg_fd < 0)
		SKIP(return, "no /dev/kmsg");
	reason = kind_prepare(variant);
	if (reason)
		SKIP(return, "%s", reason);
	self->ps = page_size();
	self->len = variant->huge ? thp_size() : variant->mthp ? 2 * mthp_size() : 8 * self->ps;
	self->shift = variant->shift * self->ps;
	/* Before the child, which has it, too */
	if (variant->file)
		self->fd = file_open(MEMFD);
	peer_self(&self->me);
	ASSERT_EQ(0, peer_start(&self->child));
	self->src = variant->get ? &self->child : &self->me;
	self->dst = variant->get || variant->within ? &self->me : &self->child;

	if (variant->file) {
		char *buf = malloc(self->len);

		pattern(buf, self->len, 0, 1);
		ASSERT_EQ((ssize_t)self->len, pwrite(self->fd, buf, self->len, 0));
		free(buf);
		ASSERT_EQ((long)SRC, peer_mmap(self->src, SRC, self->len, RW,
					       MAP_PRIVATE | MAP_FIXED_NOREPLACE, self->fd));
		ASSERT_EQ(0, peer_fill(self->src, SRC, self->len / 2, 1));
	} else {
		if (variant->huge || variant->mthp)
			NEED_LARGE(folios_map(self->src, SRC, self->len,
					      variant->huge ? thp_size() : mthp_size()));
		else
			ASSERT_EQ(0, peer_map(self->src, SRC, self->len, RW));
		ASSERT_EQ(0, peer_fill(self->src, SRC, self->len, 1));
	}
	if (variant->ksm) {
		ASSERT_EQ(0, peer_map(self->src, SRC + KSM_TWIN, self->len, RW));
		ASSERT_EQ(0, peer_fill(self->src, SRC + KSM_TWIN, self->len, 1));
		ASSERT_EQ(0, peer_madvise(self->src, SRC, self->len, MADV_MERGEABLE));
		ASSERT_EQ(0, peer_madvise(self->src, SRC + KSM_TWIN, self->len,
					  MADV_MERGEABLE));
		ASSERT_EQ(0, ksm_scan());
		ASSERT_TRUE(kpageflags(proc_pfn(self->src->pid, SRC)) & KPF_KSM);
	}
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
	close(kmsg_fd);
	if (variant->file)
		close(self->fd);
	if (variant->swapped)
		swap_off();
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

/* Out with a page, which a copy may hold on to that is on its way out, too. */
static bool page_out(struct peer *p, unsigned long addr)
{
	int try;

	for (try = 0; try < 50 && !pages_swapped(p, addr, 1); try++)
		if (!pages_out(p, addr, 1))
			cgroup_reclaim("16M");
	return pages_swapped(p, addr, 1);
}

TEST_F(faults, each_allocation)
{
	unsigned long dst = DST + self->shift, ragged = variant->ragged;
	unsigned long from = variant->first * self->ps;
	size_t n = variant->nr ? variant->nr * self->ps : self->len, rest;
	unsigned long start = dst + from, end = start + n;
	int nth, ret, err, mapped;
	unsigned long i;
	bool pending;

	int first_place = places->nr;
	bool slabs = false;

	rest = self->len - from - n;
	if (ragged) {
		start += self->ps;
		end -= self->ps;
	}
	/* The memory that this test takes for itself, once and for all */
	for (i = 0; i < 2; i++) {
		ASSERT_EQ(-1, verify_part(self->src, SRC, 0, self->len, 1));
		ASSERT_EQ(0, peer_dput(self->src, SRC, self->dst, dst, self->len, 0));
		/* (Of many mappings, not all can be written to.) */
		if (!variant->many)
			ASSERT_EQ(0, peer_fill(self->dst, dst, self->len, 2));
		peer_munmap(self->dst, dst, self->len);
	}
	slabs = !slabs_read(self->slabs);
	for (nth = 1;; nth++) {
		peer_munmap(self->dst, dst, self->len);
		if (variant->over && !variant->again)
			ASSERT_EQ(0, peer_map(self->dst, dst, self->len, RW));
		if (variant->again)
			ASSERT_EQ(0, peer_dput(self->src, SRC, self->dst, dst,
					       self->len, 0));
		if (variant->over)
			ASSERT_EQ(0, peer_fill(self->dst, dst, self->len, 2));
		/* Whatever the last call left has been unmapped. */
		ASSERT_TRUE(accounts_hold(self->dst->pid));
		for (i = 0; variant->swapped && i < self->len / self->ps; i += 2)
			ASSERT_TRUE(page_out(self->src, SRC + i * self->ps));

		lseek(kmsg_fd, 0, SEEK_END);
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
		note_place();
		ASSERT_TRUE(accounts_hold(self->dst->pid));
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
	peer_munmap(self->dst, dst, self->len);
	ASSERT_TRUE(accounts_hold(self->dst->pid));
	/* Others, where there are any, start processes meanwhile. */
	if (slabs)
		EXPECT_TRUE(slabs_within(self->slabs, getenv("DPUT_DISPOSABLE") ? 0 : 1000));
	TH_LOG("%d allocations failed in turn, at %d new places", self->points,
	       places->nr - first_place);
	/* Small pages take next to no memory to bring up to date, and none to fail. */
	if (!variant->again || variant->huge || variant->pinned)
		EXPECT_LT(variant->again ? 0 : 3, self->points);
}

TEST_HARNESS_MAIN
