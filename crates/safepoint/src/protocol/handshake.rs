//! Handshakes: an operation for one mutator, run on the mutator's own thread if that runs, and on the requester's
//! if the mutator is in a safe region. Any number of threads ask at once, without a turn.
//!
//! ```text
//!  an operation:            target, at its poll or a region's edge: takes it, runs it -------> DONE
//!    QUEUED, in the         requester: slot Safe, not SERVED; takes it, runs it -------------> DONE
//!    queue of one slot      target, detaching: takes all, closes the queue ------------------> GONE
//!                           requester, past its deadline: takes it --------------------------> WITHDRAWN
//!
//!  served:  FREE --requester, takes the first operation--> SERVED --target comes back, sleeps--> AWAITED
//!             ^---------------- requester, has run what it took ------------------------------------+
//! ```
//!
//! | word | writers | readers | ordering | invariant |
//! |---|---|---|---|---|
//! | queue, `open` | under the queue's lock | under the lock | the lock's | H1, H4 |
//! | HANDSHAKE in `poll` | set by requesters, cleared by the target, both under the lock | target | I2 | H2 |
//! | `served` | FREE to SERVED and to AWAITED under the lock; to FREE by the requester that serves | target, under the lock; for-eaches | release / acquire, fences against claims | H3, H5 |
//! | `outstanding` (one a request) | requester, threads that run or end an operation | requester | acq-rel | H6 |
//!
//! - **H1** An operation is in one queue until one thread takes it out, under the queue's lock. That thread alone
//!   runs it, or ends it without.
//! - **H2** While an operation is queued, or the slot is served, the slot's bit is set. The target that finds the
//!   bit takes the lock before it runs anything else, a for-each's closure included.
//! - **H3** A requester takes its slot's first operation under the lock, where it sees that the slot is `Safe` and
//!   that its own operation is still queued. It has made the heavy fence since that was queued. So a target that
//!   leaves its region finds the bit (I2), and under the lock that it is served. Then it waits, safe. Or it is not
//!   served, and a requester that takes the lock afterwards sees it running. What the requester takes from there on,
//!   until it serves no more, needs no look.
//! - **H4** A queue is open for one generation of its slot. The target closes it before it gives the slot up, and
//!   takes what is in there. So no operation reaches the slot's next thread.
//! - **H5** A slot is served or claimed by a for-each (I4), not both: each side writes its word, fences, and looks at
//!   the other's. Both may give way. Then they look again. A target that is not served settles its closure before it
//!   takes an operation: a requester that finds the closure pending may claim it, unless it sees the target running.
//! - **H6** The requester keeps what its operations borrow until none is outstanding. The thread that took one
//!   counts it as over when it has run, or dropped, its work.
//!
//! A requester that is a mutator runs operations while its own state is `Running`, and any other thread while it has
//! the stop turn: never in a stopped world (I6). A requester that waits is in a safe region, and serves its own
//! queue whenever it looks, so two that ask each other do not wait for each other. It serves what was queued before
//! its own operation too, and some that came after it. So operations for one mutator run in the order in which they
//! were asked for, but for those that the target alone may run.
//!
//! A target that enters a region without a fence may leave its bit unseen (I2): the requester finds it safe when it
//! looks again.
//!
//! In the child of a fork no operation is left: those of the survivor's own requests count as gone, see
//! [`Queue::after_fork`].
//!
//! References: HotSpot `handshake.cpp` (JEP 312).

use core::mem::{self, ManuallyDrop};
use core::sync::atomic::Ordering as Plain;
use std::collections::VecDeque;
use std::sync::Arc;

use super::each::MustNotUnwind;
use super::operations::{AWAITED, DONE, FREE, Operation, Request, SERVED, Ticket, WITHDRAWN};
use super::slot::{CLAIMED, HANDSHAKE, MutatorSlot, MutatorState, Stance};
use super::target::NAP;
use super::{Edge, Pace, Protocol, System};
use sigctx::fork::process;
use sigctx::sync::{AtomicU32, Ordering, fence};

/// How many operations of others a requester runs after its own: they wait for no nap of their requesters.
const MORE: u32 = 32;

/// What became of an operation.
#[derive(Debug)]
pub(crate) enum Answer<T> {
    /// It has run.
    Done,
    /// The mutator was gone, or went without running it.
    Gone,
    /// The deadline passed before it began. With what was kept of the target.
    Late(T),
}

