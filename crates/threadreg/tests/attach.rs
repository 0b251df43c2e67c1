//! Threads that were made without this crate: attached, detached, forgotten, or found unregistered.

use std::cell::RefCell;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::Duration;

use sigctx::altstack::{self, AltStack};
use sigctx::sys;
use testkit::{forked, in_child, until};
use threadreg::{AttachError, Attached, attach, current, ensure_attached, os_threads, threads};

const MINUTE: Duration = Duration::from_mins(1);

#[test]
fn a_thread_is_attached_once() {
    in_child("a_thread_is_attached_once", MINUTE, || {
        assert_eq!(current(), None);
        let me = attach().expect("attaches");
        let thread = me.thread();
        assert_eq!(current(), Some(thread));
        assert_eq!(thread.tid(), Some(sys::gettid()));
        let again = attach().expect_err("attached already");
        assert!(matches!(again, AttachError::AlreadyAttached { thread: t } if t == thread));
        assert_eq!(current(), Some(thread), "a refused attach changes nothing");
        me.detach();
        assert_eq!((current(), thread.is_alive(), threads().count()), (None, false, 0));

        let next = attach().expect("attaches again");
        assert_ne!(next.thread(), thread);
        assert_eq!(next.thread().index(), thread.index(), "the record is used again");
        drop(next);

        let inner = threadreg::spawn(|| attach().map(drop)).join().expect("no panic");
        assert!(matches!(inner, Err(AttachError::AlreadyAttached { .. })));
    });
}

/// Each library on a thread has its own, and knows nothing of the others.
#[test]
fn a_thread_is_registered_until_its_last_guard_is_dropped() {
    in_child("a_thread_is_registered_until_its_last_guard_is_dropped", MINUTE, || {
        type Make = fn() -> Result<Attached, AttachError>;
        for first in [attach as Make, ensure_attached] {
            for last in 0..3 {
                let mut guards = [first, ensure_attached, ensure_attached]
                    .map(|make| Some(make().expect("attaches")));
                let thread = current().expect("attached");
                let ends = |guards: &mut [Option<Attached>; 3]| {
                    for gone in (0..3).filter(|guard| *guard != last) {
                        guards[gone] = None;
                        assert_eq!((current(), thread.is_alive()), (Some(thread), true), "{gone}");
                    }
                    assert!(attach().is_err(), "registered already");
                    guards[last] = None;
                    assert_eq!((current(), thread.is_alive()), (None, false));
                };
                assert_eq!(forked(|| ends(&mut guards)), 0, "in the child of fork");
                ends(&mut guards);
            }
        }
        let spawned = threadreg::spawn(|| {
            let thread = current();
            drop((ensure_attached().expect("attached"), ensure_attached().expect("attached")));
            assert_eq!(current(), thread, "until the thread ends");
        });
        spawned.join().expect("no panic");
        assert_eq!(threads().count(), 0);
    });
}

#[test]
fn an_attached_thread_has_a_large_alternate_stack_and_its_old_one_back_later() {
    fn alternate() -> (usize, usize) {
        let mut stack = MaybeUninit::<libc::stack_t>::uninit();
        // SAFETY: writes one `stack_t`, changes nothing.
        assert_eq!(unsafe { libc::sigaltstack(ptr::null(), stack.as_mut_ptr()) }, 0);
        // SAFETY: written above.
        let stack = unsafe { stack.assume_init() };
        (stack.ss_sp.addr(), stack.ss_size)
    }
    in_child(
        "an_attached_thread_has_a_large_alternate_stack_and_its_old_one_back_later",
        MINUTE,
        || {
            let before = alternate();
            let mask = sys::sigprocmask(sys::MaskHow::Block, &sys::SigSet::empty());
            let me = attach().expect("attaches");
            assert!(alternate().1 >= sigctx::altstack::MIN_SIZE);
            let local = 0_u8;
            let (low, high) = me.thread().call_stack().bounds();
            assert!((low..high).contains(&(&raw const local).addr()), "{low:#x}..{high:#x}");
            drop(me);
            assert_eq!(alternate(), before);
            assert_eq!(mask, sys::sigprocmask(sys::MaskHow::Block, &sys::SigSet::empty()));
            let size = threadreg::spawn(|| alternate().1).join().expect("no panic");
            assert!(size >= sigctx::altstack::MIN_SIZE);
        },
    );
}

/// Bytes of the process that are in memory.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").expect("/proc");
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:")).expect("a line for it");
    1024 * line.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).expect("a number")
}

