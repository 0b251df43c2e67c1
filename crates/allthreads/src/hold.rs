//! The protocol that holds every thread, lets all of them act once, and lets them go.
//!
//! This file is long because the protocol and what proves it are read together.
//!
//! Nothing here makes a system call: waiting is a [`System`] that is passed in, so that the model
//! checker runs this very code. `census` finds and signals threads.
//!
//! ```text
//!                requester: begin           requester: close             requester: finish
//!   gate   IDLE ----------------> GATHER ----------------> EXEC ----------------> IDLE
//!                                  |  ^                                            ^
//!                handler: join +1  |__|          requester: roll_back              |
//!                                   |______________________________________________|
//!
//!   command WAIT ---------------------------------- RUN (or RUN_AND_LEAVE) ---> LEAVE
//!             \________________ roll_back, or refused by the kernel ____________/
//!
//!   a thread   join -> stay (waits while WAIT) -> run -> done+1 -> (waits while RUN) -> left+1
//!
//!   a requester that ended: the heir of its lock: WAIT -> roll_back; RUN -> (waits for all) finish
//!
//!   one phase             begin (calls are made)        shut                 finish
//!   gate   IDLE ----------------------------> OPEN -----------> EXEC -----------------> IDLE
//!   command RUN_AND_LEAVE from the beginning to the end
//!   a thread   join -> run -> done+1 -> left+1
//! ```
//!
//! | word | writers | readers | ordering | invariant |
//! |---|---|---|---|---|
//! | `gate` | requester; a handler only by CAS while GATHER | both | every change is a read-modify-write or, by the requester outside GATHER, a release store | I1, I2 |
//! | `command` | requester | held threads (futex) | release / acquire: carries the calls and their expected results | I3 |
//! | `wake_at`, `bell` | requester, handlers | handlers, requester (futex) | relaxed, ordered by the read-modify-writes of `gate`; in one phase of `done` | I4 |
//! | `held`, `leavers` | requester, before `command` | held threads | relaxed, carried by `command` | I3 |
//! | `done` | held threads, requester for the dead | requester (futex) | acquire-release: carries results to the requester | the last one wakes |
//! | `left` | held threads, requester for the dead | the next requester (futex) | acquire-release | I5 |
//!
//! - **I1** A join and a roll-back (or a close) are read-modify-writes of one word: exactly one of
//!   them comes first. A thread that joins is counted in the number that ends the gathering.
//! - **I2** A thread joins an operation at most once: it does not leave the handler before the
//!   operation ends, and the gate is open during one operation only. In one phase it does leave, and the
//!   veto in `join` keeps it from joining again.
//! - **I3** `command` moves only WAIT → RUN → LEAVE, WAIT → `RUN_AND_LEAVE` or WAIT → LEAVE within
//!   one operation, and returns to WAIT only when all threads have left: a futex wait cannot miss a
//!   change of it.
//! - **I4** An arrival that reaches `wake_at` wakes the requester: either the arrival reads the gate
//!   after the requester's read-modify-write and so sees `wake_at`, or the requester sees the arrival.
//! - **I5** `left` is the last word that a held thread touches. The words are reset only when
//!   `left == leavers`; a requester that cannot wait for that leaves them as they are.
//! - **I6** The thread that has the lock is the requester. If it dies, the thread that inherits the lock ends
//!   the operation before it does anything else with the words.
//!
//! *Exit*: a held thread does not exit, but a seccomp filter may end it at a system call; the requester then
//! does its part (`threads`). A requester may end in the same way (I6). A thread that exits instead of
//! joining is never counted.
//! *Fork*: the words belong to one process; `block` gives a forked child its own. *Lost or refused
//! signals*: a thread that does not join is not counted, and the requester does not close. *Masked
//! signal*: the same; the requester rolls back. *Nesting*: the handler masks every signal.
//!
//! # The proof that all are held
//!
//! The proof is a count, not a list. The requester and the held threads belong to the thread group; when
//! the group's size, read once from the kernel, equals their number, they are all of it. Only a member
//! can create a member, so no other thread can appear. A held thread leaves the group in one way only:
//! a seccomp filter of its own kills it. Threads killed in this way are counted after the size is read, so
//! that none that was gone by then is taken for a member. A listing only tells which threads to signal: a
//! thread that it misses costs another listing and is not lost.
//!
//! Members that cannot take part (a dead leader, kernel workers, threads that the program vouches for)
//! are *bystanders*. They are looked at before and after the size is read. If the same ones were there
//! both times, they were there in between, and the proof holds with them subtracted.
//!
//! # The proof of a one-phase operation
//!
//! No thread is held, so threads exit and make others all the time, and no count can prove anything by
//! itself. A thread that was made by one that has run the calls has what they did; only one that has not can
//! make another one that has not. So when there is a moment at which every thread has run them, or was made
//! by one that had, that is so for good. That moment is proved by two listings and the size read between
//! them: if both show the same threads, each of those lived at the time of the reading; if there are as many
//! as the size says, they were all. All of them have run the calls in the second listing; and no thread was
//! running them, and none has joined since, from a time before the size was read.
//!
//! In place of the first listing, each thread of the operation before is signalled (`Census::recall`). The
//! kernel takes a signal only for a thread that is there, as a listing shows only those that are. If these are
//! as many as the size says, each of them is looked at in place of the second listing (`Census::poll`).
//!
//! A thread is known by its id here. If all ids of the pid namespace are used up within one operation, one
//! that has not run the calls may get the id of one that had, and is taken for it.

