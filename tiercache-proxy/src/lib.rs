#![doc = include_str!("../README.md")]

mod access;
mod address;
mod answer;
mod error;
mod fields;
mod limits;
mod patience;
mod proxy;
mod request;
mod seat;
mod server;
mod target;
mod upstream;

pub use access::Counters;
pub use address::is_public;
pub use error::{BodyFault, UpstreamError};
pub use limits::Limits;
pub use proxy::Proxy;
pub use seat::Seat;
pub use server::Drained;
pub use target::{InvalidTarget, Target};
pub use upstream::Upstream;
