/* SPDX-License-Identifier: GPL-2.0 */
#ifndef SELFTESTS_DPUT_UTIL_H
#define SELFTESTS_DPUT_UTIL_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/swap.h>
#include <sys/types.h>

#include "dput.h"

/* A test's time limit is for what hangs: a busy host is slow, and nothing is wrong. */
#ifdef TEST_TIMEOUT_DEFAULT
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	600
#endif

#ifndef __NR_memfd_secret
#define __NR_memfd_secret	447
#endif
#ifndef __NR_mseal
#define __NR_mseal		462
#endif
#ifndef PIDFD_THREAD
#define PIDFD_THREAD		O_EXCL
#endif
#ifndef MAP_DROPPABLE
#define MAP_DROPPABLE		0x08
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL	102
#define MADV_GUARD_REMOVE	103
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE		25
#endif
#ifndef PR_SET_VMA
#define PR_SET_VMA		0x53564d41
#define PR_SET_VMA_ANON_NAME	0
#endif

#ifndef SWAP_FLAG_PREFER
#define SWAP_FLAG_PREFER	0x8000
#define SWAP_FLAG_PRIO_MASK	0x7fff
#endif

#ifndef __aligned
#define __aligned(x)		__attribute__((aligned(x)))
#endif
#ifndef __noreturn
#define __noreturn		__attribute__((noreturn))
#endif

/* Nothing but the tests maps anything between ARENA and ARENA_END. */
#if __SIZEOF_LONG__ == 8
#define ARENA			(1UL << 37)
#define ARENA_SIZE		(1UL << 32)
#else
#define ARENA			0x10000000UL
#define ARENA_SIZE		0x90000000UL
#endif
#define ARENA_END		(ARENA + ARENA_SIZE)
/* Beyond all that a process has mapped, but for x86-64's vsyscall page */
#define MAPS_END		(-1UL << (__SIZEOF_LONG__ == 8 ? 30 : 12))

#define PM_SOFT_DIRTY		(1ULL << 55)
#define PM_SWAP			(1ULL << 62)
#define PM_PRESENT		(1ULL << 63)
#define PM_PFN_MASK		((1ULL << 55) - 1)

#define KPF_ANON		(1ULL << 12)
#define KPF_COMPOUND_HEAD	(1ULL << 15)
#define KPF_COMPOUND_TAIL	(1ULL << 16)
#define KPF_HWPOISON		(1ULL << 19)
#define KPF_KSM			(1ULL << 21)
#define KPF_THP			(1ULL << 22)
#define KPF_ZERO_PAGE		(1ULL << 24)

#define RW			(PROT_READ | PROT_WRITE)

/* SKIP() what is left of a test: what has failed so far stays a failure. */
#define SKIP_REST(statement, fmt, ...) do {					\
	if (_metadata->exit_code == KSFT_PASS)					\
		SKIP(statement, fmt, ##__VA_ARGS__);				\
	statement;								\
} while (0)

/*
 * A process whose memory a test looks at: the caller, or a child that executes
 * functions on the caller's behalf.
 */
struct peer {
	pid_t pid;
	int pidfd;
	int sock;		/* -1 for the caller */
};

typedef long (*peer_fn)(void *arg);

/* The most that an argument of peer_call() can hold. */
#define PEER_ARG_MAX		65536

unsigned long page_size(void);

int sys_dput(int src_fd, unsigned long src, int dst_fd, unsigned long dst,
	     size_t len, unsigned int flags);
int peer_dput(struct peer *src, unsigned long saddr, struct peer *dst,
	      unsigned long daddr, size_t len, unsigned int flags);
bool dput_supported(void);

int sys_pidfd_open(pid_t pid, unsigned int flags);

void peer_self(struct peer *p);
int peer_start(struct peer *p);
int peer_fork(struct peer *p, struct peer *child);
void peer_stop(struct peer *p);
void peer_kill(struct peer *p);
/* Stop a peer that @parent has forked, and have it reaped there. */
void peer_stop_child(struct peer *parent, struct peer *p);
/* Run fn(arg) in @p; *arg is copied there and back. -1 and errno on error. */
long peer_call(struct peer *p, peer_fn fn, void *arg, size_t len);

long peer_mmap(struct peer *p, unsigned long addr, size_t len, int prot,
	       int flags, int fd);
/* Private anonymous memory at a fixed address where nothing was mapped. */
long peer_map(struct peer *p, unsigned long addr, size_t len, int prot);
long peer_munmap(struct peer *p, unsigned long addr, size_t len);
long peer_mprotect(struct peer *p, unsigned long addr, size_t len, int prot);
long peer_madvise(struct peer *p, unsigned long addr, size_t len, int advice);
long peer_mseal(struct peer *p, unsigned long addr, size_t len);
long peer_mremap(struct peer *p, unsigned long from, size_t len,
		 unsigned long to);
