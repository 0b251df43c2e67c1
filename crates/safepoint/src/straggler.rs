//! A thread that was late, what is known of it, and why it was late.

use core::fmt;
use core::panic::Location;
use core::time::Duration;

use sigctx::frames::Sighting;
use sigctx::sys::Tid;
use threadreg::procfs::{InKernel, SyscallNumber, TaskDir};
use threadreg::{Label, Name, NudgeError, NudgeOutcome};

use crate::protocol::MutatorState;
use crate::symbol::Address;

/// A mutator that did not stop, or was not visited, in time. It was looked at while its request was pending.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe). Printing it is not.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Straggler {
    /// Its thread.
    pub tid: Tid,
    /// The thread's name when it attached.
    pub name: Name,
    /// Where the mutator was.
    pub state: MutatorState,
    /// How long the requester waited for it, from when it had its turn.
    pub waited: Duration,
    /// For how long at least it has not polled, nor entered or left a safe region: it was asked before that, and would
    /// have answered. Zero where that is not known: when it runs a closure or an operation of another request, for
    /// which it may have come meanwhile, or was given up at once.
    ///
    /// When it last polled is not known to anybody: a poll writes nothing.
    pub not_polled_for: Duration,
    /// For how long a [`PollGapSampler`](crate::PollGapSampler) of the world has waited for it to come to a safe point,
    /// if one is at work and waits for it. That may have begun before the request. As exact as the sampler is: if the
    /// mutator came between its last look and the request, this is the gap that ended there, and what came after it.
    pub sampled_gap: Option<Duration>,
    /// How many nudges it was sent, failed ones included.
    pub nudges: u32,
    /// What the kernel said of its thread. `None` where it does not tell, and for all stragglers of a request
    /// beyond the first 32: the requester has waited long enough.
    pub seen: Option<KernelView>,
    /// What kept it, as far as is known.
    pub cause: StragglerCause,
    /// Where a nudge of this request found it last.
    pub(crate) sighting: Option<Box<Sighting>>,
}

impl Straggler {
    /// Program counter, stack pointer and frame pointer where a nudge of this request found it last. `None` where none
    /// did: the world has no nudge, or one that does not tell; or the thread has not handled the signal.
    #[must_use]
    pub fn registers(&self) -> Option<&Sighting> {
        self.sighting.as_deref()
    }

    /// Where that was, and the return addresses of its callers as far as frame pointers lead: see
    /// [`sigctx::frames`]. Empty where [`Straggler::registers`] is `None`. Names come when the straggler is printed, with
    /// the feature `symbols`: that reads files, and allocates.
    #[must_use]
    pub fn backtrace(&self) -> &[usize] {
        self.registers().map_or(&[], Sighting::backtrace)
    }
}

/// What the kernel says of a thread. Read from `/proc/self/task`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct KernelView {
    /// As in [`TaskStat::state`](threadreg::procfs::TaskStat::state).
    pub state: char,
    /// The system call it is in, if the kernel tells.
    pub doing: Option<InKernel>,
    /// The kernel function that it sleeps in. Empty when it runs, and where the kernel does not tell.
    pub wait_channel: Name,
    /// The thread that traces it; 0 if none does.
    pub tracer: Tid,
}

impl KernelView {
    pub(crate) fn read(tasks: &TaskDir, tid: Tid) -> Option<Self> {
        let state = tasks.stat(tid).ok()?.state;
        let tracer = tasks.status(tid).ok()?.tracer;
        let doing = tasks.in_kernel(tid).ok()?;
        let wait_channel = tasks.wchan(tid).unwrap_or_default();
        Some(Self { state, doing, wait_channel, tracer })
    }

    /// Why the thread does not run, if it does not.
    fn standstill(&self) -> Option<StragglerCause> {
        // The names are those of cgroup v2's freezer, and of v1's.
        let is_frozen = matches!(self.wait_channel.as_str(), "do_freezer_trap" | "__refrigerator");
        match (self.state, self.doing) {
            ('t', _) => Some(StragglerCause::Traced { by: self.tracer }),
            ('T', _) => Some(StragglerCause::Stopped),
            _ if is_frozen => Some(StragglerCause::Frozen),
            ('D' | 'S', Some(InKernel::Sleeps { pc, .. })) => {
                Some(StragglerCause::PageFault { pc })
            }
            ('D', Some(InKernel::InCall { call, .. })) => {
                Some(StragglerCause::Uninterruptible { call: Some(call) })
            }
            ('D', _) => Some(StragglerCause::Uninterruptible { call: None }),
            ('S', Some(InKernel::InCall { call, .. })) => Some(StragglerCause::InSyscall { call }),
            _ => None,
        }
    }
}

