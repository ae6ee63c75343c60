//! Requests and responses that two parsers could read in two ways.

use crate::common::{Origin, Reply, Running, fresh, response};

/// Paths that an origin has seen.
fn paths(origin: &Origin) -> Vec<String> {
    origin.received().iter().map(|received| received.path().to_owned()).collect()
}

#[tokio::test]
async fn a_length_beside_chunks_hides_no_second_request() {
    for fields in [
        "Content-Length: 6\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 6",
        "Content-Length: 60\r\nTransfer-Encoding: chunked",
    ] {
        let origin = Origin::start(|_| fresh("x")).await;
        let proxy = Running::before(&origin).await;
        let hidden = "GET /hidden HTTP/1.1\r\nHost: a.example\r\n\r\n";
        let said = proxy
            .raw(&format!("POST /open HTTP/1.1\r\nHost: a.example\r\n{fields}\r\n\r\n0\r\n\r\n{hidden}"))
            .await;
        // Refused, or read by its chunks and the connection closed behind it (RFC 9112 §6.1).
        assert_eq!(said.matches("HTTP/1.1 ").count(), 1, "{fields}: {said}");
        assert!(!paths(&origin).contains(&"/hidden".to_owned()), "{fields}");
        for received in origin.received() {
            assert!(received.all("content-length").len() + received.all("transfer-encoding").len() <= 1);
            assert!(received.body.is_empty(), "{received:?}");
        }
    }
}

#[tokio::test]
async fn lengths_that_disagree_are_refused() {
    let origin = Origin::start(|_| fresh("x")).await;
    let proxy = Running::before(&origin).await;
    for lengths in [
        "Content-Length: 4\r\nContent-Length: 5",
        "Content-Length: 4, 5",
        "Content-Length: +4",
        "Content-Length: 0x4",
        "Content-Length: -1",
        "Content-Length: 4 4",
        "Content-Length: 99999999999999999999999",
        "Content-Length:",
    ] {
        let said = proxy.raw(&format!("POST / HTTP/1.1\r\nHost: a.example\r\n{lengths}\r\n\r\nabcde")).await;
        assert!(said.starts_with("HTTP/1.1 400 "), "{lengths}: {said}");
    }
    assert_eq!(paths(&origin), [""; 0]);
}

#[tokio::test]
async fn codings_that_are_not_quite_chunked_are_refused() {
    let origin = Origin::start(|_| fresh("x")).await;
    let proxy = Running::before(&origin).await;
    for coding in [
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: identity, chunked",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: x",
        "Transfer-Encoding:\r\n chunked",
        "Transfer-Encoding: x\r\n chunked",
        "Transfer-Encoding : chunked",
        " Transfer-Encoding: chunked",
        "X: y\r\n Transfer-Encoding: chunked",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding: chunked;x=y",
        "Transfer-Encoding: \x0bchunked",
    ] {
        let said = proxy
            .raw(&format!(
                "POST / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n{coding}\r\n\r\n0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"
            ))
            .await;
        assert!(said.starts_with("HTTP/1.1 400 ") || said.starts_with("HTTP/1.1 501 "), "{coding:?}: {said}");
    }
    // HTTP/1.0 knows no chunks.
    let said = proxy.raw("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").await;
    assert!(said.contains(" 400 "), "{said}");
    assert_eq!(paths(&origin), [""; 0]);
}

#[tokio::test]
async fn chunked_in_any_case_is_chunked_and_goes_on_as_a_body_of_its_own_framing() {
    let origin = Origin::start(|_| fresh("x")).await;
    let proxy = Running::before(&origin).await;
    for coding in ["chunked", "Chunked", "CHUNKED", "  chunked  "] {
        let said = proxy
            .raw(&format!(
                "POST / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\nTransfer-Encoding: {coding}\r\n\r\n3;ext=1\r\nabc\r\n0\r\nX-Trailer: 1\r\n\r\n"
            ))
            .await;
        assert!(said.starts_with("HTTP/1.1 200 "), "{coding:?}: {said}");
        let received = origin.last();
        assert_eq!(received.body, b"abc");
        assert_eq!(received.all("transfer-encoding").len() + received.all("content-length").len(), 1);
        assert_eq!(received.field("x-trailer"), None);
    }
}

#[tokio::test]
async fn chunks_that_are_malformed_reach_no_second_request() {
    let origin = Origin::start(|_| fresh("x")).await;
    let proxy = Running::before(&origin).await;
    for chunks in
        ["3\nabc\r\n0\r\n\r\n", "zz\r\nabc\r\n0\r\n\r\n", "-1\r\n\r\n0\r\n\r\n", "ffffffffffffffffff\r\n"]
    {
        let hidden = "GET /hidden HTTP/1.1\r\nHost: a.example\r\n\r\n";
        let said = proxy
            .raw(&format!(
                "POST /x HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}{hidden}"
            ))
            .await;
        assert!(!said.contains(" 200 "), "{chunks:?}: {said}");
    }
    assert!(!paths(&origin).contains(&"/hidden".to_owned()));
}

