// SPDX-License-Identifier: GPL-2.0
/*
 * Random operations on the memory of three processes, and a model of it that
 * predicts what each of them returns, every mapping, and every byte.
 *
 *	model [--seed N] [--first N] [--sequences N] [--ops N] [--seconds N]
 *	      [--verbose]
 *
 * Each sequence of operations has processes of its own and depends on nothing
 * but the seed and its number. One that fails is printed, made as short as
 * possible; --first N --sequences 1 runs it again. DPUT_SEED, DPUT_FIRST,
 * DPUT_SEQUENCES and DPUT_SECONDS in the environment are the same as the options.
 *
 * The most frequent operation is dput(), and half of those repeat an earlier one
 * in place, in whole or in part, after something happened to either side.
 */

#define _GNU_SOURCE
#include "kselftest.h"
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "dput_util.h"

#define THP		"/sys/kernel/mm/transparent_hugepage/"

#define NR_PROCS	3	/* The caller of dput(), and two children. */
#define SMALL_PAGES	96
#define LARGE_THPS	5
#define MAX_PAGES	2560
#define FILE_PAGES	64	/* The file's size. */
#define FILE_BEYOND	8	/* So much may be mapped beyond its end. */
#define NR_IMAGES	(NR_PROCS * MAX_PAGES + 2 * FILE_PAGES + 64)
#define MAX_OPS		400
#define HISTORY		4
#define MAX_JOBS	4
#define NR_ERRORS	134

/* The model */

enum kind { HOLE, ANON, PRIVATE, SHARED };

#define GUARD		0x01	/* MADV_GUARD_INSTALL */
#define LAZY		0x02	/* MADV_FREE: zero, from some moment on */
#define EITHER		0x04	/* a copy of such a page: one or the other */
#define DONTFORK	0x08
#define WIPEONFORK	0x10

#define IMG_ZERO	0
#define IMG_FILE	(~0U)	/* what the file has there */

struct mpage {
	uint32_t img;
	uint16_t file_page;
	uint8_t kind;
	uint8_t prot;
	uint8_t flags;
};

enum what {
	OP_DPUT, OP_WRITE, OP_STAMP, OP_MMAP, OP_MUNMAP, OP_MPROTECT, OP_MREMAP,
	OP_MADVISE, OP_FORK, OP_RECLAIM, OP_WRITE_FILE, OP_READ, NR_OPS,
};

static const char * const op_names[] = {
	"dput", "write", "stamp", "mmap", "munmap", "mprotect", "mremap",
	"madvise", "fork", "reclaim", "write_file", "read",
};

#define CHECK_MAPS	1
#define CHECK_BYTES	2	/* of what the operation was about */
#define CHECK_ALL	4

/* Addresses are relative to the start of the arena. */
struct op {
	uint8_t what, p, q, check;
	bool again;		/* an earlier dput(), at the same place */
	bool by_itself;		/* called by the process whose memory it is */
	int arg;		/* protection, advice, flags, or kind of mapping */
	int prot;
	unsigned long src, dst, len;
	unsigned long step;	/* from one stamp to the next */
	uint64_t rnd;
};

enum mutation { NONE, WRONG_BYTE, WRONG_MAPPING, WRONG_RETURN, ALIASED, FORGOTTEN };

/* Shared by all processes; one at a time works on it. */
static struct shared {
	struct mpage page[NR_PROCS][MAX_PAGES];
	uint32_t file[FILE_PAGES];
	uint32_t refs[NR_IMAGES], unused[NR_IMAGES];
	unsigned int nr_unused;
	unsigned long base;
	size_t nr_pages;
	bool large;
	/* The course of events so far */
	struct op ops[MAX_OPS];
	unsigned int nr_ops, at;
	enum mutation mutation;
	bool mutated, done;
	char why[4096];
	/* Statistics */
	unsigned long count[NR_OPS], again, failed[NR_ERRORS], bytes;
	unsigned long sequences, large_sequences;
} *sh;

static unsigned char *images;
static int file_fd;

/* Each job works on a model of its own. */
static struct {
	struct shared *sh;
	unsigned char *images;
	int file_fd;
	pid_t pid;
} jobs[MAX_JOBS];

static int nr_jobs;
static cpu_set_t cpus;
static size_t ps;
static bool verbose;
static struct peer procs[NR_PROCS];
static int parent[NR_PROCS];

static void __printf(1, 2) explain(const char *fmt, ...)
{
	size_t n = strlen(sh->why);
	va_list args;

	va_start(args, fmt);
	vsnprintf(sh->why + n, sizeof(sh->why) - n, fmt, args);
	va_end(args);
}

static uint64_t rnd_state;

static uint64_t rnd64(void)
{
	/* splitmix64 */
	uint64_t z = (rnd_state += 0x9e3779b97f4a7c15ULL);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
	return z ^ (z >> 31);
}

static unsigned long below(unsigned long n)
{
	return n ? rnd64() % n : 0;
}

static bool percent(unsigned int n)
{
	return below(100) < n;
}

static unsigned char *image(uint32_t img)
{
	return images + (size_t)img * ps;
}

static void img_put(uint32_t img)
{
	if (img != IMG_ZERO && img != IMG_FILE && !--sh->refs[img])
		sh->unused[sh->nr_unused++] = img;
}

static uint32_t img_get(uint32_t img)
{
	if (img != IMG_ZERO && img != IMG_FILE)
		sh->refs[img]++;
	return img;
}

static uint32_t img_new(uint32_t from)
{
	uint32_t img;

	if (!sh->nr_unused)
		abort();
	img = sh->unused[--sh->nr_unused];
	sh->refs[img] = 1;
	memcpy(image(img), image(from), ps);
	return img;
}

static void set_img(struct mpage *pg, uint32_t img)
{
	uint32_t old = pg->img;

	pg->img = img_get(img);
	img_put(old);
}

static struct mpage *page_at(int p, unsigned long addr)
{
	return &sh->page[p][addr / ps];
}

static bool beyond_file(const struct mpage *pg)
{
	return pg->kind != HOLE && pg->img == IMG_FILE && pg->file_page >= FILE_PAGES;
}

static bool can_access(const struct mpage *pg, int prot)
{
	return pg->kind != HOLE && (pg->prot & prot) && !(pg->flags & GUARD) &&
	       !beyond_file(pg);
}

/* What a page holds. */
static uint32_t img_of(const struct mpage *pg)
{
	return pg->img == IMG_FILE ? sh->file[pg->file_page] : pg->img;
}

/* What a page holds, to be written to. */
static unsigned char *img_write(struct mpage *pg)
{
	uint32_t *img = &pg->img;
	uint32_t old;

	if (pg->kind == SHARED)
		img = &sh->file[pg->file_page];
	else if (pg->img == IMG_FILE)
		pg->img = img_get(sh->file[pg->file_page]);
	if (*img == IMG_ZERO || (sh->refs[*img] > 1 && sh->mutation != ALIASED)) {
		old = *img;
		*img = img_new(old);
		img_put(old);
	}
	return image(*img);
}

static void page_clear(struct mpage *pg)
{
	img_put(pg->img);
	*pg = (struct mpage){ .kind = HOLE };
}

/* Contents that depend on @rnd and on the place. */
static void generate(unsigned char *to, size_t len, uint64_t rnd, size_t off)
{
	size_t n;

	for (; len; len -= n, to += n, off += n) {
		uint64_t z = (rnd + off / 8) * 0x9e3779b97f4a7c15ULL;

		z ^= z >> 29;
		n = 8 - off % 8 < len ? 8 - off % 8 : len;
		memcpy(to, (char *)&z + off % 8, n);
	}
}

/* What the processes do */

struct range_arg {
	int p;
	unsigned long addr, len;	/* bytes; relative */
	unsigned long step;		/* if not 0: 8 bytes each so many */
	volatile unsigned long at;	/* how far it came */
	volatile long bad;		/* offset of a wrong byte */
	unsigned char got;
};

static bool is_zero(const unsigned char *c, size_t len)
{
	return !c[0] && !memcmp(c, c + 1, len - 1);
}

