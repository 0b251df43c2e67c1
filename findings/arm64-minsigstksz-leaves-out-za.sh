#!/bin/sh
# Linux's AT_MINSIGSTKSZ on arm64 leaves out the matrix ZA: a signal frame can be larger than it says.
#
# `minsigstksz_setup` in arch/arm64/kernel/signal.c lays out a frame with all state that there is, but
# takes ZA's size from the thread that runs at boot, which has none. The manual page of sigaltstack(2)
# tells programs to take their stacks' sizes from this number.
#
# Boots Debian's kernel under QEMU with a C program as its init, which looks at the frames of threads
# with ZA.
#
# Needs gcc-aarch64-linux-gnu, libc6-dev-arm64-cross, qemu-system-arm, cpio; fetches the kernel with
# apt-get into a temporary directory, from the machine's own archive. Ends with 0 when the behaviour is
# as below, 1 when it is another one, 2 when it could not look.
#
# Seen with QEMU 10.0.2:
#
# Linux 7.2.12+deb14-arm64 aarch64
# streaming vectors of 16 bytes: AT_MINSIGSTKSZ 10016, frame 4704
# streaming vectors of 32 bytes: AT_MINSIGSTKSZ 10016, frame 4704
# streaming vectors of 64 bytes: AT_MINSIGSTKSZ 10016, frame 5344
# streaming vectors of 128 bytes: AT_MINSIGSTKSZ 10016, frame 17632, too large for it
# streaming vectors of 256 bytes: AT_MINSIGSTKSZ 10016, frame 66784, too large for it
set -eu

version=7.2.12+deb14
suite=forky
arch=arm64
gcc=aarch64-linux-gnu-gcc
qemu=qemu-system-aarch64

give_up() {
    echo "cannot look: $*" >&2
    exit 2
}

for tool in apt-get dpkg cpio $gcc $qemu; do
    command -v "$tool" > /dev/null || give_up "there is no $tool"
done
uri=$(sed -n 's/^URIs: *\([^ ]*\).*/\1/p' /etc/apt/sources.list.d/debian.sources | head -n 1)
[ -n "$uri" ] || give_up "no archive of Debian's in /etc/apt/sources.list.d/debian.sources"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 2' INT TERM

# apt-get with lists and sources of its own: the machine's stay as they are.
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/root/dev"
echo "deb $uri $suite main" > "$work/sources.list"
apt() {
    apt-get -qq -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts=- \
        -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root \
        -o APT::Architectures="$arch" -o APT::Architecture="$arch" -o Acquire::Languages=none "$@"
}

cat > "$work/init.c" << 'END'
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <sys/utsname.h>
#include <unistd.h>

#ifndef PR_SME_SET_VL
#define PR_SME_SET_VL 63
#endif

static char stack[512 * 1024] __attribute__((aligned(16)));
static volatile long frame;

/* From where the frame begins, the siginfo, to the end of the alternate stack. */
static void handler(int signal, siginfo_t *info, void *context) {
    frame = stack + sizeof stack - (char *)info;
}

int main(void) {
    setvbuf(stdout, 0, _IONBF, 0);
    struct utsname u;
    uname(&u);
    printf("Linux %s %s\n", u.release, u.machine);
    sigaltstack(&(stack_t){.ss_sp = stack, .ss_size = sizeof stack}, 0);
    sigaction(SIGUSR1, &(struct sigaction){.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK}, 0);
    long told = getauxval(AT_MINSIGSTKSZ);
    for (long length = 16; length <= 256; length *= 2) {
        long got = prctl(PR_SME_SET_VL, length);
        if (got < 0 || (got & 0xffff) != length) continue;
        asm volatile(".inst 0xd503457f"); /* smstart za */
        raise(SIGUSR1);
        asm volatile(".inst 0xd503447f"); /* smstop za */
        printf("streaming vectors of %ld bytes: AT_MINSIGSTKSZ %ld, frame %ld%s\n", length, told, frame,
               frame > told ? ", too large for it" : "");
    }
    if (getpid() == 1) reboot(RB_POWER_OFF);
}
END

package=linux-binary-$version-$arch
apt update || give_up "no lists of $suite for $arch"
(cd "$work" && apt download "$package") || give_up "$package is not in $suite any more"
dpkg -x "$work"/*.deb "$work/kernel"
$gcc -O2 -static -o "$work/root/init" "$work/init.c"
(cd "$work/root" && find . | cpio -o -H newc --quiet | gzip -1) > "$work/initramfs"
kernel=$(find "$work/kernel" -name vmlinuz)
timeout "${LIMIT:-600}" $qemu -M virt -cpu max -smp 1 -m 512 -nographic -no-reboot -nic none \
    -kernel "$kernel" -initrd "$work/initramfs" -append "console=ttyAMA0 quiet panic=-1" \
    < /dev/null > "$work/output" 2>&1 || give_up "it did not come to its end: $(tail -n 5 "$work/output")"
tr -d '\r' < "$work/output" | grep -E '^Linux|^streaming' || give_up "it printed nothing"
tr -d '\r' < "$work/output" | grep -q 'of 256 bytes: .*, too large for it$' || {
    echo "changed: a frame with ZA should be larger than AT_MINSIGSTKSZ says" >&2
    exit 1
}