/// What kept a mutator from acknowledging a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StragglerCause {
    /// Its thread has ended, and its mutator was never dropped.
    Ended,
    /// The mutator is no thread's ([`SafeMutator`](crate::SafeMutator)), and its own thread alone may run the operation.
    /// The thread that is named had it last.
    NoThread,
    /// Its task is suspended.
    Suspended {
        /// The thread that suspended it.
        by: Tid,
    },
    /// A tracer holds it, such as a debugger.
    Traced {
        /// The tracer's thread; 0 if it let go meanwhile.
        by: Tid,
    },
    /// A job-control stop (`SIGSTOP`) holds it.
    Stopped,
    /// The freezer of its control group holds it.
    Frozen,
    /// It waits for memory: for a page from a disk, or from a user of `userfaultfd(2)`.
    PageFault {
        /// The instruction that faulted.
        pc: usize,
    },
    /// It sleeps in the kernel where no signal reaches it: for a disk or a file system, or as the parent in
    /// `vfork(2)` does. A safe region around the call would spare others the wait.
    Uninterruptible {
        /// The system call, if the kernel tells.
        call: Option<SyscallNumber>,
    },
    /// It sleeps in a system call outside of a safe region. Put the call into
    /// [`Mutator::blocking`](crate::Mutator::blocking).
    InSyscall {
        /// Which.
        call: SyscallNumber,
    },
    /// It is in a safe region, or waits for what another thread does, and it alone may run the operation.
    InSafeRegion,
    /// It could run, and had no processor: it ran for less than a hundredth of the time that it was watched; or it was
    /// woken, and has not come.
    Starved,
    /// It was in code without safe points ([`Mutator::no_safepoint`](crate::Mutator::no_safepoint)).
    NoSafepoint {
        /// Where that begins.
        at: &'static Location<'static>,
    },
    /// It ran and did not poll, and the world has no nudge.
    NoNudge,
    /// It ran and did not poll, and it was too early for a nudge.
    NotNudged,
    /// It ran and did not poll, and the last nudge failed.
    NudgeFailed(NudgeError),
    /// It ran and did not poll, and the last nudge panicked.
    NudgePanicked,
    /// It was nudged, and blocks the signal.
    SignalBlocked,
    /// It was nudged, and another handler was installed over the nudge's: `preempt::install` puts that on top again.
    Covered {
        /// The address of that handler.
        by: usize,
    },
    /// It was nudged, and the signal was set to its default action, or to be ignored, after the nudge's handler was
    /// installed.
    Replaced,
    /// It was nudged, and has not handled the signal.
    NotHandled,
    /// It was nudged, and ran foreign code: none that is registered as code to interrupt.
    ForeignCode {
        /// Where.
        pc: usize,
    },
    /// It was nudged, and had forbidden to be interrupted, as `preempt::disable` does.
    Disabled {
        /// Where.
        pc: usize,
    },
    /// It was nudged, and could not be interrupted where it was for another reason.
    Refused {
        /// Where.
        pc: usize,
    },
    /// It was nudged, and did not poll. More is not known.
    Nudged,
}

/// What is known of the nudges of a straggler.
#[derive(Debug, Clone, Copy)]
pub(crate) enum LastNudge {
    /// None was sent, since the world has no nudge.
    Impossible,
    /// None was sent yet.
    Early,
    Sent(NudgeOutcome),
    Failed(NudgeError),
    Panicked,
}

