use tiercache::cached;

struct Pool;

#[cached(skip(pool))]
async fn rows(pool: &Pool, table: &str) -> u32 {
    let _ = pool;
    table.len() as u32
}

#[cached(hard_timeout = "1s")]
async fn cannot_say(n: u32) -> Result<u32, std::fmt::Error> {
    Ok(n)
}

fn main() {}
