//! The proxy against a server that sends back what it gets.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use tiercache_services::{Fault, Proxy};

fn echo() -> Proxy {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = client.read(&mut buffer) {
                    if client.write_all(&buffer[..count]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    Proxy::to(address)
}

fn connect(proxy: &Proxy) -> TcpStream {
    let stream = TcpStream::connect(proxy.address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream
}

fn exchange(stream: &mut TcpStream, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    stream.write_all(bytes)?;
    let mut answer = vec![0; bytes.len()];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

#[test]
fn what_passes_is_unchanged_and_connections_are_counted() {
    let proxy = echo();
    let mut streams = [connect(&proxy), connect(&proxy)];
    for stream in &mut streams {
        assert_eq!(exchange(stream, b"hello").unwrap(), b"hello");
    }
    assert_eq!((proxy.connections(), proxy.open()), (2, 2));
}

#[test]
fn a_refusing_proxy_listens_again_on_its_port() {
    let proxy = echo();
    let mut open = connect(&proxy);
    assert_eq!(exchange(&mut open, b"x").unwrap(), b"x");
    proxy.set(Fault::Refuse);
    assert_eq!(TcpStream::connect(proxy.address()).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert!(exchange(&mut open, b"x").is_err(), "what was open is reset");
    proxy.set(Fault::Pass);
    assert_eq!(exchange(&mut connect(&proxy), b"again").unwrap(), b"again");
}

#[test]
fn a_hanging_proxy_lets_nothing_through_until_it_passes() {
    let proxy = echo();
    let mut stream = connect(&proxy);
    assert_eq!(exchange(&mut stream, b"x").unwrap(), b"x");
    proxy.set(Fault::Hang);
    stream.write_all(b"held").unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut answer = [0; 4];
    assert!(stream.read_exact(&mut answer).is_err());
    proxy.set(Fault::Pass);
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"held");
}

#[test]
fn a_delay_holds_the_answer_back() {
    let proxy = echo();
    let mut stream = connect(&proxy);
    proxy.set(Fault::Delay(Duration::from_millis(60)));
    let start = Instant::now();
    assert_eq!(exchange(&mut stream, b"late").unwrap(), b"late");
    assert!(start.elapsed() >= Duration::from_millis(60));
}

#[test]
fn one_byte_at_a_time_changes_nothing() {
    let proxy = echo();
    proxy.set(Fault::OneByte);
    let bytes: Vec<u8> = (0..2000_u32).map(|n| n as u8).collect();
    assert_eq!(exchange(&mut connect(&proxy), &bytes).unwrap(), bytes);
}

#[test]
fn a_cut_lets_just_so_many_bytes_through() {
    let proxy = echo();
    for fault in [Fault::CutAfter(7), Fault::CutRequestAfter(7)] {
        let mut stream = connect(&proxy);
        assert_eq!(exchange(&mut stream, b"before").unwrap(), b"before");
        proxy.set(fault);
        stream.write_all(b"0123456789").unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(b"0123456".starts_with(&answer[..]), "{answer:?}");
        if fault == Fault::CutAfter(7) {
            assert_eq!(answer.len(), 7);
        }
        proxy.set(Fault::Pass);
    }
}

#[test]
fn a_reset_loses_the_answer_and_is_no_orderly_end() {
    let proxy = echo();
    let mut open = connect(&proxy);
    assert_eq!(exchange(&mut open, b"x").unwrap(), b"x");
    proxy.set(Fault::Reset);
    assert_eq!(open.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(exchange(&mut connect(&proxy), b"x").unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn one_bit_of_one_byte_of_each_connection_is_turned() {
    let proxy = echo();
    proxy.set(Fault::Corrupt(2));
    for _ in 0..2 {
        let mut stream = connect(&proxy);
        assert_eq!(exchange(&mut stream, b"aaaa").unwrap(), b"aa`a");
        assert_eq!(exchange(&mut stream, b"aaaa").unwrap(), b"aaaa");
    }
}

#[test]
fn a_request_that_is_answered_here_does_not_pass_and_others_do() {
    let proxy = echo();
    proxy.set(Fault::Answer("PUT ", "no room"));
    assert_eq!(exchange(&mut connect(&proxy), b"GET x").unwrap(), b"GET x");
    let mut stream = connect(&proxy);
    stream.write_all(b"PUT x").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "no room");
    proxy.set(Fault::Pass);
    assert_eq!(exchange(&mut connect(&proxy), b"PUT x").unwrap(), b"PUT x");
}

#[test]
fn a_request_that_is_held_is_never_carried_out() {
    let proxy = echo();
    proxy.set(Fault::Hold("part=2"));
    assert_eq!(exchange(&mut connect(&proxy), b"PUT x?part=1").unwrap(), b"PUT x?part=1");
    let mut stream = connect(&proxy);
    stream.write_all(b"PUT x?part=2").unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert_ne!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(proxy.held(), 1);
    proxy.set(Fault::Pass);
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}
