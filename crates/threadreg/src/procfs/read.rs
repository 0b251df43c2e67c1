//! Raw reading: descriptors, directory entries, lines, numbers. No allocation, no libc call, no
//! errno.

use core::ffi::{CStr, c_int, c_long};
use core::mem::{MaybeUninit, offset_of};

use sigctx::sys::{self, Errno, SigSet};

/// The kernel's `struct statx` as far as it is used here (`include/uapi/linux/stat.h`). libc has it
/// for some C libraries only, for musl since 1.2.3.
#[repr(C)]
struct Statx {
    _mask: u32,
    _block_size: u32,
    _attributes: u64,
    links: u32,
    _owner_and_mode: [u32; 3],
    inode: [u32; 2],
    _sizes_and_times: [u32; 24],
    device: [u32; 2],
    _rest: [u32; 28],
}

const _: () = assert!(size_of::<Statx>() == 256, "as the kernel has it");
const _: () = assert!(offset_of!(Statx, links) == 16, "as the kernel has it");
const _: () = assert!(offset_of!(Statx, inode) == 32, "as the kernel has it");
const _: () = assert!(offset_of!(Statx, device) == 136, "as the kernel has it");

/// Asks for the number of links, and for that of the inode; the device is always told.
const STATX_NLINK: usize = 4;
const STATX_INO: usize = 0x100;

/// A file descriptor, closed when dropped.
#[derive(Debug)]
pub(super) struct Fd(c_int);

impl Fd {
    pub(super) fn open(dir: c_int, path: &CStr, flags: c_int) -> Result<Self, Errno> {
        let flags = flags | libc::O_RDONLY | libc::O_CLOEXEC;
        let path = path.as_ptr().expose_provenance();
        // SAFETY: `path` is a C string that outlives the call.
        let fd = unsafe { call(libc::SYS_openat, [dir as usize, path, flags as usize, 0]) }?;
        Ok(Self(fd as c_int))
    }

    pub(super) fn raw(&self) -> c_int {
        self.0
    }

    /// The number of links, of a directory the number of its directories.
    pub(super) fn links(&self) -> Result<usize, Errno> {
        Ok(self.stat(STATX_NLINK)?.links as usize)
    }

    /// Which file it is: device and inode.
    pub(super) fn identity(&self) -> Result<[u32; 4], Errno> {
        let Statx { device: [major, minor], inode: [first, second], .. } = self.stat(STATX_INO)?;
        Ok([major, minor, first, second])
    }

    fn stat(&self, what: usize) -> Result<Statx, Errno> {
        // `statx`, since the layout of `struct stat` depends on the architecture and its own does
        // not.
        let mut stat = Statx {
            _mask: 0,
            _block_size: 0,
            _attributes: 0,
            links: 0,
            _owner_and_mode: [0; _],
            inode: [0; _],
            _sizes_and_times: [0; _],
            device: [0; _],
            _rest: [0; _],
        };
        let place = (&raw mut stat).expose_provenance();
        let empty = c"".as_ptr().expose_provenance();
        let args = [self.0 as usize, empty, libc::AT_EMPTY_PATH as usize, what, place, 0];
        // SAFETY: the kernel writes one `struct statx` to `place`, and reads the empty path.
        unsafe { sys::syscall(libc::SYS_statx, args) }?;
        Ok(stat)
    }

    /// Back to the first directory entry.
    pub(super) fn rewind(&self) -> Result<(), Errno> {
        // SAFETY: touches no memory.
        unsafe { call(libc::SYS_lseek, [self.0 as usize, 0, libc::SEEK_SET as usize, 0]) }?;
        Ok(())
    }

