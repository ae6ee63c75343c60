//! The SQLite level of tiercache, for several processes on one directory.
