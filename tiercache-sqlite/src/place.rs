//! The directory: whose it is, who has it open, and the few operations on names in it.
//!
//! ```text
//! tiercache.lock   held shared by every process that has the level open
//! tiercache.open   held while one of them opens
//! format           the version, and how many shards there are
//! shard-0.db       a shard's database, with what SQLite puts beside it
//! shard-0.suspect  made when SQLite met damage: the next one to open looks closely
//! shard-1.redo     made when a transaction over several shards may leave something to be done in it
//! files-0/         its large values
//! ```

use std::ffi::CStr;
use std::fs::{DirBuilder, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{self, AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use tiercache_core::{Error, Result};

use crate::tier::NAME;

const LOCK: &str = "tiercache.lock";
const OPENING: &str = "tiercache.open";
const FORMAT: &str = "format";
const VERSION: &str = "tiercache-sqlite 1 shards ";
/// What SQLite puts beside a database, by suffix.
const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];
/// How long another process may take to open the level.
const OPENING_PATIENCE: Duration = Duration::from_secs(10);

/// A directory that is safe to use.
#[derive(Debug)]
pub(crate) struct Dir {
    pub(crate) path: PathBuf,
    fd: OwnedFd,
}

impl Dir {
    /// Opens the directory, making it when `create` says so.
    pub(crate) fn open(path: &Path, create: bool) -> Result<Self> {
        if create {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .or_else(|error| if error.kind() == ErrorKind::AlreadyExists { Ok(()) } else { Err(error) })
                .map_err(|error| refused(path, &format!("cannot be made: {error}")))?;
        }
        let fd = fs::open(path, directory(), Mode::empty()).map_err(|errno| {
            let link = path.symlink_metadata().is_ok_and(|meta| meta.is_symlink());
            let why = if link {
                "is a symbolic link: name the directory itself".to_owned()
            } else {
                format!("cannot be opened as a directory: {errno}")
            };
            refused(path, &why)
        })?;
        // SQLite takes paths: whole ones without links on the way, so that no name means something else to it.
        let path = path.canonicalize().map_err(|error| Error::unavailable(NAME, "open", error))?;
        let dir = Self { path, fd };
        dir.judge(create)?;
        Ok(dir)
    }

    /// Refuses what others could have prepared or can change; tightens what is ours.
    fn judge(&self, tighten: bool) -> Result<()> {
        let unavailable = |errno: Errno| Error::unavailable(NAME, "open", errno);
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
        if names.is_empty() || names.iter().any(|name| name == OPENING) {
            return fs::fchmod(&self.fd, Mode::from_raw_mode(0o700)).map_err(unavailable);
        }
        // Somebody's directory that we were pointed at: its mode is not ours to change.
        if open_to_others & 0o022 != 0 {
            let why = "can be written by others and holds other files: give an own directory";
            return Err(refused(&self.path, why));
        }
        Ok(())
    }

    /// Waits for the right to open: one process at a time makes, judges and sets aside.
    pub(crate) fn begin_opening(&self) -> Result<File> {
        let file = self.lock_file(OPENING)?;
        let began = Instant::now();
        loop {
            match fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(Errno::WOULDBLOCK) if began.elapsed() < OPENING_PATIENCE => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(Errno::WOULDBLOCK) => {
                    let why = "is being opened by another process that does not get on";
                    return Err(Error::unavailable(NAME, "open", format!("{} {why}", self.path.display())));
                }
                Err(errno) => return Err(Error::unavailable(NAME, "open", errno)),
            }
        }
    }

    /// Takes part in the use of the directory.
    pub(crate) fn join(&self) -> Result<Membership> {
        let file = self.lock_file(LOCK)?;
        fs::flock(&file, FlockOperation::NonBlockingLockShared).map_err(|errno| match errno {
            Errno::WOULDBLOCK => refused(&self.path, "is being repaired: wait until that is done"),
            errno => Error::unavailable(NAME, "open", errno),
        })?;
        Ok(Membership(file))
    }

    fn lock_file(&self, name: &str) -> Result<File> {
        match self.create(name) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => self.open_file(name, true),
            other => other,
        }
        .map_err(|error| Error::unavailable(NAME, "open", error))
    }

    /// How many shards the directory has; None when it is new.
    pub(crate) fn shards(&self) -> Result<Option<u32>> {
        let mut text = String::new();
        match self.open_file(FORMAT, false).and_then(|file| file.take(64).read_to_string(&mut text)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() != ErrorKind::InvalidData => {
                return Err(Error::unavailable(NAME, "open", error));
            }
            _ => {}
        }
        let number = text.strip_prefix(VERSION).and_then(|number| number.trim_end().parse().ok());
        match number.filter(|number| (1..=1024).contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(refused(
                &self.path,
                "has a file `format` of another version or application: give another directory",
            )),
        }
    }

    /// Notes how many shards the directory has.
    pub(crate) fn note_shards(&self, shards: u32) -> io::Result<()> {
        let fresh = format!("{FORMAT}.{}", random_id());
        let written = || {
            let mut file = self.create(&fresh)?;
            writeln!(file, "{VERSION}{shards}")?;
            file.sync_all()?;
            fs::renameat(&self.fd, &fresh, &self.fd, FORMAT)?;
            Ok(fs::fsync(&self.fd)?)
        };
        written().inspect_err(|_| drop(self.remove(&fresh)))
    }

    /// Where a shard's database stands.
    pub(crate) fn database(&self, shard: usize) -> PathBuf {
        self.path.join(database_name(shard))
    }

    /// Makes a shard's database file where it is not there, and refuses files that are not safe to use.
    pub(crate) fn prepare_database(&self, shard: usize) -> Result<()> {
        let name = database_name(shard);
        for companion in COMPANIONS {
            self.judge_file(&format!("{name}{companion}"))?;
        }
        if !self.judge_file(&name)? {
            self.create(&name).map_err(|error| Error::unavailable(NAME, "open", error))?;
        }
        Ok(())
    }

    /// What tells a shard's database file from every other; None when it is gone.
    pub(crate) fn identity(&self, shard: usize) -> Option<(u64, u64)> {
        use std::os::unix::fs::MetadataExt;
        self.database(shard).symlink_metadata().ok().map(|meta| (meta.dev(), meta.ino()))
    }

    /// Whether the file is there. Makes it ours alone to read.
    fn judge_file(&self, name: &str) -> Result<bool> {
        let path = self.path.join(name);
        let stat = match fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(false),
            Err(errno) => return Err(Error::unavailable(NAME, "open", errno)),
            Ok(stat) => stat,
        };
        match fs::FileType::from_raw_mode(stat.st_mode) {
            fs::FileType::RegularFile => {}
            fs::FileType::Symlink => return Err(refused(&path, "is a symbolic link")),
            _ => return Err(refused(&path, "is not a file")),
        }
        if stat.st_uid != rustix::process::geteuid().as_raw() {
            return Err(refused(&path, "belongs to another user"));
        }
        if stat.st_mode & 0o077 != 0 {
            self.open_file(name, true)
                .and_then(|file| Ok(fs::fchmod(file, Mode::from_raw_mode(0o600))?))
                .map_err(|error| Error::unavailable(NAME, "open", error))?;
        }
        Ok(true)
    }

    /// Renames a shard's database to the first `….damaged-N` that is free.
    pub(crate) fn set_aside(&self, shard: usize) -> io::Result<String> {
        let name = database_name(shard);
        let names = self.names()?;
        let mut numbered = (1..).map(|number| format!("{name}.damaged-{number}"));
        let aside = numbered.find(|aside| !names.contains(aside)).unwrap_or_default();
        fs::renameat(&self.fd, &name, &self.fd, &aside)?;
        for companion in COMPANIONS {
            let (from, to) = (format!("{name}{companion}"), format!("{aside}{companion}"));
            match fs::renameat(&self.fd, from, &self.fd, to) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(aside)
    }

    pub(crate) fn is_suspect(&self, shard: usize) -> bool {
        fs::statat(&self.fd, suspect_name(shard), AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Notes that SQLite met damage, for whoever opens the level next.
    pub(crate) fn suspect(&self, shard: usize) {
        match self.create(&suspect_name(shard)) {
            Ok(_) => tracing::error!(
                tier = NAME,
                shard,
                "the database is damaged: it is looked at when the level is opened next"
            ),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => {
                tracing::error!(tier = NAME, shard, %error, "the database is damaged, and that cannot be noted")
            }
        }
    }

    pub(crate) fn clear_suspicion(&self, shard: usize) {
        // The worst is another close look.
        let _ = self.remove(&suspect_name(shard));
    }

    /// Whether something decided before may not be done in the shard yet.
    pub(crate) fn is_owed(&self, shard: usize) -> bool {
        let found = fs::statat(&self.fd, owed_name(shard), AtFlags::SYMLINK_NOFOLLOW);
        !matches!(found, Err(Errno::NOENT))
    }

    /// Notes that it may be so, for whoever writes to the shard next.
    pub(crate) fn owe(&self, shard: usize) -> io::Result<()> {
        match self.create(&owed_name(shard)) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    }

    pub(crate) fn forget_owed(&self, shard: usize) {
        // The worst is another look.
        let _ = self.remove(&owed_name(shard));
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

    /// A directory in this one, made when `create` says so.
    pub(crate) fn inner(&self, name: &str, create: bool) -> io::Result<Self> {
        if create {
            match fs::mkdirat(&self.fd, name, Mode::from_raw_mode(0o700)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        let fd = fs::openat(&self.fd, name, directory(), Mode::empty())?;
        let stat = fs::fstat(&fd)?;
        if stat.st_uid != rustix::process::geteuid().as_raw() {
            return Err(io::Error::new(ErrorKind::PermissionDenied, "belongs to another user"));
        }
        if stat.st_mode & 0o077 != 0 && create {
            fs::fchmod(&fd, Mode::from_raw_mode(0o700))?;
        }
        Ok(Self { path: self.path.join(name), fd })
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

/// Held while a process has the directory open; [`Membership::leave`] or its end leaves.
#[derive(Debug)]
pub(crate) struct Membership(File);

impl Membership {
    /// Whether no other process has the directory open. None can join it then, until `share` is called.
    pub(crate) fn is_alone(&self) -> bool {
        fs::flock(&self.0, FlockOperation::NonBlockingLockExclusive).is_ok()
    }

    /// Uses the directory no more, whoever still holds this.
    pub(crate) fn leave(&self) {
        // An own lock can be given up; if not, it ends with the file.
        let _ = fs::flock(&self.0, FlockOperation::Unlock);
    }

    /// Lets others in again.
    pub(crate) fn share(&self) -> Result<()> {
        fs::flock(&self.0, FlockOperation::LockShared)
            .map_err(|errno| Error::unavailable(NAME, "open", errno))
    }
}

/// 32 hexadecimal digits that nobody has drawn before.
pub(crate) fn random_id() -> String {
    use std::hash::{BuildHasher, RandomState};
    let draw = |salt: u64| RandomState::new().hash_one((salt, std::process::id(), Instant::now()));
    format!("{:016x}{:016x}", draw(1), draw(2))
}

fn directory() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

fn database_name(shard: usize) -> String {
    format!("shard-{shard}.db")
}

fn owed_name(shard: usize) -> String {
    format!("shard-{shard}.redo")
}

fn suspect_name(shard: usize) -> String {
    format!("shard-{shard}.suspect")
}

fn refused(path: &Path, why: &str) -> Error {
    Error::Refused(format!("{} {why}", path.display()))
}
