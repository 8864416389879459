//! Sizes as people write them.

/// Parses `64 MiB`, `512KB` or `1000`.
pub(crate) fn size(text: &str) -> Result<usize, String> {
    let (number, unit) = split(text);
    let factor: usize = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "kib" | "k" => 1 << 10,
        "mb" => 1_000_000,
        "mib" | "m" => 1 << 20,
        "gb" => 1_000_000_000,
        "gib" | "g" => 1 << 30,
        _ => 0,
    };
    let bytes = number.parse::<usize>().ok().and_then(|number| number.checked_mul(factor));
    bytes.filter(|bytes| *bytes > 0).ok_or_else(|| {
        format!(
            "`{text}` is not a size: write a number and a unit (KiB, MiB or GiB), such as 64 MiB"
        )
    })
}

fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(end).unwrap_or((text, ""));
    (number, unit.trim())
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn a_size_is_a_number_of_bytes_or_has_a_unit() {
        for (text, bytes) in [("64 MiB", 64 << 20), ("1000", 1000), ("2kb", 2000)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "0", "MiB", "1 TB", "99999999999999999999 GiB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
