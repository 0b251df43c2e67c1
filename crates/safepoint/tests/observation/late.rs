//! Each cause of a late mutator is brought about for real, and named rightly.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::common::{Flag, mutator};
use safepoint::{StopError, StopOptions, Straggler, StragglerCause, World};
use sigctx::sys;
use testkit::{in_child, is_asleep, patience, skip, until};
use threadreg::procfs::{SyscallNumber, TaskDir};

const SOON: Duration = Duration::from_secs(20);

/// The one straggler of a stop of `world`.
fn late(world: &World, timeout: Duration) -> Straggler {
    let options = StopOptions::new("test").timeout(timeout);
    let error = world.stop_from_outside_with(options).map(drop).unwrap_err();
    println!("{error}");
    let StopError::TimedOut { stragglers, .. } = error else { panic!("{error}") };
    let [straggler] = &stragglers[..] else { panic!("{stragglers:?}") };
    straggler.clone()
}

/// The straggler of a stop, once `is_ready` says so of the thread that does `work` outside of a safe region. `end`
/// has it come to an end.
fn while_it(
    work: impl FnOnce() + Send,
    is_ready: impl Fn(i32) -> bool,
    end: impl FnOnce(),
) -> Straggler {
    let world = World::new();
    let (tell, told) = mpsc::channel();
    thread::scope(|scope| {
        mutator(scope, &world, "late", move |_| {
            tell.send(sys::gettid()).expect("the test waits");
            work();
        });
        let tid = told.recv().expect("it runs");
        until("it is ready", || is_ready(tid));
        let straggler = late(&world, Duration::from_millis(30));
        end();
        assert_eq!((straggler.tid, straggler.name.as_str()), (tid, "late"));
        straggler
    })
}

/// An emulator has threads of the host's that are in other calls.
fn has_own_kernel() -> bool {
    let emulator = testkit::emulator();
    if let Some(emulator) = &emulator {
        skip(format!("/proc shows what {emulator} does"));
    }
    emulator.is_none()
}

#[test]
fn a_system_call_outside_of_a_safe_region_is_named() {
    in_child("late::a_system_call_outside_of_a_safe_region_is_named", SOON, || {
        if !has_own_kernel() {
            return;
        }
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let read = || assert_eq!(reader.read(&mut [0]).expect("reads"), 0);
        let straggler = while_it(read, is_asleep, || drop(writer));
        let call = SyscallNumber(libc::SYS_read);
        assert_eq!(straggler.cause, StragglerCause::InSyscall { call }, "{straggler}");
        assert_eq!(straggler.seen.expect("/proc is there").state, 'S');
        let number = libc::SYS_read;
        assert!(straggler.to_string().contains(&format!("read ({number})")), "{straggler}");
    });
}

fn state(tid: i32) -> char {
    threadreg::procfs::TaskDir::open().and_then(|tasks| tasks.stat(tid)).expect("alive").state
}

#[test]
fn a_sleep_that_no_signal_ends_is_told() {
    /// The stack of the child.
    #[repr(align(16))]
    struct Stack([u8; 16 << 10]);

    extern "C" fn child(pipe: *mut libc::c_void) -> libc::c_int {
        // It shares the parent's memory: no call that keeps anything there.
        let mut byte = 0_u8;
        let place = (&raw mut byte).expose_provenance();
        // SAFETY: the kernel writes one byte there.
        let read = unsafe { sys::syscall(libc::SYS_read, [pipe.addr(), place, 1, 0, 0, 0]) };
        i32::from(read.is_err())
    }

    in_child("late::a_sleep_that_no_signal_ends_is_told", SOON, || {
        if !has_own_kernel() {
            return;
        }
        let (reader, writer) = io::pipe().expect("a pipe");
        let (wait, stay) = (reader.as_raw_fd(), writer);
        let fork = move || {
            let mut stack = Box::new(Stack([0; _]));
            let top = stack.0.as_mut_ptr_range().end.cast();
            let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
            let argument = std::ptr::without_provenance_mut(wait as usize);
            // SAFETY: the parent waits, with the stack, until the child has ended.
            let pid = unsafe { libc::clone(child, top, flags, argument) };
            assert!(pid > 0, "{}", io::Error::last_os_error());
            // SAFETY: asks for no status.
            assert_eq!(unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) }, pid);
        };
        let end = || (&stay).write_all(&[0]).expect("the child reads");
        let straggler = while_it(fork, |tid| state(tid) == 'D', end);
        let StragglerCause::Uninterruptible { call: Some(call) } = straggler.cause else {
            panic!("{straggler}")
        };
        assert!(call.name().is_some_and(|name| name.starts_with("clone")), "{straggler}");
    });
}

