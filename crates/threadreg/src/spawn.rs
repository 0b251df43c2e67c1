//! Spawning threads: as `std` does, but each is listed before it exists.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use sigctx::altstack::AltStack;
use sigctx::fork;
use sigctx::sys::{self, SigSet};

use crate::creation::{NotCreated, abandon, create};
use crate::membership::Membership;
use crate::name::Name;
use crate::registry::{self, ARENA, CREATION};
use crate::thread_ref::ThreadRef;
use crate::{freeze, mask, stack};

/// Spawns a registered thread, as [`std::thread::spawn`] does an unregistered one.
///
/// # Signal safety
///
/// Not async-signal-safe (AS-Unsafe lock heap).
///
/// # Blocking
///
/// Waits while creation is frozen ([`freeze_creation`](crate::freeze_creation)).
///
/// # Panics
///
/// When the system cannot make a thread. [`Builder::spawn`] returns that as an error instead.
///
/// # Examples
///
/// ```
/// let worker = threadreg::spawn(|| threadreg::current().is_some());
/// assert!(worker.join().unwrap());
/// ```
///
/// # References
///
/// Go's `newm`, `runtime/proc.go`.
#[doc(alias = "newm")]
pub fn spawn<F, T>(f: F) -> JoinHandle<T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    Builder::new().spawn(f).expect("failed to spawn a thread")
}

/// How a thread is to be made; the registered counterpart of [`std::thread::Builder`].
///
/// # Signal safety
///
/// None is async-signal-safe (AS-Unsafe lock heap).
#[must_use = "a builder makes no thread until `spawn`"]
#[derive(Clone, Debug, Default)]
pub struct Builder {
    name: Option<String>,
    stack_size: Option<usize>,
    mask: Option<SigSet>,
}

impl Builder {
    /// Begins with no name, `std`'s stack size and the creator's signal mask.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the thread's name, for the registry and for the kernel.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets the size of the thread's stack, in bytes.
    pub fn stack_size(mut self, size: usize) -> Self {
        self.stack_size = Some(size);
        self
    }

    /// Sets the signal mask that the thread begins with, in place of its creator's.
    ///
    /// Taken out of it are the signals given to [`never_block`](crate::never_block), and those that
    /// libc keeps for itself (32 up to `SIGRTMIN`), since libc waits for every thread to answer them.
    pub fn signal_mask(mut self, mask: SigSet) -> Self {
        self.mask = Some(mask);
        self
    }

    /// Makes the thread.
    ///
    /// The thread is listed before it exists, and still listed when this returns, unless it has ended
    /// by then. While it begins and ends its signals are blocked, so a handler finds it either fully
    /// registered or unregistered. It leaves the registry when `f` and what `f` owns are gone, also
    /// when `f` panics. After that the destructors of its thread-locals run, with signals blocked.
    ///
    /// # Blocking
    ///
    /// While creation is frozen ([`freeze_creation`](crate::freeze_creation)), with the caller's own
    /// signal mask. Also up to 0.2 s while the system has no room for a thread (`EAGAIN`), and as long
    /// as a thread that could not be made is pinned.
    ///
    /// # Errors
    ///
    /// Those of [`std::thread::Builder::spawn`], and `InvalidInput` for a name with a zero byte. The
    /// thread is then no longer listed.
    ///
    /// # Panics
    ///
    /// With debug assertions, when the calling thread holds creation frozen: it would wait for itself.
    pub fn spawn<F, T>(self, f: F) -> io::Result<JoinHandle<T>>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let started = self.make(f, |builder, start| builder.spawn(move || start.run()))?;
        Ok(JoinHandle { inner: started.0, thread: started.1 })
    }

    /// Makes a thread that may borrow what outlives `scope`, as [`std::thread::Builder::spawn_scoped`]
    /// does.
    ///
    /// Otherwise it is as [`spawn`](Self::spawn). When the scope ends the thread has left the registry.
    ///
    /// # Blocking
    ///
    /// As [`spawn`](Self::spawn).
    ///
    /// # Errors
    ///
    /// As [`spawn`](Self::spawn).
    ///
    /// # Examples
    ///
    /// ```
    /// let mut words = vec!["of", "the", "main", "thread"];
    /// std::thread::scope(|scope| {
    ///     let sorter = threadreg::Builder::new().name("sorter");
    ///     sorter.spawn_scoped(scope, || words.sort())?.join().unwrap();
    ///     std::io::Result::Ok(())
    /// })?;
    /// assert_eq!(words, ["main", "of", "the", "thread"]);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn spawn_scoped<'scope, F, T>(
        self,
        scope: &'scope thread::Scope<'scope, '_>,
        f: F,
    ) -> io::Result<ScopedJoinHandle<'scope, T>>
    where
        F: FnOnce() -> T + Send + 'scope,
        T: Send + 'scope,
    {
        let start = |builder: thread::Builder, start: Start<F>| {
            builder.spawn_scoped(scope, move || start.run())
        };
        let (inner, thread) = self.make(f, start)?;
        Ok(ScopedJoinHandle { inner, thread })
    }

    /// Makes a thread whose body is `f`; `start` is the function of `std` that makes it.
    fn make<F, H>(
        self,
        f: F,
        start: impl Fn(thread::Builder, Start<F>) -> io::Result<H>,
    ) -> io::Result<(H, ThreadRef)> {
        let Self { name, stack_size, mask } = self;
        if name.as_deref().is_some_and(|name| name.contains('\0')) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "zero byte in thread name"));
        }
        freeze::assert_not_frozen_here();
        registry::init();
        let label = Name::new(name.as_deref().unwrap_or_default());
        // `std` drops the body of a thread that it could not make. This body is needed for the next
        // try.
        let body = Arc::new(Mutex::new(Some(f)));
        retry_on_eagain(|| {
            let mut builder = thread::Builder::new();
            if let Some(name) = &name {
                builder = builder.name(name.clone());
            }
            if let Some(size) = stack_size {
                builder = builder.stack_size(size);
            }
            let process = fork::process();
            let side = ReadSide::take();
            let mask = mask::for_new_thread(mask.unwrap_or(side.mask));
            let made = create(&ARENA, &label, |record, generation| {
                let thread = ThreadRef { record, generation };
                let handle = start(builder, Start { thread, mask, body: body.clone() })?;
                Ok((handle, thread))
            });
            drop(side);
            made.map_err(|error| match error {
                NotCreated::Full => io::Error::new(io::ErrorKind::QuotaExceeded, "registry full"),
                NotCreated::Clone(error, record) => {
                    abandon(&ARENA, record, || process == fork::process());
                    error
                }
            })
        })
    }
}