/* Compare a page. One that was given up may turn to zeroes under our eyes. */
static bool same_page(struct range_arg *a, struct mpage *pg, unsigned char *mem)
{
	unsigned char *want = image(img_of(pg));
	size_t i;

	if (!memcmp(mem, want, ps)) {
		pg->flags &= ~EITHER;
		return true;
	}
	if (pg->flags & (LAZY | EITHER) && is_zero(mem, ps)) {
		set_img(pg, IMG_ZERO);
		pg->flags &= ~(LAZY | EITHER);
		return true;
	}
	for (i = 0; i < ps - 1 && mem[i] == want[i]; i++)
		;
	a->got = mem[i];
	a->bad = i;
	return false;
}

static void verify(void *arg)
{
	struct range_arg *a = arg;

	for (; a->at < a->addr + a->len; a->at += ps) {
		struct mpage *pg = page_at(a->p, a->at);

		if (can_access(pg, PROT_READ) &&
		    !same_page(a, pg, (void *)(sh->base + a->at)))
			return;
	}
}

static void load(void *arg)
{
	struct range_arg *a = arg;

	a->got = *(volatile unsigned char *)(sh->base + a->at);
}

/* 1: a wrong byte; 2: a page cannot be read; 3: one can be that should not. */
static long peer_verify_pages(void *arg)
{
	struct range_arg *a = arg;
	int probes = 3;

	a->at = a->addr;
	a->bad = -1;
	if (!access_run(verify, a))
		return 2;
	if (a->bad >= 0)
		return 1;
	for (a->at = a->addr; a->at < a->addr + a->len && probes; a->at += ps) {
		if (can_access(page_at(a->p, a->at), PROT_READ))
			continue;
		probes--;
		if (access_run(load, a))
			return 3;
	}
	return 0;
}

static void store(void *arg)
{
	struct range_arg *a = arg;
	unsigned long end = a->addr + a->len, n;

	for (; a->at < end; a->at += n) {
		n = ps - a->at % ps;
		if (n > end - a->at)
			n = end - a->at;
		memcpy((void *)(sh->base + a->at),
		       image(img_of(page_at(a->p, a->at))) + a->at % ps,
		       a->step ? 8 : n);
		if (a->step)
			n = a->step;
	}
}

static long peer_store(void *arg)
{
	struct range_arg *a = arg;

	a->at = a->addr;
	return access_run(store, a) ? 0 : -1;
}

/* Find out what a page is that was given up, by a write that ends that. */
static void settle(void *arg)
{
	struct range_arg *a = arg;

	for (; a->at < a->addr + a->len; a->at += ps) {
		struct mpage *pg = page_at(a->p, a->at);
		unsigned char *mem = (void *)(sh->base + a->at);

		if (pg->flags & LAZY && can_access(pg, PROT_WRITE)) {
			*(volatile unsigned char *)mem = image(pg->img)[0];
			if (is_zero(mem + 1, ps - 1) && memcmp(mem, image(pg->img), ps)) {
				*(volatile unsigned char *)mem = 0;
				set_img(pg, IMG_ZERO);
			}
			pg->flags &= ~LAZY;
		}
		if (pg->flags & EITHER && can_access(pg, PROT_READ) &&
		    !same_page(a, pg, mem))
			return;
	}
}

static long peer_settle(void *arg)
{
	struct range_arg *a = arg;

	a->at = a->addr;
	a->bad = -1;
	return access_run(settle, a) && a->bad < 0 ? 0 : -1;
}

/* A byte of a page that follows the file, so that it no longer does. */
static void detach(void *arg)
{
	struct range_arg *a = arg;
	volatile unsigned char *c = (void *)(sh->base + a->addr);

	*c = *c;
}

static long peer_detach(void *arg)
{
	return access_run(detach, arg) ? 0 : -1;
}

struct dput_arg {
	unsigned long src, dst, len;
	unsigned int flags;
};

static long peer_dput_self(void *arg)
{
	struct dput_arg *a = arg;

	return sys_dput(PIDFD_SELF, a->src, PIDFD_SELF, a->dst, a->len, a->flags);
}

struct mmap_arg {
	unsigned long addr, len, off;
	int prot, flags;
};

static long peer_map_at(void *arg)
{
	struct mmap_arg *a = arg;
	void *ret;

	ret = mmap((void *)a->addr, a->len, a->prot, a->flags | MAP_FIXED,
		   a->flags & MAP_ANONYMOUS ? -1 : file_fd, a->off);
	return ret == (void *)a->addr ? 0 : -1;
}

struct remap_arg {
	unsigned long from, to, len;
};

static long peer_move(void *arg)
{
	struct remap_arg *a = arg;
	void *ret;

	ret = mremap((void *)a->from, a->len, a->len, MREMAP_MAYMOVE | MREMAP_FIXED,
		     (void *)a->to);
	return ret == MAP_FAILED ? -1 : ret != (void *)a->to;
}

static long peer_keep(void *arg)
{
	return prctl(PR_SET_PDEATHSIG, *(int *)arg);
}

/* Compare */

static void explain_page(int p, unsigned long addr)
{
	struct mpage *pg = page_at(p, addr);
	unsigned long at = sh->base + (addr & ~(ps - 1));
	unsigned long pfn = proc_pfn(procs[p].pid, at);
	char *maps = proc_maps(procs[p].pid, at, at + ps);

	explain("  predicted: kind %d prot %d flags 0x%x file page %d\n", pg->kind, pg->prot,
		pg->flags, pg->file_page);
	explain("  maps: %s%s  pagemap: 0x%llx", maps, *maps ? "" : "nothing\n",
		(unsigned long long)proc_pagemap(procs[p].pid, at));
	if (pfn)
		explain(" kpageflags: 0x%llx mapcount: %ld",
			(unsigned long long)kpageflags(pfn), kpagecount(pfn));
	explain("\n");
	free(maps);
}

static bool check_bytes(int p, unsigned long addr, unsigned long len)
{
	struct range_arg a = { .p = p };
	unsigned long end = addr + len;
	long ret;

	if (!len || addr >= sh->nr_pages * ps)
		return true;
	a.addr = addr & ~(ps - 1);
	if (end > sh->nr_pages * ps || end < addr)
		end = sh->nr_pages * ps;
	a.len = ((end + ps - 1) & ~(ps - 1)) - a.addr;
	ret = peer_call(&procs[p], peer_verify_pages, &a, sizeof(a));
	if (!ret)
		return true;
	if (ret == 1)
		explain("process %d: the byte at 0x%lx is 0x%02x and not 0x%02x\n", p,
			a.at + a.bad, a.got, image(img_of(page_at(p, a.at)))[a.bad]);
	else if (ret == 2)
		explain("process %d: 0x%lx cannot be read\n", p, a.at);
	else if (ret == 3)
		explain("process %d: 0x%lx can be read\n", p, a.at);
	else
		explain("process %d does not answer: %s\n", p, strerror(errno));
	if (ret > 0)
		explain_page(p, a.at);
	return false;
}

static bool check_maps(int p)
{
	unsigned long start, end, off, i = 0, size = sh->nr_pages * ps;
	char *maps = proc_maps(procs[p].pid, sh->base, sh->base + size);
	char perms[8], name[64], *c, *next;
	const char *wrong = NULL;

	for (c = maps; *c && !wrong; c = next) {
		next = strchr(c, '\n') + 1;
		name[0] = '\0';
		*(next - 1) = '\0';
		if (sscanf(c, "%lx-%lx %7s %lx %*s %*s %63s", &start, &end, perms, &off,
			   name) < 4) {
			wrong = "no such line is known";
			break;
		}
		*(next - 1) = '\n';
		start = start > sh->base ? start - sh->base : 0;
		end -= sh->base;
		for (; i < start && !wrong; i += ps)
			if (page_at(p, i)->kind != HOLE)
				wrong = "nothing is mapped";
		for (; i < end && i < size && !wrong; i += ps, off += ps) {
			struct mpage *pg = page_at(p, i);
			bool is_file = strstr(name, "memfd:");

			if (pg->kind == HOLE)
				wrong = "something is mapped";
			else if ((perms[0] == 'r') != !!(pg->prot & PROT_READ) ||
				 (perms[1] == 'w') != !!(pg->prot & PROT_WRITE) ||
				 (perms[2] == 'x') != !!(pg->prot & PROT_EXEC))
				wrong = "the protection is another";
			else if ((perms[3] == 's') != (pg->kind == SHARED) ||
				 is_file != (pg->kind != ANON))
				wrong = "the kind of mapping is another";
			else if (is_file && off / ps != pg->file_page)
				wrong = "it maps another part of the file";
		}
	}
	for (; i < size && !wrong; i += ps)
		if (page_at(p, i)->kind != HOLE)
			wrong = "nothing is mapped";
	if (wrong) {
		explain("process %d, at 0x%lx: %s\n", p, i - ps, wrong);
		explain_page(p, i - ps);
	}
	free(maps);
	return !wrong;
}

