// SPDX-License-Identifier: GPL-2.0
/*
 * A QEMU plugin that counts the instructions the guest executes between two
 * addresses: from where profile_begin() of bench.c runs to profile_end().
 *
 *	-plugin profile.so,begin=ADDRESS,end=ADDRESS,out=FILE
 *
 * Writes a line for each block of code that ran: its address, its length and
 * how often it ran; qemu/bench-report adds them up by function. Debian ships no
 * header for plugins, so what is needed of it is declared here.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef uint64_t qemu_plugin_id_t;

size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *tb);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id,
		void (*cb)(qemu_plugin_id_t id, struct qemu_plugin_tb *tb));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *tb,
		void (*cb)(unsigned int cpu, void *data), int flags, void *data);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t id,
		void (*cb)(qemu_plugin_id_t id, void *data), void *data);

/* It has no more to say than this, so any version that QEMU knows will do. */
__attribute__((visibility("default"))) int qemu_plugin_version = PLUGIN_VERSION;

/* One for each block of code that was translated, for ever. */
struct block {
	struct block *next;
	uint64_t addr, len, ran;
	bool begins, ends;
};

static struct block *blocks;
static uint64_t begin, end;
static bool on;
static FILE *out;

static void executed(unsigned int cpu, void *data)
{
	struct block *block = data;

	(void)cpu;
	if (block->begins)
		on = true;
	if (block->ends)
		on = false;
	if (on)
		block->ran++;
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	struct block *block = calloc(1, sizeof(*block));

	(void)id;
	if (!block)
		abort();
	block->addr = qemu_plugin_tb_vaddr(tb);
	block->len = qemu_plugin_tb_n_insns(tb);
	block->begins = block->addr == begin;
	block->ends = block->addr == end;
	block->next = blocks;
	blocks = block;
	qemu_plugin_register_vcpu_tb_exec_cb(tb, executed, 0, block);
}

static void at_exit(qemu_plugin_id_t id, void *data)
{
	struct block *block;

	(void)id;
	(void)data;
	for (block = blocks; block; block = block->next)
		if (block->ran)
			fprintf(out, "%" PRIx64 " %" PRIu64 " %" PRIu64 "\n",
				block->addr, block->len, block->ran);
	fclose(out);
}

__attribute__((visibility("default")))
int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc,
			char **argv)
{
	int i;

	(void)info;
	for (i = 0; i < argc; i++) {
		if (!strncmp(argv[i], "begin=", 6))
			begin = strtoull(argv[i] + 6, NULL, 0);
		else if (!strncmp(argv[i], "end=", 4))
			end = strtoull(argv[i] + 4, NULL, 0);
		else if (!strncmp(argv[i], "out=", 4))
			out = fopen(argv[i] + 4, "w");
	}
	if (!begin || !end || !out)
		return -1;
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	qemu_plugin_register_atexit_cb(id, at_exit, NULL);
	return 0;
}
