//! SVG plots (plotters), returned as strings ready to be embedded in a page or written to a file.

use plotters::prelude::*;

/// A plot could not be drawn.
#[derive(Debug, thiserror::Error)]
#[error("cannot draw the plot {title:?}: {reason}")]
pub struct PlotError {
    /// The title of the plot.
    pub title: String,
    /// The message of the drawing library.
    pub reason: String,
}

/// A named curve through points in drawing order.
#[derive(Debug, Clone)]
pub struct Curve {
    /// The text in the legend.
    pub name: String,
    /// The points, `(x, y)`.
    pub points: Vec<(f64, f64)>,
    /// Whether points are drawn as dots that no line joins.
    pub dots: bool,
}

/// A named set of bars, one per category, with an optional error bar each.
#[derive(Debug, Clone)]
pub struct Bars {
    /// The text in the legend.
    pub name: String,
    /// Height and half-length of the error bar (0 draws none).
    pub values: Vec<(f64, f64)>,
}

/// Okabe-Ito colours: told apart by colour-blind readers as well.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(213, 94, 0),
    RGBColor(86, 180, 233),
    RGBColor(110, 110, 110),
];

fn colour(index: usize) -> RGBColor {
    COLOURS[index % COLOURS.len()]
}

const SIZE: (u32, u32) = (680, 360);
const FONT: &str = "sans-serif";
/// Height of a row of the legend, and room for a character and for an entry's mark in it, in pixels.
const ROW: u32 = 20;
const CHARACTER: f64 = 6.4;
const MARK: u32 = 24;

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// How a legend's entry looks.
#[derive(Clone, Copy)]
enum Mark {
    Line(RGBColor),
    Dot(RGBColor),
    Square(RGBColor),
    Dashes(RGBAColor),
}

/// Draws on a white canvas with a legend under the plot.
fn draw(
    title: &str,
    legend: &[(Mark, &str)],
    plot: impl FnOnce(&Area<'_>) -> Drawn,
) -> Result<String, PlotError> {
    let rows = legend_rows(legend);
    let mut svg = String::new();
    let drawn = (|| {
        let height = SIZE.1 + ROW * rows.len() as u32;
        let root = SVGBackend::with_string(&mut svg, (SIZE.0, height)).into_drawing_area();
        root.fill(&WHITE)?;
        let (above, below) = root.split_vertically(SIZE.1);
        plot(&above)?;
        for (row, entries) in rows.iter().enumerate() {
            let mut x = (SIZE.0.saturating_sub(row_width(entries)) / 2) as i32;
            let y = (row as u32 * ROW) as i32 + 6;
            for (mark, name) in entries {
                match mark {
                    Mark::Line(c) => {
                        below.draw(&PathElement::new([(x, y), (x + 18, y)], c.stroke_width(2)))?
                    }
                    Mark::Dot(c) => below.draw(&Circle::new((x + 9, y), 4, c.filled()))?,
                    Mark::Square(c) => below
                        .draw(&Rectangle::new([(x + 4, y - 6), (x + 16, y + 6)], c.filled()))?,
                    Mark::Dashes(c) => {
                        for from in [x, x + 10] {
                            let dash = [(from, y), (from + 7, y)];
                            below.draw(&PathElement::new(dash, c.stroke_width(1)))?;
                        }
                    }
                }
                let style = (FONT, 12).into_font().color(&BLACK.mix(0.8));
                below.draw(&Text::new(name.to_string(), (x + MARK as i32, y - 5), style))?;
                x += entry_width(name) as i32;
            }
        }
        root.present()?;
        Ok::<(), Box<dyn std::error::Error>>(())
    })();
    match drawn {
        Ok(()) => Ok(svg),
        Err(reason) => Err(PlotError { title: title.into(), reason: reason.to_string() }),
    }
}

fn entry_width(name: &str) -> u32 {
    MARK + (name.chars().count() as f64 * CHARACTER) as u32 + 14
}

fn row_width(entries: &[(Mark, &str)]) -> u32 {
    entries.iter().map(|(_, name)| entry_width(name)).sum()
}

/// Entries in rows that fit the plot's width.
fn legend_rows<'a>(legend: &[(Mark, &'a str)]) -> Vec<Vec<(Mark, &'a str)>> {
    let mut rows: Vec<Vec<(Mark, &str)>> = Vec::new();
    for entry in legend {
        match rows.last_mut() {
            Some(row) if row_width(row) + entry_width(entry.1) <= SIZE.0 => row.push(*entry),
            _ => rows.push(vec![*entry]),
        }
    }
    rows
}

