// SPDX-License-Identifier: GPL-2.0
/* How callers get on with each other: wall clock, more than one CPU. */
#include "bench.h"
#include <sched.h>
#include <stdatomic.h>

#define SIZE	(16 * MIB)
#define SPAN	1000000000ULL		/* how long each runs, in ns */

struct counts {
	atomic_uint ready;
	atomic_bool go;
	atomic_ulong calls;
};

static struct counts *counts;

/* A caller with a region of its own; into its own peer, or the common one. */
static void __attribute__((noreturn)) caller(struct peer *to, unsigned long dst)
{
	const struct sched_param param = { .sched_priority = 0 };
	struct peer own;
	void *src = map(fresh_src(), SIZE, SMALL);
	uint64_t until;

	sched_setscheduler(0, SCHED_OTHER, &param);
	if (!to) {
		peer_start(&own);
		to = &own;
	}
	fill(src, SIZE);
	dput_to(to, dst, src, SIZE);
	counts->ready++;
	while (!counts->go)
		sched_yield();
	for (until = now() + SPAN; now() < until; counts->calls++) {
		/* A new version of each page, so that no call is for nothing. */
		touch(src, SIZE, 16 * PAGE);
		dput_to(to, dst, src, SIZE);
	}
	if (to == &own)
		peer_stop(&own);
	_exit(0);
}

static unsigned long callers(unsigned int nr, struct peer *to)
{
	pid_t pids[64];
	unsigned int i;

	counts->ready = 0;
	counts->go = false;
	counts->calls = 0;
	for (i = 0; i < nr; i++) {
		unsigned long dst = fresh_dst();

		pids[i] = fork();
		if (pids[i] < 0)
			err(2, "fork");
		if (!pids[i])
			caller(to, dst);
	}
	while (counts->ready < nr)
		usleep(1000);
	counts->go = true;
	for (i = 0; i < nr; i++)
		reap(pids[i]);
	return counts->calls;
}

static void side(void)
{
	unsigned int cpus = sysconf(_SC_NPROCESSORS_ONLN), nr;
	int round;

	/* With one CPU there is nothing to see. */
	if (base_only || exact)
		return;
	counts = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (counts == MAP_FAILED)
		err(2, "mmap");
	for (round = 0; round < 5; round++) {
		for (nr = 1; nr <= cpus && nr <= 64; nr *= 2) {
			struct peer common;

			sample("pairs", nr, "calls/s", callers(nr, NULL));
			peer_start(&common);
			sample("one-destination", nr, "calls/s",
			       callers(nr, &common));
			peer_stop(&common);
		}
	}
	munmap(counts, PAGE);
}

/* The target's case is exact; this is on as many CPUs as there are. */
static void stalls(void)
{
	int round;

	if (base_only || exact)
		return;
	for (round = 0; round < 3; round++)
		longest_stalls();
}

const struct bench side_cases[] = {
	{ "side-throughput", side, "side" },
	{ "side-stall", stalls, "side" },
	{ }
};
