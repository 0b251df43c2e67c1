//! Loops and routines that show whether an interruption lost anything. For tests and
//! demonstrations, not part of the interface: no promise is made about it.

use alloc::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use crate::arch::{self, SigCtx};
use crate::handler::Delivery;
use crate::inject::CallStack;
use crate::sys::SigInfo;

/// Stack below the table, in bytes: frames and callbacks of injected calls.
const STACK: usize = 256 * 1024;

/// A loop that holds a random pattern in every register, flag, vector and in the red zone.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe), except [`new`](Self::new) and [`run`](Self::run).
#[derive(Debug)]
pub struct Patterned {
    memory: NonNull<u8>,
    /// Shared: handlers look at it while the loop has `&mut self`.
    stack: Arc<CallStack>,
}

// SAFETY: the memory is owned, and used only through `&mut self`; the stop word is atomic.
unsafe impl Send for Patterned {}
// SAFETY: as above.
unsafe impl Sync for Patterned {}

/// A register that came back with another value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The register or the file that it is in.
    pub register: &'static str,
    /// Which word of it.
    pub part: usize,
    /// What was loaded.
    pub given: u64,
    /// What was there in the end.
    pub found: u64,
}

/// How long the loop runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spin {
    /// Through the window once.
    Once,
    /// Until [`Stop::stop`].
    UntilStopped,
}

/// Ends a running loop from anywhere: another thread, a handler, an injected call.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Clone, Copy)]
pub struct Stop {
    next: NonNull<AtomicUsize>,
}

// SAFETY: `Patterned::stopper` makes its user keep the word alive, and it is atomic.
unsafe impl Send for Stop {}
// SAFETY: as above.
unsafe impl Sync for Stop {}

impl Stop {
    /// Lets the loop leave at the end of its present round. A loop that has not begun is not
    /// stopped.
    pub fn stop(self) {
        // SAFETY: alive, see `Patterned::stopper`.
        unsafe { self.next.as_ref() }.store(arch::window().end, Ordering::Relaxed);
    }
}

impl fmt::Debug for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stop({:p})", self.next)
    }
}

impl Default for Patterned {
    fn default() -> Self {
        Self::new()
    }
}

impl Patterned {
    fn layout() -> Layout {
        let align = align_of::<arch::Table>();
        // The sizes are constants: a failure would show in the first test.
        Layout::from_size_align(STACK + size_of::<arch::Table>(), align).expect("fixed layout")
    }

    /// Makes the table and a stack below it.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe (AS-Unsafe heap): allocates.
    #[must_use]
    pub fn new() -> Self {
        // SAFETY: the layout is not empty.
        let memory = unsafe { alloc_zeroed(Self::layout()) };
        let Some(memory) = NonNull::new(memory) else { handle_alloc_error(Self::layout()) };
        let low = memory.as_ptr() as usize;
        // SAFETY: mapped, and used as the loop's stack alone; tests inject short calls.
        let stack = unsafe { CallStack::new(low, low + STACK) };
        Self { memory, stack: Arc::new(stack) }
    }

    fn table(&self) -> NonNull<arch::Table> {
        // SAFETY: within the allocation; `STACK` is a multiple of the alignment.
        unsafe { self.memory.add(STACK) }.cast()
    }

    /// The stack that the loop runs on.
    #[must_use]
    pub fn call_stack(&self) -> &CallStack {
        &self.stack
    }

    /// The same, to be kept while the loop runs.
    #[must_use]
    pub fn shared_call_stack(&self) -> Arc<CallStack> {
        self.stack.clone()
    }

    /// What ends the loop.
    ///
    /// # Safety
    ///
    /// It is not used after the loop's table is gone.
    #[must_use]
    pub unsafe fn stopper(&self) -> Stop {
        // SAFETY: the table is initialised: every bit pattern of it is valid.
        let table = unsafe { self.table().as_ref() };
        Stop { next: NonNull::from(table.next()) }
    }

