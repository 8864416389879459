//! Assembles the tool calls of a Chat Completions stream, which servers number and name in many ways.

use super::{ToolCall, budget::Budget};

/// The calls that are still being streamed.
#[derive(Debug, Default)]
pub(super) struct ChatCalls {
    calls: Vec<OpenCall>,
}

/// A tool call that is still being streamed.
#[derive(Debug)]
struct OpenCall {
    choice: u64,
    index: Option<u64>,
    call: ToolCall,
    progress: Progress,
}

/// How far the arguments of a call are a JSON object; each byte is looked at once.
#[derive(Debug, Default)]
struct Progress {
    /// The bytes looked at.
    seen: usize,
    depth: usize,
    is_in_string: bool,
    is_escaped: bool,
}

impl ChatCalls {
    /// Takes the calls in the order in which they began.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = ToolCall> + '_ {
        self.calls.drain(..).map(|open| open.call)
    }

    /// Adds a part to the call it belongs to, or begins another call.
    pub(super) fn add(
        &mut self,
        choice: u64,
        index: Option<u64>,
        part: ToolCall,
        budget: &mut Budget,
    ) {
        match self.find(choice, index, &part) {
            Some(OpenCall { call, .. }) => {
                if call.id.is_empty() {
                    budget.append(&mut call.id, &part.id);
                }
                if call.name.is_empty() {
                    budget.append(&mut call.name, &part.name);
                }
                // What the provider ran is reported whole, and again with its result; some servers report
                // every call so far in each chunk.
                let is_repeated = part.provider_executed
                    || !part.name.is_empty() && call.arguments == part.arguments;
                if call.arguments.is_empty() || !is_repeated {
                    budget.append(&mut call.arguments, &part.arguments);
                }
                call.result = part.result.or(call.result.take());
            }
            None => {
                if budget.reserve_part(part.len()) {
                    let progress = Progress::default();
                    self.calls.push(OpenCall { choice, index, call: part, progress });
                }
            }
        }
    }

    /// The call that a part continues: the one with its id, or else the latest with its index.
    fn find(&mut self, choice: u64, index: Option<u64>, part: &ToolCall) -> Option<&mut OpenCall> {
        let has_id = |open: &OpenCall| open.choice == choice && open.call.id == part.id;
        let has_index = |open: &OpenCall| {
            let is_numbered = index.is_some() && open.index.is_some();
            open.choice == choice && (!is_numbered || open.index == index)
        };
        let by_id = (!part.id.is_empty()).then(|| self.calls.iter().rposition(has_id)).flatten();
        let at = by_id.or_else(|| self.calls.iter().rposition(has_index))?;
        let open = self.calls.get_mut(at)?;
        open.is_continued_by(part).then_some(open)
    }
}

impl OpenCall {
    /// Whether a part with the same id or index belongs to this call. Some servers number all calls 0,
    /// leave ids out, repeat id and name in each part, or make another id for each.
    fn is_continued_by(&mut self, part: &ToolCall) -> bool {
        if part.provider_executed {
            return true;
        }
        let is_same_name = part.name.is_empty() || self.call.name == part.name;
        let has_other_id =
            !part.id.is_empty() && !self.call.id.is_empty() && part.id != self.call.id;
        if has_other_id {
            // The rest of the arguments under another id; another call begins with a name, and with all,
            // the beginning or none of an object.
            let continues = if self.call.arguments.is_empty() {
                !part.arguments.is_empty()
            } else {
                !part.arguments.trim_start().starts_with('{') && !self.is_whole()
            };
            return part.name.is_empty() || is_same_name && continues;
        }
        let is_same_id = !part.id.is_empty() && part.id == self.call.id;
        if part.name.is_empty() || self.call.name.is_empty() {
            return true;
        }
        let is_repeated = is_same_id && part.arguments == self.call.arguments;
        let begins = !is_same_id || part.arguments.starts_with('{');
        is_same_name && (is_repeated || !begins || !self.is_whole())
    }

    /// Whether the arguments so far are a whole object.
    fn is_whole(&mut self) -> bool {
        self.progress.read(self.call.arguments.as_bytes())
    }
}

impl Progress {
    /// Looks at the arguments that were added; returns whether they end with the object.
    fn read(&mut self, arguments: &[u8]) -> bool {
        for byte in arguments.get(self.seen..).unwrap_or_default() {
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' if self.is_in_string => self.is_escaped = true,
                b'"' => self.is_in_string = !self.is_in_string,
                b'{' | b'[' if !self.is_in_string => self.depth += 1,
                b'}' | b']' if !self.is_in_string => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
        }
        self.seen = arguments.len();
        self.depth == 0 && !self.is_in_string && arguments.trim_ascii().ends_with(b"}")
    }
}