long peer_setuid(struct peer *p, uid_t uid);
/* Let Yama, which may keep all but ancestors from it, admit anybody else. */
void peer_admit(struct peer *p);

/* Run fn(arg) in this process; false if a fault has put an end to it. */
bool access_run(void (*fn)(void *arg), void *arg);
/* Accesses by loads and stores of @p itself; EFAULT where that would fault. */
long peer_read(struct peer *p, unsigned long addr, void *buf, size_t len);
long peer_write(struct peer *p, unsigned long addr, const void *buf,
		size_t len);
bool peer_readable(struct peer *p, unsigned long addr);
bool peer_writable(struct peer *p, unsigned long addr);
/* Every byte, as a function of @seed and of its offset from @addr. */
long peer_fill(struct peer *p, unsigned long addr, size_t len,
	       unsigned int seed);
/* Offset of the first byte that differs, or -1; -2 on an error. */
long peer_verify(struct peer *p, unsigned long addr, size_t len,
		 unsigned int seed);
/* Some words of each @step'th page, from page @first on; as above, by page. */
long peer_stamp(struct peer *p, unsigned long addr, size_t npages,
		size_t first, size_t step, unsigned int seed);
long peer_check(struct peer *p, unsigned long addr, size_t npages,
		size_t first, size_t step, unsigned int seed);

void pattern(void *buf, size_t len, size_t off, unsigned int seed);

/* A clock that only goes forward, in milliseconds. */
long now_ms(void);

/* Of any process, by way of /proc. */
char *proc_maps(pid_t pid, unsigned long start, unsigned long end);
int proc_count_vmas(pid_t pid, unsigned long start, unsigned long end);
/* Is [addr, addr + len) mapped all over (1), in part (-1), not at all (0)? */
int proc_mapped(pid_t pid, unsigned long addr, size_t len);
int proc_find(pid_t pid, const char *name, unsigned long *start,
	      unsigned long *end);
/* The permissions ("rw-p") of the mapping at @addr; "" in a hole. */
const char *proc_perms(pid_t pid, unsigned long addr);
/* Sum over the mappings in a range of a field of smaps, in kB. */
long proc_smaps_kb(pid_t pid, unsigned long start, unsigned long end,
		   const char *field);
bool proc_vmflag(pid_t pid, unsigned long addr, const char *flag);
long proc_status_kb(pid_t pid, const char *field);
uint64_t proc_pagemap(pid_t pid, unsigned long addr);
/* Whether soft-dirty bits are tracked; clears those of the caller. */
bool soft_dirty_supported(void);
/* 0 where no page is present, or where the caller may not know */
unsigned long proc_pfn(pid_t pid, unsigned long addr);
uint64_t kpageflags(unsigned long pfn);
long kpagecount(unsigned long pfn);

/* Mappings and contents of the arena of a process. */
struct snapshot {
	char *maps;
	uint64_t hash;
};

int snapshot_take(struct snapshot *s, struct peer *p);
/* Compare to what is there now, tell of a difference, and free it. */
bool snapshot_same(struct snapshot *s, struct peer *p);

/*
 * Settings in /sys and /proc/sys. Those that were saved by the program's first
 * process, in a constructor, and written to with setting_write() by whatever process,
 * are as they were when the first process exits.
 */
void setting_save(const char *path);
int setting_read(const char *path, char *buf, size_t size);
int setting_write(const char *path, const char *val);
int setting_restore(const char *path);

/*
 * Were only the tests' names asked for, with -l? For constructors, which are not to make
 * anything then.
 */
bool nothing_runs(void);

/*
 * More that is to be undone when the first process ends. For constructors; also a signal
 * handler calls it, after all children are gone.
 */
void undo_also(void (*fn)(void));

/* Objects in use of a slab cache, or -1; what is free may count until it shrinks. */
long slab_objects(const char *name);
/* Those of mappings: anon_vma, anon_vma_chain, vm_area_struct; -1 without numbers */
#define NR_SLABS		3
int slabs_read(long *objects);
/*
 * No more than @limit above @before in each? The kernel has work of its own that
 * comes and goes: what is over is read again a few times, and then told of.
 */
bool slabs_within(const long *before, long limit);
/* Of /proc/vmstat, or -1 */
long vmstat(const char *name);
void slab_shrink(const char *name);

/* How many nodes have memory, and the first two; no more than two count. */
int memory_nodes(int *nodes);
/*
 * A process that moves pages between two nodes, of whoever maps them, until
 * it is killed or the caller ends; -1 if there can be none.
 */
pid_t start_migrating(pid_t pid, unsigned long addr, size_t nr);

/*
 * A cgroup of the test's own, in which its memory can be reclaimed. To be made
 * in a constructor; the others return NULL, or the reason why not.
 */
