//! Typed calls for what daemons and sandboxes give up, on every thread at once.
//!
//! All are the kernel's own system calls. libc's functions of the same names make broadcasts of their own,
//! with the gaps that `HAZARDS.md` lists, and must not be called from inside an operation. Each function
//! here is a batch of one. Combine several by [`Batch`]'s methods of the same names, so that no thread ever
//! runs with the groups of one user and the id of another:
//!
//! ```no_run
//! use allthreads::Batch;
//!
//! let groups = [65534];
//! Batch::new()
//!     .chroot(c"/var/empty")
//!     .chdir(c"/")
//!     .set_groups(&groups)
//!     .set_resgid(Some(65534), Some(65534), Some(65534))
//!     .set_resuid(Some(65534), Some(65534), Some(65534))
//!     .no_new_privs()
//!     .apply()?;
//! # Ok::<(), allthreads::Error>(())
//! ```

use core::ffi::{CStr, c_long};

use sigctx::sys::id_calls;

use crate::builder::Batch;
use crate::calls::Call;
use crate::error::Error;
use crate::report::Report;

/// Whether permitted capabilities survive a change of all user ids away from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepCaps {
    /// They do, until the next `execve`.
    On,
    /// They do not.
    Off,
}

const fn id(id: Option<u32>) -> usize {
    // All ones is "unchanged" to the kernel.
    match id {
        Some(id) => id as usize,
        None => u32::MAX as usize,
    }
}

/// Whether an id that was given means "unchanged" to the kernel. A program that has it from a failed
/// look-up would keep the privileges that it wants to give up.
const fn is_unchanged(id: Option<u32>) -> bool {
    matches!(id, Some(u32::MAX))
}

impl<'a> Batch<'a> {
    const fn prctl(self, option: i32, value: usize) -> Self {
        self.with(Call::Syscall(libc::SYS_prctl, [option as usize, value, 0, 0, 0, 0]))
    }

    const fn set_ids(mut self, number: c_long, [real, effective, saved]: [Option<u32>; 3]) -> Self {
        if is_unchanged(real) || is_unchanged(effective) || is_unchanged(saved) {
            self = self.refuse_next();
        }
        self.with(Call::Syscall(number, [id(real), id(effective), id(saved), 0, 0, 0]))
    }

    /// Adds: the supplementary groups become `groups`.
    ///
    /// # References
    ///
    /// `setgroups(2)`
    #[must_use]
    pub fn set_groups(self, groups: &'a [u32]) -> Self {
        let args = [groups.len(), groups.as_ptr() as usize, 0, 0, 0, 0];
        self.with(Call::Syscall(id_calls::SETGROUPS, args))
    }

    /// Adds: the real, effective and saved group ids change to what is given; `None` leaves one as it is.
    /// `Some(u32::MAX)` is no id, and the batch is refused with [`Error::BadId`].
    ///
    /// # References
    ///
    /// `setresgid(2)`
    #[must_use]
    pub const fn set_resgid(
        self,
        real: Option<u32>,
        effective: Option<u32>,
        saved: Option<u32>,
    ) -> Self {
        self.set_ids(id_calls::SETRESGID, [real, effective, saved])
    }

    /// Adds: the real, effective and saved user ids change to what is given; `None` leaves one as it is.
    /// `Some(u32::MAX)` is no id, and the batch is refused with [`Error::BadId`].
    ///
    /// # References
    ///
    /// `setresuid(2)`
    #[must_use]
    pub const fn set_resuid(
        self,
        real: Option<u32>,
        effective: Option<u32>,
        saved: Option<u32>,
    ) -> Self {
        self.set_ids(id_calls::SETRESUID, [real, effective, saved])
    }

    /// Adds: `execve` gives no privileges any more, forever.
    ///
    /// # References
    ///
    /// `PR_SET_NO_NEW_PRIVS(2const)`
    #[must_use]
    pub const fn no_new_privs(self) -> Self {
        self.prctl(libc::PR_SET_NO_NEW_PRIVS, 1)
    }

