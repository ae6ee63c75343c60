//! An actix-web service behind the cache: each scope has its policy, tags say what a change makes invalid.
//!
//! ```text
//! cargo run -p tiercache-examples --bin actix_service                  # asks itself, and ends
//! cargo run -p tiercache-examples --bin actix_service 127.0.0.1:8000
//! ```

mod ask;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use actix_web::error::ErrorInternalServerError;
use actix_web::http::header::CACHE_CONTROL;
use actix_web::{App, HttpResponse, HttpServer, Responder, rt, web};
use tiercache::prelude::*;
use tiercache::{BoxError, from_yaml};
use tiercache_http::actix::Cache;
use tiercache_http::{HttpCache, RequestOptions};

const TIERS: &str = "
hot_cache:  { backend: ram, max_size: 64MiB }
cold_cache: { backend: none }
dry_cache:  { backend: none }
tracking:   { backend: memory }
";

struct Shop {
    cache: HttpCache,
    /// Goes up with every change.
    edition: AtomicU32,
}

impl Shop {
    fn page(&self, name: &str) -> String {
        format!("{name}, edition {}", self.edition.load(Ordering::Relaxed))
    }
}

/// Says itself how long it is fresh, and what it is about.
async fn product(shop: web::Data<Shop>, id: web::Path<u32>) -> impl Responder {
    HttpResponse::Ok()
        .insert_header((CACHE_CONTROL, "max-age=60"))
        .insert_header(("surrogate-key", format!("product-{id}")))
        .body(shop.page(&format!("product {id}")))
}

/// A change. The cache drops what is stored for this URI by itself; other pages show the product too.
async fn change(shop: web::Data<Shop>, id: web::Path<u32>) -> actix_web::Result<&'static str> {
    shop.edition.fetch_add(1, Ordering::Relaxed);
    let purged = shop.cache.purge_tag("surrogate-key", &format!("product-{id}")).await;
    purged.map(|()| "changed").map_err(ErrorInternalServerError)
}

/// Says nothing about caching: its resource does.
async fn offers(shop: web::Data<Shop>) -> impl Responder {
    HttpResponse::Ok().insert_header(("surrogate-key", "product-7 product-8")).body(shop.page("offers"))
}

/// Of one customer: not stored.
async fn basket(shop: web::Data<Shop>) -> impl Responder {
    HttpResponse::Ok().insert_header((CACHE_CONTROL, "private")).body(shop.page("basket"))
}

#[actix_web::main]
async fn main() -> Result<(), BoxError> {
    let manager = from_yaml(TIERS, &Registry::builtin()).await?;
    let cache = HttpCache::builder(manager).tags_from("surrogate-key".parse()?).build()?;
    // Made once: the workers share both.
    let layer = Cache::new(cache.clone());
    let shop = web::Data::new(Shop { cache: cache.clone(), edition: AtomicU32::new(0) });
    let apps = move || {
        let five = RequestOptions::new().ttl(Duration::from_secs(5)).tag("type", "list");
        App::new()
            .app_data(shop.clone())
            .service(
                web::resource("/products/{id}")
                    .route(web::get().to(product))
                    .route(web::put().to(change))
                    .wrap(layer.clone()),
            )
            .service(web::resource("/offers").route(web::get().to(offers)).wrap(layer.clone().options(five)))
            .service(web::resource("/basket").route(web::get().to(basket)).wrap(layer.clone()))
    };
    let listen = std::env::args().nth(1);
    let server = HttpServer::new(apps).workers(2).bind(listen.as_deref().unwrap_or("127.0.0.1:0"))?;
    let at = server.addrs()[0];
    let server = server.run();
    if listen.is_some() {
        server.await?;
        return Ok(());
    }
    rt::spawn(server);
    for path in ["/products/7", "/products/7", "/offers", "/offers", "/basket", "/basket"] {
        ask::ask(at, "GET", path).await?;
    }
    ask::ask(at, "PUT", "/products/7").await?;
    ask::ask(at, "GET", "/products/7").await?;
    ask::ask(at, "GET", "/offers").await?;
    cache.purge_tag("type", "list").await?;
    ask::ask(at, "GET", "/offers").await?;
    cache.purge(&"http://shop.example/products/7".parse()?).await?;
    ask::ask(at, "GET", "/products/7").await?;
    Ok(())
}