use sigctx::sync::{AtomicU32, Ordering};

use crate::system::System;

const COUNT: u32 = (1 << 20) - 1;
const PHASE: u32 = 3 << 20;
const IDLE: u32 = 0;
const GATHER: u32 = 1 << 20;
const EXEC: u32 = 2 << 20;
const OPEN: u32 = 3 << 20;
/// One operation further in the bits above the phase; wraps. A join of one operation cannot be
/// mistaken for a join of the next.
const NEXT: u32 = 1 << 22;

const WAIT: u32 = 0;
const RUN: u32 = 1;
const RUN_AND_LEAVE: u32 = 2;
const LEAVE: u32 = 3;

/// What `left` counts to when no more threads can join a one-phase operation.
const ALL_LEFT: u32 = 1 << 30;

/// Whether threads wait for each other after they have run the calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Release {
    /// All stay held until the requester has seen all results.
    Together,
    /// Each goes as soon as it has run the calls.
    Each,
    /// None is held: each runs the calls when it comes, and goes.
    AtOnce,
}

/// A thread's part in an operation, and its number among those that joined, from 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Joined {
    /// It is held.
    Held(u32),
    /// In one phase: it runs the calls and goes.
    Free(u32),
}

impl Joined {
    #[inline(always)]
    pub(crate) fn number(self) -> u32 {
        let (Self::Held(number) | Self::Free(number)) = self;
        number
    }
}

/// The words of the protocol. One thread at a time is the requester: `lock` makes sure of that.
#[derive(Debug)]
pub(crate) struct Hold {
    gate: AtomicU32,
    command: AtomicU32,
    wake_at: AtomicU32,
    bell: AtomicU32,
    held: AtomicU32,
    leavers: AtomicU32,
    done: AtomicU32,
    left: AtomicU32,
}

/// The side of a thread in the signal handler. Everything is inlined there: the handler must not
/// call anything that the linker would resolve lazily.
impl Hold {
    /// Joins the operation that is open to threads, if one is and `excluded` does not veto. The thread must
    /// then call `arrived`, if it is held, and `stay`.
    #[inline(always)]
    pub(crate) fn join(&self, excluded: impl Fn() -> bool) -> Option<Joined> {
        // Acquire: a thread that joins sees what `begin` reset and prepared.
        let mut seen = self.gate.load(Ordering::Acquire);
        loop {
            // The veto is asked for the very operation that the swap below joins.
            let phase = seen & PHASE;
            if phase != GATHER && phase != OPEN || seen & COUNT == COUNT || excluded() {
                return None;
            }
            // One read-modify-write decides between this join and a roll-back (I1). Acquire also
            // pairs with the requester's read-modify-write in `await_arrivals` (I4).
            let swap = self.gate.compare_exchange_weak(
                seen,
                seen + 1,
                Ordering::AcqRel,
                Ordering::Acquire,
            );
            match swap {
                Ok(_) if phase == OPEN => return Some(Joined::Free((seen & COUNT) + 1)),
                Ok(_) => return Some(Joined::Held((seen & COUNT) + 1)),
                Err(now) => seen = now,
            }
        }
    }