/// Draws curves over a common x axis as SVG. Points that are not finite are left out; the y axis starts at 0 when
/// all values are positive.
///
/// # Errors
/// If the drawing library fails.
pub fn curves(title: &str, x: &str, y: &str, curves: &[Curve]) -> Result<String, PlotError> {
    let points = || curves.iter().flat_map(|c| c.points.iter()).filter(|p| finite(p));
    let (x_lo, x_hi) = span(points().map(|p| p.0));
    // A dot on the frame would be cut in half.
    let margin = if curves.iter().any(|c| c.dots) { 0.04 * (x_hi - x_lo) } else { 0.0 };
    let (x_lo, x_hi) = (x_lo - margin, x_hi + margin);
    let (y_lo, y_hi) = span(points().map(|p| p.1));
    let y_lo = if y_lo > 0.0 { 0.0 } else { y_lo };
    let mark = |(index, curve): (usize, &Curve)| match curve.dots {
        true => Mark::Dot(colour(index)),
        false => Mark::Line(colour(index)),
    };
    let legend: Vec<_> = curves.iter().enumerate().map(|c| (mark(c), c.1.name.as_str())).collect();
    draw(title, &legend, |area| {
        let mut chart = ChartBuilder::on(area)
            .caption(title, (FONT, 17))
            .margin(10)
            .x_label_area_size(38)
            .y_label_area_size(52)
            .build_cartesian_2d(x_lo..x_hi, y_lo..y_hi + 0.05 * (y_hi - y_lo))?;
        chart
            .configure_mesh()
            .x_desc(x)
            .y_desc(y)
            .label_style((FONT, 12))
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.08))
            .axis_style(BLACK.mix(0.4))
            .draw()?;
        for (index, curve) in curves.iter().enumerate() {
            let shown = colour(index);
            let finite = curve.points.iter().copied().filter(finite);
            if curve.dots {
                chart.draw_series(finite.map(|p| Circle::new(p, 4, shown.filled())))?;
            } else {
                chart.draw_series(LineSeries::new(finite, shown.stroke_width(2)))?;
            }
        }
        Ok(())
    })
}

/// Draws groups of bars as SVG, with dashed reference lines `(name, height)` across the plot.
///
/// # Errors
/// If the drawing library fails.
pub fn bars(
    title: &str,
    y: &str,
    categories: &[String],
    series: &[Bars],
    lines: &[(String, f64)],
) -> Result<String, PlotError> {
    let heights = series.iter().flat_map(|s| s.values.iter().map(|v| v.0 + v.1));
    let top =
        heights.chain(lines.iter().map(|l| l.1)).filter(|v| v.is_finite()).fold(0.0, f64::max);
    let top = if top > 0.0 { top * 1.08 } else { 1.0 };
    let count = categories.len().max(1);
    let shade = |index: usize| BLACK.mix(if index == 0 { 0.7 } else { 0.4 });
    let sets = series.iter().enumerate().map(|(i, set)| (Mark::Square(colour(i)), &*set.name));
    let dashes = lines.iter().enumerate().map(|(i, line)| (Mark::Dashes(shade(i)), &*line.0));
    let legend: Vec<_> = sets.chain(dashes).collect();
    draw(title, &legend, |area| {
        let mut chart = ChartBuilder::on(area)
            .caption(title, (FONT, 17))
            .margin(10)
            .x_label_area_size(28)
            .y_label_area_size(52)
            .build_cartesian_2d(0.0..count as f64, 0.0..top)?;
        chart
            .configure_mesh()
            .y_desc(y)
            .disable_x_axis()
            .disable_x_mesh()
            .label_style((FONT, 12))
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.08))
            .axis_style(BLACK.mix(0.4))
            .draw()?;
        let width = 0.8 / series.len().max(1) as f64;
        for (s, set) in series.iter().enumerate() {
            let shown = colour(s);
            let left = |c: usize| c as f64 + 0.1 + s as f64 * width;
            let finite = set.values.iter().enumerate().filter(|(_, v)| v.0.is_finite());
            chart.draw_series(finite.map(|(c, v)| {
                Rectangle::new([(left(c), 0.0), (left(c) + 0.92 * width, v.0)], shown.filled())
            }))?;
            let spread = set.values.iter().enumerate().filter(|(_, v)| v.1 > 0.0);
            chart.draw_series(spread.map(|(c, v)| {
                let x = left(c) + 0.46 * width;
                PathElement::new([(x, v.0 - v.1), (x, v.0 + v.1)], BLACK.stroke_width(2))
            }))?;
        }
        for (index, (_, height)) in lines.iter().enumerate() {
            let ends = [(0.0, *height), (count as f64, *height)];
            let style = shade(index).stroke_width(1);
            chart.draw_series(DashedLineSeries::new(ends, 6, 4, style))?;
        }
        // plotters has no categorical axis with centred labels for a float range: write them.
        let style = (FONT, 13).into_font().color(&BLACK.mix(0.8));
        let plot = chart.plotting_area().get_pixel_range();
        for (c, name) in categories.iter().enumerate() {
            let share = (c as f64 + 0.5) / count as f64;
            let x = plot.0.start + (share * f64::from(plot.0.end - plot.0.start)) as i32;
            let offset = (name.chars().count() as f64 * 3.3) as i32;
            area.draw(&Text::new(name.clone(), (x - offset, plot.1.end + 8), style.clone()))?;
        }
        Ok(())
    })
}

