/* A call on every thread: `setresuid` of glibc, of musl (built with musl-gcc), or, with -DPSX, of libpsx.
 * The threads are parked, in a system call (`read`), or spinning (`spin`); `batch` makes five calls. */
#include "common.h"
#include <pthread.h>
#include <sched.h>
#ifdef PSX
#include <sys/psx_syscall.h>
#endif

static struct limits limits;
static int pipe_ends[2], calls = 1;

static void *thread(void *unused)
{
	char byte;
	(void)unused;
	atomic_fetch_add(&ready, 1);
	if (!strcmp(limits.word, "spin")) for (;;) __asm__ volatile("");
	if (!strcmp(limits.word, "read")) for (;;) if (read(pipe_ends[0], &byte, 1) == 0) break;
	wait_forever();
	return NULL;
}

static double operation(void)
{
	uid_t uid = getuid();
	double begin = now_ns();
	for (int i = 0; i < calls; i++) {
#ifdef PSX
		long failed = psx_syscall3(SYS_setresuid, uid, uid, uid);
#else
		long failed = setresuid(uid, uid, uid);
#endif
		if (failed) {
			perror("setresuid");
			_exit(1);
		}
	}
	return now_ns() - begin;
}

int main(int argc, char **argv)
{
	pthread_attr_t small;
	limits = limits_of(argc, argv);
	if (!strcmp(limits.word, "batch")) calls = 5;
	if (pipe(pipe_ends)) return 1;
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 128 * 1024);
	for (int i = 0; i < limits.threads; i++) {
		pthread_t id;
		if (pthread_create(&id, &small, thread, NULL)) {
			fprintf(stderr, "pthread_create failed at thread %d\n", i);
			return 1;
		}
	}
	wait_until_ready(limits.threads);
	measure(NAME, limits, 2, operation);
	_exit(0);
}
