//! Plots as SVG. Colours are set by the style sheet of the page.

use anyhow::anyhow;
use plotters::prelude::*;

/// A line plot of values over their index, on a logarithmic y axis; zero is drawn at its lower edge.
#[derive(Debug)]
pub struct LinePlot {
    pub title: String,
    pub x: String,
    pub y: String,
    pub series: Vec<Series>,
}

#[derive(Debug)]
pub struct Series {
    pub name: String,
    pub values: Vec<f64>,
}

/// A grouped bar chart: each series has one value for each of `things`. The page draws it without SVG.
#[derive(Debug)]
pub struct BarPlot {
    pub title: String,
    pub unit: String,
    pub things: Vec<String>,
    pub series: Vec<Series>,
}

impl BarPlot {
    /// The largest value, which has the longest bar.
    pub fn largest(&self) -> f64 {
        self.series.iter().flat_map(|series| series.values.iter().copied()).fold(0.0, f64::max)
    }
}

/// Placeholder colours, which the style sheet of the page replaces for the light and the dark theme.
pub const SERIES_COLOURS: [RGBColor; 5] =
    [RGBColor(1, 1, 1), RGBColor(1, 1, 2), RGBColor(1, 1, 3), RGBColor(1, 1, 4), RGBColor(1, 1, 5)];
const AXIS: RGBColor = RGBColor(2, 1, 1);
const GRID: RGBColor = RGBColor(2, 1, 2);

const SIZE: (u32, u32) = (760, 300);
/// Bounds of the y axis if no value is above zero.
const EMPTY: [f64; 2] = [1e-9, 1.0];

/// The plot as SVG, without title and legend, which are part of the page.
pub fn svg(plot: &LinePlot) -> anyhow::Result<String> {
    let mut text = String::new();
    draw(plot, &mut text).map_err(|error| anyhow!("{}: {error}", plot.title))?;
    Ok(text)
}

fn draw(plot: &LinePlot, text: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(text, SIZE).into_drawing_area();
    let mut chart = ChartBuilder::on(&root);
    chart.margin(8).x_label_area_size(40).y_label_area_size(64);
    let longest = plot.series.iter().map(|series| series.values.len()).max().unwrap_or(0).max(2);
    let x = 0.0..(longest - 1) as f64;
    let [low, high] = bounds(plot);
    let label = |value: &f64| super::number(*value);
    let mut chart = chart.build_cartesian_2d(x, (low..high).log_scale())?;
    let mut mesh = chart.configure_mesh();
    mesh.axis_style(AXIS).bold_line_style(GRID).light_line_style(TRANSPARENT);
    mesh.label_style(("sans-serif", 12).into_font().color(&AXIS));
    mesh.x_desc(&plot.x).y_desc(&plot.y).x_label_formatter(&|x| format!("{x:.0}")).y_label_formatter(&label);
    mesh.draw()?;
    for (index, series) in plot.series.iter().enumerate() {
        let colour = SERIES_COLOURS[index % SERIES_COLOURS.len()];
        let points = series.values.iter().enumerate().filter(|(_, y)| y.is_finite());
        let points = points.map(|(x, y)| (x as f64, y.clamp(low, high)));
        chart.draw_series(LineSeries::new(points, colour.stroke_width(2)))?;
    }
    // The chart borrows the text.
    drop(chart);
    root.present()?;
    drop(root);
    Ok(())
}

/// Lowest and highest value of the vertical axis.
fn bounds(plot: &LinePlot) -> [f64; 2] {
    let all = plot.series.iter().flat_map(|series| series.values.iter().copied());
    let positive =
        all.filter(|value| value.is_finite() && *value > 0.0).fold(None, |bounds: Option<[f64; 2]>, value| {
            Some(bounds.map_or([value; 2], |[low, high]| [low.min(value), high.max(value)]))
        });
    positive.map_or(EMPTY, |[low, high]| [low / 1.5, high * 1.5])
}