    /// The next directory entries, as the kernel lays them out; empty at the end.
    pub(super) fn entries<'b>(&self, buffer: &'b mut [u8]) -> Result<&'b [u8], Errno> {
        let place = buffer.as_mut_ptr().expose_provenance();
        let args = [self.0 as usize, place, buffer.len(), 0];
        // SAFETY: the kernel writes at most `buffer.len()` bytes to `buffer`.
        let used = unsafe { call(libc::SYS_getdents64, args) }?;
        Ok(buffer.get(..used).unwrap_or_default())
    }

    /// Reads once, into `buffer`.
    fn read<'b>(&self, buffer: &'b mut [MaybeUninit<u8>]) -> Result<&'b [u8], Errno> {
        let place = buffer.as_mut_ptr().expose_provenance();
        let args = [self.0 as usize, place, buffer.len(), 0];
        // SAFETY: the kernel writes at most `buffer.len()` bytes to `buffer`.
        let used = unsafe { call(libc::SYS_read, args) }?;
        let used = buffer.get(..used).unwrap_or_default();
        // SAFETY: the kernel wrote these bytes.
        Ok(unsafe { used.assume_init_ref() })
    }

    /// Reads to the end of the file or of `buffer`.
    pub(super) fn read_all<'b>(
        &self,
        buffer: &'b mut [MaybeUninit<u8>],
    ) -> Result<&'b [u8], Errno> {
        let mut used = 0;
        while let Some(rest) = buffer.get_mut(used..).filter(|rest| !rest.is_empty()) {
            match self.read(rest)?.len() {
                0 => break,
                more => used += more,
            }
        }
        let used = buffer.get(..used).unwrap_or_default();
        // SAFETY: each of these bytes was written by one of the reads.
        Ok(unsafe { used.assume_init_ref() })
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        // Closed once, also after EINTR: Linux has freed the number by then, and it may be another
        // file's. An error cannot be handled.
        // SAFETY: the descriptor is this value's own.
        let _ = unsafe { sys::syscall(libc::SYS_close, [self.0 as usize, 0, 0, 0, 0, 0]) };
    }
}

/// Makes the call again until no signal interrupts it.
///
/// # Safety
///
/// As for [`sys::syscall`]: the arguments must be sound for the call.
unsafe fn call(nr: c_long, [a, b, c, d]: [usize; 4]) -> Result<usize, Errno> {
    loop {
        // SAFETY: the caller's obligation.
        match unsafe { sys::syscall(nr, [a, b, c, d, 0, 0]) } {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

/// `<tid>/<file>`, relative to the directory of threads.
pub(super) struct TaskPath([u8; 24]);

impl TaskPath {
    pub(super) fn new(tid: i32, file: &[u8]) -> Self {
        let mut digits = [0; 10];
        let mut rest = tid.unsigned_abs();
        let mut count = 0;
        for digit in &mut digits {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
            count += 1;
            if rest == 0 {
                break;
            }
        }
        let digits = digits.iter().take(count).rev();
        let mut path = [0; 24];
        // One byte is left for the end of the string: 10 digits, the slash and at most 12 more.
        for (to, from) in path.iter_mut().take(23).zip(digits.chain(b"/").chain(file)) {
            *to = *from;
        }
        Self(path)
    }

    pub(super) fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or_default()
    }
}

/// Calls `visit` with the name of each entry that is a number. The layout is that of
/// `struct linux_dirent64`: inode 8 bytes, offset 8, length of the entry 2, type 1, name.
pub(super) fn for_each_number(mut entries: &[u8], visit: &mut impl FnMut(i32)) {
    while let Some(&[low, high]) = entries.get(16..18) {
        let length = usize::from(u16::from_ne_bytes([low, high]));
        let Some((entry, rest)) = entries.split_at_checked(length.max(19)) else { return };
        let name = entry.get(19..).and_then(|n| n.split(|&b| b == 0).next()).unwrap_or_default();
        if let Some(tid) = number(name).and_then(|tid| i32::try_from(tid).ok()) {
            visit(tid);
        }
        entries = rest;
    }
}

/// Fields divided by white space.
pub(super) struct Fields<'t>(&'t [u8]);

impl<'t> Fields<'t> {
    pub(super) fn new(text: &'t [u8]) -> Self {
        Self(text)
    }
}

impl<'t> Iterator for Fields<'t> {
    type Item = &'t [u8];

    fn next(&mut self) -> Option<&'t [u8]> {
        let text = self.0.trim_ascii_start();
        let end = text.iter().position(u8::is_ascii_whitespace).unwrap_or(text.len());
        let (field, rest) = text.split_at_checked(end)?;
        self.0 = rest;
        (!field.is_empty()).then_some(field)
    }
}

/// A decimal number that fits.
pub(super) fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |number, digit| {
        let digit = digit.wrapping_sub(b'0');
        number.checked_mul(10)?.checked_add(u64::from(digit)).filter(|_| digit < 10)
    })
}

fn nibble(digit: u8) -> u64 {
    u64::from((digit as char).to_digit(16).unwrap_or_default())
}

/// A hexadecimal number. Digits that do not fit are cut off at the front.
pub(super) fn hexadecimal(text: &[u8]) -> u64 {
    text.iter().fold(0, |number, &digit| number << 4 | nibble(digit))
}

