//! What can be chosen about an operation.

/// Which signal brings the threads into the hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Signal {
    /// Signal 33, which no mask made by libc can contain: threads that blocked "everything" are reached,
    /// too. libc's own use of it goes on working.
    #[default]
    Libc33,
    /// A real-time signal that the program keeps free, for example `SIGRTMIN() + 3`. Threads that
    /// have it blocked are not reached, and the operation is refused. The requester may have it blocked: it
    /// is unblocked while the requester waits, so that instances which were held back are delivered.
    ///
    /// While the queue of signals is full, an instance that another process or thread sends with `kill` to
    /// the whole process may be taken for the operation's own, and lost.
    Number(i32),
}

/// When threads go on with their own code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Barrier {
    /// When all have made all calls and the results have been compared.
    #[default]
    Strict,
    /// Each when it has made its calls, which spares one wake-up. All are still held when the first one
    /// begins, so that no thread runs its own code in the old state after another did in the new one. A
    /// different result is found only when some have gone on.
    Early,
}

/// What to do when a call has another result on some thread than on the requester.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OnDivergence {
    /// Return [`Error::Diverged`](crate::Error::Diverged).
    #[default]
    Error,
    /// Print a line, if standard error takes one without waiting, and end the process with
    /// `SIGKILL`: for a privilege that no thread may keep. The first process of a pid namespace, which no
    /// signal of its own can kill, ends with status 137 instead.
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
    /// Any result that is no error: for calls whose result belongs to the thread, like the keyring that
    /// `KEYCTL_JOIN_SESSION_KEYRING` left.
    Succeed,
}

/// What to do when threads have other ids or capabilities than the requester before a batch that changes
/// ids or capabilities, by the calls of [`privileges`](crate::privileges) or by number.
///
/// The kernel could refuse such a thread what it allowed the requester, and the drop would be half done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OnMixed {
    /// Return [`Error::Mixed`](crate::Error::Mixed), with nothing applied, if they still differ after some
    /// 30 ms: a broadcast of libc's may be under way.
    #[default]
    Refuse,
    /// Make the calls. A thread that is refused one is a divergence, see [`OnDivergence`].
    Proceed,
}

/// What to do when the kernel has threads of its own in the process. They run no user code and keep what
/// they were made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum KernelWorkers {
    /// Leave them; [`Report::kernel_workers`](crate::Report::kernel_workers) counts them.
    #[default]
    Leave,
    /// Return [`Error::KernelWorkers`](crate::Error::KernelWorkers), with nothing applied, if one polls an
    /// `io_uring` (`IORING_SETUP_SQPOLL`; the threads named `iou-sqp-`). Such a thread does what is put in
    /// the ring with the credentials that it was made with, long after a drop. Other workers of `io_uring`
    /// have those of the thread that submits.
    RefusePolling,
    /// Return [`Error::KernelWorkers`](crate::Error::KernelWorkers) if there is any.
    Refuse,
}
