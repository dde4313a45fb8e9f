//! Fuzz bodies of the decoders. A fuzz target calls [`run`] or one of the other functions.
//!
//! Each body feeds the bytes whole, one by one, and in uneven chunks, and asserts that the result is the
//! same and within bounds, with the real limits and with limits that a short input can reach.

use alloc::vec::Vec;
use core::fmt::Debug;
use core::time::Duration;

use serde_json::Value;

use super::asciicast::{self, CastEventKind, CastHeader, Decoder, Encoder};
use super::http::{HttpError, Response, ResponseDecoder};
use super::json_stream::JsonStream;
use super::qmp::{QmpDecoder, QmpMessage, encode_command};
use super::{MAX_BACKLOG, MAX_JSON_OBJECT, MAX_QMP_LINE};

const SMALL: usize = 32;

/// Sizes of reads, used in turn.
const CUTS: [&[usize]; 4] = [&[usize::MAX], &[1], &[2, 5, 1, 16, 3], &[61, 7]];

/// The first byte of `data` selects the body, which gets the rest.
///
/// # Panics
///
/// When a law does not hold.
pub fn run(data: &[u8]) {
    let Some((&which, rest)) = data.split_first() else { return };
    match which % 4 {
        0 => http(rest),
        1 => qmp(rest),
        3 => asciicast(rest),
        _ => json_stream(rest),
    }
}

/// Laws of [`ResponseDecoder`].
///
/// # Panics
///
/// When a law does not hold.
pub fn http(data: &[u8]) {
    for max_body in [SMALL, super::MAX_HTTP_BODY] {
        let outcome = same_for_all_cuts(|sizes| http_outcome(data, sizes, max_body));
        assert!(outcome.is_err() || !data.is_empty(), "a response out of nothing");
    }
}

fn http_outcome(data: &[u8], sizes: &[usize], max_body: usize) -> Result<Response, HttpError> {
    let mut decoder = ResponseDecoder::new(max_body);
    let mut response = None;
    for piece in pieces(data, sizes) {
        if let Err(error) = decoder.handle_bytes(piece) {
            assert_eq!(decoder.handle_bytes(b"HTTP/1.1 204 \r\n\r\n"), Err(error), "sticky");
            assert_eq!(decoder.handle_eof(), Err(error), "sticky");
            assert_eq!(decoder.poll_response(), None, "a response out of a failed decoder");
            return Err(error);
        }
        response = response.or(decoder.poll_response());
    }
    decoder.handle_eof()?;
    let response = response.or_else(|| decoder.poll_response()).expect("complete at the end");
    assert!(response.body.len() <= max_body, "the body passed its limit");
    assert!((200..600).contains(&response.status), "an impossible status");
    assert_eq!(decoder.poll_response(), None, "a second response");
    Ok(response)
}

/// Laws of [`QmpDecoder`]; also checks that an encoded command is one line and decodes.
///
/// # Panics
///
/// When a law does not hold.
pub fn qmp(data: &[u8]) {
    let data = &data[..data.len().min(MAX_BACKLOG)];
    for max_line in [SMALL, MAX_QMP_LINE] {
        same_for_all_cuts(|sizes| {
            let decoder = QmpDecoder::with_max_line(max_line);
            drain(decoder, data, sizes, QmpDecoder::handle_bytes, QmpDecoder::poll_message)
        });
    }

    let argument = Value::from(alloc::string::String::from_utf8_lossy(data));
    let line = encode_command(1, "execute", Some(&argument));
    assert_eq!(memchr::memchr(b'\n', &line), Some(line.len() - 1), "a command is one line");
    let mut decoder = QmpDecoder::with_max_line(line.len());
    assert_eq!(decoder.handle_bytes(&line), Ok(()));
    let Ok(Some(QmpMessage::Other(back))) = decoder.poll_message() else {
        panic!("our own command does not parse");
    };
    assert_eq!(back["arguments"], argument);
}

/// Laws of [`JsonStream`].
///
/// # Panics
///
/// When a law does not hold.
pub fn json_stream(data: &[u8]) {
    let data = &data[..data.len().min(MAX_BACKLOG)];
    for max_object in [SMALL, MAX_JSON_OBJECT] {
        let (values, _) = same_for_all_cuts(|sizes| {
            let stream = JsonStream::with_max_object(max_object);
            drain(stream, data, sizes, JsonStream::handle_bytes, JsonStream::poll_value)
        });
        assert!(values.iter().all(Value::is_object), "something other than an object came out");
    }
}

