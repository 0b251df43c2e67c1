//! What a stop is for, and how long it and a for-each may take.

use core::fmt;
use core::time::Duration;

use sigctx::sys::Tid;

use crate::abort::abort_in;
use crate::straggler::Straggler;

/// Why the world is stopped, for people who read statistics and errors.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reason(&'static str);

impl Reason {
    /// Garbage collection.
    pub const GC: Self = Self("gc");
    /// Replacing code.
    pub const CODE: Self = Self("code");
    /// A dump or profile of all threads.
    pub const DUMP: Self = Self("dump");
    /// Nothing: a stop by [`Chaos::stop_at_polls`](crate::Chaos::stop_at_polls).
    pub const CHAOS: Self = Self("chaos");

    /// A reason of your own.
    #[must_use]
    pub const fn new(text: &'static str) -> Self {
        Self(text)
    }

    /// The text.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.0
    }
}

impl From<&'static str> for Reason {
    fn from(text: &'static str) -> Self {
        Self(text)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// What is called for each late mutator before the deadline; from [`StopOptions::on_late`].
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct OnLate<'a> {
    /// How long after the request, from when it had its turn.
    pub after: Duration,
    /// What is called.
    pub call: &'a (dyn Fn(&Straggler) + Sync),
}

impl fmt::Debug for OnLate<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnLate").field("after", &self.after).finish_non_exhaustive()
    }
}

/// What happens at the deadline if mutators are late.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum AtDeadline {
    /// The request is given up: all mutators run, and the error names the late ones.
    #[default]
    GiveUp,
    /// The error is written to standard error, and the process dies of a `SIGABRT` that is sent to the first of the
    /// late threads: a core dump, or a handler of that signal, shows what that thread did. If the process lives on for
    /// a second (the thread may block the signal, or its handler return) the requester aborts it.
    #[doc(alias = "AbortVMOnSafepointTimeout")]
    Abort,
}

impl AtDeadline {
    /// The error of a request that is given up, if the process is to live on. The first of the stragglers is to blame.
    pub(crate) fn or_abort<E: fmt::Display>(self, culprit: Option<Tid>, error: E) -> E {
        if self == Self::Abort {
            abort_in(culprit, format_args!("{error}"));
        }
        error
    }
}

/// How to stop the world.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct StopOptions<'a> {
    /// What for.
    pub reason: Reason,
    /// The longest wait for the turn and for all mutators to stop, together. `None`: no limit. A mutator
    /// whose stop fails goes on when no other thread has the world stopped.
    pub timeout: Option<Duration>,
    /// How long after the request mutators that still run are nudged. `None`: at once, if a nudge brought the
    /// mutator to its last safe point and it has come to none by itself since; else after 100 µs. Without
    /// effect in a world without a nudge.
    pub nudge_after: Option<Duration>,
    /// What is called for each late mutator before the deadline.
    pub on_late: Option<OnLate<'a>>,
    /// What happens at the deadline if mutators are late.
    pub at_deadline: AtDeadline,
}

impl<'a> StopOptions<'a> {
    /// No timeout, and nudges by what is known of each mutator.
    #[must_use]
    pub fn new(reason: impl Into<Reason>) -> Self {
        let reason = reason.into();
        Self {
            reason,
            timeout: None,
            nudge_after: None,
            on_late: None,
            at_deadline: AtDeadline::GiveUp,
        }
    }

    /// Sets the timeout. A stop that takes longer is withdrawn, and the world runs.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Sets how long after the request mutators that still run are nudged, whatever is known of them.
    #[must_use]
    pub fn nudge_after(mut self, after: Duration) -> Self {
        self.nudge_after = Some(after);
        self
    }

    /// Has `call` called for each mutator that runs when the request has had its turn for the time `after`: once for
    /// each, on the requester's thread, with what kept it as far as is known by then. Not for one that is late at the
    /// deadline alone, which the error names.
    ///
    /// No other mutator is looked at meanwhile: a call that takes long makes the request take longer. Nor may it wait for
    /// a mutator, which may have stopped. A panic in it ends there; the panic hook has told of it.
    ///
    /// # Examples
    ///
    /// ```
    /// use safepoint::{StopOptions, World};
    /// use std::time::Duration;
    ///
    /// let world = World::new();
    /// let options = StopOptions::new("gc")
    ///     .timeout(Duration::from_secs(10))
    ///     .on_late(Duration::from_millis(10), &|late| eprintln!("slow to stop: {late}"));
    /// world.stop_from_outside_with(options)?.resume();
    /// # Ok::<(), safepoint::StopError>(())
    /// ```
    #[must_use]
    #[doc(alias = "SafepointTimeoutDelay")]
    pub fn on_late(mut self, after: Duration, call: &'a (dyn Fn(&Straggler) + Sync)) -> Self {
        self.on_late = Some(OnLate { after, call });
        self
    }

