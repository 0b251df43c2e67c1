//! Threads that were there before the program: a user-mode emulator's own.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::SeqCst};

static EARLY: [AtomicI32; 16] = [const { AtomicI32::new(0) }; 16];
static NOTED: AtomicBool = AtomicBool::new(false);

/// Run by the loader before `main`, when the program has one thread.
#[used]
#[unsafe(link_section = ".init_array")]
static AT_START: extern "C" fn() = first;

extern "C" fn first() {
    if !NOTED.swap(true, SeqCst) {
        note_early_tasks();
        // SAFETY: the handler reads a directory and stores numbers; nothing else is there to see.
        unsafe { libc::pthread_atfork(None, None, Some(note)) };
    }
}

extern "C" fn note() {
    note_early_tasks();
}

/// Looks again which threads are there beside the calling one: for the only thread of a process whose
/// `/proc` is another one now, that of a new pid namespace, in which all have other ids.
pub fn note_early_tasks() {
    // SAFETY: takes nothing and cannot fail.
    let me = unsafe { libc::gettid() };
    // Without /proc no thread can be listed.
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let others = tasks.filter_map(|task| task.file_name().to_str()?.parse().ok());
    let others = others.filter(|&tid: &i32| tid != me).chain(std::iter::repeat(0));
    for (slot, tid) in EARLY.iter().zip(others) {
        slot.store(tid, SeqCst);
    }
}

/// The ids of the threads that the process had beside the first one before it could make any, or
/// that a child of `fork` had at once: an emulator's, which answer no signal. None otherwise.
///
/// In a constructor it must be called before a thread is made.
#[must_use]
pub fn early_tasks() -> Vec<i32> {
    AT_START();
    EARLY.iter().map(|slot| slot.load(SeqCst)).filter(|&tid| tid != 0).collect()
}
