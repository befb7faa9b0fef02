//! A chart with logarithmic axes, as SVG.

use std::fmt::Write as _;

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

/// Points joined in their order; both coordinates above zero.
pub(super) struct Line {
    pub(super) name: &'static str,
    pub(super) points: Vec<(f64, f64)>,
}

/// Sizes in pixels: a panel's axes, and the space around them.
const WIDTH: f64 = 230.0;
const HEIGHT: f64 = 200.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 46.0;
const BOTTOM: f64 = 44.0;
/// Colours that people with any eyes tell apart (Okabe and Ito).
const COLOURS: [&str; 3] = ["#0072b2", "#d55e00", "#009e73"];
const STYLE: &str = "text{font:12px sans-serif;fill:#222}.grid{stroke:#ddd}.axis{stroke:#222;fill:none}\
                     .linear{stroke:#999;stroke-dasharray:4 4}.line{fill:none;stroke-width:2}";

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

    /// Where a value stands: 0 at the low end, 1 at the high one.
    fn share(self, value: f64) -> f64 {
        (value.log10() - f64::from(self.low)) / f64::from(self.high - self.low)
    }

    fn powers(self) -> impl Iterator<Item = i32> {
        self.low..=self.high
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a logarithm of a finite number is small")]
fn whole(number: f64) -> i32 {
    number as i32
}

impl Chart {
    pub(super) fn svg(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let cell = (LEFT + WIDTH + RIGHT, TOP + HEIGHT + BOTTOM);
        let size = |cell: f64, count: usize| cell * f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        let (width, height) = (size(cell.0, columns), size(cell.1, self.rows.len()));
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\">\n\
             <style>{STYLE}</style>\n<rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n"
        );
        for (row, panels) in self.rows.iter().enumerate() {
            let values = panels.iter().flat_map(|panel| &panel.lines).flat_map(|line| &line.points);
            let scale = Scale::around(values.map(|point| point.1));
            for (column, panel) in panels.iter().enumerate() {
                let _ = writeln!(
                    svg,
                    "<g transform=\"translate({} {})\">",
                    size(cell.0, column) + LEFT,
                    size(cell.1, row) + TOP
                );
                panel.draw(scale, &mut svg);
                svg.push_str("</g>\n");
            }
        }
        svg + "</svg>\n"
    }
}

impl Panel {
    fn draw(&self, y: Scale, svg: &mut String) {
        let x = Scale::around(self.lines.iter().flat_map(|line| &line.points).map(|point| point.0));
        for power in x.powers() {
            let at = x.share(10_f64.powi(power)) * WIDTH;
            let _ = writeln!(svg, "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y2=\"{HEIGHT}\"/>");
            let text = label(power);
            let _ = writeln!(svg, "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{text}</text>", HEIGHT + 16.0);
        }
        for power in y.powers() {
            let at = (1.0 - y.share(10_f64.powi(power))) * HEIGHT;
            let _ = writeln!(svg, "<line class=\"grid\" y1=\"{at:.1}\" y2=\"{at:.1}\" x2=\"{WIDTH}\"/>");
            let text = label(power);
            let _ = writeln!(svg, "<text x=\"-6\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>", at + 4.0);
        }
        draw_linear(x, y, svg);
        let _ = writeln!(svg, "<path class=\"axis\" d=\"M0 0V{HEIGHT}H{WIDTH}\"/>");
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            WIDTH / 2.0,
            HEIGHT + 34.0,
            self.x
        );
        let _ = writeln!(svg, "<text x=\"-54\" y=\"-28\">{}</text>", self.y);
        for (at, line) in self.lines.iter().enumerate() {
            line.draw(at, x, y, svg);
        }
    }
}

/// A dashed line of linear growth through the lower left corner.
fn draw_linear(x: Scale, y: Scale, svg: &mut String) {
    let decades = (x.high - x.low).min(y.high - y.low);
    let end = (x.share(10_f64.powi(x.low + decades)) * WIDTH, (1.0 - y.share(10_f64.powi(y.low + decades))) * HEIGHT);
    let _ = writeln!(svg, "<line class=\"linear\" y1=\"{HEIGHT}\" x2=\"{:.1}\" y2=\"{:.1}\"/>", end.0, end.1);
}

impl Line {
    /// The line, a mark at each point, and the name with its mark above the panel.
    fn draw(&self, at: usize, x: Scale, y: Scale, svg: &mut String) {
        let colour = COLOURS[at % COLOURS.len()];
        let place = |point: &(f64, f64)| (x.share(point.0) * WIDTH, (1.0 - y.share(point.1)) * HEIGHT);
        let path: Vec<String> =
            self.points.iter().map(place).map(|(across, down)| format!("{across:.1},{down:.1}")).collect();
        let _ = writeln!(svg, "<polyline class=\"line\" stroke=\"{colour}\" points=\"{}\"/>", path.join(" "));
        let left = 78.0 * f64::from(u32::try_from(at).unwrap_or(0));
        for (across, down) in self.points.iter().map(place).chain([(left, -12.0)]) {
            let _ = match at % COLOURS.len() {
                0 => writeln!(svg, "<circle cx=\"{across:.1}\" cy=\"{down:.1}\" r=\"4\" fill=\"{colour}\"/>"),
                1 => writeln!(
                    svg,
                    "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"8\" height=\"8\" fill=\"{colour}\"/>",
                    across - 4.0,
                    down - 4.0
                ),
                _ => writeln!(svg, "<path d=\"M{across:.1} {:.1}l5 9h-10z\" fill=\"{colour}\"/>", down - 5.0),
            };
        }
        let _ = writeln!(svg, "<text x=\"{}\" y=\"-8\">{}</text>", left + 8.0, self.name);
    }
}

/// `0.001` to `1`, then `10`, `1k`, `1M`.
fn label(power: i32) -> String {
    match power {
        ..0 => format!("{:.*}", power.unsigned_abs() as usize, 10_f64.powi(power)),
        0..3 => format!("{:.0}", 10_f64.powi(power)),
        3..6 => format!("{:.0}k", 10_f64.powi(power - 3)),
        _ => format!("{:.0}M", 10_f64.powi(power - 6)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_hold_every_value() {
        let scale = Scale::around([0.02, 3.0, 40.0].into_iter());
        assert_eq!((scale.low, scale.high), (-2, 2));
        assert!((scale.share(1.0) - 0.5).abs() < 1e-9);
        let flat = Scale::around([10.0, 10.0].into_iter());
        assert_eq!((flat.low, flat.high), (1, 2));
        assert_eq!(Scale::around([0.0, f64::NAN].into_iter()).high, 1);
    }

    #[test]
    fn every_line_is_drawn_with_its_name() {
        let line = |name, high| Line { name, points: vec![(10.0, 1.0), (100.0, high)] };
        let panel = Panel { x: "policies", y: "seconds", lines: vec![line("read", 10.0), line("compile", 100.0)] };
        let svg = Chart { rows: vec![vec![panel]] }.svg();
        for part in
            ["points=\"0.0,200.0 230.0,100.0\"", "points=\"0.0,200.0 230.0,0.0\"", ">read<", ">compile<", ">100<"]
        {
            assert!(svg.contains(part), "{part} is missing in {svg}");
        }
    }

    #[test]
    fn powers_are_written_short() {
        for (power, want) in [(-3, "0.001"), (0, "1"), (2, "100"), (3, "1k"), (5, "100k"), (6, "1M")] {
            assert_eq!(label(power), want);
        }
    }
}