    /// Wakes the requester if this arrival is the one that it waits for.
    #[inline(always)]
    pub(crate) fn arrived(&self, system: &impl System, number: u32) {
        // Relaxed: ordered by the read-modify-writes of the gate (I4).
        if number >= self.wake_at.load(Ordering::Relaxed)
            && self.bell.swap(1, Ordering::Relaxed) == 0
        {
            system.wake_one(&self.bell);
        }
    }

    /// Stays until the operation ends, or in one phase until this thread has run the calls. Calls `run` once
    /// if the operation is executed, never if it is not.
    ///
    /// `leave` is called just before the last access to a word, with no system call between them. `alone`
    /// is called after a long sleep, with whether this thread has run the calls. It ends the operation if
    /// the requester is dead.
    #[inline(always)]
    pub(crate) fn stay(
        &self,
        system: &impl System,
        joined: Joined,
        run: impl FnOnce(),
        leave: impl FnOnce(),
        alone: impl Fn(bool),
    ) {
        let mut run = Some(run);
        loop {
            // Acquire: the requester's release of the command publishes the calls and `held` (I3).
            let command = self.command.load(Ordering::Acquire);
            if command == LEAVE {
                break;
            }
            if command != WAIT
                && let Some(run) = run.take()
            {
                run();
                let held = self.held.load(Ordering::Relaxed);
                // Release: this thread's result is seen by the requester that counts it. Acquire, in one
                // phase: pairs with the requester's read-modify-write in `await_count` (I4).
                let done = self.done.fetch_add(1, Ordering::AcqRel) + 1;
                if let Joined::Free(_) = joined {
                    self.arrived(system, done);
                } else if done == held {
                    system.wake_one(&self.done);
                }
            }
            if command == RUN_AND_LEAVE {
                break;
            }
            if system.wait(&self.command, command, joined.number()) {
                alone(run.is_none());
                // Relaxed: a hint. The thread that changed it may be unable to wake others, and those
                // look later.
                if self.command.load(Ordering::Relaxed) != command {
                    system.wake_all(&self.command);
                }
            }
        }
        let leavers = match joined {
            Joined::Held(_) => self.leavers.load(Ordering::Relaxed),
            // The word itself says when all have left: the other one may not have been written yet.
            Joined::Free(_) => ALL_LEFT,
        };
        leave();
        // The last access to any word of the protocol (I5); a wake needs the address only.
        if self.left.fetch_add(1, Ordering::AcqRel) + 1 == leavers {
            system.wake_one(&self.left);
        }
    }
}

/// The requester's side.
impl Hold {
    sigctx::const_unless_loom! {
        pub(crate) fn new() -> Self {
            Self {
                gate: AtomicU32::new(0),
                command: AtomicU32::new(LEAVE),
                wake_at: AtomicU32::new(u32::MAX),
                bell: AtomicU32::new(0),
                held: AtomicU32::new(0),
                leavers: AtomicU32::new(0),
                done: AtomicU32::new(0),
                left: AtomicU32::new(0),
            }
        }
    }

