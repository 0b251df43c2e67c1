#![doc = include_str!("../README.md")]
//!
//! # Map of the modules
//!
//! `docs/ARCHITECTURE.md` in the repository traces a stop through these files, and has the words of all crates.
//!
//! Each line uses the ones below it only.
//!
//! | module | what is in it |
//! |---|---|
//! | `handshake` | handshakes as users make them |
//! | `moved` | [`SafeMutator`]: from one thread to another |
//! | `processors` | [`Processors`]: mutators that are no thread's own, which threads acquire and pass on |
//! | `per_mutator`, `table` | [`PerMutator`]: what a runtime has for each mutator, typed |
//! | `many` | several worlds in one stop |
//! | `par` | [`ParMutators`]: the mutators of a stop, shared out |
//! | `nested` | [`NestedStop`]: stops within a stop |
//! | `on_all` | [`Stopped::run_on_all`]: stopped threads help |
//! | `turns` | stops that are tried, or join another thread's |
//! | `visits` | [`StopVisitor`]: who is stopped, while others are waited for |
//! | `stop`, `for_each` | the two other requests; [`Stopped`], [`Processor`] |
//! | `jit` | bits of the runtime's in the poll word, the stack watermark, [`sync_core`] |
//! | `handed` | values that one thread leaves and another takes, forks included |
//! | `handle` | a stop that succeeded, and [`StopHandle`] |
//! | `reenter` | [`Region`]: safe regions that are left for a while |
//! | `mutator` | [`Mutator`]: attaching, polls, safe regions |
//! | `raw`, `region` | [`RawMutator`]; the end of a region where something is pending |
//! | `asking` | a stop that is asked for: what is noted of it |
//! | `stress` | stops at polls, in worlds for tests |
//! | `mutex` | [`Mutex`], whose waiters can be stopped |
//! | `no_safepoint`, `forbidden` | [`NoSafepoint`]: code without safe points |
//! | `trace` | spans and events of `tracing` (feature `tracing`) |
//! | `world`, `pace` | [`World`], [`WorldOptions`]; how long a requester waits, and when it nudges |
//! | `picture`, `chrome` | a `Timeline` as SVG and as JSON |
//! | `recording`, `timeline` | what mutators and requests did, sampled and put in order (feature `timeline`) |
//! | `gaps` | [`World::sample_poll_gaps`]: which code polls rarely |
//! | `background` | a thread that looks at a world again and again |
//! | `roots` | where a mutator stands, and what a conservative scanner reads of it: [`Parked`], [`Hooks`] |
//! | `same` | whether a mutator is the one that it was |
//! | `forks` | what the child of a fork does with the worlds |
//! | `system` | Linux: fences, waiting, memory, and which thread has a slot |
//! | `tape` | where requesters write what they did, while a recording is on |
//! | `stops` | how many stops are over, and waiting for the next |
//! | `chaos` | [`Chaos`]: worlds for tests |
//! | `metrics` | what stops cost: counts and histograms |
//! | `error`, `options` | what can go wrong; timeouts |
//! | `id` | [`MutatorId`] |
//! | `straggler` | which threads were in the way, and why |
//! | `bound` | how long a thread waits to become a mutator |
//! | `protocol` | the protocol, without system calls: `stop` and `each` are the requester's side, `target` is the target's, `handshake` and `help` have both |
//! | `current` | which stop is asked for, or under way |
//! | `retake`, `waiters` | which thread has a processor; threads that wait for one |
//! | `symbol` | names for addresses |
//! | `abort` | the end of the process where no error can be returned |
//!
//! A stop goes through `stop`, `pace`, `protocol::turn`, `protocol::stop`, `protocol::slot` and
//! `system`; its targets come from `mutator` by `protocol::target`.

// Under loom only the protocol is built: the rest makes system calls and real threads.
#![cfg_attr(
    loom,
    expect(
        dead_code,
        unreachable_pub,
        reason = "parts of the protocol serve only what is not built"
    )
)]

// Under loom `sigctx` has what models are made of only.
#[cfg(not(loom))]
pub use sigctx::{Unsupported, supported};

cfg_if::cfg_if! {
    if #[cfg(target_os = "linux")] {
        mod current;
        mod protocol;
        mod retake;
        mod waiters;
    }
}

cfg_if::cfg_if! {
    if #[cfg(all(target_os = "linux", not(loom)))] {
        mod abort;
        mod asking;
        mod background;
        mod bound;
        #[cfg(feature = "timeline")]
        mod chrome;
        mod chaos;
        mod error;
        mod forbidden;
        mod for_each;
        mod forks;
        mod gaps;
        mod handed;
        mod handle;
        mod handshake;
        mod id;
        mod jit;
        mod many;
        mod metrics;
        mod moved;
        mod mutator;
        mod mutex;
        mod nested;
        mod no_safepoint;
        mod on_all;
        mod options;
        mod pace;
        mod par;
        mod per_mutator;
        mod processors;
        #[cfg(feature = "timeline")]
        mod picture;
        mod raw;
        #[cfg(feature = "timeline")]
        mod recording;
        mod reenter;
        mod region;
        mod roots;
        mod same;
        mod stop;
        mod straggler;
        mod stress;
        mod symbol;
        mod stops;
        mod system;
        mod table;
        mod tape;
        #[cfg(feature = "timeline")]
        mod timeline;
        mod trace;
        mod turns;
        mod visits;
        mod world;

        pub use chaos::Chaos;
        pub use error::{AttachError, EachError, HandshakeError, StopError};
        pub use for_each::Processor;
        pub use gaps::{LongestGap, MutatorGaps, PollGapOptions, PollGapSampler, PollGaps};
        pub use handshake::Answer;
        pub use handle::{LastToStop, StopHandle, StopStats, StoppedMutator};
        pub use id::MutatorId;
        pub use jit::{NoSyncCore, sync_core};
        pub use many::{StopManyError, StoppedMany};
        pub use metrics::{Histogram, Metrics, Pause, ReasonMetrics};
        pub use moved::SafeMutator;
        pub use mutator::Mutator;
        pub use mutex::{LockError, Mutex, MutexGuard};
        pub use nested::NestedStop;
        pub use no_safepoint::{NoSafepoint, RawNoSafepoint};
        pub use options::{
            AtDeadline, EachOptions, HandshakeOptions, OnLate, Reason, RunOptions, StopOptions,
        };
        pub use par::ParMutators;
        pub use per_mutator::{InStop, PerMutator};
        pub use processors::{
            AcquireError, PassedProcessor, ProcessorGuard, ProcessorId, ProcessorState, Processors,
        };
        pub use protocol::MutatorState;
        pub use raw::RawMutator;
        #[cfg(feature = "timeline")]
        pub use recording::{RecordError, Recording, RecordingOptions};
        pub use reenter::Region;
        pub use roots::{Hooks, Parked, Place, RootKind, RootRange, RootsError};
        pub use stop::Stopped;
        pub use stops::{CurrentStop, StopEpoch};
        pub use straggler::{KernelView, Straggler, StragglerCause};
        pub use system::Fences;
        #[cfg(feature = "timeline")]
        pub use timeline::{
            Activity, ForEachSpan, HandshakeSpan, MutatorTrack, NudgeMark, Span, StopSpan, Timeline,
        };
        pub use turns::StopOrJoined;
        pub use visits::StopVisitor;
        pub use world::{World, WorldOptions};
    }
}
