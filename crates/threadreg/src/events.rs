//! Events of threads that come and go, over bounded channels. No thread waits for a slow listener.

use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use sigctx::fork;
use sigctx::sys::Tid;

use crate::name::Name;
use crate::registry;
use crate::thread_ref::ThreadRef;

/// A registered thread has started or is exiting.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The thread runs: it was spawned and has its id, or it was attached.
    Started {
        /// The thread.
        thread: ThreadRef,
        /// Its id.
        tid: Tid,
        /// Its name.
        name: Name,
    },
    /// The thread has left the list of threads.
    Exited {
        /// The thread. The reference is stale by now.
        thread: ThreadRef,
        /// The id that it had.
        tid: Tid,
        /// The name that it had.
        name: Name,
    },
}

/// One subscriber; leaked, linked in front of those before it.
struct Node {
    sender: Sender<Event>,
    dropped: AtomicUsize,
    next: AtomicPtr<Node>,
    /// The process that subscribed. A fork copies a channel at any moment of its life, so the child
    /// must not touch it.
    process: u32,
}

/// Head of the list of subscribers. Only grows; in the child of a fork the old list stays behind the
/// new.
static HEAD: AtomicPtr<Node> = AtomicPtr::new(ptr::null_mut());

/// Subscribes to the start and the exit of threads. At most `capacity` events wait to be read.
///
/// The events of one thread arrive in order. A thread that starts or exits never waits for a listener:
/// an event that finds the channel full is dropped and counted. The memory of a subscription is never
/// freed, so subscribe once, and not once a request. The child of a `fork` has no subscriptions.
///
/// # Signal safety
///
/// Not async-signal-safe (AS-Unsafe heap): it allocates.
///
/// # Examples
///
/// ```
/// use threadreg::Event;
///
/// let events = threadreg::subscribe(16);
/// threadreg::Builder::new().name("worker").spawn(|| ())?.join().unwrap();
/// let first = events.receiver().recv()?;
/// assert!(matches!(first, Event::Started { name, .. } if name.as_str() == "worker"));
/// assert!(matches!(events.receiver().recv()?, Event::Exited { .. }));
/// assert_eq!(events.dropped(), 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn subscribe(capacity: usize) -> Subscription {
    registry::init();
    // A channel without room passes an event only to a listener that waits at that moment.
    let (sender, receiver) = bounded(capacity.max(1));
    let (dropped, next) = (AtomicUsize::new(0), AtomicPtr::new(ptr::null_mut()));
    let process = fork::process();
    let place = Box::into_raw(Box::new(Node { sender, dropped, next, process }));
    // SAFETY: from `Box::into_raw` above; never freed and never borrowed mutably.
    let node: &'static Node = unsafe { &*place };
    let mut head = HEAD.load(Ordering::Relaxed);
    loop {
        // Relaxed: goes out with the exchange.
        node.next.store(head, Ordering::Relaxed);
        // Release: pairs with the load in `emit`; the node is whole. The nodes behind it were released
        // by their own exchange, and a chain of exchanges keeps that.
        match HEAD.compare_exchange_weak(head, place, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => break,
            Err(now) => head = now,
        }
    }
    Subscription { receiver, dropped: &node.dropped }
}

/// The listener's end of a subscription; from [`subscribe`].
///
/// # Signal safety
///
/// None is async-signal-safe (AS-Unsafe lock) except [`dropped`](Self::dropped).
#[derive(Debug)]
pub struct Subscription {
    receiver: Receiver<Event>,
    dropped: &'static AtomicUsize,
}

impl Subscription {
    /// The channel to read from, or to wait for together with others.
    #[must_use]
    pub fn receiver(&self) -> &Receiver<Event> {
        &self.receiver
    }

    /// How many events found the channel full.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe (AS-Safe).
    #[must_use]
    pub fn dropped(&self) -> usize {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// Sends an event to every subscriber; `event` is called only if there is one.
///
/// Called with signals blocked, so that no handler runs on top of a channel's lock.
pub(crate) fn emit(event: impl FnOnce() -> Event) {
    // Acquire: pairs with the exchange in `subscribe`.
    let mut next = HEAD.load(Ordering::Acquire);
    if next.is_null() {
        return;
    }
    let event = event();
    let process = fork::process();
    // SAFETY: null or a leaked node, whole since before it was linked, not borrowed mutably since.
    while let Some(node) = unsafe { next.as_ref() } {
        // From here on the list is the parent's.
        if node.process != process {
            return;
        }
        match node.sender.try_send(event) {
            Err(TrySendError::Full(_)) => {
                node.dropped.fetch_add(1, Ordering::Relaxed);
            }
            // Disconnected: the listener is gone.
            Ok(()) | Err(TrySendError::Disconnected(_)) => {}
        }
        next = node.next.load(Ordering::Relaxed);
    }
}
