//! What values a column has, found by looking at all of them.

use serde_json::Value;

/// The values of a column or of a part of it. Every one may also be null.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Shape {
    Nothing,
    Truth,
    Integer,
    Number,
    /// Texts, and everything that is not alike: as JSON.
    Text,
    List(Box<Self>),
    Object(Vec<(String, Self)>),
}

impl Shape {
    pub(super) fn of(value: &Value) -> Self {
        match value {
            Value::Null => Self::Nothing,
            Value::Bool(_) => Self::Truth,
            Value::Number(number) if number.is_i64() => Self::Integer,
            Value::Number(_) => Self::Number,
            Value::String(_) => Self::Text,
            Value::Array(list) => Self::List(Box::new(list.iter().map(Self::of).fold(Self::Nothing, Self::and))),
            // There is no object without a field in Parquet.
            Value::Object(fields) if fields.is_empty() => Self::Text,
            Value::Object(fields) => {
                Self::Object(fields.iter().map(|(name, value)| (name.clone(), Self::of(value))).collect())
            }
        }
    }

    /// What both are.
    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Nothing, shape) | (shape, Self::Nothing) => shape,
            (Self::Integer | Self::Number, Self::Number) | (Self::Number, Self::Integer) => Self::Number,
            (Self::List(one), Self::List(another)) => Self::List(Box::new(one.and(*another))),
            (Self::Object(mut fields), Self::Object(others)) => {
                for (name, shape) in others {
                    match fields.iter_mut().find(|(known, _)| *known == name) {
                        Some((_, known)) => *known = std::mem::replace(known, Self::Nothing).and(shape),
                        None => fields.push((name, shape)),
                    }
                }
                Self::Object(fields)
            }
            (one, another) if one == another => one,
            _ => Self::Text,
        }
    }

    /// How many columns of plain values it takes.
    pub(super) fn leaves(&self) -> usize {
        match self {
            Self::List(element) => element.leaves(),
            Self::Object(fields) => fields.iter().map(|(_, shape)| shape.leaves()).sum(),
            _ => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(values: &[Value]) -> Shape {
        values.iter().map(Shape::of).fold(Shape::Nothing, Shape::and)
    }

    #[test]
    fn a_column_is_what_all_its_values_are() {
        assert_eq!(of(&[json!(null), json!(1)]), Shape::Integer);
        assert_eq!(of(&[json!(1), json!(1.5)]), Shape::Number);
        assert_eq!(of(&[json!(1), json!("a")]), Shape::Text);
        assert_eq!(of(&[json!([]), json!([1]), json!([null, 2.0])]), Shape::List(Box::new(Shape::Number)));
        let both = of(&[json!({"a": 1}), json!({"b": "x", "a": null})]);
        assert_eq!(both, Shape::Object(vec![("a".into(), Shape::Integer), ("b".into(), Shape::Text)]));
        assert_eq!(both.leaves(), 2);
        assert_eq!(of(&[json!({})]), Shape::Text);
    }
}
