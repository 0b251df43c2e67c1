//! Ends a process whose threads differ in what had to be the same on all of them.
//!
//! Not by `abort`, which runs handlers and takes locks that held threads may have. All other threads may be
//! held here, so nothing may wait for another thread, not even the line that says why: a held thread may
//! be the one that reads the pipe.

use core::fmt::{self, Write};

use sigctx::sys;

/// What a shell reports of a process that `SIGKILL` ended.
const KILLED: usize = 128 + libc::SIGKILL as usize;

/// A line of fixed size; what does not fit is cut off.
struct Line {
    text: [u8; 512],
    len: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.text.get_mut(self.len..).unwrap_or_default();
        let fits = room.len().min(text.len());
        for (to, from) in room.iter_mut().zip(text.bytes()) {
            *to = from;
        }
        self.len += fits;
        Ok(())
    }
}

/// Ends the process, with a line on standard error if that takes one at once.
pub(crate) fn die(pid: i32, why: &dyn fmt::Display) -> ! {
    let mut line = Line { text: [0; _], len: 0 };
    // `Line` takes everything.
    let _ = writeln!(line, "allthreads: {why}");
    say(&line);
    // `exit_group` is next if it fails.
    let _ = sys::kill(pid, libc::SIGKILL);
    loop {
        // Still here: the kernel keeps the first process of a pid namespace from killing itself.
        // SAFETY: ends the process.
        let _ = unsafe { sys::syscall_raw(libc::SYS_exit_group, [KILLED, 0, 0, 0, 0, 0]) };
    }
}

fn say(line: &Line) {
    let mut stderr = libc::pollfd { fd: libc::STDERR_FILENO, events: libc::POLLOUT, revents: 0 };
    // Long enough for either layout of the time; zero in both.
    let now = [0u64; 2];
    let args = [&raw mut stderr as usize, 1, &raw const now as usize, 0, 0, 0];
    // SAFETY: the descriptor's entry and the time live during the call.
    let ready = unsafe { sys::syscall(libc::SYS_ppoll, args) };
    if ready == Ok(1) && stderr.revents & libc::POLLOUT != 0 {
        let args = [libc::STDERR_FILENO as usize, line.text.as_ptr() as usize, line.len, 0, 0, 0];
        // If it fails, there is no other place to say so. A pipe that is ready takes this much at once.
        // SAFETY: the text lives during the call.
        let _ = unsafe { sys::syscall(libc::SYS_write, args) };
    }
}
