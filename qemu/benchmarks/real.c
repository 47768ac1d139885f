// SPDX-License-Identifier: GPL-2.0
/* Programs in small: what their users do today, and the same with dput(). */
#include "bench.h"
#include <sched.h>
#include <sys/uio.h>
#include <sys/wait.h>

static int rounds(void)
{
	return exact ? 2 : 7;
}

static long free_kib(void)
{
	char line[128];
	FILE *f = fopen("/proc/meminfo", "r");
	long kib = 0;

	if (!f)
		err(2, "/proc/meminfo");
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "MemFree: %ld", &kib) == 1)
			break;
	fclose(f);
	return kib;
}

/* ---- An in-memory store that saves itself ---- */

#define ENTRY		64		/* bytes: a key, a version, a value */

struct entry {
	uint64_t key, version, value[ENTRY / 8 - 2];
};

static struct entry *store;
static size_t entries;

static uint64_t hash(uint64_t key)
{
	key *= 0x9e3779b97f4a7c15ULL;
	return key ^ key >> 32;
}

/* Insert or update: linear probing in a table that is half full. */
static void set(uint64_t key, uint64_t value)
{
	size_t i = hash(key) & (entries - 1);

	while (store[i].key && store[i].key != key)
		i = (i + 1) & (entries - 1);
	store[i].key = key;
	store[i].version++;
	store[i].value[value & 3] = value;
}

static uint64_t next_key(void)
{
	static uint64_t x = 88172645463325252ULL;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return x % (entries / 2) + 1;
}

/* What the child of a store that forks does: look at all of it, and leave. */
static uint64_t save(const void *at, size_t len)
{
	const uint64_t *p = at;
	uint64_t s = 0;
	size_t i;

	for (i = 0; i < len / 8; i++)
		s = s * 3 + p[i];
	return s;
}

/* Updates while the snapshot is being saved; how many a second, and memory. */
static void while_saving(const char *how, size_t len, pid_t child)
{
	uint64_t start = now(), longest = 0, nr = 0;
	long before = free_kib(), least = before;
	char series[64];
	bool done = false;

	while (!done) {
		uint64_t begun = now(), took;
		unsigned int i;

		for (i = 0; i < 100; i++)
			set(next_key(), nr + i);
		nr += 100;
		took = now() - begun;
		if (took > longest)
			longest = took;
		if (nr % 10000)
			continue;
		if (child)
			done = waitpid(child, NULL, WNOHANG) == child;
		else
			done = peer_ended(&peer);
		if (!done && free_kib() < least)
			least = free_kib();
	}
	if (!child)
		peer_end(&peer);
	snprintf(series, sizeof(series), "%s-updates-while-saving", how);
	sample(series, len, "updates/s", nr * 1000000000ULL / (now() - start));
	snprintf(series, sizeof(series), "%s-longest-100-updates", how);
	sample(series, len, "ns", longest);
	snprintf(series, sizeof(series), "%s-memory", how);
	sample(series, len, "KiB", before - least);
}

/* Exact mode has one CPU: what so many updates cost after the snapshot. */
static void after_snapshot(const char *how, size_t len)
{
	char series[64];
	unsigned int i;

	snprintf(series, sizeof(series), "%s-10000-updates", how);
	MEASURE(series, len, {
		for (i = 0; i < 10000; i++)
			set(next_key(), i);
	});
}

static void snapshot_fork(size_t len)
{
	volatile uint64_t result;
	uint64_t start = now();
	int hold[2];
	pid_t pid;
	char c;

	if (pipe(hold))
		err(2, "pipe");
	settle();
	start = begin("fork-pause");
	pid = fork();
	if (!pid) {
		close(hold[1]);
		if (exact)
			_exit(read(hold[0], &c, 1) != 0);
		result = save(store, len);
		(void)result;
		_exit(0);
	}
	end("fork-pause", len, start);
	close(hold[0]);
	if (exact)
		after_snapshot("fork", len);
	else
		while_saving("fork", len, pid);
	close(hold[1]);
	if (exact)
		reap(pid);
	settle();
}

static void snapshot_dput(size_t len, bool again)
{
	const char *how = again ? "dput-again" : "dput";
	static unsigned long dst;
	char series[64];

	if (!again)
		dst = fresh_dst();
	settle();
	snprintf(series, sizeof(series), "%s-pause", how);
	MEASURE(series, len, dput_to(&peer, dst, store, len));
	if (exact) {
		after_snapshot(how, len);
	} else {
		peer_begin(&peer, P_SUM, dst, len, 0);
		while_saving(how, len, 0);
	}
	if (again)
		peer_do(&peer, P_UNMAP, dst, len, 0);
	settle();
}

static void real_store(void)
{
	const size_t len = region(exact ? 256 * MIB : 2 * GIB);
	const struct sched_param other = { .sched_priority = 0 };
	const struct sched_param fifo = { .sched_priority = 50 };
	uint64_t key, start;
	int round;

	store = map(fresh_src(), len, SMALL);
	populate(store, len);
	for (entries = 1; entries <= len / ENTRY / 2; entries *= 2)
		;
	for (key = 1; key <= entries / 2; key++)
		set(key, key);
	if (!exact && sched_setscheduler(0, SCHED_OTHER, &other))
		err(2, "sched_setscheduler");
	for (round = 0; round < (exact ? 1 : 3); round++) {
		/* Nothing is shared before. */
		populate(store, len);
		snapshot_fork(len);
		populate(store, len);
		if (base_only)
			continue;
		snapshot_dput(len, false);
		snapshot_dput(len, true);
		populate(store, len);
		settle();
		if (exact) {
			after_snapshot("no", len);
		} else {
			unsigned int i;

			start = now();
			for (i = 0; i < 1000000; i++)
				set(next_key(), i);
			sample("no-snapshot-updates", len, "updates/s",
			       1000000 * 1000000000ULL / (now() - start));
		}
	}
	if (!exact && sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &fifo))
		err(2, "sched_setscheduler");
	unmap(store, len);
}