/// The pages of one signal frame on an alternate stack of the crate's, in bytes.
fn frame() -> u64 {
    // SAFETY: reads the auxiliary vector; 0 when the entry is not there.
    let of = |entry| unsafe { libc::getauxval(entry) } as usize;
    let (page, told) = (of(libc::AT_PAGESZ), of(libc::AT_MINSIGSTKSZ));
    let (low, high) = AltStack::install().expect("installs").bounds();
    // What the kernel has left out of its number; up to a page more, since the size is rounded.
    let left_out = high - low - altstack::MIN_SIZE.max(4 * told);
    // Where there is no number, the crate takes 8 KiB for enough.
    let frame = if told == 0 { 8192 } else { told } + left_out;
    frame.next_multiple_of(page) as u64
}

/// Beside `std`'s threads: the pages of one signal frame, and what the registry has of a thread.
#[test]
fn a_registered_thread_needs_little_memory() {
    const THREADS: u64 = 200;
    /// A record and its neighbours that no thread has yet, and what libc allocates for the thread.
    const OTHER: u64 = 2048;

    if testkit::emulator().is_some() {
        return testkit::skip("an emulator does not tell what its guest has in memory");
    }
    in_child("a_registered_thread_needs_little_memory", MINUTE, || {
        // Else what a thread's stack has in memory may be one huge page.
        // SAFETY: takes no pointers.
        unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
        let barrier = &*Box::leak(Box::new(Barrier::new(THREADS as usize + 1)));
        let park = move || {
            barrier.wait();
            loop {
                thread::park();
            }
        };
        let of_a_thread = |make: &dyn Fn()| {
            let before = resident();
            (0..THREADS).for_each(|_| make());
            barrier.wait();
            resident().saturating_sub(before) / THREADS
        };
        // What the first of a kind needs once.
        threadreg::spawn(|| ()).join().expect("no panic");
        let unregistered = of_a_thread(&|| drop(thread::spawn(park)));
        let registered = of_a_thread(&|| drop(threadreg::spawn(park)));
        let frame = frame();
        assert!(
            registered < unregistered + frame + OTHER,
            "{registered} bytes, {unregistered} of std's, {frame} for a frame"
        );
        assert!(registered > unregistered, "{registered} bytes, {unregistered} of std's");
    });
}

/// std has given up its own alternate stack by the time that thread-locals are destroyed.
#[test]
fn a_thread_attached_to_its_end_leaves_no_alternate_stack() {
    thread_local! {
        static ME: RefCell<Option<Attached>> = const { RefCell::new(None) };
    }
    let attached_to_the_end = |leaked: bool| {
        let thread = thread::spawn(move || {
            let me = attach().expect("attaches");
            let thread = me.thread();
            if leaked {
                #[expect(clippy::mem_forget, reason = "the thread's end is the end of it")]
                std::mem::forget(me);
            } else {
                ME.set(Some(me));
            }
            thread
        });
        assert!(!thread.join().expect("no panic").is_alive());
    };
    let mappings = || {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("/proc");
        (sigctx::altstack::mapped(), maps.lines().count())
    };
    in_child("a_thread_attached_to_its_end_leaves_no_alternate_stack", MINUTE, || {
        // The stacks that are kept to be used again, and what libc and std map for their first thread.
        attached_to_the_end(false);
        attached_to_the_end(true);
        let (stacks, maps) = mappings();
        for thread in 0..100 {
            attached_to_the_end(thread % 2 == 0);
        }
        let (stacks_now, maps_now) = mappings();
        assert_eq!(stacks_now, stacks, "alternate stacks");
        // Two for each of them.
        assert!(maps_now < maps + 50, "{maps} mappings before, {maps_now} after");
        assert_eq!(threads().count(), 0);
    });
}

#[test]
fn a_forgotten_guard_ends_with_its_thread() {
    in_child("a_forgotten_guard_ends_with_its_thread", MINUTE, || {
        let thread = thread::spawn(|| {
            let me = attach().expect("attaches");
            let thread = me.thread();
            #[expect(clippy::mem_forget, reason = "that is the question")]
            std::mem::forget(me);
            thread
        });
        let thread = thread.join().expect("no panic");
        // The id of the thread is free now; the registry must not lead there.
        assert!(!thread.is_alive() && thread.tid().is_none());
        assert_eq!(threads().count(), 0);
    });
}

/// A C library's thread, which runs until the word it is given is 2, and tells its id.
extern "C" fn foreign(word: *mut c_void) -> *mut c_void {
    // SAFETY: the tests pass a static of that type.
    let word = unsafe { &*word.cast::<AtomicUsize>() };
    word.store(sys::gettid() as usize, SeqCst);
    while word.load(SeqCst) != 2 {
        thread::yield_now();
    }
    ptr::null_mut()
}