    /// Waits until all threads have left the last operation, then opens the gate. `prepare` runs between
    /// the two: no other thread reads what it writes.
    ///
    /// `time_left` says how much longer to wait, or `None` to stop waiting: a thread that was let go may not
    /// be scheduled, or a debugger may have stopped it. Then `false` is returned and nothing has been
    /// touched: a later `begin` waits for the same threads.
    ///
    /// With [`Release::AtOnce`] the calls and their expected results are to be ready when `prepare` returns.
    #[must_use]
    pub(crate) fn begin<F: System>(
        &self,
        system: &F,
        release: Release,
        mut time_left: impl FnMut() -> Option<F::Timeout>,
        prepare: impl FnOnce(),
    ) -> bool {
        let leavers = self.leavers.load(Ordering::Relaxed);
        loop {
            // Acquire: pairs with the release of `left` in `stay`; no thread reads any word after it.
            let left = self.left.load(Ordering::Acquire);
            if left == leavers {
                break;
            }
            let time = time_left();
            // `time_left` may have buried some.
            if self.left.load(Ordering::Acquire) != left {
                continue;
            }
            let Some(time) = time else { return false };
            system.wait_for(&self.left, left, time);
        }
        prepare();
        self.left.store(0, Ordering::Relaxed);
        self.leavers.store(0, Ordering::Relaxed);
        self.held.store(0, Ordering::Relaxed);
        self.done.store(0, Ordering::Relaxed);
        self.bell.store(0, Ordering::Relaxed);
        self.wake_at.store(u32::MAX, Ordering::Relaxed);
        let (command, phase) = match release {
            Release::AtOnce => (RUN_AND_LEAVE, OPEN),
            _ => (WAIT, GATHER),
        };
        self.command.store(command, Ordering::Relaxed);
        let last = self.gate.load(Ordering::Relaxed);
        let seq = (last & !(PHASE | COUNT)).wrapping_add(NEXT);
        // A plain store: only the requester writes an idle gate. Release: publishes the resets above
        // to the threads that join.
        self.gate.store(seq | phase, Ordering::Release);
        true
    }

    /// How many have joined.
    #[inline(always)]
    pub(crate) fn arrivals(&self) -> u32 {
        self.gate.load(Ordering::Acquire) & COUNT
    }

    /// How many have run the calls of a one-phase operation.
    pub(crate) fn acts(&self) -> u32 {
        // Acquire: pairs with the release in `stay`.
        self.done.load(Ordering::Acquire)
    }

    /// Sleeps until `target` threads have joined, or until `timeout`; may return early.
    pub(crate) fn await_arrivals<F: System>(&self, system: &F, target: u32, timeout: F::Timeout) {
        self.await_count(system, &self.gate, target, timeout);
    }

    /// Sleeps until `target` threads have run the calls of a one-phase operation, or until `timeout`; may
    /// return early.
    pub(crate) fn await_acts<F: System>(&self, system: &F, target: u32, timeout: F::Timeout) {
        self.await_count(system, &self.done, target, timeout);
    }

    #[inline(always)]
    fn await_count<F: System>(
        &self,
        system: &F,
        counter: &AtomicU32,
        target: u32,
        timeout: F::Timeout,
    ) {
        self.bell.store(0, Ordering::Relaxed);
        self.wake_at.store(target, Ordering::Relaxed);
        // A read-modify-write, not a load (I4): an arrival that it does not see reads it, and with
        // it the new `wake_at` and the reset of the bell.
        let count = counter.fetch_add(0, Ordering::AcqRel);
        if count & COUNT < target {
            system.wait_for(&self.bell, 0, timeout);
        }
    }

    /// True as long as threads can join a one-phase operation.
    pub(crate) fn is_open(&self) -> bool {
        self.gate.load(Ordering::Relaxed) & PHASE == OPEN
    }

    /// Ends a one-phase operation: no thread joins any more. Returns how many have joined; when they have
    /// all run the calls (`await_done`), `finish` is to follow.
    #[inline(always)]
    pub(crate) fn shut(&self) -> u32 {
        let seq = self.gate.load(Ordering::Relaxed) & !(PHASE | COUNT);
        // One read-modify-write (I1): what it returns counts every thread that ever joins.
        let joined = self.gate.swap(seq | EXEC, Ordering::AcqRel) & COUNT;
        self.held.store(joined, Ordering::Relaxed);
        self.leavers.store(ALL_LEFT, Ordering::Relaxed);
        // A read-modify-write (I5): the thread that leaves last finds the end of the count, or this one
        // sees that all have left.
        self.left.fetch_add(ALL_LEFT - joined, Ordering::AcqRel);
        joined
    }

