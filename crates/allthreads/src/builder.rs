//! The options of an operation, and the three ways to start one.

use core::ffi::{c_long, c_void};
use core::time::Duration;
use std::time::Instant;

use safepoint::{Reason, StopOptions, Stopped, World};
use sigctx::sys::{SigSet, Tid};
use threadreg::procfs::TaskDir;

use crate::batch::Batch;
use crate::calls::Call;
use crate::error::Error;
use crate::excluded::check_excluded;
use crate::hold::Release;
use crate::outcome::Outcome;
use crate::owner::{self, Request};
use crate::signal;

/// What a world is stopped for.
const REASON: Reason = Reason::new("all threads");

/// Which signal brings the threads into the hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Signal {
    /// Signal 33, which no mask made by libc can contain: also threads that blocked "everything"
    /// are reached. libc's own use of it goes on working.
    #[default]
    Libc33,
    /// A real-time signal that the program keeps free, for example `SIGRTMIN() + 3`. Threads that
    /// have it blocked are not reached, and the operation is refused. The caller itself is: the signal
    /// is unblocked for it while it waits, so that instances which it held back are delivered.
    ///
    /// While an operation runs against a full queue of signals, instances that somebody else sends
    /// with `kill` to the process as a whole may be taken for the operation's own, and lost.
    Number(i32),
}

/// When threads go on with their own code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Barrier {
    /// When all have made all calls and the results have been compared.
    #[default]
    Strict,
    /// Each when it has made its calls: one wake-up less. All are still held when the first one
    /// begins, so that no thread runs its own code in the old state after another did in the new.
    /// A different result is found when some have gone on.
    Early,
}

/// What to do when a call has another result on some thread than on the calling one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OnDivergence {
    /// Return [`Error::Diverged`].
    #[default]
    Error,
    /// Print a line, if standard error takes one without waiting, and end the process with
    /// `SIGKILL`: for a privilege that must not stay on any thread. The first process of a pid
    /// namespace, which no signal of its own can kill, ends with status 137 instead.
    ///
    /// With [`Barrier::Strict`] no thread runs its own code before the end; with
    /// [`Barrier::Early`] those that went on do, for as long as it takes to see the difference.
    Abort,
}

/// Which results of a call are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Results {
    /// The same number on every thread.
    #[default]
    Same,
    /// Any that are no errors: for calls whose result says something of a thread that may differ, like
    /// the keyring that `KEYCTL_JOIN_SESSION_KEYRING` left.
    Succeed,
}

/// What to do when threads have other ids or capabilities than the caller before a batch that changes
/// them: by the calls of [`privileges`](crate::privileges), or others of their kind by number.
///
/// A thread that may not do what the caller may would be refused what the caller was not, and the drop
/// would be half done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OnMixed {
    /// Return [`Error::Mixed`], with nothing applied, if they still differ after some 30 ms: a broadcast
    /// of libc's may be under way.
    #[default]
    Refuse,
    /// Make the calls. Who is refused one is then seen as [`OnDivergence`] says.
    Proceed,
}

/// What to do when the kernel has threads of its own in the process, which run no user code and keep
/// what they were made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum KernelWorkers {
    /// Leave them; [`Outcome::kernel_workers`] counts them.
    #[default]
    Leave,
    /// Return [`Error::KernelWorkers`], with nothing applied, if one polls an `io_uring`
    /// (`IORING_SETUP_SQPOLL`; the threads named `iou-sqp-`). Such a thread goes on doing what is put in
    /// the ring with the credentials that it was made with, long after a drop. Other workers of
    /// `io_uring` have those of the thread that submits.
    RefusePolling,
    /// The same if there is any.
    Refuse,
}

/// Makes system calls, or a function call, on every thread of the process.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use allthreads::{AllThreads, Barrier, Batch};
///
/// let outcome = AllThreads::new()
///     .timeout(Duration::from_millis(500))
///     .barrier(Barrier::Early)
///     .batch(&Batch::new().no_new_privs())?;
/// println!("{} threads in {:?}", outcome.threads, outcome.elapsed);
/// # Ok::<(), allthreads::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default)]
#[must_use]
pub struct AllThreads<'a> {
    signal: Signal,
    barrier: Barrier,
    on_divergence: OnDivergence,
    timeout: Option<Duration>,
    excluded: &'a [Tid],
    world: Option<&'a World>,
    results: Results,
    on_mixed: OnMixed,
    kernel_workers: KernelWorkers,
    tasks: Option<&'a TaskDir>,
}