    /// Sets what happens at the end of the timeout if mutators are late.
    #[must_use]
    pub fn at_deadline(mut self, what: AtDeadline) -> Self {
        self.at_deadline = what;
        self
    }
}

/// How to visit every mutator.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct EachOptions<'a> {
    /// The longest wait for the turn and for every closure to begin, together. `None`: no limit. Closures
    /// that have begun are waited for beyond it, and so are stops by other threads.
    pub timeout: Option<Duration>,
    /// How long after the request mutators that still run are nudged. `None`: at once, if a nudge brought the
    /// mutator to its last safe point and it has come to none by itself since; else after 100 µs. Without
    /// effect in a world without a nudge.
    pub nudge_after: Option<Duration>,
    /// What is called for each late mutator before the deadline.
    pub on_late: Option<OnLate<'a>>,
    /// What happens at the deadline if mutators are late.
    pub at_deadline: AtDeadline,
}

impl Default for EachOptions<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> EachOptions<'a> {
    /// No timeout, and nudges by what is known of each mutator.
    #[must_use]
    pub fn new() -> Self {
        Self { timeout: None, nudge_after: None, on_late: None, at_deadline: AtDeadline::GiveUp }
    }

    /// Sets the timeout. Past it, mutators that have not been visited will not be.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Sets how long after the request mutators that still run are nudged, whatever is known of them.
    #[must_use]
    pub fn nudge_after(mut self, after: Duration) -> Self {
        self.nudge_after = Some(after);
        self
    }

    /// As [`StopOptions::on_late`].
    #[must_use]
    pub fn on_late(mut self, after: Duration, call: &'a (dyn Fn(&Straggler) + Sync)) -> Self {
        self.on_late = Some(OnLate { after, call });
        self
    }

    /// As [`StopOptions::at_deadline`].
    #[must_use]
    pub fn at_deadline(mut self, what: AtDeadline) -> Self {
        self.at_deadline = what;
        self
    }
}

/// How to ask for a handshake.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct HandshakeOptions<'a> {
    /// The longest wait for operations to begin. `None`: no limit. Those that have begun are waited for beyond it, and
    /// so are stops by other threads.
    pub timeout: Option<Duration>,
    /// As [`EachOptions::nudge_after`].
    pub nudge_after: Option<Duration>,
    /// What is called for each late mutator before the deadline.
    pub on_late: Option<OnLate<'a>>,
    /// What happens at the deadline if mutators are late.
    pub at_deadline: AtDeadline,
    /// Whether the mutator alone may run its operation, and nobody for it while it is in a safe region.
    pub self_only: bool,
}

impl<'a> HandshakeOptions<'a> {
    /// No timeout, nudges by what is known of each mutator, and anybody may run the operation.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the timeout. Past it, operations that have not begun will not.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Sets how long after the request mutators that still run are nudged, whatever is known of them.
    #[must_use]
    pub fn nudge_after(mut self, after: Duration) -> Self {
        self.nudge_after = Some(after);
        self
    }

    /// As [`StopOptions::on_late`].
    #[must_use]
    pub fn on_late(mut self, after: Duration, call: &'a (dyn Fn(&Straggler) + Sync)) -> Self {
        self.on_late = Some(OnLate { after, call });
        self
    }

    /// As [`StopOptions::at_deadline`].
    #[must_use]
    pub fn at_deadline(mut self, what: AtDeadline) -> Self {
        self.at_deadline = what;
        self
    }

    /// Lets each operation run on its mutator's own thread only. One in a safe region does so when it leaves that.
    #[must_use]
    pub fn self_only(mut self) -> Self {
        self.self_only = true;
        self
    }
}

/// How to have stopped mutators run something: [`Stopped::run_on_all`](crate::Stopped::run_on_all).
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct RunOptions {
    /// The longest wait for the function to begin on every thread. `None`: no limit. Where it has begun it is waited for
    /// beyond it.
    pub timeout: Option<Duration>,
    /// Whether it runs on the mutators' own threads only.
    pub self_only: bool,
}

impl RunOptions {
    /// No timeout, and the calling thread runs the function for mutators that cannot.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the timeout. Past it, the function does not begin anywhere.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Has the function run on the mutators' own threads only. One in a safe region comes to it when it leaves that: set
    /// a timeout.
    #[must_use]
    pub fn self_only(mut self) -> Self {
        self.self_only = true;
        self
    }
}