    /// Runs the loop with a pattern from `random` and says what did not come back. `ready` is
    /// called when the pattern is there and [`Stop::stop`] works, just before the loop begins.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe (AS-Unsafe heap): allocates.
    pub fn run(
        &mut self,
        mut random: impl FnMut() -> u64,
        spin: Spin,
        ready: impl FnOnce(),
    ) -> Vec<Difference> {
        let mut table = self.table();
        // SAFETY: the table is this value's own, and borrowed through it.
        unsafe { table.as_mut() }.fill(&mut random);
        let mut zone = [0u8; arch::RED_ZONE];
        zone.fill_with(|| random() as u8);
        // SAFETY: the red zone lies in the stack below the table.
        let below =
            unsafe { table.cast::<u8>().sub(arch::RED_ZONE) }.cast::<[u8; arch::RED_ZONE]>();
        // SAFETY: as above, and bytes have no alignment.
        unsafe { below.write(zone) };
        let next = match spin {
            Spin::Once => arch::window().end,
            Spin::UntilStopped => arch::window().start,
        };
        // SAFETY: as above.
        unsafe { table.as_ref() }.next().store(next, Ordering::Relaxed);
        ready();
        // SAFETY: filled; the stack below is this value's own; another thread, a handler or a call stops
        // it if asked to.
        unsafe { arch::spin(table.as_ptr()) };
        let mut differences = Vec::new();
        // SAFETY: as above.
        unsafe { table.as_ref() }.compare(|register, part, given, found| {
            differences.push(Difference { register, part, given, found });
        });
        // SAFETY: as above.
        let after = unsafe { below.read() };
        for (part, (&given, &found)) in zone.iter().zip(&after).enumerate() {
            if given != found {
                let (given, found) = (given.into(), found.into());
                differences.push(Difference { register: "red zone", part, given, found });
            }
        }
        differences
    }

    /// The addresses at which every register holds its pattern.
    #[must_use]
    pub fn code() -> Range<usize> {
        arch::window()
    }

    /// What is patterned on this machine.
    #[must_use]
    pub fn level() -> &'static str {
        arch::level_name()
    }
}

impl Drop for Patterned {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout.
        unsafe { dealloc(self.memory.as_ptr(), Self::layout()) };
    }
}

/// What one line of a disassembly (objdump's) says of a handler's code.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Instruction {
    /// It is a system call.
    pub system_call: bool,
    /// It names something outside of the function: calls it, or has the dynamic linker find it.
    pub outside: bool,
    /// It refers to thread-local storage.
    pub thread_local: bool,
    /// Bytes of stack that it takes.
    pub stack: usize,
}

impl Instruction {
    /// Reads a line.
    #[must_use]
    pub fn of(line: &str) -> Self {
        arch::instruction(line)
    }
}

/// Writes something else into every register, vector, mask, flag and control word, and puts back
/// only what a function must.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe).
pub fn clobber_all() {
    arch::clobber();
}

/// Loads every register with a value that names it and runs into an undefined instruction at
/// [`known_pc`].
///
/// # Signal safety
///
/// Not async-signal-safe (AS-Unsafe): one thread at a time.
///
/// # Safety
///
/// A handler of `SIGILL` on an alternate stack calls [`step_over_known`]; one thread at a time.
pub unsafe fn raise_with_known_registers() {
    // SAFETY: the caller's obligation.
    unsafe { arch::known() }
}

/// Runs into an undefined instruction: a signal without a system call.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe).
///
/// # Safety
///
/// A handler of `SIGILL` calls [`step_over_known`].
#[inline(always)]
pub unsafe fn raise_undefined() {
    // SAFETY: the caller's obligation.
    unsafe { arch::undefined() }
}

/// Where the undefined instruction is.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe).
#[must_use]
pub fn known_pc() -> usize {
    arch::known_pc()
}

/// Moves the program counter behind the undefined instruction.
///
/// # Signal safety
///
/// Handler only (AS-Safe).
pub fn step_over_known(ctx: &mut SigCtx<'_>) {
    let pc = ctx.pc();
    ctx.set_pc(pc + arch::KNOWN_STEP);
}

/// The frame pointer of the function that calls this, or of one that called it and keeps frame
/// pointers.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe).
#[inline(always)]
#[must_use]
pub fn frame_pointer() -> usize {
    arch::frame_pointer()
}

/// Whether the kernel says where an undefined instruction is, when it raises the signal.
pub const UNDEFINED_IS_LOCATED: bool = arch::UNDEFINED_IS_LOCATED;

/// Registers that are the thread's or the program's own, and whose: no code changes them, and their
/// values are different in every run.
pub const OWN_REGISTERS: &[(arch::Reg, &str)] = arch::OWN;

/// From a frame pointer to the frame pointer before it, and to the return address, in bytes. `None`
/// where code keeps no frame pointers.
pub const FRAME_POINTER_TO: Option<[isize; 2]> = arch::FRAME_POINTER_TO;

/// The frame that an unwinder is at: what it gives to the function that it calls for each frame.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Debug)]
pub struct Unwound {
    context: *mut core::ffi::c_void,
}

