//! What users of the systems before this one relied on, or were bitten by: behaviours by number, each a test.

mod cached;
mod conditions;
mod counters;
mod durability;
mod keys;
mod levels;
mod life;
mod listing;
mod locks;
mod memo;
mod shared;
mod tracking;
mod transactions;
