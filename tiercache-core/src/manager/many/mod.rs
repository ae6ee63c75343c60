//! Many keys in one call.
//!
//! Each key goes through the steps of its single operation: its own generation, stripe, flight, floor and fences. What
//! is shared is the way to a level: at each step all that has to wait for a level is sent there in one call.
//!
//! 1. Everything that can be decided without waiting is, key by key, each under its stripe.
//! 2. What is left registers its flights, and goes to the levels together. A read already under way is joined,
//!    and joins of others are answered as soon as the level that has the key has answered.
//! 3. A removal that finds another of its key under way waits for that one alone, and a key to which a write is under way is
//!    removed alone: neither holds up the others.
//! 4. Each item's answer is judged under its own stripe, as that of a single operation.
//!
//! Batches of more than [`MOST_TOGETHER`] are several, one after the other, so that what a batch registers is bounded.

mod read;
mod remove;
mod write;

/// The most items that go to a level in one call.
const MOST_TOGETHER: usize = 1_000;

/// Single operations side by side, where a batch has to make some.
const AT_ONCE: usize = 16;
