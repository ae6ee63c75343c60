//! Every backend at every level and under every fault.

mod deployments;
mod embedded;
mod faults;
mod late;
mod levels;
mod secrets;
mod table;
mod tracking;
