//! A requester of the tests that waits for as long as it takes.

use core::time::Duration;

use super::{Limit, MutatorSlot, Pace};
use crate::system::{Identity, Linux};

/// Waits, and does nothing about late targets.
pub(super) struct Patient;

impl Limit for Patient {
    fn left(&self) -> Option<Duration> {
        None
    }
}

impl Pace<Linux> for Patient {
    type Seen = ();

    fn expired(&self) -> bool {
        false
    }
    fn nap(&self) -> Option<Duration> {
        Some(Duration::from_millis(1))
    }
    fn due(&mut self) -> bool {
        true
    }
    fn late(&mut self, _slot: &'static MutatorSlot<Identity>, _wanted: &dyn Fn() -> bool) {}
    fn look(&self, _slot: &'static MutatorSlot<Identity>) {}
}
