//! JSON text as Python's `json.dumps(…, ensure_ascii=False)` writes it, which chat templates were written against.

use std::io;

use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// `json.dumps(value, ensure_ascii=False, indent=indent)`: `", "` and `": "` on one line, keys in their order.
pub(crate) fn dumps(value: &impl Serialize, indent: Option<usize>) -> serde_json::Result<String> {
    let mut bytes = Vec::new();
    match indent {
        None => value.serialize(&mut Serializer::with_formatter(&mut bytes, OneLine))?,
        Some(width) => {
            let spaces = " ".repeat(width);
            let formatter = Indented(PrettyFormatter::with_indent(spaces.as_bytes()));
            value.serialize(&mut Serializer::with_formatter(&mut bytes, formatter))?;
        }
    }
    // The serializer writes UTF-8 only.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A number as Python's `repr` writes it: an exponent below 1e-4 and from 1e16 on, with a sign and two digits.
pub(crate) fn float(value: f64) -> String {
    let size = value.abs();
    if size == 0.0 || (1e-4..1e16).contains(&size) {
        return format!("{value:?}");
    }
    let text = format!("{value:e}");
    let Some((digits, exponent)) = text.split_once('e') else { return text };
    let (sign, exponent) = match exponent.strip_prefix('-') {
        Some(exponent) => ('-', exponent),
        None => ('+', exponent),
    };
    format!("{digits}e{sign}{exponent:0>2}")
}

/// An indent, with Python's numbers.
struct Indented<'a>(PrettyFormatter<'a>);

impl Formatter for Indented<'_> {
    fn write_f64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(float(value).as_bytes())
    }

    fn begin_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_array(writer)
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_array(writer)
    }

    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_array_value(writer, first)
    }

    fn end_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_array_value(writer)
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object(writer)
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object(writer)
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_object_key(writer, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object_value(writer)
    }

    fn end_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object_value(writer)
    }
}

/// Python's separators.
struct OneLine;

impl Formatter for OneLine {
    fn write_f64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(float(value).as_bytes())
    }

    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn separators_and_letters_are_pythons() {
        #[derive(Serialize)]
        struct Ordered {
            zeta: serde_json::Value,
            alpha: serde_json::Value,
        }
        let value = Ordered { zeta: json!([1, 2.5, null, true]), alpha: json!({"text": "a<b> \"ü\" 你好\n"}) };
        let expected = r#"{"zeta": [1, 2.5, null, true], "alpha": {"text": "a<b> \"ü\" 你好\n"}}"#;
        assert_eq!(dumps(&value, None).unwrap(), expected);
    }

    #[test]
    fn numbers_are_pythons() {
        let values =
            json!([1.0, 0.1, -0.0, 1e-5, 2.5e-7, 1e16, 123_456_789_012_345_680.0, 1e100, 9_007_199_254_740_993_i64]);
        let expected = "[1.0, 0.1, -0.0, 1e-05, 2.5e-07, 1e+16, 1.2345678901234568e+17, 1e+100, 9007199254740993]";
        assert_eq!(dumps(&values, None).unwrap(), expected);
        assert_eq!(dumps(&json!([1e-5]), Some(1)).unwrap(), "[\n 1e-05\n]");
    }

    #[test]
    fn an_indent_breaks_lines() {
        assert_eq!(dumps(&json!({"a": [1]}), Some(2)).unwrap(), "{\n  \"a\": [\n    1\n  ]\n}");
    }
}
