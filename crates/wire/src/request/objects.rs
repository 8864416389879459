//! The objects stored at a provider that a request names: who may name one is for the caller to judge.

use super::{Conversation, TopLevel, member_text, text};
use crate::json::{JsonError, Kind, Object, Value};

/// Maximum number of objects that are read of one request; a request with more has one more than that.
pub const MAX_NAMED_OBJECTS: usize = 1_000;
/// How deeply the parts of a message are searched for files: a document within a tool's result has three
/// levels.
const MAX_PART_DEPTH: usize = 4;

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ObjectKind {
    /// A model's answer, to be fetched or continued: of the Responses API, or a message that a thread can be
    /// continued from.
    Response,
    /// A stored answer of the Chat Completions API.
    ChatCompletion,
    /// A conversation of the Responses API.
    Conversation,
    /// A file.
    File,
    /// A batch of requests.
    Batch,
    /// A vector store.
    VectorStore,
    /// A container in which a model runs code.
    Container,
    /// A cached prompt.
    Cache,
    /// An upload in parts.
    Upload,
}

/// An object that a request names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedObject {
    /// What it is.
    pub kind: ObjectKind,
    /// The provider's id.
    pub id: String,
}

impl ObjectKind {
    /// The name used in records and errors.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Response => "response",
            Self::ChatCompletion => "chat_completion",
            Self::Conversation => "conversation",
            Self::File => "file",
            Self::Batch => "batch",
            Self::VectorStore => "vector_store",
            Self::Container => "container",
            Self::Cache => "cache",
            Self::Upload => "upload",
        }
    }

    /// Whether it is the answer to a model request.
    #[must_use]
    pub const fn is_answer(self) -> bool {
        matches!(self, Self::Response | Self::ChatCompletion)
    }
}

/// Reads the objects that the body of a side request names, whatever its dialect.
///
/// # Errors
///
/// Returns an error if the body is not one JSON object.
pub fn named_objects(body: &[u8]) -> Result<Vec<NamedObject>, JsonError> {
    let object = Object::parse(body)?;
    let mut names = Names::default();
    // Each of duplicate keys: parsers differ on which one counts.
    object.members().for_each(|(key, value)| names.member(&key, value));
    Ok(names.found)
}

/// Reads the objects that a model request names; its messages and tools are searched only if a key within
/// the body may name one.
pub(super) fn read(top: &TopLevel<'_>) -> Vec<NamedObject> {
    let mut names = Names::default();
    let members = [
        ("previous_response_id", top.previous_response_id),
        ("conversation", top.conversation),
        ("container", top.container),
        ("thread", top.thread),
    ];
    for (key, value) in members {
        if let Some(value) = value {
            names.member(key, value);
        }
    }
    if top.may_name_objects {
        for conversation in [&top.messages, &top.input] {
            match conversation {
                Conversation::Entries(entries) => entries.iter().for_each(|one| names.entry(one)),
                Conversation::Absent | Conversation::Single(_) => {}
            }
        }
        if let Some(tools) = top.tools {
            tools.elements().for_each(|tool| names.tool(&tool));
        }
        if let Some(prompt) = top.prompt {
            names.member("prompt", prompt);
        }
    }
    names.found
}

/// Whether a key may name an object that is not named at the top of a model request; with its quotes, as
/// written.
pub(super) fn may_name_object(key: &str) -> bool {
    matches!(key, "\"file_id\"" | "\"file_ids\"" | "\"vector_store_ids\"" | "\"container\"")
}

/// The objects found so far.
#[derive(Debug, Default)]
struct Names {
    found: Vec<NamedObject>,
}

impl Names {
    fn add(&mut self, kind: ObjectKind, id: Option<String>) {
        let Some(id) = id else { return };
        let is_new = || !self.found.iter().any(|one| one.kind == kind && one.id == id);
        if self.found.len() <= MAX_NAMED_OBJECTS && is_new() {
            self.found.push(NamedObject { kind, id });
        }
    }

    /// Ids in a list.
    fn add_all(&mut self, kind: ObjectKind, ids: Value<'_>) {
        for id in ids.elements() {
            self.add(kind, text(Some(id)));
        }
    }

    /// An id, or an object with it.
    fn add_reference(&mut self, kind: ObjectKind, reference: Value<'_>) {
        self.add(kind, text(Some(reference)).or_else(|| member_text(&reference, "id")));
    }

