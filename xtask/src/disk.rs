//! Space on the disk that builds are on: whether it will do, and whether it has run out.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rustix::fs::statvfs;

/// What the builds of all tests take, beginning with an empty directory: an estimate from `du` of one
/// crate's (150 MB, as much again for incremental builds) and of a lane of mutants, rounded up.
const WHOLE_RUN: u64 = 8 << 30;

/// Whether a program has said that the disk is full since it was last asked.
static WAS_FULL: AtomicBool = AtomicBool::new(false);

/// Looks at a line that a program has printed: `ENOSPC` has the same words in every language's runtime.
pub(crate) fn notice(line: &str) {
    if line.contains("No space left on device") {
        WAS_FULL.store(true, Relaxed);
    }
}

/// What to say before the tests when there may not be room for their builds in `target`.
pub(crate) fn before(target: &Path) -> Option<String> {
    let missing = WHOLE_RUN.saturating_sub(size(target));
    note(free(target)?, missing, target)
}

fn note(free: u64, missing: u64, target: &Path) -> Option<String> {
    (free < missing).then(|| {
        let (free, missing) = (gib(free), gib(missing));
        format!("note: {free} free at {}; all tests take {missing} more", target.display())
    })
}

/// Why a step has failed, when it was for want of space.
pub(crate) fn after_failure(target: &Path) -> Option<String> {
    let free = free(target)?;
    WAS_FULL.swap(false, Relaxed).then(|| {
        let (free, all) = (gib(free), gib(WHOLE_RUN));
        format!("the disk was full: {free} free at {} now; all tests take {all}", target.display())
    })
}

/// The bytes that are free for this user on the disk of a directory, which need not be there yet.
fn free(dir: &Path) -> Option<u64> {
    let there = dir.ancestors().find(|dir| dir.is_dir())?;
    let disk = statvfs(there).ok()?;
    Some(disk.f_bavail * disk.f_frsize)
}

/// The bytes of the files below a directory.
fn size(dir: &Path) -> u64 {
    let of_entry = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    fs::read_dir(dir).into_iter().flatten().flatten().map(of_entry).sum()
}

fn gib(bytes: u64) -> String {
    let tenths = bytes.saturating_mul(10) >> 30;
    format!("{}.{} GiB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_disk_is_told_once_and_only_after_it_was_noticed() {
        let here = std::env::temp_dir();
        notice("error: could not compile");
        assert_eq!(after_failure(&here), None);
        notice("error: failed to write x.rlib: No space left on device (os error 28)");
        let told = after_failure(&here).unwrap();
        assert!(told.contains("the disk was full") && told.contains("all tests take 8.0 GiB"));
        assert_eq!(after_failure(&here), None);
    }

    #[test]
    fn small_disk_is_noted_with_what_is_missing() {
        let target = Path::new("/t");
        assert_eq!(note(3 << 30, 3 << 30, target), None);
        let expected = "note: 3.0 GiB free at /t; all tests take 3.5 GiB more";
        assert_eq!(note(3 << 30, 7 << 29, target).unwrap(), expected);
    }

    #[test]
    fn size_is_that_of_all_files_and_space_is_that_of_the_next_directory_above() {
        let dir = std::env::temp_dir().join(format!("xtask-disk-{}", std::process::id()));
        fs::create_dir_all(dir.join("a/b")).unwrap();
        fs::write(dir.join("one"), [0; 1000]).unwrap();
        fs::write(dir.join("a/b/two"), [0; 234]).unwrap();
        assert_eq!(size(&dir), 1234);
        assert!(free(&dir.join("not/there")).is_some_and(|bytes| bytes > 0));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn sizes_have_a_tenth() {
        assert_eq!(gib(0), "0.0 GiB");
        assert_eq!(gib((5 << 30) + (1 << 29)), "5.5 GiB");
    }
}