/// What is asked of whom.
pub(crate) struct Ask<'a, I: 'static> {
    pub(crate) slot: &'static MutatorSlot<I>,
    /// Of the mutator that is meant.
    pub(crate) generation: u32,
    /// Must not unwind. Runs once at most.
    pub(crate) work: Box<dyn FnOnce() + Send + 'a>,
}

impl<I: 'static> MutatorSlot<I> {
    fn served(&self) -> &AtomicU32 {
        &self.requests.served
    }

    /// Target only, when it has its generation.
    pub(super) fn open_queue(&self) {
        let generation = self.generation();
        self.status.queue.locked(|_| self.status.queue.open.store(generation, Plain::Relaxed));
    }

    /// Queues an operation for the mutator of that generation; gives it back if that is gone.
    fn queue(&self, generation: u32, operation: Operation) -> Result<(), Operation> {
        let queue = &self.status.queue;
        queue.locked(|operations| {
            if queue.open.load(Plain::Relaxed) != generation {
                return Err(operation);
            }
            operations.push_back(operation);
            // H2. Release: the target that finds the bit finds what came before.
            if self.requests.poll.load(Ordering::Relaxed) & HANDSHAKE == 0 {
                self.requests.poll.fetch_or(HANDSHAKE, Ordering::AcqRel);
            }
            Ok(())
        })
    }

    /// Target only, while it runs and is not served.
    fn take_own(&self) -> Option<Operation> {
        self.status.queue.locked(|operations| operations.pop_front().map(Operation::mark_taken))
    }

    /// Target only, under the lock: whether a requester serves the slot. That is told that the target waits.
    fn is_awaited(&self) -> bool {
        let (told, seen) = (Ordering::Relaxed, Ordering::Acquire);
        // Acquire: if it is free, the target sees what operations did.
        let marked = self.served().compare_exchange(SERVED, AWAITED, told, seen);
        marked.is_ok() || marked == Err(AWAITED)
    }

    /// Target only: clears the bit if nothing is queued. No requester serves a slot that runs, or begins to.
    fn disarm_handshakes(&self) {
        self.status.queue.locked(|operations| {
            if operations.is_empty() {
                self.requests.poll.fetch_and(!HANDSHAKE, Ordering::AcqRel);
            }
        });
    }

    /// Target only, running or safe (H4): takes all there is, and no more comes. `None` if a requester serves the
    /// slot, which may be so in a safe region.
    fn empty_queue(&self) -> Option<VecDeque<Operation>> {
        let queue = &self.status.queue;
        queue.locked(|operations| {
            if self.is_awaited() {
                return None;
            }
            queue.open.store(0, Plain::Relaxed);
            self.requests.poll.fetch_and(!HANDSHAKE, Ordering::AcqRel);
            Some(mem::take(operations).into_iter().map(Operation::mark_taken).collect())
        })
    }

    /// Requester only, for a slot that seems safe behind its heavy fence (H3): takes the first operation, if its own
    /// is still there, and serves the slot from here on.
    fn begin_to_serve(&self, request: &Arc<Request>, at: usize) -> Option<Operation> {
        self.status.queue.locked(|operations| {
            let may = request.is_queued(at)
                && self.served().load(Ordering::Acquire) == FREE
                && self.state() == MutatorState::Safe;
            if !may {
                return None;
            }
            self.served().store(SERVED, Ordering::Relaxed);
            // H5.
            fence(Ordering::SeqCst);
            // Acquire: what a for-each's closure did is seen.
            if self.requests.each_pending.load(Ordering::Acquire) & CLAIMED != 0 {
                self.served().store(FREE, Ordering::Relaxed);
                return None;
            }
            take_for_others(operations)
        })
    }

    /// By the requester that serves the slot: the next operation, if it `stays` and the target does not wait. Else it
    /// serves no more. In the same step, so that no other requester finds the slot served and its operation left.
    fn go_on_serving<S: System>(&self, stays: bool, system: &S) -> Option<Operation> {
        let mut awaited = false;
        let next = self.status.queue.locked(|operations| {
            let goes_on = stays && self.served().load(Ordering::Relaxed) == SERVED;
            let next = goes_on.then(|| take_for_others(operations)).flatten();
            if next.is_none() {
                // Release: the target sees what the operations did.
                awaited = self.served().swap(FREE, Ordering::Release) == AWAITED;
            }
            next
        });
        if awaited {
            system.wake_all(self.served());
        }
        next
    }

    /// Takes back an operation that nobody has taken.
    fn withdraw(&self, request: &Arc<Request>, at: usize) -> Option<Operation> {
        self.status.queue.locked(|operations| {
            let place = operations.iter().position(|operation| operation.is_of(request, at))?;
            operations.remove(place)
        })
    }
}

