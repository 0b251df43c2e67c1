//! The worlds of the process, for the child of a fork, which puts each in order before it does anything
//! else.
//!
//! | word | writers | readers | ordering | invariant |
//! |---|---|---|---|---|
//! | `FIRST`, `next` | a thread that adds a node | threads that look for one, the child | acq-rel | nodes are never taken out |
//! | `world` | the maker of a world null → it; its drop → null | the child | acq-rel | null, or a world that is whole |
//!
//! A node is used again when its world is gone. A fork copies the list at any moment, and it is whole
//! after every store.

use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};
use std::cell::Cell;

use sigctx::fork::Hooks;
use sigctx::sys;

use crate::protocol::{MutatorState, Protocol};
use crate::system::{self, Linux, NO_THREAD};

/// A world's place in the list.
#[derive(Debug)]
pub(crate) struct Node {
    world: AtomicPtr<Protocol<Linux>>,
    next: *const Node,
}

// SAFETY: `next` is not changed once the node is shown to others, and `world` is atomic; what it points
// to is looked at where there is one thread.
unsafe impl Sync for Node {}

/// Registered when the first world is made.
static HOOKS: Hooks = Hooks::new(Some(before), after_in_child);

static FIRST: AtomicPtr<Node> = AtomicPtr::new(ptr::null_mut());

thread_local! {
    /// This thread's id, while it forks. The child's thread has another, and its slots still have this one.
    static FORKING: Cell<i32> = const { Cell::new(0) };
}

fn nodes() -> impl Iterator<Item = &'static Node> {
    let mut next = FIRST.load(Ordering::Acquire).cast_const();
    core::iter::from_fn(move || {
        // SAFETY: null, or a node, which is never freed and not changed but for its atomic.
        let node = unsafe { next.as_ref() }?;
        next = node.next;
        Some(node)
    })
}

/// Has `world` put in order in the child of a fork, until its node is [given back](Node::give_back).
pub(crate) fn enlist(world: *const Protocol<Linux>) -> &'static Node {
    // The only error is ENOMEM. Without the hooks a child could wait for threads that it does not have.
    HOOKS.register().expect("out of memory at pthread_atfork");
    let world = world.cast_mut();
    let free = ptr::null_mut();
    let takes = |node: &&Node| {
        // Release: the child finds a world that is whole.
        node.world.compare_exchange(free, world, Ordering::Release, Ordering::Relaxed).is_ok()
    };
    if let Some(node) = nodes().find(takes) {
        return node;
    }
    let mut first = FIRST.load(Ordering::Acquire);
    let node = Box::leak(Box::new(Node { world: AtomicPtr::new(world), next: first }));
    loop {
        node.next = first;
        let new = ptr::from_mut(node);
        match FIRST.compare_exchange(first, new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return node,
            Err(now) => first = now,
        }
    }
}

impl Node {
    /// The world is about to be taken apart.
    pub(crate) fn give_back(&self) {
        self.world.store(ptr::null_mut(), Ordering::Release);
    }
}

extern "C" fn before() {
    FORKING.set(sys::gettid());
}

/// On the one thread of the child. A second run finds nothing left to do.
extern "C" fn after_in_child() {
    let (parent, me) = (FORKING.get(), sys::gettid());
    system::set_tid(me);
    for node in nodes() {
        // SAFETY: null, or a world that is whole: no thread that takes one apart was copied.
        if let Some(world) = unsafe { node.world.load(Ordering::Acquire).as_ref() } {
            after_fork(world, parent, me);
        }
    }
    FORKING.set(me);
}

fn after_fork(world: &Protocol<Linux>, parent: i32, me: i32) {
    world.after_fork(
        parent,
        me,
        |slot| {
            let identity = &slot.status.identity;
            let tid = identity.tid.load(Ordering::Relaxed);
            // What is no thread's is there in the child, too, unless a thread was about to give it up.
            let is_idle = tid == NO_THREAD && slot.stance().is_some();
            let survives = tid == parent || is_idle;
            if survives {
                identity.after_fork(Some(if tid == parent { me } else { NO_THREAD }));
                // A safe slot was visited by another thread. A running one is inside its own closure.
                if slot.state() == MutatorState::Safe {
                    identity.visited.store(false, Ordering::Relaxed);
                }
            }
            survives
        },
        |slot| {
            let identity = &slot.status.identity;
            identity.after_fork(None);
            identity.forbidden.clear();
            identity.visited.store(false, Ordering::Relaxed);
        },
    );
    if !world.stop_turn.is_held_by(me) {
        // Another thread of the parent asked for it.
        world.system.current.over();
    }
}
