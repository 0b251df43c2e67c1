//! A library that `tests/lookup.rs` opens at run time, with a registry of its own.

use std::cell::Cell;
use std::ffi::{c_int, c_void};

thread_local! {
    static LOCAL: Cell<usize> = const { Cell::new(1) };
}

/// Registers the calling thread until it ends.
#[unsafe(no_mangle)]
extern "C" fn plugin_attach() -> bool {
    threadreg::attach().map(std::mem::forget).is_ok()
}

/// Whether the calling thread is registered.
#[unsafe(no_mangle)]
extern "C" fn plugin_current() -> bool {
    threadreg::current().is_some()
}

/// Writes a thread-local.
#[unsafe(no_mangle)]
extern "C" fn plugin_touch() -> usize {
    LOCAL.set(LOCAL.get() + 1);
    LOCAL.get()
}

/// Where the calling thread has this library's thread-locals; 0 when they were not allocated.
#[unsafe(no_mangle)]
extern "C" fn plugin_locals() -> usize {
    unsafe extern "C" fn visit(
        object: *mut libc::dl_phdr_info,
        _: usize,
        answer: *mut c_void,
    ) -> c_int {
        // SAFETY: libc gives a valid object.
        let object = unsafe { &*object };
        // SAFETY: the object has that many headers.
        let headers =
            unsafe { std::slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum)) };
        let here = plugin_locals as *const () as usize;
        let ours = headers.iter().filter(|header| header.p_type == libc::PT_LOAD).any(|header| {
            let begin = (object.dlpi_addr as usize).wrapping_add(header.p_vaddr as usize);
            here.wrapping_sub(begin) < header.p_memsz as usize
        });
        if ours {
            // SAFETY: the `usize` of the caller below.
            unsafe { *answer.cast::<usize>() = object.dlpi_tls_data.addr() };
        }
        c_int::from(ours)
    }
    let mut answer = 0_usize;
    // SAFETY: `visit` fits, and `answer` lives during the call.
    unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut answer).cast()) };
    answer
}