impl Unwound {
    /// Takes the unwinder's `struct _Unwind_Context`.
    ///
    /// # Safety
    ///
    /// The unwinder stays at that frame while this value lives.
    #[must_use]
    pub unsafe fn from_raw(context: *mut core::ffi::c_void) -> Self {
        Self { context }
    }

    /// The program counter, and the stack pointer as the frame's address tells it. arm's tables (EHABI)
    /// have no such address.
    #[inline(always)]
    #[must_use]
    pub fn place(&self) -> (usize, Option<usize>) {
        // SAFETY: `from_raw`'s caller says so.
        unsafe { arch::unwound_place(self.context) }
    }

    /// A register by its number, as the rules of the frames below say.
    ///
    /// # Safety
    ///
    /// There is a rule for the register, as there is for all of [`DWARF_REGISTERS`] above a handler
    /// or an injected call.
    #[inline(always)]
    #[must_use]
    pub unsafe fn get(&self, number: u16) -> usize {
        // SAFETY: `from_raw`'s caller and this function's say so.
        unsafe { arch::unwound(self.context, number) }
    }
}

/// The numbers that debug information has for registers: the first, and the registers from it on.
pub const DWARF_REGISTERS: &[(u16, &[arch::Reg])] = arch::DWARF;

/// Addresses of faults are multiples of this, a power of two: the machine may tell the page only.
pub const FAULT_GRANULE: usize = arch::FAULT_GRANULE;

/// What `CLONE_SETTLS` takes for a thread without thread-local storage.
///
/// # Signal safety
///
/// Not async-signal-safe (AS-Unsafe heap): may allocate.
#[must_use]
pub fn no_storage() -> *mut core::ffi::c_void {
    arch::no_storage()
}

static PUSHED: AtomicU32 = AtomicU32::new(0);

/// Called by the trampoline.
pub(crate) extern "C" fn pushed() {
    PUSHED.fetch_add(1, Ordering::Relaxed);
}

/// How often the trampoline of [`push_counted_call`] has run.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe).
#[must_use]
pub fn pushed_calls() -> u32 {
    PUSHED.load(Ordering::Relaxed)
}

/// Pushes a call of a trampoline that saves everything itself, as a user of
/// [`SigCtx::push_call`](crate::SigCtx::push_call) would. Within an IT block of Thumb code it does
/// nothing: only a sigreturn can go on there.
///
/// # Signal safety
///
/// Handler only (AS-Safe).
///
/// # Safety
///
/// As `push_call`, with room for 16 KiB on the interrupted stack.
pub unsafe fn push_counted_call(delivery: &mut Delivery<'_>) {
    if arch::Status::from_name("IT").is_some_and(|it| delivery.status().intersects(it)) {
        return;
    }
    let (pc, sp) = (delivery.pc(), delivery.sp());
    delivery.set_sp(sp - arch::RED_ZONE);
    // SAFETY: the caller's obligation; the trampoline gives the red zone back.
    unsafe { delivery.push_call(arch::pushed_trampoline(), pc) };
}

/// Makes the interrupted code raise `SIGTRAP` after every instruction; false where a program cannot
/// do that to itself.
///
/// # Signal safety
///
/// Handler only (AS-Safe).
pub fn single_step(ctx: &mut crate::SigCtx<'_>) -> bool {
    arch::single_step(ctx)
}

/// The name of the architecture that this was built for, with byte order and ABI where they differ.
pub const ARCHITECTURE: &str = arch::NAME;

pub use crate::arch::{Field, Structure};

/// The kernel's structures as this crate has them.
pub const LAYOUTS: &[Structure] = arch::LAYOUTS;

/// What a C program includes to compile the names in [`LAYOUTS`].
pub const LAYOUT_HEADERS: &str = arch::LAYOUT_HEADERS;

/// Runs `body` with a context of zeroes that no signal interrupted.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe) if `body` is.
pub fn with_blank_context<T>(body: impl FnOnce(&mut crate::SigCtx<'_>) -> T) -> T {
    // SAFETY: both are plain integers, for which zeroes are values.
    let (mut info, mut uc): (SigInfo, arch::Ucontext) = unsafe { core::mem::zeroed() };
    // SAFETY: both live as long as the context, and no other code has them.
    let mut ctx = unsafe { crate::SigCtx::from_raw((&raw mut info).cast(), (&raw mut uc).cast()) };
    body(&mut ctx)
}
