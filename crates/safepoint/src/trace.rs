//! Spans and events of `tracing` for requests (feature `tracing`).
//!
//! A subscriber is foreign code, and may want a lock that a mutator has. So it is called before the request, and when
//! that is over: by the requester alone, never while mutators are asked or stopped.

#[cfg(feature = "tracing")]
use core::mem::ManuallyDrop;
use core::time::Duration;
#[cfg(feature = "tracing")]
use std::panic::{self, AssertUnwindSafe};

#[cfg(feature = "tracing")]
use sigctx::fork;

use crate::metrics::Pause;
use crate::options::Reason;
use crate::pace::Late;
use crate::straggler::Straggler;

/// The span of one request. Empty without the feature.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    #[cfg(feature = "tracing")]
    on: Option<On>,
}

#[cfg(not(feature = "tracing"))]
#[expect(clippy::unused_self, reason = "as with the feature")]
impl Trace {
    #[inline]
    pub(crate) fn stop(_reason: Reason) -> Self {
        Self {}
    }

    #[inline]
    pub(crate) fn for_each() -> Self {
        Self {}
    }

    #[inline]
    pub(crate) fn handshake(_asked: usize) -> Self {
        Self {}
    }

    #[inline]
    pub(crate) fn keep(&mut self, _lates: impl FnOnce() -> Vec<Late>) {}

    #[inline]
    pub(crate) fn stop_is_over(&self, _pause: &Pause) {}

    #[inline]
    pub(crate) fn for_each_is_over(&self, _visited: usize, _lasted: Duration) {}

    #[inline]
    pub(crate) fn handshake_is_over(&self, _answered: usize, _lasted: Duration) {}

    #[inline]
    pub(crate) fn given_up(&self, _stragglers: &[Straggler]) {}
}

#[cfg(feature = "tracing")]
#[derive(Debug)]
struct On {
    span: ManuallyDrop<tracing::Span>,
    lates: Vec<Late>,
    /// The child of a fork leaves the subscriber alone, which may have been in the middle of a change.
    process: u32,
}

#[cfg(feature = "tracing")]
impl On {
    fn is_of_this_process(&self) -> bool {
        self.process == fork::process()
    }
}

#[cfg(feature = "tracing")]
impl Drop for On {
    fn drop(&mut self) {
        if self.is_of_this_process() {
            // SAFETY: not used after this.
            let span = unsafe { ManuallyDrop::take(&mut self.span) };
            quietly(|| drop(span));
        }
    }
}

/// Calls the subscriber. A panic of its would leave a request half done; the hook has told of it. The payload's
/// destructor might panic, too.
#[cfg(feature = "tracing")]
fn quietly<T>(call: impl FnOnce() -> T) -> Option<T> {
    match panic::catch_unwind(AssertUnwindSafe(call)) {
        Ok(done) => Some(done),
        Err(payload) => {
            Box::leak(payload);
            None
        }
    }
}

/// As fields have times.
#[cfg(feature = "tracing")]
fn microseconds(time: Duration) -> u64 {
    time.as_micros() as u64
}

#[cfg(feature = "tracing")]
impl Trace {
    fn of(span: impl FnOnce() -> tracing::Span) -> Self {
        let process = fork::process();
        let on = |span| On { span: ManuallyDrop::new(span), lates: Vec::new(), process };
        Self { on: quietly(span).map(on) }
    }

    /// Before a stop is asked for.
    pub(crate) fn stop(reason: Reason) -> Self {
        Self::of(|| {
            tracing::info_span!(
                "stop",
                reason = reason.as_str(),
                mutators = tracing::field::Empty,
                queued_us = tracing::field::Empty,
                time_to_stop_us = tracing::field::Empty,
                stopped_us = tracing::field::Empty,
                given_up = tracing::field::Empty,
            )
        })
    }

    /// Before a for-each is asked for.
    pub(crate) fn for_each() -> Self {
        Self::of(|| {
            tracing::info_span!(
                "for_each",
                visited = tracing::field::Empty,
                lasted_us = tracing::field::Empty,
                given_up = tracing::field::Empty,
            )
        })
    }

    /// Before mutators are asked.
    pub(crate) fn handshake(asked: usize) -> Self {
        Self::of(|| {
            tracing::info_span!(
                "handshake",
                asked,
                answered = tracing::field::Empty,
                lasted_us = tracing::field::Empty,
                given_up = tracing::field::Empty,
            )
        })
    }

    /// Keeps which mutators were late, until the request is over.
    pub(crate) fn keep(&mut self, lates: impl FnOnce() -> Vec<Late>) {
        if let Some(on) = &mut self.on {
            on.lates = lates();
        }
    }

    fn call(&self, call: impl FnOnce(&tracing::Span)) {
        if let Some(on) = self.on.as_ref().filter(|on| on.is_of_this_process()) {
            quietly(|| {
                for (found, nudges) in on.lates.iter().filter_map(Late::found) {
                    tracing::warn!(
                        parent: &*on.span,
                        tid = found.tid,
                        name = %found.name,
                        after_us = microseconds(found.after),
                        nudges,
                        "late mutator"
                    );
                }
                call(&on.span);
            });
        }
    }

    /// When mutators run again.
    pub(crate) fn stop_is_over(&self, pause: &Pause) {
        self.call(|span| {
            span.record("mutators", pause.mutators);
            span.record("queued_us", microseconds(pause.queued));
            span.record("time_to_stop_us", microseconds(pause.time_to_stop));
            span.record("stopped_us", microseconds(pause.stopped));
        });
    }

    /// When all closures have run.
    pub(crate) fn for_each_is_over(&self, visited: usize, lasted: Duration) {
        self.call(|span| {
            span.record("visited", visited);
            span.record("lasted_us", microseconds(lasted));
        });
    }

    /// When all have answered, or are gone.
    pub(crate) fn handshake_is_over(&self, answered: usize, lasted: Duration) {
        self.call(|span| {
            span.record("answered", answered);
            span.record("lasted_us", microseconds(lasted));
        });
    }

    /// When a request was given up, and mutators run again. Without stragglers it did not get its turn.
    pub(crate) fn given_up(&self, stragglers: &[Straggler]) {
        self.call(|span| {
            span.record("given_up", true);
            for straggler in stragglers {
                tracing::warn!(
                    parent: span,
                    tid = straggler.tid,
                    name = %straggler.name,
                    waited_us = microseconds(straggler.waited),
                    nudges = straggler.nudges,
                    cause = %straggler.cause,
                    "straggler"
                );
            }
        });
    }
}
