//! The code that may be interrupted at any instruction, registered by range.
//!
//! Rust has no tables of unsafe points, so a pc is a safe point only where the program has promised
//! it: code of a JIT, or functions placed in the section `preemptible`.
//!
//! A handler looks a pc up in an immutable sorted snapshot. Registration replaces the snapshot
//! and must know when no handler can hold the old one. Handlers announce themselves in one of two
//! counters; a writer flips the one that new handlers use and waits until the other is empty,
//! twice, so that handlers that keep coming cannot starve it.
//!
//! | word | writers | readers | ordering | invariant |
//! |---|---|---|---|---|
//! | `table` | writer | handlers | store / load, `SeqCst` | points to a live snapshot |
//! | `readers[i]` | handlers ±1 | writer | `SeqCst` | counts the handlers that may hold a snapshot |
//! | `side` | writer | handlers | `SeqCst` | which counter a new handler uses |
//! | `Code::stopped` | handlers +1, injected calls −1 | `retire` | `SeqCst` / release, acquire | counts the interruptions that have not ended in the range |
//!
//! The writer stores `table`, then loads the counters; a handler increments a counter, then loads
//! `table`: store-then-load on both sides, hence sequential consistency throughout.
//!
//! References: `HalfLock` of the crate signal-hook-registry has the same two counters.

use core::fmt;
use core::ops::Range;
use core::ptr;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize};
use core::time::Duration;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use sigctx::fork::{Hooks, process};
use sigctx::sync::Mutex;
use sigctx::sys::Tid;
use threadreg::ThreadRef;

use crate::ranges::{Overlap, Table};

type Snapshot = Table<Code>;

static TABLE: AtomicPtr<Snapshot> = AtomicPtr::new(ptr::null_mut());
static READERS: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];
static SIDE: AtomicUsize = AtomicUsize::new(0);
/// What it protects is whole at every moment: a snapshot is put in the place of another at once.
static WRITER: Mutex = Mutex::new();

/// Without them, if there was no memory, the child of a fork may wait for a reader that it does not have.
static HOOKS: Hooks = Hooks::new(None, after_fork);

/// How many of the threads that stand still in a range are known by name.
const NAMED: usize = 4;

/// A registered range, and the threads that stand still in it.
#[derive(Debug)]
#[repr(align(8))]
pub(crate) struct Code {
    range: Range<usize>,
    /// Taken out of the table, and no handler sees it there any more.
    is_out: AtomicBool,
    stopped: AtomicU32,
    /// Thread ids; 0 is free.
    tids: [AtomicU32; NAMED],
}

impl Code {
    fn new(range: Range<usize>) -> Self {
        Self {
            range,
            is_out: AtomicBool::new(false),
            stopped: AtomicU32::new(0),
            tids: [const { AtomicU32::new(0) }; NAMED],
        }
    }
}

/// Counts an interruption of registered code, from before the call is injected until it is about to
/// return. It travels as one word through the injected call.
#[derive(Debug)]
pub(crate) struct Stop {
    code: *const Code,
    /// Which of the names is this thread's; `NAMED` for none.
    name: usize,
}

impl Stop {
    /// Async-signal-safe.
    fn new(code: &Arc<Code>, me: ThreadRef) -> Self {
        // One reference more: the range may be taken out, and its `CodeRange` gone, during the call.
        let code = Arc::into_raw(Arc::clone(code));
        // SAFETY: the reference just made.
        let this = unsafe { &*code };
        // SeqCst: counted before the handler leaves the readers, whom a writer waits for before it
        // looks at the count.
        this.stopped.fetch_add(1, SeqCst);
        let tid = me.tid().unwrap_or(0) as u32;
        // Relaxed: names, for an error.
        let is_mine = |slot: &AtomicU32| slot.compare_exchange(0, tid, Relaxed, Relaxed).is_ok();
        let name = this.tids.iter().position(is_mine).unwrap_or(NAMED);
        Self { code, name }
    }

