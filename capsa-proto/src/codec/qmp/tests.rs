//! Cases of the QMP decoder, with lines as QEMU 7.2 and 10.0 write them.

use alloc::string::String;
use alloc::vec;

use serde_json::json;

use super::*;
use crate::codec::fuzz;

fn decode(bytes: &[u8]) -> (Vec<QmpMessage>, Option<QmpError>) {
    fuzz::qmp(bytes);
    let mut decoder = QmpDecoder::new();
    let mut messages = Vec::new();
    if let Err(error) = decoder.handle_bytes(bytes) {
        return (messages, Some(error));
    }
    loop {
        match decoder.poll_message() {
            Ok(Some(message)) => messages.push(message),
            Ok(None) => return (messages, None),
            Err(error) => {
                assert_eq!(decoder.poll_message(), Err(error), "sticky");
                assert_eq!(decoder.handle_bytes(b"{}\n"), Err(error), "sticky");
                return (messages, Some(error));
            }
        }
    }
}

#[test]
fn qmp_each_type_of_message_is_decoded() {
    let generic = |id| QmpMessage::Error { id, class: "GenericError".into(), desc: "no".into() };
    let event =
        |name: &str, data, at_micros| QmpMessage::Event { name: name.into(), data, at_micros };
    for (line, message) in [
        (
            r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}}"#,
            QmpMessage::Greeting { version: (7, 2, 22) },
        ),
        (r#"{"return": {}, "id": 1}"#, QmpMessage::Return { id: Some(1), value: json!({}) }),
        (
            r#"{"id": 1, "return": [{"a": null}]}"#,
            QmpMessage::Return { id: Some(1), value: json!([{"a": null}]) },
        ),
        (r#"{"return": null}"#, QmpMessage::Return { id: None, value: Value::Null }),
        (r#"{"id": 3, "error": {"class": "GenericError", "desc": "no"}}"#, generic(Some(3))),
        (r#"{"error": {"class": "GenericError", "desc": "no"}}"#, generic(None)),
        (
            r#"{"timestamp": {"seconds": 1700000000, "microseconds": 5}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}"#,
            event(
                "SHUTDOWN",
                json!({"guest": true, "reason": "guest-shutdown"}),
                Some(1_700_000_000_000_005),
            ),
        ),
        (
            r#"{"timestamp": {"seconds": -1, "microseconds": -1}, "event": "STOP"}"#,
            event("STOP", Value::Null, None),
        ),
        (r#"{"event": "RESUME"}"#, event("RESUME", Value::Null, None)),
        (r#"{"news": 1}"#, QmpMessage::Other(json!({"news": 1}))),
    ] {
        for end in ["\n", "\r\n", " \r\n\r\n \n"] {
            let bytes = [" ", line, end].concat();
            assert_eq!(decode(bytes.as_bytes()), (vec![message.clone()], None), "{bytes:?}");
        }
    }
}

#[test]
fn qmp_incomplete_line_yields_no_message() {
    assert_eq!(decode(b"{\"return\": {}}"), (vec![], None));
    assert_eq!(decode(b"\n \r\n"), (vec![], None));
}

#[test]
fn qmp_messages_before_malformed_line_are_returned() {
    let good = QmpMessage::Other(json!({}));
    for (bad, error) in [
        (&b"{\"a\": \xff}"[..], QmpError::NotUtf8 { at: 6 }),
        (b"[]", QmpError::NotAnObject),
        (b"{}{}", QmpError::NotAnObject),
        (b"{\"return\"", QmpError::NotAnObject),
        (b"{\"return\": {}, \"error\": {}}", malformed("message: it has two types")),
        (b"{\"return\": {}, \"id\": \"1\"}", malformed("id")),
        (b"{\"return\": {}, \"id\": -1}", malformed("id")),
        (b"{\"error\": 5}", malformed("error of a command")),
        (b"{\"event\": 5}", malformed("name of an event")),
        (b"{\"QMP\": {}}", malformed("version in the greeting")),
    ] {
        let bytes = [b"{}\n", bad, b"\n{}\n"].concat();
        assert_eq!(decode(&bytes), (vec![good.clone()], Some(error)), "{bad:?}");
    }
}

#[test]
fn qmp_deep_nesting_is_rejected() {
    let deep = ["{\"return\": ", &"[".repeat(100_000), "\n"].concat();
    assert_eq!(decode(deep.as_bytes()), (vec![], Some(QmpError::NotAnObject)));
}

#[test]
fn qmp_line_of_maximum_length_is_accepted() {
    let line = |len: usize| ["{\"a\":\"", &"x".repeat(len - 8), "\"}"].concat();
    let too_long = QmpError::LineTooLong { max: MAX_QMP_LINE };
    let (messages, error) = decode((line(MAX_QMP_LINE) + "\n").as_bytes());
    assert_eq!((messages.len(), error), (1, None));
    assert_eq!(decode((line(MAX_QMP_LINE + 1) + "\n").as_bytes()), (vec![], Some(too_long)));
    assert_eq!(decode(line(MAX_QMP_LINE + 1).as_bytes()), (vec![], Some(too_long)));
}

#[test]
fn qmp_unpolled_bytes_beyond_limit_are_error() {
    let mut decoder = QmpDecoder::new();
    let chunk = "{}\n".repeat(MAX_BACKLOG / 3);
    assert_eq!(decoder.handle_bytes(chunk.as_bytes()), Ok(()));
    let full = QmpError::BacklogFull { max: MAX_BACKLOG };
    assert_eq!(decoder.handle_bytes(b"{}\n"), Err(full));
    assert_eq!(decoder.poll_message(), Err(full));
}

#[test]
fn qmp_command_is_always_one_line() {
    let line = encode_command(u64::MAX, "a\nb", Some(&json!({"x": "\n\"\u{0}"})));
    assert_eq!(line.iter().filter(|&&b| b == b'\n').count(), 1);
    let text = String::from_utf8(line).unwrap();
    let back: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(back, json!({"execute": "a\nb", "id": u64::MAX, "arguments": {"x": "\n\"\u{0}"}}));
}
