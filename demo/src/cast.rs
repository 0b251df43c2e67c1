//! The threads of the demo: those that cooperate, those that never poll, those that block, and
//! those that are not registered.

use std::error::Error;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use preempt::{CodeRange, Task};
use safepoint::{AttachError, Mutator, World};
use sigctx::probe::{self, Difference, Patterned, Spin, Stop};
use sigctx::sys::{futex_wait, futex_wake};
use threadreg::{Builder, JoinHandle, ThreadRef};

use crate::failure::Slow;

/// Far above any answer that is to come at all.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// What all threads of the demo look at.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// The demo is over.
    over: AtomicBool,
    /// Mutators that poll rest, so that the CPUs are free for what is measured: 1 while so.
    resting: AtomicU32,
    /// Never woken but at the end.
    futex: AtomicU32,
    /// How often the patterned loop was interrupted, and all its registers overwritten.
    pub(crate) preemptions: AtomicUsize,
    /// How often its registers were compared with what they were.
    pub(crate) compared: AtomicUsize,
    /// Lets the patterned loop come out to be compared.
    come_out: Mutex<Option<Stop>>,
    /// Why a thread did not become a mutator.
    refused: Mutex<Option<AttachError>>,
}

impl Shared {
    /// Lets the patterned loop end its round, if it is in one.
    pub(crate) fn come_out(&self) {
        if let Some(stop) = *self.come_out.lock().unwrap_or_else(PoisonError::into_inner) {
            stop.stop();
        }
    }

    fn wait_for_the_end(&self) {
        while self.futex.load(SeqCst) == 0 {
            // Interrupted by a signal: waits again.
            _ = futex_wait(&self.futex, 0, None);
        }
    }
}

/// A thread of the demo that is registered.
pub(crate) struct Member {
    pub(crate) kind: &'static str,
    pub(crate) thread: JoinHandle<()>,
    /// Steps of work done; does not change while the world is stopped.
    pub(crate) work: Arc<AtomicUsize>,
}

pub(crate) struct Cast {
    pub(crate) world: World,
    pub(crate) shared: Arc<Shared>,
    pub(crate) members: Vec<Member>,
    /// Runs a loop that holds a pattern in every register.
    pub(crate) patterned: Task,
    /// Runs a plain Rust loop.
    pub(crate) spinning: Task,
    /// What the patterned loop found changed.
    pub(crate) differences: Arc<Mutex<Vec<Difference>>>,
    pool: rayon::ThreadPool,
    foreign: Vec<libc::pthread_t>,
    wake_readers: Option<OwnedFd>,
    _code: Vec<CodeRange>,
}

/// How many of each kind.
const POLLERS: usize = 3;
const POOL: usize = 2;
const FOREIGN: usize = 2;

/// Counts; never polls. Every instruction is a safe point.
#[unsafe(link_section = "preemptible")]
#[inline(never)]
fn spin_without_polls(shared: &Shared, work: &AtomicUsize) {
    while !shared.over.load(Relaxed) {
        work.store(work.load(Relaxed) + 1, Relaxed);
    }
}