static bool check_all(void)
{
	int p;

	for (p = 0; p < NR_PROCS; p++)
		if (!check_maps(p) || !check_bytes(p, 0, sh->nr_pages * ps))
			return false;
	return true;
}

/* Predict and execute */

#define ERR(_e)		(1ULL << (_e))

/* The errors that may be returned; EOPNOTSUPP has a bit of its own. */
#define ERR_NOTSUPP	ERR(63)

static uint64_t err_bit(int err)
{
	return err == EOPNOTSUPP ? ERR_NOTSUPP : err < 63 ? ERR(err) : 0;
}

static bool as_predicted(long ret, uint64_t errors)
{
	int err = errno;

	if (!errors && !ret)
		return true;
	if (errors && ret == -1 && err_bit(err) & errors)
		return true;
	explain("returned %ld (%s); predicted: %s0x%llx\n", ret,
		ret ? strerror(err) : "success", errors ? "an error of " : "success ",
		(unsigned long long)errors);
	return false;
}

static bool settle_range(int p, unsigned long addr, unsigned long len)
{
	struct range_arg a = { .p = p, .addr = addr & ~(ps - 1) };
	unsigned long at, flags = 0;

	a.len = ((addr + len + ps - 1) & ~(ps - 1)) - a.addr;
	for (at = a.addr; at < a.addr + a.len; at += ps)
		flags |= page_at(p, at)->flags;
	if (!(flags & (LAZY | EITHER)))
		return true;
	if (!peer_call(&procs[p], peer_settle, &a, sizeof(a)))
		return true;
	explain("process %d: 0x%lx was given up, and is neither what it was nor zero\n",
		p, a.at);
	explain_page(p, a.at);
	return false;
}

/* Bytes at either end */
struct edge {
	unsigned long src, dst, len;
};

static int edges_of(const struct op *op, struct edge *edge, unsigned long *start,
		    unsigned long *end)
{
	unsigned long head = -op->src & (ps - 1), stop = op->src + op->len;
	int n = 0;

	*start = op->src + head;
	*end = stop & ~(ps - 1);
	if (head && op->len) {
		edge[n].src = op->src;
		edge[n++].len = head < op->len ? head : op->len;
	}
	if (*end < *start) {
		*end = *start;
	} else if (stop > *end) {
		edge[n].src = *end;
		edge[n++].len = stop - *end;
	}
	for (head = 0; head < (unsigned int)n; head++)
		edge[head].dst = edge[head].src - op->src + op->dst;
	return n;
}

static bool inside(unsigned long addr, unsigned long len)
{
	unsigned long size = sh->nr_pages * ps;

	return addr <= size && len <= size - addr;
}

static uint64_t dput_errors(const struct op *op, struct edge *edge, int nr_edges,
			    unsigned long start, unsigned long end)
{
	unsigned long lowest = op->dst & ~(ps - 1), at;
	unsigned long highest = (op->dst + op->len + ps - 1) & ~(ps - 1);
	unsigned long delta = op->dst - op->src;
	uint64_t errors = 0;
	int i;

	if (op->arg & ~(DPUT_HOLES | DPUT_NOREPLACE))
		errors |= ERR(EINVAL);
	if ((op->src ^ op->dst) % ps)
		errors |= ERR(EINVAL);
	/* Only those are outside that are outside of everything. */
	if (!inside(op->src, op->len) || !inside(op->dst, op->len))
		return errors | ERR(EINVAL) | ERR(EFAULT);
	if (errors || !op->len)
		return errors;
	if (op->p == op->q && (op->src & ~(ps - 1)) < highest &&
	    lowest < ((op->src + op->len + ps - 1) & ~(ps - 1)))
		errors |= ERR(EINVAL);
	if (op->arg & DPUT_NOREPLACE)
		for (at = lowest; at < highest; at += ps)
			if (page_at(op->q, at)->kind != HOLE)
				errors |= ERR(EEXIST);
	for (at = start; at < end; at += ps) {
		const struct mpage *pg = page_at(op->p, at);

		if (pg->kind == HOLE) {
			if (!(op->arg & DPUT_HOLES))
				errors |= ERR(EFAULT);
			continue;
		}
		if (pg->kind == SHARED || pg->flags & (DONTFORK | WIPEONFORK))
			errors |= ERR_NOTSUPP;
		if (pg->prot & PROT_EXEC && op->p != op->q)
			errors |= ERR(EACCES);
	}
	for (i = 0; i < nr_edges; i++) {
		const struct mpage *src = page_at(op->p, edge[i].src);
		const struct mpage *dst = page_at(op->q, edge[i].src + delta);

		if (src->kind == HOLE) {
			if (!(op->arg & DPUT_HOLES))
				errors |= ERR(EFAULT);
			continue;
		}
		if (!can_access(src, PROT_READ))
			errors |= ERR(EFAULT);
		if (dst->kind == HOLE && src->prot & PROT_EXEC)
			errors |= ERR(EACCES);
		if (dst->kind != HOLE && !can_access(dst, PROT_WRITE))
			errors |= ERR(EFAULT);
	}
	return errors;
}

static void apply_edge(const struct op *op, const struct edge *edge)
{
	struct mpage *src = page_at(op->p, edge->src), *dst = page_at(op->q, edge->dst);

	if (src->kind == HOLE)
		return;
	if (dst->kind == HOLE)
		*dst = (struct mpage){ .kind = ANON, .prot = src->prot };
	memmove(img_write(dst) + edge->dst % ps, image(img_of(src)) + edge->src % ps,
		edge->len);
}

static void apply_dput(const struct op *op, const struct edge *edge, int nr_edges,
		       unsigned long start, unsigned long end)
{
	bool is_new[2];
	unsigned long at;
	int i;

	for (at = start; at < end; at += ps) {
		struct mpage *src = page_at(op->p, at);
		struct mpage *dst = page_at(op->q, at - op->src + op->dst);
		struct mpage old = *dst;

		*dst = *src;
		img_get(dst->img);
		dst->flags &= GUARD | EITHER;
		if (src->flags & LAZY)
			dst->flags |= EITHER;
		img_put(old.img);
	}
	/* New pages get their bytes before old ones are written to. */
	for (i = 0; i < nr_edges; i++) {
		is_new[i] = page_at(op->q, edge[i].dst)->kind == HOLE;
		if (is_new[i])
			apply_edge(op, &edge[i]);
	}
	for (i = 0; i < nr_edges; i++)
		if (!is_new[i])
			apply_edge(op, &edge[i]);
}

