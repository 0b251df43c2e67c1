//! Linux under the protocol: membarrier, futex, how long spinning pays, and which thread has a slot.

use core::cell::{Cell, UnsafeCell};
use core::fmt;
use core::hint;
use core::marker::PhantomData;
use core::ops::Range;
use core::ptr;
use core::sync::atomic::{
    AtomicBool, AtomicI32, AtomicPtr, AtomicU32, AtomicUsize, Ordering, fence,
};
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use sigctx::sync;
use sigctx::sys::{self, Membarrier};
use threadreg::{Name, Nudge, ThreadRef, rest, spin};

use crate::abort::abort_with;
use crate::chaos::{Disturbance, UnreliableNudge};
use crate::current::Current;
use crate::forbidden::Forbidden;
use crate::metrics::{Counters, count};
use crate::protocol::{Chunk, Edge, MutatorSlot, MutatorState, Protocol, Spare, System};
use crate::tape::Tape;

/// A requester spins for this long before it sleeps, if there is a processor to spin on. A poll
/// acknowledges in well under a microsecond, a sleep and a wake take tens.
const SPIN: Duration = Duration::from_micros(20);

/// How often a requester looks before it spins: a fraction of a microsecond.
const LOOKS: u32 = 32;

/// How long a nudged thread waits for a nudge that is on its way. A signal that was sent comes within
/// microseconds of the thread's next time on a processor. One that other code has consumed never comes, and
/// the nudge sends it again.
const SETTLE: Duration = Duration::from_millis(100);

/// How a mutator's state and a request's flag are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fences {
    /// Mutators order by program order alone; requesters issue `membarrier(2)` when they need it.
    Asymmetric,
    /// Mutators fence when they leave a safe region and, in a world with a nudge, when they enter it. For
    /// where membarrier is missing or refused.
    Full,
}

impl Fences {
    /// The best that the system has. Asks until the answer is known.
    pub(crate) fn probe() -> Self {
        const ASYMMETRIC: u32 = 1;
        const FULL: u32 = 2;
        // Not a `OnceLock`: a fork could copy it while a thread asks, and the child would wait for a thread
        // that it does not have. Relaxed: nothing but the answer is handed over.
        static PROBED: AtomicU32 = AtomicU32::new(0);
        match PROBED.load(Ordering::Relaxed) {
            ASYMMETRIC => return Self::Asymmetric,
            FULL => return Self::Full,
            _ => {}
        }
        // ENOSYS (no such call) and EPERM (refused by a filter) both mean no.
        let usable = sys::membarrier(Membarrier::REGISTER_PRIVATE_EXPEDITED)
            .and_then(|_| sys::membarrier(Membarrier::PRIVATE_EXPEDITED));
        let (found, fences) =
            if usable.is_ok() { (ASYMMETRIC, Self::Asymmetric) } else { (FULL, Self::Full) };
        PROBED.store(found, Ordering::Relaxed);
        fences
    }
}

/// What a world's hook is called for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// A mutator is about to stand still.
    Parking,
    /// It goes on.
    Running,
}

/// A world's hook.
pub(crate) type Tell = dyn Fn(&'static MutatorSlot<Identity>, Moment) + Send + Sync;

/// The system as the protocol sees it.
pub(crate) struct Linux {
    pub(crate) fences: Fences,
    pub(crate) counters: Counters,
    pub(crate) tape: Tape,
    pub(crate) current: Current,
    /// Read by requesters and by targets that may have been nudged, in ordinary code.
    pub(crate) nudge: ArcSwapOption<Arc<dyn Nudge>>,
    /// Whether mutators say where they stand (I10).
    pub(crate) stands: bool,
    /// Called on a mutator's thread when it is about to stand still, and when it goes on.
    pub(crate) tells: Option<Box<Tell>>,
    /// Whether mutators fence when they enter a safe region (I2). Relaxed: a mutator that misses the nudge
    /// that was set at the same moment may get it in that one region.
    fenced_entry: AtomicBool,
    /// What [`Identity::sampled`] is counted from.
    pub(crate) epoch: Instant,
    /// Of worlds for tests.
    pub(crate) chaos: Option<Arc<Disturbance>>,
}

impl fmt::Debug for Linux {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Linux").field("fences", &self.fences).finish_non_exhaustive()
    }
}

