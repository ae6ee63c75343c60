//! The command, run as its users run it.

mod command;
mod common;
mod drift;
mod http;
mod proxy;
mod real_files;
mod transfer;