    /// A member of a request.
    fn member(&mut self, key: &str, value: Value<'_>) {
        match key {
            "previous_response_id" => self.add(ObjectKind::Response, text(Some(value))),
            "conversation" => self.add_reference(ObjectKind::Conversation, value),
            "container" => self.container(value),
            "cachedContent" => self.add(ObjectKind::Cache, text(Some(value))),
            // <https://platform.claude.com/docs/en/build-with-claude/message-threads>
            "thread" => {
                self.add(ObjectKind::Response, member_text(&value, "previous_message_id"));
            }
            "file_id" | "input_file_id" => self.add(ObjectKind::File, text(Some(value))),
            "file_ids" => self.add_all(ObjectKind::File, value),
            "files" => value.elements().for_each(|file| {
                self.add(ObjectKind::File, member_text(&file, "file_id"));
            }),
            "vector_store_ids" => self.add_all(ObjectKind::VectorStore, value),
            "messages" | "input" | "items" => value.elements().for_each(|one| self.entry(&one)),
            "tools" => value.elements().for_each(|tool| self.tool(&tool)),
            // A stored prompt whose variables may be files.
            "prompt" => {
                let variables = value.get("variables").and_then(|value| value.as_object());
                for (_, variable) in variables.iter().flat_map(Object::members) {
                    self.part(&variable, 0);
                }
            }
            "requests" => value.elements().for_each(|request| self.batched(&request)),
            _ => {}
        }
    }

    /// A request of a batch of the Messages API.
    fn batched(&mut self, request: &Value<'_>) {
        let params = request.get("params").and_then(|params| params.as_object());
        let members = params.iter().flat_map(Object::members);
        for (key, value) in members.filter(|(key, _)| key != "requests") {
            self.member(&key, value);
        }
    }

    /// A message, or an item of the Responses API.
    fn entry(&mut self, entry: &Value<'_>) {
        self.part(entry, 0);
    }

    /// A part of a message. Arguments of tool calls are the model's words and name nothing.
    fn part(&mut self, part: &Value<'_>, depth: usize) {
        if part.kind() != Kind::Object || depth > MAX_PART_DEPTH {
            return;
        }
        let [file_id, source, file, content, output] =
            part.get_all(["file_id", "source", "file", "content", "output"]);
        self.add(ObjectKind::File, text(file_id));
        for inner in [source, file].into_iter().flatten() {
            self.part(&inner, depth + 1);
        }
        for parts in [content, output].into_iter().flatten() {
            match parts.kind() {
                Kind::Object => self.part(&parts, depth + 1),
                _ => parts.elements().for_each(|inner| self.part(&inner, depth + 1)),
            }
        }
    }

    fn tool(&mut self, tool: &Value<'_>) {
        let keys = ["vector_store_ids", "container", "file_ids", "input_image_mask"];
        let [vector_stores, container, files, mask] = tool.get_all(keys);
        if let Some(vector_stores) = vector_stores {
            self.add_all(ObjectKind::VectorStore, vector_stores);
        }
        if let Some(container) = container {
            self.container(container);
        }
        if let Some(files) = files {
            self.add_all(ObjectKind::File, files);
        }
        self.add(ObjectKind::File, mask.and_then(|mask| member_text(&mask, "file_id")));
    }

