//! The proxy between real connections.

mod attacks;
mod common;
mod forwarding;
mod http2;
mod smuggling;
