//! What emitted code needs beside the poll.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use crate::common::{Flag, mutator};
use safepoint::{Chaos, RawMutator, World, WorldOptions, sync_core};
use sigctx::sys::{Membarrier, membarrier};
use testkit::{budget, forked, in_child, skip};

const SOON: Duration = Duration::from_secs(20);

fn poll_word(raw: RawMutator) -> u32 {
    // SAFETY: the word is there for as long as the mutator, which the caller has.
    unsafe { &*raw.poll_word() }.load(Ordering::Relaxed)
}

#[test]
fn user_bits_stay_until_they_are_taken() {
    let world = World::new();
    let mut mutator = world.attach().expect("attaches");
    let id = mutator.id();
    assert_eq!((poll_word(mutator.as_raw()), mutator.take_user_bits()), (0, 0));
    assert!(world.set_user_bits(id, 0b101) && world.set_user_bits(id, 0b010));
    mutator.poll();
    mutator.blocking(|| ());
    mutator.stop_the_world("test").expect("stops").resume();
    assert_eq!(poll_word(mutator.as_raw()), 0b111 << 24);
    assert_eq!(RawMutator::USER_BITS & RawMutator::POLL_MASK, RawMutator::USER_BITS);
    assert_eq!(mutator.take_user_bits(), 0b111);
    assert_eq!((poll_word(mutator.as_raw()), mutator.take_user_bits()), (0, 0));
    mutator.detach();
    assert!(!world.set_user_bits(id, 1), "it is detached");
}

/// Its place is another's by then.
#[test]
fn user_bits_do_not_go_to_the_next_mutator() {
    let world = World::new();
    let first = world.attach().expect("attaches");
    let id = first.id();
    assert!(world.set_user_bits(id, 1));
    first.detach();
    let mut next = world.attach().expect("attaches");
    assert_eq!((next.index(), next.take_user_bits()), (id.index(), 0));
    assert!(!world.set_user_bits(id, 1));
    assert_eq!(next.take_user_bits(), 0);
}

#[test]
fn user_bits_are_there_in_the_child_of_a_fork() {
    in_child("jit::user_bits_are_there_in_the_child_of_a_fork", SOON, || {
        let world = World::new();
        let mut mutator = world.attach().expect("attaches");
        assert!(world.set_user_bits(mutator.id(), 2));
        let status = forked(|| assert_eq!(mutator.take_user_bits(), 2));
        assert_eq!(status, 0);
    });
}

/// A bit leads out of a loop that emitted code would make, and stops go on meanwhile.
#[test]
fn stress_no_user_bit_is_lost_amid_stops() {
    in_child("jit::stress_no_user_bit_is_lost_amid_stops", SOON, || {
        let chaotic = World::with_options(WorldOptions::new().chaos(Chaos::new()));
        for world in [World::new(), World::fully_fenced(), chaotic] {
            let (stopped, rounds) = (Flag::default(), budget(2000));
            let (tell, told) = std::sync::mpsc::channel();
            let (answer, answers) = std::sync::mpsc::channel();
            thread::scope(|scope| {
                mutator(scope, &world, "loops", move |mutator| {
                    tell.send(mutator.id()).expect("the test waits");
                    let mut next = 1_u8;
                    loop {
                        // What emitted code does.
                        while poll_word(mutator.as_raw()) & RawMutator::POLL_MASK == 0 {
                            std::hint::spin_loop();
                        }
                        mutator.poll();
                        match mutator.take_user_bits() {
                            0 => continue,
                            u8::MAX => return,
                            bits => assert_eq!(bits, next),
                        }
                        next = if next == 0x40 { 1 } else { next << 1 };
                        answer.send(()).expect("the test waits");
                    }
                });
                scope.spawn(|| {
                    while !stopped.is_up() {
                        world.stop_from_outside("beside").expect("it polls").resume();
                    }
                });
                let id = told.recv().expect("it runs");
                for round in 0..rounds {
                    assert!(world.set_user_bits(id, 1 << (round % 7)));
                    answers.recv_timeout(SOON).expect("the bit arrives");
                }
                stopped.raise();
                assert!(world.set_user_bits(id, u8::MAX));
            });
        }
    });
}

#[test]
fn a_watermark_that_a_stop_sets_is_there_afterwards() {
    let world = World::new();
    let mut mutator = world.attach().expect("attaches");
    let raw = mutator.as_raw();
    // SAFETY: the word is there for as long as the mutator.
    let watermark = unsafe { &*raw.watermark_word() };
    assert_eq!(watermark.load(Ordering::Relaxed), RawMutator::NO_WATERMARK);
    mutator.blocking(|| {
        let stopped = world.stop_from_outside("scan").expect("it is safe");
        stopped.mutators().for_each(|mutator| mutator.set_watermark(0x1000));
    });
    assert_eq!(watermark.load(Ordering::Relaxed), 0x1000);
    mutator.detach();
    let next = world.attach().expect("attaches");
    assert_eq!(watermark.load(Ordering::Relaxed), RawMutator::NO_WATERMARK, "of the last mutator");
    next.detach();
}

#[test]
fn instructions_are_fetched_anew_or_the_kernel_says_no() {
    let has = membarrier(Membarrier::empty()).unwrap_or(0) as u32;
    let can = has & Membarrier::PRIVATE_EXPEDITED_SYNC_CORE.bits() != 0;
    for _ in 0..2 {
        let synchronised = sync_core();
        assert_eq!(synchronised.is_ok(), can, "{synchronised:?}");
    }
    if !can {
        skip("the kernel synchronises no instruction streams here");
    }
}
