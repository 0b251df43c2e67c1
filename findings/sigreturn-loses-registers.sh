#!/bin/sh
# Linux loses registers in rt_sigreturn when it is preempted there: on riscv64 floating-point
# registers, on s390x access registers.
#
# The kernel copies them from the frame into the thread's saved state and then loads them from there
# (`restore_fp_state` in arch/riscv/kernel/signal.c; `restore_sigregs` and `load_sigregs` in
# arch/s390/kernel/signal.c). A switch to another thread between the two saves the registers as they
# are, the handler's, over what was copied. A handler that loads them from its frame as the last
# thing loses nothing: then both are the same. Kernels without preemption (Debian's 6.12) show none.
#
# Boots Debian's kernel under QEMU with a C program as its init. The program sends itself signals while
# another thread preempts it often.
#
#   sigreturn-loses-registers.sh [riscv64|s390x]...      both when none is named
#
# Needs gcc-riscv64-linux-gnu, libc6-dev-riscv64-cross, gcc-s390x-linux-gnu, libc6-dev-s390x-cross,
# qemu-system-misc (for riscv64 and s390x), cpio; fetches the kernels with apt-get into a temporary
# directory, from the machine's own archive. Ends with 0 when the behaviour is as below, 1 when it is
# another one, 2 when it could not look.
#
# Seen with QEMU 10.0.2:
#
# Linux 7.2.12+deb14-riscv64 riscv64, #1 SMP PREEMPT Debian 7.2.12-1 (2026-10-22)
# a plain handler: 26 of 20000 signals lost registers (28.9 of f0 to f31 on average)
# a handler that loads them from its frame at its end: 0 of 20000 signals lost registers (0.0 of f0 to f31 on average)
# Linux 7.2.12+deb14-s390x s390x, #1 SMP PREEMPT Debian 7.2.12-1 (2026-10-22)
# a plain handler: 27 of 20000 signals lost registers (7.0 of the pairs a2,a3 to a14,a15 on average)
# a handler that loads them from its frame at its end: 0 of 20000 signals lost registers (0.0 of the pairs a2,a3 to a14,a15 on average)
#
# How many are lost depends on how busy the machine is.
set -eu

version=7.2.12+deb14
suite=forky
signals=20000

give_up() {
    echo "cannot look: $*" >&2
    exit 2
}

[ $# -gt 0 ] || set -- riscv64 s390x
for arch; do
    case $arch in riscv64 | s390x) ;; *) give_up "$arch is neither riscv64 nor s390x" ;; esac
    for tool in apt-get dpkg cpio "$arch-linux-gnu-gcc" "qemu-system-$arch"; do
        command -v "$tool" > /dev/null || give_up "there is no $tool"
    done
done
uri=$(sed -n 's/^URIs: *\([^ ]*\).*/\1/p' /etc/apt/sources.list.d/debian.sources | head -n 1)
[ -n "$uri" ] || give_up "no archive of Debian's in /etc/apt/sources.list.d/debian.sources"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 2' INT TERM

# apt-get with lists and sources of its own: the machine's stay as they are.
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
echo "deb $uri $suite main" > "$work/sources.list"
apt() {
    apt-get -qq -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts=- \
        -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root \
        -o APT::Architectures="$arch" -o APT::Architecture="$arch" -o Acquire::Languages=none "$@"
}

cat > "$work/init.c" << 'END'
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

/* once: loads the registers from `given`, sends the calling thread a signal, stores them to `found`.
   plain, loading: handlers that overwrite them; the second loads them from its frame at its end. */
void once(const uint64_t *given, uint64_t *found, long pid, long tid);
void plain(int, siginfo_t *, void *);
void loading(int, siginfo_t *, void *);

#if defined(__riscv)
enum { COUNT = 32 };
#define ALL "0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31"
static const char *names = "of f0 to f31";
_Static_assert(offsetof(ucontext_t, uc_mcontext.__fpregs) == 432, "see loading");
asm(".globl once, plain, loading\n"
    "once:\n addi sp, sp, -96\n"
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11\n fsd fs\\n, 8*\\n(sp)\n .endr\n"
    ".irp n," ALL "\n fld f\\n, 8*\\n(a0)\n .endr\n"
    "mv t0, a1\n mv a0, a2\n mv a1, a3\n li a2, 10\n li a7, 131\n ecall\n" /* tgkill(pid, tid, SIGUSR1) */
    ".irp n," ALL "\n fsd f\\n, 8*\\n(t0)\n .endr\n"
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11\n fld fs\\n, 8*\\n(sp)\n .endr\n"
    "addi sp, sp, 96\n ret\n"
    "plain:\n .irp n," ALL "\n fmv.d.x f\\n, zero\n .endr\n ret\n"
    "loading:\n .irp n," ALL "\n fmv.d.x f\\n, zero\n .endr\n"
    ".irp n," ALL "\n fld f\\n, 432 + 8*\\n(a2)\n .endr\n ret\n");
