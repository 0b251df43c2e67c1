//! The end of the process, where no error can be returned.

use core::fmt;
use std::io::{self, Write as _};
use std::thread;
use std::time::Duration;

use sigctx::sys::{self, Tid};

/// The same on every architecture.
const SIGABRT: i32 = 6;
/// How long the culprit has to die, and to write a report before.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Writes why to standard error, if it can, and aborts the process: where to go on, or to unwind, would break
/// what other threads rely on.
///
/// `eprintln!` panics when standard error is a broken pipe, and would unwind.
pub(crate) fn abort_with(why: fmt::Arguments<'_>) -> ! {
    let _ = writeln!(io::stderr(), "safepoint: {why}");
    std::process::abort();
}

/// [`abort_with`], by a signal to the thread that is to blame, so that what is looked at is its stack. HotSpot
/// does that (`SafepointSynchronize::print_safepoint_timeout`).
pub(crate) fn abort_in(culprit: Option<Tid>, why: fmt::Arguments<'_>) -> ! {
    let _ = writeln!(io::stderr(), "safepoint: {why}");
    if culprit.is_some_and(|tid| sys::tgkill(sys::getpid(), tid, SIGABRT).is_ok()) {
        // By default the signal ends the process before this does.
        thread::sleep(LAST_WORDS);
    }
    std::process::abort();
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::process::ExitStatusExt;
    use std::time::Duration;

    use testkit::child;

    use super::abort_with;

    #[test]
    fn the_process_aborts_though_nothing_can_be_written() {
        let name = "abort::tests::the_process_aborts_though_nothing_can_be_written";
        let ended = child(name, Duration::from_secs(20), || {
            let (reader, writer) = std::io::pipe().expect("room for a pipe");
            drop(reader);
            // SAFETY: two open descriptors. std ignores SIGPIPE, so that a write fails.
            let broken = unsafe { libc::dup2(writer.as_raw_fd(), libc::STDERR_FILENO) };
            assert_eq!(broken, libc::STDERR_FILENO);
            abort_with(format_args!("into a broken pipe"));
        });
        if let Some(ended) = ended {
            assert_eq!(ended.status.signal(), Some(libc::SIGABRT), "{}", ended.output);
        }
    }
}
