// SPDX-License-Identifier: GPL-2.0
/*
 * A 32-bit process that makes the system calls that compat.c asks it for. Built
 * against nolibc, for there may be no 32-bit C library.
 */

struct request {
	unsigned int nr;
	unsigned int arg[6];
};

int main(void)
{
	struct request r;
	int ret;

	while (read(0, &r, sizeof(r)) == sizeof(r)) {
		ret = __nolibc_syscall6(r.nr, r.arg[0], r.arg[1], r.arg[2], r.arg[3],
					r.arg[4], r.arg[5]);
		if (write(1, &ret, sizeof(ret)) != sizeof(ret))
			return 1;
	}
	return 0;
}
