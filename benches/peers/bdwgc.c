/* A stop of the world by the Boehm-Demers-Weiser collector, which signals each thread. The threads spin
 * (`spin`), or wait in a region that the collector knows of (`safe`), which it need not signal. */
#define GC_THREADS
#include <gc.h>
#include "common.h"
#include <pthread.h>

static struct limits limits;

static void *region(void *unused)
{
	(void)unused;
	wait_forever();
	return NULL;
}

static void *thread(void *unused)
{
	atomic_fetch_add(&ready, 1);
	if (!strcmp(limits.word, "safe")) GC_do_blocking(region, unused);
	for (volatile uint64_t n = 0;; n++) {}
	return NULL;
}

static double stop(void)
{
	double begin = now_ns();
	GC_stop_world_external();
	double time = now_ns() - begin;
	GC_start_world_external();
	usleep(500);
	return time;
}

int main(int argc, char **argv)
{
	pthread_attr_t small;
	limits = limits_of(argc, argv);
	GC_INIT();
	GC_allow_register_threads();
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 128 * 1024);
	for (int i = 0; i < limits.threads; i++) {
		pthread_t id;
		if (GC_pthread_create(&id, &small, thread, NULL)) {
			fprintf(stderr, "pthread_create failed at thread %d\n", i);
			return 1;
		}
	}
	wait_until_ready(limits.threads);
	measure("bdwgc", limits, 3, stop);
	_exit(0);
}