impl Linux {
    pub(crate) fn new(fences: Fences) -> Self {
        let (nudge, fenced_entry) = (ArcSwapOption::empty(), AtomicBool::new(false));
        let (counters, tape, current) = (Counters::default(), Tape::default(), Current::new());
        let (stands, tells, chaos) = (false, None, None);
        let epoch = Instant::now();
        Self { fences, counters, tape, current, nudge, stands, tells, fenced_entry, epoch, chaos }
    }

    /// Calls the hook. Unwinding would leave a mutator that neither runs nor stands still.
    pub(crate) fn tell(&self, slot: &'static MutatorSlot<Identity>, moment: Moment) {
        if let Some(tell) = &self.tells
            && let Err(payload) = panic::catch_unwind(AssertUnwindSafe(|| tell(slot, moment)))
        {
            Box::leak(payload);
            abort_with(format_args!("a hook of a world panicked ({moment:?})"));
        }
    }

    pub(crate) fn set_nudge(&self, nudge: Arc<dyn Nudge>) {
        // First: a region entered later is entered with a fence.
        self.fenced_entry.store(self.fences == Fences::Full, Ordering::Relaxed);
        let nudge = match &self.chaos {
            None => nudge,
            Some(chaos) => Arc::new(UnreliableNudge { nudge, disturbance: Arc::clone(chaos) }),
        };
        self.nudge.store(Some(Arc::new(nudge)));
    }
}

impl Linux {
    /// Has the world's nudge do something. `None` if there is none.
    ///
    /// It is foreign code, and so is its destructor, which runs here if it was replaced meanwhile. Unwinding would
    /// leave a request behind that no thread waits for. The hook has reported the panic. The payload is leaked,
    /// since its destructor might panic, too.
    pub(crate) fn ask_nudge<T>(
        &self,
        ask: impl FnOnce(&dyn Nudge) -> T,
    ) -> Option<Result<T, NudgePanicked>> {
        let ask = || {
            let nudge = self.nudge.load();
            Some(ask(&**nudge.as_deref()?))
        };
        match panic::catch_unwind(AssertUnwindSafe(ask)) {
            Ok(answer) => answer.map(Ok),
            Err(payload) => {
                Box::leak(payload);
                Some(Err(NudgePanicked))
            }
        }
    }
}

/// What a nudge was asked for ended in a panic.
#[derive(Debug)]
pub(crate) struct NudgePanicked;

/// The stack watermark above all frames.
pub(crate) const NO_WATERMARK: usize = usize::MAX;

/// The thread that has a slot: the target of requests. Kept when the thread has ended and its mutator was
/// not detached.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    pub(crate) thread: ThreadRef,
    pub(crate) tid: i32,
    pub(crate) name: Name,
}

/// The id of no thread.
pub(crate) const NO_THREAD: i32 = -1;

/// Which thread has a slot, and in which world.
#[derive(Debug, Default)]
pub(crate) struct Identity {
    /// The thread's id; 0 for none, [`NO_THREAD`] for a mutator that is on its way from one to another.
    pub(crate) tid: AtomicI32,
    /// What the runtime keeps for the thread, see [`Mutator::set_data`](crate::Mutator::set_data). Null when another
    /// thread takes the slot. Release and acquire: whoever finds it finds what it points to.
    pub(crate) data: AtomicPtr<()>,
    /// What emitted code compares the stack pointer with, see `jit`. Relaxed: a stop hands it over.
    pub(crate) watermark: AtomicUsize,
    /// Whether the slot is part of a stop: from when its thread has attached until it detaches. Relaxed: the target writes
    /// it while it runs, and those who look have seen it in its region.
    attached: AtomicBool,
    /// Whether a for-each closure runs for the slot, on the target's own thread. Relaxed: the target looks at it
    /// while it runs. A requester that sets it has seen a target that is about to wait for its claim, and the
    /// target sees that claim end.
    pub(crate) visited: AtomicBool,
    /// Since when a thread that looks for poll gaps has waited for the target, in ticks; 0 if none does. Relaxed: for
    /// messages.
    pub(crate) sampled: AtomicU32,
    pub(crate) forbidden: Forbidden,
    /// The target holds the world for as long as `tid` is not 0.
    pub(crate) world: AtomicPtr<Protocol<Linux>>,
    /// The lowest address of the target's stack, and the one past the highest. Relaxed: only the target looks.
    stack: [AtomicUsize; 2],
    /// The next of the target's slots, see [`OWN`]. Relaxed: only the target looks.
    next_own: AtomicPtr<MutatorSlot<Identity>>,
    /// Locked by the target when it attaches and detaches, and by requesters for a copy. No thread is
    /// stopped while it has the lock. A cell for the child of a fork, see `after_fork`.
    target: UnsafeCell<Mutex<Option<Target>>>,
}

