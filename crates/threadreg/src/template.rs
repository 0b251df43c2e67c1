//! The template thread: makes threads for those who changed what their own would inherit.
//!
//! ```text
//!   start_template (early)             spawn_clean (any time)          template
//!   ──────────────────────             ──────────────────────          ────────
//!   channel made
//!   thread made: it exists ─────────────────────────────────────────▶ waits for requests
//!   TEMPLATE set: can be asked ──────▶ request ─────────────────────▶ spawn ──▶ new thread
//!                                      waits, then has the handle ◀── result
//! ```
//!
//! The template can be asked only once its thread exists, so nobody waits for one that was yet to be
//! made while its maker was stopped (Go issue 38931). It does nothing of its own, is no mutator of
//! any world, and hears every signal that its maker heard.

use core::fmt;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use crate::freeze;
use crate::registry;
use crate::spawn::{Builder, JoinHandle};
use crate::thread_ref::ThreadRef;

type Request = Box<dyn FnOnce() + Send>;

struct Template {
    requests: Sender<Request>,
    thread: ThreadRef,
    /// The count of forks when it was made. The child of a fork has the template, but not its thread, and a
    /// copy of the channel from any moment of its life.
    forks: u32,
}

/// Null until the template's thread exists; then leaked.
static TEMPLATE: AtomicPtr<Template> = AtomicPtr::new(ptr::null_mut());

/// Makes the template thread, from which [`Builder::spawn_clean`] makes threads. Once it is there
/// nothing happens.
///
/// It inherits the caller's namespaces, credentials, scheduling and signal mask: call it while they
/// are what clean threads are to have, as the first thing in `main` best. It is never ended. The
/// child of a `fork` has none and may make its own.
///
/// # Signal safety
///
/// Not async-signal-safe.
///
/// # Blocking
///
/// As [`Builder::spawn`].
///
/// # Errors
///
/// As [`Builder::spawn`].
///
/// # Examples
///
/// ```
/// let template = threadreg::start_template()?;
/// assert_eq!(threadreg::start_template()?, template);
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn start_template() -> io::Result<ThreadRef> {
    // Relaxed: not followed, only compared.
    let before = TEMPLATE.load(Ordering::Relaxed);
    if let Some(template) = template() {
        return Ok(template.thread);
    }
    registry::init();
    let forks = registry::forks();
    let (requests, todo) = unbounded();
    let worker = Builder::new().name("template").spawn(move || serve(&todo))?;
    let new = Box::into_raw(Box::new(Template { requests, thread: worker.thread(), forks }));
    // Release: pairs with the load in `template`. `before` is null or a template of the parent's.
    let won = TEMPLATE.compare_exchange(before, new, Ordering::Release, Ordering::Relaxed).is_ok();
    if !won {
        // SAFETY: from `Box::into_raw` above, shown to nobody. Its channel closes, its thread ends.
        drop(unsafe { Box::from_raw(new) });
    }
    Ok(template().map_or(worker.thread(), |template| template.thread))
}

fn template() -> Option<&'static Template> {
    // Acquire: pairs with the exchange in `start_template`; the thread exists.
    // SAFETY: null or leaked, never borrowed mutably.
    let template = unsafe { TEMPLATE.load(Ordering::Acquire).as_ref() }?;
    (template.forks == registry::forks()).then_some(template)
}

fn serve(todo: &Receiver<Request>) {
    for request in todo {
        // Whoever asked learns of a panic by the loss of its answer.
        let _ = catch_unwind(AssertUnwindSafe(request));
    }
}

impl Builder {
    /// Makes the thread from the template thread instead of from the caller: it inherits nothing of
    /// what the caller did to itself.
    ///
    /// What a thread inherits from its maker are its namespaces, root and working directory (after
    /// `unshare(CLONE_FS)`), credentials and capabilities, `seccomp` filters, scheduling policy and
    /// CPU set, signal mask. With this it gets those of the thread that called [`start_template`],
    /// as they were then, and every change that was made on all threads since.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe.
    ///
    /// # Blocking
    ///
    /// For the template thread, which makes one thread after the other; else as
    /// [`spawn`](Self::spawn).
    ///
    /// # Errors
    ///
    /// [`CleanError::NoTemplate`] without [`start_template`], also in the child of a `fork`; what
    /// [`spawn`](Self::spawn) says.
    ///
    /// # Examples
    ///
    /// ```
    /// use threadreg::Builder;
    ///
    /// // Early in `main`.
    /// threadreg::start_template()?;
    ///
    /// let clean = Builder::new().name("clean").spawn_clean(|| threadreg::current().is_some())?;
    /// assert!(clean.join().unwrap());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # References
    ///
    /// Go's template thread (`runtime/proc.go`: `templateThread`, `startTemplateThread`).
    pub fn spawn_clean<F, T>(self, f: F) -> Result<JoinHandle<T>, CleanError>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        ask(move || self.spawn(f))?.map_err(CleanError::Refused)
    }
}

/// Has the template thread run `make`, and returns what that returned.
fn ask<T: Send + 'static>(make: impl FnOnce() -> T + Send + 'static) -> Result<T, CleanError> {
    freeze::assert_not_frozen_here();
    let template = template().ok_or(CleanError::NoTemplate)?;
    let (answer, result) = bounded(1);
    let request = move || {
        // Nobody but the caller below listens, and it does.
        let _ = answer.send(make());
    };
    template.requests.send(Box::new(request)).map_err(|_| CleanError::NoTemplate)?;
    result
        .recv()
        .map_err(|_| CleanError::Refused(io::Error::other("the template thread panicked over it")))
}

/// Why [`Builder::spawn_clean`] made no thread.
#[non_exhaustive]
#[derive(Debug)]
pub enum CleanError {
    /// There is no template thread: [`start_template`] was not called in this process.
    NoTemplate,
    /// The template thread could not make the thread.
    Refused(io::Error),
}

impl fmt::Display for CleanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTemplate => f.write_str(
                "no template thread to make a clean thread from: call `start_template` first",
            ),
            Self::Refused(error) => write!(f, "cannot make a clean thread: {error}"),
        }
    }
}

impl core::error::Error for CleanError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::NoTemplate => None,
            Self::Refused(error) => Some(error),
        }
    }
}