static bool run_dput(const struct op *op)
{
	struct dput_arg arg = { sh->base + op->src, sh->base + op->dst, op->len, op->arg };
	unsigned long start, end;
	struct edge edge[2];
	int nr_edges, i;
	uint64_t errors;
	long ret;

	nr_edges = edges_of(op, edge, &start, &end);
	for (i = 0; i < nr_edges && inside(op->src, op->len) &&
	     inside(op->dst, op->len); i++) {
		if (!settle_range(op->p, edge[i].src, 1) ||
		    !settle_range(op->q, edge[i].dst, 1))
			return false;
		/* Nobody can tell what its bytes are. */
		if (page_at(op->p, edge[i].src)->flags & LAZY)
			return true;
	}
	errors = dput_errors(op, edge, nr_edges, start, end);
	if (sh->mutation == WRONG_RETURN && !errors && sh->at > 10) {
		errors = ERR(EINVAL);
		sh->mutated = true;
	}
	if (op->by_itself)
		ret = peer_call(&procs[op->p], peer_dput_self, &arg, sizeof(arg));
	else
		ret = peer_dput(&procs[op->p], arg.src, &procs[op->q], arg.dst, arg.len,
				arg.flags);
	if (ret && errno < NR_ERRORS)
		sh->failed[errno]++;
	if (!as_predicted(ret, errors))
		return false;
	if (!errors) {
		sh->again += op->again;
		sh->bytes += op->len;
		if (sh->mutation == FORGOTTEN && sh->at > 10 && op->len >= ps && !op->again) {
			sh->mutated = true;
			return true;
		}
		apply_dput(op, edge, nr_edges, start, end);
		return true;
	}
	/* A page that would have been written to may follow the file no more. */
	for (i = 0; i < nr_edges && inside(op->src, op->len) &&
	     inside(op->dst, op->len); i++) {
		struct mpage *pg = page_at(op->q, edge[i].dst);
		struct range_arg a = { .p = op->q, .addr = edge[i].dst };

		if (pg->kind != PRIVATE || pg->img != IMG_FILE || !can_access(pg, PROT_WRITE))
			continue;
		if (peer_call(&procs[op->q], peer_detach, &a, sizeof(a))) {
			explain("process %d: 0x%lx cannot be written\n", op->q, a.addr);
			return false;
		}
		img_write(pg);
	}
	return true;
}

/* How far a process can write from an address on, by steps of so much */
static unsigned long writable_bytes(int p, unsigned long addr, unsigned long len,
				    unsigned long step)
{
	unsigned long at, n;

	for (at = addr; at < addr + len; at += n) {
		n = step ? step : ps - at % ps;
		if (!can_access(page_at(p, at), PROT_WRITE))
			return at - addr;
	}
	return len;
}

static bool run_write(const struct op *op)
{
	struct range_arg a = {
		.p = op->p, .addr = op->dst, .len = op->len, .step = op->step,
	};
	unsigned long good = writable_bytes(op->p, op->dst, op->len, op->step), at, n;
	long ret;

	if (!settle_range(op->p, op->dst, good))
		return false;
	for (at = op->dst; at < op->dst + good; at += n) {
		unsigned char *to = img_write(page_at(op->p, at)) + at % ps;

		n = ps - at % ps;
		if (n > op->dst + good - at)
			n = op->dst + good - at;
		/* All pages are the same, for KSM; or none is. */
		if (op->step) {
			generate(to, 8, op->rnd + at, 0);
			n = op->step;
		} else {
			generate(to, n, op->rnd, op->arg ? at % ps : at);
		}
	}
	ret = peer_call(&procs[op->p], peer_store, &a, sizeof(a));
	if (good < op->len) {
		if (ret == -1 && a.at == op->dst + good)
			return true;
		explain("process %d: a write to 0x%lx should have failed\n", op->p,
			op->dst + good);
		return false;
	}
	if (!ret)
		return true;
	explain("process %d: 0x%lx cannot be written\n", op->p, a.at);
	explain_page(op->p, a.at);
	return false;
}

static bool run_write_file(const struct op *op)
{
	static unsigned char buf[65536];
	struct mpage pg = { .kind = SHARED, .img = IMG_FILE };
	unsigned long at;

	generate(buf, op->len, op->rnd, 0);
	if (pwrite(file_fd, buf, op->len, op->dst) != (ssize_t)op->len) {
		explain("write: %s\n", strerror(errno));
		return false;
	}
	for (at = 0; at < op->len; at++) {
		pg.file_page = (op->dst + at) / ps;
		img_write(&pg)[(op->dst + at) % ps] = buf[at];
	}
	return true;
}

static bool run_mmap(const struct op *op)
{
	static const int flags[] = {
		[ANON] = MAP_PRIVATE | MAP_ANONYMOUS, [PRIVATE] = MAP_PRIVATE,
		[SHARED] = MAP_SHARED,
	};
	struct mmap_arg a = {
		sh->base + op->dst, op->len, op->src, op->prot, flags[op->arg],
	};
	unsigned long at;

	if (!as_predicted(peer_call(&procs[op->p], peer_map_at, &a, sizeof(a)), 0))
		return false;
	for (at = op->dst; at < op->dst + op->len; at += ps) {
		struct mpage *pg = page_at(op->p, at);

		page_clear(pg);
		pg->kind = op->arg;
		pg->prot = op->prot;
		if (op->arg == ANON)
			continue;
		pg->img = IMG_FILE;
		pg->file_page = (op->src + at - op->dst) / ps;
	}
	return true;
}

static bool run_munmap(const struct op *op)
{
	unsigned long at;

	if (!as_predicted(peer_munmap(&procs[op->p], sh->base + op->dst, op->len), 0))
		return false;
	for (at = op->dst; at < op->dst + op->len; at += ps)
		page_clear(page_at(op->p, at));
	return true;
}

/* It stops at the first hole. */
static bool run_mprotect(const struct op *op)
{
	uint64_t errors = 0;
	unsigned long at;

	for (at = op->dst; at < op->dst + op->len; at += ps) {
		struct mpage *pg = page_at(op->p, at);

		if (pg->kind == HOLE) {
			errors = ERR(ENOMEM);
			break;
		}
		pg->prot = op->prot;
	}
	return as_predicted(peer_mprotect(&procs[op->p], sh->base + op->dst, op->len,
					  op->prot), errors);
}

/* It moves each mapping of a range, and leaves alone what would get a hole. */
static bool run_mremap(const struct op *op)
{
	struct remap_arg a = { sh->base + op->src, sh->base + op->dst, op->len };
	uint64_t errors = 0;
	unsigned long off;

	if (op->src < op->dst + op->len && op->dst < op->src + op->len)
		errors |= ERR(EINVAL);
	else if (page_at(op->p, op->src)->kind == HOLE)
		errors |= ERR(EFAULT);
	if (!as_predicted(peer_call(&procs[op->p], peer_move, &a, sizeof(a)), errors))
		return false;
	for (off = 0; off < op->len && !errors; off += ps) {
		struct mpage *src = page_at(op->p, op->src + off);
		struct mpage *dst = page_at(op->p, op->dst + off);

		if (src->kind == HOLE)
			continue;
		img_put(dst->img);
		*dst = *src;
		*src = (struct mpage){ .kind = HOLE };
	}
	return true;
}

/* False if a mapping of this kind refuses the advice. */
static bool advise_page(struct mpage *pg, int advice)
{
	switch (advice) {
	case MADV_DONTNEED:
		if (pg->kind == SHARED)
			return true;
		set_img(pg, pg->kind == ANON ? IMG_ZERO : IMG_FILE);
		pg->flags &= ~(LAZY | EITHER);
		return true;
	case MADV_FREE:
		if (pg->kind != ANON)
			return false;
		if (pg->img != IMG_ZERO)
			pg->flags |= LAZY;
		pg->flags &= ~EITHER;
		return true;
	case MADV_GUARD_INSTALL:
		if (pg->kind != SHARED)
			set_img(pg, pg->kind == ANON ? IMG_ZERO : IMG_FILE);
		pg->flags &= ~(LAZY | EITHER);
		pg->flags |= GUARD;
		return true;
	case MADV_GUARD_REMOVE:
		pg->flags &= ~GUARD;
		return true;
	case MADV_DONTFORK:
		pg->flags |= DONTFORK;
		return true;
	case MADV_DOFORK:
		pg->flags &= ~DONTFORK;
		return true;
	case MADV_WIPEONFORK:
		if (pg->kind != ANON)
			return false;
		pg->flags |= WIPEONFORK;
		return true;
	case MADV_KEEPONFORK:
		pg->flags &= ~WIPEONFORK;
		return true;
	}
	return true;
}