/// The first operation that another thread than the target may run.
fn take_for_others(operations: &mut VecDeque<Operation>) -> Option<Operation> {
    let place = operations.iter().position(|operation| !operation.self_only)?;
    operations.remove(place).map(Operation::mark_taken)
}

/// A request that is under way.
struct Asked<I: 'static> {
    /// The requester's slot, if it is a mutator that runs.
    own: Option<&'static MutatorSlot<I>>,
    /// The requester's thread.
    me: i32,
    self_only: bool,
    request: Arc<Request>,
    slots: Vec<&'static MutatorSlot<I>>,
}

impl<I> Asked<I> {
    /// The operations that nobody has taken, and whose they are.
    fn queued(&self) -> impl Iterator<Item = (usize, &'static MutatorSlot<I>)> {
        self.slots.iter().copied().enumerate().filter(|&(at, _)| self.request.is_queued(at))
    }
}

impl<S: System> Protocol<S> {
    /// Has each operation run, or its target be gone. Returns what became of each, in order.
    ///
    /// `own` is the slot of the calling thread, `me`, if that is a mutator that runs. It is running before and after,
    /// and in a safe region while the thread waits. Its own operation may be among those that are asked for.
    pub(crate) fn handshake<P: Pace<S>>(
        &self,
        own: Option<&'static MutatorSlot<S::Identity>>,
        me: i32,
        self_only: bool,
        asks: Vec<Ask<'_, S::Identity>>,
        pace: &mut P,
    ) -> Vec<Answer<P::Seen>> {
        let request = Request::new(asks.len());
        let slots = asks.iter().map(|ask| ask.slot).collect();
        let mut asked = Asked { own, me, self_only, request, slots };
        let must_not_unwind = MustNotUnwind("handshake");
        let (running, safe) = self.ask(&asked, asks, pace);
        self.system.edge(Edge::Published);
        let mut fenced = false;
        if safe && !self_only {
            // I2: a target that is seen running after the fence sees the bit before it changes state.
            self.system.heavy();
            fenced = true;
            self.serve_the_safe(&asked, pace, |_, _, _| ());
        }
        let mut late = Vec::new();
        if !asked.request.count_down() {
            self.await_answers(&mut asked, running, fenced, pace, &mut late);
        }
        let _over = ManuallyDrop::new(must_not_unwind);
        let mut late = late.into_iter();
        let states = asked.request.states.iter();
        states
            .map(|state| match state.load(Ordering::Relaxed) {
                DONE => Answer::Done,
                WITHDRAWN => late.next().map_or(Answer::Gone, Answer::Late),
                // In the child of a fork also those that other threads had.
                _ => Answer::Gone,
            })
            .collect()
    }

    /// Queues the operations. Returns how many of the targets run, and whether one seems safe.
    fn ask<P: Pace<S>>(
        &self,
        asked: &Asked<S::Identity>,
        asks: Vec<Ask<'_, S::Identity>>,
        pace: &mut P,
    ) -> (u32, bool) {
        let (mut running, mut safe) = (0, false);
        for (at, Ask { slot, generation, work }) in asks.into_iter().enumerate() {
            // SAFETY: H6: the requester does not go on before the work has been run or dropped.
            let work = unsafe { erased(work) };
            let request = &asked.request;
            request.outstanding.fetch_add(1, Ordering::Relaxed);
            let ticket = Some(Ticket { request: request.clone(), at });
            let operation = Operation { work, self_only: asked.self_only, ticket };
            match slot.queue(generation, operation) {
                Err(operation) => operation.gone(&self.system),
                Ok(()) if slot.state() == MutatorState::Running => {
                    running += 1;
                    // I7: the look at NUDGED comes after the bit was set.
                    if slot.is_nudged() {
                        let wanted =
                            || slot.state() == MutatorState::Running && request.is_queued(at);
                        pace.expect_late(slot, &wanted);
                    }
                }
                Ok(()) => safe = true,
            }
        }
        // Its own operation, and what others ask of it.
        self.poll_own(asked);
        (running, safe)
    }