#elif defined(__s390x__)
enum { COUNT = 7 }; /* a2 to a15 */
static const char *names = "of the pairs a2,a3 to a14,a15";
_Static_assert(offsetof(ucontext_t, uc_mcontext.aregs) == 184, "see loading");
asm(".globl once, plain, loading\n"
    "once:\n stam %a2, %a15, 96(%r15)\n lam %a2, %a15, 0(%r2)\n"
    "lgr %r0, %r3\n lgr %r2, %r4\n lgr %r3, %r5\n lghi %r4, 10\n svc 241\n" /* tgkill(…, SIGUSR1) */
    "lgr %r1, %r0\n stam %a2, %a15, 0(%r1)\n lam %a2, %a15, 96(%r15)\n br %r14\n"
    "plain:\n lghi %r1, 0\n .irp n,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n sar %a\\n, %r1\n .endr\n br %r14\n"
    "loading:\n lghi %r1, 0\n .irp n,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n sar %a\\n, %r1\n .endr\n"
    "lam %a2, %a15, 192(%r4)\n br %r14\n");
#endif

static void *preempt(void *unused) {
    struct sched_param p = {.sched_priority = 1};
    if (sched_setscheduler(0, SCHED_FIFO, &p)) perror("SCHED_FIFO");
    for (;;) nanosleep(&(struct timespec){0, 500000}, 0);
}

static void run(const char *what, void (*handler)(int, siginfo_t *, void *), long signals) {
    struct sigaction a = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
    sigaction(SIGUSR1, &a, 0);
    uint64_t given[COUNT], found[COUNT], x = 88172645463325252u;
    long pid = getpid(), tid = syscall(SYS_gettid), lost = 0, registers = 0;
    for (long n = 0; n < signals; n++) {
        for (int i = 0; i < COUNT; i++) { x ^= x << 13; x ^= x >> 7; x ^= x << 17; given[i] = x; }
        memset(found, 0, sizeof found);
        once(given, found, pid, tid);
        int d = 0;
        for (int i = 0; i < COUNT; i++) d += given[i] != found[i];
        lost += d != 0; registers += d;
    }
    printf("%s: %ld of %ld signals lost registers (%.1f %s on average)\n", what, lost, signals,
           lost ? (double)registers / lost : 0, names);
}

int main(void) {
    setvbuf(stdout, 0, _IONBF, 0);
    struct utsname u; uname(&u);
    printf("Linux %s %s, %s\n", u.release, u.machine, u.version);
    cpu_set_t one; CPU_ZERO(&one); CPU_SET(0, &one);
    sched_setaffinity(0, sizeof one, &one);
    pthread_t t; pthread_create(&t, 0, preempt, 0);
    run("a plain handler", plain, SIGNALS);
    run("a handler that loads them from its frame at its end", loading, SIGNALS);
    if (getpid() == 1) reboot(RB_POWER_OFF);
}
END

changed=0
for arch; do
    mkdir -p "$work/$arch/root/dev"
    package=linux-binary-$version-$arch
    apt update || give_up "no lists of $suite for $arch"
    (cd "$work/$arch" && apt download "$package") || give_up "$package is not in $suite any more"
    dpkg -x "$work/$arch/"*.deb "$work/$arch/kernel"
    "$arch-linux-gnu-gcc" -O2 -static -pthread -DSIGNALS=$signals -o "$work/$arch/root/init" "$work/init.c"
    (cd "$work/$arch/root" && find . | cpio -o -H newc --quiet | gzip -1) > "$work/$arch/initramfs"
    case $arch in
    riscv64) machine=virt console=ttyS0 ;;
    s390x) machine=s390-ccw-virtio console=ttysclp0 ;;
    esac
    kernel=$(find "$work/$arch/kernel" -name vmlinuz)
    timeout "${LIMIT:-900}" "qemu-system-$arch" -M $machine -cpu max -smp 2 -m 512 -nographic -no-reboot \
        -nic none -kernel "$kernel" -initrd "$work/$arch/initramfs" \
        -append "console=$console quiet panic=-1" < /dev/null > "$work/$arch/output" 2>&1 ||
        give_up "$arch did not come to its end: $(tail -n 5 "$work/$arch/output")"
    tr -d '\r' < "$work/$arch/output" | grep -E '^Linux|^a ' || give_up "$arch printed nothing"
    lost() {
        tr -d '\r' < "$work/$arch/output" | sed -n "s/^$1: \([0-9]*\) of .*/\1/p"
    }
    plain=$(lost 'a plain handler') loading=$(lost 'a handler that loads.*')
    if [ "${plain:-0}" -eq 0 ] || [ "${loading:-1}" -ne 0 ]; then
        echo "$arch: changed: a plain handler should lose some, one that loads them none" >&2
        changed=1
    fi
done
exit $changed
