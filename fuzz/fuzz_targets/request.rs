//! Arbitrary bodies: read in every dialect without a panic; usage is requested only if they are JSON.
#![no_main]

use keybridge_wire::{
    Dialect,
    request::{RequestView, add_include_usage},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    let views = [Dialect::Messages, Dialect::ChatCompletions, Dialect::Responses]
        .map(|dialect| RequestView::read(dialect, body));
    let [messages, chat, responses] = &views;
    assert_eq!(messages.is_ok(), chat.is_ok());
    assert_eq!(messages.is_ok(), responses.is_ok());
    let Ok(Some(body)) = add_include_usage(body) else {
        return;
    };
    assert_eq!(add_include_usage(&body), Ok(None));
    if let Ok(view) = chat {
        let edited = RequestView::read(Dialect::ChatCompletions, &body).unwrap();
        assert!(edited.include_usage && !view.include_usage);
        assert_eq!(edited, RequestView { include_usage: true, ..view.clone() });
    }
});