    fn poll_own(&self, asked: &Asked<S::Identity>) {
        if let Some(own) = asked.own.filter(|own| own.is_armed()) {
            self.process(own);
        }
    }

    /// Waits for all operations, in a safe region. Past the deadline it waits only for those that have begun.
    fn await_answers<P: Pace<S>>(
        &self,
        asked: &mut Asked<S::Identity>,
        running: u32,
        mut fenced: bool,
        pace: &mut P,
        late: &mut Vec<P::Seen>,
    ) {
        let (mut spun, mut withdrawn) = (false, false);
        while !asked.request.is_over() {
            if let Some(own) = asked.own {
                self.enter(own, Stance::Waits);
            }
            // Once: what has not come in that time needs the processor, or longer.
            let done = !spun && self.system.spin(running, || asked.request.is_over());
            spun = true;
            let fence_first = !done && !fenced;
            let (mut look, mut expired) = (false, false);
            while !(done || fence_first || look || expired || asked.request.is_over()) {
                if asked.own.is_some_and(|own| own.is_recalled(&self.system)) {
                    self.system.serve();
                }
                expired = !withdrawn && pace.expired();
                let outstanding = asked.request.outstanding();
                if !expired && outstanding != 0 {
                    self.system.wait(&asked.request.outstanding, outstanding, pace.nap());
                    look = pace.due();
                }
            }
            if let Some(own) = asked.own {
                self.leave(own);
            }
            if fence_first {
                // I2: a target that was seen running may have entered a region and not found its bit.
                self.system.heavy();
                fenced = true;
                self.serve_the_safe(asked, pace, |_, _, _| ());
            } else if expired {
                self.withdraw_late(asked, pace, late);
                withdrawn = true;
            } else if look && !withdrawn {
                self.serve_the_safe(asked, pace, |pace, slot, wanted| pace.late(slot, wanted));
            }
        }
    }