void cgroup_prepare(void);
const char *cgroup_missing(void);
const char *cgroup_enter(void);
int cgroup_reclaim(const char *amount);
/*
 * Reclaim until memory that the caller, in the cgroup, gives up now is lost, and
 * with it all that could be taken of what was given up before. NULL, or why that
 * does not come to pass.
 */
const char *cgroup_reclaim_given_up(void);
/* More of them; each is removed with cgroup_delete() when nobody is in it. */
int cgroup_new(const char *name, char *dir, size_t size);
void cgroup_delete(const char *dir);
/* Without a @dir, the hierarchy's root */
int cgroup_move(const char *dir, pid_t pid);
int cgroup_write(const char *dir, const char *file, const char *val);
/*
 * A number in a file of the cgroup: the one after @key, if that is not NULL.
 * Without a @dir, of the one that is entered.
 */
long cgroup_number(const char *dir, const char *file, const char *key);

/*
 * A swap device of the test's own, made in a constructor and not used until
 * swap_on(). NULL, or why there is none.
 */
void swap_prepare(void);
const char *swap_missing(void);
/* NULL, or why swapon() of what is formatted for it does not work. It is off then. */
const char *swap_refused(const char *path);
int swap_on(void);
int swap_off(void);

/* 0 if there are no huge pages, or too big ones: 512 MiB with 64 KiB pages */
size_t thp_size(void);
/* Of the smaller large folios that tests ask for, and their setting */
size_t mthp_size(void);
void mthp_setting(char *path, size_t size);
bool is_huge(pid_t pid, unsigned long addr, size_t len);

/* What is huge, or is not, stays so unless the test changes it, until settings are restored. */
#define KHUGEPAGED_SLEEP \
	"/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs"
void khugepaged_rest(void);

/* Save the settings of large folios: to be called in a constructor. */
void folios_save(void);
/*
 * Have MADV_HUGEPAGE get folios of that size, which is one of the two above, or
 * small pages where there are none. NULL, or why that cannot be.
 */
const char *folios_enable(size_t size);
/* Is all of it in folios of that size? Needs root. */
bool folios_are(pid_t pid, unsigned long addr, size_t len, size_t size);
/*
 * Have such folios at @addr, each page with a stamp of seed 1. NULL, or why not:
 * a fragmented machine may have none for some time, and this waits for them.
 */
const char *folios_map(struct peer *p, unsigned long addr, size_t len, size_t size);
/* The same with the huge zero page */
const char *folios_map_zero(struct peer *p, unsigned long addr, size_t len);
/* What these have said is no reason to skip a test in a guest of our own. */
#define NEED_LARGE(reason) do {							\
	const char *_why = (reason);						\
										\
	if (_why && !getenv("DPUT_DISPOSABLE"))					\
		SKIP(return, "%s", _why);					\
	/* In 32 bits, the harness cannot compare pointers without a warning. */	\
	ASSERT_TRUE(!_why)							\
		TH_LOG("%s", _why);						\
} while (0)

/*
 * A new file without a name: in memory, where /tmp or /dev/shm has to be a tmpfs, or in
 * the current directory
 */
enum file_where { NO_FILE, MEMFD, TMPFS, DISK };
int file_open(enum file_where where);
/* Is it on a file system that has a device? */
bool file_on_disk(int fd);

/* How many of the pages are swapped out. */
size_t pages_swapped(struct peer *p, unsigned long addr, size_t npages);
/* Swap out pages that are mapped once; false if they do not leave. */
bool pages_out(struct peer *p, unsigned long addr, size_t npages);
/* Make a device or a file something for swapon(). */
int swap_format(const char *path, size_t size);
/* Flags for swapon(): before any other. */
#define SWAP_FIRST		(SWAP_FLAG_PREFER | SWAP_FLAG_PRIO_MASK)

#define HWPOISON		"/sys/kernel/debug/hwpoison/"
#define KSM			"/sys/kernel/mm/ksm/"
void ksm_save(void);
/*
 * NULL, or why its settings cannot be changed: they are everybody's. To be asked
 * of after ksm_save().
 */
const char *ksm_missing(void);
long ksm_full_scans(void);
/* Have everything merged that can be; -1 if it cannot, or is stopped. */
int ksm_scan(void);

/*
 * Memory failure, as a process sees it. @addr is what is to be read, and then what
 * SIGBUS said, as do @code and @count, all of it since the last call.
 */
struct mce {
	unsigned long addr;
	int code, count;
};

/* Be told when it happens, or only when the memory is used */
long peer_mce_early(struct peer *p, bool early);
long peer_mce_seen(struct peer *p, struct mce *m);
/* Read what may be lost, and survive that. */
long peer_mce_probe(struct peer *p, struct mce *m);

/* A probe in a file for all processes, there until it is closed; -1 on failure */
bool uprobe_supported(void);
int uprobe_open(const char *path, unsigned long offset);

/* Pin memory for writing by an io_uring; the ring, or -1. */
int pin_memory(unsigned long addr, size_t len);

#endif
