//! What is to be done: [`AllThreads`], an operation's options and the ways to start one, and [`Batch`], its
//! calls.

use core::ffi::{c_long, c_void};
use core::fmt;
use core::marker::PhantomData;
use core::time::Duration;
use std::time::Instant;

use safepoint::{Reason, StopOptions, Stopped, World};
use sigctx::sys::{SigSet, Tid};
use threadreg::procfs::TaskDir;

use crate::calls::{Call, CallName, Function, MAX_CALLS};
use crate::error::Error;
use crate::excluded::check_excluded;
use crate::hold::Release;
use crate::options::{Barrier, KernelWorkers, OnDivergence, OnMixed, Results, Signal};
use crate::report::Report;
use crate::requester::{self, Request};
use crate::signal;

/// What a world is stopped for.
const REASON: Reason = Reason::new("all threads");

/// Makes system calls, or a function call, on every thread of the process.
///
/// The thread that asks is the *requester*: it makes the calls first, and then all others do.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe), but for an operation with a [`world`](Self::world), which
/// is not (AS-Unsafe lock), and for the first operation of a process, which asks the dynamic linker to keep
/// the library with the handler loaded (AS-Unsafe lock): make one, of no calls, before a handler may. An
/// operation allocates nothing and takes no other lock but the crate's own, and no handler can run on a
/// thread that has that one. It wants about 16 KiB of stack, which is more than the
/// alternate stack that std gives a thread.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use allthreads::{AllThreads, Barrier, Batch};
///
/// let report = AllThreads::new()
///     .timeout(Duration::from_millis(500))
///     .barrier(Barrier::Early)
///     .batch(&Batch::new().no_new_privs())?;
/// println!("{} threads in {:?}", report.threads, report.elapsed);
/// # Ok::<(), allthreads::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default)]
#[must_use]
#[doc(alias = "AllThreadsSyscall")]
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
    /// operations, and for all threads to be held; all of it together. The calls themselves are not
    /// bounded. A timeout that reaches beyond the clock's end is none.
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Sets the signal.
    pub const fn signal(mut self, signal: Signal) -> Self {
        self.signal = signal;
        self
    }

    /// Sets when threads go on.
    pub const fn barrier(mut self, barrier: Barrier) -> Self {
        self.barrier = barrier;
        self
    }

    /// Sets what happens when results differ.
    pub const fn on_divergence(mut self, on_divergence: OnDivergence) -> Self {
        self.on_divergence = on_divergence;
        self
    }

    /// Leaves out threads that the program vouches for: they run nothing that depends on the calls, and make
    /// no thread. For threads that never answer a signal because an emulator or a tracer keeps them; up to
    /// [`MAX_EXCLUDED`](crate::MAX_EXCLUDED). [`exclude_always`](crate::exclude_always) does it for the
    /// whole process.
    ///
    /// They are named by their ids, so they must live until the operation ends. Ids that no thread of the
    /// process has are ignored, as are repetitions and the requester's own. An id that is not positive is
    /// refused with [`Error::BadThread`].
    pub const fn exclude(mut self, tids: &'a [Tid]) -> Self {
        self.excluded = tids;
        self
    }

    /// Stops a world first, and lets it run again after the operation: its mutators are then at safe
    /// points, and see all of the operation or nothing. The requester must not be a running mutator of it.
    /// With a world, an operation is not async-signal-safe (AS-Unsafe lock).
    ///
    /// The [`timeout`](Self::timeout), or the default one, covers the stop and what follows
    /// together.
    pub const fn world(mut self, world: &'a World) -> Self {
        self.world = Some(world);
        self
    }

    /// Sets which results are equal.
    pub const fn results(mut self, results: Results) -> Self {
        self.results = results;
        self
    }

    /// Sets what happens when threads have other credentials before the operation.
    pub const fn on_mixed(mut self, on_mixed: OnMixed) -> Self {
        self.on_mixed = on_mixed;
        self
    }

    /// Sets what happens when the kernel has threads of its own in the process.
    pub const fn kernel_workers(mut self, kernel_workers: KernelWorkers) -> Self {
        self.kernel_workers = kernel_workers;
        self
    }

    /// Finds the threads by a directory that was opened before, for a process that has no `/proc` any more:
    /// after `chroot`, or behind Landlock. The directory belongs to one process: a child of `fork` opens
    /// its own, with [`TaskDir::open_at`] if need be.
    ///
    /// Where a security module lets the directory be listed, but no file in it be read, operations work.
    /// An error cannot say then what keeps a thread away.
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
    #[doc(alias = "doAllThreadsSyscall")]
    #[doc(alias = "setxid")]
    #[doc(alias = "INTERNAL_SYSCALL_SETXID")]
    pub unsafe fn syscall(&self, number: c_long, args: [usize; 6]) -> Result<Report, Error> {
        self.run(&[Call::Syscall(number, args)])
    }

    /// Makes the calls of a batch on every thread, in one stop.
    ///
    /// # Blocking
    ///
    /// Waits for other operations, and for every thread to come, until the deadline; then for all of them
    /// to make the calls. If a debugger stops a thread that is held, the operation waits until the thread
    /// goes on. Interrupts sleeping system calls of all threads; those that the kernel can restart go on.
    ///
    /// # Errors
    ///
    /// See [`Error`]; [`Error::applied`] says what is in effect nevertheless.
    pub fn batch(&self, batch: &Batch<'_>) -> Result<Report, Error> {
        self.run(batch.check()?)
    }

    /// Runs `function(data)` once on every thread: for what is not one system call.
    ///
    /// It runs in a signal handler, on the requester as on all others. So when it returns, all registers
    /// have their old values on every thread, control registers (the rounding mode, flush-to-zero,
    /// protection keys) too: they cannot be changed in this way. In a process of one thread it is a plain
    /// call instead.
    ///
    /// # Blocking
    ///
    /// As [`batch`](Self::batch).
    ///
    /// # Errors
    ///
    /// As [`batch`](Self::batch), but for a divergence: a function has no result.
    /// [`Error::Refused`] when the handler cannot be made to run on the requester.
    ///
    /// # Safety
    ///
    /// 1. `function` is async-signal-safe and does not unwind; it makes no use of thread-local
    ///    storage, `errno` included, if the process has threads that libc did not make. Otherwise it
    ///    leaves `errno` as it found it, as any handler does.
    /// 2. It waits for no other thread: all of them are held, or run it too.
    /// 3. `data` may be used on all threads at the same time.
    pub unsafe fn call(
        &self,
        function: unsafe extern "C" fn(*mut c_void),
        data: *mut c_void,
    ) -> Result<Report, Error> {
        self.run(&[Call::Function(function, data)])
    }

    fn run(&self, calls: &[Call]) -> Result<Report, Error> {
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
        // Before any thread is held: a stop of a world waits for its mutators to run on to a safe point.
        let stopped = match self.world {
            Some(world) => Some(self.stop(world)?),
            None => None,
        };
        let end = requester::run(&Request {
            calls,
            signal,
            release: match self.barrier {
                Barrier::Strict => Release::Together,
                Barrier::Early => Release::Each,
                // With others held it is known before any call is made which workers there are.
                Barrier::OnePhase if self.kernel_workers != KernelWorkers::Leave => Release::Each,
                Barrier::OnePhase => Release::AtOnce,
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
            None => requester::default_timeout(requester::population(self.tasks)?),
        };
        let options = StopOptions::new(REASON).timeout(timeout);
        world.stop_from_outside_with(options).map_err(Error::WorldNotStopped)
    }
}

/// Up to [`MAX_CALLS`] calls that all threads make in one stop, in order. It holds them in place, in 4 KiB.
///
/// The requester makes them first. It stops at the first one that the kernel refuses, and all other
/// threads make exactly those before it: all threads end with the same calls in effect. No thread runs its
/// own code between the first call and the last one.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
///
/// # Examples
///
/// ```
/// let report = allthreads::Batch::new().no_new_privs().apply()?;
/// assert_eq!(report.values(), [0]);
/// # Ok::<(), allthreads::Error>(())
/// ```
#[derive(Clone, Copy)]
pub struct Batch<'a> {
    calls: [Call; MAX_CALLS],
    asked: usize,
    /// The first call with an id that means "unchanged" to the kernel.
    bad_id: Option<usize>,
    /// What the arguments point to.
    pointees: PhantomData<&'a [u8]>,
}