    /// Runs operations for the slots that are safe. Those that run are passed to `late`. Behind the heavy fence.
    fn serve_the_safe<P: Pace<S>>(
        &self,
        asked: &Asked<S::Identity>,
        pace: &mut P,
        mut late: impl FnMut(&mut P, &'static MutatorSlot<S::Identity>, &dyn Fn() -> bool),
    ) {
        for (at, slot) in asked.queued() {
            // A stop waits for one operation at most, and none runs in it (I6).
            self.poll_own(asked);
            match slot.state() {
                // I7.
                MutatorState::Running => late(pace, slot, &|| {
                    slot.state() == MutatorState::Running && asked.request.is_queued(at)
                }),
                MutatorState::Safe if !asked.self_only => self.serve_for(asked, at, slot, pace),
                // Gone, or going: its target ends what is queued. Or it comes back to run it.
                _ => {}
            }
        }
    }

    /// Runs what is queued for a slot on this thread: up to this request's operation, and some that came after it.
    fn serve_for<P: Pace<S>>(
        &self,
        asked: &Asked<S::Identity>,
        at: usize,
        slot: &'static MutatorSlot<S::Identity>,
        pace: &mut P,
    ) {
        // I6.
        let turn = asked.own.is_none().then_some(&self.stop_turn);
        if turn.is_some_and(|turn| !turn.acquire(&self.system, None, asked.me, pace)) {
            return;
        }
        let mut next = slot.begin_to_serve(&asked.request, at);
        let mut left = MORE;
        while let Some(operation) = next {
            operation.run(&self.system);
            // In the child of a fork nothing is served.
            if asked.request.process != process() {
                break;
            }
            left -= u32::from(!asked.request.is_queued(at));
            let stays = left != 0 && asked.own.is_none_or(|own| !own.is_armed());
            next = slot.go_on_serving(stays, &self.system);
        }
        if let Some(turn) = turn {
            turn.release(&self.system);
        }
    }

    /// Past the deadline: serves the slots that are safe, and withdraws what is still queued.
    fn withdraw_late<P: Pace<S>>(
        &self,
        asked: &Asked<S::Identity>,
        pace: &mut P,
        late: &mut Vec<P::Seen>,
    ) {
        self.serve_the_safe(asked, pace, |_, _, _| ());
        for (at, slot) in asked.queued() {
            // Looked at while it is queued: the slot is still that of the target that was asked.
            let seen = pace.look(slot);
            if let Some(operation) = slot.withdraw(&asked.request, at) {
                operation.withdrawn(&self.system);
                late.push(seen);
            }
        }
    }

    /// Queues an operation that the target alone runs, and nobody waits for. If the target is gone: false, and it is
    /// dropped, as it is when the target goes.
    pub(crate) fn handshake_async(
        &self,
        slot: &'static MutatorSlot<S::Identity>,
        generation: u32,
        work: Box<dyn FnOnce() + Send>,
    ) -> bool {
        let queued = slot.queue(generation, Operation { work, self_only: true, ticket: None });
        queued.map_err(|operation| operation.gone(&self.system)).is_ok()
    }

    /// Has `token` made for each target that runs, and run or dropped when that has polled, been safe, or gone since.
    pub(crate) fn when_all_have_polled(
        &self,
        token: impl Fn(&'static MutatorSlot<S::Identity>) -> Box<dyn FnOnce() + Send>,
    ) {
        // A target that is not seen running sees what the caller wrote before, when it runs.
        self.system.heavy();
        let running = |slot: &&MutatorSlot<S::Identity>| slot.state() == MutatorState::Running;
        let slots: Vec<_> = self.arena.slots().filter(running).collect();
        let request = Request::new(slots.len());
        for (at, slot) in slots.iter().enumerate() {
            request.outstanding.fetch_add(1, Ordering::Relaxed);
            let ticket = Some(Ticket { request: request.clone(), at });
            let operation = Operation { work: token(slot), self_only: true, ticket };
            if let Err(operation) = slot.queue(slot.generation(), operation) {
                operation.gone(&self.system);
            }
        }
        // I2: a target that has entered a region meanwhile, and not found its bit, is seen.
        self.system.heavy();
        for (at, slot) in slots.into_iter().enumerate() {
            if !running(&slot)
                && let Some(operation) = slot.withdraw(&request, at)
            {
                operation.withdrawn(&self.system);
            }
        }
    }

    /// The target's side, while it runs and has found its bit: whether a requester serves the slot. If so it waits, and
    /// looks again. If not, no requester begins to before the target is safe again (H3).
    pub(super) fn is_served_by_another(&self, slot: &'static MutatorSlot<S::Identity>) -> bool {
        let is_served = slot.status.queue.locked(|_| slot.is_awaited());
        if is_served {
            // The requester may be stopped meanwhile, and so may this thread.
            slot.set_safe(Stance::Waits);
            self.system.edge(Edge::Published);
            fence(Ordering::SeqCst);
            self.acknowledge_stop(slot);
            self.await_server(slot);
            slot.set_state(MutatorState::Running);
        }
        is_served
    }

    /// The target's side, while it runs, is not served, and has no closure of a for-each to run: one operation, or the
    /// bit's end.
    pub(super) fn serve_own(&self, slot: &'static MutatorSlot<S::Identity>) {
        if let Some(operation) = slot.take_own() {
            operation.run(&self.system);
        } else {
            // I7: no nudge is wanted for a slot with nothing queued.
            self.system.settle_nudges();
            slot.disarm_handshakes();
        }
    }

    /// Sleeps while a requester serves the slot; may return early.
    fn await_server(&self, slot: &MutatorSlot<S::Identity>) {
        if slot.is_recalled(&self.system) {
            self.system.serve();
        }
        self.system.wait(slot.served(), AWAITED, Some(NAP));
    }

    /// H4. Target only, running or safe: no operation is queued for it any more. Returns those that were.
    pub(super) fn close_queue(
        &self,
        slot: &'static MutatorSlot<S::Identity>,
    ) -> VecDeque<Operation> {
        loop {
            match slot.empty_queue() {
                Some(operations) => return operations,
                None => self.await_server(slot),
            }
        }
    }
}

/// Forgets what the work borrows.
///
/// # Safety
///
/// The work is run or dropped before that ends.
unsafe fn erased<'a>(work: Box<dyn FnOnce() + Send + 'a>) -> Box<dyn FnOnce() + Send> {
    // SAFETY: the types differ in a lifetime only, for which the caller vouches.
    unsafe { mem::transmute::<Box<dyn FnOnce() + Send + 'a>, Box<dyn FnOnce() + Send>>(work) }
}