    /// Ends the gathering with exactly `held` threads; refuses if another one has joined.
    pub(crate) fn close(&self, held: u32) -> bool {
        let seq = self.gate.load(Ordering::Relaxed) & !(PHASE | COUNT);
        let closed = self
            .gate
            .compare_exchange(
                seq | GATHER | held,
                seq | EXEC | held,
                Ordering::AcqRel,
                Ordering::Relaxed,
            )
            .is_ok();
        if closed {
            self.held.store(held, Ordering::Relaxed);
            self.leavers.store(held, Ordering::Relaxed);
        }
        closed
    }

    /// Ends the gathering, or a closed operation in which no thread was told to run the calls. All that
    /// have joined go without having run anything.
    #[inline(always)]
    pub(crate) fn roll_back(&self, system: &impl System) {
        let seq = self.gate.load(Ordering::Relaxed) & !(PHASE | COUNT);
        // One read-modify-write (I1): what it returns counts every thread that ever joins.
        let gate = self.gate.swap(seq | IDLE, Ordering::AcqRel);
        self.leavers.store(gate & COUNT, Ordering::Relaxed);
        self.command.store(LEAVE, Ordering::Release);
        system.wake_all(&self.command);
    }

    /// Tells all held threads to run the calls.
    pub(crate) fn command(&self, system: &impl System, release: Release) {
        let command = match release {
            Release::Together => RUN,
            Release::Each | Release::AtOnce => RUN_AND_LEAVE,
        };
        // Release: publishes the calls and their expected results (I3).
        self.command.store(command, Ordering::Release);
        system.wake_all(&self.command);
    }

    /// Waits until all held threads have run the calls. There is no deadline: a thread that is held may
    /// have made some of them. `bury` makes up for those that have ended, and says how long to sleep.
    #[inline(always)]
    pub(crate) fn await_done<F: System>(&self, system: &F, mut bury: impl FnMut() -> F::Timeout) {
        let held = self.held.load(Ordering::Relaxed);
        let one_phase = self.leavers.load(Ordering::Relaxed) == ALL_LEFT;
        loop {
            // Acquire: pairs with the release of `done` in `stay`, so that results are seen.
            let done = self.done.load(Ordering::Acquire);
            if done == held {
                return;
            }
            let time = bury();
            if one_phase {
                // A thread that has read `held` before the gate was shut has not seen the number.
                self.await_count(system, &self.done, held, time);
            } else {
                // A burial changes the word that is slept on.
                system.wait_for(&self.done, done, time);
            }
        }
    }

    /// Counts a held thread that has ended in `left`, and in `done` if it had not done that itself. Only
    /// the thread that has the lock calls this.
    #[inline(always)]
    pub(crate) fn bury(&self, was_not_done: bool) {
        if was_not_done {
            self.done.fetch_add(1, Ordering::AcqRel);
        }
        self.left.fetch_add(1, Ordering::AcqRel);
    }

    /// Ends the operation of a requester that has ended: with nothing applied if no thread was told to run
    /// the calls, else when all have run them. The thread that inherited the lock calls this, a held thread
    /// or a later requester.
    #[inline(always)]
    pub(crate) fn recover<F: System>(&self, system: &F, bury: impl FnMut() -> F::Timeout) {
        // Acquire: the requester is dead, but its writes may still be on their way.
        let command = self.command.load(Ordering::Acquire);
        let phase = self.gate.load(Ordering::Acquire) & PHASE;
        if phase == OPEN {
            self.shut();
        }
        if phase != IDLE && command == WAIT {
            self.roll_back(system);
        } else if phase != IDLE {
            self.await_done(system, bury);
            self.finish(system);
        }
    }