static bool run_madvise(const struct op *op)
{
	uint64_t errors = 0;
	unsigned long at;
	long ret;

	for (at = op->dst; at < op->dst + op->len; at += ps) {
		struct mpage *pg = page_at(op->p, at);

		if (pg->kind == HOLE) {
			errors = ERR(ENOMEM);
		} else if (!advise_page(pg, op->arg)) {
			errors = ERR(EINVAL);
			break;
		}
	}
	ret = peer_madvise(&procs[op->p], sh->base + op->dst, op->len, op->arg);
	/* It depends on what memory there is. */
	if (op->arg == MADV_COLLAPSE)
		return ret == 0 || errno != EPIPE;
	return as_predicted(ret, errors);
}

/* Process @q is replaced by a child of @p. */
static bool replace(int p, int q)
{
	int none = 0, sig = SIGKILL, i;

	/* Its own children are ours from then on. */
	peer_kill(&procs[q]);
	for (i = 1; i < NR_PROCS; i++) {
		if (i == q || parent[i] != q)
			continue;
		parent[i] = 0;
		if (peer_call(&procs[i], peer_keep, &sig, sizeof(sig)))
			return false;
	}
	if (peer_fork(&procs[p], &procs[q]))
		return false;
	parent[q] = p;
	return !p || !peer_call(&procs[q], peer_keep, &none, sizeof(none));
}

static bool run_fork(const struct op *op)
{
	unsigned long at;

	for (at = 0; at < sh->nr_pages * ps; at += ps) {
		struct mpage *src = page_at(op->p, at), *dst = page_at(op->q, at);

		page_clear(dst);
		if (src->flags & DONTFORK || src->kind == HOLE)
			continue;
		*dst = *src;
		img_get(dst->img);
		if (src->flags & WIPEONFORK) {
			set_img(dst, IMG_ZERO);
			dst->flags = WIPEONFORK;
		}
	}
	if (replace(op->p, op->q))
		return true;
	explain("fork: %s\n", strerror(errno));
	return false;
}

static bool run_op(const struct op *op)
{
	char buf[32];

	sh->count[op->what]++;
	switch (op->what) {
	case OP_DPUT:
		return run_dput(op);
	case OP_WRITE:
	case OP_STAMP:
		return run_write(op);
	case OP_MMAP:
		return run_mmap(op);
	case OP_MUNMAP:
		return run_munmap(op);
	case OP_MPROTECT:
		return run_mprotect(op);
	case OP_MREMAP:
		return run_mremap(op);
	case OP_MADVISE:
		return run_madvise(op);
	case OP_FORK:
		return run_fork(op);
	case OP_RECLAIM:
		snprintf(buf, sizeof(buf), "%lu", op->len);
		cgroup_reclaim(buf);
		return true;
	case OP_WRITE_FILE:
		return run_write_file(op);
	default:
		return check_bytes(op->p, op->dst, op->len);
	}
}

static bool run_checks(const struct op *op)
{
	bool two = op->what == OP_DPUT || op->what == OP_MREMAP;
	bool has_q = op->what == OP_DPUT || op->what == OP_FORK;
	int q = has_q ? op->q : op->p;

	if (op->what == OP_WRITE_FILE || op->what == OP_RECLAIM)
		return !(op->check & CHECK_ALL) || check_all();
	if (op->check & CHECK_ALL)
		return check_all();
	if (op->check & CHECK_MAPS && (!check_maps(op->p) || (has_q && !check_maps(q))))
		return false;
	if (!(op->check & CHECK_BYTES))
		return true;
	if (two && !check_bytes(op->p, op->src, op->len))
		return false;
	return check_bytes(q, op->dst, op->len);
}

/* Choose */

static struct {
	struct op dput[HISTORY];	/* that succeeded, or may have */
	int nr, pokes, chosen;
} past;

static unsigned long pick_len(unsigned long max)
{
	unsigned long kind = below(100), n;

	if (kind < 50)
		n = 1 + below(8);
	else if (kind < 80)
		n = 1 + below(64);
	else
		n = 1 + below(max);
	return n < max ? n : max;
}

/* A range of pages */
static void pick_pages(unsigned long *addr, unsigned long *len)
{
	unsigned long nr = sh->nr_pages, n = pick_len(nr);

	*addr = below(nr - n + 1) * ps;
	*len = n * ps;
}

/* As often as not, a range of huge pages, if there are any */
static void pick_huge(unsigned long *addr, unsigned long *len)
{
	unsigned long thp = thp_size(), n;

	if (!sh->large || percent(30)) {
		pick_pages(addr, len);
		return;
	}
	n = 1 + below(LARGE_THPS);
	*addr = below(LARGE_THPS - n + 1) * thp;
	*len = n * thp;
}

static int pick_prot(void)
{
	static const int prots[] = {
		RW, RW, RW, RW, RW, RW, PROT_READ, PROT_READ, PROT_NONE,
		PROT_READ | PROT_EXEC, RW | PROT_EXEC,
	};

	return prots[below(ARRAY_SIZE(prots))];
}

static int pick_advice(void)
{
	static const int advice[] = {
		MADV_DONTNEED, MADV_DONTNEED, MADV_FREE, MADV_FREE, MADV_PAGEOUT,
		MADV_PAGEOUT, MADV_PAGEOUT, MADV_COLD, MADV_COLLAPSE, MADV_COLLAPSE,
		MADV_HUGEPAGE, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_MERGEABLE,
		MADV_MERGEABLE, MADV_UNMERGEABLE, MADV_GUARD_INSTALL,
		MADV_GUARD_REMOVE, MADV_GUARD_REMOVE, MADV_DONTFORK, MADV_DOFORK,
		MADV_WIPEONFORK, MADV_KEEPONFORK,
	};

	return advice[below(ARRAY_SIZE(advice))];
}

static void pick_mmap(struct op *op)
{
	op->what = OP_MMAP;
	op->arg = percent(75) ? ANON : percent(80) ? PRIVATE : SHARED;
	op->prot = pick_prot();
	pick_huge(&op->dst, &op->len);
	if (op->arg == ANON)
		return;
	if (op->len > (FILE_PAGES + FILE_BEYOND) * ps)
		op->len = (FILE_PAGES + FILE_BEYOND) * ps;
	op->src = below(FILE_PAGES + FILE_BEYOND - op->len / ps + 1) * ps;
}

/* Eight bytes in some pages of a range; the first and the last ones count most. */
static void pick_stamps(struct op *op)
{
	unsigned long pages = op->len / ps;

	op->what = OP_STAMP;
	op->dst += percent(20) ? 0 : percent(25) ? ps - 8 : below(ps / 8) * 8;
	op->len -= op->dst % ps;
	op->step = (1 + pages / 48) * ps;
}

static void pick_write(struct op *op)
{
	unsigned long n = sh->nr_pages;

	op->what = OP_WRITE;
	if (percent(40)) {
		pick_huge(&op->dst, &op->len);
		pick_stamps(op);
		return;
	}
	op->arg = percent(25);
	op->len = percent(50) ? 1 + below(64) : percent(80) ? 1 + below(4 * ps) :
		  1 + below(32 * ps);
	op->dst = below(n * ps - op->len + 1);
}

static void pick_dput(struct op *op)
{
	unsigned long size = sh->nr_pages * ps, thp = thp_size(), slack;
	bool beyond;

	op->what = OP_DPUT;
	op->q = below(NR_PROCS);
	op->by_itself = op->p == op->q && percent(50);
	op->arg = percent(60) ? DPUT_HOLES : 0;
	op->arg |= percent(4) ? DPUT_NOREPLACE : 0;
	pick_huge(&op->src, &op->len);
	slack = size - op->len;
	op->dst = below(slack / ps + 1) * ps;
	/* Equal modulo the size of a huge page */
	if (sh->large && percent(40))
		op->dst = (op->src + below(LARGE_THPS) * thp) % (slack + 1) & ~(ps - 1);
	if (op->p != op->q && percent(25))
		op->dst = op->src;
	/* Ragged ends */
	if (percent(55)) {
		unsigned long cut = percent(20) ? 1 : percent(20) ? ps - 1 : below(ps);

		op->src += cut;
		op->dst += cut;
		op->len -= cut;
		op->len -= below(op->len < ps ? op->len : ps);
	}
	if (percent(3))
		op->arg |= 1 << below(16);
	if (percent(2))
		op->dst += 1 + below(ps - 1);
	beyond = percent(1);
	if (beyond) {
		unsigned long *addr = percent(50) ? &op->src : &op->dst;

		/* It ends in the last page there is, which no process has. */
		*addr = -sh->base - (*addr % ps + op->len + ps - 1) / ps * ps + *addr % ps;
	}
	/* Not of that: on s390 only the last page is beyond. */
	if (percent(1) && !beyond)
		op->len = percent(50) ? 0 : -below(size);
}

