use aws_smithy_eventstream::frame::write_message_to;
use aws_smithy_types::event_stream::{Header, HeaderValue, Message};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde_json::json;

use super::{Decoder, EventError};

fn frame(headers: &[(&'static str, &'static str)], payload: impl Into<Bytes>) -> Vec<u8> {
    let headers = headers
        .iter()
        .map(|(name, value)| Header::new(*name, HeaderValue::String((*value).into())));
    let mut frame = Vec::new();
    let message = Message::new_from_parts(headers.collect(), payload);
    write_message_to(&message, &mut frame).unwrap();
    frame
}

fn event(json: &str) -> Vec<u8> {
    let payload = json!({ "bytes": STANDARD.encode(json), "p": "abcd" }).to_string();
    frame(&[(":event-type", "chunk"), (":message-type", "event")], payload)
}

fn exception(kind: &'static str, message: &str) -> Vec<u8> {
    let payload = json!({ "message": message }).to_string();
    frame(&[(":exception-type", kind), (":message-type", "exception")], payload)
}

/// The events of a stream that comes in pieces, and how it ended.
fn decoded(stream: &[u8], piece: usize) -> (String, Result<(), EventError>) {
    let (mut decoder, mut events) = (Decoder::default(), Vec::new());
    for chunk in stream.chunks(piece) {
        if let Err(error) = decoder.push(chunk, &mut events) {
            return (String::from_utf8(events).unwrap(), Err(error));
        }
    }
    (String::from_utf8(events).unwrap(), decoder.finish())
}

const START: &str = r#"{ "type":"message_start","message":{"usage":{"input_tokens":1e1}}}"#;
const START_EVENT: &str = "event: message_start\ndata: { \"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":1e1}}}\n\n";

#[test]
fn events_do_not_depend_on_how_the_stream_is_chunked() {
    let mut stream = event(START);
    stream.extend(frame(&[(":event-type", "initial-response"), (":message-type", "event")], "{}"));
    stream.extend(event(r#"{"type":"content_block_delta","delta":{"text":"ä😀"}}"#));
    stream.extend(event("{\"type\":\r\n\"message_stop\"}"));
    let expected = format!(
        "{START_EVENT}event: content_block_delta\ndata: {{\"type\":\"content_block_delta\",\"delta\":{{\"text\":\"ä😀\"}}}}\n\n\
         event: message_stop\ndata: {{\"type\":\ndata: \ndata: \"message_stop\"}}\n\n"
    );
    for piece in [1, 7, 100, 16_384] {
        let (events, ended) = decoded(&stream, piece);
        assert_eq!(events, expected, "pieces of {piece}");
        ended.unwrap();
    }
}

#[test]
fn a_corrupt_byte_is_detected_anywhere() {
    let good = event(START);
    let length = good.len();
    for at in 0..length {
        let mut stream = good.clone();
        stream.extend(event(START));
        stream[length + at] ^= 0x10;
        let (events, ended) = decoded(&stream, 64);
        assert_eq!(events, START_EVENT, "what came before passes; byte {at}");
        assert!(
            matches!(ended, Err(EventError::Prelude | EventError::Frame(_))),
            "byte {at}: {ended:?}"
        );
    }
}

#[test]
fn a_frame_that_is_too_large_is_refused_by_its_length() {
    let prelude = |length: u32| {
        let mut prelude = length.to_be_bytes().to_vec();
        prelude.extend_from_slice(&0_u32.to_be_bytes());
        prelude.extend_from_slice(&crc32fast::hash(&prelude).to_be_bytes());
        prelude
    };
    for length in [24 * 1024 * 1024 + 1, u32::MAX, 15, 0] {
        let (events, ended) = decoded(&prelude(length), 5);
        assert!(events.is_empty());
        assert!(matches!(ended, Err(EventError::Length(_))), "{length}: {ended:?}");
    }
    let (_events, ended) = decoded(&prelude(24 * 1024 * 1024), 5);
    assert!(matches!(ended, Err(EventError::Truncated)), "that one may still come");
}

#[test]
fn a_stream_that_ends_within_a_frame_is_truncated() {
    let stream = event(START);
    for length in 1..stream.len() {
        let (events, ended) = decoded(&stream[..length], 1_000);
        assert!(events.is_empty() && matches!(ended, Err(EventError::Truncated)), "{length}");
    }
}

#[test]
fn an_exception_is_the_last_event() {
    for (name, kind) in [
        ("throttlingException", "rate_limit_error"),
        ("internalServerException", "api_error"),
        ("modelStreamErrorException", "api_error"),
        ("validationException", "invalid_request_error"),
        ("modelTimeoutException", "timeout_error"),
        ("serviceUnavailableException", "overloaded_error"),
    ] {
        let mut stream = event(START);
        stream.extend(exception(name, "Too \"many\"\nrequests"));
        stream.extend(event(START));
        for piece in [1, 16_384] {
            let (events, ended) = decoded(&stream, piece);
            let error = events.strip_prefix(START_EVENT).unwrap();
            let data = error.strip_prefix("event: error\ndata: ").unwrap();
            let value: serde_json::Value = serde_json::from_str(data.trim_end()).unwrap();
            let message = format!("{name}: Too \"many\"\nrequests");
            assert_eq!(
                value,
                json!({ "type": "error", "error": { "type": kind, "message": message } })
            );
            ended.unwrap();
        }
    }
    let headers =
        [(":message-type", "error"), (":error-code", "Broken"), (":error-message", "of the wire")];
    let (events, _ended) = decoded(&frame(&headers, ""), 9);
    assert!(events.contains("Broken: of the wire"), "{events}");
}

#[test]
fn a_payload_without_an_event_ends_the_stream_with_an_error() {
    let headers = [(":event-type", "chunk"), (":message-type", "event")];
    let within = |json: &str| json!({ "bytes": STANDARD.encode(json) }).to_string();
    for payload in [
        "no json".to_owned(),
        "{}".into(),
        r#"{"bytes":"*"}"#.into(),
        within("no json"),
        within("{}"),
        within(r#"{"type":"a\nb"}"#),
    ] {
        let (events, ended) = decoded(&frame(&headers, payload.clone()), 50);
        assert!(events.is_empty() && matches!(ended, Err(EventError::Payload(_))), "{payload}");
    }
}
