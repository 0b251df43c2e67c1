//! The calling thread's record, found from anywhere: in a handler, on any thread, in a program or in a
//! library that was opened at run time.
//!
//! A thread-local of the main program exists before the thread's first instruction. That of a library
//! opened by `dlopen` is allocated by `malloc` when a thread first touches it (`__tls_get_addr` of
//! glibc). On an unregistered thread that first touch could be made by a handler that interrupted
//! `malloc`. So in a library `pthread_getspecific` is used instead: its keys live in the thread's own
//! descriptor, or in blocks that only `pthread_setspecific` allocates.

use core::ffi::{c_int, c_void};
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering, compiler_fence};

use crate::record::Record;

/// No thread was registered yet.
const UNSET: u32 = 0;
/// In the thread-local.
const LOCAL: u32 = 1;
/// From here on: in the thread-specific value of the key that is this much less.
const KEY: u32 = 2;

/// Where a thread's record is noted; set once.
static WHERE: AtomicU32 = AtomicU32::new(UNSET);

/// A record and its generation. Atomics, since a handler may look between any two instructions.
struct Noted {
    record: AtomicPtr<Record>,
    /// Written before `record`: whoever finds the record finds its generation.
    generation: AtomicU32,
}

thread_local! {
    // Const and without a destructor: no set-up that could allocate.
    static CURRENT: Noted = const {
        Noted { record: AtomicPtr::new(ptr::null_mut()), generation: AtomicU32::new(0) }
    };
}

/// The calling thread's record and its generation, or null. Async-signal-safe (AS-Safe).
///
/// The generation is noted beside the record: so neither waits for the other, and nothing but the
/// thread's own words is loaded.
#[inline]
pub(crate) fn noted() -> (*const Record, u32) {
    // Relaxed: a thread that has a record saw this set when it registered.
    if WHERE.load(Ordering::Relaxed) != LOCAL {
        return noted_elsewhere();
    }
    // Relaxed: only this thread writes them.
    CURRENT.with(|noted| {
        let record = noted.record.load(Ordering::Relaxed);
        (record.cast_const(), noted.generation.load(Ordering::Relaxed))
    })
}

#[cold]
#[inline(never)] // In line it would make all calls of `noted` slower.
fn noted_elsewhere() -> (*const Record, u32) {
    let record: *const Record = match WHERE.load(Ordering::Relaxed) {
        UNSET | LOCAL => ptr::null(),
        // SAFETY: reads a word of the calling thread; the key is never given back.
        key => unsafe { libc::pthread_getspecific(key - KEY) }.cast_const().cast(),
    };
    // SAFETY: null, or a record of the arena, which is never freed.
    let generation = unsafe { record.as_ref() }.map_or(0, |record| record.state().0);
    (record, generation)
}

/// The calling thread's record, or null. Async-signal-safe (AS-Safe).
pub(crate) fn record() -> *const Record {
    noted().0
}

/// Notes the calling thread's record; null: it has none. Called with signals blocked.
pub(crate) fn set(record: *const Record) {
    // SAFETY: null, or a record of the arena, which is never freed.
    let generation = unsafe { record.as_ref() }.map_or(0, |record| record.state().0);
    // The fences keep the compiler from moving the record's set-up past the store that lets a
    // handler on this thread find it, and its taking apart before the store that hides it.
    compiler_fence(Ordering::SeqCst);
    match WHERE.load(Ordering::Relaxed) {
        UNSET => unreachable!("`init` comes before every registration"),
        LOCAL => CURRENT.with(|noted| {
            noted.generation.store(generation, Ordering::Relaxed);
            // For the handler of a fault, which nothing blocks.
            compiler_fence(Ordering::SeqCst);
            noted.record.store(record.cast_mut(), Ordering::Relaxed);
        }),
        key => {
            // SAFETY: the key was made by `new_key` and has no destructor.
            let failed = unsafe { libc::pthread_setspecific(key - KEY, record.cast()) };
            if failed != 0 {
                // ENOMEM: no memory for a few hundred bytes, once a thread.
                std::alloc::handle_alloc_error(core::alloc::Layout::new::<*const Record>());
            }
        }
    }
    compiler_fence(Ordering::SeqCst);
}

/// Decides where records are noted. To be called before any thread is registered; once decided, nothing
/// happens.
pub(crate) fn init() {
    if WHERE.load(Ordering::Relaxed) != UNSET {
        return;
    }
    let choice = if is_in_the_program() { LOCAL } else { new_key() + KEY };
    let won = WHERE.compare_exchange(UNSET, choice, Ordering::Relaxed, Ordering::Relaxed);
    if won.is_err() && choice != LOCAL {
        // SAFETY: made above; no other thread knows it.
        unsafe { libc::pthread_key_delete(choice - KEY) };
    }
}

fn new_key() -> u32 {
    let mut key = 0;
    // SAFETY: writes one key. No destructor: the module that began a membership ends it.
    let failed = unsafe { libc::pthread_key_create(&raw mut key, None) };
    assert_eq!(failed, 0, "no thread-specific key is left (PTHREAD_KEYS_MAX)");
    key
}

/// Whether this code is part of the program itself, whose thread-locals every thread has from its
/// beginning. The answer `false` is always safe.
fn is_in_the_program() -> bool {
    /// Called for each object of the process, of which the first is the program. Ends the walk there.
    unsafe extern "C" fn first(
        object: *mut libc::dl_phdr_info,
        _size: usize,
        answer: *mut c_void,
    ) -> c_int {
        // SAFETY: libc gives a valid object.
        let object = unsafe { &*object };
        let here = is_in_the_program as *const () as usize;
        let count = usize::from(object.dlpi_phnum);
        // SAFETY: the object has that many headers.
        let headers = unsafe { core::slice::from_raw_parts(object.dlpi_phdr, count) };
        let found = headers.iter().filter(|header| header.p_type == libc::PT_LOAD).any(|header| {
            let begin = (object.dlpi_addr as usize).wrapping_add(header.p_vaddr as usize);
            here.wrapping_sub(begin) < header.p_memsz as usize
        });
        // SAFETY: the `bool` of the caller below.
        unsafe { *answer.cast::<bool>() = found };
        1
    }
    let mut answer = false;
    // SAFETY: `first` fits, and `answer` lives during the call.
    unsafe { libc::dl_iterate_phdr(Some(first), (&raw mut answer).cast()) };
    answer
}