    /// Ends a closed operation: all threads that are still held go.
    #[inline(always)]
    pub(crate) fn finish(&self, system: &impl System) {
        let seq = self.gate.load(Ordering::Relaxed) & !(PHASE | COUNT);
        self.gate.store(seq | IDLE, Ordering::Release);
        if self.command.load(Ordering::Relaxed) != RUN_AND_LEAVE {
            self.command.store(LEAVE, Ordering::Release);
            system.wake_all(&self.command);
        }
    }
}

#[cfg(not(loom))]
impl Hold {
    /// Whether a held thread may inherit from a requester that has ended. Not while it has the calls still to
    /// run: the heir waits until all have run them.
    #[inline(always)]
    pub(crate) fn may_inherit(&self, has_run: bool) -> bool {
        // Acquire: the requester is dead, but its writes may still be on their way.
        has_run || self.command.load(Ordering::Acquire) == WAIT
    }

    /// Forgets an operation of another process. Only while no other thread uses the words.
    pub(crate) fn reset(&self) {
        self.gate.store(IDLE, Ordering::Relaxed);
        self.command.store(LEAVE, Ordering::Relaxed);
        self.leavers.store(0, Ordering::Relaxed);
        self.left.store(0, Ordering::Relaxed);
    }

    /// How many joined the last operation, at most.
    pub(crate) fn joined(&self) -> u32 {
        let leavers = self.leavers.load(Ordering::Relaxed);
        let leavers = if leavers == ALL_LEFT { self.held.load(Ordering::Relaxed) } else { leavers };
        self.arrivals().max(leavers)
    }

    /// True from `close` to `finish` or a roll-back, and as long as a one-phase operation lasts.
    pub(crate) fn is_executing(&self) -> bool {
        matches!(self.gate.load(Ordering::Relaxed) & PHASE, EXEC | OPEN)
    }
}

/// The thread group as `gather` sees it.
pub(crate) trait ThreadGroup {
    /// Why there is no answer.
    type Error;
    /// Bystanders that are there at this moment.
    fn bystanders(&mut self) -> Result<u32, Self::Error>;
    /// The size of the thread group, the requester included.
    fn population(&mut self) -> Result<u32, Self::Error>;
    /// Threads that have joined and have ended since: those known already, or with `all` after a look at
    /// each.
    fn dead(&mut self, hold: &Hold, all: bool) -> u32;
    /// Signals every thread that was not yet signalled, as far as it knows them or a listing shows them.
    fn summon(&mut self, hold: &Hold) -> Result<(), Self::Error>;
    /// Waits for arrivals, about until there are `target`; an error when that is hopeless for now.
    fn pause(&mut self, hold: &Hold, target: u32) -> Result<(), Self::Error>;
    /// Lists all threads, or finds that those it knows are all, and signals each that has not run the calls of
    /// a one-phase operation and was not signalled.
    fn pass(&mut self, hold: &Hold) -> Result<Pass, Self::Error>;
}

/// What one listing has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pass {
    /// How many threads, each counted once.
    pub(crate) listed: u32,
    /// How many of them the listing before has shown, too.
    pub(crate) again: u32,
    /// How many of them have the calls still to run and have not joined; bystanders have none to run.
    pub(crate) awaited: u32,
    /// How many of them are running the calls.
    pub(crate) acting: u32,
}

/// Gathers until all threads are held, and closes the gate. Returns how many are held. On an error the
/// gate is still open, and must be rolled back.
pub(crate) fn gather<G: ThreadGroup>(hold: &Hold, group: &mut G) -> Result<u32, G::Error> {
    loop {
        let before = group.bystanders()?;
        // The arrivals first: a thread that is counted here is still held when the size is read.
        let arrived = hold.arrivals();
        let population = group.population()?;
        let members = arrived + 1 + before;
        // After the size: one more may be dead for each that is missing from it.
        let known = group.dead(hold, false);
        let dead = group.dead(hold, population + known <= members);
        if population + dead == members && group.bystanders()? == before && hold.close(arrived) {
            return Ok(arrived);
        }
        group.summon(hold)?;
        group.pause(hold, (population + dead).saturating_sub(1 + before))?;
    }
}

