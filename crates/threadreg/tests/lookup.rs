//! The calling thread's record, looked up in a handler, in a library that was opened at run time.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::mem;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use sigctx::sys::{self, KernelAction, SaFlags, SigSet};
use testkit::in_child;

/// What `tests/plugin/lib.rs` exports.
#[derive(Clone, Copy)]
struct Plugin {
    attach: extern "C" fn() -> bool,
    current: extern "C" fn() -> bool,
    touch: extern "C" fn() -> usize,
}

static PLUGIN: OnceLock<Plugin> = OnceLock::new();

impl Plugin {
    /// Opens the library, which cargo builds beside the tests. `None`: this program cannot.
    fn open() -> Option<Self> {
        let test = std::env::current_exe().expect("its own path");
        let dir = test.parent().and_then(|deps| deps.parent()).expect("built by cargo");
        let path = dir.join("examples").join("libplugin.so");
        let name = CString::new(path.to_str().expect("UTF-8")).expect("no zero byte");
        // SAFETY: the library's initialisers do nothing.
        let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if library.is_null() {
            let why = why();
            // What musl's static programs say.
            assert!(why.contains("Dynamic loading not supported"), "{}: {why}", path.display());
            return None;
        }
        let plugin = Self {
            // SAFETY: of this type in the library, which is never closed; the others, too.
            attach: unsafe { find(library, c"plugin_attach") },
            // SAFETY: see above.
            current: unsafe { find(library, c"plugin_current") },
            // SAFETY: see above.
            touch: unsafe { find(library, c"plugin_touch") },
        };
        Some(*PLUGIN.get_or_init(|| plugin))
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
    unsafe { mem::transmute_copy(&found) }
}

fn why() -> String {
    // SAFETY: null or a C string that stays until the next call.
    let text: *mut c_char = unsafe { libc::dlerror() };
    if text.is_null() {
        return String::new();
    }
    // SAFETY: see above.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// Where the calling thread has the library's thread-locals; 0 when they were not allocated.
fn locals() -> usize {
    unsafe extern "C" fn visit(
        object: *mut libc::dl_phdr_info,
        _: usize,
        answer: *mut c_void,
    ) -> c_int {
        // SAFETY: libc gives a valid object.
        let object = unsafe { &*object };
        // SAFETY: with a C string for its name.
        let name = unsafe { CStr::from_ptr(object.dlpi_name) };
        let found = name.to_bytes().ends_with(b"/libplugin.so");
        if found {
            // SAFETY: the `Option<usize>` of the caller below.
            unsafe { *answer.cast::<Option<usize>>() = Some(object.dlpi_tls_data.addr()) };
        }
        c_int::from(found)
    }
    let mut answer: Option<usize> = None;
    // SAFETY: `visit` fits, and `answer` lives during the call.
    unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut answer).cast()) };
    answer.expect("the library is open")
}

static HANDLED: AtomicUsize = AtomicUsize::new(0);
static REGISTERED: AtomicUsize = AtomicUsize::new(0);

extern "C" fn look(_: i32) {
    HANDLED.fetch_add(1, SeqCst);
    let registered = PLUGIN.get().is_some_and(|plugin| (plugin.current)());
    REGISTERED.fetch_add(usize::from(registered), SeqCst);
}

/// Has the calling thread's handler look; returns whether that found the thread registered.
fn look_in_a_handler() -> bool {
    let (handled, registered) = (HANDLED.load(SeqCst), REGISTERED.load(SeqCst));
    sys::tgkill(sys::getpid(), sys::gettid(), libc::SIGUSR1).expect("sent");
    assert_eq!(HANDLED.load(SeqCst), handled + 1, "handled before `tgkill` returned");
    REGISTERED.load(SeqCst) != registered
}

/// S14. A handler on a thread that the library never saw must not have its thread-locals allocated: the
/// handler may have interrupted `malloc`.
#[test]
fn current_in_a_library_allocates_no_thread_locals() {
    in_child("current_in_a_library_allocates_no_thread_locals", Duration::from_mins(1), || {
        let Some(plugin) = Plugin::open() else {
            return testkit::skip("a static program opens no libraries");
        };
        let handler = look as extern "C" fn(i32) as usize;
        let action = KernelAction { handler, flags: SaFlags::RESTART, mask: SigSet::empty() };
        // SAFETY: the handler touches atomics, and calls what this test holds to be
        // async-signal-safe.
        unsafe { sys::rt_sigaction(libc::SIGUSR1, Some(&action)) }.expect("installs");

        assert!(!look_in_a_handler(), "no thread is registered");
        let unseen = move || {
            thread::spawn(move || {
                let before = locals();
                assert!(!look_in_a_handler(), "this thread is not registered");
                let after = locals();
                (plugin.touch)();
                (before, after, locals())
            })
        };
        let (before, after, touched) = unseen().join().expect("no panic");
        assert_eq!(before, after, "before any thread was registered");

        let attached = thread::spawn(move || {
            assert!((plugin.attach)());
            assert!(look_in_a_handler() && (plugin.current)());
        });
        attached.join().expect("no panic");

        let (before, after, touched_later) = unseen().join().expect("no panic");
        assert_eq!(before, after, "after threads were registered");
        if before == 0 {
            assert!(touched != 0 && touched_later != 0, "the control: a touch allocates");
        } else {
            println!("note: libc gave the library room that every thread has from its beginning");
        }
    });
}
