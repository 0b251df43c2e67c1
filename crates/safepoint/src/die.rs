//! Ending the process where to go on, or to unwind, would break what other threads rely on.

use core::fmt;
use std::io::{self, Write as _};

/// Says why, as far as standard error takes it, and aborts.
///
/// `eprintln!` panics when standard error is a broken pipe, and would unwind from where nothing may.
pub(crate) fn die(why: fmt::Arguments<'_>) -> ! {
    let _ = writeln!(io::stderr(), "safepoint: {why}");
    std::process::abort();
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::process::ExitStatusExt;
    use std::time::Duration;

    use testkit::child;

    use super::die;

    #[test]
    fn the_process_aborts_though_nothing_can_be_written() {
        let name = "die::tests::the_process_aborts_though_nothing_can_be_written";
        let ended = child(name, Duration::from_secs(20), || {
            let (reader, writer) = std::io::pipe().expect("room for a pipe");
            drop(reader);
            // SAFETY: two open descriptors. std ignores SIGPIPE, so that a write fails.
            let broken = unsafe { libc::dup2(writer.as_raw_fd(), libc::STDERR_FILENO) };
            assert_eq!(broken, libc::STDERR_FILENO);
            die(format_args!("into a broken pipe"));
        });
        if let Some(ended) = ended {
            assert_eq!(ended.status.signal(), Some(libc::SIGABRT), "{}", ended.output);
        }
    }
}
