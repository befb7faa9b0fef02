//! Charts with logarithmic axes, drawn as SVG by `plotters`.

use anyhow::Result;
use plotters::{coord::Shift, prelude::*};

/// Panels in rows; each row has one scale for its lines.
pub(super) struct Chart {
    pub(super) rows: Vec<Vec<Panel>>,
}

/// One pair of axes.
pub(super) struct Panel {
    pub(super) x: &'static str,
    pub(super) y: &'static str,
    pub(super) lines: Vec<Line>,
}

/// Points joined in their order. Only points with both coordinates above zero are drawn.
pub(super) struct Line {
    pub(super) name: &'static str,
    pub(super) points: Vec<(f64, f64)>,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Width and height of a panel with all that belongs to it, in pixels.
const PANEL: (u32, u32) = (304, 290);
/// Space in pixels around a panel, and for its labels.
const MARGIN: u32 = 14;
const LABELS: (u32, u32) = (44, 58);
/// Half the width of the mark of a point in pixels.
const MARK: i32 = 4;
/// Colours that people with any eyes tell apart (Okabe and Ito).
const COLOURS: [RGBColor; 3] = [RGBColor(0x00, 0x72, 0xb2), RGBColor(0xd5, 0x5e, 0x00), RGBColor(0x00, 0x9e, 0x73)];
const FONT: (&str, u32) = ("sans-serif", 12);

/// Powers of ten around all values.
#[derive(Clone, Copy)]
struct Scale {
    low: i32,
    high: i32,
}

impl Scale {
    fn around(values: impl Iterator<Item = f64>) -> Self {
        let logarithms: Vec<f64> = values.filter(|value| *value > 0.0 && value.is_finite()).map(f64::log10).collect();
        let low = logarithms.iter().copied().fold(f64::INFINITY, f64::min);
        let high = logarithms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if logarithms.is_empty() {
            return Self { low: 0, high: 1 };
        }
        let [low, high] = [low.floor(), high.ceil()].map(whole);
        Self { low, high: high.max(low + 1) }
    }

    /// A little more than from power to power: a rounded logarithm must not lose the mark at an end.
    fn range(self) -> std::ops::Range<f64> {
        10_f64.powi(self.low) * 0.999..10_f64.powi(self.high) * 1.001
    }

