//! What every architecture's context can be asked: [`SigCtx`], which `arch` declares.

use core::fmt;

use crate::arch::{self, Reg, SigCtx, Status};
use crate::registers::Registers;
use crate::sys::{SigInfo, SigSet};

/// The sender of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    /// The sender's process.
    pub pid: i32,
    /// The sender's real user id.
    pub uid: u32,
}

impl SigCtx<'_> {
    #[inline(always)]
    pub(crate) fn info(&self) -> &SigInfo {
        let (info, _) = self.as_raw();
        // SAFETY: `from_raw`'s obligation 1 and 2.
        unsafe { &*info.cast() }
    }

    /// The signal's number.
    #[inline]
    #[must_use]
    pub fn signal(&self) -> i32 {
        self.info().signo()
    }

    /// `si_code`: where the signal came from.
    #[inline]
    #[must_use]
    pub fn code(&self) -> i32 {
        self.info().code()
    }

    /// The value that was queued with the signal; 0 with one that was not queued.
    #[inline]
    #[must_use]
    pub fn value(&self) -> usize {
        // What kill and tgkill send has no value, and the kernel clears what it does not set.
        if self.code() < 0 { self.info().value() } else { 0 }
    }

    /// The sender of the signal, if a process sent it.
    #[must_use]
    pub fn sender(&self) -> Option<Sender> {
        let info = self.info();
        // Codes above 0 are the kernel's; of those below, timers, SIGIO and asynchronous I/O have
        // other fields in these places.
        let sent = match info.code() {
            arch::SI_TIMER | arch::SI_ASYNCIO | libc::SI_SIGIO => false,
            code => code <= 0,
        };
        sent.then(|| Sender { pid: info.pid(), uid: info.uid() })
    }

    /// The address whose access or execution failed, for a fault that the CPU raised. On s390x its
    /// page: the machine tells no more.
    #[must_use]
    pub fn fault_address(&self) -> Option<usize> {
        let info = self.info();
        let fault = matches!(
            info.signo(),
            libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGFPE | libc::SIGTRAP
        );
        // SI_KERNEL faults (a general protection, for one) have no address.
        (fault && info.code() > 0 && info.code() != SI_KERNEL).then(|| info.address())
    }

    /// The program counter.
    #[inline]
    #[must_use]
    pub fn pc(&self) -> usize {
        self.ucontext().pc()
    }

    /// Sets the program counter. On arm bit 0 chooses Thumb, as with `bx`; the program counter that
    /// was read is without it.
    #[inline]
    pub fn set_pc(&mut self, pc: usize) {
        self.ucontext_mut().set_pc(pc);
    }

    /// The stack pointer.
    #[inline]
    #[must_use]
    pub fn sp(&self) -> usize {
        self.ucontext().sp()
    }

    /// Sets the stack pointer.
    #[inline]
    pub fn set_sp(&mut self, sp: usize) {
        self.ucontext_mut().set_sp(sp);
    }

    /// The register that ABIs use as frame pointer; code without frame pointers may have any value there.
    #[inline]
    #[must_use]
    pub fn fp(&self) -> usize {
        self.ucontext().fp()
    }

    /// The link register, on machines that have one.
    #[inline]
    #[must_use]
    pub fn lr(&self) -> Option<usize> {
        self.ucontext().lr()
    }

    /// One register.
    #[inline]
    #[must_use]
    pub fn get(&self, reg: Reg) -> u64 {
        self.ucontext().get(reg)
    }

    /// Sets one register; a register shorter than 64 bits takes the low part.
    #[inline]
    pub fn set(&mut self, reg: Reg, value: u64) {
        self.ucontext_mut().set(reg, value);
    }

    /// A copy of all registers.
    #[must_use]
    pub fn registers(&self) -> Registers {
        Registers::read(|reg| self.ucontext().get(reg))
    }

    /// The status flags.
    #[must_use]
    pub fn status(&self) -> Status {
        Status::from_bits_retain(self.get(arch::STATUS))
    }

    /// Sets the status flags. The kernel keeps those that user code may not change.
    pub fn set_status(&mut self, status: Status) {
        self.set(arch::STATUS, status.bits());
    }

    /// The signals that were blocked, and will be again.
    #[must_use]
    pub fn signal_mask(&self) -> SigSet {
        self.ucontext().mask()
    }

    /// Sets the signals that will be blocked when the interrupted code goes on.
    pub fn set_signal_mask(&mut self, mask: SigSet) {
        self.ucontext_mut().set_mask(mask);
    }

    /// Makes it look as if the interrupted code had called `target`, with `resume` as its return
    /// address.
    ///
    /// Exactly Go's `pushCall`: only the program counter, the stack pointer and, where there is
    /// one, the link register change, and a slot below the stack pointer, which gets `resume`,
    /// or the link register's old value. The stack is *not*
    /// aligned, the red zone is *not* skipped: lower the stack pointer by the red zone first, and
    /// give it back in `target`, when the interrupted code may have one. For runtimes with a trampoline
    /// of their own; [`Delivery::inject`](crate::handler::Delivery::inject) needs none.
    ///
    /// The slot is the word below the stack pointer; on aarch64 the three words below it, of which
    /// the stack pointer skips two: the link register's old value, and under that the frame
    /// pointer's; on ppc64 four words, with the old values of `lr`, `r2` and `r12`: there `r12`
    /// becomes the address of the code, and in ELF V1 `r2` that code's.
    ///
    /// # Safety
    ///
    /// 1. The slot below the stack pointer is mapped stack that no code uses, and the handler does
    ///    not run on this stack.
    /// 2. `target` saves and restores everything that it touches, flags and vectors included, and
    ///    can be run at this point of the interrupted code. What it cannot do without is one register
    ///    for the jump to `resume`, which the interrupted code must not use (in Go x27 on aarch64,
    ///    t6 on riscv64, s7 on loongarch64, r10 on s390x).
    /// 3. The thread has no shadow stack.
    /// 4. On arm, the interrupted code is not in an IT block.
    /// 5. On ppc64, `target` saves nothing in its caller's frame, as compiled functions do with `lr`
    ///    and `cr`: the slot is there, with what it has to restore.
    ///
    /// # References
    ///
    /// Go: `runtime/signal_amd64.go`, `sigctxt.pushCall`
    #[doc(alias = "pushCall")]
    pub unsafe fn push_call(&mut self, target: usize, resume: usize) {
        // SAFETY: the caller's obligations.
        unsafe { self.ucontext_mut().push_call(target, resume) }
    }
}

/// `SI_KERNEL`: the kernel raised the signal and has no more to say.
const SI_KERNEL: i32 = 0x80;

impl fmt::Debug for SigCtx<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigCtx")
            .field("signal", &self.signal())
            .field("code", &self.code())
            .field("pc", &format_args!("{:#x}", self.pc()))
            .field("sp", &format_args!("{:#x}", self.sp()))
            .finish()
    }
}
