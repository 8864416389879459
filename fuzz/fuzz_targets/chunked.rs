//! Arbitrary frames, pauses and short writes: the chunks decode to the frames, and the last one is there
//! if and only if the body ends without an error.
#![no_main]

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http_body::{Body, Frame};
use keybridge_net::chunked::ChunkedWriter;
use libfuzzer_sys::fuzz_target;
use tokio::io::AsyncWrite;

/// Polls that may be pending before the body has surely ended.
const MAX_PENDING: usize = 4;

/// A body of scripted frames: `None` is a pause, and the end is an error or not.
struct Frames {
    steps: std::vec::IntoIter<Option<Vec<u8>>>,
    fails: bool,
}

impl Body for Frames {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.steps.next() {
            Some(Some(data)) => Poll::Ready(Some(Ok(Frame::data(data.into())))),
            Some(None) => Poll::Pending,
            None if self.fails => Poll::Ready(Some(Err(io::ErrorKind::BrokenPipe.into()))),
            None => Poll::Ready(None),
        }
    }
}

/// A stream that takes as many bytes as scripted; 0 is a pause.
struct Taker {
    sizes: std::iter::Cycle<std::vec::IntoIter<u8>>,
    taken: Vec<u8>,
}

impl AsyncWrite for Taker {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.sizes.next().map_or(usize::MAX, usize::from) {
            0 => Poll::Pending,
            size => {
                let taken = data.len().min(size);
                self.taken.extend_from_slice(&data[..taken]);
                Poll::Ready(Ok(taken))
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fuzz_target!(|input: (bool, Vec<u8>, Vec<Option<Vec<u8>>>)| {
    let (fails, mut sizes, steps) = input;
    // A stream that never takes anything ends nothing.
    sizes.push(7);
    let expected = steps.iter().flatten().flatten().copied().collect::<Vec<u8>>();
    let limit = (expected.len() + 64 * steps.len() + 64) * MAX_PENDING * (sizes.len() + 1);
    let mut taker = Taker { sizes: sizes.into_iter().cycle(), taken: Vec::new() };
    let mut writer = ChunkedWriter::new(Frames { steps: steps.into_iter(), fails });
    let mut cx = Context::from_waker(Waker::noop());
    let ended = (0..limit).find_map(|_| match writer.poll(&mut taker, &mut cx) {
        Poll::Ready(ended) => Some(ended),
        Poll::Pending => None,
    });
    assert_eq!(ended.expect("the body ends").is_err(), fails);
    let (data, is_complete) = decode(&taker.taken);
    assert_eq!(data, expected);
    assert_eq!(is_complete, !fails);
});

/// Decodes chunks strictly; the data, and whether the last chunk was there.
fn decode(mut raw: &[u8]) -> (Vec<u8>, bool) {
    let mut data = Vec::new();
    while !raw.is_empty() {
        let end = raw.windows(2).position(|two| two == b"\r\n").expect("a size line ends");
        let size = std::str::from_utf8(&raw[..end]).expect("a size is ASCII");
        assert!(!size.is_empty() && size.bytes().all(|byte| byte.is_ascii_hexdigit()), "{size}");
        let size = usize::from_str_radix(size, 16).expect("a size is hexadecimal");
        let chunk = &raw[end + 2..];
        assert_eq!(&chunk[size..size + 2], b"\r\n");
        raw = &chunk[size + 2..];
        if size == 0 {
            assert!(raw.is_empty(), "nothing comes after the last chunk");
            return (data, true);
        }
        data.extend_from_slice(&chunk[..size]);
    }
    (data, false)
}
