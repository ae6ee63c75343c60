use tiercache::cached;

#[cached(cache = 7)]
async fn no_cache(n: u32) -> u32 {
    n
}

#[cached(cache(n))]
async fn no_cache_either(n: u32) -> u32 {
    n
}

fn main() {}
