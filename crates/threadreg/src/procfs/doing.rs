//! What a thread does: the system call it is in, and how the scheduler has served it.

use core::ffi::c_long;
use core::fmt;
use core::mem::MaybeUninit;
use core::time::Duration;

use sigctx::sys::{Errno, Tid};
use syscalls::Sysno;

use super::read::{self, Fields};
use super::{ProcError, TaskDir, What};

impl TaskDir {
    /// Reads `task/<tid>/syscall`: what the thread does in the kernel. `None` when the kernel was built
    /// without that file, or a security module forbids to read it. A thread that asks about itself finds itself
    /// in the `read` that asks.
    ///
    /// # Errors
    ///
    /// [`ProcError::is_gone`] when there is no such thread in this process.
    ///
    /// # Examples
    ///
    /// ```
    /// use threadreg::procfs::{InKernel, TaskDir};
    ///
    /// let tasks = TaskDir::open()?;
    /// if let Some(InKernel::InCall { call, pc, .. }) = tasks.in_kernel(sigctx::sys::gettid())? {
    ///     println!("in {call}, to return to {pc:#x}");
    /// }
    /// # Ok::<(), threadreg::procfs::ProcError>(())
    /// ```
    pub fn in_kernel(&self, tid: Tid) -> Result<Option<InKernel>, ProcError> {
        let mut buffer = [MaybeUninit::uninit(); 256];
        self.optional(tid, b"syscall", What::Syscall, &mut buffer, InKernel::parse)
    }

    /// Reads `task/<tid>/schedstat`: how the scheduler has served the thread. `None` when the kernel was built
    /// without that file, or a security module forbids to read it.
    ///
    /// # Errors
    ///
    /// [`ProcError::is_gone`] when there is no such thread in this process.
    ///
    /// # Examples
    ///
    /// ```
    /// use threadreg::procfs::TaskDir;
    ///
    /// let tasks = TaskDir::open()?;
    /// if let Some(served) = tasks.served(sigctx::sys::gettid())? {
    ///     println!("ran for {:?}, waited for a processor {:?}", served.ran, served.waited);
    /// }
    /// # Ok::<(), threadreg::procfs::ProcError>(())
    /// ```
    pub fn served(&self, tid: Tid) -> Result<Option<Served>, ProcError> {
        let mut buffer = [MaybeUninit::uninit(); 128];
        self.optional(tid, b"schedstat", What::Schedstat, &mut buffer, Served::parse)
    }

    /// Reads a file that not every kernel has.
    fn optional<T>(
        &self,
        tid: Tid,
        file: &[u8],
        what: What,
        buffer: &mut [MaybeUninit<u8>],
        parse: impl FnOnce(&[u8]) -> Option<T>,
    ) -> Result<Option<T>, ProcError> {
        match self.read(tid, file, buffer) {
            Ok(text) => Ok(parse(text)),
            Err(Errno::EACCES | Errno::EPERM | Errno::ENOSYS) => Ok(None),
            // Of this thread, or of all.
            Err(Errno::ENOENT) => self.stat(tid).map(|_| None),
            Err(errno) => Err(ProcError { what, tid: Some(tid), errno }),
        }
    }
}

/// Where a thread was in the kernel, if it was there; from [`TaskDir::in_kernel`].
///
/// Source: `proc_pid_syscall` in `fs/proc/base.c`.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InKernel {
    /// It runs or could run, there or in user code: it does not sleep.
    Runs,
    /// It sleeps in a system call.
    InCall {
        /// Which.
        call: SyscallNumber,
        /// The user's stack pointer and program counter.
        sp: usize,
        /// The program counter after the call.
        pc: usize,
    },
    /// It sleeps, and is in no system call: in a page fault, or stopped.
    Sleeps {
        /// The user's stack pointer.
        sp: usize,
        /// The instruction that faulted, or would be next.
        pc: usize,
    },
}

impl InKernel {
    fn parse(text: &[u8]) -> Option<Self> {
        let mut fields = Fields::new(text);
        let first = fields.next()?;
        if first == b"running" {
            return Some(Self::Runs);
        }
        let mut word = |nth| fields.nth(nth).and_then(address);
        if first == b"-1" {
            let (sp, pc) = (word(0)?, word(0)?);
            return Some(Self::Sleeps { sp, pc });
        }
        // Behind the number are six arguments.
        let (sp, pc) = (word(6)?, word(0)?);
        let call = SyscallNumber(read::number(first)? as c_long);
        Some(Self::InCall { call, sp, pc })
    }
}

/// `0x` and digits.
fn address(field: &[u8]) -> Option<usize> {
    field.strip_prefix(b"0x").map(|digits| read::hexadecimal(digits) as usize)
}

/// The number of a system call. It is shown with its name on this architecture: `read (0)`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SyscallNumber(pub c_long);

impl SyscallNumber {
    /// The call's name on this architecture; `None` for one that came after the list was made.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe (AS-Safe).
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        Sysno::new(self.0 as usize).map(|call| call.name())
    }
}

impl fmt::Display for SyscallNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name().unwrap_or("unknown"), self.0)
    }
}

impl fmt::Debug for SyscallNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How the scheduler has served a thread since it began; from [`TaskDir::served`].
///
/// Source: `proc_pid_schedstat` in `fs/proc/base.c`; `Documentation/scheduler/sched-stats.rst`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Served {
    /// How long it ran, up to the last tick or the last switch if it runs.
    pub ran: Duration,
    /// How long it could have run and had no processor, up to when it was given one.
    pub waited: Duration,
    /// How often it was given a processor.
    pub turns: u64,
}

impl Served {
    fn parse(text: &[u8]) -> Option<Self> {
        let mut numbers = Fields::new(text).map(read::number);
        let mut next = || numbers.next().flatten();
        let (ran, waited, turns) = (next()?, next()?, next()?);
        Some(Self { ran: Duration::from_nanos(ran), waited: Duration::from_nanos(waited), turns })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_thread_does_in_the_kernel_is_read() {
        let parse = |text: &str| InKernel::parse(text.as_bytes());
        assert_eq!(parse("running\n"), Some(InKernel::Runs));
        let sleeps = InKernel::Sleeps { sp: 0x7f10, pc: 0x40 };
        assert_eq!(parse("-1 0x7f10 0x40\n"), Some(sleeps));
        let text = "3 0x1 0x2 0x3 0x4 0x5 0x6 0x7f10 0x40\n";
        let Some(InKernel::InCall { call, sp, pc }) = parse(text) else { panic!("in a call") };
        assert_eq!((call, sp, pc), (SyscallNumber(3), 0x7f10, 0x40));
        for odd in ["", "3", "3 0x1", "-1 0x1", "x 0x1 0x2 0x3 0x4 0x5 0x6 0x7 0x8"] {
            assert_eq!(parse(odd), None, "{odd}");
        }
    }

    #[test]
    fn calls_have_the_names_of_this_architecture() {
        assert_eq!(SyscallNumber(libc::SYS_read).name(), Some("read"));
        assert_eq!(
            SyscallNumber(libc::SYS_futex).to_string(),
            format!("futex ({})", libc::SYS_futex)
        );
        assert_eq!(SyscallNumber(-1).name(), None);
        assert_eq!(SyscallNumber(99_999).to_string(), "unknown (99999)");
    }

    #[test]
    fn times_are_nanoseconds() {
        let served = Served::parse(b"1500 7 3\n").expect("three numbers");
        assert_eq!((served.ran, served.turns), (Duration::from_nanos(1500), 3));
        assert_eq!(Served::parse(b"1500 7"), None);
    }
}