/* Something small within either range of an earlier dput() */
static void pick_poke(struct op *op)
{
	const struct op *was = &past.dput[past.chosen];
	bool at_src = percent(50);
	unsigned long addr = at_src ? was->src : was->dst, n;
	unsigned long first = addr & ~(ps - 1);
	unsigned long nr = (addr + was->len + ps - 1 - first) / ps;

	op->p = at_src ? was->p : was->q;
	n = percent(70) ? 1 + below(2) : pick_len(nr);
	if (n > nr)
		n = nr;
	op->dst = first + below(nr - n + 1) * ps;
	op->len = n * ps;
	switch (below(20)) {
	case 0 ... 5:
		op->what = OP_WRITE;
		op->len = 1 + below(op->len < 256 ? op->len : 256);
		op->dst += below(n * ps - op->len + 1);
		break;
	case 6 ... 9:
		pick_stamps(op);
		break;
	case 10 ... 11:
		op->what = OP_MPROTECT;
		op->prot = pick_prot();
		break;
	case 12:
		op->what = OP_MUNMAP;
		break;
	case 13:
		op->what = OP_MMAP;
		op->arg = ANON;
		op->prot = pick_prot();
		break;
	case 14:
		op->what = OP_MREMAP;
		op->src = op->dst;
		op->dst = below(sh->nr_pages - op->len / ps + 1) * ps;
		if (percent(50)) {
			addr = op->src;
			op->src = op->dst;
			op->dst = addr;
		}
		break;
	case 15:
		op->what = OP_READ;
		break;
	case 16:
		op->what = OP_FORK;
		op->q = 1 + below(NR_PROCS - 1);
		if (op->q == op->p)
			op->p = 0;
		op->dst = 0;
		op->len = sh->nr_pages * ps;
		break;
	default:
		op->what = OP_MADVISE;
		op->arg = pick_advice();
		break;
	}
}

static void pick_again(struct op *op)
{
	unsigned long first, n, size = sh->nr_pages * ps;
	const struct op *was = &past.dput[past.chosen];

	*op = *was;
	op->again = true;
	op->check = 0;
	switch (below(10)) {
	case 0 ... 4:
		break;
	case 5 ... 6:
		/* A part, of whole pages */
		first = (-op->src) & (ps - 1);
		if (op->len < first + ps)
			break;
		n = (op->len - first) / ps;
		first += below(n) * ps;
		n = 1 + below((op->len - first) / ps);
		op->src += first;
		op->dst += first;
		op->len = n * ps;
		break;
	case 7:
		/* Any part */
		first = below(op->len);
		op->src += first;
		op->dst += first;
		op->len = 1 + below(op->len - first);
		break;
	case 8:
		/* Back to where it came from */
		op->p = was->q;
		op->q = was->p;
		op->src = was->dst;
		op->dst = was->src;
		break;
	case 9:
		/* More than before */
		n = below(4 * ps);
		if (op->src + op->len + n <= size && op->dst + op->len + n <= size)
			op->len += n;
		break;
	}
	op->by_itself = op->p == op->q && percent(50);
	if (percent(50))
		op->arg = percent(70) ? DPUT_HOLES : 0;
}

static void remember(const struct op *op)
{
	if (op->again || !op->len || !inside(op->src, op->len) || !inside(op->dst, op->len) ||
	    (op->src ^ op->dst) % ps)
		return;
	past.dput[past.nr < HISTORY ? past.nr : (int)below(HISTORY)] = *op;
	if (past.nr < HISTORY)
		past.nr++;
}

static void pick(struct op *op, unsigned int at)
{
	unsigned int kind = below(100);

	*op = (struct op){ .p = below(NR_PROCS), .rnd = rnd64() };
	/* To begin with, there has to be something. */
	if (at < 3 * NR_PROCS) {
		op->p = at / 3;
		op->len = sh->nr_pages * ps;
		if (at % 3 == 0) {
			op->what = OP_MMAP;
			op->arg = ANON;
			op->prot = RW;
		} else if (at % 3 == 1) {
			op->what = OP_MADVISE;
			op->arg = percent(70) ? MADV_HUGEPAGE : MADV_NOHUGEPAGE;
		} else {
			pick_stamps(op);
			op->step = sh->large ? op->step : ps;
		}
	} else if (past.pokes > 1) {
		past.pokes--;
		pick_poke(op);
	} else if (past.pokes == 1) {
		past.pokes = percent(60) ? 1 + below(3) : 0;
		pick_again(op);
	} else if (past.nr && percent(35)) {
		past.chosen = below(past.nr);
		past.pokes = 1 + below(4);
		pick_poke(op);
	} else if (kind < 40) {
		pick_dput(op);
	} else if (kind < 60) {
		pick_write(op);
	} else if (kind < 68) {
		pick_mmap(op);
	} else if (kind < 70) {
		op->what = OP_MUNMAP;
		pick_pages(&op->dst, &op->len);
	} else if (kind < 76) {
		op->what = OP_MPROTECT;
		op->prot = pick_prot();
		pick_pages(&op->dst, &op->len);
	} else if (kind < 80) {
		op->what = OP_MREMAP;
		pick_huge(&op->src, &op->len);
		op->dst = below(sh->nr_pages - op->len / ps + 1) * ps;
	} else if (kind < 92) {
		op->what = OP_MADVISE;
		op->arg = pick_advice();
		pick_huge(&op->dst, &op->len);
	} else if (kind < 95) {
		op->what = OP_FORK;
		op->q = 1 + below(NR_PROCS - 1);
		if (op->q == op->p)
			op->p = 0;
		op->len = sh->nr_pages * ps;
	} else if (kind < 97) {
		op->what = OP_WRITE_FILE;
		op->len = 1 + below(4096);
		op->dst = below(FILE_PAGES * ps - op->len + 1);
	} else if (kind < 98) {
		op->what = OP_RECLAIM;
		op->len = (1 + below(64)) * ps;
	} else {
		op->what = OP_READ;
		pick_pages(&op->dst, &op->len);
	}
	op->check = (percent(15) ? CHECK_MAPS : 0) | (percent(30) ? CHECK_BYTES : 0) |
		    (percent(2) ? CHECK_ALL : 0);
	if (op->what == OP_DPUT)
		remember(op);
}

static void print_op(unsigned int nr, const struct op *op)
{
	static const char * const kinds[] = { "", "anonymous", "private", "shared" };

	printf("#   %3u: %s: %d", nr, op_names[op->what], op->p);
	switch (op->what) {
	case OP_DPUT:
		printf(" 0x%lx to %d 0x%lx, 0x%lx, flags 0x%x%s%s", op->src, op->q, op->dst,
		       op->len, op->arg, op->by_itself ? ", by itself" : "",
		       op->again ? ", again" : "");
		break;
	case OP_MREMAP:
		printf(" 0x%lx to 0x%lx, 0x%lx", op->src, op->dst, op->len);
		break;
	case OP_FORK:
		printf(" becomes the parent of a new %d", op->q);
		break;
	case OP_MMAP:
		printf(" 0x%lx, 0x%lx, prot %d, %s", op->dst, op->len, op->prot,
		       kinds[op->arg]);
		if (op->arg != ANON)
			printf(", file from 0x%lx", op->src);
		break;
	case OP_MPROTECT:
		printf(" 0x%lx, 0x%lx, prot %d", op->dst, op->len, op->prot);
		break;
	case OP_MADVISE:
		printf(" 0x%lx, 0x%lx, advice %d", op->dst, op->len, op->arg);
		break;
	default:
		printf(" 0x%lx, 0x%lx%s", op->dst, op->len,
		       op->what == OP_WRITE && op->arg ? ", all pages the same" : "");
		break;
	}
	printf(op->check ? ", check 0x%x\n" : "\n", op->check);
}

