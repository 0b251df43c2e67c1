//! Several copies of this crate in one process, as plugins have them, and what is left of one that is
//! closed.

mod common;

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use common::*;
use sigctx::altstack::AltStack;
use sigctx::handler::{Delivery, Flow};
use sigctx::probe::{Patterned, Spin, Stop};
use sigctx::sys::{self, KernelAction, SaFlags, SigSet};

const LIMIT: Duration = Duration::from_mins(1);
const SIGNAL: c_int = libc::SIGURG;

/// One of the libraries, with a copy of its own.
struct Library {
    handle: *mut c_void,
    path: PathBuf,
    install: extern "C" fn(c_int) -> bool,
    inject: unsafe extern "C" fn(usize, usize, usize),
    count: extern "C" fn(c_int) -> usize,
}

impl Library {
    /// Opens a new copy of the library, which cargo builds beside the tests. `None`: this program
    /// cannot.
    fn open(dir: &Path, name: &str) -> Option<Self> {
        let test = std::env::current_exe().expect("its own path");
        let built = test.parent().and_then(|deps| deps.parent()).expect("built by cargo");
        let built = built.join("examples").join("libsigctx_copy.so");
        let path = dir.join(name);
        // The dynamic linker tells files apart, not names. What there is not it says below.
        let copied = std::fs::copy(&built, &path);
        let path = if copied.is_ok() { path } else { built };
        let name = CString::new(path.to_str().expect("UTF-8")).expect("no zero byte");
        // SAFETY: the library's initialisers do nothing.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            // SAFETY: null or a C string that stays until the next call.
            let why: *mut c_char = unsafe { libc::dlerror() };
            // SAFETY: there was an error.
            let why = unsafe { CStr::from_ptr(why) }.to_string_lossy();
            assert!(why.contains("Dynamic loading not supported"), "{}: {why}", path.display());
            testkit::skip("static programs open no library");
            return None;
        }
        Some(Self {
            handle,
            path,
            // SAFETY: of this type in the library; the others, too.
            install: unsafe { find(handle, c"copy_install") },
            // SAFETY: see above.
            inject: unsafe { find(handle, c"copy_inject") },
            // SAFETY: see above.
            count: unsafe { find(handle, c"copy_count") },
        })
    }

    fn seen(&self) -> usize {
        (self.count)(0)
    }

    fn injected(&self) -> usize {
        (self.count)(1)
    }

    fn refused(&self) -> usize {
        (self.count)(2)
    }
}

/// A function of an open library.
///
/// # Safety
///
/// `F` is the function's type.
unsafe fn find<F: Copy>(library: *mut c_void, symbol: &CStr) -> F {
    // SAFETY: an open library and a C string.
    let found = unsafe { libc::dlsym(library, symbol.as_ptr()) };
    assert!(!found.is_null(), "{symbol:?} is not there");
    // SAFETY: the caller's obligation; functions are as long as pointers.
    unsafe { std::mem::transmute_copy(&found) }
}

/// A directory that goes when the test is over.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("sigctx-{name}-{}", sys::getpid()));
        std::fs::create_dir_all(&dir).expect("a directory");
        Self(dir)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

static FIRST: AtomicUsize = AtomicUsize::new(0);
static OURS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn first(_: c_int) {
    FIRST.fetch_add(1, SeqCst);
    // The last of all that see a signal, whichever copy is on top.
    HANDLED.fetch_add(1, SeqCst);
}

fn the_first_handler(flags: SaFlags) {
    let handler = first as *const () as usize;
    let action = KernelAction { handler, flags, mask: SigSet::empty() };
    // SAFETY: it counts.
    unsafe { sys::rt_sigaction(SIGNAL, Some(&action)) }.expect("the first handler");
}

/// Three copies and the test's own: installed, and put on top again, in an order that makes each of them
/// chain to each other.
fn any_order(flags: SaFlags) {
    fn ours(_: &mut Delivery<'_>) -> Flow {
        OURS.fetch_add(1, SeqCst);
        Flow::Chain
    }
    let _alt = AltStack::install().expect("alternate stack");
    let dir = Dir::new("order");
    let copies: Option<Vec<Library>> =
        ["x.so", "y.so", "z.so"].into_iter().map(|name| Library::open(&dir.0, name)).collect();
    let Some(copies) = copies else { return };
    the_first_handler(flags);
    let mut installed = vec![];
    let ours = install(SIGNAL, ours);
    for (step, at) in "xyxzyxxyzzxyxyzx".bytes().enumerate() {
        let copy = usize::from(at - b'x');
        if !installed.contains(&copy) {
            installed.push(copy);
        }
        assert!((copies[copy].install)(SIGNAL));
        if step % 5 == 4 {
            ours.restore().expect("on top");
        }
        let before: Vec<usize> = copies.iter().map(Library::seen).collect();
        raise(SIGNAL);
        for (i, copy) in copies.iter().enumerate() {
            let once = usize::from(installed.contains(&i));
            assert_eq!(copy.seen() - before[i], once, "copy {i} at step {step}");
        }
        assert_eq!(OURS.load(SeqCst), step + 1, "the test's copy at step {step}");
        assert_eq!(FIRST.load(SeqCst), step + 1, "the first handler at step {step}");
    }
}