/* ---- A sandbox that "forks" inside one process ---- */

static void real_sandbox(void)
{
	const size_t len = 16 * MIB, step = 20 * PAGE;	/* it writes 5 % */
	int round;

	if (base_only)
		return;
	for (round = 0; round < rounds(); round++) {
		void *src = map(fresh_src(), len, SMALL), *to = fresh_src();
		struct iovec from = { src, len }, into = { to, len };

		fill(src, len);
		settle();
		MEASURE("dput", len, {
			dput_self(to, src, len);
			touch(to, len, step);
		});
		unmap(to, len);
		settle();
		MEASURE("memcpy", len, {
			map(to, len, SMALL);
			memcpy(to, src, len);
			touch(to, len, step);
		});
		unmap(to, len);
		settle();
		MEASURE("writev", len, {
			map(to, len, SMALL);
			if (process_vm_writev(getpid(), &from, 1, &into, 1, 0) != (ssize_t)len)
				err(2, "process_vm_writev");
			touch(to, len, step);
		});
		unmap(to, len);
		unmap(src, len);
		settle();
	}
}

/* ---- An instance that is put back to its template after each run ---- */

static unsigned long spread(size_t len, unsigned int nr)
{
	return len / PAGE / nr * PAGE;
}

/* The run: nr pages are written, and 64 are read. */
static void run(volatile char *at, size_t len, unsigned int nr)
{
	size_t i, step = spread(len, nr);
	unsigned int n;

	for (i = 0; i < len; i += len / 64)
		(void)at[i];
	for (i = 0, n = 0; n < nr; n++, i += step)
		at[i]++;
}

static void real_wasm(void)
{
	static const unsigned int written[] = { 1, 8, 77, 384, 768 };
	const size_t len = 3 * MIB;
	void *template, *instance, *copied, *mapped;
	unsigned int i;
	int fd, round;

	if (base_only)
		return;
	template = map(fresh_src(), len, SMALL);
	fill(template, len);
	instance = fresh_src();
	copied = map(fresh_src(), len, SMALL);
	fd = new_memfd(len);
	mapped = map_file(fresh_src(), len, fd, MAP_SHARED);
	memcpy(mapped, template, len);
	unmap(mapped, len);
	map_file(mapped, len, fd, MAP_PRIVATE);
	dput_self(instance, template, len);
	memcpy(copied, template, len);

	for (i = 0; i < ARRAY_SIZE(written); i++) {
		unsigned int nr = written[i];

		run(instance, len, nr);
		run(copied, len, nr);
		run(mapped, len, nr);
		for (round = 0; round < (exact ? 4 : 25); round++) {
			settle();
			MEASURE("dput", nr, {
				dput_self(instance, template, len);
				run(instance, len, nr);
			});
			settle();
			MEASURE("memcpy", nr, {
				memcpy(copied, template, len);
				run(copied, len, nr);
			});
			settle();
			MEASURE("memfd-dontneed", nr, {
				if (madvise(mapped, len, MADV_DONTNEED))
					err(2, "MADV_DONTNEED");
				run(mapped, len, nr);
			});
		}
	}
	unmap(template, len);
	unmap(instance, len);
	unmap(copied, len);
	unmap(mapped, len);
	close(fd);
}

/* ---- A fuzzer's worker ---- */

static void real_fuzz(void)
{
	static const unsigned int written[] = { 1, 16, 128, 1024, 4096 };
	const size_t len = 16 * MIB;
	unsigned long dst = fresh_dst();
	void *src = map(fresh_src(), len, SMALL);
	unsigned int i;
	int round;

	if (base_only)
		return;
	fill(src, len);
	dput_to(&peer, dst, src, len);
	for (i = 0; i < ARRAY_SIZE(written); i++) {
		unsigned int nr = written[i];

		peer_do(&peer, P_TOUCH, dst, len, spread(len, nr));
		for (round = 0; round < (exact ? 4 : 9); round++) {
			uint64_t start;
			pid_t pid;

			settle();
			MEASURE("dput", nr, {
				dput_to(&peer, dst, src, len);
				peer_do(&peer, P_TOUCH, dst, len, spread(len, nr));
			});
			settle();
			start = begin("fork");
			pid = fork();
			if (!pid) {
				touch(src, len, spread(len, nr));
				_exit(0);
			}
			reap(pid);
			end("fork", nr, start);
		}
	}
	peer_do(&peer, P_UNMAP, dst, len, 0);
	unmap(src, len);
}

const struct bench real_cases[] = {
	{ "real-store", real_store, "real" },
	{ "real-sandbox", real_sandbox, "real" },
	{ "real-wasm", real_wasm, "real" },
	{ "real-fuzz", real_fuzz, "real" },
	{ }
};
