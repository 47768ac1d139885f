// SPDX-License-Identifier: GPL-2.0
/*
 * dput(2) of memory that a device uses, too: one with page tables of its own, as GPUs
 * and virtual machines have them, that are told by MMU notifiers of what changes;
 * pages that are in the device's memory; and pages that it has for itself. The
 * device is the one of lib/test_hmm.c (CONFIG_TEST_HMM).
 */

#include "kselftest_harness.h"
#include <fcntl.h>
#include <sys/ioctl.h>
#include "dput_util.h"

#define DEVICE	"/dev/hmm_dmirror0"
#define SRC	(ARENA + (64UL << 20))
#define DST	(ARENA + (256UL << 20))
#define THP	"/sys/kernel/mm/transparent_hugepage/enabled"
#define COMPACT	"/proc/sys/vm/compact_memory"
/* Of what may fail for a reason that passes: a page is on its way to a list, say */
#define TRIES	100

/* As in lib/test_hmm_uapi.h */
struct dmirror_cmd {
	uint64_t addr, ptr, npages, cpages, faults;
};

#define DMIRROR_READ		_IOWR('H', 0x00, struct dmirror_cmd)
#define DMIRROR_WRITE		_IOWR('H', 0x01, struct dmirror_cmd)
#define DMIRROR_MIGRATE_TO_DEV	_IOWR('H', 0x02, struct dmirror_cmd)
#define DMIRROR_SNAPSHOT	_IOWR('H', 0x04, struct dmirror_cmd)
#define DMIRROR_EXCLUSIVE	_IOWR('H', 0x05, struct dmirror_cmd)
#define DMIRROR_CHECK_EXCLUSIVE	_IOWR('H', 0x06, struct dmirror_cmd)
/* What a snapshot has for pages in this device's memory, but for who may write */
#define DEV_PRIVATE		0x30
#define DEV_PRIVATE_LOCAL	0x20

struct device_arg {
	unsigned long cmd, addr, npages;
	unsigned int seed;
	/* Out: how often the device had to ask for pages; pages that are as wanted */
	long faults, pages;
};

/* Opened by each process for itself: the device mirrors whoever opens it. */
static int device_fd = -1;
static pid_t device_owner;

static long op_open(void *arg)
{
	if (device_owner == getpid())
		return 0;
	device_fd = open(DEVICE, O_RDWR | O_CLOEXEC);
	if (device_fd < 0)
		return -1;
	device_owner = getpid();
	return 0;
}

static long op_close(void *arg)
{
	if (device_owner != getpid())
		return 0;
	device_owner = 0;
	return close(device_fd);
}