// SAFETY: only `after_fork` replaces the cell's contents, on the only thread there is. All other borrows
// are shared, and a mutex is `Sync`.
unsafe impl Sync for Identity {}

impl Identity {
    pub(crate) fn target(&self) -> Option<Target> {
        *self.lock()
    }

    /// The stack that the target is on.
    pub(crate) fn stack(&self) -> Range<usize> {
        let [low, high] = &self.stack;
        low.load(Ordering::Relaxed)..high.load(Ordering::Relaxed)
    }

    pub(crate) fn set_stack(&self, stack: Range<usize>) {
        let [low, high] = &self.stack;
        low.store(stack.start, Ordering::Relaxed);
        high.store(stack.end, Ordering::Relaxed);
    }

    pub(crate) fn is_attached(&self) -> bool {
        self.attached.load(Ordering::Relaxed)
    }

    pub(crate) fn set_attached(&self, attached: bool) {
        self.attached.store(attached, Ordering::Relaxed);
    }

    /// No thread has the slot any more. It is on no thread's list and has nothing pending.
    pub(crate) fn clear(&self) {
        self.data.store(ptr::null_mut(), Ordering::Release);
        self.set_attached(false);
        self.forbidden.clear();
        self.tid.store(0, Ordering::Relaxed);
        self.set_target(None);
        self.sampled.store(0, Ordering::Relaxed);
    }

    /// What the target's runtime keeps for it.
    pub(crate) fn data(&self) -> *mut () {
        self.data.load(Ordering::Acquire)
    }

    pub(crate) fn thread(&self) -> Option<ThreadRef> {
        self.target().map(|target| target.thread)
    }

    pub(crate) fn set_target(&self, target: Option<Target>) {
        *self.lock() = target;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Target>> {
        // SAFETY: see the impl of `Sync`.
        let target = unsafe { &*self.target.get() };
        target.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// In the child of a fork, on its one thread: frees the lock, whichever thread had it at the fork. The
    /// target is kept, with its new id, if it is the survivor, `me`: only the target itself writes it.
    pub(crate) fn after_fork(&self, me: Option<i32>) {
        // SAFETY: this is the only thread, and it borrows the contents nowhere else.
        let lock = unsafe { &mut *self.target.get() };
        let mut target = None;
        if let Some(me) = me {
            target = *lock.get_mut().unwrap_or_else(PoisonError::into_inner);
            target = target.map(|target| Target { tid: me, ..target });
        }
        *lock = Mutex::new(target);
        // The thread that looked is the parent's.
        self.sampled.store(0, Ordering::Relaxed);
        if me.is_none() {
            self.set_attached(false);
        }
        self.tid.store(me.unwrap_or(0), Ordering::Relaxed);
    }
}

thread_local! {
    /// How many closures the thread is inside of. Const and without destructor: also readable where a
    /// nudged thread was interrupted.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    /// The thread's slots, one a world, linked by [`Identity::next_own`].
    static OWN: Cell<Option<&'static MutatorSlot<Identity>>> = const { Cell::new(None) };
    /// The thread's id, so that requests need not ask the kernel. 0: not asked yet.
    static TID: Cell<i32> = const { Cell::new(0) };
}

/// The calling thread's id. To be called when there is a world: from then on `forks` sets the id anew in the
/// child of a fork.
pub(crate) fn tid() -> i32 {
    if TID.get() == 0 {
        TID.set(sys::gettid());
    }
    TID.get()
}

/// In the child of a fork: its thread has another id.
pub(crate) fn set_tid(tid: i32) {
    TID.set(tid);
}

/// The calling thread's slots.
fn own_slots() -> impl Iterator<Item = &'static MutatorSlot<Identity>> {
    core::iter::successors(OWN.get(), |slot| {
        let next = slot.status.identity.next_own.load(Ordering::Relaxed);
        // SAFETY: null, or a slot that this thread has in a world that it holds. A slot leaves the list
        // before the thread gives it up.
        unsafe { next.as_ref() }
    })
}

/// The calling thread's slot in the world, if it is a mutator of it.
pub(crate) fn own_slot(world: &Protocol<Linux>) -> Option<&'static MutatorSlot<Identity>> {
    own_slots().find(|slot| ptr::eq(slot.status.identity.world.load(Ordering::Relaxed), world))
}