impl Batch<'_> {
    /// A batch without calls.
    #[must_use]
    pub const fn new() -> Self {
        Self { calls: [Call::NONE; MAX_CALLS], asked: 0, bad_id: None, pointees: PhantomData }
    }

    pub(crate) const fn with(mut self, call: Call) -> Self {
        if self.asked < MAX_CALLS {
            self.calls[self.asked] = call;
        }
        self.asked += 1;
        self
    }

    /// Remembers that the call added next is not to be made.
    pub(crate) const fn refuse_next(mut self) -> Self {
        if self.bad_id.is_none() {
            self.bad_id = Some(self.asked);
        }
        self
    }

    /// Adds a system call.
    ///
    /// # Safety
    ///
    /// For as long as the batch may be applied:
    ///
    /// 1. The call is sound on every thread of the process, in a signal handler at any point of
    ///    its code, and with all other threads held.
    /// 2. Pointers among the arguments are valid for the call, on all threads at the same time.
    #[must_use]
    pub const unsafe fn call(self, number: c_long, args: [usize; 6]) -> Self {
        self.with(Call::Syscall(number, args))
    }

    /// Adds a system call that the requester makes alone: for what belongs to the process, like its root
    /// directory or its umask, and is changed for all threads by one of them.
    ///
    /// It has its place among the others: when it is refused, the calls after it are not made. A thread
    /// that does not share what is changed (`unshare(CLONE_FS)`) keeps what it has.
    ///
    /// # Safety
    ///
    /// For as long as the batch may be applied:
    ///
    /// 1. The call is sound on the thread that applies the batch, with all other threads held.
    /// 2. Pointers among the arguments are valid for the call.
    ///
    /// # Examples
    ///
    /// ```
    /// use allthreads::Batch;
    ///
    /// // SAFETY: no pointers.
    /// let batch = unsafe { Batch::new().call_once(libc::SYS_umask, [0o077, 0, 0, 0, 0, 0]) };
    /// let report = batch.no_new_privs().apply()?;
    /// println!("the mask was {:o}", report.values()[0]);
    /// # Ok::<(), allthreads::Error>(())
    /// ```
    #[must_use]
    pub const unsafe fn call_once(self, number: c_long, args: [usize; 6]) -> Self {
        self.with(Call::Once(number, args))
    }

    /// Adds a function that every thread runs once. Its result counts as 0.
    ///
    /// # Safety
    ///
    /// As for [`AllThreads::call`], for as long as the batch may be applied.
    #[must_use]
    pub const unsafe fn function(
        self,
        function: unsafe extern "C" fn(*mut c_void),
        data: *mut c_void,
    ) -> Self {
        self.with(Call::Function(function as Function, data))
    }

    /// Makes the calls on every thread, with the default options.
    ///
    /// # Blocking
    ///
    /// As [`AllThreads::batch`].
    ///
    /// # Errors
    ///
    /// As [`AllThreads::batch`].
    pub fn apply(&self) -> Result<Report, Error> {
        AllThreads::new().batch(self)
    }

    /// The calls; an error when there are too many, or when one has an id that means "unchanged".
    pub(crate) fn check(&self) -> Result<&[Call], Error> {
        if self.asked > MAX_CALLS {
            return Err(Error::TooManyCalls { calls: self.asked });
        }
        if let Some(call) = self.bad_id {
            return Err(Error::BadId { call, name: CallName::of(&self.calls, call) });
        }
        Ok(self.calls.get(..self.asked).unwrap_or_default())
    }
}

impl Default for Batch<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Batch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.calls.iter().take(self.asked)).finish()
    }
}
