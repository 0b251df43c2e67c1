//! What a stop is for, and how long it and a for-each may take.

use core::fmt;
use core::time::Duration;

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

/// How to stop the world.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct StopOptions {
    /// What for.
    pub reason: Reason,
    /// The longest wait for the turn and for all mutators to stop, together. `None`: no limit. A mutator
    /// whose stop fails goes on when no other thread has the world stopped.
    pub timeout: Option<Duration>,
    /// How long after the request mutators that still run are nudged. `None`: at once, if a nudge brought the
    /// mutator to its last safe point and it has come to none by itself since; else after 100 µs. Without
    /// effect in a world without a nudge.
    pub nudge_after: Option<Duration>,
}

impl StopOptions {
    /// No timeout, and nudges by what is known of each mutator.
    #[must_use]
    pub fn new(reason: impl Into<Reason>) -> Self {
        Self { reason: reason.into(), timeout: None, nudge_after: None }
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
}

/// How to visit every mutator.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct EachOptions {
    /// The longest wait for the turn and for every closure to begin, together. `None`: no limit. Closures
    /// that have begun are waited for beyond it, and so are stops by other threads.
    pub timeout: Option<Duration>,
    /// How long after the request mutators that still run are nudged. `None`: at once, if a nudge brought the
    /// mutator to its last safe point and it has come to none by itself since; else after 100 µs. Without
    /// effect in a world without a nudge.
    pub nudge_after: Option<Duration>,
}

impl Default for EachOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl EachOptions {
    /// No timeout, and nudges by what is known of each mutator.
    #[must_use]
    pub fn new() -> Self {
        Self { timeout: None, nudge_after: None }
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
}