impl From<LastNudge> for StragglerCause {
    fn from(last: LastNudge) -> Self {
        match last {
            LastNudge::Impossible => Self::NoNudge,
            LastNudge::Early => Self::NotNudged,
            LastNudge::Failed(error) => Self::NudgeFailed(error),
            LastNudge::Panicked => Self::NudgePanicked,
            LastNudge::Sent(NudgeOutcome::SignalBlocked) => Self::SignalBlocked,
            LastNudge::Sent(NudgeOutcome::Covered { by }) => Self::Covered { by },
            LastNudge::Sent(NudgeOutcome::Replaced) => Self::Replaced,
            LastNudge::Sent(NudgeOutcome::NotHandled) => Self::NotHandled,
            LastNudge::Sent(NudgeOutcome::OutsideCode { pc }) => Self::ForeignCode { pc },
            LastNudge::Sent(NudgeOutcome::Disabled { pc }) => Self::Disabled { pc },
            LastNudge::Sent(NudgeOutcome::Refused { pc }) => Self::Refused { pc },
            LastNudge::Sent(_) => Self::Nudged,
        }
    }
}

impl StragglerCause {
    /// The mutator is in code without safe points that begins `at` a place. If its thread could have come to the end
    /// of it, that is the cause: so a system call in there is, which has no place in a safe region either.
    pub(crate) fn or_no_safepoint(self, at: Option<&'static Location<'static>>) -> Self {
        at.filter(|_| !self.could_not_run()).map_or(self, |at| Self::NoSafepoint { at })
    }

    /// Its thread stands still, and waits for the end of a stop or is in a region: polls and nudges are none of its
    /// causes, and nor is the system call in which it waits.
    pub(crate) fn of_stopped(self, waits: bool) -> Self {
        match self {
            _ if self.could_not_run() => self,
            _ if waits => Self::Starved,
            _ => Self::InSafeRegion,
        }
    }

    /// Whether its thread could not go on with its code.
    fn could_not_run(self) -> bool {
        matches!(
            self,
            Self::Ended
                | Self::NoThread
                | Self::Suspended { .. }
                | Self::Traced { .. }
                | Self::Stopped
                | Self::Frozen
                | Self::PageFault { .. }
                | Self::Uninterruptible { .. }
                | Self::Starved
        )
    }

    /// Judges a thread that is alive and not suspended. `ran` is for how much of which time it had a processor.
    pub(crate) fn judge(
        seen: Option<&KernelView>,
        ran: Option<(Duration, Duration)>,
        last: LastNudge,
    ) -> Self {
        let starved = ran.filter(|(ran, of)| *ran * 100 < *of).map(|_| Self::Starved);
        seen.and_then(KernelView::standstill).or(starved).unwrap_or_else(|| last.into())
    }
}

impl fmt::Display for StragglerCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended => f.write_str("the thread has ended, and its mutator was not dropped"),
            Self::NoThread => {
                f.write_str("is no thread's since then, and its own alone may run the operation")
            }
            Self::Suspended { by } => write!(f, "suspended by thread {by}"),
            Self::Traced { by } => write!(f, "held by its tracer, thread {by}"),
            Self::Stopped => f.write_str("stopped by a signal"),
            Self::Frozen => f.write_str("frozen with its control group"),
            Self::PageFault { pc } => write!(f, "waits for a page of memory at pc {pc:#x}"),
            Self::Uninterruptible { call: Some(call) } => {
                write!(f, "in an uninterruptible sleep, in system call {call}")
            }
            Self::Uninterruptible { call: None } => f.write_str("in an uninterruptible sleep"),
            Self::InSyscall { call } => {
                write!(f, "sleeps in system call {call}, outside of a safe region")
            }
            Self::InSafeRegion => {
                f.write_str("is in a safe region, and alone may run the operation")
            }
            Self::Starved => f.write_str("was not scheduled"),
            Self::NoSafepoint { at } => {
                write!(f, "in code without safe points, which begins at {at}")
            }
            Self::NoNudge => f.write_str("no poll, and the world has no nudge"),
            Self::NotNudged => f.write_str("no poll, and not nudged yet"),
            Self::NudgeFailed(error) => write!(f, "no poll, and the nudge failed: {error}"),
            Self::NudgePanicked => f.write_str("no poll, and the nudge panicked"),
            Self::SignalBlocked => f.write_str("no poll, and it blocks the nudge's signal"),
            Self::Covered { by } => {
                write!(f, "no poll, and handler {by:#x} was installed over the nudge's")
            }
            Self::Replaced => f.write_str("no poll, and the nudge's handler was replaced"),
            Self::NotHandled => f.write_str("no poll, and the nudge's signal was not handled"),
            Self::ForeignCode { pc } => {
                write!(
                    f,
                    "no poll, and the nudge found it outside of registered code, at pc {pc:#x}"
                )
            }
            Self::Disabled { pc } => {
                write!(
                    f,
                    "no poll, and the nudge found that it forbids interruption, at pc {pc:#x}"
                )
            }
            Self::Refused { pc } => {
                write!(f, "no poll, and the nudge found no safe point, at pc {pc:#x}")
            }
            Self::Nudged => f.write_str("no poll, and nudged in vain"),
        }
    }
}