    /// How many powers there are.
    fn marks(self) -> usize {
        usize::try_from(self.high - self.low + 1).unwrap_or(2)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a logarithm of a finite number is small")]
fn whole(number: f64) -> i32 {
    number as i32
}

impl Chart {
    pub(super) fn svg(&self) -> Result<String> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0).max(1);
        let size = |panel: u32, count: usize| panel * u32::try_from(count.max(1)).unwrap_or(1);
        let mut svg = String::new();
        {
            let whole = (size(PANEL.0, columns), size(PANEL.1, self.rows.len()));
            let area = SVGBackend::with_string(&mut svg, whole).into_drawing_area();
            area.fill(&WHITE)?;
            let cells = area.split_evenly((self.rows.len(), columns));
            for (panels, cells) in self.rows.iter().zip(cells.chunks(columns)) {
                let values = panels.iter().flat_map(|panel| &panel.lines).flat_map(|line| &line.points);
                let y = Scale::around(values.map(|point| point.1));
                for (panel, cell) in panels.iter().zip(cells) {
                    panel.draw(y, cell)?;
                }
            }
            area.present()?;
        }
        Ok(svg)
    }
}

impl Panel {
    fn draw(&self, y: Scale, area: &Area<'_>) -> Result<()> {
        let x = Scale::around(self.lines.iter().flat_map(|line| &line.points).map(|point| point.0));
        let mut builder = ChartBuilder::on(area);
        builder.margin(MARGIN).x_label_area_size(LABELS.0).y_label_area_size(LABELS.1);
        let mut chart = builder.build_cartesian_2d(x.range().log_scale(), y.range().log_scale())?;
        let mut mesh = chart.configure_mesh();
        mesh.max_light_lines(1).x_desc(self.x).y_desc(self.y).label_style(FONT).axis_desc_style(FONT);
        mesh.x_labels(x.marks()).y_labels(y.marks());
        mesh.x_label_formatter(&|value| label(*value)).y_label_formatter(&|value| label(*value)).draw()?;

        let linear = linear(x, y);
        chart.draw_series(DashedLineSeries::new(linear, 4, 4, BLACK.mix(0.4).into()))?;
        for (at, line) in self.lines.iter().enumerate() {
            chart.draw_series(LineSeries::new(line.drawn(), colour(at).stroke_width(2)))?;
            let style = colour(at).filled();
            let marks = line.drawn().map(|point| EmptyElement::at(point) + Polygon::new(form(at, (0, 0)), style));
            let marks = chart.draw_series(marks)?.label(line.name);
            marks.legend(move |(left, middle)| Polygon::new(form(at, (left + MARK, middle)), style));
        }
        let mut names = chart.configure_series_labels();
        names.position(SeriesLabelPosition::UpperLeft).legend_area_size(3 * MARK).label_font(FONT);
        names.background_style(WHITE.mix(0.8)).draw()?;
        Ok(())
    }
}

/// The two ends of a line of linear growth through the lower left corner.
fn linear(x: Scale, y: Scale) -> impl Iterator<Item = (f64, f64)> + Clone {
    let powers = [0, (x.high - x.low).min(y.high - y.low)];
    powers.into_iter().map(move |power| (10_f64.powi(x.low + power), 10_f64.powi(y.low + power)))
}

impl Line {
    fn drawn(&self) -> impl Iterator<Item = (f64, f64)> {
        let is_drawn = |value: f64| value > 0.0 && value.is_finite();
        self.points.iter().copied().filter(move |(x, y)| is_drawn(*x) && is_drawn(*y))
    }
}

fn colour(at: usize) -> RGBColor {
    COLOURS[at % COLOURS.len()]
}

/// The mark of a point: a rhombus, a square or a triangle around a place in pixels.
fn form(at: usize, (x, y): (i32, i32)) -> Vec<(i32, i32)> {
    let corners: &[(i32, i32)] = match at % COLOURS.len() {
        0 => &[(0, -MARK - 1), (MARK + 1, 0), (0, MARK + 1), (-MARK - 1, 0)],
        1 => &[(-MARK, -MARK), (MARK, -MARK), (MARK, MARK), (-MARK, MARK)],
        _ => &[(0, -MARK - 1), (MARK + 1, MARK), (-MARK - 1, MARK)],
    };
    corners.iter().map(|(right, down)| (x + right, y + down)).collect()
}

/// `0.001` to `1`, then `10`, `1k`, `1M`.
fn label(value: f64) -> String {
    match whole(value.log10().round()) {
        power @ ..0 => format!("{:.*}", power.unsigned_abs() as usize, value),
        0..3 => format!("{value:.0}"),
        3..6 => format!("{:.0}k", value / 1e3),
        _ => format!("{:.0}M", value / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_hold_every_value() {
        for (values, want) in [
            (vec![0.02, 3.0, 40.0], (-2, 2)),
            (vec![10.0, 10.0], (1, 2)),
            (vec![0.0, f64::NAN], (0, 1)),
            (vec![], (0, 1)),
        ] {
            let scale = Scale::around(values.iter().copied());
            assert_eq!((scale.low, scale.high), want, "{values:?}");
            assert!(values.iter().filter(|value| **value > 0.0).all(|value| scale.range().contains(value)));
        }
    }

    /// The texts of a drawing, in their order.
    fn texts(svg: &str) -> Vec<&str> {
        let parts = svg.split("<text").skip(1);
        parts.filter_map(|part| part.split_once('>')?.1.split('<').next()).map(str::trim).collect()
    }

    #[test]
    fn every_line_is_drawn_with_its_name() {
        let line = |name, high| Line { name, points: vec![(10.0, 1.0), (100.0, high), (1_000.0, f64::NAN)] };
        let lines = vec![line("read", 10.0), line("compile", 100.0), line("change", 20.0)];
        let panel = Panel { x: "policies", y: "seconds", lines };
        let svg = Chart { rows: vec![vec![panel]] }.svg().unwrap();
        let texts = texts(&svg);
        for text in ["policies", "seconds", "read", "compile", "change", "1", "10", "100"] {
            assert!(texts.contains(&text), "{text} is missing in {texts:?}");
        }
        for colour in ["#0072B2", "#D55E00", "#009E73"] {
            let drawn: Vec<&str> = svg.lines().filter(|line| line.contains(colour)).collect();
            let count = |element: &str| drawn.iter().filter(|line| line.starts_with(element)).count();
            assert_eq!(count("<polygon "), 3, "two points and the name: {drawn:?}");
            assert_eq!(count("<polyline "), 1, "{drawn:?}");
        }
    }

    #[test]
    fn a_chart_without_points_is_drawn() {
        let panel = || Panel { x: "x", y: "y", lines: vec![Line { name: "nothing", points: vec![(0.0, 1.0)] }] };
        assert!(Chart { rows: vec![vec![panel(), panel()], vec![panel()]] }.svg().is_ok());
        assert!(Chart { rows: vec![] }.svg().is_ok());
    }

    #[test]
    fn powers_are_written_short() {
        for (power, want) in [(-3, "0.001"), (0, "1"), (2, "100"), (3, "1k"), (5, "100k"), (6, "1M")] {
            assert_eq!(label(10_f64.powi(power)), want);
        }
    }
}
