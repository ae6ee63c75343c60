use tiercache::cached;

#[cached(tll = "60s")]
async fn unknown(n: u32) -> u32 {
    n
}

#[cached(speed = 9)]
async fn unlike(n: u32) -> u32 {
    n
}

#[cached(ttl = "60x")]
async fn wrong_unit(n: u32) -> u32 {
    n
}

#[cached(ttl = "60")]
async fn no_unit(n: u32) -> u32 {
    n
}

#[cached(ttl = 60)]
async fn no_quotes(n: u32) -> u32 {
    n
}

#[cached(ttl = "0s")]
async fn zero(n: u32) -> u32 {
    n
}

#[cached(ttl = "1s", ttl = "2s")]
async fn twice(n: u32) -> u32 {
    n
}

#[cached(ttl)]
async fn no_value(n: u32) -> u32 {
    n
}

#[cached(eager = 1.5)]
async fn no_share(n: u32) -> u32 {
    n
}

#[cached(eager(perhaps = 1.0))]
async fn no_way(n: u32) -> u32 {
    n
}

#[cached(version = [1])]
async fn no_version(n: u32) -> u32 {
    n
}

#[cached(name = "")]
async fn no_name(n: u32) -> u32 {
    n
}

#[cached(key(m))]
async fn no_argument(n: u32) -> u32 {
    n
}

#[cached(skip(m))]
async fn nothing_to_skip(n: u32) -> u32 {
    n
}

#[cached(cache(cash))]
async fn no_cache(cache: &tiercache::CacheManager) -> u32 {
    1
}

#[cached(key(n), skip(n))]
async fn both(n: u32) -> u32 {
    n
}

#[cached(key = "k", version = 2)]
async fn version_of_a_key(n: u32) -> u32 {
    n
}

#[cached(in_place, stale_while_revalidate = "1m")]
async fn both_places(n: u32) -> u32 {
    n
}

#[cached(negative_ttl = "1s")]
async fn never_none(n: u32) -> u32 {
    n
}

#[cached(error_ttl = "1s")]
async fn never_fails(n: u32) -> u32 {
    n
}

#[cached(hard_timeout = "1s")]
async fn cannot_say(n: u32) -> u32 {
    n
}

fn main() {}
