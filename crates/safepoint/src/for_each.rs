//! For-each-processor as users have it: the request for it, and what its closure gets.

use core::any::Any;
use core::marker::PhantomData;
use core::sync::atomic::Ordering;
use std::panic::{self, AssertUnwindSafe};
use std::time::Instant;

use sigctx::sys;
use threadreg::ThreadRef;

use crate::error::EachError;
use crate::handed::Handed;
use crate::id::MutatorId;
use crate::mutator::Mutator;
use crate::options::EachOptions;
use crate::pace::Clock;
use crate::protocol::{MutatorSlot, NotVisited, Run, Visitor};
use crate::roots::{Parked, Place, RootsError, Stand, stand_here};
use crate::straggler::Straggler;
use crate::system::{self, Identity, Linux};
use crate::tape::{EachEvent, Event};
use crate::trace::Trace;

impl Mutator {
    /// Runs `visit` once for every mutator of the world, this one included, without stopping them all at the
    /// same time. Returns how many were visited.
    ///
    /// - A mutator that runs is visited on its own thread, at its poll.
    /// - One in a safe region is visited on this thread, and does not leave the region meanwhile. If it wants to
    ///   before its visit has begun, it waits for the closure that this thread is in, whosever that is, and may
    ///   then be visited on its own thread.
    /// - One that is nudged is visited between two instructions of its code. The closure has the stack of an
    ///   injected call ([`CALLBACK_ROOM`](sigctx::inject::CALLBACK_ROOM)), and what is left beyond.
    /// - One that attaches during the call is visited or not. One that detaches is visited before that, or
    ///   not at all.
    ///
    /// No closure runs while the world is stopped, so a slow one delays stops.
    ///
    /// # Blocking
    ///
    /// Waits for its turn, and until every mutator has polled or entered a safe region. Other threads may stop
    /// this one meanwhile.
    ///
    /// # Errors
    ///
    /// As for [`Mutator::for_each_processor_with`], but for the timeout.
    ///
    /// # Panics
    ///
    /// If a closure does, on any thread: with the first one's payload, after all have run.
    ///
    /// # Examples
    ///
    /// ```
    /// let mut mutator = safepoint::World::new().attach()?;
    /// let visited = mutator.for_each_processor(|p| println!("{}", p.index()))?;
    /// assert_eq!(visited, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "forEachP")]
    #[doc(alias = "handshake")]
    pub fn for_each_processor(
        &mut self,
        visit: impl Fn(&Processor<'_>) + Sync,
    ) -> Result<usize, EachError> {
        self.for_each_processor_with(EachOptions::new(), visit)
    }

    /// Runs `visit` for every mutator as [`Mutator::for_each_processor`] does, with options.
    ///
    /// # Blocking
    ///
    /// As [`Mutator::for_each_processor`]. The timeout bounds the waits for the turn and for closures to
    /// begin. It does not bound closures that have begun, since they borrow from the caller, nor stops by
    /// other threads.
    ///
    /// # Errors
    ///
    /// Before any closure runs: [`EachError::InCallback`] inside a for-each closure,
    /// [`EachError::HoldsFreeze`] if the thread holds `threadreg::freeze_creation`'s guard,
    /// [`EachError::Busy`] if the timeout is over before it is this thread's turn.
    ///
    /// After the closure ran for some mutators, and will not run for the others: [`EachError::TimedOut`] if
    /// the timeout is over, [`EachError::HoldsMutators`] if the thread holds the task of a mutator that
    /// cannot be nudged.
    ///
    /// # Panics
    ///
    /// As [`Mutator::for_each_processor`]. A panic has precedence over an error.
    ///
    /// # Examples
    ///
    /// ```
    /// use safepoint::EachOptions;
    /// use std::time::Duration;
    ///
    /// let mut mutator = safepoint::World::new().attach()?;
    /// let options = EachOptions::new().timeout(Duration::from_millis(100));
    /// assert_eq!(mutator.for_each_processor_with(options, |_| ())?, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn for_each_processor_with(
        &mut self,
        options: EachOptions<'_>,
        visit: impl Fn(&Processor<'_>) + Sync,
    ) -> Result<usize, EachError> {
        if system::in_closure() {
            return Err(EachError::InCallback);
        }
        let tid = self.tid();
        if threadreg::holds_freeze() {
            return Err(EachError::HoldsFreeze { tid });
        }
        let caught = Caught { visit, panic: Handed::new(None) };
        let mut trace = Trace::for_each();
        let clock = Clock::start(&self.shared.protocol, tid, options.timeout, options.nudge_after);
        let mut clock = clock.warning(options.on_late);
        let protocol = &self.shared.protocol;
        stand_here!(Some(self.slot), Stand::new(Place::Request));
        let result = protocol.for_each(self.slot, tid, &caught, &mut clock);
        if let Ok(visited) | Err(NotVisited::TimedOut(visited, _)) = &result {
            protocol.system.tape.note(|| {
                let (ended, visited) = (Instant::now(), *visited as usize);
                Event::Each(EachEvent { requested: clock.requested(), ended, visited })
            });
        }
        let lasted = clock.elapsed();
        if let Some(first) = caught.panic.take() {
            panic::resume_unwind(first);
        }
        trace.keep(|| clock.take_lates());
        match result {
            Ok(visited) => {
                trace.for_each_is_over(visited as usize, lasted);
                Ok(visited as usize)
            }
            Err(NotVisited::NoTurn) => {
                let holder = protocol.each_turn.holder();
                trace.given_up(&[]);
                Err(EachError::Busy { holder, waited: clock.elapsed() })
            }
            Err(NotVisited::TimedOut(visited, seen)) => {
                let visited = visited as usize;
                let stragglers: Vec<Straggler> = seen.into_iter().flatten().collect();
                trace.given_up(&stragglers);
                Err(if clock.is_own_fault() {
                    EachError::HoldsMutators { visited, stragglers }
                } else {
                    let culprit = Straggler::culprit(&stragglers);
                    let error = EachError::TimedOut { visited, stragglers };
                    options.at_deadline.or_abort(culprit, error)
                })
            }
        }
    }
}

/// The closure, whose first panic is kept until all have run.
struct Caught<F> {
    visit: F,
    panic: Handed<Box<dyn Any + Send>>,
}

impl<F: Fn(&Processor<'_>) + Sync> Caught<F> {
    fn run(&self, work: impl FnOnce()) {
        if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(work)) {
            // The destructor of another might panic, too.
            self.panic.leave(payload).map(Box::leak);
        }
    }
}

