//! What the machine itself takes: appending to a file and reading from it, and a file for each key.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::Store;

struct Raw {
    file: File,
    places: HashMap<String, (u64, usize, u64)>,
    end: u64,
    /// Whether each value has a checksum, made when it is written and compared when it is read.
    sums: bool,
}

pub(super) fn open(directory: &Path, _: usize) -> Box<dyn Store> {
    Box::new(Raw::open(directory, false))
}

pub(super) fn with_sums(directory: &Path, _: usize) -> Box<dyn Store> {
    Box::new(Raw::open(directory, true))
}

impl Raw {
    fn open(directory: &Path, sums: bool) -> Self {
        let mut options = File::options();
        let file = options.create_new(true).read(true).append(true).open(directory.join("file"));
        Self { file: file.expect("a new directory"), places: HashMap::new(), end: 0, sums }
    }

    fn sum(&self, value: &[u8]) -> u64 {
        if self.sums { xxhash_rust::xxh3::xxh3_64(value) } else { 0 }
    }
}

impl Store for Raw {
    fn put(&mut self, key: &str, value: &Bytes) {
        self.file.write_all(value).expect("the disk takes it");
        self.places.insert(key.to_string(), (self.end, value.len(), self.sum(value)));
        self.end += value.len() as u64;
    }

    fn get(&mut self, key: &str) -> Option<usize> {
        let (at, len, sum) = *self.places.get(key)?;
        let mut value = vec![0; len];
        self.file.read_exact_at(&mut value, at).ok()?;
        (self.sum(&value) == sum).then_some(value.len())
    }
}

struct Files(PathBuf);

pub(super) fn files(directory: &Path, _: usize) -> Box<dyn Store> {
    Box::new(Files(directory.to_path_buf()))
}

impl Files {
    fn path(&self, key: &str) -> PathBuf {
        self.0.join(&key[key.len() - 2..]).join(key)
    }
}

impl Store for Files {
    fn put(&mut self, key: &str, value: &Bytes) {
        let path = self.path(key);
        let temporary = path.with_extension("new");
        if std::fs::write(&temporary, value).is_err() {
            std::fs::create_dir_all(path.parent().expect("in a directory")).expect("a directory");
            std::fs::write(&temporary, value).expect("the disk takes it");
        }
        std::fs::rename(&temporary, &path).expect("the same directory");
    }

    fn get(&mut self, key: &str) -> Option<usize> {
        Some(std::fs::read(self.path(key)).ok()?.len())
    }
}
