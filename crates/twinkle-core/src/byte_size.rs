//! Amounts of memory as people write and read them.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;

/// A number of bytes; shown in binary units with three digits: `1.25 GiB`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// What a unit is called, and how many bytes it is.
const UNITS: [(&str, u64); 8] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
];

impl fmt::Display for ByteSize {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let binary = UNITS.iter().take(4);
        let Some((unit, size)) = binary.copied().find(|(_, size)| self.0 >= *size) else {
            return write!(formatter, "{} bytes", self.0);
        };
        let number = self.0 as f64 / size as f64;
        let digits = if number < 9.995 { 2 } else { usize::from(number < 99.95) };
        write!(formatter, "{number:.digits$} {unit}")
    }
}

impl FromStr for ByteSize {
    type Err = Error;

    /// Reads a whole number of bytes, or a number with a unit: `8GiB`, `1.5 GB`, `512 MiB`.
    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || {
            Error::invalid(format!("`{text}` is not an amount of memory"))
                .hint("write bytes, or a number with `KiB`, `MiB`, `GiB`, `TiB`, `kB`, `MB`, `GB` or `TB`")
        };
        let trimmed = text.trim();
        if let Ok(bytes) = trimmed.parse() {
            return Ok(Self(bytes));
        }
        let split = trimmed.find(|letter: char| letter.is_ascii_alphabetic()).ok_or_else(wrong)?;
        let (number, unit) = trimmed.split_at(split);
        let (_, size) = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or_else(wrong)?;
        let number: f64 = number.trim().parse().map_err(|_| wrong())?;
        let bytes = number * *size as f64;
        // Beyond 2^53 a float no longer names one integer, and no machine has so much.
        if !(0.0..9.0e15).contains(&bytes) {
            return Err(wrong());
        }
        Ok(Self(bytes as u64))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_shown_with_three_digits() {
        let shown = [0, 1023, 1024, 1536, 10 << 20, 100 << 20, (1 << 30) + (1 << 28), 3 << 40];
        let shown: Vec<String> = shown.into_iter().map(|bytes| ByteSize(bytes).to_string()).collect();
        let expected = ["0 bytes", "1023 bytes", "1.00 KiB", "1.50 KiB", "10.0 MiB", "100 MiB", "1.25 GiB", "3.00 TiB"];
        assert_eq!(shown, expected);
    }

    #[test]
    fn sizes_are_read_with_and_without_a_unit() {
        for (text, bytes) in [("17", 17), ("8GiB", 8 << 30), (" 1.5 gb ", 1_500_000_000), ("2 MiB", 2 << 20)] {
            assert_eq!(text.parse::<ByteSize>().unwrap(), ByteSize(bytes), "{text}");
        }
        for text in ["", "GiB", "8 GX", "-1", "-1GiB", "1e300 TiB", "nan GiB", "8 Gi B"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back_to_three_digits(bytes in 0_u64..1 << 50) {
            let shown = ByteSize(bytes).to_string().replace("bytes", "");
            let read = shown.parse::<ByteSize>().unwrap().0 as f64;
            prop_assert!((read - bytes as f64).abs() <= bytes as f64 * 0.0051, "{shown}");
        }
    }
}