/// Tries 20 times, over 0.19 s: the kernel also returns EAGAIN when it is short of memory or of ids for
/// a moment. Nothing is listed or held between two tries.
///
/// Go's `retryOnEAGAIN` (`runtime/retry.go`).
fn retry_on_eagain<T>(mut make: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for milliseconds in 1..20 {
        match make() {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {
                thread::sleep(Duration::from_millis(milliseconds));
            }
            result => return result,
        }
    }
    make()
}

/// The start of a new thread; see [`Start::run`].
struct Start<F> {
    thread: ThreadRef,
    mask: SigSet,
    body: Arc<Mutex<Option<F>>>,
}

impl<F> Start<F> {
    /// Runs the new thread. Signals are blocked, as its creator had them at `clone`.
    fn run<T>(self) -> T
    where
        F: FnOnce() -> T,
    {
        let Self { thread, mask, body } = self;
        let body = body.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Without memory for a large alternate stack the thread keeps `std`'s small one. No calls are
        // then injected into it; `sigctx` checks that at each injection.
        let alternate = AltStack::install().ok();
        let stack = stack::bounds_of_spawned();
        let ThreadRef { record, generation } = thread;
        let tid = sys::gettid();
        let _leave = Leave(Some(Membership::begin(record, generation, tid, stack, alternate)));
        mask::restore(&mask);
        body.expect("only one `clone` works")()
    }
}

/// Ends a membership, also when the thread's body panics.
struct Leave(Option<Membership>);

impl Drop for Leave {
    fn drop(&mut self) {
        // Signals stay blocked: the rest of the thread's life belongs to libc.
        if let Some(membership) = self.0.take() {
            membership.end_with_thread();
        }
    }
}

/// The creation lock's read side. Signals are blocked as long as it is held.
struct ReadSide {
    mask: SigSet,
}

impl ReadSide {
    fn take() -> Self {
        loop {
            // Blocked first: a handler that interrupts a creator with the read side could wait for a
            // freeze, which waits for the creator.
            let mask = mask::block_all();
            if CREATION.try_read() {
                return Self { mask };
            }
            // Open while it waits: the holder of the freeze may want to signal this very thread.
            mask::restore(&mask);
            CREATION.wait_readable(|| Some(freeze::look()));
        }
    }
}

impl Drop for ReadSide {
    fn drop(&mut self) {
        CREATION.release_read();
        mask::restore(&self.mask);
    }
}

macro_rules! handle {
    ($(#[$doc:meta])* $name:ident $(<$scope:lifetime or $elided:lifetime>)?, $inner:ty) => {
        $(#[$doc])*
        ///
        /// # Signal safety
        ///
        /// None is async-signal-safe (AS-Unsafe lock heap) except [`thread`](Self::thread).
        #[derive(Debug)]
        pub struct $name<$($scope,)? T> {
            inner: $inner,
            thread: ThreadRef,
        }

        impl<T> $name<$($elided,)? T> {
            /// Waits for the thread to end and returns its result.
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
            /// Async-signal-safe (AS-Safe).
            #[must_use]
            pub fn thread(&self) -> ThreadRef {
                self.thread
            }

            /// Whether the thread has ended, so that [`join`](Self::join) returns at once.
            #[must_use]
            pub fn is_finished(&self) -> bool {
                self.inner.is_finished()
            }

            /// Wakes the thread from [`std::thread::park`].
            pub fn unpark(&self) {
                self.inner.thread().unpark();
            }

            /// The thread as `std` knows it.
            #[must_use]
            pub fn as_std(&self) -> &thread::Thread {
                self.inner.thread()
            }
        }
    };
}

handle! {
    /// A spawned thread's handle; the registered counterpart of [`std::thread::JoinHandle`].
    JoinHandle, thread::JoinHandle<T>
}

handle! {
    /// A scoped thread's handle; the registered counterpart of [`std::thread::ScopedJoinHandle`].
    ScopedJoinHandle<'scope or '_>, thread::ScopedJoinHandle<'scope, T>
}
