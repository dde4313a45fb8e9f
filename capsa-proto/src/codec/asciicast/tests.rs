//! Tests of the encoder and the decoder.

use super::*;
use alloc::string::ToString;
use alloc::vec;

fn decode(text: &str) -> Result<Vec<CastEvent>, AsciicastError> {
    let mut decoder = Decoder::new();
    decoder.handle_bytes(text.as_bytes())?;
    decoder.handle_eof()?;
    let mut events = Vec::new();
    while let Some(event) = decoder.poll_event()? {
        events.push(event);
    }
    Ok(events)
}

const HEADER: &str = "{\"version\":2,\"width\":80,\"height\":24}\n";

#[test]
fn recording_round_trips() {
    let mut encoder = Encoder::new();
    let header = CastHeader {
        timestamp: Some(7),
        title: Some("a \"boot\"".into()),
        ..CastHeader::default()
    };
    let mut file = encoder.header(&header);
    let second = Duration::from_secs(1);
    file += &encoder.output(second, b"login: \x1b[0m\xff\xfe");
    file += &encoder.input(2 * second, b"root\r");
    file += &encoder.secret(3 * second);
    file += &encoder.marker(3 * second, "in");
    file += &encoder.power_button(3 * second);
    file += &encoder.end(3 * second, RecordedEnd::PoweredOff);
    file += &encoder.finish();
    let mut decoder = Decoder::new();
    decoder.handle_bytes(file.as_bytes()).expect("within bounds");
    let mut events = Vec::new();
    while let Some(event) = decoder.poll_event().expect("well-formed") {
        events.push(event);
    }
    assert_eq!(decoder.header(), Some(&header));
    assert_eq!(
        events,
        [
            CastEvent {
                at: second,
                kind: CastEventKind::Output(b"login: \x1b[0m\xff\xfe".to_vec())
            },
            CastEvent { at: 2 * second, kind: CastEventKind::Input(b"root\r".to_vec()) },
            CastEvent { at: 3 * second, kind: CastEventKind::Secret },
            CastEvent { at: 3 * second, kind: CastEventKind::Marker("in".into()) },
            CastEvent { at: 3 * second, kind: CastEventKind::PowerButton },
            CastEvent { at: 3 * second, kind: CastEventKind::End(RecordedEnd::PoweredOff) },
        ]
    );
}

#[test]
fn encoder_invalid_utf8_adds_bytes_event() {
    let line = Encoder::new().output(Duration::ZERO, b"a\xffb");
    assert_eq!(line, "[0.000000,\"bytes\",\"61ff62\"]\n[0.000000,\"o\",\"a\u{fffd}b\"]\n");
}

#[test]
fn encoder_finish_writes_incomplete_character() {
    let mut encoder = Encoder::new();
    assert_eq!(encoder.output(Duration::ZERO, b"\xe2\x82"), "");
    let last = "[0.000000,\"bytes\",\"e282\"]\n[0.000000,\"o\",\"\u{fffd}\"]\n";
    assert_eq!(encoder.finish(), last);
    assert_eq!(encoder.finish(), "");
}

#[test]
fn encoder_times_never_decrease() {
    let mut encoder = Encoder::new();
    encoder.output(Duration::from_secs(5), b"a");
    assert!(encoder.input(Duration::from_secs(3), b"b").starts_with("[5.000000,"));
}

#[test]
fn encoder_long_output_becomes_several_events() {
    let mut encoder = Encoder::new();
    let mut bytes = vec![0; 3 * MAX_TEXT + 1];
    bytes.extend_from_slice("é".as_bytes());
    let file = [HEADER, &encoder.output(Duration::ZERO, &bytes), &encoder.finish()].concat();
    assert!(file.lines().all(|line| line.len() < MAX_LINE));
    let output =
        decode(&file).expect("well-formed").into_iter().flat_map(|event| match event.kind {
            CastEventKind::Output(bytes) => bytes,
            other => panic!("{other:?}"),
        });
    assert!(output.eq(bytes));
}

#[test]
fn decoder_unknown_events_are_skipped() {
    let file = [
        "{\"version\": 2, \"width\": 80, \"height\": 24, \"env\": {\"TERM\": \"xterm\"}}",
        "[0, \"o\", \"a\"]",
        "",
        "[1.5e0, \"r\", \"100x50\"]",
        "[2, \"o\", \"b\"]",
    ]
    .join("\n");
    let times: Vec<_> =
        decode(&file).expect("well-formed").iter().map(|e| e.at.as_secs()).collect();
    assert_eq!(times, [0, 2]);
}

#[test]
fn decoder_errors_name_line_and_reason() {
    for (file, error) in [
        ("", "asciicast: the file ends in line 1"),
        ("[]\n", "asciicast: invalid version 2 header in line 1: the version is not 2"),
        ("{\"version\":3}", "asciicast: invalid version 2 header in line 1: the version is not 2"),
        ("{\"version\":2}", "asciicast: invalid version 2 header in line 1: no width and height"),
        ("{H\n[-1,\"o\",\"\"]", "asciicast: invalid event in line 2: the time is out of range"),
        ("{H\n[0,\"o\"]", "asciicast: invalid event in line 2: not an array of three values"),
        ("{H\n[0,\"o\",\"\"]\n[", "asciicast: invalid event in line 3: not JSON"),
        (
            "{H\n[0,\"bytes\",\"f\"]",
            "asciicast: invalid event in line 2: the data is not hexadecimal",
        ),
        ("{H\n[0,\"bytes\",\"ff\"]\n", "asciicast: the file ends in line 3"),
        (
            "{H\n[0,\"bytes\",\"ff\"]\n[0,\"o\",\"x\"]\n",
            "asciicast: invalid event in line 3: the data differs from the bytes event before it",
        ),
    ] {
        let file = file.replace("{H\n", HEADER);
        assert_eq!(decode(&file).expect_err("malformed").to_string(), error, "{file}");
    }
}

#[test]
fn decoder_too_long_line_is_final_error() {
    let mut decoder = Decoder::with_max_line(8);
    decoder.handle_bytes(b"123456789").expect("within the backlog");
    let error = decoder.poll_event().expect_err("too long");
    assert_eq!(error, AsciicastError::TooLong { line: 1, max: 8 });
    assert_eq!(decoder.handle_bytes(b"\n"), Err(error));
    assert_eq!(decoder.poll_event(), Err(error));
}