    /// Adds: whether permitted capabilities survive the change of user ids that follows.
    ///
    /// # References
    ///
    /// `PR_SET_KEEPCAPS(2const)`
    #[must_use]
    pub const fn keep_caps(self, keep: KeepCaps) -> Self {
        self.prctl(libc::PR_SET_KEEPCAPS, matches!(keep, KeepCaps::On) as usize)
    }

    /// Adds: the capability of this number leaves the bounding set.
    ///
    /// # References
    ///
    /// `PR_CAPBSET_DROP(2const)`
    #[must_use]
    pub const fn drop_bounding(self, capability: u32) -> Self {
        self.prctl(libc::PR_CAPBSET_DROP, capability as usize)
    }
}

/// Calls that change the process: the requester alone makes them.
impl<'a> Batch<'a> {
    /// Adds: `path` becomes the root directory of the process.
    ///
    /// Operations after it find no `/proc`, unless there is one below the new root: give them a
    /// directory that was opened before, see [`AllThreads::tasks`](crate::AllThreads::tasks).
    ///
    /// # References
    ///
    /// `chroot(2)`
    #[must_use]
    pub fn chroot(self, path: &'a CStr) -> Self {
        self.path(libc::SYS_chroot, path)
    }

    /// Adds: `path` becomes the working directory of the process.
    ///
    /// # References
    ///
    /// `chdir(2)`
    #[must_use]
    pub fn chdir(self, path: &'a CStr) -> Self {
        self.path(libc::SYS_chdir, path)
    }

    fn path(self, number: c_long, path: &'a CStr) -> Self {
        self.with(Call::Once(number, [path.as_ptr().expose_provenance(), 0, 0, 0, 0, 0]))
    }
}

/// Replaces the supplementary groups of every thread.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe), as [`AllThreads`](crate::AllThreads).
///
/// # Errors
///
/// As [`AllThreads::batch`](crate::AllThreads::batch); `EPERM` without `CAP_SETGID`.
pub fn set_groups(groups: &[u32]) -> Result<Report, Error> {
    Batch::new().set_groups(groups).apply()
}

/// Changes the group ids of every thread; `None` leaves one as it is.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe), as [`AllThreads`](crate::AllThreads).
///
/// # Errors
///
/// As [`AllThreads::batch`](crate::AllThreads::batch); `EPERM` for an id that the requester may not take,
/// [`Error::BadId`] for `Some(u32::MAX)`.
pub fn set_resgid(
    real: Option<u32>,
    effective: Option<u32>,
    saved: Option<u32>,
) -> Result<Report, Error> {
    Batch::new().set_resgid(real, effective, saved).apply()
}

/// Changes the user ids of every thread; `None` leaves one as it is.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe), as [`AllThreads`](crate::AllThreads).
///
/// # Errors
///
/// As [`AllThreads::batch`](crate::AllThreads::batch); `EPERM` for an id that the requester may not take,
/// [`Error::BadId`] for `Some(u32::MAX)`.
pub fn set_resuid(
    real: Option<u32>,
    effective: Option<u32>,
    saved: Option<u32>,
) -> Result<Report, Error> {
    Batch::new().set_resuid(real, effective, saved).apply()
}

/// Sets `no_new_privs` on every thread: none gains privileges by `execve` any more.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe), as [`AllThreads`](crate::AllThreads).
///
/// # Errors
///
/// As [`AllThreads::batch`](crate::AllThreads::batch).
pub fn no_new_privs() -> Result<Report, Error> {
    Batch::new().no_new_privs().apply()
}

/// Chooses on every thread whether capabilities survive the next change of user ids.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe), as [`AllThreads`](crate::AllThreads).
///
/// # Errors
///
/// As [`AllThreads::batch`](crate::AllThreads::batch).
pub fn keep_caps(keep: KeepCaps) -> Result<Report, Error> {
    Batch::new().keep_caps(keep).apply()
}
