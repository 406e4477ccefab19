//! Charts for a page: curves are SVG that stretches with it; axes and marks are text over that,
//! which does not. Their style is in `report.html`.

use std::fmt::Write;

/// Points of a curve at most; a screen has no more columns.
const N_POINTS: usize = 2000;
/// Units of the SVG: whole numbers of these are as exact as a hover value needs, and short.
const SIZE: (f64, f64) = (10_000.0, 100_000.0);
/// The exponential mean over about a fiftieth of the points; over fewer at the start, where the
/// loss falls fast and a mean of many would lag behind. What is not finite is passed over.
pub fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let n = (points.len() / 50).clamp(1, 200);
    let (full, weight) = (10 * n, 1.0 / n as f64);
    let mut mean = 0.0;
    let finite = points.iter().filter(|point| point.1.is_finite()).enumerate();
    finite
        .map(|(i, (x, y))| {
            mean += (y - mean) * if i < full { 1.0 / (i as f64 / 10.0).max(1.0) } else { weight };
            (*x, mean)
        })
        .collect()
}

/// At most `N_POINTS` points with the same look: the lowest and the highest of each stretch.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= N_POINTS {
        return points.to_vec();
    }
    let stretch = points.len().div_ceil(N_POINTS / 2);
    let mut out = Vec::with_capacity(N_POINTS);
    for part in points.chunks(stretch) {
        // Whatever is not a number would break the curve, which one such point need not.
        let (mut low, mut high) = ((0, f64::INFINITY), (0, f64::NEG_INFINITY));
        for (i, (_, y)) in part.iter().enumerate().filter(|(_, point)| point.1.is_finite()) {
            low = if *y < low.1 { (i, *y) } else { low };
            high = if *y > high.1 { (i, *y) } else { high };
        }
        out.push(part[low.0.min(high.0)]);
        if low.0 != high.0 {
            out.push(part[low.0.max(high.0)]);
        }
    }
    out
}

/// The least and the greatest of the finite values.
pub fn bounds(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.filter(|value| value.is_finite()).fold(None, |range, value| {
        let (low, high) = range.unwrap_or((value, value));
        Some((low.min(value), high.max(value)))
    })
}

/// From `low`, at one end of a chart, to `high`.
pub struct Axis {
    low: f64,
    high: f64,
    log: bool,
}

impl Axis {
    /// From the first to the second, or to one more if that is not above.
    pub fn linear((low, high): (f64, f64)) -> Axis {
        Axis { low, high: if high > low { high } else { low + 1.0 }, log: false }
    }

    /// With some room around the values.
    pub fn padded((low, high): (f64, f64)) -> Axis {
        let room = if high > low { 0.06 * (high - low) } else { 0.1 * low.abs().max(1e-3) };
        Axis { low: low - room, high: high + room, log: false }
    }

    /// In powers of ten. Both ends are to be positive.
    pub fn log((low, high): (f64, f64)) -> Axis {
        let low = if low > 0.0 { low } else { f64::MIN_POSITIVE };
        Axis { low, high: if high > low { high } else { low * 10.0 }, log: true }
    }

    /// Where a value lies, 0 at `low` and 1 at `high`.
    fn place(&self, value: f64) -> f64 {
        if self.log {
            (value.ln() - self.low.ln()) / (self.high.ln() - self.low.ln())
        } else {
            (value - self.low) / (self.high - self.low)
        }
    }

    /// Round values, about `n` of them.
    fn ticks(&self, n: f64) -> Vec<f64> {
        let (low, high) = (self.low, self.high);
        if self.log {
            let decades = (low.log10().floor() as i32)..=(high.log10().ceil() as i32);
            let every = |parts: &[f64]| -> Vec<f64> {
                let all =
                    decades.clone().flat_map(|d| parts.iter().map(move |p| p * 10f64.powi(d)));
                all.filter(|value| (low..=high).contains(value)).collect()
            };
            let coarse = every(&[1.0]);
            return if coarse.len() >= 4 { coarse } else { every(&[1.0, 2.0, 5.0]) };
        }
        let rough = (high - low) / n;
        let unit = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * unit);
        let step = step.into_iter().find(|step| *step >= rough * 0.999).unwrap_or(rough);
        let first = (low / step).ceil() as i64;
        (first..).map(|i| i as f64 * step).take_while(|value| *value <= high).take(20).collect()
    }
}

/// A line through points.
pub struct Curve {
    /// Its colour: a class in the template.
    pub class: &'static str,
    /// Its name in the legend, without anything to escape; one of its own within the chart.
    pub name: &'static str,
    /// In order of x; where y is not finite the line has a gap.
    pub points: Vec<(f64, f64)>,
}

/// A point with its value.
pub struct Mark {
    /// Where it lies.
    pub x: f64,
    /// The same.
    pub y: f64,
    /// What is written there.
    pub text: String,
}

