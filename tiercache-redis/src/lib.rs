//! The Redis level and tracking of tiercache.
