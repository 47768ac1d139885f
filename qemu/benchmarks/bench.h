/* SPDX-License-Identifier: GPL-2.0 */
/* What the measurements share: a clock, figures, areas, and a peer process. */
#ifndef BENCH_H
#define BENCH_H

#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#ifndef __NR_dput
#define __NR_dput	473
#endif
#ifndef PIDFD_SELF
#define PIDFD_SELF	(-10000)
#endif

#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))

#define PAGE		4096UL
#define KIB		(1UL << 10)
#define MIB		(1UL << 20)
#define GIB		(1UL << 30)
#define HUGE		(2 * MIB)
#define SHIFTED		(3 * PAGE)	/* an offset at which no huge page fits */

/* ---- Figures ---- */

extern bool exact;			/* the clock counts instructions */
extern size_t most;			/* no region is larger; 0: as large as it goes */

uint64_t now(void);
/* A measured stretch; what --profile names is what the profile covers. */
uint64_t begin(const char *series);
uint64_t end(const char *series, uint64_t x, uint64_t start);
/* A figure that is no time: a ratio's part, pages, bytes. */
void sample(const char *series, uint64_t x, const char *unit, uint64_t value);

#define MEASURE(series, x, what) \
	({ uint64_t start_ = begin(series); what; end(series, x, start_); })

/* Let the kernel finish what was put off: freed page tables, free pages. */
void settle(void);

/* ---- Areas, 4 GiB apart so that none shares a page table with another ---- */

enum kind { SMALL, MTHP, THP };
extern const char *const kind_name[];

void *fresh_src(void);
unsigned long fresh_dst(void);
void *map(void *at, size_t len, enum kind kind);	/* anonymous, fixed */
void *map_file(void *at, size_t len, int fd, int flags);
int new_memfd(size_t len);
void unmap(void *at, size_t len);
void touch(void *at, size_t len, size_t step);		/* a write each */
/* To prepare, without a fault each: */
void populate(void *at, size_t len);
void fill(void *at, size_t len);			/* no page like another */
void set_mthp(bool on);					/* 64 KiB */

/* ---- The peer: a process that was started before there was any data ---- */

struct peer {
	pid_t pid;
	int fd, sock, pipe;
};

extern struct peer peer;

enum peer_op {
	P_MAP, P_UNMAP, P_TOUCH, P_FILL, P_READ, P_PIPE, P_SHARED, P_SUM, P_STALL,
	P_STALLED, P_EXIT
};

void peer_start(struct peer *p);
void peer_stop(struct peer *p);
/* Returns how long it took, or for P_STALLED the longest fault. */
uint64_t peer_do(struct peer *p, enum peer_op op, unsigned long addr,
		 size_t len, unsigned long arg);
void peer_begin(struct peer *p, enum peer_op op, unsigned long addr,
		size_t len, unsigned long arg);
uint64_t peer_end(struct peer *p);
bool peer_ended(struct peer *p);

/* ---- The calls that are compared; each ends the program if it fails ---- */

void dput_to(struct peer *p, unsigned long dst, void *src, size_t len);
void writev_to(struct peer *p, unsigned long dst, void *src, size_t len);
void dput_self(void *dst, void *src, size_t len);
pid_t fork_raw(void);			/* the child has exited or will */
/* fork()'s share for a region: one fork() without it, one with it. */
void fork_share(const char *without, const char *with, uint64_t x, void *src,
		size_t len);
void reap(pid_t pid);

/* ---- A thread that writes to pages and notes the longest stall ---- */

void stall_start(void *at, size_t len);
uint64_t stall_end(void);
void longest_stalls(void);		/* of a fault during a call */

/* ---- Cases ---- */

struct bench {
	const char *name;
	void (*run)(void);
	const char *group;
};

extern bool base_only;			/* the kernel has no dput() */
/* The size of a region that should be so large. */
static inline size_t region(size_t len)
{
	return most && len > most ? most : len;
}

extern const struct bench target_cases[], copy_cases[], after_cases[],
			  growth_cases[], side_cases[], real_cases[];

#endif
