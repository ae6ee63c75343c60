//! The command, run as its users run it.

mod command;
mod common;
mod http;
mod proxy;
mod real_files;
mod transfer;
