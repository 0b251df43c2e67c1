//! What the tests share: threads of several kinds, and what the kernel says about each.
#![expect(dead_code, reason = "each test binary uses a part")]

use std::ffi::{CStr, c_void};
use std::fs;
use std::io::Read;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use allthreads::sigctx::sys::{self, MaskHow, SigSet, Tid, gettid};
use allthreads::{Batch, Error, Report};

/// The signal that the crate uses by default.
pub(crate) const SIGNAL: i32 = 33;

/// Run by the loader before `main`.
#[used]
#[unsafe(link_section = ".init_array")]
static AT_START: extern "C" fn() = leave_out_the_emulator;

/// An emulator's threads answer no signal.
extern "C" fn leave_out_the_emulator() {
    exclude_emulator();
    // SAFETY: the handler reads a list that is ready and stores it; the child has one thread.
    unsafe { libc::pthread_atfork(None, None, Some(exclude_emulator)) };
}

/// Again in a process whose `/proc` is another one now, where all have other ids.
fn exclude_emulator_again() {
    testkit::note_early_tasks();
    exclude_emulator();
}

extern "C" fn exclude_emulator() {
    match allthreads::exclude_always(&testkit::early_tasks()) {
        // In a new pid namespace, whose `/proc` is still the outer one: see `in_namespace`.
        Ok(()) | Err(Error::NoProc(_)) => {}
        Err(error) => panic!("ids of threads: {error}"),
    }
}

/// Runs `body` as the first process of a pid namespace, with the namespace's own `/proc`; returns
/// its status. Says so when there can be none.
pub(crate) fn in_namespace(body: impl FnOnce()) -> Option<i32> {
    // SAFETY: takes flags only.
    if unsafe { libc::unshare(libc::CLONE_NEWPID) } != 0 {
        testkit::skip(format!("no new pid namespace: {}", std::io::Error::last_os_error()));
        return None;
    }
    Some(testkit::forked(|| {
        let mount = |what: &CStr, to: &CStr, flags| {
            let none = std::ptr::null();
            // SAFETY: the strings end in zero.
            unsafe { libc::mount(what.as_ptr(), to.as_ptr(), what.as_ptr(), flags, none) }
        };
        // What is mounted is seen by this process alone.
        // SAFETY: takes flags only.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0);
        assert_eq!(mount(c"none", c"/", libc::MS_REC | libc::MS_PRIVATE), 0);
        assert_eq!(mount(c"proc", c"/proc", 0), 0);
        assert_eq!(sys::getpid(), 1);
        exclude_emulator_again();
        body();
    }))
}

/// The ids of all threads that the program has.
pub(crate) fn tids() -> Vec<Tid> {
    let tasks = fs::read_dir("/proc/self/task").expect("list of threads");
    let tids = tasks.map(|task| task.unwrap().file_name().to_str().unwrap().parse().unwrap());
    let emulator = testkit::early_tasks();
    tids.filter(|tid| !emulator.contains(tid)).collect()
}

/// A line of a thread's `status`; `None` when the thread is gone or dead.
pub(crate) fn status(tid: Tid, field: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/self/task/{tid}/status")).ok()?;
    let line = |name: &str| {
        status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(":\t")).map(str::to_owned)
    };
    if line("State")?.starts_with(['Z', 'X']) { None } else { line(field) }
}

/// What all living threads have in a line of `status`.
#[track_caller]
pub(crate) fn assert_all(field: &str, expected: &str) {
    for tid in tids() {
        if let Some(value) = status(tid, field) {
            assert_eq!(value, expected, "{field} of thread {tid}");
        }
    }
}

/// Starts `count` threads that sleep forever, and waits until they do so.
pub(crate) fn park(count: usize) {
    let barrier = Box::leak(Box::new(Barrier::new(count + 1)));
    for _ in 0..count {
        let barrier = &*barrier;
        thread::Builder::new()
            .stack_size(128 << 10)
            .spawn(move || {
                barrier.wait();
                loop {
                    thread::park();
                }
            })
            .expect("start a thread");
    }
    barrier.wait();
}

/// A thread that blocks `set` by a raw system call, forever or for a time.
pub(crate) fn deaf(set: SigSet, span: Option<Duration>) -> Tid {
    let (send, receive) = mpsc::channel();
    let body = move || {
        mask(MaskHow::Set, set);
        send.send(gettid()).unwrap();
        if let Some(span) = span {
            thread::sleep(span);
            mask(MaskHow::Set, SigSet::empty());
        }
        loop {
            thread::park();
        }
    };
    thread::Builder::new().name("deaf one".into()).spawn(body).unwrap();
    receive.recv().unwrap()
}

