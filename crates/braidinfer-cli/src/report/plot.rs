//! Plots as SVG. Colours are set by the style sheet of the page.

use anyhow::anyhow;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint};
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
    let x = 0..i32::try_from(longest - 1)?;
    let [low, high] = bounds(plot);
    let label = |value: &f64| super::number(*value);
    let mut chart = chart.build_cartesian_2d(x, LogarithmicAxis { low, high })?;
    let mut mesh = chart.configure_mesh();
    mesh.axis_style(AXIS).bold_line_style(GRID).light_line_style(TRANSPARENT);
    mesh.label_style(("sans-serif", 12).into_font().color(&AXIS));
    mesh.x_desc(&plot.x).y_desc(&plot.y).y_label_formatter(&label);
    mesh.draw()?;
    for (index, series) in plot.series.iter().enumerate() {
        let colour = SERIES_COLOURS[index % SERIES_COLOURS.len()];
        let points = series.values.iter().enumerate().filter(|(_, y)| y.is_finite());
        let points = points.map(|(x, y)| (x as i32, y.clamp(low, high)));
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
    positive.map_or(EMPTY, |[low, high]| {
        let low = (low / 1.5).max(f64::MIN_POSITIVE);
        [low, (high * 1.5).clamp(low * 2.0, f64::MAX)]
    })
}

/// A vertical axis whose labels do not overlap; that of the library names too many values, or one, where the range is short.
struct LogarithmicAxis {
    low: f64,
    high: f64,
}

impl Ranged for LogarithmicAxis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let part = (value.log10() - self.low.log10()) / (self.high.log10() - self.low.log10());
        limit.0 + (f64::from(limit.1 - limit.0) * part).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        // Lines between those with labels are not drawn.
        if hint.weight().allow_light_points() { Vec::new() } else { ticks(self.low, self.high) }
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.low..self.high
    }
}

/// Most labels of the vertical axis.
const MOST_TICKS: f64 = 9.0;

/// The values that the vertical axis names: so few that their labels do not overlap, which all differ.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let decades = high.log10() - low.log10();
    let mut ticks = if decades > 2.0 {
        let step = (decades / MOST_TICKS).ceil() as i32;
        let powers = (low.log10().ceil() as i32..=high.log10().floor() as i32).step_by(step as usize);
        powers.map(|power| 10_f64.powi(power)).collect()
    } else if decades > 0.8 {
        let powers = low.log10().floor() as i32..=high.log10().floor() as i32;
        powers.flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(power))).collect()
    } else {
        even_ticks(low, high)
    };
    ticks.retain(|tick| (low..=high).contains(tick));
    ticks.dedup_by_key(|tick| super::number(*tick));
    ticks
}

/// Values at even distances.
fn even_ticks(low: f64, high: f64) -> Vec<f64> {
    let rough = (high - low) / 6.0;
    let power = 10_f64.powi(rough.log10().floor() as i32);
    let step =
        [1.0, 2.0, 5.0, 10.0].map(|digit| digit * power).into_iter().find(|step| *step >= rough).unwrap_or(rough);
    let first = (low / step).ceil();
    (0..=6).map(|index| (first + f64::from(index)) * step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The labels of the vertical axis, with their heights.
    fn labels(plot: &LinePlot) -> Vec<(f64, String)> {
        let svg = svg(plot).expect("it can be drawn");
        let texts = svg.split("<text ").skip(1).filter(|text| text.contains("text-anchor=\"end\""));
        let label = |text: &str| {
            let y = text.split("y=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a text has a place");
            let shown = text.split('>').nth(1).and_then(|rest| rest.split('<').next()).expect("and words");
            (y.parse().expect("a number"), shown.trim().to_owned())
        };
        texts.map(label).collect()
    }

    #[test]
    fn the_horizontal_axis_counts() {
        let plot = LinePlot {
            title: "t".into(),
            x: "x".into(),
            y: "y".into(),
            series: vec![Series { name: "s".into(), values: vec![1.0; 4] }],
        };
        let svg = svg(&plot).expect("it can be drawn");
        for index in 0..4 {
            assert_eq!(svg.matches(&format!(">\n{index}\n<")).count(), 1, "{svg}");
        }
    }

    #[test]
    fn labels_do_not_overlap_and_say_different_things() {
        for (low, high) in [
            (1.0, 1.2),
            (0.9, 1.1),
            (0.3, 5.0),
            (1e-3, 2e-3),
            (1e-30, 1.0),
            (1e-300, 1e300),
            (5e-324, 1.0),
            (5e-324, 1e-310),
            (96.0, 96.5),
            (1e-6, 1e-5),
            (1.0, 1.0),
            (1e-14, 0.01),
            (2e-5, 7e4),
            (0.001, 1000.0),
        ] {
            let values = vec![low, high];
            let plot = LinePlot {
                title: "t".into(),
                x: "x".into(),
                y: "y".into(),
                series: vec![Series { name: "s".into(), values }],
            };
            let mut found = labels(&plot);
            found.sort_by(|a, b| a.0.total_cmp(&b.0));
            assert!(found.len() >= 2, "{low:e} to {high:e}: {found:?}");
            assert!(found.windows(2).all(|pair| pair[1].0 - pair[0].0 >= 14.0), "{low:e} to {high:e}: {found:?}");
            let texts: std::collections::BTreeSet<&String> = found.iter().map(|(_, text)| text).collect();
            assert_eq!(texts.len(), found.len(), "{low:e} to {high:e}: {found:?}");
        }
    }
}
