//! A thread of the crate's own that looks at a world again and again, until it is told to end.

use core::fmt;
use core::mem::ManuallyDrop;
use core::ops::ControlFlow;
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use std::io;
use std::panic;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use sigctx::fork;

/// Ends the thread when it is dropped, and waits for that.
pub(crate) struct Background<T> {
    over: Arc<AtomicBool>,
    /// Taken when the thread is joined.
    thread: ManuallyDrop<Option<JoinHandle<T>>>,
    /// The child of a fork does not have the thread.
    process: u32,
}

impl<T> fmt::Debug for Background<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Background").field("thread", &*self.thread).finish_non_exhaustive()
    }
}

impl<T: Send + 'static> Background<T> {
    /// Calls `look` every `interval`, until it breaks off or the thread is told to end, and once more then.
    pub(crate) fn start(
        name: &str,
        interval: Duration,
        mut state: T,
        mut look: impl FnMut(&mut T) -> ControlFlow<()> + Send + 'static,
    ) -> io::Result<Self> {
        let over = Arc::new(AtomicBool::new(false));
        let is_over = over.clone();
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            // Acquire: what the thread that ends this did before is seen by the last look.
            while !is_over.load(Ordering::Acquire) && look(&mut state).is_continue() {
                thread::park_timeout(interval);
            }
            let _last = look(&mut state);
            state
        })?;
        let (thread, process) = (ManuallyDrop::new(Some(thread)), fork::process());
        Ok(Self { over, thread, process })
    }

    /// What the thread has looked at. `None` in the child of a fork.
    ///
    /// # Panics
    ///
    /// If the thread did.
    pub(crate) fn end(mut self) -> Option<T> {
        self.join().map(|looked| looked.unwrap_or_else(|payload| panic::resume_unwind(payload)))
    }
}

impl<T> Background<T> {
    fn join(&mut self) -> Option<thread::Result<T>> {
        // What the child of a fork has of the thread, its stack among it, is leaked.
        let here = self.process == fork::process();
        let thread = here.then(|| self.thread.take()).flatten()?;
        self.over.store(true, Ordering::Release);
        thread.thread().unpark();
        Some(thread.join())
    }
}

impl<T> Drop for Background<T> {
    fn drop(&mut self) {
        // A panic of the thread's has been told of by the hook.
        let _end = self.join();
    }
}

#[cfg(test)]
mod tests {
    use testkit::{forked, in_child};

    use super::*;

    const LONG: Duration = Duration::from_secs(1000);

    #[test]
    fn a_thread_that_sleeps_ends_at_once_and_looks_a_last_time() {
        let name = "background::tests::a_thread_that_sleeps_ends_at_once_and_looks_a_last_time";
        in_child(name, Duration::from_secs(20), || {
            let count = |looks: &mut u32| {
                *looks += 1;
                ControlFlow::Continue(())
            };
            let looks = Background::start("looks", LONG, 0, count).expect("a thread").end();
            assert!(matches!(looks, Some(1 | 2)), "{looks:?}");
        });
    }

    /// It would wait for a thread that it does not have.
    #[test]
    fn the_child_of_a_fork_waits_for_no_thread() {
        let name = "background::tests::the_child_of_a_fork_waits_for_no_thread";
        in_child(name, Duration::from_secs(20), || {
            sigctx::fork::watch().expect("room for the hooks");
            let idle = |(): &mut ()| ControlFlow::Continue(());
            let start = || Background::start("idle", LONG, (), idle).expect("a thread");
            let (ended, dropped) = (start(), start());
            // The child ends without the parent's destructors.
            let mut ended = Some(ended);
            let status = forked(|| {
                assert!(ended.take().and_then(Background::end).is_none());
            });
            drop(dropped);
            assert_eq!(status, 0);
        });
    }
}