#[test]
fn each_copy_and_the_first_handler_get_a_signal_once_in_any_order() {
    let name = "each_copy_and_the_first_handler_get_a_signal_once_in_any_order";
    testkit::in_child(name, LIMIT, || any_order(SaFlags::ONSTACK));
}

#[test]
fn a_first_handler_on_the_interrupted_stack_gets_a_signal_once_from_copies() {
    let name = "a_first_handler_on_the_interrupted_stack_gets_a_signal_once_from_copies";
    testkit::in_child(name, LIMIT, || any_order(SaFlags::empty()));
}

/// Each copy injects calls of its own, whichever of them the kernel calls.
fn copies_inject(flags: SaFlags) {
    static STOP: Mutex<Option<Stop>> = Mutex::new(None);

    fn pass_on(_: &mut Delivery<'_>) -> Flow {
        Flow::Chain
    }
    let dir = Dir::new("inject");
    let copies: Option<Vec<Library>> =
        ["x.so", "y.so"].into_iter().map(|name| Library::open(&dir.0, name)).collect();
    let Some(copies) = copies else { return };
    let lost = lost_by_an_ordinary_handler();
    the_first_handler(flags);
    for copy in &copies {
        assert!((copy.install)(SIGNAL));
    }
    let top = install(SIGNAL, pass_on);
    let enough = testkit::budget(5_000) as usize;
    let mut sent = 0;
    thread::scope(|s| {
        let copies_of_victim: Vec<_> = copies.iter().map(|copy| copy.inject).collect();
        let victim = s.spawn(move || {
            let _alt = AltStack::install().expect("alternate stack");
            let mut rng = testkit::Rng::from_env();
            // Leaked, with what stops it: a late signal may still look.
            let patterned = Box::leak(Box::new(Patterned::new()));
            let (low, high) = patterned.call_stack().bounds();
            for (inject, every) in copies_of_victim.into_iter().zip([2, 3]) {
                // SAFETY: the loop's stack.
                unsafe { inject(low, high, every) };
            }
            // SAFETY: leaked.
            *STOP.lock().unwrap() = Some(unsafe { patterned.stopper() });
            while !DONE.load(SeqCst) {
                let begin = || TID.store(sys::gettid(), SeqCst);
                let mut different = patterned.run(|| rng.next_u64(), Spin::UntilStopped, begin);
                different.retain(|difference| !lost.contains(difference.register));
                assert!(different.is_empty(), "{different:#x?}\n{}", counts());
            }
        });
        wait_for("the victim", || TID.load(SeqCst) != 0);
        let stop = STOP.lock().unwrap().take().expect("running");
        let mut rng = testkit::Rng::from_env();
        let mut round = 0;
        sent = send_one_at_a_time(&TID, SIGNAL, enough, &mut rng, || {
            round += 1;
            if round % 32 == 0 {
                stop.stop();
            }
            if round % 100 == 0 {
                // Another one on top: the kernel calls each of them in turn.
                assert!((copies[round / 100 % 2].install)(SIGNAL));
                top.restore().expect("on top");
            }
            victim.is_finished()
        });
        DONE.store(true, SeqCst);
        while !victim.is_finished() {
            stop.stop();
            thread::yield_now();
        }
    });
    for (copy, every) in copies.iter().zip([2, 3]) {
        let (seen, injected, refused) = (copy.seen(), copy.injected(), copy.refused());
        println!("seen {seen}, injected {injected}, refused {refused} of {sent}");
        assert_eq!(seen, sent, "each copy has each signal once");
        assert!(injected + refused >= sent / every, "one of {every} was its own");
        // The next signal often comes before a call has resumed.
        assert!(injected > sent / every / 20, "refused {refused}, injected {injected}");
    }
    assert_eq!(FIRST.load(SeqCst), sent, "the first handler has each signal once");
}

#[test]
fn stress_copies_inject_calls_under_each_other() {
    let name = "stress_copies_inject_calls_under_each_other";
    testkit::in_child(name, DEADLINE, || copies_inject(SaFlags::ONSTACK));
}

#[test]
fn stress_copies_inject_calls_beside_a_handler_on_the_interrupted_stack() {
    let name = "stress_copies_inject_calls_beside_a_handler_on_the_interrupted_stack";
    testkit::in_child(name, DEADLINE, || copies_inject(SaFlags::empty()));
}

fn is_mapped(path: &Path) -> bool {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
    maps.contains(path.to_str().expect("UTF-8"))
}

#[test]
fn a_library_with_a_handler_stays_when_it_is_closed() {
    testkit::in_child("a_library_with_a_handler_stays_when_it_is_closed", LIMIT, || {
        let dir = Dir::new("close");
        let Some(without) = Library::open(&dir.0, "without.so") else { return };
        // The control: a library that has installed nothing goes.
        // SAFETY: nothing of it is used any more.
        assert_eq!(unsafe { libc::dlclose(without.handle) }, 0);
        if is_mapped(&without.path) {
            return testkit::skip("this C library does not unload");
        }
        let library = Library::open(&dir.0, "with.so").expect("as before");
        assert!((library.install)(SIGNAL));
        // SAFETY: what is used of it below must be there still.
        assert_eq!(unsafe { libc::dlclose(library.handle) }, 0);
        assert!(is_mapped(&library.path), "the kernel's action is in code that is gone");
        raise(SIGNAL);
        assert_eq!(library.seen(), 1);
    });
}
