//! Whether a `/proc` has the ids by which the process knows its threads.
//!
//! A mounted `/proc` shows the ids of one pid namespace, for good, and a process stays in the namespace that
//! it began in (`unshare` and `setns` move its children alone). So the answer for one directory of threads
//! does not change, and a good one is kept: to find it takes longer than all else that an operation on few
//! threads needs of `/proc`.
//!
//! What may change is which directory a path leads to: another `/proc` is mounted, the root or the mount
//! namespace is another one, or a child of `fork`, perhaps in a namespace below, opens its own. Each of
//! these has another inode, or is on another device. The kernel gives a device's number to another `/proc`
//! when the first is unmounted, and an inode's only when it has counted through 2³² of them. A child's
//! directory is told from its parent's by the process's id, too, for a `/proc` whose inodes are not counted
//! (an emulator's).

use sigctx::sys::Errno;

use super::read::{Fd, Fields, Lines};
use crate::finding::Finding;

/// A directory of threads that has the process's own ids: the process, the device, the inode.
static OWN: Finding<5> = Finding::new();

/// Whether this directory is in the `/proc` of an outer pid namespace. Process `pid` is the calling one.
pub(super) fn has_other_ids(task_dir: &Fd, pid: i32) -> Result<bool, Errno> {
    // Where the kernel does not tell which file it is, nothing is kept.
    let words = task_dir.identity().ok().map(|[a, b, c, d]| [pid as u32, a, b, c, d]);
    if words.is_some_and(|words| OWN.is(words)) {
        return Ok(false);
    }
    let other = shows_other_ids(task_dir)?;
    if let (false, Some(words)) = (other, words) {
        OWN.keep(words);
    }
    Ok(other)
}

/// The same from what the directory shows. A process in a namespace below has several ids there, of which
/// the first is the one in the directory's own namespace (`fs/proc/array.c`: `task_state`).
fn shows_other_ids(task_dir: &Fd) -> Result<bool, Errno> {
    let file = Fd::open(task_dir.raw(), c"../status", 0)?;
    let mut lines = Lines::new(&file);
    while let Some(line) = lines.next()? {
        if let Some(ids) = line.strip_prefix(b"NSpid:") {
            return Ok(Fields::new(ids).count() > 1);
        }
    }
    // A kernel without namespaces.
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    /// A directory that looks like a process's in `/proc`.
    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let name = format!("threadreg-{name}-{}", std::process::id());
            let place = std::env::temp_dir().join(name);
            fs::create_dir_all(place.join("task")).expect("made");
            Self(place)
        }

        fn task(&self) -> Fd {
            let path = self.0.join("task").to_str().expect("utf-8").to_owned();
            let path = CString::new(path).expect("no zero");
            Fd::open(libc::AT_FDCWD, &path, libc::O_DIRECTORY).expect("opens")
        }

        fn shows(&self, status: &str) {
            fs::write(self.0.join("status"), status).expect("written");
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).expect("removed");
        }
    }

    const OWN_IDS: &str = "Tgid:\t7\nNSpid:\t7\n";
    const OTHER_IDS: &str = "Tgid:\t7\nNSpid:\t7\t1\n";

    #[test]
    fn the_ids_of_an_outer_namespace_are_seen() {
        let place = Place::new("ids");
        let task = place.task();
        for (status, other) in [(OWN_IDS, false), (OTHER_IDS, true), ("", false)] {
            place.shows(status);
            assert_eq!(shows_other_ids(&task), Ok(other), "{status}");
        }
    }

    /// What is kept is of one directory and one process, and it is good news only.
    #[test]
    fn a_directory_is_asked_for_its_namespace_once() {
        let (place, another) = (Place::new("once"), Place::new("another"));
        another.shows(OTHER_IDS);
        place.shows(OTHER_IDS);
        let task = place.task();
        assert_eq!(has_other_ids(&task, 7), Ok(true));
        place.shows(OWN_IDS);
        assert_eq!(has_other_ids(&task, 7), Ok(false), "it was kept that it is another's");
        place.shows(OTHER_IDS);
        for task in [&task, &place.task()] {
            assert_eq!(has_other_ids(task, 7), Ok(false), "it is asked again");
            assert_eq!(has_other_ids(task, 8), Ok(true), "another process");
        }
        assert_eq!(has_other_ids(&another.task(), 7), Ok(true), "another directory");
        assert_eq!(has_other_ids(&task, 7), Ok(false), "a bad one takes no place");
    }
}
