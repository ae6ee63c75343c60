use tiercache::cached;

#[derive(Clone)]
struct Shop;

impl Shop {
    #[cached]
    async fn by_value(self) -> u32 {
        1
    }

    #[cached]
    async fn changed(&mut self) -> u32 {
        1
    }

    #[cached]
    async fn boxed(self: Self) -> u32 {
        1
    }
}

#[cached]
async fn nothing(n: u32) {
    drop(n)
}

#[cached]
async fn unit(n: u32) -> () {
    drop(n)
}

#[cached]
async fn borrowed(n: &str) -> &str {
    n
}

#[cached]
async fn nameless(n: u32) -> impl Clone {
    n
}

#[cached]
async fn apart((a, b): (u32, u32)) -> u32 {
    a + b
}

#[cached]
async fn changes(n: &mut u32) -> u32 {
    *n
}

#[cached]
const fn constant(n: u32) -> u32 {
    n
}

#[cached]
unsafe fn not_safe(n: u32) -> u32 {
    n
}

#[cached]
struct NoFunction;

fn main() {}
