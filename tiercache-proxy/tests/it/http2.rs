//! Clients that speak HTTP/2 from the start; the origin is spoken to in HTTP/1.1.

use crate::common::{Origin, Reply, Running, fresh, response};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, Version};
use http_body::{Body as _, Frame};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tiercache_http::Body;
use tokio::net::TcpStream;

async fn connect(proxy: &Running) -> SendRequest<Body> {
    let stream = TcpStream::connect(proxy.address).await.expect("a connection");
    let (sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2 is spoken");
    tokio::spawn(connection);
    sender
}

fn get(uri: &str) -> http::request::Builder {
    Request::builder().version(Version::HTTP_2).uri(uri)
}

async fn ask(client: &mut SendRequest<Body>, request: Request<Body>) -> Response<Bytes> {
    client.ready().await.expect("a connection");
    whole(client.send_request(request).await.expect("an answer")).await
}

async fn whole(response: Response<Incoming>) -> Response<Bytes> {
    let (head, mut body) = response.into_parts();
    let mut bytes = Vec::new();
    while let Some(frame) =
        std::future::poll_fn(|context| std::pin::Pin::new(&mut body).poll_frame(context)).await
    {
        bytes.extend(frame.map(Frame::into_data).expect("a frame").expect("data"));
    }
    Response::from_parts(head, bytes.into())
}

#[tokio::test]
async fn a_request_becomes_one_of_http_1_1_and_its_answer_one_of_http_2() {
    let origin = Origin::start(|_| {
        Reply::Bytes(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\nKeep-Alive: 5\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n"
                .to_vec(),
        )
    })
    .await;
    let proxy = Running::before(&origin).await;
    let mut client = connect(&proxy).await;
    let request = get("http://a.example/x?y=1")
        .method(Method::POST)
        .header("te", "trailers")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .body(Body::from("the body"))
        .expect("a request");
    let answer = ask(&mut client, request).await;
    assert_eq!(
        (answer.status().as_u16(), answer.version(), &answer.body()[..]),
        (200, Version::HTTP_2, &b"abc"[..])
    );
    for name in ["connection", "keep-alive", "transfer-encoding"] {
        assert!(!answer.headers().contains_key(name), "{name}");
    }
    let received = origin.last();
    assert_eq!((received.line(), received.body.as_slice()), ("POST /x?y=1 HTTP/1.1", &b"the body"[..]));
    assert_eq!(received.all("host"), ["a.example"]);
    assert_eq!(received.all("cookie"), ["a=1; b=2"]);
    assert_eq!(received.all("via"), ["2.0 tiercache"]);
    assert!(received.all("te").is_empty() && received.all(":authority").is_empty());
}

#[tokio::test]
async fn both_versions_share_what_is_kept() {
    let origin = Origin::start(|received| fresh(received.path())).await;
    let proxy = Running::before(&origin).await;
    let mut client = connect(&proxy).await;
    for _ in 0..2 {
        let request = get("http://a.example/shared").body(Body::empty()).expect("a request");
        assert_eq!(ask(&mut client, request).await.body(), "/shared");
        assert_eq!(proxy.get("/shared", &[]).await.text(), "/shared");
    }
    assert_eq!(origin.received().len(), 1);
}

#[tokio::test]
async fn streams_are_answered_side_by_side() {
    let told = std::sync::Arc::new(tokio::sync::Notify::new());
    let gate = told.clone();
    let origin = Origin::start(move |received| match received.path() {
        "/slow" => Reply::Wait(gate.clone(), response("200 OK", "", "slow")),
        path => fresh(path),
    })
    .await;
    let proxy = Running::before(&origin).await;
    let mut client = connect(&proxy).await;
    let request =
        |path: &str| get(&format!("http://a.example{path}")).body(Body::empty()).expect("a request");
    let slow = client.send_request(request("/slow"));
    assert_eq!(ask(&mut client, request("/quick")).await.body(), "/quick");
    told.notify_one();
    assert_eq!(whole(slow.await.expect("an answer")).await.body(), "slow");
}

#[tokio::test]
async fn hosts_that_disagree_are_refused_here_too() {
    let origin = Origin::start(|_| fresh("x")).await;
    let proxy = Running::before(&origin).await;
    let mut client = connect(&proxy).await;
    for (host, status) in [("b.example", 400), ("A.example", 200)] {
        let request = get("http://a.example/").header("host", host).body(Body::empty()).expect("a request");
        assert_eq!(ask(&mut client, request).await.status(), status, "{host}");
    }
    let mut many = HeaderMap::new();
    for number in 0..200 {
        many.insert(http::HeaderName::try_from(format!("x-{number}")).expect("a name"), number.into());
    }
    let mut request = get("http://a.example/").body(Body::empty()).expect("a request");
    *request.headers_mut() = many;
    assert_eq!(ask(&mut client, request).await.status(), 431);
    assert_eq!(origin.received().len(), 1);
}
