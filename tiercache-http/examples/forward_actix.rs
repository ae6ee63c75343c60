//! An actix-web service that has every answer from another server, behind a cache.
//!
//! ```text
//! cargo run -p tiercache-http --features actix --example forward_actix -- http://127.0.0.1:8000 127.0.0.1:9000 rfc9111
//! ```

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use actix_web::body::{BodySize, MessageBody};
use actix_web::http as old;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use bytes::Bytes;
use http::{Uri, header};
use http_body::Body as _;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tiercache_core::{BoxError, CacheManager};
use tiercache_http::actix::Cache;
use tiercache_http::{HttpCache, Profile};
use tiercache_ram::{Policy, RamConfig, RamTier};

type Forward = (Client<HttpConnector, Full<Bytes>>, Uri);

#[actix_web::main]
async fn main() -> Result<(), BoxError> {
    let mut arguments = std::env::args().skip(1);
    let origin: Uri = arguments.next().ok_or("the origin's URI is missing")?.parse()?;
    let listen = arguments.next().ok_or("the address to listen at is missing")?;
    let profile = match arguments.next().as_deref() {
        Some("rfc9111") => Profile::Rfc9111,
        None | Some("default") => Profile::Default,
        Some(other) => return Err(format!("profile {other}: there are default and rfc9111").into()),
    };
    let ram = Arc::new(RamTier::new(RamConfig { max_size: 256 << 20, policy: Policy::default() }));
    let manager = CacheManager::builder().hot(ram).build().await?;
    let layer = Cache::new(HttpCache::builder(manager).profile(profile).build()?);
    let apps = move || {
        // Servers close idle connections; closing them earlier loses no request to that. Each worker has its own.
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(2))
            .build(HttpConnector::new());
        let forwarding: web::Data<Forward> = web::Data::new((client, origin.clone()));
        App::new()
            .app_data(forwarding)
            .app_data(web::PayloadConfig::new(64 << 20))
            .default_service(web::to(forward))
            .wrap(layer.clone())
    };
    HttpServer::new(apps).workers(2).bind(listen)?.run().await?;
    Ok(())
}

async fn forward(to: web::Data<Forward>, request: HttpRequest, body: Bytes) -> HttpResponse {
    let (client, origin) = to.get_ref();
    let Some(asked) = asked(&request, origin, body) else { return HttpResponse::BadRequest().finish() };
    let Ok(answered) = client.request(asked).await else { return HttpResponse::BadGateway().finish() };
    let status = old::StatusCode::from_u16(answered.status().as_u16());
    let mut answer = HttpResponse::build(status.unwrap_or(old::StatusCode::BAD_GATEWAY));
    for (name, value) in answered.headers() {
        if !is_of_one_connection(name.as_str(), |name| {
            answered.headers().get(name).map(|value| value.as_bytes())
        }) {
            answer.append_header((name.as_str(), value.as_bytes()));
        }
    }
    answer.body(Carried(answered.into_body()))
}

fn asked(request: &HttpRequest, origin: &Uri, body: Bytes) -> Option<http::Request<Full<Bytes>>> {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let target = format!("http://{}{path}", origin.authority()?);
    let mut asked = http::Request::builder().method(request.method().as_str()).uri(target);
    for (name, value) in request.headers() {
        let connection = |name: &str| request.headers().get(name).map(|value| value.as_bytes());
        if *name != old::header::HOST && !is_of_one_connection(name.as_str(), connection) {
            asked = asked.header(name.as_str(), value.as_bytes());
        }
    }
    asked.body(Full::new(body)).ok()
}

/// What is about one connection is not forwarded (RFC 9110 §7.6.1).
fn is_of_one_connection<'a>(name: &str, field: impl Fn(&str) -> Option<&'a [u8]>) -> bool {
    let own = [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE];
    let named = field(header::CONNECTION.as_str()).and_then(|line| std::str::from_utf8(line).ok());
    own.iter().any(|own| own.as_str() == name)
        || named.is_some_and(|named| named.split(',').any(|named| named.trim().eq_ignore_ascii_case(name)))
}

/// The origin's body.
struct Carried(Incoming);

impl MessageBody for Carried {
    type Error = hyper::Error;

    fn size(&self) -> BodySize {
        self.0.size_hint().exact().map_or(BodySize::Stream, BodySize::Sized)
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, hyper::Error>>> {
        loop {
            match ready!(Pin::new(&mut self.0).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => return Poll::Ready(Some(Ok(data))),
                    Err(_) => continue,
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }
}
