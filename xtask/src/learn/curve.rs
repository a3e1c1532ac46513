//! The numbers of a recipe, one row a step.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// A recipe's numbers, and what it said about itself.
#[derive(Debug)]
pub(super) struct Curve {
    /// Names of the columns, `step` first.
    columns: Vec<String>,
    rows: Vec<Vec<f64>>,
    /// Everything else the recipe wrote.
    about: Value,
}

impl Curve {
    /// Reads what an example wrote.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
        Self::from_json(&serde_json::from_slice(&text)?)
    }

    /// `{"steps": [{"step": 1, …}, …], …}`.
    pub(super) fn from_json(content: &Value) -> Result<Self> {
        let steps = content["steps"].as_array().context("a curve without `steps`")?;
        let first = steps.first().and_then(Value::as_object).context("a curve without a step")?;
        let mut columns = vec!["step".to_owned()];
        columns.extend(first.keys().filter(|name| *name != "step").cloned());
        let rows = steps
            .iter()
            .map(|step| columns.iter().map(|name| number(step, name)).collect::<Result<Vec<f64>>>())
            .collect::<Result<Vec<_>>>()?;
        Ok(Self { columns, rows, about: content.clone() })
    }

    /// The rows.
    pub(super) fn steps(&self) -> usize {
        self.rows.len()
    }

    /// A text the recipe wrote beside its steps.
    pub(super) fn text(&self, name: &str) -> Result<&str> {
        self.about[name].as_str().with_context(|| format!("a curve without `{name}`"))
    }

    /// `(step, value)` of a column.
    pub(super) fn points(&self, column: &str) -> Result<Vec<(f64, f64)>> {
        let place = self.columns.iter().position(|name| name == column);
        let place = place.with_context(|| format!("a curve without `{column}`"))?;
        Ok(self.rows.iter().map(|row| (row[0], row[place])).collect())
    }

    /// Mean of a column over the first quarter of the steps.
    pub(super) fn first_quarter(&self, column: &str) -> Result<f64> {
        let points = self.points(column)?;
        Ok(mean(&points[..quarter(&points)]))
    }

    /// Mean of a column over the last quarter of the steps.
    pub(super) fn last_quarter(&self, column: &str) -> Result<f64> {
        let points = self.points(column)?;
        Ok(mean(&points[points.len() - quarter(&points)..]))
    }

    /// The largest value of a column.
    pub(super) fn largest(&self, column: &str) -> Result<f64> {
        Ok(self.points(column)?.iter().map(|(_, value)| *value).fold(f64::NEG_INFINITY, f64::max))
    }

    /// The numbers with a line of names.
    pub(super) fn csv(&self) -> String {
        let mut text = format!("{}\n", self.columns.join(","));
        for row in &self.rows {
            let row: Vec<String> = row.iter().map(|value| format!("{}", (value * 1e6).round() / 1e6)).collect();
            let _ = writeln!(text, "{}", row.join(","));
        }
        text
    }
}

fn number(step: &Value, name: &str) -> Result<f64> {
    let value = step[name].as_f64().with_context(|| format!("a step without the number `{name}`"))?;
    ensure!(value.is_finite(), "`{name}` is {value}");
    Ok(value)
}

/// At least one of them.
fn quarter(points: &[(f64, f64)]) -> usize {
    (points.len() / 4).max(1)
}

fn mean(points: &[(f64, f64)]) -> f64 {
    points.iter().map(|(_, value)| value).sum::<f64>() / points.len() as f64
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_are_read_by_name_and_written_as_csv() {
        let steps = [json!({ "a": 0.5, "step": 1 }), json!({ "step": 2, "a": 1.5 })];
        let curve = Curve::from_json(&json!({ "steps": steps, "before": "x" })).unwrap();
        assert_eq!(curve.csv(), "step,a\n1,0.5\n2,1.5\n");
        assert_eq!(curve.points("a").unwrap(), [(1.0, 0.5), (2.0, 1.5)]);
        assert_eq!((curve.first_quarter("a").unwrap(), curve.last_quarter("a").unwrap()), (0.5, 1.5));
        assert_eq!(curve.text("before").unwrap(), "x");
        assert!(curve.points("b").is_err() && Curve::from_json(&json!({ "steps": [] })).is_err());
    }
}
