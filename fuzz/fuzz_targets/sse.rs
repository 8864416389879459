//! Arbitrary bytes, split anywhere: what goes into the framer comes out, in the same events.
#![no_main]

use keybridge_wire::sse::Framer;
use libfuzzer_sys::fuzz_target;

type Event = (Option<Vec<u8>>, Vec<u8>);

fuzz_target!(|input: (u8, &[u8])| {
    let (size, stream) = input;
    let limit = 64 + usize::from(size);
    let whole = read(limit, [stream]);
    assert_eq!(read(limit, stream.chunks(1)), whole);
    assert_eq!(read(limit, stream.chunks(usize::from(size) + 1)), whole);
});

fn read<'a>(limit: usize, chunks: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Event>, u64) {
    let mut framer = Framer::with_limit(limit);
    let (mut events, mut raw, mut given) = (vec![], vec![], vec![]);
    for chunk in chunks {
        given.extend_from_slice(chunk);
        framer.push(chunk, |frame| {
            raw.extend_from_slice(frame.raw());
            if !frame.is_comment_only() && !frame.is_fragment() {
                events.push((frame.event().map(<[u8]>::to_vec), frame.data().into_owned()));
            }
        });
        assert!(framer.pending().len() <= limit);
    }
    framer.finish(|frame| raw.extend_from_slice(frame.raw()));
    assert_eq!(raw, given);
    (events, framer.skipped_events())
}
