//! The text fields of a `multipart/form-data` body (RFC 7578), as far as it has arrived.

use memchr::memmem;

/// The boundary that a content type names; `None` if it is not that of a form.
#[must_use]
pub fn boundary(content_type: &str) -> Option<&str> {
    let (kind, parameters) = content_type.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    parameter(parameters, "boundary").filter(|boundary| !boundary.is_empty())
}

/// Finds the value of a text field; files are passed over. `None` if it is not UTF-8, or has not arrived as
/// a whole.
#[must_use]
pub fn text_field<'a>(body: &'a [u8], boundary: &str, name: &str) -> Option<&'a str> {
    let delimiter = format!("--{boundary}");
    let mut rest = after(body, delimiter.as_bytes())?;
    let delimiter = format!("\r\n{delimiter}");
    loop {
        // The headers of a part begin in the line after its delimiter.
        let part = after(rest, b"\r\n")?;
        let end = memmem::find(part, b"\r\n\r\n")?;
        let (headers, content) = (part.get(..end)?, part.get(end + 4..)?);
        let end = memmem::find(content, delimiter.as_bytes())?;
        if is_text_field(headers, name) {
            return std::str::from_utf8(content.get(..end)?).ok();
        }
        rest = content.get(end + delimiter.len()..)?;
        if rest.starts_with(b"--") {
            return None;
        }
    }
}

/// Whether a part's `Content-Disposition` has this name and no file name.
fn is_text_field(headers: &[u8], name: &str) -> bool {
    let Ok(headers) = std::str::from_utf8(headers) else { return false };
    headers.split("\r\n").filter_map(|header| header.split_once(':')).any(|(header, value)| {
        header.trim().eq_ignore_ascii_case("content-disposition")
            && parameter(value, "name") == Some(name)
            && parameter(value, "filename").is_none()
            && parameter(value, "filename*").is_none()
    })
}

/// The value of a parameter of a header, without quotation marks.
fn parameter<'a>(header: &'a str, name: &str) -> Option<&'a str> {
    header.split(';').filter_map(|part| part.split_once('=')).find_map(|(own, value)| {
        let value = value.trim();
        let plain = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
        own.trim().eq_ignore_ascii_case(name).then(|| plain.unwrap_or(value))
    })
}

fn after<'a>(bytes: &'a [u8], needle: &[u8]) -> Option<&'a [u8]> {
    bytes.get(memmem::find(bytes, needle)? + needle.len()..)
}

#[cfg(test)]
mod tests {
    use super::{boundary, text_field};

    const FORM: &str = "--x-y\r\nContent-Disposition: form-data; name=\"file\"; filename=\"model\"\r\n\
        Content-Type: audio/wav\r\n\r\nRIFF\r\n--x-\r\n--x-y\r\n\
        content-disposition: form-data; name=model\r\n\r\nwhisper-1\r\n\
        --x-y\r\nContent-Disposition: form-data; name=\"stream\"\r\n\r\ntrue\r\n--x-y--\r\n";

    #[test]
    fn a_boundary_may_be_quoted() {
        assert_eq!(boundary("multipart/form-data; boundary=x-y"), Some("x-y"));
        assert_eq!(boundary("Multipart/Form-Data;charset=utf-8; Boundary=\"x y\""), Some("x y"));
        for other in ["multipart/mixed; boundary=x", "multipart/form-data", "application/json", ""]
        {
            assert_eq!(boundary(other), None, "{other}");
        }
    }

    #[test]
    fn text_fields_are_found_and_files_passed_over() {
        let field = |name| text_field(FORM.as_bytes(), "x-y", name);
        assert_eq!(field("model"), Some("whisper-1"));
        assert_eq!(field("stream"), Some("true"));
        assert_eq!(field("file"), None);
        assert_eq!(field("language"), None);
        assert_eq!(text_field(FORM.as_bytes(), "other", "model"), None);
    }

    #[test]
    fn a_field_counts_once_it_has_arrived() {
        for length in 0..FORM.len() {
            let found = text_field(&FORM.as_bytes()[..length], "x-y", "model");
            assert!(matches!(found, None | Some("whisper-1")), "{length}: {found:?}");
        }
    }
}