/// Curves over one pair of axes, with a legend that follows the pointer.
pub struct Chart<'a> {
    /// Heading.
    pub title: &'a str,
    /// What x is.
    pub x_name: &'a str,
    /// Whether it is the chart to look at.
    pub tall: bool,
    /// From left to right.
    pub x: Axis,
    /// From below to the top; what lies outside is cut off.
    pub y: Axis,
    /// The later lie above the earlier.
    pub curves: Vec<Curve>,
    /// The point that matters.
    pub mark: Option<Mark>,
    /// Where there is a vertical line.
    pub rule: Option<f64>,
}

impl Chart<'_> {
    /// The chart as a `<section>`.
    pub fn html(&self) -> String {
        let (title, x_name) = (escape(self.title), escape(self.x_name));
        let mut html = format!("<section><h2>{title}</h2><div class=\"legend\">");
        for Curve { class, name, points } in &self.curves {
            let last = points.iter().rev().map(|point| point.1).find(|value| value.is_finite());
            // Where a test of learning rates ended says nothing: it ended since it diverged.
            let last = last.filter(|_| self.rule.is_none()).map_or(String::new(), short);
            let key = format!("<i class=\"{class}\"></i>{name} ");
            let key = if self.curves.len() > 1 { &key } else { "" };
            let _ = write!(html, "<span data-name=\"{name}\">{key}<b>{last}</b></span>");
        }
        let kind = |axis: &Axis| if axis.log { "log" } else { "linear" };
        let _ = write!(
            html,
            "<span class=\"at\"></span></div><div class=\"plot{}\" data-xname=\"{x_name}\" \
             data-x=\"{}\" data-x0=\"{:e}\" data-x1=\"{:e}\" \
             data-y=\"{}\" data-y0=\"{:e}\" data-y1=\"{:e}\">\
             <svg viewBox=\"0 0 {} {}\" preserveAspectRatio=\"none\" role=\"img\" \
             aria-label=\"{title}\">",
            if self.tall { " tall" } else { "" },
            kind(&self.x),
            self.x.low,
            self.x.high,
            kind(&self.y),
            self.y.low,
            self.y.high,
            SIZE.0,
            SIZE.1,
        );
        let x_ticks = self.x.ticks(if self.tall { 10.0 } else { 5.0 });
        let y_ticks = self.y.ticks(if self.tall { 7.0 } else { 4.0 });
        html += "<path class=\"grid\" d=\"";
        for tick in &y_ticks {
            let y = self.y_place(*tick);
            let _ = write!(html, "M0,{y}L{},{y}", SIZE.0);
        }
        for tick in &x_ticks {
            let x = self.x_place(*tick);
            let _ = write!(html, "M{x},0L{x},{}", SIZE.1);
        }
        html += "\"/>";
        for curve in &self.curves {
            let (class, name) = (curve.class, curve.name);
            let d = self.path(&curve.points);
            let _ = write!(html, "<path class=\"{class}\" data-name=\"{name}\" d=\"{d}\"/>");
        }
        html += "</svg>";
        for tick in &y_ticks {
            let top = 100.0 * (1.0 - self.y.place(*tick));
            let _ =
                write!(html, "<span class=\"y\" style=\"top:{top:.2}%\">{}</span>", short(*tick));
        }
        for (i, tick) in x_ticks.iter().enumerate() {
            let left = 100.0 * self.x.place(*tick);
            let minor = if i % 2 == 1 { " minor" } else { "" };
            let tick = short(*tick);
            let _ =
                write!(html, "<span class=\"x{minor}\" style=\"left:{left:.2}%\">{tick}</span>");
        }
        if let Some(x) = self.rule {
            let left = 100.0 * self.x.place(x);
            let _ = write!(html, "<span class=\"rule val\" style=\"left:{left:.2}%\"></span>");
        }
        if let Some(mark) = &self.mark {
            let (left, top) = (100.0 * self.x.place(mark.x), 100.0 * (1.0 - self.y.place(mark.y)));
            let side = if left > 85.0 {
                " right"
            } else if left < 15.0 {
                " left"
            } else {
                ""
            };
            let at = format!("left:{left:.2}%;top:{top:.2}%");
            let text = escape(&mark.text);
            let _ = write!(
                html,
                "<span class=\"dot val\" style=\"{at}\"></span>\
                 <span class=\"mark val{side}\" style=\"{at}\">{text}</span>"
            );
        }
        html += "<span class=\"rule cursor\"></span></div></section>";
        html
    }

    /// Where a value lies, in units of the SVG.
    fn x_place(&self, value: f64) -> i64 {
        (SIZE.0 * self.x.place(value)).round() as i64
    }

    /// The same, from the top; far outside is as good as just outside, and drawing programs have
    /// limits.
    fn y_place(&self, value: f64) -> i64 {
        (SIZE.1 * (1.0 - self.y.place(value).clamp(-10.0, 10.0))).round() as i64
    }

    /// The curve in the units of the SVG; it has a gap where a value is not finite.
    fn path(&self, points: &[(f64, f64)]) -> String {
        let mut path = String::with_capacity(16 * points.len().min(N_POINTS));
        let mut pen = 'M';
        for (x, y) in thinned(points) {
            if !(self.x.place(x).is_finite() && self.y.place(y).is_finite()) {
                pen = 'M';
                continue;
            }
            let _ = write!(path, "{pen}{},{}", self.x_place(x), self.y_place(y));
            pen = 'L';
        }
        path
    }
}