#[tokio::test]
async fn hosts_and_addresses_that_disagree_are_refused() {
    let origin = Origin::start(|_| fresh("x")).await;
    let proxy = Running::before(&origin).await;
    for head in [
        "GET http://a.example/ HTTP/1.1\r\nHost: a.example",
        "GET http://b.example/ HTTP/1.1\r\nHost: a.example",
        "GET https://a.example/ HTTP/1.1\r\nHost: a.example",
        "GET a.example HTTP/1.1\r\nHost: a.example",
        "GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example",
        "GET / HTTP/1.1\r\nHost: a.example\r\nHost: a.example",
        "GET / HTTP/1.1\r\nHost: a.example, b.example",
        "GET / HTTP/1.1\r\nHost: user@a.example",
        "GET / HTTP/1.1\r\nHost: a.example/x",
        "GET / HTTP/1.1\r\nHost: a.example:port",
        "GET / HTTP/1.1\r\nHost: a.example\r\n b.example",
        "GET / HTTP/1.1\r\nHost:",
        "GET / HTTP/1.1\r\nX: y",
        "GET * HTTP/1.1\r\nHost: a.example",
        "GET //user@b.example HTTP/9.9\r\nHost: a.example",
        "GET /a b HTTP/1.1\r\nHost: a.example",
        "GET /\x00 HTTP/1.1\r\nHost: a.example",
        "GET / HTTP/1.1\r\nHost: a.example\r\nX: a\x00b",
        "GET / HTTP/1.1\r\nHost: a.example\r\nX: a\rb",
        "GET / HTTP/1.1\r\nHost: a.example\r\nX\x01: a",
    ] {
        let said = proxy.raw(&format!("{head}\r\nConnection: close\r\n\r\n")).await;
        assert!(said.starts_with("HTTP/1.1 400 "), "{head:?}: {said}");
    }
    for head in ["CONNECT a.example:80 HTTP/1.1", "TRACE / HTTP/1.1"] {
        let said = proxy.raw(&format!("{head}\r\nHost: a.example\r\nConnection: close\r\n\r\n")).await;
        assert!(said.starts_with("HTTP/1.1 405 "), "{head:?}: {said}");
    }
    assert_eq!(paths(&origin), [""; 0]);
}

#[tokio::test]
async fn requests_sent_at_once_are_answered_in_their_order() {
    let origin = Origin::start(|received| fresh(received.path())).await;
    let proxy = Running::before(&origin).await;
    let mut client = proxy.connect().await;
    let get = |path| format!("GET {path} HTTP/1.1\r\nHost: a.example\r\n\r\n");
    client.send(&[get("/1"), get("/2"), get("/1"), get("/3")].concat()).await;
    for path in ["/1", "/2", "/1", "/3"] {
        assert_eq!(client.answer(false).await.text(), path);
    }
}

#[tokio::test]
async fn a_response_of_two_lengths_is_cut_for_nobody() {
    let chunked =
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let origin = Origin::start(move |received| match received.path() {
        "/both" => Reply::Bytes(chunked.into()),
        "/twice" => {
            Reply::Bytes("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello".into())
        }
        "/list" => Reply::Bytes("HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello".into()),
        "/differ" => {
            Reply::Bytes("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 4\r\n\r\nhello".into())
        }
        "/coded" => Reply::Close("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello".into()),
        "/folded" => Reply::Bytes("HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 5\r\n\r\nhello".into()),
        "/nul" => Reply::Bytes("HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 5\r\n\r\nhello".into()),
        "/space" => Reply::Bytes("HTTP/1.1 200 OK\r\nX : b\r\nContent-Length: 5\r\n\r\nhello".into()),
        "/switch" => Reply::Bytes("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n".into()),
        "/noise" => Reply::Bytes("220 mail.example ESMTP\r\n\r\n".into()),
        _ => fresh("fine"),
    })
    .await;
    let proxy = Running::before(&origin).await;
    for path in ["/both", "/twice", "/list"] {
        let answer = proxy.get(path, &[]).await;
        assert_eq!((answer.status(), answer.text().as_str()), (200, "hello"), "{path}");
        assert!(
            answer.all("content-length").len() <= 1 && answer.field("content-length") != "3",
            "{answer:?}"
        );
    }
    for path in ["/differ", "/coded", "/folded", "/nul", "/space", "/switch", "/noise"] {
        let answer = proxy.get(path, &[]).await;
        assert_eq!(answer.status(), 502, "{path}: {answer:?}");
        assert!(answer.field("proxy-status").contains("http_protocol_error"), "{path}: {answer:?}");
    }
    assert_eq!(proxy.get("/", &[]).await.text(), "fine");
}

#[tokio::test]
async fn bytes_behind_a_response_are_nobodys_answer() {
    // The origin sends a second response on its own account, which must not be given to whoever asks next.
    let origin = Origin::start(|received| match received.path() {
        "/first" => Reply::Bytes(
            [response("200 OK", "", "first"), response("200 OK", "Cache-Control: max-age=60", "poison")]
                .concat(),
        ),
        path => fresh(path),
    })
    .await;
    let proxy = Running::before(&origin).await;
    for round in 0..20 {
        assert_eq!(proxy.get("/first", &[]).await.text(), "first");
        let path = format!("/other{round}");
        let answer = proxy.get(&path, &[]).await;
        assert_ne!(answer.text(), "poison");
        assert!(answer.status() == 502 || answer.text() == path, "{answer:?}");
    }
}
