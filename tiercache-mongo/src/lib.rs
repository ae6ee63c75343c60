//! The MongoDB level and tracking of tiercache.