    /// For `InjectedFn`'s word.
    pub(crate) fn as_word(&self) -> usize {
        const { assert!(align_of::<Code>() > NAMED, "the name has its place in the low bits") };
        self.code as usize | self.name
    }

    /// # Safety
    ///
    /// The word is from [`Stop::as_word`] of one that was not dropped, and is used once.
    pub(crate) unsafe fn from_word(word: usize) -> Self {
        let name = word & (align_of::<Code>() - 1);
        Self { code: (word - name) as *const Code, name }
    }
}

impl Drop for Stop {
    /// Async-signal-safe while there is another reference to the code.
    fn drop(&mut self) {
        // SAFETY: the reference that `new` made is ours until the end of this.
        let code = unsafe { Arc::from_raw(self.code) };
        if let Some(slot) = code.tids.get(self.name) {
            slot.store(0, Relaxed);
        }
        // Release: the writer that sees the count fall sees what the call did.
        code.stopped.fetch_sub(1, Release);
    }
}

/// Code registered as interruptible; dropping it takes the range out again.
///
/// # Signal safety
///
/// Neither [`retire`](Self::retire) nor the drop is async-signal-safe (AS-Unsafe lock heap).
///
/// # Examples
///
/// See [`register_code`].
#[must_use = "dropping this takes the code out of the registry"]
pub struct CodeRange(Arc<Code>);

impl fmt::Debug for CodeRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CodeRange({:#x}..{:#x})", self.0.range.start, self.0.range.end)
    }
}

impl PartialEq for CodeRange {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for CodeRange {}

/// Why code cannot be registered.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CodeError {
    /// The range is empty or runs backwards.
    Empty(Range<usize>),
    /// The range has an address in common with one that is registered.
    Overlaps {
        /// The range to be registered.
        range: Range<usize>,
        /// The registered one, or another one of the same call.
        registered: Range<usize>,
    },
}

impl fmt::Display for CodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty(r) => write!(f, "code range {:#x}..{:#x} is empty", r.start, r.end),
            Self::Overlaps { range: a, registered: b } => write!(
                f,
                "code range {:#x}..{:#x} overlaps {:#x}..{:#x}, which is registered",
                a.start, a.end, b.start, b.end
            ),
        }
    }
}

impl core::error::Error for CodeError {}

/// Registers the addresses `range` as code in which every instruction is a safe point.
///
/// From the return on, a task or a mutator that is asked to stop while its pc is in the range
/// makes a call there, as if the next instruction had been preceded by one.
///
/// # Signal safety
///
/// Not async-signal-safe (AS-Unsafe lock heap).
///
/// # Blocking
///
/// Waits for handlers that are looking up a pc at this moment.
///
/// # Errors
///
/// An empty range, or one that overlaps a registered one.
///
/// # Safety
///
/// 1. At each instruction in the range, arbitrary code may run on the thread: in particular the
///    code holds no lock that the calls made there may take, and is not in the middle of changing
///    anything that they look at.
/// 2. Below its stack pointer, the code uses no more than the red zone of the platform.
/// 3. The memory stays code until the returned value is dropped.
/// 4. The code can be read: the handler looks for a system call at the pc.
///
/// # Examples
///
/// ```
/// // A machine-code loop that a JIT has just written at `code`.
/// # let code = 0x7f00_0000_usize;
/// // SAFETY: the JIT emits no locks, and keeps the code until `range` is dropped.
/// let range = unsafe { preempt::register_code(code..code + 64) }?;
/// assert!(preempt::is_registered_code(code + 10));
/// drop(range);
/// assert!(!preempt::is_registered_code(code + 10));
/// # Ok::<(), preempt::CodeError>(())
/// ```
pub unsafe fn register_code(range: Range<usize>) -> Result<CodeRange, CodeError> {
    if range.is_empty() {
        return Err(CodeError::Empty(range));
    }
    let code = Arc::new(Code::new(range));
    edit(|table| table.insert(&code.range, Arc::clone(&code)).map_err(overlaps))?;
    Ok(CodeRange(code))
}

