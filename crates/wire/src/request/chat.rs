//! Requests of the Chat Completions API.

use super::{Message, RequestView, TopLevel, includes_usage, text};

pub(super) fn read(top: &TopLevel<'_>, view: &mut RequestView) {
    let usage = top.usage.and_then(|usage| usage.get("include"));
    view.include_usage = top.stream_options.is_some_and(includes_usage)
        || usage.is_some_and(|include| include.as_bool() == Some(true));
    let (new, _turn) = Message::new_ones(top.messages.entries());
    let last = new.iter().position(|message| !message.is_instruction());
    for (number, message) in new.iter().enumerate().rev() {
        let is_last = last == Some(number);
        if message.is_of("tool") {
            if is_last {
                view.correlating_tool_call_id = text(message.tool_call_id);
            }
            view.add_tool_result(message.tool_call_id, message.content, None);
        } else if let (true, Some(content)) = (message.is_of("user"), message.content) {
            view.add_user_content(content, is_last);
        }
    }
}
