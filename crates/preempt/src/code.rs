//! The code that may be interrupted at any instruction, registered by range.
//!
//! Rust has no tables of unsafe points, so a pc is a safe point only where somebody has promised
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
//! | `turn` | writer | handlers | `SeqCst` | which counter a new handler uses |
//!
//! The writer stores `table`, then loads the counters; a handler increments a counter, then loads
//! `table`: store-then-load on both sides, hence sequential consistency throughout.
//!
//! References: `HalfLock` of the crate signal-hook-registry has the same two counters.

use core::fmt;
use core::ops::Range;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::SeqCst};
use std::sync::Mutex;
use std::thread;

type Snapshot = Vec<Range<usize>>;

static TABLE: AtomicPtr<Snapshot> = AtomicPtr::new(ptr::null_mut());
static READERS: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];
static TURN: AtomicUsize = AtomicUsize::new(0);
static WRITER: Mutex<()> = Mutex::new(());

/// Code registered as interruptible; dropping it takes the range out again.
///
/// # Examples
///
/// See [`register_code`].
#[derive(PartialEq, Eq)]
#[must_use = "dropping this takes the code out of the registry"]
pub struct CodeRange(Range<usize>);

impl fmt::Debug for CodeRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CodeRange({:#x}..{:#x})", self.0.start, self.0.end)
    }
}

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
        /// The registered one.
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
/// Not async-signal-safe: allocates and locks.
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
    edit(|snapshot| {
        let at = snapshot.partition_point(|r| r.end <= range.start);
        if let Some(next) = snapshot.get(at).filter(|r| r.start < range.end) {
            let registered = next.clone();
            return Err(CodeError::Overlaps { range: range.clone(), registered });
        }
        snapshot.insert(at, range.clone());
        Ok(())
    })?;
    Ok(CodeRange(range))
}

impl Drop for CodeRange {
    fn drop(&mut self) {
        let removed: Result<(), CodeError> = edit(|snapshot| {
            snapshot.retain(|r| *r != self.0);
            Ok(())
        });
        debug_assert_eq!(removed, Ok(()));
    }
}

/// Replaces the snapshot by an edited copy and frees the old one when no handler can hold it.
fn edit<E>(change: impl FnOnce(&mut Snapshot) -> Result<(), E>) -> Result<(), E> {
    crate::fork::watch();
    let _one_writer = WRITER.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
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
        let turn = TURN.load(SeqCst);
        TURN.store(turn ^ 1, SeqCst);
        while READERS[turn].load(SeqCst) != 0 {
            thread::yield_now();
        }
    }
}

/// In the child of a fork: the handlers that were looking something up ran on the parent's threads.
pub(crate) fn after_fork() {
    for readers in &READERS {
        readers.store(0, SeqCst);
    }
}

/// Whether `pc` lies in registered code.
///
/// # Signal safety
///
/// Async-signal-safe: two counters and a binary search.
#[must_use]
pub fn is_registered_code(pc: usize) -> bool {
    let readers = if TURN.load(SeqCst) == 0 { &READERS[0] } else { &READERS[1] };
    readers.fetch_add(1, SeqCst);
    // SAFETY: null, or a snapshot that is not freed while a counter is raised.
    let found = unsafe { TABLE.load(SeqCst).as_ref() }.is_some_and(|snapshot| {
        let at = snapshot.partition_point(|r| r.end <= pc);
        snapshot.get(at).is_some_and(|r| r.start <= pc)
    });
    readers.fetch_sub(1, SeqCst);
    found
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
