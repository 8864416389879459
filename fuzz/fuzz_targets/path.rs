//! Arbitrary paths: a normalised one means the same to every server, and normalising it changes nothing.
#![no_main]

use keybridge_net::path::normalize;
use libfuzzer_sys::fuzz_target;
use percent_encoding::percent_decode_str;

fuzz_target!(|path: &str| {
    let Ok(normal) = normalize(path) else { return };
    assert!(normal.bytes().all(|byte| byte.is_ascii_graphic()), "{normal}");
    assert_eq!(normalize(&normal).as_deref(), Ok(&*normal));
    // It is the path that the client sent, decoded once.
    let decoded = percent_decode_str(path).decode_utf8().unwrap();
    assert_eq!(percent_decode_str(&normal).decode_utf8().unwrap(), decoded);
    // A server that decodes it, once or twice, sees the same segments, and nothing to resolve.
    assert_eq!(normal.matches('/').count(), decoded.matches('/').count());
    assert!(!decoded.contains([';', '\\']) && !decoded.chars().any(char::is_control), "{decoded}");
    if !decoded.is_empty() {
        assert!(decoded.split('/').all(|segment| !matches!(segment, "" | "." | "..")), "{decoded}");
    }
    let twice = percent_decode_str(&decoded).decode_utf8_lossy();
    assert!(twice == decoded || path == decoded, "{decoded}");
});
