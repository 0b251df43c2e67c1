//! Clean threads: they inherit nothing that their creator changed for itself.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use sigctx::sys::{self, MaskHow, SigSet};
use testkit::{budget, forked, in_child};
use threadreg::procfs::TaskDir;
use threadreg::{Builder, CleanError, freeze_creation, start_template, threads};

const MINUTE: Duration = Duration::from_mins(1);

/// What a thread inherits and can change for itself alone.
#[derive(Debug, PartialEq, Eq)]
struct State {
    directory: PathBuf,
    mask: SigSet,
    policy: i32,
    capabilities: u64,
    network: Option<PathBuf>,
}

impl State {
    fn here() -> Self {
        let status = TaskDir::open().and_then(|dir| dir.status(sys::gettid())).expect("/proc");
        Self {
            directory: env::current_dir().expect("there is one"),
            mask: sys::sigprocmask(MaskHow::Block, &SigSet::empty()),
            // SAFETY: touches no memory.
            policy: unsafe { libc::sched_getscheduler(0) },
            capabilities: status.effective_capabilities,
            network: fs::read_link("/proc/thread-self/ns/net").ok(),
        }
    }
}

/// Changes what the calling thread may; returns what it could not.
fn alter() -> Vec<&'static str> {
    let mut refused = Vec::new();
    // SAFETY: the thread gets its own working directory.
    if unsafe { libc::unshare(libc::CLONE_FS) } == 0 {
        env::set_current_dir("/").expect("there is a root");
    } else {
        refused.push("directory");
    }
    // SAFETY: the thread gets a network without interfaces.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        refused.push("network");
    }
    sys::sigprocmask(MaskHow::Block, &SigSet::of(libc::SIGURG));
    // SAFETY: integers.
    let parameters: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: reads one `sched_param`.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const parameters) } != 0 {
        refused.push("policy");
    }
    // `struct __user_cap_header_struct`, version 3, of this thread; no capability in two words of
    // each of three sets.
    let (header, none) = ([0x2008_0522_u32, 0], [0_u32; 6]);
    let args = [&raw const header as usize, &raw const none as usize, 0, 0, 0, 0];
    // SAFETY: the kernel reads both.
    if unsafe { sys::syscall(libc::SYS_capset, args) }.is_err() {
        refused.push("capabilities");
    }
    refused
}

/// T4. A clean thread is made by the template, which no thread has altered.
#[test]
fn a_clean_thread_inherits_nothing_of_its_creator() {
    in_child("a_clean_thread_inherits_nothing_of_its_creator", MINUTE, || {
        let template = start_template().expect("starts");
        assert_eq!(start_template().expect("is there"), template);
        let clean = State::here();
        let all = thread::spawn(|| {
            let refused = alter();
            let own = State::here();
            let plain = threadreg::spawn(State::here).join().expect("no panic");
            assert_eq!(plain, own, "the control: an ordinary thread inherits");
            let builder = Builder::new().name("clean").signal_mask(SigSet::of(libc::SIGUSR2));
            let masked = builder.spawn_clean(|| {
                assert!(threadreg::current().is_some_and(|me| me.name().as_str() == "clean"));
                State::here()
            });
            let masked = masked.expect("spawns");
            let other = Builder::new().spawn_clean(State::here).expect("spawns");
            let masked = masked.join().expect("no panic").mask;
            (refused, own, other.join().expect("no panic"), masked)
        });
        let (refused, altered, found, masked) = all.join().expect("no panic");
        assert_eq!(found, clean, "with a creator that is {altered:?}");
        assert_eq!(masked, SigSet::of(libc::SIGUSR2), "what was asked for is there all the same");
        assert_ne!(altered.mask, clean.mask);
        let same = [
            ("directory", altered.directory == clean.directory),
            ("network", altered.network == clean.network),
            ("policy", altered.policy == clean.policy),
            // Without privileges there were none to give up.
            ("capabilities", altered.capabilities == clean.capabilities && clean.capabilities != 0),
        ];
        for (what, same) in same {
            assert!(!same || refused.contains(&what), "{what} was to be altered");
        }
        println!("could not alter: {refused:?}");
    });
}

/// T4. The child of a fork has no template either.
#[test]
fn without_a_template_there_is_no_clean_thread() {
    in_child("without_a_template_there_is_no_clean_thread", MINUTE / 3, || {
        let error = Builder::new().spawn_clean(|| ()).expect_err("not started");
        assert!(matches!(error, CleanError::NoTemplate), "{error}");
        assert!(error.to_string().contains("start_template"));
        start_template().expect("starts");
        Builder::new().spawn_clean(|| ()).expect("spawns").join().expect("no panic");
        let error = Builder::new().name("zero\0byte").spawn_clean(|| ()).expect_err("refused");
        assert!(matches!(error, CleanError::Refused(_)), "{error}");
        Builder::new().spawn_clean(|| ()).expect("spawns").join().expect("no panic");

        // An emulator makes its own threads for the guest's, and one of its locks may be held in
        // the child of a fork (QEMU 10.0): there, no thread is made in it.
        let may_spawn = testkit::emulator().is_none();
        let status = forked(|| {
            let error = Builder::new().spawn_clean(|| ()).expect_err("not the child's");
            assert!(matches!(error, CleanError::NoTemplate), "{error}");
            if may_spawn {
                start_template().expect("its own");
                Builder::new().spawn_clean(|| ()).expect("spawns");
            }
        });
        assert_eq!(status, 0, "in the child of fork");
    });
}

/// T4. Go issue 38931: a template that can be asked before its thread exists.
#[test]
fn stress_the_template_starts_once_amid_freezes() {
    in_child("stress_the_template_starts_once_amid_freezes", MINUTE, || {
        static STOP: AtomicBool = AtomicBool::new(false);
        let freezes = thread::spawn(|| {
            let mut count = 0;
            while !STOP.load(SeqCst) {
                drop(freeze_creation());
                // Pace: creators are to have their turn.
                thread::yield_now();
                count += 1;
            }
            count
        });
        let askers: Vec<_> = (0..4)
            .map(|_| {
                thread::spawn(|| {
                    let template = start_template().expect("starts");
                    for n in 0..budget(200) {
                        let made = Builder::new().spawn_clean(move || n).expect("spawns");
                        assert_eq!(made.join().expect("no panic"), n);
                    }
                    template
                })
            })
            .collect();
        let templates: Vec<_> = askers.into_iter().map(|a| a.join().expect("no panic")).collect();
        assert!(templates.windows(2).all(|two| two[0] == two[1]), "{templates:?}");
        STOP.store(true, SeqCst);
        println!("{} freezes", freezes.join().expect("no panic"));
        // Those that came second have ended.
        while threads().count() != 1 {
            thread::yield_now();
        }
        assert_eq!(threads().next(), Some(templates[0]));
    });
}
