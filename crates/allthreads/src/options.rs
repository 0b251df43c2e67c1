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
    /// None: each makes the calls when it comes, in one phase, and goes on. No thread is held, which spares
    /// another wake-up. This is what libc's own `setuid` gives, for any call and for every thread:
    ///
    /// - The requester makes the calls first. What the kernel refuses it, no other thread tries. That is all
    ///   there is of "all or nothing".
    /// - Threads run their own code in the old state and in the new one, side by side, until the operation
    ///   returns. Then all have made the calls.
    /// - Nothing is undone. If a thread has not come by the deadline, the others have made the calls, and the
    ///   error, [`Error::Partial`](crate::Error::Partial), names it. It does not make them later. The calls
    ///   are to be made by the deadline, too; those that have begun are waited for.
    /// - Ids and capabilities are not compared beforehand ([`OnMixed`]): a thread that the kernel refuses a
    ///   call is a divergence.
    /// - A thread that is made meanwhile has what its maker had, and may make the calls once more: they must
    ///   be calls that do no harm the second time, as those that set something are.
    /// - In a process that makes threads all the time there may be no moment at which all are seen to have
    ///   made the calls. It is waited for until the deadline.
    ///
    /// [`KernelWorkers`] are refused beforehand only where all are held: if that is asked for, this is
    /// [`Early`](Self::Early).
    OnePhase,
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
    /// [`Barrier::Early`] those that went on do, for as long as it takes to see the difference. With
    /// [`Barrier::OnePhase`] it also ends a process in which some thread has not come by the deadline.
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
