//! Pictures, documents, recordings and other files that a request carries or names.

use std::{borrow::Cow, ops::Range};

use super::Value;
use crate::json::Kind;

/// Maximum number of attachments that are read of one request.
pub const MAX_ATTACHMENTS: usize = 100;

/// A file that a request carries or names; its content stays in the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// `image`, `document`, `audio`, `video` or `file`.
    pub kind: &'static str,
    /// Its media type, as the request says.
    pub media_type: Option<String>,
    /// Where its content is.
    pub content: AttachmentContent,
}

/// Where the content of an attachment is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttachmentContent {
    /// In the body, as base64 within a string: the bytes of the body.
    Base64(Range<usize>),
    /// In the body, as plain text within a string: the bytes of the body.
    Text(Range<usize>),
    /// At this URL, without credentials and query.
    Url(String),
    /// With the provider, under this id.
    File(String),
}

/// The attachments of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attachments {
    /// The first ones, at most [`MAX_ATTACHMENTS`].
    pub list: Vec<Attachment>,
    /// How many further ones there are.
    pub omitted: u64,
}

impl Attachments {
    /// Adds those parts of a content that are attachments; a content that is no list has none.
    pub(super) fn add_parts(&mut self, content: &Value<'_>) {
        for part in content.elements() {
            self.add(&part);
        }
    }

    /// Adds a part that is an attachment, and those in a document made of parts.
    pub(super) fn add(&mut self, part: &Value<'_>) {
        let [kind, source] = part.get_all(["type", "source"]);
        let Some(kind) = kind.and_then(|kind| attachment_kind(&kind)) else { return };
        if let Some(parts) = source.and_then(|source| source.get("content")) {
            return self.add_parts(&parts);
        }
        let Some(attachment) = Attachment::read(kind, part, source) else { return };
        if self.list.len() < MAX_ATTACHMENTS {
            self.list.push(attachment);
        } else {
            self.omitted += 1;
        }
    }
}

impl Attachment {
    /// Reads a part: its own members, or those of the object that has the name of its kind.
    fn read(kind: &'static str, part: &Value<'_>, source: Option<Value<'_>>) -> Option<Self> {
        let holder = source.or_else(|| part.get_all(HOLDERS).into_iter().find_map(present));
        let own = part.get_all(MEMBERS);
        let inner = holder.map(|holder| holder.get_all(MEMBERS)).unwrap_or_default();
        let mut members = own.into_iter().zip(inner).map(|(own, inner)| present(inner).or(own));
        let mut next = || present(members.next().flatten());
        let [media_type, format, file_id, url, file_url, data, file_data, source_kind] =
            std::array::from_fn(|_| next());
        let media_type = string(media_type).or_else(|| Some(format!("{kind}/{}", string(format)?)));
        if let Some(id) = string(file_id) {
            return Some(Self { kind, media_type, content: AttachmentContent::File(id) });
        }
        let named = holder.filter(|holder| holder.kind() == Kind::String);
        let value = data.or(file_data).or(url).or(file_url).or(named)?;
        if source_kind.is_some_and(|kind| kind.is_text("text")) {
            let content = AttachmentContent::Text(inside(&value)?);
            return Some(Self { kind, media_type, content });
        }
        let (named, content) = content_of(&value)?;
        Some(Self { kind, media_type: named.or(media_type), content })
    }
}

/// Reads a string that is a `data:` URL, another URL, or base64; returns the media type that it names.
fn content_of(value: &Value<'_>) -> Option<(Option<String>, AttachmentContent)> {
    let range = inside(value)?;
    let literal = value.raw().get(1..)?;
    if starts_with_word(literal, "data:") {
        let comma = literal.bytes().take(MAX_DATA_HEAD).position(|byte| byte == b',')?;
        let head = literal.get("data:".len()..comma)?.replace("\\/", "/");
        let named = head.split(';').next().filter(|name| !name.is_empty());
        let content = range.start + comma + 1..range.end;
        let content = if head.ends_with(";base64") {
            AttachmentContent::Base64(content)
        } else {
            AttachmentContent::Text(content)
        };
        return Some((named.map(str::to_owned), content));
    }
    let is_url = URL_SCHEMES.iter().any(|scheme| starts_with_word(literal, scheme));
    if is_url {
        return Some((None, AttachmentContent::Url(without_secrets(&value.as_str()?))));
    }
    Some((None, AttachmentContent::Base64(range)))
}

/// The bytes of the document between the quotes of a string.
fn inside(value: &Value<'_>) -> Option<Range<usize>> {
    let Range { start, end } = value.range();
    (value.kind() == Kind::String).then(|| start + 1..end - 1)
}

/// Where parts of different kinds have an object, or a string, with the rest.
const HOLDERS: [&str; 7] =
    ["image_url", "input_audio", "audio_url", "video_url", "document_url", "input_video", "file"];
/// The members that say what an attachment is and where: the media type, the format of a recording, an id,
/// a URL in two spellings, data in two spellings, and the type of a source.
const MEMBERS: [&str; 8] =
    ["media_type", "format", "file_id", "url", "file_url", "data", "file_data", "type"];
/// Maximum length of a `data:` URL up to its comma.
const MAX_DATA_HEAD: usize = 512;
/// How a URL begins that is fetched by the provider.
const URL_SCHEMES: [&str; 5] = ["http:", "https:", "gs:", "s3:", "file:"];

/// The kind of an attachment, by the type of its part in any of the dialects.
fn attachment_kind(kind: &Value<'_>) -> Option<&'static str> {
    Some(match &*kind.as_str()? {
        "image" | "image_url" | "input_image" | "computer_screenshot" => "image",
        "document" | "document_url" => "document",
        "audio" | "audio_url" | "input_audio" => "audio",
        "video" | "video_url" | "input_video" => "video",
        "file" | "input_file" | "container_upload" => "file",
        _ => return None,
    })
}

fn present(value: Option<Value<'_>>) -> Option<Value<'_>> {
    value.filter(|value| !value.is_null())
}

fn string(value: Option<Value<'_>>) -> Option<String> {
    value?.as_str().filter(|text| !text.is_empty()).map(Cow::into_owned)
}

fn starts_with_word(text: &str, word: &str) -> bool {
    text.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word))
}

/// A URL without user and password, query and fragment, any of which may be a credential.
pub(super) fn without_secrets(url: &str) -> String {
    let end = url.find(['?', '#']).unwrap_or(url.len());
    let url = url.get(..end).unwrap_or(url);
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let path = rest.find('/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at_checked(path).unwrap_or((rest, ""));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}