/// Whether the calling thread is a running mutator, of whichever world.
pub(crate) fn runs() -> bool {
    own_slots().any(|slot| slot.state() == MutatorState::Running)
}

/// The calling thread has taken the slot.
pub(crate) fn add_own(slot: &'static MutatorSlot<Identity>) {
    let next = OWN.replace(Some(slot)).map_or(ptr::null(), ptr::from_ref);
    slot.status.identity.next_own.store(next.cast_mut(), Ordering::Relaxed);
}

/// The calling thread is about to give the slot up.
pub(crate) fn remove_own(slot: &'static MutatorSlot<Identity>) {
    let after = slot.status.identity.next_own.load(Ordering::Relaxed);
    let is_next = |before: &&MutatorSlot<Identity>| {
        ptr::eq(before.status.identity.next_own.load(Ordering::Relaxed), slot)
    };
    if let Some(before) = own_slots().find(is_next) {
        before.status.identity.next_own.store(after, Ordering::Relaxed);
    } else {
        // SAFETY: as in `own_slots`.
        OWN.set(unsafe { after.as_ref() });
    }
}

/// Whether this thread runs a closure of [`Mutator::for_each_processor`](crate::Mutator), of any world.
pub(crate) fn in_closure() -> bool {
    DEPTH.get() != 0
}

/// While it lives the thread is [`in_closure`]. If it is the target, that is [`Identity::visited`].
pub(crate) struct Visit<'a> {
    visited: Option<&'a Identity>,
    /// The depth is this thread's.
    not_send: PhantomData<*mut ()>,
}

impl<'a> Visit<'a> {
    /// A slot has one visitor at a time: the thread that took, or claimed, its pending request.
    pub(crate) fn new(slot: &'a MutatorSlot<Identity>) -> Self {
        // A target that is visited on its own thread runs. For the others the mark is of no use, and each is in
        // a cache line that is needed for nothing else.
        let mut inside = Self::of_others();
        if slot.state() == MutatorState::Running {
            slot.status.identity.visited.store(true, Ordering::Relaxed);
            inside.visited = Some(&slot.status.identity);
        }
        inside
    }

    /// For slots of other threads.
    pub(crate) fn of_others() -> Self {
        DEPTH.set(DEPTH.get() + 1);
        Self { visited: None, not_send: PhantomData }
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        if let Some(identity) = self.visited {
            identity.visited.store(false, Ordering::Relaxed);
        }
        DEPTH.set(DEPTH.get() - 1);
    }
}

/// Chunks of worlds that are gone. They are not freed: a late nudge has the address of a slot, and has to
/// find a slot there.
static SPARE: Spare<Identity> = Spare::new();

impl System for Linux {
    type Identity = Identity;

    fn targets_fence(&self) -> bool {
        self.fences == Fences::Full
    }

    fn targets_stand(&self) -> bool {
        self.stands
    }

    #[inline]
    fn light(&self) {
        fence(Ordering::SeqCst);
    }

    #[inline]
    fn light_to_enter(&self) {
        if self.fenced_entry.load(Ordering::Relaxed) {
            fence(Ordering::SeqCst);
        }
    }

    fn heavy(&self) {
        self.edge(Edge::Published);
        count(&self.counters.fences);
        fence(Ordering::SeqCst);
        if self.fences == Fences::Asymmetric
            && let Err(error) = sys::membarrier(Membarrier::PRIVATE_EXPEDITED)
        {
            // Mutators rely on it already. A stop without it could take running threads for safe.
            abort_with(format_args!("membarrier, which worked at the start, is refused: {error}"));
        }
    }

    fn wait(&self, word: &AtomicU32, expected: u32, timeout: Option<Duration>) {
        self.edge(Edge::Waits);
        // However it ends, the caller looks at the word again, and at the clock.
        sync::wait(word, expected, timeout);
    }

    fn wake_all(&self, word: &AtomicU32) {
        self.edge(Edge::Waits);
        sync::wake_all(word);
    }

    fn wake_one(&self, word: &AtomicU32) {
        self.edge(Edge::Waits);
        sync::wake_one(word);
    }

    fn settle_nudges(&self) {
        // When it gives up, or panics, the next system call may be interrupted: that breaks nothing here.
        let _settled = self.ask_nudge(|nudge| nudge.settle(SETTLE));
    }

    fn serve(&self) {
        rest::serve();
    }

    fn stay_while_held(&self) {
        rest::leave();
    }

