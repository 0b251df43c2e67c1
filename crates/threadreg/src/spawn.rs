//! Making threads: std's shape, listed before they exist.

use std::io;
use std::thread;

use sigctx::altstack::AltStack;
use sigctx::sys::SigSet;

use crate::creation::{NotCreated, create};
use crate::mask;
use crate::membership::Membership;
use crate::name::Name;
use crate::registry::{self, ARENA, CREATION};
use crate::thread_ref::ThreadRef;

/// Spawns a registered thread, as [`std::thread::spawn`] does an unregistered one.
///
/// # Signal safety
///
/// Not async-signal-safe.
///
/// # Blocking
///
/// Waits while creation is frozen ([`freeze_creation`](crate::freeze_creation)).
///
/// # Panics
///
/// When the system cannot make a thread; [`Builder::spawn`] returns that as an error.
///
/// # Examples
///
/// ```
/// let worker = threadreg::spawn(|| threadreg::current().is_some());
/// assert!(worker.join().unwrap());
/// ```
pub fn spawn<F, T>(f: F) -> JoinHandle<T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    Builder::new().spawn(f).expect("failed to spawn a thread")
}

/// How a thread is to be made; the registered counterpart of [`std::thread::Builder`].
#[must_use = "a builder makes no thread until `spawn`"]
#[derive(Clone, Debug, Default)]
pub struct Builder {
    name: Option<String>,
    stack_size: Option<usize>,
    mask: Option<SigSet>,
}

impl Builder {
    /// A thread with no name, std's stack size and its creator's signal mask.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe.
    pub fn new() -> Self {
        Self::default()
    }

    /// Names the thread, for the registry and for the kernel.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets the size of the thread's stack, in bytes.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe.
    pub fn stack_size(mut self, size: usize) -> Self {
        self.stack_size = Some(size);
        self
    }

    /// Sets the signal mask that the thread begins with, in place of its creator's.
    ///
    /// Signals given to [`never_block`](crate::never_block) are taken out of it.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe.
    pub fn signal_mask(mut self, mask: SigSet) -> Self {
        self.mask = Some(mask);
        self
    }

    /// Makes the thread.
    ///
    /// It is listed before it can exist, and listed still when this returns, unless it has ended by
    /// then. While it begins and ends its signals are blocked, so a handler finds it either fully
    /// registered or foreign. It leaves the registry after `f` and what `f` owns are gone, also
    /// when `f` panics, and before the destructors of its thread-locals, which run with signals
    /// blocked.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe.
    ///
    /// # Blocking
    ///
    /// Waits while creation is frozen ([`freeze_creation`](crate::freeze_creation)), with signals
    /// as the caller had them.
    ///
    /// # Errors
    ///
    /// Those of [`std::thread::Builder::spawn`], and `InvalidInput` for a name with a zero byte.
    /// The thread was then unlisted again.
    pub fn spawn<F, T>(self, f: F) -> io::Result<JoinHandle<T>>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let Self { name, stack_size, mask } = self;
        if name.as_deref().is_some_and(|name| name.contains('\0')) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "zero byte in thread name"));
        }
        registry::init();
        let label = Name::new(name.as_deref().unwrap_or_default());
        let mut builder = thread::Builder::new();
        if let Some(name) = name {
            builder = builder.name(name);
        }
        if let Some(size) = stack_size {
            builder = builder.stack_size(size);
        }

        let side = ReadSide::take();
        let mask = mask::for_new_thread(mask.unwrap_or(side.mask));
        let made = create(&CREATION, &ARENA, &label, |record, generation| {
            let thread = ThreadRef { record, generation };
            let inner = builder.spawn(move || run(thread, mask, f))?;
            Ok(JoinHandle { inner, thread })
        });
        drop(side);
        made.map_err(|error| match error {
            NotCreated::Full => io::Error::new(io::ErrorKind::QuotaExceeded, "registry full"),
            NotCreated::Clone(error) => error,
        })
    }
}

/// The new thread, with signals blocked as its creator left them.
fn run<T>(thread: ThreadRef, mask: SigSet, f: impl FnOnce() -> T) -> T {
    struct Leave(Option<Membership>);

    impl Drop for Leave {
        fn drop(&mut self) {
            // Signals stay blocked: what is left of the thread belongs to libc.
            self.0.take().map(Membership::end);
        }
    }

    // Without memory for a large alternate stack the thread keeps std's small one; calls are not
    // injected into it then, which `sigctx` checks at each injection.
    let alternate = AltStack::install().ok();
    let _leave = Leave(Some(Membership::begin(thread.record, thread.generation, alternate)));
    mask::restore(&mask);
    f()
}

/// The creation lock's read side, with signals blocked as long as it is held.
struct ReadSide {
    mask: SigSet,
    forks: u32,
}

impl ReadSide {
    fn take() -> Self {
        loop {
            // Blocked first: a handler that interrupts a holder could wait for a freeze, which
            // waits for the holder.
            let mask = mask::block_all();
            if CREATION.try_read() {
                return Self { mask, forks: registry::forks() };
            }
            // Open while waiting: the freezer may want to signal this very thread.
            mask::restore(&mask);
            CREATION.wait_readable();
        }
    }
}

impl Drop for ReadSide {
    fn drop(&mut self) {
        if self.forks == registry::forks() {
            CREATION.release_read();
        }
        mask::restore(&self.mask);
    }
}

/// A spawned thread's handle; the registered counterpart of [`std::thread::JoinHandle`].
#[derive(Debug)]
pub struct JoinHandle<T> {
    inner: thread::JoinHandle<T>,
    thread: ThreadRef,
}

impl<T> JoinHandle<T> {
    /// Waits for the thread to end and returns its result.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe.
    ///
    /// # Blocking
    ///
    /// Until the thread has ended.
    ///
    /// # Errors
    ///
    /// The panic's payload, when the thread panicked.
    pub fn join(self) -> thread::Result<T> {
        self.inner.join()
    }

    /// The registered thread.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn thread(&self) -> ThreadRef {
        self.thread
    }

    /// Whether the thread has come to its end, so that [`join`](Self::join) returns at once.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.inner.is_finished()
    }

    /// Wakes the thread from [`std::thread::park`].
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe.
    pub fn unpark(&self) {
        self.inner.thread().unpark();
    }
}