/// `linux/userfaultfd.h`: a page that is asked for comes when the test says so.
#[test]
fn a_wait_for_a_page_is_told() {
    const USER_MODE_ONLY: usize = 1;
    const API: libc::c_ulong = 0xc018_aa3f;
    const REGISTER: libc::c_ulong = 0xc020_aa00;
    const ZEROPAGE: libc::c_ulong = 0xc020_aa04;
    const MODE_MISSING: u64 = 1;

    in_child("late::a_wait_for_a_page_is_told", SOON, || {
        if !has_own_kernel() {
            return;
        }
        let flags = libc::O_CLOEXEC as usize | USER_MODE_ONLY;
        // SAFETY: takes no pointers.
        let fd = match unsafe { sys::syscall(libc::SYS_userfaultfd, [flags, 0, 0, 0, 0, 0]) } {
            // SAFETY: just made.
            Ok(fd) => unsafe { OwnedFd::from_raw_fd(fd as i32) },
            Err(error) => return skip(format!("faults cannot be served: {error}")),
        };
        let control = |request: libc::c_ulong, argument: &mut [u64]| {
            // SAFETY: each request reads and writes a structure of as many words.
            let failed =
                unsafe { libc::ioctl(fd.as_raw_fd(), request as _, argument.as_mut_ptr()) };
            assert_eq!(failed, 0, "{request:#x}: {}", io::Error::last_os_error());
        };
        control(API, &mut [0xaa, 0, 0]);
        // SAFETY: takes no pointers.
        let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let (access, kind) = (libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), size, access, kind, -1, 0) };
        assert_ne!(page, libc::MAP_FAILED);
        let at = page.expose_provenance();
        control(REGISTER, &mut [at as u64, size as u64, MODE_MISSING, 0]);
        let touch = move || {
            let page = std::ptr::with_exposed_provenance::<u8>(at);
            // SAFETY: a byte of the mapping, which stays.
            assert_eq!(unsafe { page.read_volatile() }, 0);
        };
        let is_waiting = |tid| matches!(state(tid), 'S' | 'D');
        let end = || control(ZEROPAGE, &mut [at as u64, size as u64, 0, 0]);
        let straggler = while_it(touch, is_waiting, end);
        assert!(matches!(straggler.cause, StragglerCause::PageFault { .. }), "{straggler}");
    });
}

/// A process that traces one thread of this one. It lets go when this is dropped.
struct Tracer {
    pid: i32,
    heard: io::PipeReader,
    tell: Option<io::PipeWriter>,
}

