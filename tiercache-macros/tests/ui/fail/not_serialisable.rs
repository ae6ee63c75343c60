use tiercache::cached;

#[derive(Clone)]
struct Page;

#[cached]
async fn page(n: u32) -> Page {
    let _ = n;
    Page
}

fn main() {}
