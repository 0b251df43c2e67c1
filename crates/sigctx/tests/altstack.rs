//! A signal arrives while the system has no memory to give.

mod common;

use std::hint::black_box;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use common::{install, raise};
use sigctx::altstack::AltStack;
use sigctx::handler::{Delivery, Flow};
use sigctx::sys;

/// `linux/userfaultfd.h`.
mod uffd {
    pub(super) const USER_MODE_ONLY: usize = 1;
    pub(super) const API: libc::c_ulong = 0xc018_aa3f;
    pub(super) const REGISTER: libc::c_ulong = 0xc020_aa00;
    pub(super) const ZEROPAGE: libc::c_ulong = 0xc020_aa04;
    pub(super) const EVENT_PAGEFAULT: u64 = 0x12;
    pub(super) const REGISTER_MODE_MISSING: u64 = 1;
}

fn control(fd: &OwnedFd, request: libc::c_ulong, argument: &mut [u64]) {
    // SAFETY: each request reads and writes a structure of as many words.
    let failed = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, argument.as_mut_ptr()) };
    assert_eq!(failed, 0, "{request:#x}: {}", io::Error::last_os_error());
}

/// Gives a page to each fault that waits for one, and counts them.
fn serve(fd: &OwnedFd, page: usize, served: &AtomicUsize) {
    loop {
        let mut message = [0_u64; 4];
        let (place, size) = (message.as_mut_ptr().cast(), size_of_val(&message));
        // SAFETY: the kernel writes one message of that size.
        let read = unsafe { libc::read(fd.as_raw_fd(), place, size) };
        assert_eq!(read, size as isize, "{}", io::Error::last_os_error());
        let [event, _, address, _] = message;
        // The event is the first byte in memory.
        assert_eq!(u64::from(event.to_ne_bytes()[0]), uffd::EVENT_PAGEFAULT);
        served.fetch_add(1, SeqCst);
        let start = address & !(page as u64 - 1);
        control(fd, uffd::ZEROPAGE, &mut [start, page as u64, 0, 0]);
    }
}

/// The kernel gets no page of the alternate stack for itself, as when there is no memory and it cannot wait:
/// it must have all that it needs to deliver the signal. A handler is made to wait, and gets its pages.
#[test]
fn a_signal_is_delivered_where_the_kernel_gets_no_memory() {
    static PAGE: AtomicUsize = AtomicUsize::new(0);
    static SERVED: AtomicUsize = AtomicUsize::new(0);
    static HANDLED: AtomicUsize = AtomicUsize::new(0);

    #[expect(clippy::large_stack_arrays, reason = "runs into pages that are not there yet")]
    fn handler(_: &mut Delivery<'_>) -> Flow {
        // Most of the stack.
        let room = black_box([1_u8; 48 * 1024]);
        let used = room.iter().step_by(1024).map(|&byte| usize::from(byte)).sum();
        HANDLED.fetch_add(used, SeqCst);
        Flow::Resume
    }
    if testkit::emulator().is_some() {
        return testkit::skip("an emulator writes the frames itself");
    }
    let name = "a_signal_is_delivered_where_the_kernel_gets_no_memory";
    testkit::in_child(name, Duration::from_secs(20), || {
        let flags = libc::O_CLOEXEC as usize | uffd::USER_MODE_ONLY;
        // SAFETY: takes no pointers.
        let fd = match unsafe { sys::syscall(libc::SYS_userfaultfd, [flags, 0, 0, 0, 0, 0]) } {
            Ok(fd) => fd as i32,
            Err(error) => return testkit::skip(format!("faults cannot be served: {error}")),
        };
        // SAFETY: just made.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        control(&fd, uffd::API, &mut [0xaa, 0, 0]);
        // SAFETY: takes no pointers.
        PAGE.store(unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize, SeqCst);

        let alt = AltStack::install().expect("alternate stack");
        let (low, high) = alt.bounds();
        let _installed = install(libc::SIGUSR1, handler);
        let range = &mut [low as u64, (high - low) as u64, uffd::REGISTER_MODE_MISSING, 0];
        control(&fd, uffd::REGISTER, range);
        // It ends with the process.
        thread::spawn(move || serve(&fd, PAGE.load(SeqCst), &SERVED));
        raise(libc::SIGUSR1);
        assert_eq!(HANDLED.load(SeqCst), 48);
        // Else the kernel had its way with all of the stack, and nothing was tried.
        let pages = (high - low) / PAGE.load(SeqCst);
        assert!(SERVED.load(SeqCst) > 0 || pages == 1, "{pages} pages");
    });
}