/// Blocks or unblocks signals behind libc's back.
pub(crate) fn mask(how: MaskHow, set: SigSet) {
    sys::sigprocmask(how, &set);
}

/// A batch of one that gives every thread a name; the kernel hands it on to new threads.
pub(crate) fn name(name: &'static CStr) -> Batch<'static> {
    let args = [libc::PR_SET_NAME as usize, name.as_ptr() as usize, 0, 0, 0, 0];
    // SAFETY: the name is static, and to read it is sound everywhere.
    unsafe { Batch::new().call(libc::SYS_prctl, args) }
}

/// A system call without pointers on every thread.
pub(crate) fn plain(number: libc::c_long, args: [usize; 6]) -> Result<Report, Error> {
    // SAFETY: the tests that use this pass no pointers but null.
    unsafe { allthreads::syscall(number, args) }
}

pub(crate) fn sleep(milliseconds: u64) {
    thread::sleep(Duration::from_millis(milliseconds));
}

/// Whether the test may change ids; says so when not.
pub(crate) fn is_root() -> bool {
    // SAFETY: takes nothing and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        testkit::skip("needs root");
    }
    root
}

/// A thread by bare `clone`, unknown to libc, without thread-local storage of its own, or with
/// none at all (a null thread pointer). It sleeps forever.
pub(crate) fn raw_clone(extra_flags: i32) -> Tid {
    extern "C" fn body(_: *mut c_void) -> i32 {
        loop {
            // No libc, and no `errno`: the storage it would touch is another thread's, or none.
            let word = std::sync::atomic::AtomicU32::new(0);
            let args = [word.as_ptr() as usize, libc::FUTEX_WAIT as usize, 0, 0, 0, 0];
            // SAFETY: waits on its own word.
            let _ = unsafe { sys::syscall_raw(libc::SYS_futex, args) };
        }
    }
    let stack = Box::leak(vec![0u8; 64 << 10].into_boxed_slice());
    let top = stack.as_mut_ptr_range().end;
    let flags = libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM
        | extra_flags;
    let none = std::ptr::null_mut::<c_void>();
    let storage = allthreads::sigctx::probe::no_storage();
    // SAFETY: the stack is the thread's forever, and `body` needs nothing but it.
    let tid = unsafe { libc::clone(body, top.cast(), flags, none, none, storage, none) };
    assert!(tid > 0);
    tid
}

/// A pipe: the end to read and the end to write.
pub(crate) fn pipe() -> (fs::File, fs::File) {
    use std::os::fd::FromRawFd;
    let mut ends = [0; 2];
    // SAFETY: the array is as long as the call wants.
    let result = unsafe { libc::pipe(ends.as_mut_ptr()) };
    assert_eq!(result, 0);
    // SAFETY: just made, and owned by nothing else.
    ends.map(|fd| unsafe { fs::File::from_raw_fd(fd) }).into()
}

/// A thread in `read` on an empty pipe; returns what it read when the other end is written.
pub(crate) fn reader(mut end: fs::File, tid: &'static AtomicI32) -> thread::JoinHandle<u8> {
    thread::spawn(move || {
        tid.store(gettid(), Ordering::SeqCst);
        let mut byte = [0];
        // Not `read_exact`, which would hide an EINTR.
        assert_eq!(end.read(&mut byte).expect("not interrupted"), 1);
        byte[0]
    })
}

/// A limit on signals queued.
pub(crate) fn limit_queue(to: libc::rlim_t) {
    let limit = libc::rlimit { rlim_cur: to, rlim_max: to.max(1000) };
    // SAFETY: reads the limit.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_SIGPENDING, &raw const limit) };
    assert_eq!(result, 0);
}

/// Waits until a thread is in one of `states`.
pub(crate) fn await_state(tid: Tid, states: &str) {
    let start = Instant::now();
    while start.elapsed() < testkit::patience(Duration::from_secs(10)) {
        if status(tid, "State").is_some_and(|s| s.starts_with(|c| states.contains(c))) {
            return;
        }
        sleep(1);
    }
    panic!("thread {tid} never reached a state of {states}");
}
