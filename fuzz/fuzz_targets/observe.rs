use bytes::Bytes;
use keybridge_wire::{
    Dialect,
    observe::{Observation, Observer, UsageChunkFilter},
};

/// Arbitrary bytes, split anywhere: the same observation, as a stream and as a complete body.
pub fn observe(dialect: Dialect, size: u8, bytes: &[u8]) {
    let size = usize::from(size) + 1;
    for observer in [
        (|dialect| Observer::stream(dialect)) as fn(Dialect) -> Observer,
        |dialect| Observer::body(dialect),
        |_| Observer::any_body(),
    ] {
        let whole = run(observer(dialect), [bytes]);
        assert_eq!(run(observer(dialect), bytes.chunks(1)), whole);
        assert_eq!(run(observer(dialect), bytes.chunks(size)), whole);
        let text = usize::try_from(whole.0.relayed_text_bytes).unwrap();
        // Each invalid UTF-8 byte is replaced by three.
        assert!(text <= 3 * bytes.len());
    }
    if dialect == Dialect::ChatCompletions {
        filter(size, bytes);
    }
}

/// The filter passes the same bytes however they are split.
fn filter(size: usize, bytes: &[u8]) {
    let whole = filtered([bytes]);
    assert_eq!(filtered(bytes.chunks(1)), whole);
    assert_eq!(filtered(bytes.chunks(size)), whole);
}

fn run<'a>(
    mut observer: Observer,
    chunks: impl IntoIterator<Item = &'a [u8]>,
) -> (Observation, bool, bool, u64) {
    chunks.into_iter().for_each(|chunk| observer.observe(chunk));
    observer.finish();
    let seen = observer.observation().clone();
    observer.finish();
    assert_eq!(*observer.observation(), seen);
    let number = observer.next_sequence_number();
    (observer.take(), observer.is_terminal(), observer.is_mid_event(), number)
}

fn filtered<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut filter = UsageChunkFilter::new();
    let mut passed = Vec::new();
    for chunk in chunks {
        passed.extend_from_slice(&filter.push(&Bytes::copy_from_slice(chunk)));
    }
    passed.extend_from_slice(&filter.finish());
    passed
}
