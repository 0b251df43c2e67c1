//! The kernel's `siginfo`, written and read field by field.

use core::mem::size_of;

use crate::arch::SigInfoHead;

/// The kernel's size of a `siginfo_t`.
const SIZE: usize = 128;

/// The fields of a signal that a process or thread sent (`_rt` in the kernel).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Sent {
    pid: i32,
    uid: u32,
    value: usize,
}

/// `siginfo_t` as the kernel lays it out.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct SigInfo {
    head: SigInfoHead,
    sent: Sent,
    rest: [u8; SIZE
        - size_of::<SigInfoHead>().next_multiple_of(align_of::<Sent>())
        - size_of::<Sent>()],
}

const _: () = {
    assert!(size_of::<SigInfo>() == size_of::<libc::siginfo_t>());
    assert!(align_of::<SigInfo>() == align_of::<libc::siginfo_t>());
    assert!(
        core::mem::offset_of!(SigInfo, head.signo)
            == core::mem::offset_of!(libc::siginfo_t, si_signo)
    );
    assert!(
        core::mem::offset_of!(SigInfo, head.code)
            == core::mem::offset_of!(libc::siginfo_t, si_code)
    );
    assert!(
        core::mem::offset_of!(SigInfo, head.errno)
            == core::mem::offset_of!(libc::siginfo_t, si_errno)
    );
};

impl SigInfo {
    /// The information that goes with a queued signal.
    pub(crate) fn queued(sig: i32, code: i32, pid: i32, uid: u32, value: usize) -> Self {
        let head = SigInfoHead::new(sig, code);
        Self { head, sent: Sent { pid, uid, value }, rest: [0; _] }
    }

    pub(crate) fn signo(&self) -> i32 {
        self.head.signo
    }

    pub(crate) fn code(&self) -> i32 {
        self.head.code
    }

    pub(crate) fn pid(&self) -> i32 {
        self.sent.pid
    }

    pub(crate) fn uid(&self) -> u32 {
        self.sent.uid
    }

    pub(crate) fn value(&self) -> usize {
        self.sent.value
    }

    /// `si_addr`: of a fault, in the place where a sent signal has its pid.
    pub(crate) fn address(&self) -> usize {
        let sent: *const Sent = &raw const self.sent;
        // SAFETY: `Sent` is at least a pointer long and as aligned, and every bit pattern is a
        // valid integer.
        unsafe { sent.cast::<usize>().read() }
    }
}

impl core::fmt::Debug for SigInfo {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("SigInfo")
            .field("head", &self.head)
            .field("sent", &self.sent)
            .finish_non_exhaustive()
    }
}
