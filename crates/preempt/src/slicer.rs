//! Time slices: a thread that asks tasks to make way when they have run for long enough.

use core::fmt;
use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;
use std::io;
use std::sync::Arc;

use sigctx::fork::process;
use threadreg::JoinHandle;

use crate::slices::Slices;
use crate::task::Task;

/// A shorter slice would be over before a task that makes way has come to another.
const SHORTEST: Duration = Duration::from_micros(100);
/// Half of what the clock of microseconds can tell apart.
const LONGEST: Duration = Duration::from_mins(30);

/// Asks tasks to make way when they have run for a slice: a thread of its own.
///
/// A task that has been [added](Slicer::add) runs its hook at its first safe point after each slice, where it makes way
/// for another. A slice begins when a thread enters the task, when it comes back from
/// [`Task::blocking`], when it goes on after a suspension, and when the slice before it ends. It is measured by the
/// clock of the wall, as in Go: the time in which the kernel gave the processor to other threads counts.
///
/// No signal is sent to a thread that runs no such task, to one that is [blocked](Task::blocking), and to one that
/// sleeps in a system call, where the signal would interrupt it. A task that finds no safe point, since it runs
/// other code, is asked again after another slice. While no task runs the slicer sleeps.
///
/// Dropping it ends its thread. Its tasks run on without slices then, and so they do in the child of a fork, until they
/// are added to another slicer there.
///
/// # Signal safety
///
/// No method is async-signal-safe: all are AS-Unsafe lock heap.
///
/// # Cost
///
/// What a task that was added costs more is a look at the clock and a lock that nobody else has, each time that it is
/// entered, left, or blocked. The slicer wakes once for each slice that ends, and asks the kernel for the state of
/// the one thread where it does: some ten microseconds.
///
/// # Examples
///
/// ```
/// use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
/// use std::time::Duration;
///
/// static MADE_WAY: AtomicU32 = AtomicU32::new(0);
///
/// let slicer = preempt::Slicer::start(Duration::from_millis(1))?;
/// let task = preempt::Task::with_hook(|_| _ = MADE_WAY.fetch_add(1, Relaxed));
/// slicer.add(&task);
/// let _me = threadreg::attach()?;
/// task.enter(|| {
///     while MADE_WAY.load(Relaxed) < 3 {
///         preempt::poll();
///     }
/// })?;
/// assert!(task.run_time() >= Duration::from_millis(3));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # References
///
/// Go's `sysmon` and `retake` (`runtime/proc.go`).
#[doc(alias("sysmon", "retake", "timeslice", "quantum"))]
pub struct Slicer {
    slices: Arc<Slices>,
    /// Taken when the thread is joined.
    thread: ManuallyDrop<Option<JoinHandle<()>>>,
    /// The child of a fork does not have the thread.
    process: u32,
}

impl fmt::Debug for Slicer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slicer")
            .field("slice", &self.slice())
            .field("is_off", &self.slices.is_off())
            .finish_non_exhaustive()
    }
}

/// Tells why there is no slicer.
#[derive(Debug)]
#[non_exhaustive]
pub enum SlicerError {
    /// A slice is to last from 100 µs to half an hour.
    Slice {
        /// How long it was to last.
        asked: Duration,
    },
    /// There is no thread to be had for it.
    NoThread(io::Error),
}

impl fmt::Display for SlicerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slice { asked } => {
                write!(f, "a slice of {asked:?}: give one from {SHORTEST:?} to {LONGEST:?}")
            }
            Self::NoThread(_) => f.write_str("the slicer needs a thread, and none could be made"),
        }
    }
}

impl core::error::Error for SlicerError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Slice { .. } => None,
            Self::NoThread(error) => Some(error),
        }
    }
}

impl Slicer {
    /// A slicer whose slices last for `slice`.
    ///
    /// Without [`install`](crate::install) tasks make way at [polls](crate::poll) alone.
    ///
    /// # Errors
    ///
    /// [`SlicerError`]: `slice` is too short or too long, or there is no thread to be had.
    pub fn start(slice: Duration) -> Result<Self, SlicerError> {
        static LAST_ID: AtomicU32 = AtomicU32::new(0);
        if !(SHORTEST..=LONGEST).contains(&slice) {
            return Err(SlicerError::Slice { asked: slice });
        }
        // After 2^32 of them one would end the slices of the first, if that is still there.
        let id = LAST_ID.fetch_add(1, Ordering::Relaxed).wrapping_add(1).max(1);
        let slices = Arc::new(Slices::new(id, slice.as_micros() as u32));
        let thread = {
            let slices = slices.clone();
            let builder = threadreg::Builder::new().name("preempt-slicer");
            builder.spawn(move || slices.run()).map_err(SlicerError::NoThread)?
        };
        Ok(Self { slices, thread: ManuallyDrop::new(Some(thread)), process: process() })
    }

    /// How long a slice lasts.
    #[must_use]
    pub fn slice(&self) -> Duration {
        self.slices.slice()
    }

    /// Ends the slices of the task, from the next time on that a thread enters it. A task has one slicer: the one that
    /// it was added to last.
    pub fn add(&self, task: &Task) {
        task.0.slicer.store(Some(self.slices.clone()));
    }

    /// Lets tasks run without slices, until [`Slicer::turn_on`]. When this has returned no slice ends any more: a
    /// signal that is still on its way finds nothing asked. A hook that has begun runs to its end, and so does one that a
    /// task has been told of but has not come to.
    #[doc(alias = "asyncpreemptoff")]
    pub fn turn_off(&self) {
        self.slices.turn_off();
    }

    /// Slices end again.
    pub fn turn_on(&self) {
        self.slices.turn_on();
    }
}

impl Drop for Slicer {
    fn drop(&mut self) {
        // What the child of a fork has of the thread, its stack among it, is leaked.
        let here = self.process == process();
        if let Some(thread) = here.then(|| self.thread.take()).flatten() {
            self.slices.end();
            // It has told of its panic itself.
            let _ended = thread.join();
        }
    }
}
