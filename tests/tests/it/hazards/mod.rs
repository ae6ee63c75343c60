//! The interleavings that broke other caches, one by one: a gate holds one side of a race, the other side runs, the
//! gate opens.

mod code;
mod counters;
mod journal;
mod keys;
mod overload;
mod overtaken;
mod storage;
mod time;
mod transit;
