//! The middleware of actix-web, over sockets and several workers.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::Bench;
use actix_web::dev::{Service, ServiceResponse};
use actix_web::http::header::{CACHE_CONTROL, ETAG, IF_NONE_MATCH};
use actix_web::middleware::from_fn;
use actix_web::{App, Error, HttpMessage, HttpRequest, HttpResponse, HttpServer, error, rt, web};
use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tiercache_http::actix::Cache;
use tiercache_http::{Outcome, RequestOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

const MINUTE: (actix_web::http::header::HeaderName, &str) = (CACHE_CONTROL, "max-age=60");

/// Apps on three workers.
macro_rules! server {
    ($app:expr) => {{
        let server = HttpServer::new(move || $app).workers(3).disable_signals();
        let server = server.bind(("127.0.0.1", 0)).unwrap();
        (server.addrs()[0], server.run())
    }};
}

/// Runs them until the test ends.
macro_rules! serve {
    ($app:expr) => {{
        let (address, server) = server!($app);
        rt::spawn(server);
        address
    }};
}

struct Answer {
    status: u16,
    headers: http::HeaderMap,
    body: Bytes,
}

impl Answer {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// What the cache says that it did.
    fn status_of_cache(&self) -> &str {
        self.header("cache-status")
    }

    fn is_hit(&self) -> bool {
        self.status_of_cache().starts_with("tiercache; hit; ttl")
    }
}

/// Each of these has a connection of its own, and with it mostly another worker.
async fn ask(at: SocketAddr, method: &str, path: &str, body: &'static str) -> Result<Answer, String> {
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let request = http::Request::builder().method(method).uri(format!("http://{at}{path}"));
    let request = request.body(Full::new(Bytes::from_static(body.as_bytes()))).unwrap();
    let (parts, body) = client.request(request).await.map_err(|error| error.to_string())?.into_parts();
    let body = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
    Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body })
}

async fn get(at: SocketAddr, path: &str) -> Answer {
    ask(at, "GET", path, "").await.unwrap()
}

/// How often a handler was asked. Given to all workers.
#[derive(Clone, Default)]
struct Count(Arc<AtomicUsize>);

impl Count {
    fn up(&self) -> usize {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }

