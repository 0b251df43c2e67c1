//! Everything that is marked async-signal-safe, called in handlers on threads in every stage of
//! life, under an allocator that aborts when it is called there.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use sigctx::sys::{self, KernelAction, SaFlags, SigSet};
use testkit::{budget, in_child};
use threadreg::procfs::TaskDir;
use threadreg::{Slot, SlotId, current, threads, try_freeze_creation};

const MINUTE: Duration = Duration::from_mins(1);

thread_local! {
    static IN_HANDLER: Cell<bool> = const { Cell::new(false) };
}

struct Guarded;

impl Guarded {
    fn check() {
        if IN_HANDLER.get() {
            std::process::abort();
        }
    }
}

// SAFETY: hands everything on to the system's allocator.
unsafe impl GlobalAlloc for Guarded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::check();
        // SAFETY: the caller's obligation.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        Self::check();
        // SAFETY: the caller's obligation.
        unsafe { System.dealloc(place, layout) };
    }
}

#[global_allocator]
static ALLOCATOR: Guarded = Guarded;

static REGISTERED: AtomicUsize = AtomicUsize::new(0);
static FOREIGN: AtomicUsize = AtomicUsize::new(0);
static WRONG: AtomicUsize = AtomicUsize::new(0);
static SLOT: Slot<AtomicUsize> = Slot::new(SlotId::User);

extern "C" fn look(_: i32) {
    IN_HANDLER.set(true);
    let tid = sys::gettid();
    let wrong = |what: bool| {
        if what {
            WRONG.fetch_add(1, SeqCst);
        }
    };
    if let Some(me) = current() {
        REGISTERED.fetch_add(1, SeqCst);
        wrong(me.tid() != Some(tid));
        wrong(!me.is_alive());
        wrong(me.pin().map_or(true, |pinned| pinned.tid() != Some(tid)));
        wrong(me.signal(0).is_err());
        wrong(!threads().any(|thread| thread == me));
        if let Some(count) = SLOT.get(me) {
            count.fetch_add(1, SeqCst);
        }
        let _ = me.name();
        let _ = me.call_stack().bounds();
    } else {
        FOREIGN.fetch_add(1, SeqCst);
        wrong(threads().any(|thread| thread.pin().is_ok_and(|p| p.tid() == Some(tid))));
    }
    // Not on std's 8 KiB, of which the kernel's frame takes half.
    if current().is_some() && tid % 16 == 0 {
        drop(try_freeze_creation());
        match TaskDir::open() {
            Ok(dir) => {
                wrong(dir.stat(tid).is_err() || dir.status(tid).is_err() || dir.count().is_err());
                wrong(dir.for_each_tid(&mut [0; 256], |_| ()).is_err());
            }
            Err(_) => wrong(true),
        }
    }
    IN_HANDLER.set(false);
}

extern "C" fn foreign(_: *mut c_void) -> *mut c_void {
    for n in 0..2000 {
        std::hint::black_box(n);
    }
    ptr::null_mut()
}

fn c_thread() {
    let mut id = MaybeUninit::uninit();
    // SAFETY: `foreign` uses no argument.
    let failed =
        unsafe { libc::pthread_create(id.as_mut_ptr(), ptr::null(), foreign, ptr::null_mut()) };
    assert_eq!(failed, 0);
    // SAFETY: made above.
    let id = unsafe { id.assume_init() };
    // SAFETY: made above, joined once.
    assert_eq!(unsafe { libc::pthread_join(id, ptr::null_mut()) }, 0);
}

/// S14, S15, S16. A handler may find its thread unregistered, or registered in full.
#[test]
fn stress_handlers_on_threads_in_every_stage_of_life() {
    in_child("stress_handlers_on_threads_in_every_stage_of_life", 3 * MINUTE, || {
        static STOP: AtomicBool = AtomicBool::new(false);
        let look: extern "C" fn(i32) = look;
        let action = KernelAction {
            handler: look as usize,
            flags: SaFlags::ONSTACK | SaFlags::RESTART,
            // Nothing interrupts it: handlers on top of each other would need a stack without end.
            mask: SigSet::full(),
        };
        // SAFETY: the handler calls what this test holds to be async-signal-safe.
        unsafe { sys::rt_sigaction(libc::SIGUSR2, Some(&action)) }.expect("installs");
        // Whatever id the kernel shows gets a signal: newborn, dying, registered, foreign.
        let shower = thread::spawn(|| {
            let dir = TaskDir::open().expect("/proc");
            let (pid, me) = (sys::getpid(), sys::gettid());
            let mut sent = 0_usize;
            while !STOP.load(SeqCst) {
                let shoot = |tid| {
                    if tid != me && tid != pid {
                        sent += usize::from(sys::tgkill(pid, tid, libc::SIGUSR2).is_ok());
                    }
                };
                dir.for_each_tid(&mut [0; 4096], shoot).expect("lists");
            }
            sent
        });
        let rounds = budget(1500);
        // Else a stage was never met; when it is, is the scheduler's business.
        let met_all = || REGISTERED.load(SeqCst) > 0 && FOREIGN.load(SeqCst) > 0;
        let creators = [0, 1, 2].map(|kind| {
            thread::spawn(move || {
                let mut n = 0;
                while n < rounds || !met_all() {
                    n += 1;
                    match kind {
                        0 => threadreg::spawn(move || {
                            let me = current().expect("registered");
                            SLOT.get_or_init(me, || AtomicUsize::new(0));
                            drop(vec![0_u8; (n % 100) as usize + 1]);
                        })
                        .join()
                        .expect("no panic"),
                        1 => thread::spawn(|| {
                            for _ in 0..3 {
                                drop(threadreg::attach().expect("attaches"));
                            }
                        })
                        .join()
                        .expect("no panic"),
                        _ => c_thread(),
                    }
                }
            })
        });
        for creator in creators {
            creator.join().expect("no panic");
        }
        STOP.store(true, SeqCst);
        let sent = shower.join().expect("no panic");
        let (registered, foreign) = (REGISTERED.load(SeqCst), FOREIGN.load(SeqCst));
        println!("{sent} sent; handled on {registered} registered, {foreign} foreign threads");
        assert_eq!(WRONG.load(SeqCst), 0);
    });
}

/// S16. glibc and musl change credentials by a signal to every thread, and wait for all answers.
#[test]
fn stress_libcs_setuid_ends_amid_births_and_exits() {
    in_child("stress_libcs_setuid_ends_amid_births_and_exits", MINUTE / 3, || {
        static STOP: AtomicBool = AtomicBool::new(false);
        let creators = [0, 1].map(|_| {
            thread::spawn(|| {
                let mut made = 0;
                while !STOP.load(SeqCst) {
                    threadreg::spawn(|| drop(threadreg::attach())).join().expect("no panic");
                    made += 1;
                }
                made
            })
        });
        // SAFETY: cannot fail.
        let own = unsafe { libc::geteuid() };
        for _ in 0..budget(2000) {
            // SAFETY: touches no memory, and changes nothing.
            assert_eq!(unsafe { libc::seteuid(own) }, 0);
        }
        STOP.store(true, SeqCst);
        println!("{:?} threads", creators.map(|creator| creator.join().expect("no panic")));
    });
}
