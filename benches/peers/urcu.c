/* A read-side section of userspace RCU, flavour memb: what it has of a safe region, one way. A sample is
 * the time of one section. */
#define RCU_MEMBARRIER
#include <urcu.h>
#include "common.h"

enum { BATCH = 100000 };

static double sections(void)
{
	double begin = now_ns();
	for (int i = 0; i < BATCH; i++) {
		rcu_read_lock();
		__asm__ volatile("" ::: "memory");
		rcu_read_unlock();
	}
	return (now_ns() - begin) / BATCH;
}

int main(int argc, char **argv)
{
	rcu_register_thread();
	measure("urcu", limits_of(argc, argv), 1, sections);
	_exit(0);
}
