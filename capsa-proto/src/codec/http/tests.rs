//! Cases of the response decoder. That the cut of the reads makes no difference is checked by the
//! fuzz body over every one of them.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::*;
use crate::codec::{MAX_HTTP_CHUNK_LINE, MAX_HTTP_HEAD, fuzz};

const LIMIT: usize = 32;

/// The outcome of these bytes followed by the end of the stream.
fn decode(bytes: &str) -> Result<(u16, String), HttpError> {
    fuzz::http(bytes.as_bytes());
    let mut decoder = ResponseDecoder::new(LIMIT);
    decoder.handle_bytes(bytes.as_bytes())?;
    decoder.handle_eof()?;
    let response = decoder.poll_response().unwrap();
    assert_eq!(decoder.poll_response(), None, "a response comes once");
    Ok((response.status, String::from_utf8(response.body).unwrap()))
}

#[test]
fn every_way_to_delimit_a_body() {
    for (bytes, status, body) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", 200, "{}"),
        ("HTTP/1.0 200 \r\ncontent-length:\t2 \r\n\r\n{}", 200, "{}"),
        ("HTTP/1.1 200\r\nContent-Length: 2\r\n\r\n{}trailing", 200, "{}"),
        ("HTTP/1.1 500 \r\nContent-Length: 0\r\n\r\n", 500, ""),
        ("HTTP/1.1 204 No Content\r\nServer: x\r\n\r\nignored", 204, ""),
        ("HTTP/1.1 304 \r\nContent-Length: 9\r\n\r\n", 304, ""),
        ("HTTP/1.1 404 Not Found\r\n\r\nuntil the end", 404, "until the end"),
        ("HTTP/1.1 200 OK\r\n\r\n", 200, ""),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n0A;x=y\r\n0123456789\r\n0\r\n\r\n",
            200,
            "abc0123456789",
        ),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nDigest: x\r\n\r\n", 200, ""),
        (
            "HTTP/1.1 100 \r\nContent-Length: 9\r\n\r\nHTTP/1.1 200 \r\nContent-Length: 1\r\n\r\nx",
            200,
            "x",
        ),
        (
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 \r\nLink: x\r\n\r\nHTTP/1.1 200 \r\nContent-Length: 1\r\n\r\nx",
            200,
            "x",
        ),
    ] {
        assert_eq!(decode(bytes), Ok((status, body.into())), "{bytes:?}");
    }
}