/// Registers many ranges at once, or none: what a JIT does with all functions of a module.
///
/// Takes about as long as the ranges take to sort. One by one, each registration copies a part of
/// the table that grows slowly with its size.
///
/// # Signal safety
///
/// Not async-signal-safe (AS-Unsafe lock heap).
///
/// # Blocking
///
/// As [`register_code`].
///
/// # Errors
///
/// An empty range, or one that overlaps a registered one or another one of the call: none is
/// registered then.
///
/// # Safety
///
/// As [`register_code`], for each range.
///
/// # Examples
///
/// ```
/// # let module = 0x7f00_0000_usize;
/// let functions = (0..1000).map(|i| module + i * 64..module + i * 64 + 48);
/// // SAFETY: the JIT emits no locks, and keeps the code until `code` is dropped.
/// let code = unsafe { preempt::register_code_ranges(functions) }?;
/// assert_eq!(code.len(), 1000);
/// assert!(preempt::is_registered_code(module + 64));
/// # Ok::<(), preempt::CodeError>(())
/// ```
pub unsafe fn register_code_ranges(
    ranges: impl IntoIterator<Item = Range<usize>>,
) -> Result<Vec<CodeRange>, CodeError> {
    let codes: Vec<_> = ranges.into_iter().map(|range| Arc::new(Code::new(range))).collect();
    if let Some(code) = codes.iter().find(|code| code.range.is_empty()) {
        return Err(CodeError::Empty(code.range.clone()));
    }
    edit(|table| {
        let all = codes.iter().map(|code| (code.range.clone(), Arc::clone(code)));
        table.insert_all(all).map_err(overlaps)
    })?;
    Ok(codes.into_iter().map(CodeRange).collect())
}

fn overlaps((range, registered): Overlap) -> CodeError {
    CodeError::Overlaps { range, registered }
}

impl CodeRange {
    /// Takes the range out of the registry and waits until no task stands still in it.
    ///
    /// After `Ok` no [`Suspended`](crate::Suspended) reports an instruction in the range, no frame of
    /// an interruption leads back into it, and none will. A thread that was let go last may still execute
    /// in it, and so may one that was not interrupted: only the program knows when the code is left.
    ///
    /// A drop takes the range out without waiting. What stands still there then goes on there when it is
    /// resumed: a suspended task, a task whose hook has not returned (a coroutine that was preempted and
    /// waits to be scheduled), a thread that makes the call of a nudge.
    ///
    /// # Blocking
    ///
    /// Until the last of them goes on, at most about `timeout`. Always for that long on a thread that
    /// stands still there itself (in a hook), and where a call was injected that never returned: its hook
    /// took the frame out (`Frame::park` of `sigctx`), its stack was given up, or a handler from before
    /// left the code before the call began.
    ///
    /// # Errors
    ///
    /// [`RetireError`] when the time is over: it names the threads. The range is out of the registry, and
    /// `retire` may be called again. In the child of a fork, interruptions of the parent's other threads
    /// count forever.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// # let code = 0x7f00_0000_usize;
    /// // SAFETY: nothing runs there.
    /// let range = unsafe { preempt::register_code(code..code + 64) }?;
    /// // … no task calls the function any more …
    /// range.retire(Duration::from_secs(1))?;
    /// // No task is stopped in there: the memory may be used again when none runs in there.
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn retire(&self, timeout: Duration) -> Result<(), RetireError> {
        const FIRST_NAP: Duration = Duration::from_micros(20);
        const LONGEST_NAP: Duration = Duration::from_millis(1);

        let start = Instant::now();
        self.take_out();
        let mut nap = FIRST_NAP;
        loop {
            // Acquire: partner, the release in `Stop::drop`. A handler that counted itself had done so
            // when `take_out` saw the last reader leave.
            let stopped = self.0.stopped.load(Acquire);
            if stopped == 0 {
                return Ok(());
            }
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Err(RetireError {
                    range: self.0.range.clone(),
                    stopped: stopped as usize,
                    threads: self.threads(),
                    waited: start.elapsed(),
                });
            }
            // A nap: a thread that leaves wakes no other, for it has just served a request and is late.
            let _ = sigctx::sys::futex_wait(&self.0.stopped, stopped, Some(nap.min(left)));
            nap = (nap * 2).min(LONGEST_NAP);
        }
    }

    fn threads(&self) -> Vec<(Tid, threadreg::Name)> {
        // Relaxed: names, for an error.
        let tids = self.0.tids.iter().map(|tid| tid.load(Relaxed) as Tid).filter(|tid| *tid != 0);
        let name = |tid| {
            let mut threads = threadreg::threads();
            threads.find(|thread| thread.tid() == Some(tid)).map(|thread| thread.name())
        };
        tids.map(|tid| (tid, name(tid).unwrap_or_default())).collect()
    }

    fn take_out(&self) {
        // Acquire, release: a thread that sees it set need not wait for handlers that saw the old table.
        // Two threads that come here at once both edit: the second finds nothing to take out.
        if !self.0.is_out.load(Acquire) {
            let removed: Result<(), CodeError> = edit(|table| {
                table.remove(&self.0.range, &self.0);
                Ok(())
            });
            debug_assert_eq!(removed, Ok(()));
            self.0.is_out.store(true, Release);
        }
    }
}