impl Tracer {
    /// Runs `trace` in the tracer, which is to call `ready` once. None if it may not trace.
    fn start(
        tid: i32,
        trace: impl FnOnce(&dyn Fn(libc::c_uint, i32) -> libc::c_long, &dyn Fn()),
    ) -> Option<Self> {
        let ((mut heard, said), (told, tell), process) = (pipe(), pipe(), sys::getpid());
        // SAFETY: no pointers. It fails where every process may trace those of its user anyway.
        unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY) };
        // SAFETY: the child ends here; libc readies malloc for it.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "{}", io::Error::last_os_error());
        if pid == 0 {
            // Else the end of the parent would not be the end of what it says.
            drop((heard, tell));
            let ptrace = |request, data: i32| {
                let none = std::ptr::null_mut::<libc::c_void>();
                // SAFETY: none of the requests used touches memory of this process.
                unsafe { libc::ptrace(request as _, tid, none, libc::c_long::from(data)) }
            };
            let say = |word: u8| (&said).write_all(&[word]).expect("the parent listens");
            if ptrace(libc::PTRACE_SEIZE as _, 0) == 0 {
                trace(&ptrace, &|| say(b'r'));
                // Until the parent drops its end.
                let _ended = (&told).read(&mut [0]);
                // The tracer's end is the end of the trace. It would be stopped again if the process still were.
                sys::tgkill(process, process, libc::SIGCONT).expect("sent");
            } else {
                say(b'n');
            }
            // SAFETY: ends the child without its parent's exit handlers.
            unsafe { libc::_exit(0) };
        }
        drop(told);
        let mut word = [0];
        heard.read_exact(&mut word).expect("the tracer speaks");
        let tracer = Self { pid, heard, tell: Some(tell) };
        if word == *b"n" {
            skip("no right to trace");
            return None;
        }
        Some(tracer)
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        drop(self.tell.take());
        // The tracer's end, and with it that of the trace.
        let end = self.heard.read(&mut [0]);
        assert_eq!(end.expect("reads"), 0);
        // SAFETY: asks for no status.
        unsafe { libc::waitpid(self.pid, std::ptr::null_mut(), 0) };
    }
}

fn pipe() -> (io::PipeReader, io::PipeWriter) {
    io::pipe().expect("a pipe")
}

/// How the traced thread stopped: the upper half of the status is the event.
fn stop_of(tid: i32) -> i32 {
    let mut status = 0;
    // SAFETY: writes one int.
    let stopped = unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL) };
    assert!(stopped == tid && libc::WIFSTOPPED(status), "{stopped} {status:#x}");
    status
}

#[test]
fn a_mutator_that_a_debugger_holds_is_told() {
    in_child("late::a_mutator_that_a_debugger_holds_is_told", SOON, || {
        if !has_own_kernel() {
            return;
        }
        let (world, done) = (World::new(), Flag::default());
        thread::scope(|scope| {
            let spins = mutator(scope, &world, "traced", |_| {
                let tid = sys::gettid();
                done.wait();
                tid
            });
            let tid =
                world.stop_from_outside_with(StopOptions::new("test").timeout(Duration::ZERO));
            let Err(StopError::TimedOut { stragglers, .. }) = tid.map(drop) else { panic!("late") };
            let tid = stragglers[0].tid;
            let tracer = Tracer::start(tid, |ptrace, ready| {
                assert_eq!(ptrace(libc::PTRACE_INTERRUPT as _, 0), 0);
                stop_of(tid);
                ready();
            });
            if let Some(tracer) = tracer {
                let straggler = late(&world, Duration::from_millis(30));
                assert_eq!(straggler.cause, StragglerCause::Traced { by: tracer.pid });
            }
            done.raise();
            assert_eq!(spins.join().expect("no panic"), tid);
        });
    });
}

