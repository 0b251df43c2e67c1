//! Error numbers as values, with names.

use core::ffi::c_int;
use core::fmt;

/// The largest error number that the kernel returns.
const MAX: i32 = 4095;

/// A kernel error number: positive, never zero.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Errno(i32);

impl Errno {
    /// Takes a positive error number; anything else becomes `EINVAL`.
    #[inline(always)]
    #[must_use]
    pub const fn new(raw: i32) -> Self {
        if raw > 0 && raw <= MAX { Self(raw) } else { Self::EINVAL }
    }

    /// Takes a system call's word apart.
    #[inline(always)]
    pub(crate) const fn check(word: isize) -> Result<usize, Self> {
        if word < 0 && word >= -(MAX as isize) {
            Err(Self(-word as i32))
        } else {
            Ok(word as usize)
        }
    }

    /// The number as C has it, positive.
    #[inline(always)]
    #[must_use]
    pub const fn raw(self) -> i32 {
        self.0
    }
}

macro_rules! names {
    ($($name:ident),* $(,)?) => {
        impl Errno {
            $(
                #[doc = concat!("`", stringify!($name), "`, see `errno(3)`.")]
                pub const $name: Self = Self(libc::$name);
            )*

            /// The symbolic name, where it is one of the common ones.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

names! {
    EPERM, ENOENT, ESRCH, EINTR, EIO, ENXIO, E2BIG, ENOEXEC, EBADF, ECHILD, EAGAIN, ENOMEM,
    EACCES, EFAULT, EBUSY, EEXIST, ENODEV, ENOTDIR, EISDIR, EINVAL, ENFILE, EMFILE, ENOTTY,
    ETXTBSY, EFBIG, ENOSPC, ESPIPE, EROFS, EMLINK, EPIPE, EDOM, ERANGE, EDEADLK,
    ENAMETOOLONG, ENOSYS, ELOOP, EOVERFLOW, EUSERS, EOPNOTSUPP, ENOTSOCK, EALREADY,
    EINPROGRESS, ECANCELED, ETIMEDOUT, EOWNERDEAD, ENOTRECOVERABLE, ENOLCK, ENOTEMPTY,
    EKEYREJECTED
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{name} ({})", self.0),
            None => write!(f, "error number {}", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl core::error::Error for Errno {}

/// errno of the calling thread, which libc keeps in thread-local storage.
#[inline(never)]
pub(crate) fn errno() -> c_int {
    // SAFETY: every thread that uses libc has one.
    let at = unsafe { libc::__errno_location() };
    // SAFETY: valid as long as the thread lives.
    unsafe { at.read() }
}

/// Sets errno of the calling thread.
#[inline(never)]
pub(crate) fn set_errno(value: c_int) {
    // SAFETY: every thread that uses libc has one.
    let at = unsafe { libc::__errno_location() };
    // SAFETY: valid as long as the thread lives.
    unsafe { at.write(value) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn only_the_last_4095_words_are_errors() {
        assert_eq!(Errno::check(-1), Err(Errno::EPERM));
        assert_eq!(Errno::check(-4095), Err(Errno(4095)));
        assert_eq!(Errno::check(-4096), Ok(-4096isize as usize));
        assert_eq!(Errno::check(0), Ok(0));
    }

    #[test]
    fn prints_name_and_number() {
        assert_eq!(Errno::new(libc::EAGAIN).to_string(), "EAGAIN (11)");
        assert_eq!(Errno::new(4000).to_string(), "error number 4000");
    }
}
