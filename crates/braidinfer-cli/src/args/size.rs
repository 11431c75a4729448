//! Sizes in bytes, as people type them.

/// Reads a number of bytes: a number with or without decimals and a unit, in small or capital letters.
pub fn parse_size(text: &str) -> Result<u64, String> {
    size_in_bytes(text).ok_or_else(|| {
        let units: Vec<&str> = UNITS.iter().map(|(unit, _)| *unit).collect();
        format!("expected a size such as 40GB or 1.5GiB, in one of the units {}, found `{text}`", units.join(", "))
    })
}

/// Units of sizes, and their bytes.
const UNITS: [(&str, u64); 9] = [
    ("kB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("B", 1),
];

fn size_in_bytes(text: &str) -> Option<u64> {
    let letters = text.find(|letter: char| letter.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(letters);
    let unit = match unit {
        "" => 1,
        unit => UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?.1,
    };
    let (whole, decimals) = match number.trim_end().split_once('.') {
        // Part of a byte is no size.
        Some((_, "")) => return None,
        Some(_) if unit == 1 => return None,
        Some(parts) => parts,
        None => (number.trim_end(), ""),
    };
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(decimals) {
        return None;
    }
    let scale = 10_u128.checked_pow(u32::try_from(decimals.len()).ok()?)?;
    let number: u128 = format!("{whole}{decimals}").parse().ok()?;
    u64::try_from(number.checked_mul(unit.into())? / scale).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_and_decimals() {
        for (text, bytes) in [
            ("0", 0),
            ("12", 12),
            ("12B", 12),
            ("1KB", 1000),
            ("1kb", 1000),
            ("3 MB", 3_000_000),
            ("500MB", 500_000_000),
            ("1.5GB", 1_500_000_000),
            ("1.5GiB", 3 << 29),
            ("0.25tib", 1 << 38),
            ("2TB", 2_000_000_000_000),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        let wrong =
            ["", "GB", ".5GB", "1.GB", "1.5", "1.5B", "-1GB", "1e3", "4G", "1.5.0GB", "inf", "１GB", "16777216TiB"];
        for text in wrong {
            let error = parse_size(text).expect_err(text);
            for part in ["kB, MB, GB, TB, KiB, MiB, GiB, TiB, B", &format!("found `{text}`")] {
                assert!(error.contains(part), "{error}");
            }
        }
    }
}
