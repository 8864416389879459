//! Removes from a request what Bedrock does not accept from the model, at the top and in the parts.

use keybridge_wire::json::{Kind, Object, Splices, Value};

use super::rules::{Place, Schema};

/// A request without what Bedrock does not accept; `None` if it accepts all of it.
pub(super) fn restrict(schema: &Schema<'_>, request: &Object<'_>, body: &[u8]) -> Option<Vec<u8>> {
    let mut restriction = Restriction { schema, splices: Splices::default() };
    restriction.request(request);
    (!restriction.splices.is_empty()).then(|| restriction.splices.apply(body))
}

/// What is spliced into one document.
struct Restriction<'a> {
    schema: &'a Schema<'a>,
    splices: Splices,
}

impl Restriction<'_> {
    fn request(&mut self, request: &Object<'_>) {
        let place_of = |name: &str| match name {
            "output_config" => Some(Place::OutputConfig),
            "thinking" => Some(Place::Thinking),
            _ => None,
        };
        let is_taken = |name: &str, value: Value<'_>| {
            // An object of which nothing remains goes as a whole.
            let is_empty = place_of(name).is_some_and(|place| self.is_emptied(place, value));
            self.schema.takes_field(Place::Request, name, value.raw()) && !is_empty
        };
        let taken: Vec<bool> =
            request.members().map(|(name, value)| is_taken(&name, value)).collect();
        let mut judged = taken.iter();
        self.splices.remove_members(request, |_name, _value| judged.next() == Some(&false));
        let kept = request.members().zip(taken).filter(|(_, is_taken)| *is_taken);
        for ((name, value), _) in kept {
            match name.as_ref() {
                "messages" => self.messages(value),
                "system" => self.blocks(value),
                "tools" => self.tools(value),
                name => {
                    if let (Some(place), Some(object)) = (place_of(name), value.as_object()) {
                        self.members(place, &object);
                    }
                }
            }
        }
    }

    fn tools(&mut self, tools: Value<'_>) {
        let is_taken = |tool: Value<'_>| {
            let kind = tool.get("type").and_then(|kind| kind.as_str());
            kind.is_none_or(|kind| self.schema.takes_type(Place::Tool, &kind))
        };
        let taken: Vec<bool> = tools.elements().map(is_taken).collect();
        self.splices.remove_elements(tools, |at, _tool| taken.get(at) == Some(&false));
        for (tool, _) in tools.elements().zip(taken).filter(|(_, is_taken)| *is_taken) {
            if let Some(tool) = tool.as_object() {
                self.members(Place::Tool, &tool);
            }
        }
    }

    /// The entries of a conversation. One of the role `system` stays where it is, as a user's turn if
    /// the model has no such role: in the system prompt it would change the beginning of the
    /// conversation, which is cached. Only between calls and their results nothing may stand.
    fn messages(&mut self, messages: Value<'_>) {
        let (mut removed, mut moved) = (Vec::new(), Vec::new());
        let (mut last, mut is_after_calls) = (None, false);
        for message in messages.elements() {
            let object = message.as_object();
            let is_system = object.as_ref().is_some_and(|object| {
                object.member("role").is_some_and(|role| role.is_text("system"))
            });
            let is_empty = is_system && object.as_ref().is_some_and(|entry| self.is_empty(entry));
            let is_moved = is_system && is_after_calls && !is_empty;
            removed.push(is_empty || is_moved);
            if is_moved {
                moved.push(self.restricted(message));
            } else if !is_empty {
                if let Some(object) = &object {
                    self.message(object);
                }
                self.insert_after(message, &mut moved);
                is_after_calls = object.as_ref().is_some_and(has_calls);
                last = Some(message);
            }
        }
        if let Some(last) = last {
            self.insert_after(last, &mut moved);
        }
        self.splices.remove_elements(messages, |at, _message| removed.get(at) == Some(&true));
    }

    fn insert_after(&mut self, message: Value<'_>, moved: &mut Vec<String>) {
        for entry in moved.drain(..) {
            self.splices.insert_after(message, &entry);
        }
    }

    /// Whether an entry only sets what Bedrock does not accept, and says nothing.
    fn is_empty(&self, entry: &Object<'_>) -> bool {
        let says_nothing = entry.member("content").is_none_or(|content| match content.kind() {
            Kind::Array => content.elements().next().is_none(),
            _ => content.is_text(""),
        });
        says_nothing && !self.schema.takes_field(Place::Message, "output_config", "{}")
    }

    /// A message as a text of its own.
    fn restricted(&self, message: Value<'_>) -> String {
        let raw = message.raw();
        let mut own = Restriction { schema: self.schema, splices: Splices::default() };
        let object = Value::parse(raw.as_bytes()).ok().and_then(|message| message.as_object());
        if let Some(object) = object {
            own.message(&object);
        }
        String::from_utf8(own.splices.apply(raw.as_bytes())).unwrap_or_else(|_| raw.to_owned())
    }

    fn message(&mut self, message: &Object<'_>) {
        let role = message.member("role");
        let name = role.and_then(|role| role.as_str()).unwrap_or_default();
        if let Some(role) = role
            && !self.schema.takes_type(Place::Message, &name)
        {
            self.splices.replace(role, r#""user""#);
        }
        self.members(Place::Message, message);
        if let Some(content) = message.member("content") {
            self.blocks(content);
        }
    }

    fn blocks(&mut self, content: Value<'_>) {
        for block in content.elements() {
            let Some(object) = block.as_object() else { continue };
            let kind = object.member("type").and_then(|kind| kind.as_str()).unwrap_or_default();
            if !self.schema.takes_type(Place::Block, &kind) {
                self.splices.replace(block, as_text(&kind, &object));
                continue;
            }
            self.members(Place::Block, &object);
            if kind == "tool_result"
                && let Some(content) = object.member("content")
            {
                self.blocks(content);
            }
        }
    }

    /// The members of an object, and those of its `cache_control`.
    fn members(&mut self, place: Place, object: &Object<'_>) {
        let schema = self.schema;
        let is_taken = |name: &str, value: Value<'_>| schema.takes_field(place, name, value.raw());
        self.splices.remove_members(object, |name, value| !is_taken(name, value));
        let control = object.member("cache_control");
        let control = control.filter(|control| is_taken("cache_control", *control));
        if let Some(control) = control.and_then(|control| control.as_object()) {
            self.members(Place::CacheControl, &control);
        }
    }

    /// Whether nothing of an object remains.
    fn is_emptied(&self, place: Place, value: Value<'_>) -> bool {
        value.as_object().is_some_and(|object| {
            let mut members = object.members();
            members.all(|(name, value)| !self.schema.takes_field(place, &name, value.raw()))
        })
    }
}

/// Whether a message calls tools, so that the next one must begin with their results.
fn has_calls(message: &Object<'_>) -> bool {
    let content = message.member("content");
    let mut blocks = content.iter().flat_map(Value::elements);
    blocks.any(|block| block.get("type").is_some_and(|kind| kind.is_text("tool_use")))
}

/// A text block in place of one that Bedrock does not accept: what it refers to.
fn as_text(kind: &str, block: &Object<'_>) -> String {
    let name = block.member("tool_name").and_then(|name| name.as_str());
    let text = name.map_or_else(|| format!("[content: {kind}]"), Into::into);
    serde_json::json!({ "type": "text", "text": text }).to_string()
}

#[cfg(test)]
mod tests;