/* Sequences */

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

static void model_reset(bool large)
{
	size_t thp = thp_size();
	int p, i;

	memset(sh->page, 0, sizeof(sh->page));
	sh->nr_unused = 0;
	for (i = NR_IMAGES - 1; i > FILE_PAGES; i--)
		sh->unused[sh->nr_unused++] = i;
	/* What the file was at first is in the images after IMG_ZERO. */
	for (i = 0; i < FILE_PAGES; i++) {
		sh->refs[1 + i] = 2;
		if (sh->file[i] == (uint32_t)1 + i)
			continue;
		sh->file[i] = 1 + i;
		generate(image(1 + i), ps, 77, i * ps);
		if (pwrite(file_fd, image(1 + i), ps, i * ps) != (ssize_t)ps)
			abort();
	}
	/* Across the boundary of a page table, and of one of the next level */
	sh->large = large;
	sh->nr_pages = large ? LARGE_THPS * thp / ps : SMALL_PAGES;
	sh->base = ARENA + (1UL << 30) - (large ? 2 * thp : SMALL_PAGES / 3 * ps);
	sh->at = 0;
	sh->mutated = false;
	sh->done = false;
	sh->why[0] = '\0';
	for (p = 0; p < NR_PROCS; p++)
		parent[p] = 0;
	memset(&past, 0, sizeof(past));
}

static void mutate_at_end(void)
{
	int p = below(NR_PROCS), i;

	for (i = 0; i < NR_PROCS * (int)sh->nr_pages; i++) {
		unsigned long at = i % sh->nr_pages * ps;
		struct mpage *pg = page_at((p + i / sh->nr_pages) % NR_PROCS, at);

		if (pg->kind != ANON || !can_access(pg, PROT_READ) || pg->flags & (LAZY | EITHER))
			continue;
		if (sh->mutation == WRONG_BYTE)
			img_write(pg)[below(ps)] ^= 1 << below(8);
		else
			pg->prot ^= PROT_EXEC;
		sh->mutated = true;
		return;
	}
}

/* One sequence, new or, with @replay, what is in sh->ops. */
static void run_sequence(unsigned int nr_ops, bool replay)
{
	bool ok = true;
	unsigned int i;
	int p;

	prctl(PR_SET_CHILD_SUBREAPER, 1);
	peer_self(&procs[0]);
	for (p = 1; p < NR_PROCS; p++) {
		if (peer_start(&procs[p])) {
			explain("fork: %s\n", strerror(errno));
			return;
		}
	}
	for (i = 0; i < nr_ops && ok; i++) {
		sh->at = i;
		if (!replay) {
			pick(&sh->ops[i], i);
			sh->nr_ops = i + 1;
		}
		if (verbose) {
			print_op(i, &sh->ops[i]);
			fflush(stdout);
		}
		ok = run_op(&sh->ops[i]) && run_checks(&sh->ops[i]);
	}
	if (ok && (sh->mutation == WRONG_BYTE || sh->mutation == WRONG_MAPPING))
		mutate_at_end();
	if (ok) {
		sh->at = nr_ops;
		ok = check_all();
	}
	for (p = 1; p < NR_PROCS; p++)
		peer_kill(&procs[p]);
	sh->done = ok;
}

/* In a process of its own, which may die of it. True if all is well. */
static bool try_sequence(unsigned int nr_ops, bool large, bool replay)
{
	int status;
	pid_t pid;

	model_reset(large);
	fflush(stdout);
	pid = fork();
	if (pid < 0)
		ksft_exit_fail_msg("fork: %s\n", strerror(errno));
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		run_sequence(nr_ops, replay);
		fflush(stdout);
		_exit(0);
	}
	if (waitpid(pid, &status, 0) != pid)
		ksft_exit_fail_msg("waitpid: %s\n", strerror(errno));
	if (status)
		explain("the caller died of signal %d\n", WTERMSIG(status));
	return sh->done && !status;
}

/* Leave out what is not needed for a failure. */
static void shrink(bool large)
{
	unsigned int n = sh->nr_ops, chunk, i, cut, tries = 0;
	static struct op ops[MAX_OPS];
	double start = now();

	memcpy(ops, sh->ops, sizeof(ops));
	if (try_sequence(n, large, true)) {
		printf("# It did not fail again when it was replayed.\n");
		memcpy(sh->ops, ops, sizeof(ops));
		return;
	}
	n = sh->at < n ? sh->at + 1 : n;
	memcpy(ops, sh->ops, n * sizeof(*ops));
	for (chunk = n / 2; chunk && now() - start < 60; ) {
		bool smaller = false;

		for (i = 0; i < n && now() - start < 60; ) {
			cut = chunk < n - i ? chunk : n - i;
			memcpy(sh->ops, ops, i * sizeof(*ops));
			memcpy(sh->ops + i, ops + i + cut, (n - i - cut) * sizeof(*ops));
			tries++;
			if (n - cut && !try_sequence(n - cut, large, true)) {
				n -= cut;
				memcpy(ops, sh->ops, n * sizeof(*ops));
				smaller = true;
			} else {
				i += cut;
			}
		}
		if (chunk == 1 && !smaller)
			break;
		if (!smaller || chunk > n / 2)
			chunk = chunk > 1 ? chunk / 2 : 1;
	}
	memcpy(sh->ops, ops, sizeof(ops));
	sh->nr_ops = n;
	try_sequence(n, large, true);
	printf("# Shrunk to %u operations, in %u runs:\n", n, tries);
}

static void print_lines(const char *text)
{
	const char *end;

	for (; *text; text = end) {
		end = strchr(text, '\n');
		end = end ? end + 1 : text + strlen(text);
		printf("# %.*s", (int)(end - text), text);
	}
}

static unsigned long seed = 1, first, sequences = 2000, seconds;
static unsigned int nr_ops = 50;

/* Every so many sequences, one with huge pages */
#define LARGE_EVERY	12
/* And one that runs on all CPUs */
#define SPREAD_EVERY	5

static bool is_large(unsigned long sequence)
{
	size_t thp = thp_size();

	return sequence % LARGE_EVERY == LARGE_EVERY - 1 && thp &&
	       LARGE_THPS * thp <= MAX_PAGES * ps;
}

static void start_sequence(unsigned long sequence)
{
	/* Mixed, or each sequence would be the one before without its start. */
	rnd_state = seed;
	rnd_state = rnd64() ^ sequence;
	rnd_state = rnd64();
}

static void report_failure(unsigned long s)
{
	unsigned int i;

	printf("# seed %lu, sequence %lu failed at operation %u of:\n", seed, s, sh->at);
	for (i = 0; i < sh->nr_ops; i++)
		print_op(i, &sh->ops[i]);
	print_lines(sh->why);
	fflush(stdout);
	shrink(is_large(s));
	for (i = 0; i < sh->nr_ops; i++)
		print_op(i, &sh->ops[i]);
	print_lines(sh->why);
	printf("# To see it again: model --seed %lu --first %lu --sequences 1 --ops %u --verbose\n",
	       seed, s, nr_ops);
	fflush(stdout);
}

static void use_job(int i)
{
	sh = jobs[i].sh;
	images = jobs[i].images;
	file_fd = jobs[i].file_fd;
}

/*
 * On one CPU, messages are much faster. On several, there are more translation
 * lookaside buffers that can be wrong.
 */
static void pin(int job, unsigned long sequence)
{
	cpu_set_t set;
	int cpu;

	sched_setaffinity(0, sizeof(cpus), &cpus);
	if (sequence % SPREAD_EVERY == 0)
		return;
	for (cpu = 0; !CPU_ISSET(cpu, &cpus) || job--; cpu++)
		;
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	sched_setaffinity(0, sizeof(set), &set);
}