    /// A container, or the files of a new one.
    fn container(&mut self, container: Value<'_>) {
        self.add_reference(ObjectKind::Container, container);
        if let Some(files) = container.get("file_ids") {
            self.add_all(ObjectKind::File, files);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_NAMED_OBJECTS, named_objects};
    use crate::{
        Dialect,
        request::{NamedObject, RequestError, RequestView},
    };

    fn shown(names: &[NamedObject]) -> Vec<String> {
        names.iter().map(|name| format!("{} {}", name.kind.as_str(), name.id)).collect()
    }

    fn named(dialect: Dialect, body: &str) -> Vec<String> {
        shown(&RequestView::read(dialect, body.as_bytes()).unwrap().objects)
    }

    #[test]
    fn objects_are_read_wherever_a_model_request_names_them() {
        let rows = [
            (Dialect::Responses, r#"{"previous_response_id":"r"}"#, vec!["response r"]),
            (Dialect::Responses, r#"{"conversation":{"id":"c"}}"#, vec!["conversation c"]),
            (Dialect::Responses, r#"{"conversation":null,"previous_response_id":null}"#, vec![]),
            (
                Dialect::Responses,
                r#"{"input":[{"role":"user","content":[{"type":"input_image","file_id":"f"}]},
                    {"type":"function_call_output","output":[{"type":"input_file","file_id":"g"}]}],
                    "prompt":{"id":"p","variables":{"v":{"type":"input_file","file_id":"h"}}},
                    "tools":[{"vector_store_ids":["v","w"]},{"container":{"type":"auto","file_ids":["i"]}},
                    {"container":"k"}]}"#,
                vec![
                    "file f",
                    "file g",
                    "vector_store v",
                    "vector_store w",
                    "file i",
                    "container k",
                    "file h",
                ],
            ),
            (
                Dialect::Messages,
                r#"{"container":{"id":"k","skills":[]},"thread":{"type":"continue","previous_message_id":"m"},
                    "messages":[{"role":"user","content":[{"type":"container_upload","file_id":"f"},
                    {"type":"tool_result","content":[{"type":"document","source":{"file_id":"g"}}]}]}]}"#,
                vec!["container k", "response m", "file f", "file g"],
            ),
            (
                Dialect::ChatCompletions,
                r#"{"messages":[{"content":[{"type":"file","file":{"file\u005fid":"f"}}]}]}"#,
                vec!["file f"],
            ),
        ];
        for (dialect, body, expected) in rows {
            assert_eq!(named(dialect, body), expected, "{body}");
        }
    }

    #[test]
    fn what_a_tool_takes_or_a_model_writes_names_nothing() {
        let body = r#"{"messages":[{"role":"assistant","content":[{"type":"tool_use",
            "input":{"file_id":"f","file_ids":["g"],"container":"c"}}]}],
            "tools":[{"input_schema":{"properties":{"file_id":{"type":"string"},"vector_store_ids":{}}}}]}"#;
        assert_eq!(named(Dialect::Messages, body), Vec::<String>::new());
    }

    #[test]
    fn a_key_that_names_an_object_must_not_be_repeated() {
        let body = br#"{"previous_response_id":"a","previous\u005fresponse_id":"b"}"#;
        let read = RequestView::read(Dialect::Responses, body);
        assert_eq!(read, Err(RequestError::DuplicateKey("previous_response_id".into())));
    }

    #[test]
    fn a_side_request_names_each_object_of_its_body() {
        let body = br#"{"input_file_id":"a","file_ids":["b"],"files":[{"file_id":"c"}],"file_id":"d",
            "file_id":"e","items":[{"content":[{"file_id":"f"}]}],
            "requests":[{"params":{"container":"g","messages":[{"content":[{"source":{"file_id":"h"}}]}]}}]}"#;
        let names = shown(&named_objects(body).unwrap());
        let files = ["a", "b", "c", "d", "e", "f"].map(|id| format!("file {id}"));
        assert_eq!(names, [&files[..], &["container g".into(), "file h".into()]].concat());
        assert!(named_objects(b"[]").is_err());
    }

    #[test]
    fn the_number_of_names_is_bounded() {
        let ids: Vec<String> = (0..MAX_NAMED_OBJECTS * 2).map(|id| format!("\"{id}\"")).collect();
        let body = format!(r#"{{"file_ids":[{}]}}"#, ids.join(","));
        assert_eq!(named_objects(body.as_bytes()).unwrap().len(), MAX_NAMED_OBJECTS + 1);
    }

    #[test]
    fn whether_an_answer_is_stored_depends_on_the_dialect() {
        let rows = [
            (Dialect::Responses, "{}", true),
            (Dialect::Responses, r#"{"store":false}"#, false),
            (Dialect::ChatCompletions, "{}", false),
            (Dialect::ChatCompletions, r#"{"store":true}"#, true),
            (Dialect::Messages, r#"{"store":true}"#, false),
            (Dialect::Messages, r#"{"thread":{"type":"create"}}"#, true),
        ];
        for (dialect, body, expected) in rows {
            let view = RequestView::read(dialect, body.as_bytes()).unwrap();
            assert_eq!(view.is_stored, expected, "{dialect} {body}");
        }
    }
}
