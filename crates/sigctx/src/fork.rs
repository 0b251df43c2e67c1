//! What a library does around `fork`: the child has one thread, and a copy of whatever the others
//! were in the middle of.
//!
//! A library registers [`Hooks`] before there is anything for a child to copy. The hooks run on the
//! one thread of the child, in the order in which they were registered, so a lower library has put
//! itself in order when a higher one asks it. What a thread may have had to itself at the fork says
//! which [`process`] that was in, and is free for every other; see [`sync::Mutex`](crate::sync::Mutex).
//!
//! A child that `vfork`, `_Fork` or a plain `clone` makes runs no hook.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::sys::Errno;

/// How often this process came out of a fork as the child, at least.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// Counts the forks. Registered before all others, so that their children see the new count.
static COUNT: Hooks = Hooks::new(None, count);

extern "C" fn count() {
    // Relaxed: there is no other thread. The mutex has room for 30 bits; 0 is as good as any.
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// Gives a number that differs between a process and its ancestors, if those had their forks
/// [counted](watch): guards from before a fork hold nothing in the child.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe).
#[must_use]
pub fn process() -> u32 {
    // Relaxed: changed only where no other thread is.
    FORKS.load(Ordering::Relaxed)
}

/// Has forks counted from here on, if that has not been done yet.
///
/// # Signal safety
///
/// As [`Hooks::register`].
///
/// # Errors
///
/// As [`Hooks::register`].
pub fn watch() -> Result<(), Errno> {
    COUNT.register_alone()
}

/// What a library runs around `fork`.
///
/// The functions may run several times at one fork: registering takes no lock, so that a fork cannot
/// copy one, and threads that register at the same time do it twice. A second run finds nothing left
/// to do.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe) except [`register`](Self::register).
#[derive(Debug)]
pub struct Hooks {
    before: Option<extern "C" fn()>,
    in_child: extern "C" fn(),
    registered: AtomicBool,
}

impl Hooks {
    /// Takes what runs on the thread that forks, before it does (hooks registered last come first), and
    /// what runs on the one thread of the child. The functions stay loaded: libc drops the hooks of a
    /// library that is unloaded.
    #[must_use]
    pub const fn new(before: Option<extern "C" fn()>, in_child: extern "C" fn()) -> Self {
        Self { before, in_child, registered: AtomicBool::new(false) }
    }

    /// Registers the hooks, if that has not been done yet.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe (AS-Unsafe lock heap). Nor may it be called in the child of a fork of a process
    /// with several threads, if it was not done before.
    ///
    /// # Errors
    ///
    /// `ENOMEM`. Nothing is registered then.
    ///
    /// # References
    ///
    /// `pthread_atfork(3)`
    pub fn register(&'static self) -> Result<(), Errno> {
        if self.is_registered() {
            return Ok(());
        }
        watch()?;
        self.register_alone()
    }

    /// Tells whether the hooks are registered in this process, or in an ancestor that it was forked from.
    #[must_use]
    pub fn is_registered(&self) -> bool {
        // Acquire: pairs with the store below; the hooks were registered before.
        self.registered.load(Ordering::Acquire)
    }

    fn register_alone(&self) -> Result<(), Errno> {
        if self.is_registered() {
            return Ok(());
        }
        let before = self.before.map(|before| before as unsafe extern "C" fn());
        // SAFETY: functions without arguments that may run at any fork: what they promise is said at
        // `new`.
        let failed = unsafe { libc::pthread_atfork(before, None, Some(self.in_child)) };
        if failed != 0 {
            return Err(Errno::new(failed));
        }
        self.registered.store(true, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use testkit::{forked, in_child};

    use super::*;

    #[test]
    fn hooks_run_in_their_order_in_the_child_after_the_count() {
        static STEPS: AtomicU32 = AtomicU32::new(0);
        static BEFORE: AtomicU32 = AtomicU32::new(u32::MAX);
        static LOWER: Hooks = Hooks::new(Some(before), lower);
        static UPPER: Hooks = Hooks::new(None, upper);
        extern "C" fn before() {
            BEFORE.store(process(), Ordering::Relaxed);
        }
        extern "C" fn lower() {
            let counted = process() != BEFORE.load(Ordering::Relaxed);
            assert!(STEPS.swap(1, Ordering::Relaxed) == 0 && counted);
        }
        extern "C" fn upper() {
            assert_eq!(STEPS.swap(2, Ordering::Relaxed), 1);
        }
        let name = "fork::tests::hooks_run_in_their_order_in_the_child_after_the_count";
        in_child(name, Duration::from_secs(20), || {
            assert!(!LOWER.is_registered());
            for _ in 0..2 {
                LOWER.register().unwrap();
                UPPER.register().unwrap();
            }
            let parent = process();
            let status = forked(|| {
                assert_eq!(STEPS.load(Ordering::Relaxed), 2);
                assert_ne!(process(), parent);
                assert!(UPPER.is_registered());
            });
            assert_eq!(status, 0);
            assert_eq!((process(), STEPS.load(Ordering::Relaxed)), (parent, 0));
        });
    }
}