/// `text` fit for an element and for an attribute in quotes. Control characters, which a page must
/// not have, become the sign of something unreadable.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            '\n' | '\t' => out.push(c),
            c if c.is_control() => out.push(char::REPLACEMENT_CHARACTER),
            c => out.push(c),
        }
    }
    out
}

/// Four digits of a number, with a letter for thousands and more: `1.234`, `50k`, `3e-4`.
pub fn short(value: f64) -> String {
    let size = value.abs();
    let (value, unit) = match size {
        _ if !value.is_finite() => return "–".to_owned(),
        _ if size >= 1e12 => return format!("{value:.3e}"),
        _ if size >= 1e9 => (value / 1e9, "G"),
        _ if size >= 1e6 => (value / 1e6, "M"),
        _ if size >= 1e4 => (value / 1e3, "k"),
        _ if size == 0.0 => return "0".to_owned(),
        _ if size < 1e-3 => {
            let text = format!("{value:.3e}");
            let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
            return format!("{}e{power}", digits.trim_end_matches('0').trim_end_matches('.'));
        }
        _ => (value, ""),
    };
    let digits = (3 - value.abs().log10().floor() as i32).clamp(0, 6) as usize;
    let text = format!("{value:.digits$}");
    let text = match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.'),
        false => &text,
    };
    format!("{text}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (value, expected) in [
            (0.0, "0"),
            (1.0, "1"),
            (0.3, "0.3"),
            (1.46971, "1.47"),
            (-2.5, "-2.5"),
            (5000.0, "5000"),
            (50_000.0, "50k"),
            (1_234_567.0, "1.235M"),
            (3e9, "3G"),
            (6e-4, "6e-4"),
            (1.25e-5, "1.25e-5"),
            (f64::NAN, "–"),
        ] {
            assert_eq!(short(value), expected);
        }
    }

    #[test]
    fn ticks_are_round_and_inside() {
        let near = |found: Vec<f64>, expected: &[f64]| {
            assert_eq!(found.len(), expected.len(), "{found:?}");
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() <= 1e-9 * expected.abs(), "{found} {expected}");
            }
        };
        near(Axis::linear((0.0, 5000.0)).ticks(5.0), &[0.0, 1e3, 2e3, 3e3, 4e3, 5e3]);
        near(Axis::linear((1.43, 1.72)).ticks(4.0), &[1.5, 1.6, 1.7]);
        near(Axis::log((1e-6, 1e-1)).ticks(5.0), &[1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1]);
        near(Axis::log((0.3, 3.0)).ticks(5.0), &[0.5, 1.0, 2.0]);
        // Nothing to show, or next to nothing, is no reason to hang or to divide by zero.
        for range in [(0.0, 0.0), (1.0, 1.0 + 1e-15), (-1e300, 1e300), (5e-324, 1e308)] {
            for axis in [Axis::linear(range), Axis::padded(range), Axis::log(range)] {
                assert!(axis.ticks(5.0).len() <= 1000);
                assert!(!axis.place(range.1).is_nan());
            }
        }
    }

    #[test]
    fn thinning_keeps_the_extremes() {
        let mut points: Vec<_> = (0..100_000).map(|i| (f64::from(i), 1.0)).collect();
        points[12_345].1 = 9.0;
        points[54_321].1 = -9.0;
        points[777].1 = f64::NAN;
        let thin = thinned(&points);
        assert!(thin.len() <= N_POINTS);
        assert!(thin.contains(&(12_345.0, 9.0)) && thin.contains(&(54_321.0, -9.0)));
        assert!(thin.is_sorted_by_key(|point| point.0));
        assert!(thin.iter().all(|point| point.1.is_finite()));
    }

    /// A mean of a constant is the constant, from the first point on.
    #[test]
    fn smoothing_is_without_bias() {
        let points: Vec<_> = (0..50).map(|i| (f64::from(i), 3.0)).collect();
        assert!(smoothed(&points).iter().all(|point| (point.1 - 3.0).abs() < 1e-12));
        let few = [(1.0, 5.0), (2.0, 7.0)];
        assert_eq!(smoothed(&few), few);
        // Far from the start the noise of 10,000 points goes down with the root of 2 * 200.
        let noise = |i: u32| if (i * i / 7).is_multiple_of(2) { 1.0 } else { -1.0 };
        let points: Vec<_> = (0..10_000).map(|i| (f64::from(i), noise(i))).collect();
        let smooth = smoothed(&points);
        let square =
            |points: &[(f64, f64)]| points.iter().map(|point| point.1.powi(2)).sum::<f64>();
        assert!(square(&smooth[5000..]) < 5000.0 * 0.05);
    }
}
