/* The floor of an injected call, for x86-64 alone: a handler that sets the program counter to a trampoline,
 * which saves all registers (XSAVEC for the vectors), calls a function and restores them. A sample is its
 * time less that of an empty handler, measured right before it. */
#include "common.h"
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

enum { BATCH = 100 };

static volatile int inject;
static volatile uint64_t calls;

void trampoline(void);
__attribute__((used)) void called(void) { calls++; }

__asm__(".text\n"
	"trampoline:\n"
	"	pushfq\n"
	"	push %rax\n	push %rcx\n	push %rdx\n	push %rbx\n	push %rbp\n"
	"	push %rsi\n	push %rdi\n	push %r8\n	push %r9\n	push %r10\n"
	"	push %r11\n	push %r12\n	push %r13\n	push %r14\n	push %r15\n"
	"	mov %rsp, %rbp\n"
	"	sub $0x2000, %rsp\n"
	"	and $-64, %rsp\n"
	"	movq $0, 0x200(%rsp)\n	movq $0, 0x208(%rsp)\n"
	"	movq $0, 0x210(%rsp)\n	movq $0, 0x218(%rsp)\n"
	"	movq $0, 0x220(%rsp)\n	movq $0, 0x228(%rsp)\n"
	"	movq $0, 0x230(%rsp)\n	movq $0, 0x238(%rsp)\n"
	"	mov $-1, %eax\n	mov $-1, %edx\n"
	"	xsavec (%rsp)\n"
	"	call called\n"
	"	mov $-1, %eax\n	mov $-1, %edx\n"
	"	xrstor (%rsp)\n"
	"	mov %rbp, %rsp\n"
	"	pop %r15\n	pop %r14\n	pop %r13\n	pop %r12\n	pop %r11\n"
	"	pop %r10\n	pop %r9\n	pop %r8\n	pop %rdi\n	pop %rsi\n"
	"	pop %rbp\n	pop %rbx\n	pop %rdx\n	pop %rcx\n	pop %rax\n"
	"	popfq\n"
	"	ret $128\n");

/* Steps over the undefined instruction, of two bytes. */
static void on_illegal(int signal, siginfo_t *info, void *context)
{
	greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
	(void)signal;
	(void)info;
	registers[REG_RIP] += 2;
	if (!inject) return;
	registers[REG_RSP] -= 128 + 8; /* below the red zone */
	*(greg_t *)registers[REG_RSP] = registers[REG_RIP];
	registers[REG_RIP] = (greg_t)trampoline;
}

static double raise_all(int with_call)
{
	inject = with_call;
	double begin = now_ns();
	for (int i = 0; i < BATCH; i++) __asm__ volatile("ud2" ::: "memory");
	return (now_ns() - begin) / BATCH;
}

static double difference(void)
{
	double without = raise_all(0);
	return raise_all(1) - without;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_sigaction = on_illegal, .sa_flags = SA_SIGINFO | SA_ONSTACK };
	stack_t stack = { .ss_sp = malloc(65536), .ss_size = 65536 };
	sigaltstack(&stack, NULL);
	sigaction(SIGILL, &action, NULL);
	measure("trampoline", limits_of(argc, argv), 3, difference);
	_exit(0);
}
