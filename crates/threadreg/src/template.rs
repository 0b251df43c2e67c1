//! The template thread: it makes threads for threads that have changed what their own would inherit.
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
//! The template can be asked only once its thread exists. So no thread waits for a template that is yet
//! to be made by a thread that is stopped (Go issue 38931). The template does nothing of its own, is no
//! mutator of any world, and has the signal mask of the thread that made it.

use core::fmt;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use sigctx::fork;

use crate::freeze;
use crate::registry;
use crate::spawn::{Builder, JoinHandle};
use crate::thread_ref::ThreadRef;

type Request = Box<dyn FnOnce() + Send>;

struct Template {
    requests: Sender<Request>,
    thread: ThreadRef,
    /// The process that made it. The child of a fork has no such thread, and a copy of the channel from
    /// any moment of its life.
    process: u32,
}

/// Null until the template's thread exists; then leaked.
static TEMPLATE: AtomicPtr<Template> = AtomicPtr::new(ptr::null_mut());

/// Makes the template thread, from which [`Builder::spawn_clean`] makes threads. If it exists, nothing
/// happens.
///
/// It inherits the caller's namespaces, credentials, scheduling and signal mask. So call this while
/// they are what clean threads are to have, best as the first thing in `main`. The template never ends.
/// The child of a `fork` has none and may make its own.
///
/// # Signal safety
///
/// Not async-signal-safe (AS-Unsafe lock heap).
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
///
/// # References
///
/// Go's `startTemplateThread`, `runtime/proc.go`.
#[doc(alias = "startTemplateThread")]
#[doc(alias = "template thread")]
pub fn start_template() -> io::Result<ThreadRef> {
    // Relaxed: not followed, only compared.
    let before = TEMPLATE.load(Ordering::Relaxed);
    if let Some(template) = template() {
        return Ok(template.thread);
    }
    registry::init();
    let process = fork::process();
    let (requests, todo) = unbounded();
    let worker = Builder::new().name("template").spawn(move || serve(&todo))?;
    let new = Box::into_raw(Box::new(Template { requests, thread: worker.thread(), process }));
    // Release: pairs with the load in `template`. `before` is null or a template of the parent's.
    let won = TEMPLATE.compare_exchange(before, new, Ordering::Release, Ordering::Relaxed).is_ok();
    if !won {
        // SAFETY: from `Box::into_raw` above; no other thread knows it. Its channel closes, its thread
        // ends.
        drop(unsafe { Box::from_raw(new) });
    }
    Ok(template().map_or(worker.thread(), |template| template.thread))
}

fn template() -> Option<&'static Template> {
    // Acquire: pairs with the exchange in `start_template`; the thread exists.
    // SAFETY: null or leaked, never borrowed mutably.
    let template = unsafe { TEMPLATE.load(Ordering::Acquire).as_ref() }?;
    (template.process == fork::process()).then_some(template)
}

fn serve(todo: &Receiver<Request>) {
    for request in todo {
        // A panic drops the channel of the answer, which tells the requester.
        let _ = catch_unwind(AssertUnwindSafe(request));
    }
}

impl Builder {
    /// Makes the thread from the template thread instead of from the caller. It inherits nothing that
    /// the caller changed for itself.
    ///
    /// A thread inherits from its creator: namespaces, root and working directory (after
    /// `unshare(CLONE_FS)`), credentials and capabilities, `seccomp` filters, scheduling policy and CPU
    /// set, signal mask. A clean thread has those of the thread that called [`start_template`], as they
    /// were then, with every change that was made on all threads since.
    ///
    /// # Blocking
    ///
    /// For the template thread, which makes one thread after the other; otherwise as
    /// [`spawn`](Self::spawn).
    ///
    /// # Errors
    ///
    /// [`CleanError::NoTemplate`] without [`start_template`], also in the child of a `fork`;
    /// [`CleanError::Refused`] with the error of [`spawn`](Self::spawn).
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
    #[doc(alias = "templateThread")]
    #[doc(alias = "template thread")]
    pub fn spawn_clean<F, T>(self, f: F) -> Result<JoinHandle<T>, CleanError>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        ask(move || self.spawn(f))?.map_err(CleanError::Refused)
    }
}

/// Has the template thread call `make`, and returns the result.
fn ask<T: Send + 'static>(make: impl FnOnce() -> T + Send + 'static) -> Result<T, CleanError> {
    freeze::assert_not_frozen_here();
    let template = template().ok_or(CleanError::NoTemplate)?;
    let (answer, result) = bounded(1);
    let request = move || {
        // Cannot fail: the requester below waits for it.
        let _ = answer.send(make());
    };
    template.requests.send(Box::new(request)).map_err(|_| CleanError::NoTemplate)?;
    result
        .recv()
        .map_err(|_| CleanError::Refused(io::Error::other("the template thread panicked over it")))
}

/// [`Builder::spawn_clean`] made no thread.
#[non_exhaustive]
#[derive(Debug)]
pub enum CleanError {
    /// There is no template thread: this process has not called [`start_template`].
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
            Self::Refused(_) => f.write_str("the template thread could not make a clean thread"),
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
