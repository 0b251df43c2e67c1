//! The target's side, by itself.

use core::cell::Cell;
use core::time::Duration;

use threadreg::rest::{self, Resident};

use super::{EACH, Limit, MutatorSlot, NoSlot, Protocol, STOP, Stance};
use crate::protocol::{Job, Pace};
use crate::system::{Fences, Identity, Linux};

thread_local! {
    /// How often this thread stayed while its task was held.
    static STAYED: Cell<u32> = const { Cell::new(0) };
}

/// A protocol beside a crate that suspends tasks.
fn protocol() -> Protocol<Linux> {
    static RESIDENT: Resident = Resident { serve: || (), leave: || STAYED.set(STAYED.get() + 1) };
    rest::set_resident(&RESIDENT);
    Protocol::new(Linux::new(Fences::Full))
}

/// A handler recalls the thread just before its deadline.
struct RecalledAtLast<'a> {
    protocol: &'a Protocol<Linux>,
    slot: Cell<Option<&'static MutatorSlot<Identity>>>,
}

impl Limit for RecalledAtLast<'_> {
    fn left(&self) -> Option<Duration> {
        if let Some(slot) = self.slot.take() {
            assert_eq!(slot.stance(), Some(Stance::Waits), "a handler finds it at rest");
            self.protocol.recall(slot);
        }
        Some(Duration::ZERO)
    }
}

impl Pace<Linux> for RecalledAtLast<'_> {
    type Seen = ();

    fn expired(&self) -> bool {
        true
    }
    fn nap(&self) -> Option<Duration> {
        Some(Duration::ZERO)
    }
    fn due(&mut self) -> bool {
        true
    }
    fn late(&mut self, _slot: &'static MutatorSlot<Identity>, _wanted: &dyn Fn() -> bool) {}
    fn look(&self, _slot: &'static MutatorSlot<Identity>) {}
}

/// A slot is used again in the next world, and stays the survivor's in the child of a fork.
#[test]
fn a_slot_says_whether_its_world_fences() {
    for fences in [Fences::Full, Fences::Asymmetric, Fences::Full] {
        let protocol = Protocol::new(Linux::new(fences));
        let limit = RecalledAtLast { protocol: &protocol, slot: Cell::new(None) };
        let slot = protocol.attach(|_| (), |_| (), &limit).expect("room");
        let fenced = || {
            let fenced = Cell::new(false);
            assert!(!slot.is_armed_behind(|| fenced.set(true)) && !slot.is_armed());
            fenced.get()
        };
        assert_eq!(fenced(), fences == Fences::Full, "{fences:?}");
        protocol.after_fork(1, 1, |survivor| core::ptr::eq(survivor, slot), |_| ());
        assert_eq!(fenced(), fences == Fences::Full, "{fences:?}, in the child of a fork");
        protocol.detach(slot, || ());
    }
}

/// Else this thread could be named as the one that stopped last, which had the slot before.
#[test]
fn an_identity_comes_with_its_generation() {
    let protocol = protocol();
    let limit = RecalledAtLast { protocol: &protocol, slot: Cell::new(None) };
    for _ in 0..2 {
        let at_identify = Cell::new(None);
        let identify =
            |slot: &'static MutatorSlot<Identity>| at_identify.set(Some(slot.current_use()));
        let slot = protocol.attach(identify, |_| (), &limit).expect("room");
        assert_eq!(at_identify.get(), Some(slot.current_use()));
        protocol.detach(slot, || ());
    }
}

/// From the recall on, the task counts as stopped at a safe point.
#[test]
fn an_attach_that_times_out_stays_while_its_task_is_held() {
    let protocol = protocol();
    let mut limit = RecalledAtLast { protocol: &protocol, slot: Cell::new(None) };
    protocol.stop(None, &mut limit).expect("no mutator to be late");
    let forget = |_| assert_eq!(STAYED.get(), 1, "it ran while its task was held");
    let attached = protocol.attach(|slot| limit.slot.set(Some(slot)), forget, &limit);
    assert!(matches!(attached, Err(NoSlot::Stopped)));
    assert_eq!(STAYED.get(), 1);
    protocol.resume();
}

/// No thread holds the task any more, but the task still has to be told that it goes on.
#[test]
fn a_recall_that_came_before_a_fork_is_heeded_in_the_child() {
    let protocol = protocol();
    let limit = RecalledAtLast { protocol: &protocol, slot: Cell::new(None) };
    let slot = protocol.attach(|_| (), |_| (), &limit).expect("room");
    protocol.enter(slot, Stance::Away);
    protocol.recall(slot);
    slot.requests.poll.fetch_or(STOP | EACH, super::Ordering::Relaxed);
    protocol.after_fork(1, 2, |_| true, |_| ());
    protocol.leave(slot);
    assert_eq!(STAYED.get(), 1, "it ran, and its task counts as blocked");
    assert!(!slot.is_armed(), "nothing else is left");
    protocol.detach(slot, || ());
}

/// The thread that holds the task may be looking at it.
#[test]
fn a_recalled_target_helps_when_its_task_is_held_no_more() {
    let protocol = protocol();
    let mut limit = RecalledAtLast { protocol: &protocol, slot: Cell::new(None) };
    let slot = protocol.attach(|_| (), |_| (), &limit).expect("room");
    protocol.enter(slot, Stance::Waits);
    protocol.stop(None, &mut limit).expect("it is safe");
    let ran = std::sync::atomic::AtomicU32::new(0);
    let run = |slot: &'static MutatorSlot<Identity>| {
        assert_eq!(STAYED.get(), 1, "it ran while its task was held");
        assert_eq!(slot.stance(), Some(Stance::Helps), "a handler finds it running");
        ran.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    };
    // The target's part, when it is asked.
    let target = |slot: &'static MutatorSlot<Identity>| {
        protocol.recall(slot);
        assert!(protocol.helps(slot), "it is asked");
        false
    };
    let job = Job { run: &run, is_own: &target, self_only: true };
    assert!(protocol.have_help(&[slot], &job, &mut limit).is_empty());
    assert_eq!((ran.into_inner(), slot.stance()), (1, Some(Stance::Waits)));
    protocol.resume();
    protocol.leave(slot);
    protocol.detach(slot, || ());
}
