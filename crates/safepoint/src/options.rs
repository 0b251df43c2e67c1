//! What a stop is for, and how long it and a for-each may take.

use core::fmt;
use core::time::Duration;

/// A poll answers in well under this.
const NUDGE_AFTER: Duration = Duration::from_micros(100);

/// Why the world is stopped; for people who read statistics and errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reason(&'static str);

impl Reason {
    /// Garbage collection.
    pub const GC: Self = Self("gc");
    /// Replacing code.
    pub const CODE: Self = Self("code");
    /// A dump or profile of all threads.
    pub const DUMP: Self = Self("dump");

    /// A reason of your own.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub const fn new(text: &'static str) -> Self {
        Self(text)
    }

    /// The text.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
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

/// How to stop the world.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct StopOptions {
    /// What for.
    pub reason: Reason,
    /// How long it may take to be the one who stops and to have everybody stopped. `None`: for as
    /// long as it takes. A mutator whose stop fails goes on when no other has the world stopped.
    pub timeout: Option<Duration>,
    /// When mutators that still run are nudged. Has no effect in a world without a nudge.
    pub nudge_after: Duration,
}

impl StopOptions {
    /// No deadline, and a nudge after 100 µs.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn new(reason: impl Into<Reason>) -> Self {
        Self { reason: reason.into(), timeout: None, nudge_after: NUDGE_AFTER }
    }

    /// Gives up, with everybody released, when the stop takes longer.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Nudges late mutators from then on.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn nudge_after(mut self, after: Duration) -> Self {
        self.nudge_after = after;
        self
    }
}

/// How to visit every mutator.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct EachOptions {
    /// How long it may take to have the turn and every closure begun. `None`: for as long as it
    /// takes. Closures that have begun are waited for, and so are stops by others.
    pub timeout: Option<Duration>,
    /// When mutators that still run are nudged. Has no effect in a world without a nudge.
    pub nudge_after: Duration,
}

impl Default for EachOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl EachOptions {
    /// No deadline, and a nudge after 100 µs.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn new() -> Self {
        Self { timeout: None, nudge_after: NUDGE_AFTER }
    }

    /// Gives up those who have not been visited, when it takes longer.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Nudges late mutators from then on.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn nudge_after(mut self, after: Duration) -> Self {
        self.nudge_after = after;
        self
    }
}
