//! Curves as SVG pictures, on a light ground.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::curve::Curve;

/// Width and height in pixels.
const SIZE: (u32, u32) = (760, 420);
const FONT: &str = "sans-serif";
/// Colours that can be told apart in every kind of colour vision (Okabe & Ito 2008).
const COLOURS: [RGBColor; 3] = [RGBColor(0, 114, 178), RGBColor(213, 94, 0), RGBColor(0, 158, 115)];

/// What is drawn.
pub(super) struct Picture {
    pub(super) title: &'static str,
    /// The vertical axis.
    pub(super) unit: &'static str,
    /// Columns with their names in the legend.
    pub(super) lines: &'static [(&'static str, &'static str)],
}

/// Draws columns of `curve` over its steps.
pub(super) fn draw(path: &Path, picture: &Picture, curve: &Curve) -> Result<()> {
    let lines =
        picture.lines.iter().map(|(column, name)| Ok((curve.points(column)?, *name))).collect::<Result<Vec<_>>>()?;
    render(path, picture, &lines, curve.steps() as f64)
        .map_err(|error| anyhow!("cannot draw `{}`: {error}", path.display()))
}

fn render(
    path: &Path,
    picture: &Picture,
    lines: &[(Vec<(f64, f64)>, &str)],
    steps: f64,
) -> Result<(), Box<dyn std::error::Error>> {
    let values = || lines.iter().flat_map(|(points, _)| points.iter().map(|(_, value)| *value));
    // Zero belongs into the picture: a rise is not exaggerated.
    let (low, high) = (values().fold(0.0, f64::min), values().fold(0.0, f64::max));
    let room = ((high - low) * 0.08).max(1e-3);
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(picture.title, (FONT, 25).into_font().color(&BLACK))
        .margin(14)
        .x_label_area_size(50)
        .y_label_area_size(66)
        .build_cartesian_2d(1.0..steps.max(2.0), (if low < 0.0 { low - room } else { 0.0 })..high + room)?;
    chart
        .configure_mesh()
        .x_desc("step")
        .y_desc(picture.unit)
        .x_label_formatter(&|step| format!("{step:.0}"))
        .axis_desc_style((FONT, 19))
        .label_style((FONT, 17))
        .bold_line_style(BLACK.mix(0.15))
        .light_line_style(TRANSPARENT)
        .draw()?;
    for ((points, name), colour) in lines.iter().zip(COLOURS) {
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .label_font((FONT, 17))
        .draw()?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_picture_names_its_axes_and_lines_and_is_the_same_each_time() {
        let steps: Vec<_> = (1..9).map(|step| json!({ "step": step, "a": f64::from(step) * 0.5 })).collect();
        let curve = Curve::from_json(&json!({ "steps": steps })).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let picture = Picture { title: "A title", unit: "a unit", lines: &[("a", "the line")] };
        let drawn = ["one.svg", "two.svg"].map(|file| {
            let path = folder.path().join(file);
            draw(&path, &picture, &curve).unwrap();
            std::fs::read_to_string(path).unwrap()
        });
        assert_eq!(drawn[0], drawn[1]);
        for text in ["A title", "a unit", "step", "the line", "<polyline"] {
            assert!(drawn[0].contains(text), "no `{text}` in the picture");
        }
        assert!(draw(&folder.path().join("x.svg"), &Picture { lines: &[("b", "?")], ..picture }, &curve).is_err());
    }
}
