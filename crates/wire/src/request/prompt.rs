//! Finding the user's prompt among the texts of a message.

use super::{Attachments, Value, text};

const REMINDER_START: &str = "<system-reminder>";
const REMINDER_END: &str = "</system-reminder>";

/// Extracts the user's prompt from a message whose content is a string or a list of parts.
///
/// Of several text parts, the last one counts that is not a reminder inserted by the agent; a reminder
/// counts only if the message contains nothing else. Files among the parts are attachments.
pub(super) fn extract(content: Value<'_>, attachments: &mut Attachments) -> Option<String> {
    if let Some(prompt) = text(Some(content)) {
        return Some(prompt);
    }
    let mut reminder = None;
    let mut own = None;
    let (mut carries_result, mut has_other_parts) = (false, false);
    for [kind, words] in content.objects(["type", "text"]) {
        let Some(kind) = kind else { continue };
        if !kind.is_text("text") {
            let is_result = kind.is_text("tool_result");
            carries_result |= is_result;
            has_other_parts |= !is_result;
            continue;
        }
        match text(words) {
            Some(text) if is_reminder(&text) => reminder = Some(text),
            Some(text) => own = Some(text),
            None => {}
        }
    }
    if has_other_parts {
        attachments.add_parts(&content);
    }
    own.or_else(|| reminder.filter(|_| !carries_result))
}

/// Whether a text consists only of `<system-reminder>…</system-reminder>` elements.
fn is_reminder(text: &str) -> bool {
    let mut rest = text.trim();
    loop {
        let Some(inside) = rest.strip_prefix(REMINDER_START) else {
            return false;
        };
        let Some((_, after)) = inside.split_once(REMINDER_END) else {
            return false;
        };
        rest = after.trim();
        if rest.is_empty() {
            return true;
        }
    }
}