impl<F: Fn(&Processor<'_>) + Sync> Visitor<Linux> for Caught<F> {
    fn visit(&self, slot: &'static MutatorSlot<Identity>) {
        let _inside = system::Visit::new(slot);
        self.run(|| (self.visit)(&Processor::new(slot)));
    }

    fn visit_all(&self, run: &mut Run<'_, Linux>) {
        let _inside = system::Visit::of_others();
        self.run(|| run.visit(|slot| (self.visit)(&Processor::new(slot))));
    }
}

/// A mutator, while the closure of [`Mutator::for_each_processor`] runs for it. It does not run user code,
/// detach or leave its safe region meanwhile.
///
/// It stays on the thread where the closure runs: what is found by it ([`PerMutator::visited`](crate::PerMutator::visited))
/// need not be `Sync`.
///
/// ```compile_fail,E0277
/// fn share(processor: &safepoint::Processor<'_>) {
///     std::thread::scope(|scope| _ = scope.spawn(|| processor.index()));
/// }
/// ```
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe), except [`Processor::thread`].
#[derive(Debug)]
pub struct Processor<'a> {
    slot: &'static MutatorSlot<Identity>,
    of_the_visit: PhantomData<(&'a (), *const ())>,
}

impl Processor<'_> {
    pub(crate) fn new(slot: &'static MutatorSlot<Identity>) -> Self {
        Self { slot, of_the_visit: PhantomData }
    }

    pub(crate) fn slot(&self) -> &'static MutatorSlot<Identity> {
        self.slot
    }

    /// Its place in the world: a small number, distinct among the mutators of a moment, and used again later.
    #[must_use]
    #[inline]
    pub fn index(&self) -> usize {
        self.slot.index() as usize
    }

    /// How many mutators have had this place, this one included. No other mutator of the world has the same
    /// index and generation.
    #[must_use]
    #[inline]
    pub fn generation(&self) -> u32 {
        self.slot.generation()
    }

    /// Which mutator this is.
    #[must_use]
    pub fn id(&self) -> MutatorId {
        MutatorId(self.slot.current_use())
    }

    /// What [`Mutator::set_data`] has set; null before.
    #[must_use]
    pub fn data(&self) -> *mut () {
        self.slot.status.identity.data()
    }

    /// Its thread.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe (AS-Unsafe lock).
    ///
    /// # Panics
    ///
    /// Never: a mutator has a thread until it has detached.
    #[must_use]
    pub fn thread(&self) -> ThreadRef {
        self.slot.status.identity.thread().expect("visited mutators are attached")
    }

    /// Where it stands, and where its roots are: also if the closure runs on its own thread.
    ///
    /// # Errors
    ///
    /// As [`StoppedMutator::parked`](crate::StoppedMutator::parked).
    pub fn parked(&self) -> Result<Parked<'_>, RootsError> {
        // SAFETY: it does not go on before the visit is over.
        unsafe { Parked::of_another(self.slot) }
    }

    /// Whether the closure runs on the mutator's own thread.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.slot.status.identity.tid.load(Ordering::Relaxed) == sys::gettid()
    }
}
