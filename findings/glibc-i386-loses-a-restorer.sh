#!/bin/sh
# glibc's sigaction for i386 hands an action back to the kernel with the flag SA_RESTORER and no restorer.
#
# A program reads an action, puts its own in the place, and later sets again what it had read: the common
# way to borrow a signal. If the first action was set by a system call and has SA_RESTORER, as those of
# runtimes with a signal layer of their own have on every architecture, then on i386 the flag survives the
# way through glibc and the address does not. A signal's handler would return to address 0. On x86-64 glibc
# puts its own restorer there instead, and musl does so on i386, too.
#
# The cause: sysdeps/unix/sysv/linux/i386/libc_sigaction.c lets the kernel use the vDSO's code and so sets
# the address to 0, while sa_flags goes through as it is.
#
# No signal is sent here: the action is read back.
#
# Needs gcc-i686-linux-gnu and a kernel that runs i386 programs, or qemu-i386; fetches glibc with apt-get
# into a temporary directory, from the machine's own archive. Ends with 0 when the behaviour is as below, 1
# when it is another one, 2 when it could not look.
#
# Seen on Linux 6.18:
#
# glibc 2.41: set by a system call: SA_RESTORER, restorer set
# glibc 2.41: read and set again by glibc: SA_RESTORER, restorer 0
set -eu

suite=trixie
version=2.41
gcc=i686-linux-gnu-gcc

give_up() {
    echo "cannot look: $*" >&2
    exit 2
}

for tool in apt-get dpkg $gcc; do
    command -v "$tool" > /dev/null || give_up "there is no $tool"
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
        -o APT::Architectures=i386 -o APT::Architecture=i386 -o Acquire::Languages=none "$@"
}

cat > "$work/look.c" << 'END'
#define _GNU_SOURCE
#include <gnu/libc-version.h>
#include <signal.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SA_RESTORER 0x04000000

/* The kernel's. */
struct action {
    void *handler;
    unsigned long flags;
    void *restorer;
    unsigned long mask[2];
};

static void code(void) {}

static void show(const char *what) {
    struct action now;
    syscall(SYS_rt_sigaction, SIGUSR1, 0, &now, 8);
    printf("glibc %s: %s: %s, restorer %s\n", gnu_get_libc_version(), what,
           now.flags & SA_RESTORER ? "SA_RESTORER" : "no SA_RESTORER", now.restorer ? "set" : "0");
}

int main(void) {
    struct action action = {code, SA_SIGINFO | SA_RESTORER, code, {0, 0}};
    syscall(SYS_rt_sigaction, SIGUSR1, &action, 0, 8);
    show("set by a system call");
    struct sigaction read;
    sigaction(SIGUSR1, 0, &read);
    sigaction(SIGUSR1, &read, 0);
    show("read and set again by glibc");
}
END

apt update || give_up "no lists of $suite for i386"
for package in libc6-dev linux-libc-dev; do
    (cd "$work" && apt download "$package") || give_up "$package is not in $suite"
    dpkg -x "$work/$package"_*.deb "$work/root"
done
[ -e "$work"/libc6-dev_"$version"-*.deb ] || give_up "glibc $version is not in $suite any more"
include=$work/root/usr/include
lib=$work/root/usr/lib/i386-linux-gnu
$gcc -O1 -static -isystem "$include/i386-linux-gnu" -isystem "$include" -B"$lib" -L"$lib" \
    -o "$work/look" "$work/look.c" || give_up "it does not build"
{ "$work/look" || qemu-i386 "$work/look"; } > "$work/output" 2> /dev/null || give_up "it does not run"
cat "$work/output"
grep -q 'set by a system call: SA_RESTORER, restorer set$' "$work/output" &&
    grep -q 'set again by glibc: SA_RESTORER, restorer 0$' "$work/output" || {
    echo "changed: glibc should have kept the flag and dropped the address" >&2
    exit 1
}
