//! A copy of the tree to try patches on.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Makes `copy` equal to `root`, without version control and build directories.
///
/// Only files that differ are written, so that cargo, which goes by path and modification time,
/// rebuilds what the last patch touched and no more.
pub(crate) fn sync(root: &Path, copy: &Path) -> io::Result<()> {
    let mut wanted = BTreeSet::new();
    list(root, Path::new(""), &mut wanted)?;
    let mut present = BTreeSet::new();
    if copy.is_dir() {
        list(copy, Path::new(""), &mut present)?;
    }
    for stale in present.difference(&wanted) {
        fs::remove_file(copy.join(stale))?;
    }
    for path in wanted {
        let (from, to) = (root.join(&path), copy.join(&path));
        // Through symbolic links: the copy has files.
        let text = fs::read(&from)?;
        if fs::read(&to).is_ok_and(|old| old == text) {
            continue;
        }
        fs::create_dir_all(to.parent().expect("inside the copy"))?;
        fs::write(&to, text)?;
        fs::set_permissions(&to, fs::metadata(&from)?.permissions())?;
    }
    Ok(())
}

/// Lists the files below `root/dir`, relative to `root`.
fn list(root: &Path, dir: &Path, files: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(dir))? {
        let entry = entry?;
        let path = dir.join(entry.file_name());
        if !entry.file_type()?.is_dir() {
            // A link to nowhere, such as an editor's lock, has nothing to copy.
            if root.join(&path).is_file() {
                files.insert(path);
            }
        } else if !is_build_or_vcs(&entry.path()) {
            list(root, &path, files)?;
        }
    }
    Ok(())
}

/// Cargo marks its build directories, whatever their name.
fn is_build_or_vcs(dir: &Path) -> bool {
    dir.ends_with(".git") || dir.ends_with("target") || dir.join("CACHEDIR.TAG").is_file()
}

/// Every file of the tree whose name has this extension, relative to `root`, sorted.
pub(crate) fn files(root: &Path, extension: &str) -> io::Result<Vec<PathBuf>> {
    let mut files = BTreeSet::new();
    list(root, Path::new(""), &mut files)?;
    Ok(files.into_iter().filter(|f| f.extension().is_some_and(|e| e == extension)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_follows_the_tree_and_leaves_equal_files_alone() {
        let base = std::env::temp_dir().join(format!("xtask-tree-{}", std::process::id()));
        let (root, copy) = (base.join("root"), base.join("copy"));
        fs::create_dir_all(root.join("src")).unwrap();
        fs::create_dir_all(root.join("other-target")).unwrap();
        fs::write(root.join("src/a.rs"), "a").unwrap();
        fs::write(root.join("src/b.rs"), "b").unwrap();
        fs::write(root.join("other-target/CACHEDIR.TAG"), "").unwrap();
        std::os::unix::fs::symlink("src/a.rs", root.join("link")).unwrap();
        sync(&root, &copy).unwrap();
        assert_eq!(fs::read_to_string(copy.join("link")).unwrap(), "a");
        assert!(!copy.join("other-target").exists());

        let time = fs::metadata(copy.join("src/a.rs")).unwrap().modified().unwrap();
        fs::write(copy.join("src/b.rs"), "patched").unwrap();
        fs::write(copy.join("src/b.rs.orig"), "left by patch").unwrap();
        sync(&root, &copy).unwrap();
        assert_eq!(fs::read_to_string(copy.join("src/b.rs")).unwrap(), "b");
        assert!(!copy.join("src/b.rs.orig").exists());
        assert_eq!(fs::metadata(copy.join("src/a.rs")).unwrap().modified().unwrap(), time);
        fs::remove_dir_all(base).unwrap();
    }
}