/// A set of signals in hexadecimal; the last digit holds signals 1 to 4.
pub(super) fn signals(text: &[u8]) -> SigSet {
    let mut set = SigSet::empty();
    for (place, &digit) in text.iter().rev().enumerate() {
        for bit in 0..4 {
            if nibble(digit) >> bit & 1 != 0 {
                set = set.with((place * 4 + bit + 1) as i32);
            }
        }
    }
    set
}

/// The most bytes that are shown of a line.
pub(super) const LINE: usize = 1024;

/// The lines of a file. Of a line longer than the buffer only the beginning is shown.
pub(super) struct Lines<'f> {
    file: &'f Fd,
    buffer: [MaybeUninit<u8>; LINE],
    /// How many bytes the buffer holds.
    filled: usize,
    /// How many of them were shown.
    shown: usize,
    /// Whether the rest of a line is still to come whose beginning was shown.
    skipping: bool,
}

impl<'f> Lines<'f> {
    pub(super) fn new(file: &'f Fd) -> Self {
        let buffer = [MaybeUninit::uninit(); LINE];
        Self { file, buffer, filled: 0, shown: 0, skipping: false }
    }

    /// The next line without its end.
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>, Errno> {
        loop {
            let rest = self.unread();
            let end = rest.iter().position(|&b| b == b'\n');
            let skip = self.skipping;
            let (begin, length) = (self.shown, end.unwrap_or(rest.len()));
            let full = begin == 0 && self.filled == self.buffer.len();
            if end.is_some() || (full && !skip) {
                self.shown += length + usize::from(end.is_some());
                self.skipping = end.is_none();
                if !skip {
                    return Ok(Some(self.text(begin, length)));
                }
                continue;
            }
            if skip {
                self.shown = self.filled;
            }
            if !self.refill()? {
                let (begin, length) = (self.shown, self.filled - self.shown);
                self.shown = self.filled;
                return Ok((length != 0 && !skip).then(|| self.text(begin, length)));
            }
        }
    }

    /// Moves what was not shown to the front and reads more behind it. `false` at the end.
    fn refill(&mut self) -> Result<bool, Errno> {
        self.buffer.copy_within(self.shown..self.filled, 0);
        self.filled -= self.shown;
        self.shown = 0;
        let Some(room) = self.buffer.get_mut(self.filled..) else { return Ok(false) };
        let more = self.file.read(room)?.len();
        self.filled += more;
        Ok(more != 0)
    }

    fn unread(&self) -> &[u8] {
        self.text(self.shown, self.filled - self.shown)
    }

    fn text(&self, begin: usize, length: usize) -> &[u8] {
        let text = self.buffer.get(begin..begin + length).unwrap_or_default();
        // SAFETY: callers stay within `filled`, and `refill` had the kernel write all bytes up to
        // there.
        unsafe { text.assume_init_ref() }
    }
}

#[cfg(test)]
mod tests {
    use super::{Fd, Lines, TaskPath, hexadecimal, number};

    #[test]
    fn paths_hold_the_longest_id() {
        assert_eq!(TaskPath::new(i32::MAX, b"status").as_c_str(), c"2147483647/status");
        assert_eq!(TaskPath::new(7, b"wchan").as_c_str(), c"7/wchan");
        assert_eq!(number(b""), None);
        assert_eq!(number(b"12x"), None);
        assert_eq!(hexadecimal(b"00ff"), 255);
    }

    #[test]
    fn a_line_longer_than_the_buffer_does_not_hide_the_next() {
        let long = "x".repeat(5000);
        let path = std::env::temp_dir().join(format!("threadreg-lines-{}", std::process::id()));
        std::fs::write(&path, format!("first\n{long}\nlast one\nunended")).expect("written");
        let name = std::ffi::CString::new(path.to_str().expect("utf-8")).expect("no zero");
        let file = Fd::open(libc::AT_FDCWD, &name, 0).expect("opens");
        std::fs::remove_file(&path).expect("removed");
        let mut lines = Lines::new(&file);
        let mut seen = Vec::new();
        while let Some(line) = lines.next().expect("reads") {
            seen.push(String::from_utf8(line.to_vec()).expect("utf-8"));
        }
        assert_eq!(seen.len(), 4, "{seen:?}");
        assert_eq!(seen[0], "first");
        assert!(seen[1].len() <= 1024 && long.starts_with(&seen[1]));
        assert_eq!(&seen[2..], ["last one", "unended"]);
    }
}