/// Has all threads run the calls of a one-phase operation, each when it comes. Returns when all have.
/// The gate is open still, and must be shut, as on an error. The module says why this is a proof.
pub(crate) fn broadcast<G: ThreadGroup>(hold: &Hold, group: &mut G) -> Result<(), G::Error> {
    let mut before = None;
    loop {
        let bystanders = group.bystanders()?;
        // In this order: if they are equal, all that had joined when the second was read had run the calls.
        let acts = hold.acts();
        let arrivals = hold.arrivals();
        let population = group.population()?;
        let pass = group.pass(hold)?;
        let all = Pass { listed: population, again: population, awaited: 0, acting: 0 };
        let same = before == Some(population) && pass == all;
        let quiet = acts == arrivals && hold.arrivals() == arrivals;
        if same && quiet && group.bystanders()? == bystanders {
            return Ok(());
        }
        before = Some(pass.listed);
        group.pause(hold, arrivals + pass.awaited)?;
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use core::cell::Cell;
    use core::time::Duration;

    use super::*;
    use crate::system::Kernel;

    /// The requester tells all to run the calls when this thread is at the end of a long sleep, and then dies,
    /// or cannot wake others.
    struct CommandsAtLast<'a>(&'a Hold, Cell<bool>, Cell<u32>);

    impl System for CommandsAtLast<'_> {
        type Timeout = Duration;

        fn wait(&self, _word: &AtomicU32, _expected: u32, _number: u32) -> bool {
            if !self.1.replace(true) {
                self.0.command(&Kernel, Release::Together);
            }
            true
        }
        fn wait_for(&self, word: &AtomicU32, expected: u32, timeout: Duration) {
            Kernel.wait_for(word, expected, timeout);
        }
        fn wake_one(&self, _word: &AtomicU32) {}
        fn wake_all(&self, _word: &AtomicU32) {
            self.2.set(self.2.get() + 1);
        }
    }

    /// The thread that ends the operation waits until all have run the calls.
    #[test]
    fn a_thread_that_is_to_run_the_calls_does_so_before_it_inherits() {
        let hold = Hold::new();
        assert!(hold.begin(&Kernel, Release::Each, || None, || ()));
        assert_eq!(hold.join(|| false), Some(Joined::Held(1)));
        assert!(hold.close(1));
        let (runs, looks) = (Cell::new(0), Cell::new(0));
        let alone = |has_run| {
            if hold.may_inherit(has_run) {
                hold.recover(&Kernel, || {
                    looks.set(looks.get() + 1);
                    assert!(looks.get() < 100, "waits for itself");
                    Duration::from_micros(1)
                });
            }
        };
        let system = CommandsAtLast(&hold, Cell::new(false), Cell::new(0));
        hold.stay(&system, Joined::Held(1), || runs.set(runs.get() + 1), || (), alone);
        assert_eq!((runs.get(), hold.is_executing()), (1, false));
        assert_eq!(system.2.get(), 2, "a thread that finds a new command late wakes the others");
    }

    /// What a one-phase operation is shown, pass by pass: the size read before, and what is listed. A pass
    /// with a thread that joins has it run the calls in the pause.
    struct Script<'a> {
        population: u32,
        passes: &'a [(u32, [u32; 4])],
        joins_in: Option<usize>,
        next: usize,
    }

    impl ThreadGroup for Script<'_> {
        type Error = ();

        fn bystanders(&mut self) -> Result<u32, ()> {
            Ok(0)
        }
        fn population(&mut self) -> Result<u32, ()> {
            self.population = self.passes.get(self.next).ok_or(())?.0;
            Ok(self.population)
        }
        fn dead(&mut self, _: &Hold, _: bool) -> u32 {
            0
        }
        fn summon(&mut self, _: &Hold) -> Result<(), ()> {
            Err(())
        }
        fn pause(&mut self, hold: &Hold, _: u32) -> Result<(), ()> {
            if self.joins_in == Some(self.next - 1) {
                hold.stay(&Kernel, Joined::Free(1), || (), || (), |_| ());
            }
            Ok(())
        }
        fn pass(&mut self, hold: &Hold) -> Result<Pass, ()> {
            let [listed, again, awaited, acting] = self.passes.get(self.next).ok_or(())?.1;
            if self.joins_in == Some(self.next) {
                assert_eq!(hold.join(|| false), Some(Joined::Free(1)));
            }
            self.next += 1;
            Ok(Pass { listed, again, awaited, acting })
        }
    }

    /// Each script has the proof in its last pass, and not before.
    #[test]
    fn one_phase_ends_when_a_listing_is_seen_twice_with_the_size_between() {
        let scripts: [(&[_], _); 6] = [
            // All come, none is made or ends.
            (&[(3, [3, 0, 2, 0]), (3, [3, 3, 0, 0])], None),
            // One ends and another begins between the listings, and a third one may be in neither.
            (&[(3, [3, 0, 2, 0]), (3, [3, 2, 0, 0]), (3, [3, 3, 0, 0])], None),
            // The listings agree with each other, and miss one that the size counts.
            (&[(3, [3, 0, 2, 0]), (4, [3, 3, 0, 0]), (3, [3, 3, 0, 0])], None),
            // The listing before has shown one more.
            (&[(3, [4, 0, 3, 0]), (3, [3, 3, 0, 0]), (3, [3, 3, 0, 0])], None),
            // One runs the calls still.
            (&[(3, [3, 0, 2, 0]), (3, [3, 3, 0, 1]), (3, [3, 3, 0, 0])], None),
            // One joins while the second listing is read, and may make a thread before it has.
            (&[(3, [3, 0, 2, 0]), (3, [3, 3, 0, 0]), (3, [3, 3, 0, 0])], Some(1)),
        ];
        for (number, (passes, joins_in)) in scripts.into_iter().enumerate() {
            let hold = Hold::new();
            assert!(hold.begin(&Kernel, Release::AtOnce, || None, || ()));
            let mut script = Script { population: 0, passes, joins_in, next: 0 };
            assert_eq!(broadcast(&hold, &mut script), Ok(()), "script {number}");
            assert_eq!(script.next, passes.len(), "script {number}");
        }
    }

    /// A process in which one held thread has died, and one that is not held lives.
    struct Grave {
        rounds: u32,
    }

    impl ThreadGroup for Grave {
        type Error = u32;

        fn bystanders(&mut self) -> Result<u32, u32> {
            Ok(0)
        }

        fn population(&mut self) -> Result<u32, u32> {
            // The requester, one of the two that joined, and the other one, which comes in the second round.
            Ok(3)
        }

        fn dead(&mut self, _: &Hold, all: bool) -> u32 {
            u32::from(all || self.rounds > 0)
        }

        fn summon(&mut self, hold: &Hold) -> Result<(), u32> {
            self.rounds += 1;
            if self.rounds < 2 { hold.join(|| false).map(drop).ok_or(0) } else { Err(self.rounds) }
        }

        fn pause(&mut self, _: &Hold, target: u32) -> Result<(), u32> {
            assert_eq!(target, 3, "the missing thread is waited for");
            Ok(())
        }

        fn pass(&mut self, _: &Hold) -> Result<Pass, u32> {
            Err(0)
        }
    }

    /// As many are in the process as have joined, but they are not the same.
    #[test]
    fn a_held_thread_that_has_died_does_not_stand_for_one_that_lives() {
        let hold = Hold::new();
        assert!(hold.begin(&Kernel, Release::Each, || None, || ()));
        hold.join(|| false).unwrap();
        hold.join(|| false).unwrap();
        let mut grave = Grave { rounds: 0 };
        assert_eq!(gather(&hold, &mut grave), Ok(3));
        assert_eq!(grave.rounds, 1);
    }
}