impl Drop for CodeRange {
    fn drop(&mut self) {
        self.take_out();
    }
}

/// Interruptions have not ended in a range that was [retired](CodeRange::retire).
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Debug, Clone)]
pub struct RetireError {
    range: Range<usize>,
    stopped: usize,
    threads: Vec<(Tid, threadreg::Name)>,
    waited: Duration,
}

impl RetireError {
    /// How many interruptions have not ended.
    #[must_use]
    pub fn stopped(&self) -> usize {
        self.stopped
    }

    /// The threads that were interrupted there, up to four, by id and name. A task that was switched
    /// out since may be on another thread, or on none.
    #[must_use]
    pub fn threads(&self) -> &[(Tid, threadreg::Name)] {
        &self.threads
    }
}

impl fmt::Display for RetireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Range { start, end }, stopped) = (&self.range, self.stopped);
        write!(f, "code {start:#x}..{end:#x} has {stopped} interruptions that have not ended in ")?;
        write!(f, "{:.0?}; interrupted there:", self.waited)?;
        for (i, &(tid, name)) in self.threads.iter().enumerate() {
            let thread = threadreg::Label { tid: Some(tid), name };
            write!(f, "{} thread {thread}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl core::error::Error for RetireError {}

/// Replaces the snapshot by an edited copy and frees the old one when no handler can hold it.
fn edit<E>(change: impl FnOnce(&mut Snapshot) -> Result<(), E>) -> Result<(), E> {
    let _ = HOOKS.register();
    let _one_writer = WRITER.guard(process());
    let old = TABLE.load(SeqCst);
    // SAFETY: `old` is null or a snapshot that only a writer frees, and we are the only writer.
    let mut next = unsafe { old.as_ref() }.cloned().unwrap_or_default();
    change(&mut next)?;
    TABLE.store(Box::into_raw(Box::new(next)), SeqCst);
    wait_for_readers();
    if !old.is_null() {
        // SAFETY: `old` came from `Box::into_raw`, was taken out of `TABLE`, and both counters have
        // been seen empty since: no handler holds it.
        drop(unsafe { Box::from_raw(old) });
    }
    Ok(())
}

fn wait_for_readers() {
    for _ in 0..2 {
        let side = SIDE.load(SeqCst);
        SIDE.store(side ^ 1, SeqCst);
        while READERS[side].load(SeqCst) != 0 {
            thread::yield_now();
        }
    }
}

/// In the child of a fork: the handlers that were looking something up ran on the parent's threads.
extern "C" fn after_fork() {
    for readers in &READERS {
        readers.store(0, SeqCst);
    }
}

/// Looks `pc` up and calls `then` with the registered code that it is in. Async-signal-safe if `then`
/// is: what it gets is not freed meanwhile.
fn look<R>(pc: usize, then: impl FnOnce(Option<&Arc<Code>>) -> R) -> R {
    let readers = if SIDE.load(SeqCst) == 0 { &READERS[0] } else { &READERS[1] };
    readers.fetch_add(1, SeqCst);
    // SAFETY: null, or a snapshot that is not freed while a counter is raised.
    let table = unsafe { TABLE.load(SeqCst).as_ref() };
    let result = then(table.and_then(|table| table.find(pc)));
    readers.fetch_sub(1, SeqCst);
    result
}

/// Handler of `me`: calls `interrupt` with a counted [`Stop`] if `pc` is in registered code. A thread that
/// retires the range waits for it unless `interrupt` drops it.
pub(crate) fn stop_at<R>(pc: usize, me: ThreadRef, interrupt: impl FnOnce(Stop) -> R) -> Option<R> {
    look(pc, |code| code.map(|code| interrupt(Stop::new(code, me))))
}

/// Whether `pc` lies in registered code.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe): two counters and two binary searches.
#[doc(alias = "isAsyncSafePoint")]
#[must_use]
pub fn is_registered_code(pc: usize) -> bool {
    look(pc, |code| code.is_some())
}

/// The address range of the functions that this program placed in the section `preemptible`.
///
/// A function goes there by `#[unsafe(link_section = "preemptible")]`. What the compiler inlines
/// into it is interruptible too; what it calls is not. Register the range with
/// [`register_code`], whose promises then cover those functions. Without such a function, the
/// program does not link.
///
/// # Examples
///
/// ```
/// #[unsafe(link_section = "preemptible")]
/// #[inline(never)]
/// fn spin(n: u64) -> u64 {
///     let mut sum = 0_u64;
///     for i in 0..n {
///         sum = sum.wrapping_add(i);
///     }
///     sum
/// }
///
/// // SAFETY: `spin` only computes.
/// let code = unsafe { preempt::register_code(preempt::preemptible_section!()) }?;
/// assert!(preempt::is_registered_code(spin as *const () as usize));
/// # drop(code);
/// # Ok::<(), preempt::CodeError>(())
/// ```
#[macro_export]
macro_rules! preemptible_section {
    () => {{
        // The linker defines these two for a section whose name is a C identifier.
        unsafe extern "C" {
            static __start_preemptible: u8;
            static __stop_preemptible: u8;
        }
        &raw const __start_preemptible as usize..&raw const __stop_preemptible as usize
    }};
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use testkit::{forked, in_child};

    /// F3. The fork comes while another thread registers code, whatever the scheduler does.
    #[test]
    fn code_is_registered_in_the_child_of_a_fork_beside_a_registration() {
        let name = "code::tests::code_is_registered_in_the_child_of_a_fork_beside_a_registration";
        in_child(name, Duration::from_secs(20), || {
            super::HOOKS.register().expect("there is memory");
            let (locked, is_locked) = mpsc::channel();
            let (unlock, to_unlock) = mpsc::channel::<()>();
            let writer = std::thread::spawn(move || {
                let _writer = super::WRITER.guard(super::process());
                locked.send(()).expect("the test waits");
                to_unlock.recv().expect("the test tells");
            });
            is_locked.recv().expect("the writer tells");
            let status = forked(|| {
                // SAFETY: nothing runs there.
                let code = unsafe { crate::register_code(0x1000..0x2000) }.expect("free");
                assert!(crate::is_registered_code(0x1800));
                drop(code);
                assert!(!crate::is_registered_code(0x1800));
            });
            unlock.send(()).expect("the writer waits");
            writer.join().expect("no panic");
            assert_eq!(status, 0, "in the child of fork");
        });
    }
}