/// The whole process is stopped. A tracer lets the requester alone go on.
#[test]
fn a_mutator_that_a_signal_stopped_is_told() {
    const EVENT_STOP: i32 = 128;
    in_child("late::a_mutator_that_a_signal_stopped_is_told", SOON, || {
        if !has_own_kernel() {
            return;
        }
        let (world, done) = (World::new(), Flag::default());
        thread::scope(|scope| {
            let _spins = mutator(scope, &world, "stopped", |_| done.wait());
            let (process, me) = (sys::getpid(), sys::gettid());
            let tracer = Tracer::start(me, |ptrace, ready| {
                sys::tgkill(process, process, libc::SIGSTOP).expect("sent");
                loop {
                    let status = stop_of(me);
                    if status >> 16 == EVENT_STOP {
                        break;
                    }
                    // A signal that it is to get.
                    ptrace(libc::PTRACE_CONT as _, libc::WSTOPSIG(status));
                }
                ptrace(libc::PTRACE_CONT as _, 0);
                ready();
            });
            if let Some(tracer) = tracer {
                let straggler = late(&world, Duration::from_millis(30));
                assert_eq!(straggler.cause, StragglerCause::Stopped, "{straggler}");
                drop(tracer);
            }
            done.raise();
        });
    });
}

/// The freezer of cgroup v1 takes single threads.
#[test]
fn a_mutator_that_the_freezer_holds_is_told() {
    in_child("late::a_mutator_that_the_freezer_holds_is_told", SOON, || {
        if !has_own_kernel() {
            return;
        }
        let group = format!("/sys/fs/cgroup/freezer/late-{}", sys::getpid());
        if let Err(error) = fs::create_dir(&group) {
            return skip(format!("no freezer for single threads: {}", error.kind()));
        }
        let set = |file: &str, value: String| {
            fs::write(format!("{group}/{file}"), value).expect("a control group of its own");
        };
        let frozen = || fs::read_to_string(format!("{group}/freezer.state")).expect("reads");
        let done = Flag::default();
        let is_frozen = |tid: i32| {
            set("tasks", tid.to_string());
            set("freezer.state", "FROZEN".into());
            until("it is frozen", || frozen().trim() == "FROZEN");
            true
        };
        let end = || {
            set("freezer.state", "THAWED".into());
            done.raise();
        };
        let straggler = while_it(|| done.wait(), is_frozen, end);
        until("it has left the group", || fs::remove_dir(&group).is_ok());
        assert_eq!(straggler.cause, StragglerCause::Frozen, "{straggler}");
    });
}

/// One processor, and a thread on it that comes first.
#[test]
fn a_mutator_without_a_processor_is_told() {
    in_child("late::a_mutator_without_a_processor_is_told", SOON, || {
        if !has_own_kernel() {
            return;
        }
        let (world, done, count) = (World::new(), Flag::default(), AtomicUsize::new(0));
        let pin = |processor| {
            // SAFETY: an array of words.
            let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
            // SAFETY: the processor is one that the kernel has named.
            unsafe { libc::CPU_SET(processor, &mut set) };
            // SAFETY: the kernel reads the set.
            let failed = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
            assert_eq!(failed, 0, "{}", io::Error::last_os_error());
        };
        // SAFETY: no arguments.
        let processor = unsafe { libc::sched_getcpu() } as usize;
        thread::scope(|scope| {
            let _starves = mutator(scope, &world, "starves", |_| {
                // What it ran before it was watched is not to count.
                let (tasks, me) = (TaskDir::open().expect("/proc"), sys::gettid());
                let ran = || tasks.served(me).expect("it runs").map_or(Duration::MAX, |of| of.ran);
                while ran() < Duration::from_millis(100) {}
                // SAFETY: all fields may be 0.
                let none: libc::sched_param = unsafe { std::mem::zeroed() };
                // SAFETY: the kernel reads one structure.
                let idle =
                    unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const none) };
                assert_eq!(idle, 0, "{}", io::Error::last_os_error());
                pin(processor);
                while !done.is_up() {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
            scope.spawn(|| {
                pin(processor);
                while !done.is_up() {
                    std::hint::spin_loop();
                }
            });
            // It has less than a hundredth of what the other has, but that in one piece.
            let named = (0..20).map(|_| late(&world, patience(Duration::from_millis(60))));
            let named: Vec<_> = named.map(|straggler| straggler.cause).collect();
            done.raise();
            assert!(named.contains(&StragglerCause::Starved), "{named:?}");
        });
    });
}