impl<'a> AllThreads<'a> {
    /// The default options: signal 33, strict barrier, errors returned, two seconds and two
    /// milliseconds a thread.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    pub const fn new() -> Self {
        Self {
            signal: Signal::Libc33,
            barrier: Barrier::Strict,
            on_divergence: OnDivergence::Error,
            timeout: None,
            excluded: &[],
            world: None,
            results: Results::Same,
            on_mixed: OnMixed::Refuse,
            kernel_workers: KernelWorkers::Leave,
            tasks: None,
        }
    }

    /// Sets how long to wait for a [`world`](Self::world) to stop, for the turn among other
    /// operations, and for all threads to be held; all of it together. What follows, the calls
    /// themselves, is not bounded. Longer than the clock runs is no bound.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Sets the signal.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    pub const fn signal(mut self, signal: Signal) -> Self {
        self.signal = signal;
        self
    }

    /// Sets when threads go on.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    pub const fn barrier(mut self, barrier: Barrier) -> Self {
        self.barrier = barrier;
        self
    }

    /// Sets what happens when results differ.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    pub const fn on_divergence(mut self, on_divergence: OnDivergence) -> Self {
        self.on_divergence = on_divergence;
        self
    }

    /// Leaves out threads that the caller vouches for: they run nothing that depends on the calls,
    /// and make no thread. For threads that never answer a signal because an emulator or a tracer
    /// keeps them for itself; up to [`MAX_EXCLUDED`](crate::MAX_EXCLUDED). [`exclude_always`](crate::exclude_always) does
    /// it for the whole process.
    ///
    /// They go by their ids, so they must live until the operation ends; ids that no thread of the
    /// process has are ignored, as are repetitions and the caller's own. An id that is not positive
    /// is refused, with [`Error::BadThread`].
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    pub const fn exclude(mut self, tids: &'a [Tid]) -> Self {
        self.excluded = tids;
        self
    }

    /// Stops a world first, and lets it run again after the operation: its mutators are then at
    /// safe points, and see all of the operation or nothing. The caller must not be a running
    /// mutator of it. With a world, an operation is not async-signal-safe.
    ///
    /// The [`timeout`](Self::timeout), or the default one, covers the stop and what follows
    /// together.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    pub const fn world(mut self, world: &'a World) -> Self {
        self.world = Some(world);
        self
    }

    /// Sets which results are equal.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    pub const fn results(mut self, results: Results) -> Self {
        self.results = results;
        self
    }

    /// Sets what happens when threads have other credentials before the operation.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    pub const fn on_mixed(mut self, on_mixed: OnMixed) -> Self {
        self.on_mixed = on_mixed;
        self
    }

    /// Sets what happens when the kernel has threads of its own in the process.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    pub const fn kernel_workers(mut self, kernel_workers: KernelWorkers) -> Self {
        self.kernel_workers = kernel_workers;
        self
    }

    /// Finds the threads by a directory that was opened before, for a process that has no `/proc` any
    /// more: after `chroot`, or behind Landlock. It belongs to one process: a child of `fork` opens its
    /// own, by [`TaskDir::open_at`] if need be.
    ///
    /// Where a security module lets the directory be listed, but no file in it be read, operations
    /// work; what keeps a thread that does not come cannot be told then.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use allthreads::threadreg::procfs::TaskDir;
    /// use allthreads::{AllThreads, Batch};
    ///
    /// let tasks = TaskDir::open()?;
    /// std::os::unix::fs::chroot("/var/empty")?;
    /// AllThreads::new().tasks(&tasks).batch(&Batch::new().no_new_privs())?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub const fn tasks(mut self, tasks: &'a TaskDir) -> Self {
        self.tasks = Some(tasks);
        self
    }

    /// Makes one system call on every thread.
    ///
    /// # Signal safety
    ///
    /// As [`batch`](Self::batch).
    ///
    /// # Blocking
    ///
    /// As [`batch`](Self::batch).
    ///
    /// # Errors
    ///
    /// As [`batch`](Self::batch).
    ///
    /// # Safety
    ///
    /// 1. The call is sound on every thread of the process, in a signal handler at any point of
    ///    its code, and with all other threads held.
    /// 2. Pointers among the arguments are valid for the call, on all threads at the same time.
    ///
    /// # References
    ///
    /// Go's `syscall.AllThreadsSyscall6`; libpsx's `psx_syscall6`.
    #[doc(alias = "AllThreadsSyscall")]
    #[doc(alias = "setxid")]
    pub unsafe fn syscall(&self, number: c_long, args: [usize; 6]) -> Result<Outcome, Error> {
        self.run(&[Call::Syscall(number, args)])
    }

    /// Makes the calls of a batch on every thread, in one stop.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe: it allocates nothing and takes no lock but its own, which is never held
    /// by a thread that can run a handler. It wants about 16 KiB of stack, which is more than the
    /// alternate stack that std gives a thread.
    ///
    /// # Blocking
    ///
    /// Waits for other operations, and for every thread to come, until the deadline; then for the
    /// calls to be made on all of them. A thread that a debugger stops after it was held is waited
    /// for without a bound. Interrupts sleeping system calls of all threads; those that the kernel
    /// can restart go on.
    ///
    /// # Errors
    ///
    /// See [`Error`]; [`Error::applied`] says what is in effect nevertheless.
    pub fn batch(&self, batch: &Batch<'_>) -> Result<Outcome, Error> {
        self.run(batch.check()?)
    }

    /// Runs `function(data)` once on every thread: for what is not one system call.
    ///
    /// It runs in a signal handler, on the calling thread as on all others. So what it does to registers
    /// is undone when it returns, on every thread alike, and for control registers (the rounding mode,
    /// flush-to-zero, protection keys) as for others: they cannot be changed in this way. The one
    /// exception is a process of one thread, where it is a plain call.
    ///
    /// # Signal safety
    ///
    /// As [`batch`](Self::batch).
    ///
    /// # Blocking
    ///
    /// As [`batch`](Self::batch).
    ///
    /// # Errors
    ///
    /// As [`batch`](Self::batch), but for a divergence: a function has no result.
    /// [`Error::Refused`] when the calling thread cannot have the handler run.
    ///
    /// # Safety
    ///
    /// 1. `function` is async-signal-safe and does not unwind; it makes no use of thread-local
    ///    storage, `errno` included, if the process has threads that were not made by libc. Elsewhere
    ///    it leaves `errno` as it finds it, as any handler does: the interrupted code's is not kept.
    /// 2. It waits for no other thread: all of them are held, or run it too.
    /// 3. `data` may be used on all threads at the same time.
    pub unsafe fn call(
        &self,
        function: unsafe extern "C" fn(*mut c_void),
        data: *mut c_void,
    ) -> Result<Outcome, Error> {
        self.run(&[Call::Function(function, data)])
    }

    fn run(&self, calls: &[Call]) -> Result<Outcome, Error> {
        let signal = match self.signal {
            Signal::Libc33 => signal::DEFAULT,
            Signal::Number(signal) => signal,
        };
        // Signals below 32 lose their information when the queue is full; 32 is libc's alone.
        if signal < signal::DEFAULT || SigSet::of(signal).is_empty() {
            return Err(Error::BadSignal { signal });
        }
        check_excluded(self.excluded)?;
        let start = Instant::now();
        // Before any thread is held: who stops a world waits for its mutators to run on.
        let stopped = match self.world {
            Some(world) => Some(self.stop(world)?),
            None => None,
        };
        let end = owner::run(&Request {
            calls,
            signal,
            release: match self.barrier {
                Barrier::Strict => Release::Together,
                Barrier::Early => Release::Each,
            },
            on_divergence: self.on_divergence,
            start,
            timeout: self.timeout,
            excluded: self.excluded,
            results: self.results,
            on_mixed: self.on_mixed,
            kernel_workers: self.kernel_workers,
            tasks: self.tasks,
        });
        if let Some(stopped) = stopped {
            stopped.resume();
        }
        end
    }

    fn stop<'w>(&self, world: &'w World) -> Result<Stopped<'w>, Error> {
        let timeout = match self.timeout {
            Some(timeout) => timeout,
            None => owner::default_timeout(owner::population(self.tasks)?),
        };
        let options = StopOptions::new(REASON).timeout(timeout);
        world.stop_from_outside_with(options).map_err(Error::WorldNotStopped)
    }
}