/// Laws of [`asciicast`]: the chunking of a file does not change the result, and recorded bytes, in any
/// chunks, are restored from lines within the limit.
///
/// # Panics
///
/// When a law does not hold.
pub fn asciicast(data: &[u8]) {
    let data = &data[..data.len().min(MAX_BACKLOG)];
    for max_line in [SMALL, asciicast::MAX_LINE] {
        let (events, _) = same_for_all_cuts(|sizes| {
            let decoder = Decoder::with_max_line(max_line);
            drain(decoder, data, sizes, Decoder::handle_bytes, Decoder::poll_event)
        });
        assert!(events.is_sorted_by_key(|event| event.at), "a time decreased");
    }
    for sizes in CUTS {
        let mut encoder = Encoder::new();
        let mut file = encoder.header(&CastHeader::default());
        for (n, piece) in pieces(data, sizes).enumerate() {
            // Arbitrary times, and both streams at once.
            let at = Duration::from_micros(u64::from(piece[0]) * n as u64);
            file += &encoder.output(at, piece);
            file += &encoder.input(at, piece);
        }
        file += &encoder.finish();
        assert!(file.lines().all(|line| line.len() <= asciicast::MAX_LINE), "a line too long");
        let decoder = Decoder::new();
        let (events, error) = drain(
            decoder,
            file.as_bytes(),
            &[MAX_BACKLOG / 2],
            Decoder::handle_bytes,
            Decoder::poll_event,
        );
        assert_eq!(error, None, "our own recording does not decode");
        let (mut output, mut input) = (Vec::new(), Vec::new());
        for event in events {
            match event.kind {
                CastEventKind::Output(bytes) => output.extend(bytes),
                CastEventKind::Input(bytes) => input.extend(bytes),
                other => panic!("unexpected event {other:?}"),
            }
        }
        assert!(output == data && input == data, "the recording is not what was recorded");
    }
}

/// Everything a decoder gives for these reads, and how it ended.
fn drain<D, M, E: Debug + PartialEq + Copy>(
    mut decoder: D,
    data: &[u8],
    sizes: &[usize],
    handle: impl Fn(&mut D, &[u8]) -> Result<(), E>,
    poll: impl Fn(&mut D) -> Result<Option<M>, E>,
) -> (Vec<M>, Option<E>) {
    let mut messages = Vec::new();
    for piece in pieces(data, sizes) {
        if let Err(error) = handle(&mut decoder, piece) {
            return (messages, Some(error));
        }
        loop {
            match poll(&mut decoder) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(poll(&mut decoder).err(), Some(error), "sticky");
                    assert_eq!(handle(&mut decoder, b"{}\n"), Err(error), "sticky");
                    return (messages, Some(error));
                }
            }
        }
        assert!(messages.len() <= data.len() / 2, "more messages than the bytes can hold");
    }
    (messages, None)
}

fn same_for_all_cuts<T: Debug + PartialEq>(outcome: impl Fn(&[usize]) -> T) -> T {
    let whole = outcome(CUTS[0]);
    for sizes in &CUTS[1..] {
        assert_eq!(outcome(sizes), whole, "reads of {sizes:?} made a difference");
    }
    whole
}

fn pieces<'a>(mut data: &'a [u8], sizes: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    sizes.iter().cycle().map_while(move |&size| {
        let (piece, rest) = data.split_at(size.min(data.len()));
        data = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use alloc::string::String;
    use alloc::vec::Vec;

    use proptest::prelude::*;

    #[test]
    fn small_corpus_holds_the_laws() {
        for data in [
            &b""[..],
            b"\x00HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\n{}",
            b"\x00HTTP/1.1 100 \r\n\r\nHTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
            b"\x00HTTP/1.0 200\r\n\r\nuntil the end, which is a little too far away",
            b"\x01{\"return\": {}}\r\n\r\n{\"event\": \"STOP\"}\n{\"QMP\"",
            b"\x01{\"a\": \"\xff\"}\n",
            b"\x02{}{\"a\": \"}\\\"\"} {\"b\": [[[]]]}",
            b"\x02{]",
            b"\x03{\"version\":2,\"width\":1,\"height\":1}\n[0,\"bytes\",\"ff\"]\n[1,\"o\",\"\xef\xbf\xbd\"]\n",
            b"\x03\xe2\x82\xac\xff\xe2\x82",
        ] {
            super::run(data);
        }
    }

    /// Pieces of the protocols in any order: random bytes alone would never get past the first line.
    fn nearly_right() -> impl Strategy<Value = Vec<u8>> {
        #[rustfmt::skip]
        let words = prop::sample::select(alloc::vec![
            "HTTP/1.1 ", "HTTP/1.0 ", "200", "204", "100 ", "\r\n", "\r\n\r\n", "\n", " ", "OK", "x", "0",
            "Content-Length: ", "Transfer-Encoding: chunked\r\n", "5", "1\r\n", "a\r\nabcdefghij\r\n",
            "HTTP/1.1 200 \r\n", "A: b\r\n", "{", "}", "[", "]", "\"", "\\", ":", ",", "1", "null",
            "{\"return\": {}, \"id\": 1}\n", "{\"event\": \"X\"}", "\"error\"", "{\"a\": \"}\"}", "\u{e9}",
            "{\"version\":2,\"width\":1,\"height\":1}\n", "[0,\"o\",\"", "[1,\"bytes\",\"ff\"]\n", "\"]\n",
        ]);
        prop::collection::vec(words, 0..16).prop_map(|words| String::into_bytes(words.concat()))
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same(data in nearly_right()) {
            super::http(&data);
            super::qmp(&data);
            super::json_stream(&data);
            super::asciicast(&data);
        }

        #[test]
        fn random_bytes_never_panic(data in prop::collection::vec(any::<u8>(), 0..128)) {
            super::http(&data);
            super::qmp(&data);
            super::json_stream(&data);
            super::asciicast(&data);
        }
    }
}
