use std::io::Write;

use http::{HeaderMap, HeaderValue, header};

use super::{DecodeError, codings, decode_in_pieces, decoded};

const TEXT: &[u8] = b"{\"model\":\"m\",\"messages\":[]}";

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn decode(coding: &[&str], body: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let codings: Vec<String> = coding.iter().map(|name| (*name).into()).collect();
    let mut pieces: Vec<u8> = Vec::new();
    let in_pieces = decode_in_pieces(&codings, body, 1024, &mut |piece| pieces.extend(piece));
    let whole = decoded(&codings, body, 1024).map(std::borrow::Cow::into_owned);
    assert_eq!(whole.clone().err(), in_pieces.err());
    if let Ok(whole) = &whole {
        assert_eq!(*whole, pieces);
    }
    whole
}

#[test]
fn every_coding_is_decode() {
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    zlib.write_all(TEXT).unwrap();
    let mut raw = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
    raw.write_all(TEXT).unwrap();
    let zstd =
        ruzstd::encoding::compress_to_vec(TEXT, ruzstd::encoding::CompressionLevel::Uncompressed);
    assert_eq!(decode(&["gzip"], &gzip(TEXT)).unwrap(), TEXT);
    assert_eq!(decode(&["deflate"], &zlib.finish().unwrap()).unwrap(), TEXT);
    assert_eq!(decode(&["deflate"], &raw.finish().unwrap()).unwrap(), TEXT);
    assert_eq!(decode(&["zstd"], &zstd).unwrap(), TEXT);
    assert_eq!(decode(&["gzip", "gzip"], &gzip(&gzip(TEXT))).unwrap(), TEXT);
    assert_eq!(decode(&[], TEXT).unwrap(), TEXT);
    // An uncompressed Brotli stream, written by hand from RFC 7932: window bits, one uncompressed
    // meta-block of 3 bytes, and an empty last one.
    let brotli = [0x21, 0x08, 0x00, 0x04, b'a', b'b', b'c', 0x03];
    assert_eq!(decode(&["br"], &brotli).unwrap(), b"abc");
}

#[test]
fn oversized_corrupt_and_unknown_bodies_are_rejected() {
    let bomb = gzip(&vec![0; 1_000_000]);
    assert_eq!(decode(&["gzip"], &bomb), Err(DecodeError::TooLarge(1024)));
    for coding in ["gzip", "deflate", "br", "zstd"] {
        assert!(
            matches!(decode(&[coding], b"\xff\xffno"), Err(DecodeError::Corrupt(_))),
            "{coding}"
        );
    }
    assert_eq!(decode(&["lzma"], TEXT), Err(DecodeError::Unknown("lzma".into())));
}

#[test]
fn codings_are_listed_without_identity() {
    let mut headers = HeaderMap::new();
    headers.append(header::CONTENT_ENCODING, HeaderValue::from_static("GZIP, identity"));
    headers.append(header::CONTENT_ENCODING, HeaderValue::from_static("br"));
    assert_eq!(codings(&headers), ["gzip", "br"]);
}
