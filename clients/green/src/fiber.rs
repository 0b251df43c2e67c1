//! A green thread: a coroutine with a stack of its own, and the task as which it is preempted.

use std::cell::UnsafeCell;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering::Relaxed};
use std::time::Instant;

use corosensei::stack::{DefaultStack, Stack};
use corosensei::{Coroutine, CoroutineResult, Yielder};
use preempt::{EnterError, Slicer, Task};
use sigctx::inject::CallStack;

/// Why a fiber has left its thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    /// Its slice was over: it was interrupted between two instructions.
    Preempted,
    /// It is to go on then.
    Asleep { until: Instant },
    /// It has come to its end.
    Ended,
}

type Body = Yielder<(), Left>;

/// A green thread. One worker at a time has it.
pub(crate) struct Fiber {
    pub(crate) number: usize,
    pub(crate) task: Task,
    stack: CallStack,
    coroutine: UnsafeCell<Coroutine<(), Left, ()>>,
    /// Since when it could run, if it has slept.
    pub(crate) due: Option<Instant>,
}

// SAFETY: what a fiber has on its stack when it leaves its thread belongs to no thread: its body makes this promise
// (`Fiber::new`), and the hook has nothing but two references to what is shared.
unsafe impl Send for Fiber {}

impl fmt::Debug for Fiber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fiber").field("number", &self.number).finish_non_exhaustive()
    }
}

/// A stack of this size holds the call that preempts (16 KiB are promised to it) and the registers below it.
const STACK: usize = 64 << 10;

impl Fiber {
    /// # Safety
    ///
    /// `body` has nothing on its stack that belongs to a thread while its code is registered, and when it sleeps.
    pub(crate) unsafe fn new(
        number: usize,
        slicer: &Slicer,
        body: impl FnOnce(&Sleeper<'_>) + Send + 'static,
    ) -> std::io::Result<Self> {
        let stack = DefaultStack::new(STACK)?;
        let bounds = (stack.limit().get(), stack.base().get());
        // SAFETY: the coroutine owns the stack and this value does not outlive it; there is a guard page below.
        let call_stack = unsafe { CallStack::new(bounds.0, bounds.1) };
        let yielder = Arc::new(AtomicPtr::<Body>::default());
        let task = Task::with_hook({
            let yielder = yielder.clone();
            move |frame| {
                // SAFETY: the hook runs on the coroutine's stack, which the body's start has come before.
                let yielder = unsafe { &*yielder.load(Relaxed) };
                yielder.suspend(Left::Preempted);
                if let Some(frame) = frame {
                    // SAFETY: the code that was interrupted has nothing of its thread's (`Fiber::new`).
                    unsafe { frame.move_here() }.expect("all workers are alike");
                }
            }
        });
        slicer.add(&task);
        let coroutine = Coroutine::with_stack(stack, move |to: &Body, ()| {
            // Relaxed: whoever has the fiber later has it from this thread.
            yielder.store(std::ptr::from_ref(to).cast_mut(), Relaxed);
            body(&Sleeper(to));
        });
        let coroutine = UnsafeCell::new(coroutine);
        Ok(Self { number, task, stack: call_stack, coroutine, due: None })
    }

    /// Runs it on the calling thread until it leaves that.
    pub(crate) fn run(&mut self) -> Result<Left, EnterError> {
        let coroutine = self.coroutine.get_mut();
        self.task.enter_on(&self.stack, || match coroutine.resume(()) {
            CoroutineResult::Yield(left) => left,
            CoroutineResult::Return(()) => Left::Ended,
        })
    }
}

/// How the body of a fiber sleeps.
pub(crate) struct Sleeper<'f>(&'f Body);

impl fmt::Debug for Sleeper<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sleeper")
    }
}

impl Sleeper<'_> {
    /// Leaves the thread until `until` has come.
    pub(crate) fn sleep(&self, until: Instant) {
        self.0.suspend(Left::Asleep { until });
    }
}
