use proptest::prelude::*;

use super::{PathError, normalize};

#[test]
fn a_usual_path_stays_as_it_is() {
    let paths = [
        "",
        "v1/messages",
        "v1/models/gpt-4.1",
        "v1/models/ft:gpt..x",
        "v1/models/a_b~c-d!e$f&g'h(i)j*k+l,m=n@o",
        "v1/models/100%25",
        "v1/models/a%20b",
    ];
    for path in paths {
        assert_eq!(normalize(path).as_deref(), Ok(path));
    }
}

#[test]
fn another_encoding_of_a_path_gets_one_form() {
    let rows = [
        ("v1/responses/%63ompact", "v1/responses/compact"),
        ("%76%31/messages", "v1/messages"),
        ("v1/models/%7euser%3ax", "v1/models/~user:x"),
        ("v1/models/\u{e9}", "v1/models/%C3%A9"),
        ("v1/models/%c3%a9", "v1/models/%C3%A9"),
        ("v1/models/a\"b|c", "v1/models/a%22b%7Cc"),
        ("v1/models/%23%3f", "v1/models/%23%3F"),
        ("v1/models/a%20.", "v1/models/a%20."),
    ];
    for (path, normal) in rows {
        assert_eq!(normalize(path).as_deref(), Ok(normal));
    }
}

#[test]
fn a_path_that_a_server_may_take_for_another_one_is_refused() {
    use PathError::{
        Control, DotSegment, DoubleEncoding, EmptySegment, Escape, Parameters, Separator, Utf8,
    };
    let rows = [
        ("a/%", Escape),
        ("a/%2", Escape),
        ("a/%zz", Escape),
        ("a/%u002e", Escape),
        ("a/%c0%ae%c0%ae", Utf8),
        ("a/%e0%80%ae", Utf8),
        ("a/%ff", Utf8),
        ("a/%00", Control),
        ("a/x%0d%0ax", Control),
        ("a/%7f", Control),
        ("a/%c2%85", Control),
        ("a/%252e%252e/b", DoubleEncoding),
        ("a/%25252e", DoubleEncoding),
        ("a/%25%32%65", DoubleEncoding),
        ("a/%2541", DoubleEncoding),
        ("a%2fb", Separator),
        ("a%2Fb", Separator),
        ("a%5cb", Separator),
        ("a\\b", Separator),
        ("a/..;/b", Parameters),
        ("a/b;c=d", Parameters),
        ("a/b%3bc", Parameters),
        ("/a", EmptySegment),
        ("a//b", EmptySegment),
        ("a/", EmptySegment),
        ("a/.", DotSegment),
        ("a/../b", DotSegment),
        ("a/%2e%2E/b", DotSegment),
        ("a/.../b", DotSegment),
        ("a/..%20/b", DotSegment),
        ("a/%20/b", DotSegment),
    ];
    for (path, error) in rows {
        assert_eq!(normalize(path), Err(error), "{path}");
    }
}

proptest! {
    #[test]
    fn a_normalised_path_is_plain_and_stable(path in "[a-zA-Z0-9%./;\\\\~:é \u{0}2ef5c]{0,40}") {
        let Ok(normal) = normalize(&path) else { return Ok(()) };
        prop_assert_eq!(normalize(&normal), Ok(normal.clone()));
        prop_assert!(normal.bytes().all(|byte| byte.is_ascii_graphic()), "{}", normal);
        prop_assert!(normal.is_empty() || normal.split('/').all(|segment| !segment.is_empty()));
    }
}