static long op_device(void *arg)
{
	struct device_arg *a = arg;
	size_t len = a->npages * page_size(), i;
	struct dmirror_cmd cmd = { .addr = a->addr, .npages = a->npages };
	unsigned char *buf, *want;
	int ret;

	if (op_open(NULL))
		return -1;
	buf = mmap(NULL, 2 * len, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (buf == MAP_FAILED)
		return -1;
	want = buf + len;
	cmd.ptr = (unsigned long)buf;
	pattern(a->cmd == DMIRROR_WRITE ? buf : want, len, 0, a->seed);
	ret = ioctl(device_fd, a->cmd, &cmd);
	a->faults = cmd.faults;
	a->pages = 0;
	for (i = 0; !ret && i < a->npages; i++) {
		if (a->cmd == DMIRROR_SNAPSHOT)
			a->pages += (buf[i] & DEV_PRIVATE) == DEV_PRIVATE_LOCAL;
		else if (a->cmd != DMIRROR_WRITE)
			a->pages += !memcmp(buf + i * page_size(),
					    want + i * page_size(), page_size());
	}
	munmap(buf, 2 * len);
	return ret;
}

/* What each access by the device returns if it is right */
static long device(struct peer *p, unsigned long cmd, unsigned long addr, size_t npages,
		   unsigned int seed, long *faults)
{
	struct device_arg a = { .cmd = cmd, .addr = addr, .npages = npages, .seed = seed };

	if (peer_call(p, op_device, &a, sizeof(a)))
		return -1;
	if (faults)
		*faults = a.faults;
	return a.pages;
}

static long device_write(struct peer *p, unsigned long addr, size_t npages,
			 unsigned int seed, long *faults)
{
	return device(p, DMIRROR_WRITE, addr, npages, seed, faults);
}

/* How many pages the device finds to be those of @seed */
static long device_finds(struct peer *p, unsigned long addr, size_t npages, unsigned int seed)
{
	return device(p, DMIRROR_READ, addr, npages, seed, NULL);
}

static long device_has(struct peer *p, unsigned long addr, size_t npages)
{
	return device(p, DMIRROR_SNAPSHOT, addr, npages, 0, NULL);
}

/* Into the device's memory; how many pages are there then */
static long device_takes(struct peer *p, unsigned long addr, size_t npages)
{
	long has = -1;
	int i;

	for (i = 0; i < TRIES && has != (long)npages; i++) {
		if (i)
			usleep(10000);
		device(p, DMIRROR_MIGRATE_TO_DEV, addr, npages, 0, NULL);
		has = device_has(p, addr, npages);
	}
	return has;
}

static void __attribute__((constructor)) prepare(void)
{
	if (!dput_supported())
		return;
	cgroup_prepare();
	if (thp_size())
		setting_save(THP);
}

FIXTURE(devices)
{
	unsigned long ps;
	size_t npages, len;
	struct peer me, child;
	struct peer *src, *dst;
};

FIXTURE_VARIANT(devices)
{
	bool huge;
	bool get;		/* from the child to the caller */
	bool within;		/* within the caller */
};

FIXTURE_VARIANT_ADD(devices, small_put) {};
FIXTURE_VARIANT_ADD(devices, small_get) { .get = true };
FIXTURE_VARIANT_ADD(devices, small_within) { .within = true };
FIXTURE_VARIANT_ADD(devices, huge_put) { .huge = true };
FIXTURE_VARIANT_ADD(devices, huge_get) { .huge = true, .get = true };
FIXTURE_VARIANT_ADD(devices, huge_within) { .huge = true, .within = true };

/* The source has pattern 1. */
FIXTURE_SETUP(devices)
{
	if (!dput_supported())
		SKIP(return, "no dput()");
	if (access(DEVICE, R_OK | W_OK))
		SKIP(return, DEVICE ": %s", strerror(errno));
	if (variant->huge && !thp_size())
		SKIP(return, "no huge pages, or too large ones");
	self->ps = page_size();
	self->len = variant->huge ? thp_size() : 16 * self->ps;
	self->npages = self->len / self->ps;
	if (thp_size()) {
		ASSERT_EQ(0, setting_write(THP, variant->huge ? "always" : "never"));
	}
	if (!cgroup_missing()) {
		ASSERT_FALSE(!!cgroup_enter());
	}
	peer_self(&self->me);
	ASSERT_EQ(0, peer_start(&self->child));
	self->src = variant->get ? &self->child : &self->me;
	self->dst = variant->get || variant->within ? &self->me : &self->child;
	ASSERT_EQ(0, peer_map(self->src, SRC, self->len, RW));
	/*
	 * The device has no huge page to give if there is none: it takes small ones
	 * then, of which the kernel does not expect that two share them.
	 */
	if (variant->huge)
		setting_write(COMPACT, "1");
	ASSERT_EQ(0, peer_fill(self->src, SRC, self->len, 1));
	if (variant->huge && !is_huge(self->src->pid, SRC, self->len)) {
		ASSERT_EQ(0, peer_madvise(self->src, SRC, self->len, MADV_COLLAPSE));
		ASSERT_TRUE(is_huge(self->src->pid, SRC, self->len));
	}
}

FIXTURE_TEARDOWN(devices)
{
	/* Memory of a mirror must not outlive it: the driver would use what is freed. */
	peer_munmap(&self->me, ARENA, ARENA_SIZE);
	peer_munmap(&self->child, ARENA, ARENA_SIZE);
	peer_call(&self->child, op_close, NULL, 0);
	peer_call(&self->me, op_close, NULL, 0);
	peer_stop(&self->child);
}

#define DPUT(flags) peer_dput(self->src, SRC, self->dst, DST, self->len, (flags))
#define EXPECT_FILLED(p, addr, seed) EXPECT_EQ(-1, peer_verify((p), (addr), self->len, (seed)))

/* The device has the source's pages mapped for writing: not the shared ones. */
TEST_F(devices, writes_to_source)
{
	long faults;
	int i;

	ASSERT_EQ(0, device_write(self->src, SRC, self->npages, 2, &faults));
	EXPECT_LT(0, faults);
	/* It has them now, and need not ask. */
	for (i = 0; i < TRIES && faults; i++)
		ASSERT_EQ(0, device_write(self->src, SRC, self->npages, 3, &faults));
	EXPECT_EQ(0, faults);
	/* The first time, and over an older copy */
	for (i = 3; i < 6; i++) {
		ASSERT_EQ(0, DPUT(0));
		EXPECT_FILLED(self->dst, DST, i);
		ASSERT_EQ(0, device_write(self->src, SRC, self->npages, i + 1, &faults));
		EXPECT_LT(0, faults);
		EXPECT_FILLED(self->dst, DST, i);
		EXPECT_FILLED(self->src, SRC, i + 1);
	}
}

/* Nor what the destination had before, or has had since. */
TEST_F(devices, uses_destination)
{
	int i;

	ASSERT_EQ(0, peer_map(self->dst, DST, self->len, RW));
	ASSERT_EQ(0, device_write(self->dst, DST, self->npages, 9, NULL));
	for (i = 1; i < 4; i++) {
		ASSERT_EQ(0, DPUT(0));
		EXPECT_EQ(self->npages, device_finds(self->dst, DST, self->npages, i));
		/* Once more over what it only reads */
		ASSERT_EQ(0, peer_fill(self->src, SRC, self->len, 7));
		ASSERT_EQ(0, DPUT(0));
		EXPECT_EQ(self->npages, device_finds(self->dst, DST, self->npages, 7));
		ASSERT_EQ(0, device_write(self->dst, DST, self->npages, 8, NULL));
		EXPECT_FILLED(self->dst, DST, 8);
		EXPECT_FILLED(self->src, SRC, 7);
		ASSERT_EQ(0, peer_fill(self->src, SRC, self->len, i + 1));
	}
}

/* A page at a time, in memory that is an older copy but for that page */
TEST_F(devices, page_after_page)
{
	size_t i, step = self->npages / 16;

	ASSERT_EQ(0, DPUT(0));
	EXPECT_EQ(self->npages, device_finds(self->dst, DST, self->npages, 1));
	for (i = 0; i < self->npages; i += step) {
		unsigned long at = i * self->ps;

		ASSERT_EQ(0, device_write(self->src, SRC + at, 1, 2, NULL));
		ASSERT_EQ(0, peer_dput(self->src, SRC + at, self->dst, DST + at, self->ps, 0));
		EXPECT_EQ(1, device_finds(self->dst, DST + at, 1, 2));
		ASSERT_EQ(0, device_write(self->src, SRC + at, 1, 3, NULL));
		EXPECT_EQ(-1, peer_verify(self->dst, DST + at, self->ps, 2));
		ASSERT_EQ(0, device_write(self->dst, DST + at, 1, 4, NULL));
		EXPECT_EQ(-1, peer_verify(self->src, SRC + at, self->ps, 3));
	}
}

/* Bytes at the ends of a range come to be where the device looks for them. */
TEST_F(devices, ragged)
{
	char byte = 0;

	ASSERT_EQ(0, peer_map(self->dst, DST, self->len, RW));
	ASSERT_EQ(0, device_write(self->dst, DST, self->npages, 1, NULL));
	ASSERT_EQ(0, peer_write(self->dst, DST + 5, &byte, 1));
	ASSERT_EQ(0, peer_write(self->dst, DST + self->len - 6, &byte, 1));
	EXPECT_EQ(self->npages - 2, device_finds(self->dst, DST, self->npages, 1));
	ASSERT_EQ(0, peer_dput(self->src, SRC + 5, self->dst, DST + 5, self->len - 10, 0));
	EXPECT_EQ(self->npages, device_finds(self->dst, DST, self->npages, 1));
}

/* Pages in the device's memory are shared there, and come back for each side. */
TEST_F(devices, source_is_there)
{
	ASSERT_EQ(self->npages, device_takes(self->src, SRC, self->npages));
	ASSERT_EQ(0, DPUT(0));
	EXPECT_EQ(self->npages, device_has(self->dst, DST, self->npages));
	EXPECT_EQ(self->npages, device_has(self->src, SRC, self->npages));
	/* Again, with nothing changed, and with half of it back and changed */
	ASSERT_EQ(0, DPUT(0));
	EXPECT_EQ(self->npages, device_has(self->dst, DST, self->npages));
	ASSERT_EQ(0, peer_fill(self->src, SRC, self->len / 2, 2));
	ASSERT_EQ(0, peer_fill(self->src, SRC, self->len / 2, 1));
	ASSERT_EQ(0, DPUT(0));
	EXPECT_FILLED(self->dst, DST, 1);
	EXPECT_FILLED(self->src, SRC, 1);
	ASSERT_EQ(0, peer_fill(self->dst, DST, self->len, 3));
	EXPECT_FILLED(self->src, SRC, 1);
	ASSERT_EQ(0, peer_fill(self->src, SRC, self->len, 4));
	EXPECT_FILLED(self->dst, DST, 3);
}

/* A page that is shared goes there, and the copy's side is the first to need it. */
TEST_F(devices, copy_goes_there)
{
	ASSERT_EQ(0, DPUT(0));
	ASSERT_EQ(self->npages, device_takes(self->dst, DST, self->npages));
	EXPECT_EQ(self->npages, device_has(self->src, SRC, self->npages));
	/* Both have the same entries: there is nothing to do. */
	ASSERT_EQ(0, DPUT(0));
	EXPECT_EQ(self->npages, device_has(self->dst, DST, self->npages));
	ASSERT_EQ(0, peer_fill(self->dst, DST, self->len, 2));
	EXPECT_FILLED(self->src, SRC, 1);
	ASSERT_EQ(0, DPUT(0));
	EXPECT_FILLED(self->dst, DST, 1);
}

/* What is there has no dirty bit. What the source gives up, it gives up for itself. */
TEST_F(devices, given_up)
{
	const char *reason = cgroup_missing();

	if (reason)
		SKIP(return, "%s", reason);
	ASSERT_EQ(0, peer_madvise(self->src, SRC, self->len, MADV_FREE));
	ASSERT_EQ(self->npages, device_takes(self->src, SRC, self->npages));
	ASSERT_EQ(0, DPUT(0));
	EXPECT_EQ(self->npages, device_has(self->dst, DST, self->npages));
	EXPECT_FILLED(self->dst, DST, 1);
	EXPECT_EQ(0, device_has(self->src, SRC, self->npages));
	ASSERT_EQ(0, peer_madvise(self->src, SRC, self->len, MADV_FREE));
	reason = cgroup_reclaim_given_up();
	EXPECT_FILLED(self->dst, DST, 1);
	if (reason)
		SKIP_REST(return, "%s", reason);
}

/* What is replaced is there. */
TEST_F(devices, destination_is_there)
{
	int i;

	ASSERT_EQ(0, peer_map(self->dst, DST, self->len, RW));
	for (i = 0; i < 3; i++) {
		ASSERT_EQ(0, peer_fill(self->dst, DST, self->len, 9));
		ASSERT_EQ(self->npages, device_takes(self->dst, DST, self->npages));
		ASSERT_EQ(0, DPUT(0));
		EXPECT_FILLED(self->dst, DST, 1);
	}
	EXPECT_FILLED(self->src, SRC, 1);
}

/* Ends of the range in pages that are there, on both sides */
TEST_F(devices, ragged_there)
{
	char *want = malloc(self->len), *has = malloc(self->len);

	ASSERT_TRUE(want && has);
	ASSERT_EQ(0, peer_map(self->dst, DST, self->len, RW));
	ASSERT_EQ(0, peer_fill(self->dst, DST, self->len, 2));
	ASSERT_EQ(self->npages, device_takes(self->src, SRC, self->npages));
	ASSERT_EQ(self->npages, device_takes(self->dst, DST, self->npages));
	ASSERT_EQ(0, peer_dput(self->src, SRC + 5, self->dst, DST + 5, self->len - 10, 0));
	pattern(has, self->len, 0, 2);
	pattern(want, self->len, 0, 1);
	memcpy(want, has, 5);
	memcpy(want + self->len - 5, has + self->len - 5, 5);
	for (size_t i = 0; i < self->len; i += self->ps)
		ASSERT_EQ(0, peer_read(self->dst, DST + i, has + i, self->ps));
	EXPECT_EQ(0, memcmp(want, has, self->len));
	free(want);
	free(has);
	ASSERT_EQ(0, peer_dput(self->src, SRC, self->dst, DST, self->len, 0));
	EXPECT_FILLED(self->dst, DST, 1);
	EXPECT_FILLED(self->src, SRC, 1);
}

/* Pages that the device has for itself: it loses them, as by an access. */
TEST_F(devices, exclusive)
{
	int i, tries;
	long has;

	for (i = 0; i < 3; i++) {
		ASSERT_EQ(0, peer_fill(self->src, SRC, self->len, i + 1));
		/* NUMA balancing, for one, may take them away again. */
		for (has = 0, tries = 0; tries < TRIES && has != -1; tries++) {
			has = device(self->src, DMIRROR_EXCLUSIVE, SRC, self->npages,
				     i + 1, NULL);
			ASSERT_EQ(self->npages, has);
			has = device(self->src, DMIRROR_CHECK_EXCLUSIVE, SRC,
				     self->npages, 0, NULL);
		}
		EXPECT_EQ(-1, has);
		EXPECT_EQ(EPERM, errno);
		ASSERT_EQ(0, DPUT(0));
		EXPECT_LE(0, device(self->src, DMIRROR_CHECK_EXCLUSIVE, SRC, self->npages,
				    0, NULL));
		EXPECT_LE(0, device(self->dst, DMIRROR_CHECK_EXCLUSIVE, DST, self->npages,
				    0, NULL));
		EXPECT_FILLED(self->dst, DST, i + 1);
		EXPECT_FILLED(self->src, SRC, i + 1);
		ASSERT_EQ(0, peer_fill(self->src, SRC, self->len, 8));
		EXPECT_FILLED(self->dst, DST, i + 1);
		/* What the destination's has for itself is replaced next time. */
		EXPECT_EQ(self->npages, device(self->dst, DMIRROR_EXCLUSIVE, DST, self->npages,
					       i + 1, NULL));
	}
}

/*
 * The first to register a notifier for an mm locks all of its VMAs' anon_vmas, and
 * those of copies from several processes are of several trees.
 */
TEST_F(devices, registers_with_copies)
{
	unsigned long at = DST;
	int i;

	for (i = 0; i < 8; i++, at += 2 * self->len) {
		ASSERT_EQ(0, peer_dput(self->src, SRC, self->dst, at, self->len, 0));
		ASSERT_EQ(0, peer_dput(self->dst, at, self->src, at + self->len, self->len, 0));
		ASSERT_EQ(0, peer_fill(self->dst, at, self->len, i));
	}
	EXPECT_EQ(0, peer_call(self->dst, op_open, NULL, 0));
	EXPECT_EQ(0, peer_call(self->src, op_open, NULL, 0));
	EXPECT_EQ(self->npages, device_finds(self->src, SRC, self->npages, 1));
	EXPECT_EQ(self->npages, device_finds(self->dst, DST, self->npages, 0));
}

TEST_HARNESS_MAIN