    fn spin(&self, running: u32, done: impl Fn() -> bool) -> bool {
        // Whether there is a processor to spin on is asked of others, too. Most polls answer before that.
        let look = |_| {
            let is_done = done();
            hint::spin_loop();
            is_done
        };
        (0..LOOKS).any(look) || spin::for_running(running, SPIN, done)
    }

    fn is_slow(&self) -> bool {
        self.chaos.is_some()
    }

    fn edge(&self, edge: Edge) {
        if let Some(chaos) = &self.chaos {
            chaos.at(edge);
        }
    }

    fn fresh() -> &'static Chunk<Identity> {
        SPARE.take().unwrap_or_else(|| Box::leak(Box::new(Chunk::new())))
    }

    fn recycle(chunk: &'static Chunk<Identity>) {
        SPARE.put(chunk);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use threadreg::{NudgeCall, NudgeError};

    use testkit::{budget, forked, in_child};

    use super::*;
    use crate::World;

    /// Reaches no thread.
    struct Idle;

    impl Nudge for Idle {
        fn nudge(
            &self,
            _: ThreadRef,
            _: NudgeCall,
            _: &dyn Fn() -> bool,
        ) -> Result<(), NudgeError> {
            Ok(())
        }
        fn settle(&self, _: Duration) -> bool {
            true
        }
    }

    /// Without a fence a thread could enter its region, and not see that it is about to be nudged.
    #[test]
    fn a_nudge_has_regions_entered_with_a_fence_where_there_is_no_heavy_one() {
        for (fences, fenced) in [(Fences::Full, true), (Fences::Asymmetric, false)] {
            let system = Linux::new(fences);
            assert!(!system.fenced_entry.load(Ordering::Relaxed), "{fences:?}");
            system.set_nudge(Arc::new(Idle));
            assert_eq!(system.fenced_entry.load(Ordering::Relaxed), fenced, "{fences:?}");
        }
    }

    /// Asked before the fork: what is kept of it is the parent's.
    #[test]
    fn a_child_of_a_fork_has_an_id_of_its_own() {
        let _world = World::new();
        assert_eq!(tid(), sys::gettid());
        let status = forked(|| assert_eq!(tid(), sys::gettid()));
        assert_eq!(status, 0, "in the child of fork");
    }

    /// A thread that is a mutator of several worlds finds its slot in each, in whatever order it detaches.
    #[test]
    fn a_thread_finds_its_slot_in_each_of_its_worlds() {
        let worlds = [World::new(), World::new(), World::new()];
        let slot_in = |world: &World| own_slot(&world.shared.protocol);
        for first in 0..3 {
            let mut mutators = worlds.each_ref().map(|world| Some(world.attach().expect("room")));
            for gone in [first, (first + 1) % 3, (first + 2) % 3] {
                for (world, mutator) in worlds.iter().zip(&mutators) {
                    let slot = mutator.as_ref().map(|mutator| mutator.slot);
                    assert!(match (slot_in(world), slot) {
                        (Some(found), Some(slot)) => ptr::eq(found, slot),
                        (found, slot) => found.is_none() && slot.is_none(),
                    });
                }
                mutators[gone] = None;
            }
            assert!(worlds.iter().all(|world| slot_in(world).is_none()));
        }
    }

    /// The fork comes at any point of what the parent's other threads do to the spare chunks.
    #[test]
    fn stress_a_child_of_a_fork_makes_worlds_of_its_own() {
        let name = "system::tests::stress_a_child_of_a_fork_makes_worlds_of_its_own";
        in_child(name, Duration::from_secs(30), || {
            // As the first world does. Without it locks do not tell the child from its parent.
            sigctx::fork::watch().expect("room for the hooks");
            let done = AtomicBool::new(false);
            thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        while !done.load(Ordering::Relaxed) {
                            Linux::recycle(Linux::fresh());
                        }
                    });
                }
                for _ in 0..budget(300) {
                    let status = forked(|| {
                        let world = World::new();
                        let mut mutator = world.attach().expect("a world of its own");
                        mutator.stop_the_world("in the child").expect("no other mutator").resume();
                        // The mutator is seen safe, so the heavy fence has to work, too.
                        mutator.blocking(|| {
                            let stopped = world.stop_from_outside("in the child").expect("safe");
                            assert_eq!(stopped.stats().mutators, 1);
                        });
                    });
                    assert_eq!(status, 0, "in the child of fork");
                }
                done.store(true, Ordering::Relaxed);
            });
        });
    }
}
