use std::fs::{self, File, OpenOptions};
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

/// A port of 127.0.0.1 that nobody else who asks here gets, until it is dropped. Above what systems serve on and
/// below what they give to outgoing connections, so that it is still free when a server comes back to it.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) number: u16,
    _lock: File,
}

const FIRST: u32 = 20_000;
const COUNT: u32 = 12_000;

impl Port {
    pub(crate) fn reserve() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let dir = shared_dir("ports");
        let start = std::process::id().wrapping_mul(37);
        for _ in 0..COUNT {
            let step = NEXT.fetch_add(1, Ordering::Relaxed);
            let number = (FIRST + start.wrapping_add(step) % COUNT) as u16;
            let lock = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .open(dir.join(number.to_string()))
                .expect("a lock file can be made");
            if lock.try_lock().is_ok() && TcpListener::bind(("127.0.0.1", number)).is_ok() {
                return Self { number, _lock: lock };
            }
        }
        panic!("no port of 127.0.0.1 from {FIRST} on is free");
    }
}

/// A folder that the test processes of one user share.
pub(crate) fn shared_dir(name: &str) -> PathBuf {
    let user = rustix::process::getuid().as_raw();
    let base = std::env::var_os("CARGO_TARGET_TMPDIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let base = base.join(format!("tiercache-services-{user}"));
    for dir in [base.clone(), base.join(name)] {
        // Others may pass through: a server may run as another user. Only the owner reads and writes.
        match fs::DirBuilder::new().mode(0o711).create(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                panic!("cannot make {}: {error}", dir.display())
            }
            _ => {}
        }
        let found = fs::symlink_metadata(&dir).expect("the folder is there");
        assert!(found.is_dir() && found.uid() == user, "{} belongs to somebody else", dir.display());
    }
    base.join(name)
}
