//! The policy behind its adapters.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[cfg(feature = "actix")]
mod actix;
mod attacks;
#[cfg(feature = "reqwest")]
mod client;
mod common;
mod invalidate;
mod layer;
mod principals;
mod reuse;
mod revalidate;
mod share;
mod stream;