/// S14, T16. Unregistered threads are in the kernel's list, and not in ours.
#[test]
fn unregistered_threads_are_found() {
    static WORD: AtomicUsize = AtomicUsize::new(0);
    in_child("unregistered_threads_are_found", MINUTE, || {
        let me = attach().expect("attaches");
        let mut id = MaybeUninit::uninit();
        let word = (&raw const WORD).cast_mut().cast();
        // SAFETY: `foreign` takes a pointer to a static `AtomicUsize`.
        let failed = unsafe { libc::pthread_create(id.as_mut_ptr(), ptr::null(), foreign, word) };
        assert_eq!(failed, 0);
        until("it runs", || WORD.load(SeqCst) != 0);
        let tid = WORD.load(SeqCst) as i32;

        let all = os_threads().expect("/proc");
        assert!(all.is_complete());
        let find = |tid| all.iter().find(|t| t.tid == tid).expect("found").registered;
        assert_eq!(find(tid), None, "foreign");
        assert_eq!(find(sys::gettid()), Some(me.thread()));
        assert!(threads().all(|t| t.tid() != Some(tid)));

        let table = threadreg::dump().to_string();
        let row = |tid: i32| {
            let tid = tid.to_string();
            table.lines().find(|l| l.split_whitespace().next() == Some(&tid)).expect("in the table")
        };
        assert_eq!(row(tid).split_whitespace().nth(1), Some("no"), "{table}");
        assert_eq!(row(sys::gettid()).split_whitespace().nth(1), Some("yes"), "{table}");

        WORD.store(2, SeqCst);
        // SAFETY: made above, joined once.
        let id = unsafe { id.assume_init() };
        // SAFETY: as above.
        assert_eq!(unsafe { libc::pthread_join(id, ptr::null_mut()) }, 0);
    });
}

/// T9. The kernel keeps a main thread that has exited as a zombie.
#[test]
fn a_main_thread_that_exited_is_seen_as_exiting() {
    static MAIN: AtomicUsize = AtomicUsize::new(0);
    in_child("a_main_thread_that_exited_is_seen_as_exiting", MINUTE, || {
        // A process of its own, whose first thread is this one.
        // SAFETY: the child makes no assumption about other threads and leaves by `_exit`.
        let child = unsafe { libc::fork() };
        if child == 0 {
            MAIN.store(sys::gettid() as usize, SeqCst);
            let guard = attach().expect("attaches");
            let main = guard.thread();
            #[expect(clippy::mem_forget, reason = "`pthread_exit` drops nothing either")]
            std::mem::forget(guard);
            let judge = move || {
                let tid = MAIN.load(SeqCst) as i32;
                let dir = threadreg::procfs::TaskDir::open().expect("/proc");
                until("it is a zombie", || dir.stat(tid).expect("stays").state == 'Z');
                let stat = dir.stat(tid).expect("stays");
                let good = stat.is_exiting() && !main.is_alive() && main.tid().is_none();
                // SAFETY: ends the process.
                unsafe { libc::_exit(i32::from(!good)) };
            };
            threadreg::spawn(judge);
            // SAFETY: nothing on this stack is used by another thread.
            unsafe { raw_exit() };
        }
        let mut status = 0;
        // SAFETY: writes one int.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0, "the judge says no");
    });
}

/// Ends the calling thread as glibc's `pthread_exit` does, but for the unwinding, which Rust frames
/// do not allow: destroys its thread-locals, then leaves the kernel.
///
/// # Safety
///
/// No thread may use this thread's stack any more.
#[cfg(target_env = "gnu")]
unsafe fn raw_exit() -> ! {
    unsafe extern "C" {
        fn __call_tls_dtors();
    }
    // SAFETY: glibc's own first step of a thread's end.
    unsafe { __call_tls_dtors() };
    // SAFETY: the caller's obligation.
    let _ = unsafe { sys::syscall(libc::SYS_exit, [0; 6]) };
    unreachable!("exit returns")
}

/// Ends the calling thread. Other C libraries unwind nothing.
///
/// # Safety
///
/// No thread may use this thread's stack any more.
#[cfg(not(target_env = "gnu"))]
unsafe fn raw_exit() -> ! {
    // SAFETY: the caller's obligation.
    unsafe { libc::pthread_exit(ptr::null_mut()) }
}

/// T7. The thread is unlisted before it waits.
#[test]
fn a_detach_waits_for_the_pin_and_restores_the_mask() {
    in_child("a_detach_waits_for_the_pin_and_restores_the_mask", MINUTE, || {
        let (tell, told) = mpsc::channel();
        let (go, wait) = mpsc::channel::<()>();
        let other = thread::spawn(move || {
            let me = attach().expect("attaches");
            tell.send(me.thread()).expect("listened to");
            wait.recv().unwrap_or_default();
            drop(me);
            sys::sigprocmask(sys::MaskHow::Block, &sys::SigSet::empty())
        });
        let thread = told.recv().expect("told");
        let pinned = thread.pin().expect("alive");
        drop(go);
        until("it leaves", || !thread.is_alive());
        assert!(!other.is_finished());
        drop(pinned);
        let mask = other.join().expect("no panic");
        assert!(!mask.contains(libc::SIGURG), "{mask:?}");
    });
}