    fn now(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    async fn until(&self, times: usize) {
        while self.now() < times {
            tokio::task::yield_now().await;
        }
    }
}

/// Bytes that differ from place to place.
fn long(length: usize) -> Bytes {
    (0..length).map(|at| (at / 251 + at) as u8).collect::<Vec<_>>().into()
}

#[actix_web::test]
async fn what_one_worker_stored_all_of_them_answer() {
    let bench = Bench::new(|cache| cache).await;
    let (cache, count) = (bench.cache.clone(), Count::default());
    let counted = count.clone();
    let page = async |count: web::Data<Count>, name: web::Path<String>| {
        HttpResponse::Ok()
            .insert_header(MINUTE)
            .insert_header(("x-kept", "a"))
            .append_header(("x-kept", "b"))
            .body(format!("{name} {}", count.up()))
    };
    let at = serve!(
        App::new()
            .app_data(web::Data::new(counted.clone()))
            .route("/pages/{name}", web::get().to(page))
            .wrap(Cache::new(cache.clone()))
    );
    let first = get(at, "/pages/a").await;
    assert_eq!((first.status, first.text()), (200, "a 1"));
    assert_eq!(first.status_of_cache(), "tiercache; fwd=uri-miss; stored");
    for _ in 0..9 {
        let hit = get(at, "/pages/a").await;
        assert_eq!((hit.status, hit.text(), hit.header("content-length")), (200, "a 1", "3"));
        assert_eq!(hit.headers.get_all("x-kept").iter().collect::<Vec<_>>(), ["a", "b"]);
        assert!(hit.is_hit(), "{}", hit.status_of_cache());
        assert_eq!(hit.header("age"), "0");
    }
    assert_eq!(get(at, "/pages/b").await.text(), "b 2");
    assert_eq!(get(at, "/pages/a?x").await.text(), "a 3");
}

#[actix_web::test]
async fn a_stale_answer_is_confirmed_by_the_handler() {
    let bench = Bench::new(|cache| cache).await;
    let (cache, count) = (bench.cache.clone(), Count::default());
    let counted = count.clone();
    let page = async |request: HttpRequest, count: web::Data<Count>| {
        count.up();
        let known = request.headers().get(IF_NONE_MATCH).is_some_and(|tag| tag == "\"a\"");
        let mut answer = if known { HttpResponse::NotModified() } else { HttpResponse::Ok() };
        answer.insert_header(MINUTE).insert_header((ETAG, "\"a\""));
        if known { answer.finish() } else { answer.body("hello") }
    };
    let at = serve!(
        App::new()
            .app_data(web::Data::new(counted.clone()))
            .service(web::resource("/").route(web::get().to(page)).wrap(Cache::new(cache.clone())))
    );
    assert_eq!(get(at, "/").await.text(), "hello");
    bench.pass(61);
    let confirmed = get(at, "/").await;
    assert_eq!((confirmed.status, confirmed.text()), (200, "hello"));
    assert!(confirmed.status_of_cache().contains("fwd-status=304"), "{}", confirmed.status_of_cache());
    assert!(get(at, "/").await.is_hit());
    assert_eq!(count.now(), 2);
    // The requester's own condition is answered from the store.
    let mut stream = TcpStream::connect(at).await.unwrap();
    let request = "GET / HTTP/1.1\r\nHost: HOST\r\nIf-None-Match: \"a\"\r\nConnection: close\r\n\r\n";
    stream.write_all(request.replace("HOST", &at.to_string()).as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 304 "), "{answer}");
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    assert_eq!(count.now(), 2);
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Mark(u32);

#[actix_web::test]
async fn answers_and_errors_stay_what_they_are() {
    let bench = Bench::new(|cache| cache).await;
    let cache = bench.cache.clone();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let told = seen.clone();
    let at = serve!({
        let told = told.clone();
        App::new()
            .route(
                "/marked",
                web::get().to(async || {
                    let mut answer = HttpResponse::Ok().insert_header(MINUTE).body("marked");
                    answer.extensions_mut().insert(Mark(7));
                    answer
                }),
            )
            .route("/teapot", web::get().to(async || Err::<HttpResponse, _>(error::ErrorImATeapot("short"))))
            .service(
                web::scope("/closed")
                    .wrap(from_fn(async |_, _| -> Result<ServiceResponse, Error> {
                        Err(error::ErrorForbidden("go away"))
                    }))
                    .route("", web::get().to(HttpResponse::Ok)),
            )
            .wrap(Cache::new(cache.clone()))
            .wrap_fn(move |request, service| {
                let (told, answered) = (told.clone(), service.call(request));
                async move {
                    let answered = answered.await;
                    told.lock().unwrap().push(match &answered {
                        Ok(answer) => {
                            let extensions = answer.response().extensions();
                            let error = answer.response().error().map(ToString::to_string);
                            (extensions.get::<Mark>().copied(), extensions.get::<Outcome>().copied(), error)
                        }
                        Err(error) => (None, None, Some(format!("err: {error}"))),
                    });
                    answered
                }
            })
    });
    let expected = [
        ("/marked", 200, "marked", (Some(Mark(7)), Some(Outcome::Miss), None)),
        ("/marked", 200, "marked", (None, Some(Outcome::Hit), None)),
        ("/teapot", 418, "short", (None, Some(Outcome::Miss), Some("short".into()))),
        ("/closed", 403, "go away", (None, None, Some("err: go away".into()))),
        ("/nothing", 404, "", (None, Some(Outcome::Miss), None)),
    ];
    for (path, status, text, as_seen) in expected {
        let answer = get(at, path).await;
        assert_eq!((answer.status, answer.text()), (status, text), "{path}");
        assert_eq!(seen.lock().unwrap().pop(), Some(as_seen), "{path}");
    }
}

#[actix_web::test]
async fn a_long_body_streams_is_stored_and_comes_back() {
    let bench = Bench::new(|cache| cache).await;
    let (cache, count, body) = (bench.cache.clone(), Count::default(), long((3 << 20) + 77));
    let (counted, sent) = (count.clone(), body.clone());
    let at = serve!({
        let (count, sent) = (counted.clone(), sent.clone());
        let page = move || {
            count.up();
            let chunks: Vec<_> =
                sent.chunks(10_000).map(|chunk| Ok::<_, Error>(sent.slice_ref(chunk))).collect();
            std::future::ready(HttpResponse::Ok().insert_header(MINUTE).streaming(stream::iter(chunks)))
        };
        App::new().route("/", web::get().to(page)).wrap(Cache::new(cache.clone()))
    });
    let first = get(at, "/").await;
    assert!(first.body == body);
    assert_eq!(first.header("transfer-encoding"), "chunked");
    let hit = get(at, "/").await;
    assert!(hit.is_hit() && hit.body == body);
    assert_eq!(hit.header("content-length"), body.len().to_string());
    assert_eq!(count.now(), 1);
}

#[actix_web::test]
async fn a_body_that_fails_is_passed_on_and_not_stored() {
    let bench = Bench::new(|cache| cache).await;
    let (cache, count) = (bench.cache.clone(), Count::default());
    let counted = count.clone();
    let page = async |count: web::Data<Count>| {
        count.up();
        let chunks = [Ok(Bytes::from_static(b"some")), Err(error::ErrorBadGateway("reset"))];
        HttpResponse::Ok().insert_header(MINUTE).streaming(stream::iter(chunks))
    };
    let at = serve!(
        App::new()
            .app_data(web::Data::new(counted.clone()))
            .route("/", web::get().to(page))
            .wrap(Cache::new(cache.clone()))
    );
    for time in 1..=3 {
        assert!(ask(at, "GET", "/", "").await.is_err());
        assert_eq!(count.now(), time);
    }
}

#[actix_web::test]
async fn a_scope_has_its_own_options_and_tags() {
    let bench = Bench::new(|cache| cache).await;
    let (cache, count) = (bench.cache.clone(), Count::default());
    let counted = count.clone();
    let page = async |count: web::Data<Count>| count.up().to_string();
    let at = serve!({
        let layer = Cache::new(cache.clone());
        let options = RequestOptions::new().ttl(Duration::from_secs(60)).tag("type", "page");
        App::new()
            .app_data(web::Data::new(counted.clone()))
            .service(
                web::scope("/kept").wrap(layer.clone().options(options)).route("/a", web::get().to(page)),
            )
            .service(web::scope("/plain").wrap(layer.clone()).route("/a", web::get().to(page)))
            .service(web::resource("/outside").route(web::get().to(page)).wrap(layer).wrap_fn(
                |request, service| {
                    request.extensions_mut().insert(RequestOptions::new().ttl(Duration::from_secs(60)));
                    service.call(request)
                },
            ))
    });
    for (path, expected) in [
        ("/kept/a", "1"),
        ("/kept/a", "1"),
        ("/plain/a", "2"),
        ("/plain/a", "3"),
        ("/outside", "4"),
        ("/outside", "4"),
    ] {
        assert_eq!(get(at, path).await.text(), expected, "{path}");
    }
    bench.cache.purge_tag("type", "page").await.unwrap();
    let purged = get(at, "/kept/a").await;
    assert_eq!((purged.text(), purged.status_of_cache()), ("5", "tiercache; fwd=uri-miss; stored"));
    assert_eq!(get(at, "/outside").await.text(), "4");
    bench.cache.purge(&format!("http://{at}/outside").parse().unwrap()).await.unwrap();
    assert_eq!(get(at, "/outside").await.text(), "6");
}

#[actix_web::test]
async fn a_head_is_answered_by_what_a_get_stored_or_by_the_handler() {
    let bench = Bench::new(|cache| cache).await;
    let (cache, count) = (bench.cache.clone(), Count::default());
    let counted = count.clone();
    let page = async |count: web::Data<Count>| {
        count.up();
        HttpResponse::Ok().insert_header(MINUTE).body("hello")
    };
    let at = serve!(
        App::new()
            .app_data(web::Data::new(counted.clone()))
            .route("/{any}", web::route().to(page))
            .wrap(Cache::new(cache.clone()))
    );
    let head = ask(at, "HEAD", "/a", "").await.unwrap();
    assert_eq!((head.status, head.header("content-length"), head.text()), (200, "5", ""));
    assert_eq!((get(at, "/a").await.text(), count.now()), ("hello", 2));
    let head = ask(at, "HEAD", "/a", "").await.unwrap();
    assert_eq!((head.status, head.header("content-length"), head.text()), (200, "5", ""));
    assert!(head.is_hit());
    assert_eq!(count.now(), 2);
}

#[actix_web::test]
async fn bodies_of_requests_reach_the_handler_and_changes_invalidate() {
    let bench = Bench::new(|cache| cache).await;
    let cache = bench.cache.clone();
    let value = Arc::new(Mutex::new(String::from("old")));
    let kept = value.clone();
    let read = async |value: web::Data<Mutex<String>>, body: Bytes| {
        HttpResponse::Ok().insert_header(MINUTE).body(format!(
            "{}{}",
            value.lock().unwrap(),
            String::from_utf8_lossy(&body)
        ))
    };
    let write = async |value: web::Data<Mutex<String>>, body: String| {
        *value.lock().unwrap() = body;
        HttpResponse::NoContent().finish()
    };
    let at = serve!(
        App::new()
            .app_data(web::Data::from(kept.clone()))
            .service(web::resource("/").route(web::get().to(read)).route(web::put().to(write)))
            .wrap(Cache::new(cache.clone()))
    );
    assert_eq!(get(at, "/").await.text(), "old");
    *value.lock().unwrap() = "unseen".into();
    assert_eq!(get(at, "/").await.text(), "old");
    assert_eq!(ask(at, "PUT", "/", "new").await.unwrap().status, 204);
    assert_eq!(get(at, "/").await.text(), "new");
    // A body with a GET is no part of the key: such a request passes by.
    assert_eq!(ask(at, "GET", "/", "+body").await.unwrap().text(), "new+body");
    assert_eq!(get(at, "/").await.text(), "new");
}

#[actix_web::test]
async fn many_who_ask_at_once_on_all_workers_are_one_request() {
    let bench = Bench::new(|cache| cache).await;
    let (cache, count, gate) = (bench.cache.clone(), Count::default(), Arc::new(Semaphore::new(0)));
    let (counted, closed) = (count.clone(), gate.clone());
    let page = async |count: web::Data<Count>, gate: web::Data<Semaphore>| {
        let asked = count.up();
        gate.acquire().await.unwrap().forget();
        HttpResponse::Ok().insert_header(MINUTE).body(asked.to_string())
    };
    let at = serve!(
        App::new()
            .app_data(web::Data::new(counted.clone()))
            .app_data(web::Data::from(closed.clone()))
            .route("/", web::get().to(page))
            .wrap(Cache::new(cache.clone()))
    );
    let all = rt::spawn(join_all((0..20).map(|_| get(at, "/"))));
    count.until(1).await;
    gate.add_permits(1);
    for answer in all.await.unwrap() {
        assert_eq!(answer.text(), "1");
    }
    assert_eq!(count.now(), 1);
}

#[actix_web::test]
async fn who_leaves_while_the_handler_works_harms_nobody() {
    let bench = Bench::new(|cache| cache).await;
    let (cache, count, gate) = (bench.cache.clone(), Count::default(), Arc::new(Semaphore::new(0)));
    let (counted, closed) = (count.clone(), gate.clone());
    let page = async |count: web::Data<Count>, gate: web::Data<Semaphore>| {
        let asked = count.up();
        gate.acquire().await.unwrap().forget();
        HttpResponse::Ok().insert_header(MINUTE).body(asked.to_string())
    };
    let at = serve!(
        App::new()
            .app_data(web::Data::new(counted.clone()))
            .app_data(web::Data::from(closed.clone()))
            .route("/", web::get().to(page))
            .wrap(Cache::new(cache.clone()))
    );
    let mut leaver = TcpStream::connect(at).await.unwrap();
    leaver.write_all(format!("GET / HTTP/1.1\r\nHost: {at}\r\n\r\n").as_bytes()).await.unwrap();
    count.until(1).await;
    let waiting = rt::spawn(async move { get(at, "/").await });
    // A reset, so that the server sees that nobody is there.
    leaver.set_zero_linger().unwrap();
    drop(leaver);
    gate.add_permits(2);
    let text = waiting.await.unwrap().text().to_owned();
    assert!(["1", "2"].contains(&text.as_str()), "{text}");
    assert_eq!(get(at, "/").await.text(), text);
}

#[actix_web::test]
async fn those_who_wait_are_served_when_the_worker_that_asks_for_all_goes_away() {
    let bench = Bench::new(|cache| cache).await;
    let (count, gate) = (Count::default(), Arc::new(Semaphore::new(0)));
    let page = async |count: web::Data<Count>, gate: web::Data<Semaphore>| {
        let asked = count.up();
        gate.acquire().await.unwrap().forget();
        HttpResponse::Ok().insert_header(MINUTE).body(asked.to_string())
    };
    let app = {
        let (cache, count, gate) = (bench.cache.clone(), count.clone(), gate.clone());
        move || {
            App::new()
                .app_data(web::Data::new(count.clone()))
                .app_data(web::Data::from(gate.clone()))
                .route("/", web::get().to(page))
                .wrap(Cache::new(cache.clone()))
        }
    };
    let other = app.clone();
    let ((at, ending), staying) = (server!(app()), serve!(other()));
    let handle = ending.handle();
    let ended = rt::spawn(ending);
    // Of the same host, so that both are about the same.
    let ask = async |at| {
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.map(|_| answer).unwrap_or_default()
    };
    let leading = rt::spawn(ask(at));
    count.until(1).await;
    let waiting = rt::spawn(ask(staying));
    handle.stop(false).await;
    ended.await.unwrap().unwrap();
    assert_eq!(leading.await.unwrap(), "");
    gate.add_permits(1);
    let answer = waiting.await.unwrap();
    assert!(answer.ends_with("\r\n\r\n2"), "{answer}");
}

#[actix_web::test]
async fn what_somebody_who_left_began_to_read_is_stored_to_its_end() {
    let bench = Bench::new(|cache| cache).await;
    let (cache, count, gate) = (bench.cache.clone(), Count::default(), Arc::new(Semaphore::new(0)));
    let (counted, closed) = (count.clone(), gate.clone());
    let page = async |count: web::Data<Count>, gate: web::Data<Semaphore>| {
        count.up();
        let chunks = stream::unfold(0, move |at| {
            let gate = gate.clone();
            async move {
                if at > 0 {
                    gate.acquire().await.unwrap().forget();
                }
                (at < 40).then(|| (Ok::<_, Error>(Bytes::from(vec![at; 50_000])), at + 1))
            }
        });
        HttpResponse::Ok().insert_header(MINUTE).streaming(chunks)
    };
    let at = serve!(
        App::new()
            .app_data(web::Data::new(counted.clone()))
            .app_data(web::Data::from(closed.clone()))
            .route("/", web::get().to(page))
            .wrap(Cache::new(cache.clone()))
    );
    let mut leaver = TcpStream::connect(at).await.unwrap();
    leaver.write_all(format!("GET / HTTP/1.1\r\nHost: {at}\r\n\r\n").as_bytes()).await.unwrap();
    leaver.read_exact(&mut [0; 1000]).await.unwrap();
    leaver.set_zero_linger().unwrap();
    drop(leaver);
    gate.add_permits(1000);
    let found = get(at, "/").await;
    let expected: Vec<u8> = (0..40).flat_map(|at| vec![at; 50_000]).collect();
    assert!(found.body == expected);
    assert_eq!(count.now(), 1, "{}", found.status_of_cache());
}

#[actix_web::test]
async fn what_nobody_stores_ends_with_its_reader() {
    struct Told(Arc<Semaphore>);
    impl Drop for Told {
        fn drop(&mut self) {
            self.0.add_permits(1);
        }
    }
    let bench = Bench::new(|cache| cache).await;
    let (cache, dropped) = (bench.cache.clone(), Arc::new(Semaphore::new(0)));
    let tell = dropped.clone();
    let events = async |tell: web::Data<Semaphore>| {
        let told = Told(tell.into_inner());
        let endless = stream::unfold((false, told), async |(said, told)| {
            if said {
                std::future::pending::<()>().await;
            }
            Some((Ok::<_, Error>(Bytes::from_static(b"event")), (true, told)))
        });
        HttpResponse::Ok().streaming(endless)
    };
    let at = serve!(
        App::new()
            .app_data(web::Data::from(tell.clone()))
            .route("/", web::get().to(events))
            .wrap(Cache::new(cache.clone()))
    );
    let mut leaver = TcpStream::connect(at).await.unwrap();
    leaver.write_all(format!("GET / HTTP/1.1\r\nHost: {at}\r\n\r\n").as_bytes()).await.unwrap();
    let mut read = Vec::new();
    while !read.ends_with(b"event\r\n") {
        read.push(leaver.read_u8().await.unwrap());
    }
    leaver.set_zero_linger().unwrap();
    drop(leaver);
    dropped.acquire().await.unwrap().forget();
}

#[actix_web::test]
async fn a_stale_answer_comes_at_once_while_the_handler_is_asked_anew() {
    let bench = Bench::new(|cache| cache).await;
    let (cache, count, gate) = (bench.cache.clone(), Count::default(), Arc::new(Semaphore::new(1)));
    let (counted, closed) = (count.clone(), gate.clone());
    let page = async |count: web::Data<Count>, gate: web::Data<Semaphore>, name: web::Path<String>| {
        let asked = count.up();
        gate.acquire().await.unwrap().forget();
        HttpResponse::Ok()
            .insert_header((CACHE_CONTROL, "max-age=60, stale-while-revalidate=60"))
            .body(format!("{name} {asked}"))
    };
    let at = serve!(
        App::new()
            .app_data(web::Data::new(counted.clone()))
            .app_data(web::Data::from(closed.clone()))
            .service(web::scope("/pages").route("/{name}", web::get().to(page)))
            .wrap(Cache::new(cache.clone()))
            // Has the request until the answer has passed it, and does something meanwhile.
            .wrap_fn(|request, service| {
                let answered = service.call(request);
                async move {
                    let answered = answered.await;
                    tokio::task::yield_now().await;
                    answered
                }
            })
    );
    assert_eq!(get(at, "/pages/a").await.text(), "a 1");
    bench.pass(90);
    for _ in 0..3 {
        let stale = get(at, "/pages/a").await;
        assert_eq!(stale.text(), "a 1");
        count.until(2).await;
    }
    gate.add_permits(1);
    // Those who ask until it is there have the old one.
    loop {
        let answer = get(at, "/pages/a").await;
        if answer.text() == "a 2" {
            break;
        }
        assert_eq!(answer.text(), "a 1");
    }
    assert_eq!(count.now(), 2);
    // By a HEAD too: it is answered, and the handler is asked for all.
    bench.pass(90);
    assert_eq!(ask(at, "HEAD", "/pages/a", "").await.unwrap().header("content-length"), "3");
    count.until(3).await;
    gate.add_permits(1);
    while get(at, "/pages/a").await.text() != "a 3" {}
    assert_eq!(count.now(), 3);
}

#[actix_web::test]
async fn an_error_is_answered_with_what_is_stored_where_that_is_allowed() {
    let bench = Bench::new(|cache| cache).await;
    let (cache, count) = (bench.cache.clone(), Count::default());
    let counted = count.clone();
    let page = async |count: web::Data<Count>| match count.up() {
        1 => Ok(HttpResponse::Ok()
            .insert_header((CACHE_CONTROL, "max-age=60, stale-if-error=60"))
            .body("good")),
        _ => Err(error::ErrorServiceUnavailable("down")),
    };
    let at = serve!(
        App::new()
            .app_data(web::Data::new(counted.clone()))
            .route("/", web::get().to(page))
            .wrap(Cache::new(cache.clone()))
    );
    assert_eq!(get(at, "/").await.text(), "good");
    bench.pass(90);
    let stale = get(at, "/").await;
    assert_eq!((stale.status, stale.text(), count.now()), (200, "good", 2));
    bench.pass(90);
    let failed = get(at, "/").await;
    assert_eq!((failed.status, failed.text(), count.now()), (503, "down", 3));
}

#[actix_web::test]
async fn a_connection_that_is_upgraded_goes_through_in_both_directions() {
    let bench = Bench::new(|cache| cache).await;
    let cache = bench.cache.clone();
    let echo = async |payload: web::Payload| {
        HttpResponse::SwitchingProtocols().upgrade("websocket").streaming(payload)
    };
    let at = serve!(App::new().route("/", web::get().to(echo)).wrap(Cache::new(cache.clone())));
    let mut stream = TcpStream::connect(at).await.unwrap();
    let request =
        format!("GET / HTTP/1.1\r\nHost: {at}\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    for word in [*b"one", *b"two"] {
        stream.write_all(&word).await.unwrap();
        let mut back = [0; 3];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(back, word);
    }
}
