//! The directory: whose it is, who may use it, and the few operations on names in it.
//!
//! Everything is done relative to one descriptor of the directory and follows no link, so that neither renaming the
//! directory nor planting links in it leads elsewhere.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, FlockOperation, Mode, OFlags};
use tiercache_core::{Error, Result};

use crate::tier::NAME;

const LOCK: &str = "tiercache.lock";
/// What a segment that cannot be read is renamed to; at most one is kept.
pub(crate) const DAMAGED: &str = "damaged.seg";

/// Removals that wait for other levels, and the file that is to take its place.
pub(crate) const JOURNAL: &str = "journal";
pub(crate) const JOURNAL_ANEW: &str = "journal.new";

/// The directory of a level.
#[derive(Debug)]
pub(crate) struct Dir {
    pub(crate) path: PathBuf,
    fd: OwnedFd,
}

/// Held while the directory is owned; closing it releases it.
#[derive(Debug)]
pub(crate) struct Lock(#[allow(dead_code, reason = "held for its end")] File);

/// What a name in the directory stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    /// A segment, by its place in the order.
    Segment(u32),
    /// A segment file waiting to be used again.
    Spare,
    /// A segment that could not be read.
    Damaged,
    /// The lock file.
    Lock,
    /// Not ours: never touched.
    Foreign,
}

impl Name {
    pub(crate) fn of(name: &str) -> Self {
        let digits =
            |text: &str| text.len() == 8 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match name.strip_suffix(".seg") {
            Some(seq) if digits(seq) => u32::from_str_radix(seq, 16).map_or(Self::Foreign, Self::Segment),
            _ if name == DAMAGED => Self::Damaged,
            _ if name == LOCK => Self::Lock,
            _ => match name.strip_suffix(".spare") {
                Some(number) if digits(number) => Self::Spare,
                _ => Self::Foreign,
            },
        }
    }
}

pub(crate) fn segment_name(seq: u32) -> String {
    format!("{seq:08x}.seg")
}

pub(crate) fn spare_name(number: u32) -> String {
    format!("{number:08x}.spare")
}

impl Dir {
    /// Opens the directory, making it when `create` says so.
    pub(crate) fn open(path: &Path, create: bool) -> Result<Self> {
        if create {
            use std::os::unix::fs::DirBuilderExt;
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .or_else(
                    |error| if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) },
                )
                .map_err(|error| refused(path, &format!("cannot be made: {error}")))?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = fs::open(path, flags, Mode::empty()).map_err(|errno| {
            let link = path.symlink_metadata().is_ok_and(|meta| meta.is_symlink());
            let why = if link {
                "is a symbolic link: name the directory itself".to_owned()
            } else {
                format!("cannot be opened as a directory: {errno}")
            };
            refused(path, &why)
        })?;
        let dir = Self { path: path.to_owned(), fd };
        dir.judge(create)?;
        Ok(dir)
    }

    /// Refuses what others could have prepared or can change; tightens what is ours.
    fn judge(&self, tighten: bool) -> Result<()> {
        let unavailable = |errno: rustix::io::Errno| Error::unavailable(NAME, "open", errno);
        let stat = fs::fstat(&self.fd).map_err(unavailable)?;
        let user = rustix::process::geteuid().as_raw();
        if stat.st_uid != user {
            let why = format!("belongs to user {}, not to user {user}", stat.st_uid);
            return Err(refused(&self.path, &why));
        }
        let open_to_others = stat.st_mode & 0o077;
        if open_to_others == 0 || !tighten {
            return Ok(());
        }
        let names = self.names().map_err(|error| Error::unavailable(NAME, "open", error))?;
        if names.is_empty() || names.iter().any(|name| name == LOCK) {
            return fs::fchmod(&self.fd, Mode::from_raw_mode(0o700)).map_err(unavailable);
        }
        // Somebody's directory that we were pointed at: its mode is not ours to change.
        if open_to_others & 0o022 != 0 {
            let why = "can be written by others and holds other files: give an own directory";
            return Err(refused(&self.path, why));
        }
        Ok(())
    }

    /// Takes the directory for this process.
    pub(crate) fn lock(&self) -> Result<Lock> {
        let unavailable = |error: io::Error| Error::unavailable(NAME, "lock", error);
        let mut file = match self.create(LOCK) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.open_file(LOCK, true),
            other => other,
        }
        .map_err(unavailable)?;
        let mut locked = fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
        // Somebody who only asks for the owner holds it for a moment.
        for _ in 0..3 {
            if locked == Err(rustix::io::Errno::WOULDBLOCK) {
                std::thread::sleep(std::time::Duration::from_millis(10));
                locked = fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
            }
        }
        match locked {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let owner =
                    read_pid(&mut file).map_or("another process".into(), |pid| format!("process {pid}"));
                return Err(refused(
                    &self.path,
                    &format!(
                        "is in use by {owner}: talk to the running service with `--url`, or use the backend \
                         `sqlite`, which is for several processes"
                    ),
                ));
            }
            Err(errno) => return Err(unavailable(errno.into())),
        }
        let mut write_pid = || {
            file.set_len(0)?;
            file.rewind()?;
            write!(file, "{}", std::process::id())
        };
        // A full disk must not keep the cache from opening: the number is for people.
        if let Err(error) = write_pid() {
            tracing::warn!(%error, "the lock file does not name its owner");
        }
        Ok(Lock(file))
    }

    /// The process that owns the directory now.
    pub(crate) fn owner(&self) -> Option<u32> {
        let mut file = self.open_file(LOCK, false).ok()?;
        match fs::flock(&file, FlockOperation::NonBlockingLockShared) {
            Err(rustix::io::Errno::WOULDBLOCK) => Some(read_pid(&mut file).unwrap_or(0)),
            _ => None,
        }
    }

    /// Every name in the directory.
    pub(crate) fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::Dir::read_from(&self.fd)? {
            let entry = entry?;
            let name: &CStr = entry.file_name();
            if let Ok(name) = name.to_str()
                && name != "."
                && name != ".."
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    pub(crate) fn create(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = fs::openat(&self.fd, name, flags, Mode::from_raw_mode(0o600))?;
        // Whatever the umask took away.
        fs::fchmod(&fd, Mode::from_raw_mode(0o600))?;
        Ok(File::from(fd))
    }

    pub(crate) fn open_file(&self, name: &str, write: bool) -> io::Result<File> {
        let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
        let flags = access | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = File::from(fs::openat(&self.fd, name, flags, Mode::empty())?);
        if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("not a regular file")) }
    }

    pub(crate) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(fs::renameat(&self.fd, from, &self.fd, to)?)
    }

    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        Ok(fs::unlinkat(&self.fd, name, AtFlags::empty())?)
    }

    /// Makes names durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        Ok(fs::fsync(&self.fd)?)
    }
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn refused(path: &Path, why: &str) -> Error {
    Error::Refused(format!("{} {why}", path.display()))
}
