//! SVG plots (plotters), returned as strings ready to be embedded in a page or written to a file.

use plotters::prelude::*;

/// A plot could not be drawn.
#[derive(Debug, thiserror::Error)]
#[error("cannot draw the plot {title:?}: {reason}")]
pub struct PlotError {
    /// The plot's title.
    pub title: String,
    /// What the drawing library said.
    pub reason: String,
}

/// One named curve: `(x, y)` points in drawing order.
#[derive(Debug, Clone)]
pub struct Curve {
    /// The legend's text.
    pub name: String,
    /// The points.
    pub points: Vec<(f64, f64)>,
    /// Draw the points as dots joined by nothing.
    pub dots: bool,
}

/// One named set of bars, one per category, with an optional error bar each.
#[derive(Debug, Clone)]
pub struct Bars {
    /// The legend's text.
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

fn error(title: &str, reason: impl std::fmt::Display) -> PlotError {
    PlotError { title: title.into(), reason: reason.to_string() }
}

/// Curves over a common x axis. Points that are not finite are left out; the y axis starts at 0 when
/// all values are positive.
pub fn curves(title: &str, x: &str, y: &str, curves: &[Curve]) -> Result<String, PlotError> {
    let points = || curves.iter().flat_map(|c| c.points.iter()).filter(|p| finite(p));
    let (x_lo, x_hi) = span(points().map(|p| p.0));
    let (y_lo, y_hi) = span(points().map(|p| p.1));
    let y_lo = if y_lo > 0.0 { 0.0 } else { y_lo };
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(|e| error(title, e))?;
        let mut chart = ChartBuilder::on(&root)
            .caption(title, (FONT, 17))
            .margin(10)
            .x_label_area_size(38)
            .y_label_area_size(52)
            .build_cartesian_2d(x_lo..x_hi, y_lo..y_hi + 0.05 * (y_hi - y_lo))
            .map_err(|e| error(title, e))?;
        chart
            .configure_mesh()
            .x_desc(x)
            .y_desc(y)
            .label_style((FONT, 12))
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.08))
            .axis_style(BLACK.mix(0.4))
            .draw()
            .map_err(|e| error(title, e))?;
        for (index, curve) in curves.iter().enumerate() {
            let shown = colour(index);
            let finite = curve.points.iter().copied().filter(finite);
            if curve.dots {
                chart
                    .draw_series(finite.map(|p| Circle::new(p, 4, shown.filled())))
                    .map_err(|e| error(title, e))?
                    .label(&curve.name)
                    .legend(move |(x, y)| Circle::new((x + 9, y), 4, shown.filled()));
            } else {
                chart
                    .draw_series(LineSeries::new(finite, shown.stroke_width(2)))
                    .map_err(|e| error(title, e))?
                    .label(&curve.name)
                    .legend(move |(x, y)| {
                        PathElement::new([(x, y), (x + 18, y)], shown.stroke_width(2))
                    });
            }
        }
        if !curves.is_empty() {
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::UpperRight)
                .background_style(WHITE.mix(0.85))
                .border_style(BLACK.mix(0.2))
                .label_font((FONT, 12))
                .draw()
                .map_err(|e| error(title, e))?;
        }
        root.present().map_err(|e| error(title, e))?;
    }
    Ok(svg)
}

/// Grouped bars with dashed reference lines `(name, height)` across the plot.
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
    // Room above the bars for the legend.
    let room = 1.1 + 0.07 * (series.len() + lines.len()) as f64;
    let top = if top > 0.0 { top * room } else { 1.0 };
    let count = categories.len().max(1);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(|e| error(title, e))?;
        let mut chart = ChartBuilder::on(&root)
            .caption(title, (FONT, 17))
            .margin(10)
            .x_label_area_size(28)
            .y_label_area_size(52)
            .build_cartesian_2d(0.0..count as f64, 0.0..top)
            .map_err(|e| error(title, e))?;
        chart
            .configure_mesh()
            .y_desc(y)
            .disable_x_axis()
            .disable_x_mesh()
            .label_style((FONT, 12))
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.08))
            .axis_style(BLACK.mix(0.4))
            .draw()
            .map_err(|e| error(title, e))?;
        let width = 0.8 / series.len().max(1) as f64;
        for (s, set) in series.iter().enumerate() {
            let shown = colour(s);
            let left = |c: usize| c as f64 + 0.1 + s as f64 * width;
            chart
                .draw_series(set.values.iter().enumerate().filter(|(_, v)| v.0.is_finite()).map(
                    |(c, v)| {
                        Rectangle::new(
                            [(left(c), 0.0), (left(c) + 0.92 * width, v.0)],
                            shown.filled(),
                        )
                    },
                ))
                .map_err(|e| error(title, e))?
                .label(&set.name)
                .legend(move |(x, y)| {
                    Rectangle::new([(x + 3, y - 5), (x + 15, y + 5)], shown.filled())
                });
            let bar = set.values.iter().enumerate().filter(|(_, v)| v.1 > 0.0);
            chart
                .draw_series(bar.map(|(c, v)| {
                    let x = left(c) + 0.46 * width;
                    PathElement::new([(x, v.0 - v.1), (x, v.0 + v.1)], BLACK.stroke_width(2))
                }))
                .map_err(|e| error(title, e))?;
        }
        for (index, (name, height)) in lines.iter().enumerate() {
            let shade = BLACK.mix(if index == 0 { 0.7 } else { 0.4 });
            chart
                .draw_series(DashedLineSeries::new(
                    [(0.0, *height), (count as f64, *height)],
                    6,
                    4,
                    shade.stroke_width(1),
                ))
                .map_err(|e| error(title, e))?
                .label(name)
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 18, y)], shade.stroke_width(1))
                });
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.85))
            .border_style(BLACK.mix(0.2))
            .label_font((FONT, 12))
            .draw()
            .map_err(|e| error(title, e))?;
        // plotters has no categorical axis with centred labels for a float range: write them.
        let style = (FONT, 13).into_font().color(&BLACK.mix(0.8));
        let plot = chart.plotting_area().get_pixel_range();
        for (c, name) in categories.iter().enumerate() {
            let share = (c as f64 + 0.5) / count as f64;
            let x = plot.0.start + (share * f64::from(plot.0.end - plot.0.start)) as i32;
            let offset = (name.chars().count() as f64 * 3.3) as i32;
            root.draw(&Text::new(name.clone(), (x - offset, plot.1.end + 8), style.clone()))
                .map_err(|e| error(title, e))?;
        }
        root.present().map_err(|e| error(title, e))?;
    }
    Ok(svg)
}

/// A trailing mean over `window` points, for noisy loss curves.
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
