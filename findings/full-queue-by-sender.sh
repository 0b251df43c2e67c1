#!/bin/sh
# Linux: with a full queue of signals, what becomes of one depends on the call that sends it.
#
# With RLIMIT_SIGPENDING used up, POSIX's EAGAIN is what a sender expects of a real-time signal, and none of a
# standard one. `sigqueue` and `tgkill` get it, and so does `pthread_kill`; `kill` does not, nor does
# `rt_tgsigqueueinfo` with the code of `kill` to the calling thread: that signal is delivered without its
# information. A standard signal is never refused, but one of `tgkill` or `sigqueue` arrives as if nobody had
# sent it: code 0 (SI_USER) in place of SI_TKILL or SI_QUEUE, sender 0. `kill` keeps its sender. So a
# handler that knows its own program's signals by SI_TKILL and the sender ignores them then, and
# `pthread_kill`, which has returned 0, is not heard.
# (`kernel/signal.c`, `__send_signal_locked`: only codes from 0 on may exceed the limit.)
#
# Needs gcc and libc's headers. Ends with 0 when the behaviour is as below, 1 when it is another one, 2 when it
# could not look.
#
# Seen on Linux 6.18, x86-64, glibc 2.36:
#
# standard   kill                                 delivered, code 0, with its sender
# standard   tgkill                               delivered, code 0, sender 0
# standard   sigqueue                             delivered, code 0, sender 0
# standard   rt_tgsigqueueinfo, code of kill      delivered, code 0, with its sender
# real-time  kill                                 delivered, code 0, sender 0
# real-time  tgkill                               refused, EAGAIN
# real-time  sigqueue                             refused, EAGAIN
# real-time  rt_tgsigqueueinfo, code of kill      delivered, code 0, sender 0
set -eu

give_up() {
    echo "cannot look: $*" >&2
    exit 2
}

command -v gcc > /dev/null || give_up "there is no gcc"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 2' INT TERM

cat > "$work/full.c" << 'END'
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

static volatile int came, code, pid;

static void handler(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)context;
    came = 1, code = info->si_code, pid = info->si_pid != 0;
}

static void tell(const char *how, int signal, long result)
{
    const char *kind = signal < SIGRTMIN ? "standard " : "real-time";
    if (result != 0)
        printf("%s  %-36s refused, %s\n", kind, how, errno == EAGAIN ? "EAGAIN" : strerror(errno));
    else
        printf("%s  %-36s %s, code %d, %s\n", kind, how, came ? "delivered" : "lost", code,
               pid ? "with its sender" : "sender 0");
    came = code = pid = 0;
}

int main(void)
{
    const struct rlimit none = {0, 0};
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
    const int signals[] = {SIGUSR1, SIGRTMIN + 5};
    sigaction(signals[0], &action, 0);
    sigaction(signals[1], &action, 0);
    if (setrlimit(RLIMIT_SIGPENDING, &none) != 0)
        return 2;
    for (int i = 0; i < 2; i++) {
        const int signal = signals[i];
        const pid_t me = getpid();
        siginfo_t info;
        memset(&info, 0, sizeof info);
        info.si_signo = signal, info.si_code = SI_USER, info.si_pid = me;
        tell("kill", signal, kill(me, signal));
        tell("tgkill", signal, syscall(SYS_tgkill, me, gettid(), signal));
        tell("sigqueue", signal, sigqueue(me, signal, (union sigval){.sival_int = 7}));
        tell("rt_tgsigqueueinfo, code of kill", signal, syscall(SYS_rt_tgsigqueueinfo, me, gettid(), signal, &info));
    }
    return 0;
}
END
gcc -Wall -O1 "$work/full.c" -o "$work/full" || give_up "the program does not build"
uname -sr
"$work/full" | tee "$work/seen"
sed -n 's/^# \(\(standard\|real-time\)  .*\)/\1/p' "$0" > "$work/expected"
cmp -s "$work/expected" "$work/seen" || {
    echo "this is another behaviour than the one that was seen" >&2
    exit 1
}