impl Cast {
    /// Starts all threads, and returns when all are at work.
    pub(crate) fn start() -> Result<Self, Box<dyn Error>> {
        preempt::install()?;
        // SAFETY: the section holds `spin_without_polls` alone, which only counts.
        let section = unsafe { preempt::register_code(preempt::preemptible_section!()) }?;
        // SAFETY: the probe's loop calls nothing and runs on its thread's own stack.
        let loop_code = unsafe { preempt::register_code(Patterned::code()) }?;

        let world = World::new();
        // SAFETY: the mutators keep no references into a heap; there is none.
        unsafe { world.set_nudge(Arc::new(preempt::Nudger)) };
        let shared = Arc::new(Shared::default());
        let (reader, writer) = std::io::pipe()?;
        let clobber = shared.clone();
        let mut cast = Self {
            world,
            patterned: Task::with_hook(move |frame| {
                if frame.is_some() {
                    probe::clobber_all();
                    clobber.preemptions.fetch_add(1, SeqCst);
                    clobber.come_out();
                }
            }),
            spinning: Task::new(),
            differences: Arc::default(),
            members: Vec::new(),
            pool: rayon::ThreadPoolBuilder::new()
                .num_threads(POOL)
                .thread_name(|i| format!("pool-{i}"))
                .build()?,
            foreign: (0..FOREIGN).map(|_| foreign_thread(&shared)).collect::<Result<_, _>>()?,
            wake_readers: Some(writer.into()),
            _code: vec![section, loop_code],
            shared,
        };
        cast.mutators(reader.into())?;
        let shared = cast.shared.clone();
        cast.pool.spawn_broadcast(move |_| {
            while !shared.over.load(Relaxed) {
                std::hint::black_box((0..10_000_u64).fold(0, u64::wrapping_add));
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        cast.wait_until_all_work()?;
        Ok(cast)
    }

    fn mutators(&mut self, pipe: OwnedFd) -> Result<(), Box<dyn Error>> {
        for _ in 0..POLLERS {
            self.mutator("polls, and waits now and then", "poller", |shared, mut me, work| {
                while !shared.over.load(Relaxed) {
                    for _ in 0..10_000 {
                        work.fetch_add(1, Relaxed);
                        me.poll();
                    }
                    // As long as the word is 0: a moment. Woken, interrupted or changed: in each
                    // case the loop looks again.
                    let moment = Some(Duration::from_micros(200));
                    me.blocking(|| _ = futex_wait(&shared.resting, 0, moment));
                    while shared.resting.load(Relaxed) == 1 {
                        me.blocking(|| _ = futex_wait(&shared.resting, 1, None));
                    }
                }
            })?;
        }
        let spinning = self.spinning.clone();
        self.mutator("never polls", "spinner", move |shared, _me, work| {
            spinning.enter(|| spin_without_polls(shared, work)).expect("not inside a task");
        })?;
        let (task, differences) = (self.patterned.clone(), self.differences.clone());
        self.mutator(
            "never polls, all registers in use",
            "patterned",
            move |shared, _me, work| {
                let mut patterned = Patterned::new();
                let stack = patterned.shared_call_stack();
                // SAFETY: taken back below, before the loop's table goes.
                let stop = unsafe { patterned.stopper() };
                *shared.come_out.lock().unwrap_or_else(PoisonError::into_inner) = Some(stop);
                let mut random = Random(1);
                while !shared.over.load(SeqCst) {
                    let run = || patterned.run(|| random.next(), Spin::UntilStopped, || ());
                    let found = task.enter_on(&stack, run).expect("not inside a task");
                    differences.lock().unwrap_or_else(PoisonError::into_inner).extend(found);
                    work.fetch_add(1, Relaxed);
                    shared.compared.fetch_add(1, SeqCst);
                }
                *shared.come_out.lock().unwrap_or_else(PoisonError::into_inner) = None;
            },
        )?;
        self.mutator("blocked in read(2)", "reader", move |_, mut me, work| {
            work.fetch_add(1, Relaxed);
            let mut byte = [0_u8];
            // SAFETY: one byte, from a pipe that this closure owns.
            let read = || unsafe { libc::read(pipe.as_raw_fd(), byte.as_mut_ptr().cast(), 1) };
            // 0: the other end was closed, at the end. A read that a signal broke off fails here.
            assert_eq!(me.blocking(read), 0, "{}", std::io::Error::last_os_error());
        })?;
        self.mutator("blocked in a futex", "waiter", |shared, mut me, work| {
            work.fetch_add(1, Relaxed);
            me.blocking(|| shared.wait_for_the_end());
        })?;
        Ok(())
    }

    fn mutator(
        &mut self,
        kind: &'static str,
        name: &str,
        body: impl FnOnce(&Shared, Mutator, &AtomicUsize) + Send + 'static,
    ) -> Result<(), Box<dyn Error>> {
        let (world, shared, work) = (self.world.clone(), self.shared.clone(), Arc::default());
        let counter = Arc::clone(&work);
        let thread = Builder::new().name(format!("{name}-{}", self.members.len())).spawn(
            move || match world.attach() {
                Ok(mutator) => body(&shared, mutator, &counter),
                Err(error) => {
                    *shared.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                }
            },
        )?;
        self.members.push(Member { kind, thread, work });
        Ok(())
    }

    fn wait_until_all_work(&self) -> Result<(), Box<dyn Error>> {
        for member in &self.members {
            self.wait_for_work(member, 0, || std::thread::sleep(Duration::from_millis(1)))?;
        }
        Ok(())
    }

    /// Waits until the member's work is not `before` any more.
    fn wait_for_work(
        &self,
        member: &Member,
        before: usize,
        pause: impl Fn(),
    ) -> Result<(), Box<dyn Error>> {
        let start = Instant::now();
        while member.work.load(Relaxed) == before {
            if let Some(error) =
                self.shared.refused.lock().unwrap_or_else(PoisonError::into_inner).take()
            {
                return Err(error.into());
            }
            let waited = start.elapsed();
            if waited > PATIENCE || member.thread.is_finished() {
                let thread = member.thread.thread().name().to_string();
                return Err(Slow { thread, waited }.into());
            }
            // The patterned loop counts what it compared.
            self.shared.come_out();
            pause();
        }
        Ok(())
    }

    /// Lets the mutators that poll rest, or work again.
    pub(crate) fn rest(&self, rest: bool) {
        self.shared.resting.store(u32::from(rest), SeqCst);
        futex_wake(&self.shared.resting, u32::MAX >> 1);
    }

    /// The kind of a registered thread.
    pub(crate) fn kind(&self, thread: ThreadRef) -> &'static str {
        let member = self.members.iter().find(|member| member.thread.thread() == thread);
        member.map_or("this one", |member| member.kind)
    }

    /// Waits until the member does some work, unless it is one that only blocks.
    pub(crate) fn wait_until_works(&self, member: &Member) -> Result<(), Box<dyn Error>> {
        if member.kind.starts_with("blocked") {
            return Ok(());
        }
        self.wait_for_work(member, member.work.load(Relaxed), std::thread::yield_now)
    }

    /// The work done by each member.
    pub(crate) fn work(&self) -> Vec<usize> {
        self.members.iter().map(|member| member.work.load(SeqCst)).collect()
    }

    /// Ends all threads.
    pub(crate) fn end(mut self) -> Result<(), Box<dyn Error>> {
        self.shared.over.store(true, SeqCst);
        self.rest(false);
        self.shared.futex.store(1, SeqCst);
        futex_wake(&self.shared.futex, u32::MAX >> 1);
        self.wake_readers = None;
        for member in self.members.drain(..) {
            while !member.thread.is_finished() {
                self.shared.come_out();
                std::thread::yield_now();
            }
            member.thread.join().map_err(|_| "a thread of the demo panicked")?;
        }
        for &thread in &self.foreign {
            // SAFETY: made by `foreign_thread`, neither joined nor detached since.
            let joined = unsafe { libc::pthread_join(thread, std::ptr::null_mut()) };
            assert_eq!(joined, 0);
        }
        Ok(())
    }
}

/// A thread as a C library makes them: not registered.
fn foreign_thread(shared: &Arc<Shared>) -> std::io::Result<libc::pthread_t> {
    extern "C" fn sleep_on(shared: *mut libc::c_void) -> *mut libc::c_void {
        // SAFETY: a NUL-terminated name, for the calling thread.
        unsafe { libc::prctl(libc::PR_SET_NAME, c"foreign".as_ptr()) };
        // SAFETY: `Arc::into_raw` of a `Shared`, given to this thread alone.
        unsafe { Arc::from_raw(shared.cast_const().cast::<Shared>()) }.wait_for_the_end();
        std::ptr::null_mut()
    }
    let mut thread = 0;
    let shared = Arc::into_raw(shared.clone()).cast_mut().cast();
    // SAFETY: a valid place for the handle, default attributes, a function of the right type.
    let made = unsafe { libc::pthread_create(&raw mut thread, std::ptr::null(), sleep_on, shared) };
    if made == 0 { Ok(thread) } else { Err(std::io::Error::from_raw_os_error(made)) }
}

/// Patterns that a run can be repeated with (xorshift64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}
