//! The files on disk: whose they are, who may read them, and what becomes of damaged ones.

use std::ffi::OsString;
use std::fs::{DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use tiercache_core::{Error, Result};

use super::NAME;

/// What SQLite puts beside a database, by suffix.
const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// Makes the folder where it is not there, and refuses one that is not safe to use.
pub(super) fn prepare_folder(path: &Path) -> Result<()> {
    let Some(folder) = path.parent() else { return Ok(()) };
    match folder.symlink_metadata() {
        Ok(found) => check_folder(folder, &found),
        Err(error) if error.kind() == ErrorKind::NotFound => DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|error| Error::unavailable(NAME, "make the folder", error)),
        Err(error) => Err(Error::unavailable(NAME, "look at the folder", error)),
    }
}

/// Keeps other processes from opening the database at the same time, as long as the file is held.
pub(super) fn lock(path: &Path) -> Result<File> {
    let path = beside(path, ".lock");
    check_file(&path)?;
    private()
        .create(true)
        .truncate(false)
        .open(path)
        .and_then(|file| file.lock().map(|()| file))
        .map_err(|error| Error::unavailable(NAME, "lock", error))
}

/// Makes the file where it is not there, and refuses files that are not safe to use.
pub(super) fn prepare_file(path: &Path) -> Result<()> {
    for companion in COMPANIONS {
        check_file(&beside(path, companion))?;
    }
    if !check_file(path)? {
        private()
            .create_new(true)
            .open(path)
            .map_err(|error| Error::unavailable(NAME, "make the file", error))?;
    }
    Ok(())
}

/// Whether there is a file; one that is not safe to use is refused.
pub(super) fn is_there(path: &Path) -> Result<bool> {
    if let Some(folder) = path.parent()
        && let Ok(found) = folder.symlink_metadata()
    {
        check_folder(folder, &found)?;
    }
    COMPANIONS.iter().try_for_each(|companion| check_file(&beside(path, companion)).map(drop))?;
    check_file(path)
}

/// Renames the database to the first `….damaged-N` that is free.
pub(super) fn set_aside(path: &Path) -> Result<PathBuf> {
    let moved = || -> io::Result<PathBuf> {
        let mut number = 1;
        let aside = loop {
            let aside = beside(path, &format!(".damaged-{number}"));
            if !aside.try_exists()? {
                break aside;
            }
            number += 1;
        };
        std::fs::rename(path, &aside)?;
        for companion in COMPANIONS {
            match std::fs::rename(beside(path, companion), beside(&aside, companion)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(aside)
    };
    moved().map_err(|error| Error::unavailable(NAME, "set the damaged database aside", error))
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(OFlags::NOFOLLOW.bits() as i32);
    options
}

fn check_folder(path: &Path, found: &Metadata) -> Result<()> {
    let refused = |reason| Err(Error::Refused(format!("{}: {reason}", path.display())));
    let (mode, sticky) = (found.mode() & 0o777, found.mode() & 0o1000 != 0);
    match () {
        () if found.is_symlink() => refused("the folder is a symbolic link: name the folder it points to"),
        () if !found.is_dir() => refused("is not a folder"),
        () if !mine(found) && found.uid() != 0 => refused("the folder belongs to another user"),
        () if mode & 0o002 != 0 && !sticky => refused("the folder is writable by everybody"),
        () => Ok(()),
    }
}

/// Whether the file is there. Makes it ours alone to read.
fn check_file(path: &Path) -> Result<bool> {
    let refused = |reason| Err(Error::Refused(format!("{}: {reason}", path.display())));
    match path.symlink_metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::unavailable(NAME, "look at the file", error)),
        Ok(found) if found.is_symlink() => refused("is a symbolic link: name the file it points to"),
        Ok(found) if !found.is_file() => refused("is not a file"),
        Ok(found) if !mine(&found) => refused("belongs to another user"),
        Ok(found) => {
            if found.mode() & 0o077 != 0 {
                std::fs::set_permissions(path, Permissions::from_mode(0o600))
                    .map_err(|error| Error::unavailable(NAME, "make the file private", error))?;
            }
            Ok(true)
        }
    }
}

fn mine(found: &Metadata) -> bool {
    found.uid() == rustix::process::geteuid().as_raw()
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}
