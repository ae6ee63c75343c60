//! The memcached level of tiercache.
