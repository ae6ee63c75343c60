//! The crate under another name, beside items that have the names the macro would use.

extern crate tiercache as layered;

mod tiercache {}
mod std {}
mod core {}

struct Option;
struct Result;
struct Some;

#[layered::cached(crate = layered, cache(cache), ttl = "1s", tags(name = value), version = code)]
pub async fn user(cache: &layered::CacheManager, value: u64) -> u64 {
    let _ = (Option, Result, Some);
    value
}

fn main() {
    let _ = user;
    let _ = user::bypass;
}