/* Every nr_jobs'th sequence; false if one has failed. */
static bool run_job(int job)
{
	double start = now(), said = start;
	unsigned long s;

	for (s = first + job; seconds ? now() - start < seconds : s < first + sequences;
	     s += nr_jobs) {
		start_sequence(s);
		pin(job, s);
		if (verbose)
			printf("# sequence %lu\n", s);
		if (now() - said > 20 && !job) {
			said = now();
			printf("# seed %lu, sequence %lu\n", seed, s);
			fflush(stdout);
		}
		sh->sequences++;
		sh->large_sequences += is_large(s);
		if (!try_sequence(nr_ops, is_large(s), false)) {
			report_failure(s);
			return false;
		}
	}
	return true;
}

static void print_statistics(double took)
{
	struct shared sum = {};
	int job, i;

	for (job = 0; job < nr_jobs; job++) {
		for (i = 0; i < NR_OPS; i++)
			sum.count[i] += jobs[job].sh->count[i];
		for (i = 0; i < NR_ERRORS; i++)
			sum.failed[i] += jobs[job].sh->failed[i];
		sum.sequences += jobs[job].sh->sequences;
		sum.large_sequences += jobs[job].sh->large_sequences;
		sum.again += jobs[job].sh->again;
		sum.bytes += jobs[job].sh->bytes;
	}
	printf("# seed %lu: %lu sequences, %lu of them with huge pages, in %.0f s\n", seed,
	       sum.sequences, sum.large_sequences, took);
	printf("# operations:");
	for (i = 0; i < NR_OPS; i++)
		printf(" %lu %s%s", sum.count[i], op_names[i], i < NR_OPS - 1 ? "," : "\n");
	printf("# dput() copied %lu MiB, %lu times again; it failed as predicted with",
	       sum.bytes >> 20, sum.again);
	for (i = 0; i < NR_ERRORS; i++)
		if (sum.failed[i])
			printf(" %s (%lu)", strerrorname_np(i), sum.failed[i]);
	printf("\n");
}

/* One job on each CPU: each does one thing at a time. */
static bool run_all(void)
{
	double start = now();
	bool ok = true;
	int i, status;

	fflush(stdout);
	for (i = 0; i < nr_jobs; i++) {
		jobs[i].pid = fork();
		if (jobs[i].pid < 0)
			ksft_exit_fail_msg("fork: %s\n", strerror(errno));
		if (jobs[i].pid)
			continue;
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		use_job(i);
		ok = run_job(i);
		fflush(stdout);
		_exit(!ok);
	}
	for (i = 0; i < nr_jobs; i++)
		if (waitpid(jobs[i].pid, &status, 0) != jobs[i].pid || status)
			ok = false;
	print_statistics(now() - start);
	return ok;
}

/* The model must see that it is wrong. */
static bool notices(enum mutation mutation, bool always)
{
	unsigned int mutated = 0, noticed = 0, s;

	sh->mutation = mutation;
	pin(0, 1);
	for (s = 0; s < 8; s++) {
		start_sequence(1000000 + s);
		if (!try_sequence(nr_ops, false, false))
			noticed++;
		mutated += sh->mutated || mutation == ALIASED;
	}
	sh->mutation = NONE;
	/* What is the file's may have been written to: make it anew. */
	memset(sh->file, 0, sizeof(sh->file));
	printf("# noticed %u of %u\n", noticed, mutated);
	return mutated >= 4 && (always ? noticed == mutated : noticed >= mutated / 2);
}

static void __attribute__((constructor)) prepare(void)
{
	char path[128];

	if (!dput_supported())
		return;
	swap_prepare();
	cgroup_prepare();
	ksm_save();
	if (!thp_size())
		return;
	setting_save(THP "enabled");
	setting_save(THP "hugepages-64kB/enabled");
	snprintf(path, sizeof(path), THP "hugepages-%zukB/enabled", thp_size() >> 10);
	setting_save(path);
}

static const char *add_job(int i)
{
	sh = mmap(NULL, sizeof(*sh), RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	images = mmap(NULL, NR_IMAGES * ps, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (sh == MAP_FAILED || images == MAP_FAILED)
		return "no memory for the model";
	/* The model itself is not what is to be swapped out. */
	mlock2(sh, sizeof(*sh), MLOCK_ONFAULT);
	mlock2(images, NR_IMAGES * ps, MLOCK_ONFAULT);
	file_fd = memfd_create("model", 0);
	if (file_fd < 0 || ftruncate(file_fd, FILE_PAGES * ps))
		return "no memfd";
	jobs[i].sh = sh;
	jobs[i].images = images;
	jobs[i].file_fd = file_fd;
	return NULL;
}

static const char *set_up(void)
{
	const char *reason;
	char path[128];
	int i;

	reason = cgroup_enter();
	for (i = 0; i < nr_jobs && !reason; i++)
		reason = add_job(i);
	if (!reason)
		reason = swap_missing();
	if (reason)
		return reason;
	if (swap_on())
		return "cannot swap";
	use_job(0);
	if (!ksm_missing()) {
		setting_write(KSM "sleep_millisecs", "20");
		setting_write(KSM "run", "1");
	}
	setting_write(THP "enabled", "madvise");
	setting_write(THP "hugepages-64kB/enabled", "madvise");
	snprintf(path, sizeof(path), THP "hugepages-%zukB/enabled", thp_size() >> 10);
	setting_write(path, "inherit");
	return NULL;
}

static void number(const char *s, unsigned long *n)
{
	if (s && *s)
		*n = strtoul(s, NULL, 0);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "seed", 1, NULL, 's' }, { "first", 1, NULL, 'f' },
		{ "sequences", 1, NULL, 'n' }, { "ops", 1, NULL, 'o' },
		{ "seconds", 1, NULL, 't' }, { "verbose", 0, NULL, 'v' }, {}
	};
	unsigned long ops = nr_ops;
	const char *reason;
	int c;

	number(getenv("DPUT_SEED"), &seed);
	number(getenv("DPUT_FIRST"), &first);
	number(getenv("DPUT_SEQUENCES"), &sequences);
	number(getenv("DPUT_SECONDS"), &seconds);
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 's':
			number(optarg, &seed);
			break;
		case 'f':
			number(optarg, &first);
			break;
		case 'n':
			number(optarg, &sequences);
			break;
		case 'o':
			number(optarg, &ops);
			break;
		case 't':
			number(optarg, &seconds);
			break;
		case 'v':
			verbose = true;
			break;
		default:
			return 2;
		}
	}
	nr_ops = ops < MAX_OPS ? ops : MAX_OPS;
	ps = page_size();
	sched_getaffinity(0, sizeof(cpus), &cpus);
	nr_jobs = CPU_COUNT(&cpus);
	if (verbose)
		nr_jobs = 1;
	else if (nr_jobs > MAX_JOBS)
		nr_jobs = MAX_JOBS;

	ksft_print_header();
	if (!dput_supported())
		ksft_exit_skip("dput() is not supported\n");
	reason = set_up();
	if (reason)
		ksft_exit_skip("%s\n", reason);
	if (verbose) {
		ksft_set_plan(1);
		ksft_test_result(run_all(), "random sequences\n");
		ksft_finished();
	}
	ksft_set_plan(6);
	ksft_test_result(notices(WRONG_BYTE, true), "a wrong byte is noticed\n");
	ksft_test_result(notices(WRONG_MAPPING, true), "a wrong mapping is noticed\n");
	ksft_test_result(notices(WRONG_RETURN, true), "a wrong return value is noticed\n");
	ksft_test_result(notices(ALIASED, false), "a write on the other side is noticed\n");
	ksft_test_result(notices(FORGOTTEN, false), "a copy that was not made is noticed\n");
	memset(sh->count, 0, sizeof(*sh) - offsetof(struct shared, count));
	ksft_test_result(run_all(), "random sequences\n");
	ksft_finished();
}
