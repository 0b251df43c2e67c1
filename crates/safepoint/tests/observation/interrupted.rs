//! What a conservative scanner finds of a mutator that a nudge has interrupted between two instructions.

use std::collections::HashSet;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::common::Flag;
use safepoint::{Place, RootKind, World, WorldOptions};
use sigctx::Reg;
use sigctx::handler::{self, Delivery, Flow, Options};
use sigctx::inject::{CallStack, Frame};
use sigctx::probe::{Patterned, Spin, Stop};
use sigctx::sys;
use testkit::{Rng, in_child};
use threadreg::{Nudge, NudgeCall, NudgeError, ThreadRef};

/// Of the loop.
static STACK: AtomicPtr<CallStack> = AtomicPtr::new(ptr::null_mut());
static TID: AtomicI32 = AtomicI32::new(0);
static CALL: Mutex<Option<NudgeCall>> = Mutex::new(None);
/// What the frame says itself.
static SAVED: Mutex<[Range<usize>; 2]> = Mutex::new([0..0, 0..0]);

/// Interrupts the loop by a signal.
struct Signals;

impl Nudge for Signals {
    fn nudge(
        &self,
        _thread: ThreadRef,
        call: NudgeCall,
        wanted: &dyn Fn() -> bool,
    ) -> Result<(), NudgeError> {
        *CALL.lock().unwrap() = Some(call);
        if wanted() {
            sys::tgkill(sys::getpid(), TID.load(SeqCst), libc::SIGUSR2).expect("it runs");
        }
        Ok(())
    }

    /// The test's mutator enters no region.
    fn settle(&self, _timeout: Duration) -> bool {
        true
    }
}

fn handle(delivery: &mut Delivery<'_>) -> Flow {
    if Patterned::code().contains(&delivery.pc()) {
        // SAFETY: leaked.
        let stack = unsafe { &*STACK.load(SeqCst) };
        // SAFETY: the loop may be interrupted anywhere by anything that leaves it as it was.
        if let Ok(injection) = unsafe { delivery.inject(stack, interrupted, 0) } {
            return Flow::Inject(injection);
        }
    }
    // The requester nudges again.
    Flow::Resume
}

fn interrupted(frame: &mut Frame<'_>, _: usize) {
    *SAVED.lock().unwrap() = [frame.saved(), frame.red_zone()];
    let call = CALL.lock().unwrap().take();
    if let Some(call) = call {
        // SAFETY: made by the crate for this thread, which is at an asynchronous safe point; the frame is not used
        // meanwhile.
        unsafe { call.call_at(Some(NonNull::from(frame))) };
    }
}

/// Ends the loop, also where the test fails.
struct Stops(Stop);

impl Drop for Stops {
    fn drop(&mut self) {
        self.0.stop();
    }
}

fn words(range: Range<usize>) -> impl Iterator<Item = usize> {
    let words = range.step_by(size_of::<usize>());
    // SAFETY: of the stopped loop's stack.
    words.map(|at| unsafe { ptr::with_exposed_provenance::<usize>(at).read_volatile() })
}

#[test]
fn a_root_is_found_in_every_register_that_was_interrupted() {
    let name = "interrupted::a_root_is_found_in_every_register_that_was_interrupted";
    in_child(name, Duration::from_mins(1), || {
        // SAFETY: does nothing but inject.
        let installed = unsafe { handler::install(libc::SIGUSR2, handle, Options::new()) };
        let _installed = installed.expect("room for a handler");
        let world = World::with_options(WorldOptions::new().roots());
        // SAFETY: the loop keeps no reference into the world.
        unsafe { world.set_nudge(Arc::new(Signals)) };
        let (ready, given, stop) = (Flag::default(), Mutex::new(Vec::new()), Mutex::new(None));
        thread::scope(|scope| {
            scope.spawn(|| {
                let mutator = world.attach().expect("a thread of its own");
                let patterned = Box::leak(Box::new(Patterned::new()));
                let (low, high) = patterned.call_stack().bounds();
                mutator.set_stack(low..high);
                STACK.store(ptr::from_ref(patterned.call_stack()).cast_mut(), SeqCst);
                TID.store(sys::gettid(), SeqCst);
                // SAFETY: leaked.
                *stop.lock().unwrap() = Some(unsafe { patterned.stopper() });
                let mut rng = Rng::from_env();
                let random = || {
                    let random = rng.next_u64();
                    given.lock().unwrap().push(random);
                    random
                };
                let _differences = patterned.run(random, Spin::UntilStopped, || ready.raise());
            });
            ready.wait();
            let _stops = Stops(stop.lock().unwrap().take().expect("it runs"));
            let given: HashSet<usize> = {
                let halves = given.lock().unwrap().clone();
                halves.into_iter().flat_map(|word| [word as usize, (word >> 32) as usize]).collect()
            };
            for _ in 0..20 {
                let stopped = world.stop_from_outside("test").unwrap();
                let mutator = stopped.mutators().next().expect("it is there");
                let parked = mutator.parked().expect("the world knows roots");
                assert_eq!(parked.place(), Place::Interrupted);
                let registers = parked.registers().expect("interrupted");
                let pc = registers[Reg::PC] as usize;
                assert!(Patterned::code().contains(&pc), "{parked:?}");
                // SAFETY: the loop's stack is leaked.
                let found = parked.roots().flat_map(|range| unsafe { range.words() });
                let found: HashSet<usize> = found.collect();
                let [saved, red_zone] = SAVED.lock().unwrap().clone();
                assert!(words(saved).all(|word| found.contains(&word)), "registers and vectors");
                assert!(words(red_zone.clone()).all(|word| found.contains(&word)), "the red zone");
                let of_a_kind = |kind| {
                    parked.roots().filter(move |range| range.kind() == kind).map(|r| r.addresses())
                };
                assert_eq!(
                    of_a_kind(RootKind::RedZone).next().unwrap_or(0..0).len(),
                    red_zone.len()
                );
                // More than there are general registers: the vectors, or what there is of floating point.
                let registers: HashSet<usize> =
                    of_a_kind(RootKind::Registers).flat_map(words).collect();
                let marks = registers.intersection(&given).count();
                assert!(marks > Reg::ALL.len() + 8, "{marks} marks in {}", Patterned::level());
                stopped.resume();
            }
        });
    });
}
