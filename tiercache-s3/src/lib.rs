//! The S3 level of tiercache.