#[test]
fn hostile_responses_are_refused_by_name() {
    use HttpError::*;
    let ok = "HTTP/1.1 200 OK\r\n";
    let chunked = format!("{ok}Transfer-Encoding: chunked\r\n\r\n");
    for (bytes, error) in [
        (String::new(), UnexpectedEof),
        ("HTTP/2 200 OK\r\n\r\n".into(), BadStatusLine),
        ("HTTP/1.1 99 x\r\n\r\n".into(), BadStatusLine),
        ("HTTP/1.1 600 x\r\n\r\n".into(), BadStatusLine),
        ("HTTP/1.1 2000\r\n\r\n".into(), BadStatusLine),
        ("\r\nHTTP/1.1 200 OK\r\n\r\n".into(), BadStatusLine),
        ("HTTP/1.1 200 O\x1b[2J\r\n\r\n".into(), BadStatusLine),
        ("HTTP/1.1 200 OK\n\n".into(), BadHeader),
        ("HTTP/1.1 101 \r\n\r\n".into(), UnexpectedUpgrade),
        (format!("{ok}A : b\r\n\r\n"), BadHeader),
        (format!("{ok}A: b\r\n folded\r\n\r\n"), BadHeader),
        (format!("{ok}no colon\r\n\r\n"), BadHeader),
        (format!("{ok}A: b\rc\r\n\r\n"), BadHeader),
        (format!("{ok}: b\r\n\r\n"), BadHeader),
        (format!("{ok}Content-Length: 1\r\nContent-Length: 1\r\n\r\nx"), BadContentLength),
        (format!("{ok}Content-Length: 1, 1\r\n\r\nx"), BadContentLength),
        (format!("{ok}Content-Length: +1\r\n\r\nx"), BadContentLength),
        (format!("{ok}Content-Length: \r\n\r\nx"), BadContentLength),
        (format!("{ok}Content-Length: 99999999999999999999\r\n\r\n"), BadContentLength),
        (format!("{ok}Content-Length: 33\r\n\r\n"), BodyTooLong { max: LIMIT }),
        (format!("{ok}Content-Length: 3\r\n\r\nab"), UnexpectedEof),
        (format!("{ok}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"), ConflictingLength),
        (format!("{ok}Transfer-Encoding: gzip, chunked\r\n\r\n"), BadTransferEncoding),
        (
            format!("{ok}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"),
            BadTransferEncoding,
        ),
        ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".into(), BadTransferEncoding),
        (format!("{ok}\r\n{}", "x".repeat(LIMIT + 1)), BodyTooLong { max: LIMIT }),
        (format!("{chunked}21\r\n"), BodyTooLong { max: LIMIT }),
        (format!("{chunked}1f\r\n{}\r\n2\r\n", "x".repeat(0x1f)), BodyTooLong { max: LIMIT }),
        (format!("{chunked}ffffffffffffffff\r\n"), BodyTooLong { max: LIMIT }),
        (format!("{chunked}10000000000000000\r\n"), BadChunk),
        (format!("{chunked}\r\n"), BadChunk),
        (format!("{chunked}+1\r\nx\r\n"), BadChunk),
        (format!("{chunked}1\r\nxy\r\n"), BadChunk),
        (format!("{chunked}1\nx\r\n"), BadChunk),
        (format!("{chunked}1;{}\r\n", "x".repeat(MAX_HTTP_CHUNK_LINE)), BadChunk),
        (format!("{chunked}0\r\nbad trailer\r\n\r\n"), BadHeader),
        (format!("{chunked}1\r\nx\r\n"), UnexpectedEof),
        (
            format!("{ok}A: {}\r\n\r\n", "x".repeat(MAX_HTTP_HEAD)),
            HeadTooLong { max: MAX_HTTP_HEAD },
        ),
        ("HTTP/1.1 100 \r\n\r\n".repeat(2000), HeadTooLong { max: MAX_HTTP_HEAD }),
    ] {
        assert_eq!(decode(&bytes), Err(error), "{:?}", &bytes[..bytes.len().min(120)]);
    }
}

#[test]
fn head_of_exactly_the_limit_is_taken() {
    let frame = "HTTP/1.1 204 \r\nA: \r\n\r\n";
    let fill = "x".repeat(MAX_HTTP_HEAD - frame.len());
    let head = |fill: &str| format!("HTTP/1.1 204 \r\nA: {fill}\r\n\r\n");
    assert_eq!(decode(&head(&fill)), Ok((204, String::new())));
    assert_eq!(
        decode(&head(&format!("{fill}x"))),
        Err(HttpError::HeadTooLong { max: MAX_HTTP_HEAD })
    );
}

#[test]
fn error_is_sticky() {
    let mut decoder = ResponseDecoder::new(LIMIT);
    assert_eq!(decoder.handle_bytes(b"SSH-2.0\r\n"), Err(HttpError::BadStatusLine));
    assert_eq!(decoder.handle_bytes(b"HTTP/1.1 204 \r\n\r\n"), Err(HttpError::BadStatusLine));
    assert_eq!(decoder.handle_bytes(b""), Err(HttpError::BadStatusLine));
    assert_eq!(decoder.handle_eof(), Err(HttpError::BadStatusLine));
    assert_eq!(decoder.poll_response(), None);
}

#[test]
fn response_is_complete_without_the_end_of_the_stream() {
    let mut decoder = ResponseDecoder::new(LIMIT);
    let bytes: Vec<u8> = b"HTTP/1.1 204 \r\nConnection: keep-alive\r\n\r\n".to_vec();
    decoder.handle_bytes(&bytes).unwrap();
    assert_eq!(decoder.poll_response().unwrap().status / 100, 2);
    assert_eq!(decoder.handle_eof(), Ok(()));
}