/// Counts of numbers in bins of equal width.
#[derive(Debug, Clone)]
pub struct Bins {
    /// The first number of the first bin.
    pub start: usize,
    /// Numbers of a bin.
    pub width: usize,
    /// How many are in each bin.
    pub counts: Vec<usize>,
}

/// Draws a histogram as SVG, with a dashed line `(name, x)` across it.
///
/// # Errors
/// If the drawing library fails.
pub fn histogram(
    title: &str,
    x: &str,
    y: &str,
    bins: &Bins,
    line: Option<(String, usize)>,
) -> Result<String, PlotError> {
    let Bins { start, width, counts } = bins;
    let end = start + width * counts.len().max(1);
    let reach = line.as_ref().map_or(end, |line| end.max(line.1 + line.1 / 50 + 1));
    let top = counts.iter().copied().max().unwrap_or(0).max(1) as f64 * 1.06;
    let dashes = line.iter().map(|line| (Mark::Dashes(BLACK.mix(0.7)), &*line.0));
    let legend: Vec<_> = dashes.collect();
    draw(title, &legend, |area| {
        let mut chart = ChartBuilder::on(area)
            .caption(title, (FONT, 17))
            .margin(10)
            .margin_right(24)
            .x_label_area_size(38)
            .y_label_area_size(60)
            .build_cartesian_2d(*start as f64..reach as f64, 0.0..top)?;
        chart
            .configure_mesh()
            .x_desc(x)
            .y_desc(y)
            .x_label_formatter(&|value| format!("{value:.0}"))
            .y_label_formatter(&|value| whole(*value))
            .label_style((FONT, 12))
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.08))
            .axis_style(BLACK.mix(0.4))
            .disable_x_mesh()
            .draw()?;
        chart.draw_series(counts.iter().enumerate().filter(|(_, count)| **count > 0).map(
            |(at, count)| {
                let left = (start + at * width) as f64;
                let right = left + 0.94 * *width as f64;
                Rectangle::new([(left, 0.0), (right, *count as f64)], colour(0).filled())
            },
        ))?;
        if let Some((_, at)) = &line {
            let ends = [(*at as f64, 0.0), (*at as f64, top)];
            let style = BLACK.mix(0.7).stroke_width(1);
            chart.draw_series(DashedLineSeries::new(ends, 6, 4, style))?;
        }
        Ok(())
    })
}

/// A number of an axis that counts; nothing between two whole numbers.
fn whole(value: f64) -> String {
    if value.fract().abs() < 1e-6 { format!("{value:.0}") } else { String::new() }
}

/// Replaces every `y` by the mean over the last `window` points, for noisy loss curves.
pub fn smooth(points: &[(f64, f64)], window: usize) -> Vec<(f64, f64)> {
    let window = window.max(1);
    points
        .iter()
        .enumerate()
        .map(|(end, &(x, _))| {
            let recent = &points[(end + 1).saturating_sub(window)..=end];
            (x, recent.iter().map(|p| p.1).sum::<f64>() / recent.len() as f64)
        })
        .collect()
}

fn finite(point: &(f64, f64)) -> bool {
    point.0.is_finite() && point.1.is_finite()
}

fn span(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (lo, hi) =
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), v| (lo.min(v), hi.max(v)));
    match lo.is_finite() && hi > lo {
        true => (lo, hi),
        false if lo.is_finite() => (lo - 0.5, lo + 0.5),
        false => (0.0, 1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_with_gaps_and_a_constant_curve_are_drawn() {
        let svg = curves(
            "loss",
            "step",
            "CE",
            &[
                Curve { name: "a".into(), points: vec![(0.0, f64::NAN), (1.0, 2.0)], dots: false },
                Curve { name: "b".into(), points: vec![(1.0, 2.0)], dots: true },
            ],
        )
        .unwrap();
        assert!(svg.contains("<circle") && svg.contains("loss") && !svg.contains("NaN"));
    }

    #[test]
    fn smoothing_is_a_trailing_mean() {
        let smoothed = smooth(&[(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)], 2);
        assert_eq!(smoothed, vec![(0.0, 1.0), (1.0, 2.0), (2.0, 4.0)]);
    }

    #[test]
    fn bars_name_their_categories() {
        let set = Bars { name: "full".into(), values: vec![(0.5, 0.1), (f64::NAN, 0.0)] };
        let names = ["baseline".to_string(), "fast".to_string()];
        let svg = bars("accuracy", "share", &names, &[set], &[("chance".into(), 0.2)]).unwrap();
        assert!(svg.contains("baseline") && svg.contains("chance"));
    }
}
