use std::io::Write;

use http::{HeaderMap, HeaderValue, header};

use super::{DecodeError, codings, decoded};

const TEXT: &[u8] = b"{\"model\":\"m\",\"messages\":[]}";

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn undone(coding: &[&str], body: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let codings: Vec<String> = coding.iter().map(|name| (*name).into()).collect();
    decoded(&codings, body, 1024).map(std::borrow::Cow::into_owned)
}

#[test]
fn every_coding_is_undone() {
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    zlib.write_all(TEXT).unwrap();
    let mut raw = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
    raw.write_all(TEXT).unwrap();
    let zstd =
        ruzstd::encoding::compress_to_vec(TEXT, ruzstd::encoding::CompressionLevel::Uncompressed);
    assert_eq!(undone(&["gzip"], &gzip(TEXT)).unwrap(), TEXT);
    assert_eq!(undone(&["deflate"], &zlib.finish().unwrap()).unwrap(), TEXT);
    assert_eq!(undone(&["deflate"], &raw.finish().unwrap()).unwrap(), TEXT);
    assert_eq!(undone(&["zstd"], &zstd).unwrap(), TEXT);
    assert_eq!(undone(&["gzip", "gzip"], &gzip(&gzip(TEXT))).unwrap(), TEXT);
    assert_eq!(undone(&[], TEXT).unwrap(), TEXT);
    // A stored Brotli stream, written by hand from RFC 7932: window bits, one uncompressed
    // meta-block of 3 bytes, and an empty last one.
    let brotli = [0x21, 0x08, 0x00, 0x04, b'a', b'b', b'c', 0x03];
    assert_eq!(undone(&["br"], &brotli).unwrap(), b"abc");
}

#[test]
fn bombs_lies_and_unknown_codings_are_refused() {
    let bomb = gzip(&vec![0; 1_000_000]);
    assert_eq!(undone(&["gzip"], &bomb), Err(DecodeError::TooLarge(1024)));
    for coding in ["gzip", "deflate", "br", "zstd"] {
        assert!(
            matches!(undone(&[coding], b"\xff\xffno"), Err(DecodeError::Corrupt(_))),
            "{coding}"
        );
    }
    assert_eq!(undone(&["lzma"], TEXT), Err(DecodeError::Unknown("lzma".into())));
}

#[test]
fn codings_are_listed_without_identity() {
    let mut headers = HeaderMap::new();
    headers.append(header::CONTENT_ENCODING, HeaderValue::from_static("GZIP, identity"));
    headers.append(header::CONTENT_ENCODING, HeaderValue::from_static("br"));
    assert_eq!(codings(&headers), ["gzip", "br"]);
}
