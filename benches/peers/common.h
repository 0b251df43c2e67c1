/* What the peers' programs share: their arguments, which are those of `benches PROBE`, and the line that
 * they print, `name: sample sample …` in nanoseconds. */
#define _GNU_SOURCE
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* PROGRAM N SAMPLES MILLISECONDS [WORD] */
struct limits {
	int threads, samples;
	double budget_ns;
	const char *word;
};

static struct limits limits_of(int argc, char **argv)
{
	struct limits limits = { 1, 200, 1e9, "" };
	if (argc > 1) limits.threads = atoi(argv[1]);
	if (argc > 2) limits.samples = atoi(argv[2]);
	if (argc > 3) limits.budget_ns = atof(argv[3]) * 1e6;
	if (argc > 4) limits.word = argv[4];
	return limits;
}

static double now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

/* Calls `one` until there are enough samples or the time is over, but three times at least, after some
 * calls that do not count; prints what it returned. */
static void measure(const char *name, struct limits limits, int warm, double (*one)(void))
{
	double start = now_ns();
	for (int i = 0; i < warm && (i == 0 || now_ns() - start < limits.budget_ns); i++) one();
	printf("%s:", name);
	for (int i = 0; i < limits.samples && (i < 3 || now_ns() - start < limits.budget_ns); i++)
		printf(" %.3f", one());
	printf("\n");
	fflush(stdout);
}

static atomic_int ready;

/* Until all threads are at work, and those that are about to sleep do. */
__attribute__((unused)) static void wait_until_ready(int threads)
{
	while (atomic_load(&ready) < threads) usleep(1000);
	usleep(20000);
}

/* Waits in the kernel, to the end of the process. */
__attribute__((unused)) static void wait_forever(void)
{
	static atomic_int never;
	for (;;) syscall(SYS_futex, &never, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
}
