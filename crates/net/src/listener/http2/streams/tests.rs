use std::future::pending;

use http_body_util::{BodyExt, StreamBody};

use super::*;

const LIMIT: Duration = Duration::from_secs(300);

fn data(size: usize) -> Bytes {
    vec![b'a'; size].into()
}

async fn next_data(body: &mut WatchedBody) -> usize {
    body.frame().await.unwrap().unwrap().into_data().unwrap().len()
}

#[tokio::test]
async fn data_is_given_in_pieces_of_a_frame_and_counted_in_the_size() {
    let mut body = WatchedBody::new(Body::from(data(MAX_FRAME_DATA * 2 + 1)), Arc::default());
    for expected in [MAX_FRAME_DATA, MAX_FRAME_DATA, 1] {
        assert!(!body.is_end_stream());
        let before = body.size_hint().exact().unwrap();
        assert_eq!(next_data(&mut body).await, expected);
        let after = body.size_hint().exact().unwrap();
        assert_eq!(before - after, u64::try_from(expected).unwrap());
    }
    assert!(body.is_end_stream());
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_stalled_while_its_body_gave_data_and_is_not_polled_again() {
    let streams = Arc::new(LiveStreams::new(TaskTracker::new()));
    let progress = streams.begin();
    streams.spawn(pending());
    let frames = futures_util::stream::iter([Ok::<_, axum::Error>(Frame::data(data(1)))]);
    let frames = futures_util::StreamExt::chain(frames, futures_util::stream::pending());
    let mut body = WatchedBody::new(Body::new(StreamBody::new(frames)), progress);
    let is_live_after = async |seconds: u64| {
        tokio::time::advance(Duration::from_secs(seconds)).await;
        streams.reset_stalled(LIMIT);
        streams.tasks.close();
        let _ended = tokio::time::timeout(Duration::from_millis(1), streams.tasks.wait()).await;
        !streams.is_empty()
    };
    assert!(is_live_after(1_000).await, "not polled yet");
    next_data(&mut body).await;
    assert!(is_live_after(10).await, "gave data just now");
    assert!(is_live_after(299).await);
    assert!(futures_util::poll!(body.frame()).is_pending());
    assert!(is_live_after(1_000).await, "polled again: it waits for the provider");
}

#[tokio::test(start_paused = true)]
async fn a_stalled_stream_is_reset_and_another_is_not() {
    let streams = Arc::new(LiveStreams::new(TaskTracker::new()));
    for has_data in [true, false] {
        let progress = streams.begin();
        streams.spawn(pending());
        if has_data {
            next_data(&mut WatchedBody::new(Body::from("a"), progress)).await;
        }
    }
    streams.reset_stalled(LIMIT);
    tokio::time::advance(LIMIT).await;
    streams.reset_stalled(LIMIT);
    let one_is_left = async {
        while streams.state().live.len() > 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(1), one_is_left).await.unwrap();
    assert_eq!(streams.state().live.len(), 1);
}
