//! Several copies of the crate in one process, as two plugins or two versions of it bring them.

mod common;

use std::ffi::CString;
use std::mem;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use allthreads::sigctx::sys::{self, KernelAction, SaFlags, SigSet, gettid};
use common::*;
use testkit::in_child;

const LIMIT: Duration = Duration::from_secs(30);

type Operate = extern "C" fn(i32) -> usize;

/// A copy of the crate, in a library that is never closed. Its file stays as long as this: musl looks at it
/// again when the library is kept loaded.
struct Copy {
    operate: Operate,
    file: PathBuf,
}

impl Drop for Copy {
    fn drop(&mut self) {
        std::fs::remove_file(&self.file).expect("a file of this test's");
    }
}

/// Opens a copy of its own; `None` where nothing can be opened.
fn open(number: usize) -> Option<Copy> {
    let test = std::env::current_exe().expect("its own path");
    let dir = test.parent().and_then(|deps| deps.parent()).expect("built by cargo");
    let built = dir.join("examples").join("liballthreads_copy.so");
    let place = std::env::temp_dir().join(format!("copy-{}-{number}.so", std::process::id()));
    if let Err(error) = std::fs::copy(&built, &place) {
        testkit::skip(format!("{}: {error}", built.display()));
        return None;
    }
    let name = CString::new(place.to_str().unwrap()).unwrap();
    // SAFETY: the library's initialisers do nothing.
    let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if library.is_null() {
        std::fs::remove_file(&place).unwrap();
        testkit::skip("this program cannot open libraries");
        return None;
    }
    // SAFETY: an open library and a C string.
    let found = unsafe { libc::dlsym(library, c"copy_operate".as_ptr()) };
    assert!(!found.is_null());
    // SAFETY: of this type in the library, which is never closed.
    let operate = unsafe { mem::transmute::<*mut std::ffi::c_void, Operate>(found) };
    Some(Copy { operate, file: place })
}

/// The handler that was there first gets its signal once, in whatever order the copies found each other.
#[test]
fn the_first_handler_is_reached_once_through_any_number_of_copies() {
    static GOT: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn first(_: i32) {
        GOT.fetch_add(1, Ordering::Relaxed);
    }
    in_child("the_first_handler_is_reached_once_through_any_number_of_copies", LIMIT, || {
        if testkit::emulator().is_some() {
            return testkit::skip("an emulator's threads cannot be left out by a library");
        }
        let mut copies = Vec::new();
        for number in 0..3 {
            let Some(copy) = open(number) else { return };
            copies.push(copy);
        }
        park(3);
        let orders: [&[usize]; 7] = [
            &[0],
            &[0, 1],
            &[0, 1, 0],
            &[1, 0, 1, 0],
            &[0, 1, 2],
            &[2, 1, 0, 1, 2],
            &[0, 1, 2, 0, 1, 2],
        ];
        for (signal, order) in (libc::SIGRTMIN() + 3..).zip(orders) {
            let action = KernelAction {
                handler: first as *const () as usize,
                flags: SaFlags::empty(),
                mask: SigSet::empty(),
            };
            // SAFETY: the handler is async-signal-safe.
            unsafe { sys::rt_sigaction(signal, Some(&action)) }.unwrap();
            for &copy in order {
                assert_eq!((copies[copy].operate)(signal), tids().len(), "{order:?}");
            }
            for round in 1..=3 {
                sys::tgkill(sys::getpid(), gettid(), signal).unwrap();
                assert_eq!(GOT.load(Ordering::Relaxed), round, "{order:?}");
            }
            GOT.store(0, Ordering::Relaxed);
        }
        // libc's own broadcast waits for its handler on every thread.
        for &copy in &[0, 1, 2, 1, 0] {
            assert_eq!((copies[copy].operate)(SIGNAL), tids().len());
            // SAFETY: takes nothing.
            let gid = unsafe { libc::getegid() };
            // SAFETY: no pointers; the ids stay what they are.
            assert_eq!(unsafe { libc::setresgid(u32::MAX, gid, u32::MAX) }, 0);
        }
    });
}
