//! The child of a fork: it has one thread, and a copy of whatever the others were in the middle of.
//!
//! What belongs to the one thread is put in order at once, by the [`Hooks`] of the modules. What may have
//! been copied while another thread had it to itself says which [`process`] that was in, and is free for
//! every other.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// How often this process came out of a fork as the child, at least.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// Registered before all others, so that these see the new count.
static COUNT: Hooks = Hooks::new(None, count);

extern "C" fn count() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// Differs between a process and its ancestors, once hooks are registered.
pub(crate) fn process() -> u32 {
    // Relaxed: changed only where no other thread is.
    FORKS.load(Ordering::Relaxed)
}

/// What a module runs in the child of a fork. It may run several times at one fork.
#[derive(Debug)]
pub(crate) struct Hooks {
    before: Option<extern "C" fn()>,
    in_child: extern "C" fn(),
    // Not a `Once`: a fork could copy it while it runs, and the child would wait for a thread that it
    // does not have. Threads that come here at the same time each register.
    registered: AtomicBool,
}

impl Hooks {
    pub(crate) const fn new(before: Option<extern "C" fn()>, in_child: extern "C" fn()) -> Self {
        Self { before, in_child, registered: AtomicBool::new(false) }
    }

    /// Registers the hooks, if that has not been done yet. To be called before there is anything for a
    /// child to copy. Fails for want of memory.
    pub(crate) fn register(&'static self) -> Result<(), i32> {
        COUNT.register_alone()?;
        self.register_alone()
    }

    fn register_alone(&self) -> Result<(), i32> {
        // Acquire: pairs with the store below; the hooks were registered before.
        if self.registered.load(Ordering::Acquire) {
            return Ok(());
        }
        let before = self.before.map(|before| before as unsafe extern "C" fn());
        // SAFETY: the functions only store to atomics, and stay loaded: libc drops those of a library
        // that is unloaded.
        let failed = unsafe { libc::pthread_atfork(before, None, Some(self.in_child)) };
        if failed != 0 {
            return Err(failed);
        }
        self.registered.store(true, Ordering::Release);
        Ok(())
    }
}
