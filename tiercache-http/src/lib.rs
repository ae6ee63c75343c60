#![doc = include_str!("../README.md")]

#[cfg(feature = "actix")]
pub mod actix;
mod body;
mod cache;
mod carried;
#[cfg(feature = "reqwest")]
pub mod client;
mod engine;
mod identity;
mod origin;
mod outcome;
mod policy;
#[cfg(any(feature = "actix", feature = "reqwest"))]
mod relay;
mod store;
mod tower;

pub use body::Body;
pub use cache::{Builder, HttpCache, Profile, RequestOptions};
pub use identity::Identity;
pub use origin::{DoNotStore, Origin, Redirected};
pub use outcome::Outcome;
pub use tiercache_core::BoxError;
pub use tower::{CacheFuture, CacheLayer, CacheService};
