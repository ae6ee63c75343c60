//! HTTP caching over tiercache: responses live in the levels like any other entry.
//!
//! [`HttpCache`] answers requests from what is stored and asks an [`Origin`] for the rest, by RFC 9111 (HTTP Caching)
//! and its family. [`CacheLayer`] puts it around a tower service.

mod body;
mod cache;
mod engine;
mod key;
mod origin;
mod outcome;
mod policy;
mod store;
mod tower;

pub use body::Body;
pub use cache::{Builder, HttpCache, Profile, RequestOptions};
pub use key::Identity;
pub use origin::Origin;
pub use outcome::Outcome;
pub use tiercache_core::BoxError;
pub use tower::{CacheFuture, CacheLayer, CacheService};