impl Straggler {
    /// The first that has a thread to blame.
    pub(crate) fn culprit(stragglers: &[Self]) -> Option<Tid> {
        let mut others = stragglers.iter().filter(|late| late.cause != StragglerCause::NoThread);
        others.next().map(|straggler| straggler.tid)
    }
}

impl fmt::Display for Straggler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tid, name, state, waited, nudges, cause, .. } = self;
        let thread = Label { tid: Some(*tid), name: *name };
        write!(f, "thread {thread}, {state}, waited for {waited:?}: {cause}")?;
        if let Some(gap) = self.sampled_gap.filter(|gap| gap > waited) {
            write!(f, ", and no poll sampled for {gap:?}")?;
        }
        match nudges {
            0 => {}
            1 => f.write_str(" (1 nudge)")?,
            _ => write!(f, " ({nudges} nudges)")?,
        }
        let Some(Sighting { pc, sp, .. }) = self.registers() else { return Ok(()) };
        write!(f, ", seen at {} with sp {sp:#x}", Address::of_instruction(*pc))?;
        for (at, caller) in self.backtrace().iter().skip(1).enumerate() {
            let word = if at == 0 { ", called from" } else { "," };
            write!(f, "{word} {}", Address::of_return(*caller))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: SyscallNumber = SyscallNumber(libc::SYS_read);

    fn view(state: char, doing: InKernel, wait_channel: &str) -> KernelView {
        let wait_channel = Name::from_bytes(wait_channel.as_bytes());
        KernelView { state, doing: Some(doing), wait_channel, tracer: 7 }
    }

    /// What cannot be brought about in each place where the tests run.
    #[test]
    fn what_the_kernel_says_comes_before_what_nudges_say() {
        let judge = |view: KernelView| {
            StragglerCause::judge(Some(&view), None, LastNudge::Sent(NudgeOutcome::NotHandled))
        };
        let in_read = InKernel::InCall { call: READ, sp: 0, pc: 0 };
        let in_fault = InKernel::Sleeps { sp: 0, pc: 3 };
        assert_eq!(judge(view('t', in_fault, "")), StragglerCause::Traced { by: 7 });
        assert_eq!(judge(view('T', in_fault, "do_signal_stop")), StragglerCause::Stopped);
        assert_eq!(judge(view('S', in_fault, "do_freezer_trap")), StragglerCause::Frozen);
        assert_eq!(judge(view('D', in_read, "__refrigerator")), StragglerCause::Frozen);
        assert_eq!(judge(view('D', in_fault, "")), StragglerCause::PageFault { pc: 3 });
        let slow_disk = StragglerCause::Uninterruptible { call: Some(READ) };
        assert_eq!(judge(view('D', in_read, "")), slow_disk);
        assert_eq!(judge(view('S', in_read, "")), StragglerCause::InSyscall { call: READ });
        assert_eq!(judge(view('R', InKernel::Runs, "")), StragglerCause::NotHandled);
    }

    #[test]
    fn a_thread_starves_that_ran_for_less_than_a_hundredth() {
        let judge = |ran, of| {
            let times = (Duration::from_micros(ran), Duration::from_micros(of));
            StragglerCause::judge(None, Some(times), LastNudge::Early)
        };
        assert_eq!(judge(99, 10_000), StragglerCause::Starved);
        assert_eq!(judge(100, 10_000), StragglerCause::NotNudged);
    }
}
