//! The record of a run as one page that needs nothing else: no network, no other file.

use std::collections::VecDeque;
use std::fmt::Write;

use serde_json::Value;

use crate::chart::{Axis, Chart, Curve, Mark, bounds, escape, short, smoothed};

/// The page around what is made here, with its style and the few lines of script.
const TEMPLATE: &str = include_str!("report.html");
/// Rows of a table at most, the latest.
const N_ROWS: usize = 1000;

/// What is known of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Number of the step, counted from 1.
    pub iteration: u64,
    /// Mean loss of its tokens, in nats.
    pub loss: f64,
    /// Learning rate.
    pub lr: f64,
    /// Norm of the gradient before clipping, if it was computed.
    pub grad_norm: Option<f64>,
    /// Tokens trained on a second.
    pub tokens_per_second: f64,
    /// Since the run began.
    pub seconds: f64,
}

/// What an evaluation found.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Steps done.
    pub iteration: u64,
    /// Loss over the training split, in nats per token.
    pub train_loss: f64,
    /// Loss over the validation split, in nats per token.
    pub val_loss: f64,
    /// The same in bits per byte, which does not depend on the tokenizer.
    pub val_bits_per_byte: f64,
    /// Whether no evaluation before had a lower validation loss.
    pub is_best: bool,
    /// Since the run began.
    pub seconds: f64,
}

/// Something out of the ordinary.
#[derive(Clone, Debug, PartialEq)]
pub struct Note {
    /// The step it belongs to.
    pub iteration: u64,
    /// What happened.
    pub text: String,
    /// When, since the run began.
    pub seconds: f64,
}

/// All that the page shows.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Heading, unless `info` has a `name`.
    pub title: String,
    /// What was asked for. Numbers and texts at the top go to the head of the page, objects to the
    /// configuration at its end.
    pub info: Value,
    /// In order of their iterations, as all that follows.
    pub steps: Vec<Step>,
    /// The evaluations.
    pub evaluations: Vec<Evaluation>,
    /// In order of time.
    pub events: Vec<Note>,
    /// Iterations and the texts made after them.
    pub samples: VecDeque<(u64, String)>,
    /// How the run ended, if it has.
    pub outcome: Option<String>,
    /// Loss over the test split, in nats per token.
    pub test_loss: Option<f64>,
    /// When this was, in UTC.
    pub updated: String,
}

impl Record {
    /// Adds a step; later ones, and one of the same number, are forgotten.
    pub fn add_step(&mut self, step: Step) {
        let n = self.steps.partition_point(|known| known.iteration < step.iteration);
        self.steps.truncate(n);
        self.steps.push(step);
    }

    /// Adds an evaluation; later ones, and one of the same number, are forgotten.
    pub fn add_evaluation(&mut self, evaluation: Evaluation) {
        let n = self.evaluations.partition_point(|e| e.iteration < evaluation.iteration);
        self.evaluations.truncate(n);
        self.evaluations.push(evaluation);
    }

    /// Forgets what came after `iteration`, except what happened out of the ordinary.
    pub fn forget_after(&mut self, iteration: u64) {
        self.steps.retain(|step| step.iteration <= iteration);
        self.evaluations.retain(|evaluation| evaluation.iteration <= iteration);
        self.samples.retain(|(of, _)| *of <= iteration);
    }

    /// The last iteration that anything is known of.
    pub fn iteration(&self) -> u64 {
        let step = self.steps.last().map_or(0, |step| step.iteration);
        step.max(self.evaluations.last().map_or(0, |evaluation| evaluation.iteration))
    }

    /// Since the run began.
    pub fn seconds(&self) -> f64 {
        let step = self.steps.last().map_or(0.0, |step| step.seconds);
        step.max(self.evaluations.last().map_or(0.0, |evaluation| evaluation.seconds))
    }

    fn best(&self) -> Option<&Evaluation> {
        self.evaluations.iter().rev().find(|evaluation| evaluation.is_best)
    }
}

/// The page of a run.
pub fn page(record: &Record) -> String {
    let title = record.info["name"].as_str().unwrap_or(&record.title);
    let mut body = head(record, title);
    body += &loss_chart(record);
    let steps = &record.steps;
    let at = |value: fn(&Step) -> f64| -> Vec<(f64, f64)> {
        steps.iter().map(|step| (step.iteration as f64, value(step))).collect()
    };
    body += "<div class=\"pair\">";
    body += &single("Learning rate", at(|step| step.lr), Range::FromZero, false);
    body += &single("Tokens per second", at(|step| step.tokens_per_second), Range::FromZero, true);
    if steps.iter().any(|step| step.grad_norm.is_some()) {
        let norms = at(|step| step.grad_norm.unwrap_or(f64::NAN));
        body += &single("Gradient norm", norms, Range::All, true);
    }
    body += "</div>";
    body += &evaluations(record);
    body += &events(record);
    body += &samples(record);
    body += &configuration(&record.info);
    fill(title, &body)
}

/// The page of a test of learning rates: the loss at each rate as (rate, loss), and the rate that
/// follows from it. `info` is shown as on the page of a run.
pub fn lr_range_page(points: &[(f64, f64)], suggestion: f64, info: &Value) -> String {
    let title = info["name"].as_str().unwrap_or("Learning rates");
    let mut body = format!("<h1>{}</h1>", escape(title));
    // The rate tried that is nearest: a suggestion may lie between two, or below a minimum.
    let suggestion = Some(suggestion).filter(|rate| rate.is_finite() && *rate > 0.0);
    let far = |rate: f64| suggestion.map_or(0.0, |suggestion| (rate / suggestion).ln().abs());
    let finite = points.iter().filter(|point| point.0 > 0.0 && point.1.is_finite());
    let near = finite.min_by(|a, b| far(a.0).total_cmp(&far(b.0)));
    let near = suggestion.zip(near).map(|(rate, near)| (rate, near.1));
    let facts = near.map(|(rate, loss)| {
        [("suggested learning rate", short(rate)), ("loss there", format!("{loss:.4}"))]
    });
    body += &fact_list(facts.as_ref().map_or(&[], |facts| facts), info);
    // Where the loss has left the range it started in, training has diverged and the rest is
    // noise without bound.
    let start = points.iter().map(|point| point.1).find(|loss| loss.is_finite()).unwrap_or(1.0);
    let (low, _) = bounds(points.iter().map(|point| point.1)).unwrap_or((0.0, 1.0));
    let seen = points.iter().filter(|(_, loss)| *loss <= start + 0.5 * (start - low).max(0.1));
    let chart = Chart {
        title: "Loss by learning rate",
        x_name: "learning rate",
        tall: true,
        x: Axis::log(bounds(points.iter().map(|point| point.0)).unwrap_or((1e-5, 1.0))),
        y: Axis::padded(bounds(seen.map(|point| point.1)).unwrap_or((0.0, 1.0))),
        curves: vec![Curve { class: "train", name: "loss", points: points.to_vec() }],
        mark: near.map(|(x, y)| Mark { x, y, text: short(x) }),
        rule: suggestion,
    };
    body += &chart.html();
    body += &configuration(info);
    fill(title, &body)
}

/// The template with its places filled, in one go: what is filled in may look like a place.
fn fill(title: &str, body: &str) -> String {
    let mut page = String::with_capacity(TEMPLATE.len() + body.len() + title.len());
    let mut parts = TEMPLATE.split("{{");
    page += parts.next().unwrap_or_default();
    for part in parts {
        let (place, rest) = part.split_once("}}").unwrap_or(("", part));
        page += &match place {
            "title" => escape(title),
            _ => body.to_owned(),
        };
        page += rest;
    }
    page
}

fn head(record: &Record, title: &str) -> String {
    let (class, status) = match record.outcome.as_deref() {
        None => ("running", "running"),
        Some("finished") => ("finished", "finished"),
        Some(other) => ("stopped", other),
    };
    let mut html = format!(
        "<h1>{} <span class=\"status {class}\">{}</span></h1><div class=\"quiet\">as of {}</div>",
        escape(title),
        escape(status),
        escape(&record.updated)
    );
    // A configuration may have its numbers as texts.
    let number = |value: &Value| value.as_u64().or_else(|| value.as_str()?.parse().ok());
    let iteration = match find(&record.info, "n_iters").and_then(number) {
        Some(n) => format!("{} of {}", grouped(record.iteration()), grouped(n)),
        None => grouped(record.iteration()),
    };
    let mut facts = vec![("iteration", iteration), ("time", duration(record.seconds()))];
    if let Some(best) = record.best() {
        facts.push(("best validation loss", format!("{:.4}", best.val_loss)));
        facts.push(("bits per byte", format!("{:.4}", best.val_bits_per_byte)));
        facts.push(("found at iteration", grouped(best.iteration)));
    }
    facts.extend(record.test_loss.map(|loss| ("test loss", format!("{loss:.4}"))));
    if let Some(step) = record.steps.last() {
        facts.push(("tokens per second", short(step.tokens_per_second)));
    }
    html += &fact_list(&facts, &record.info);
    html
}

/// Numbers of the run in boxes, then what `info` has at its top as a list.
fn fact_list(facts: &[(&str, String)], info: &Value) -> String {
    let mut html = String::from("<dl class=\"facts\">");
    for (name, value) in facts {
        let _ = write!(html, "<div><dt>{}</dt><dd>{}</dd></div>", escape(name), escape(value));
    }
    html += "</dl>";
    let top: Vec<_> = info.as_object().into_iter().flatten().collect();
    let shown = |key: &str, value: &Value| !value.is_object() && !value.is_null() && key != "name";
    let top: Vec<_> = top.into_iter().filter(|(key, value)| shown(key, value)).collect();
    if !top.is_empty() {
        html += "<div class=\"facts\"><div class=\"wide\"><dl>";
        for (key, value) in top {
            let (key, value) = (key.replace('_', " "), text(value));
            let _ = write!(html, "<dt>{}</dt><dd>{}</dd>", escape(&key), escape(&value));
        }
        html += "</dl></div></div>";
    }
    html
}

/// The value as a person would write it: texts without quotes, long integers in groups, a list as
/// a command line.
fn text(value: &Value) -> String {
    if let Some(list) = value.as_array() {
        return list.iter().map(text).collect::<Vec<_>>().join(" ");
    }
    match (value.as_str(), value.as_u64()) {
        (Some(text), _) => text.to_owned(),
        (None, Some(number)) => grouped(number),
        (None, None) => value.to_string(),
    }
}

/// The value of a key, however deep it lies.
fn find<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    let object = value.as_object()?;
    object.get(key).or_else(|| object.values().find_map(|value| find(value, key)))
}

fn loss_chart(record: &Record) -> String {
    let at = |value: fn(&Evaluation) -> f64| -> Vec<(f64, f64)> {
        record.evaluations.iter().map(|e| (e.iteration as f64, value(e))).collect()
    };
    let raw: Vec<_> = record.steps.iter().map(|step| (step.iteration as f64, step.loss)).collect();
    let smooth = smoothed(&raw);
    let (train, val) = (at(|e| e.train_loss), at(|e| e.val_loss));
    let x = (0.0, (record.iteration() as f64).max(1.0));
    // The loss of an untrained model would take most of the height: what came before the first
    // thirtieth of the run may lie above it.
    let shown = |points: &[(f64, f64)]| {
        let after = points.iter().filter(|point| point.0 >= x.1 / 30.0);
        after.map(|point| point.1).collect::<Vec<_>>()
    };
    let range = bounds([shown(&smooth), shown(&train), shown(&val)].into_iter().flatten());
    let best = record.best().map(|best| Mark {
        x: best.iteration as f64,
        y: best.val_loss,
        text: format!("best {:.4}", best.val_loss),
    });
    let chart = Chart {
        title: "Loss in nats per token",
        x_name: "iteration",
        tall: true,
        x: Axis::linear(x),
        y: Axis::padded(range.unwrap_or((0.0, 1.0))),
        curves: vec![
            Curve { class: "raw", name: "step", points: raw },
            Curve { class: "step", name: "step, smoothed", points: smooth },
            Curve { class: "train", name: "train", points: train },
            Curve { class: "val", name: "validation", points: val },
        ],
        mark: best,
        rule: None,
    };
    chart.html()
}

/// What the y axis of a small chart shows.
enum Range {
    /// From zero to the greatest.
    FromZero,
    /// All values; by powers of ten if they differ that much.
    All,
}

/// A chart of one value over the iterations, and of its mean if it is to be smoothed.
fn single(title: &str, points: Vec<(f64, f64)>, range: Range, smooth: bool) -> String {
    let end = points.last().map_or(1.0, |point| point.0).max(1.0);
    let values = points.iter().map(|point| point.1);
    let (low, high) = bounds(values).unwrap_or((0.0, 1.0));
    let y = match range {
        Range::FromZero => Axis::linear((0.0, if high > 0.0 { high * 1.05 } else { 1.0 })),
        Range::All if low > 0.0 && high > 20.0 * low => Axis::log((0.8 * low, 1.25 * high)),
        Range::All => Axis::padded((low, high)),
    };
    let mut curves = vec![Curve { class: "train", name: "value", points }];
    if smooth {
        let points = smoothed(&curves[0].points);
        curves[0].class = "raw";
        curves.push(Curve { class: "train", name: "smoothed", points });
    }
    let x = Axis::linear((0.0, end));
    Chart { title, x_name: "iteration", tall: false, x, y, curves, mark: None, rule: None }.html()
}

fn evaluations(record: &Record) -> String {
    if record.evaluations.is_empty() {
        return String::new();
    }
    let best = record.best().map(|best| best.iteration);
    let mut html = String::from(
        "<section><h2>Evaluations</h2><div class=\"scroll\"><table><tr><th>iteration</th>\
         <th>train</th><th>validation</th><th>bits per char</th><th>time</th></tr>",
    );
    for e in record.evaluations.iter().rev().take(N_ROWS) {
        let _ = write!(
            html,
            "<tr{}><td>{}</td><td>{:.4}</td><td>{:.4}</td><td>{:.4}</td><td>{}</td></tr>",
            if Some(e.iteration) == best { " class=\"best\"" } else { "" },
            grouped(e.iteration),
            e.train_loss,
            e.val_loss,
            e.val_bits_per_byte,
            duration(e.seconds)
        );
    }
    html += "</table></div></section>";
    html
}

fn events(record: &Record) -> String {
    if record.events.is_empty() {
        return String::new();
    }
    let mut html = String::from(
        "<section><h2>Events</h2><div class=\"scroll\"><table class=\"words\">\
         <tr><th>iteration</th><th>time</th><th>event</th></tr>",
    );
    for event in record.events.iter().rev().take(N_ROWS) {
        let _ = write!(
            html,
            "<tr><td>{}</td><td>{}</td><td>{}</td></tr>",
            grouped(event.iteration),
            duration(event.seconds),
            escape(&event.text)
        );
    }
    html += "</table></div></section>";
    html
}

fn samples(record: &Record) -> String {
    if record.samples.is_empty() {
        return String::new();
    }
    let mut html = String::from("<section><h2>Samples</h2>");
    for (i, (iteration, text)) in record.samples.iter().rev().enumerate() {
        let _ = write!(
            html,
            "<details{}><summary>iteration {}</summary><pre>{}</pre></details>",
            if i == 0 { " open" } else { "" },
            grouped(*iteration),
            escape(text)
        );
    }
    html += "</section>";
    html
}

/// The objects in `info`, a table each.
fn configuration(info: &Value) -> String {
    let mut html = String::new();
    for (key, value) in info.as_object().into_iter().flatten() {
        if value.is_object() {
            let _ =
                write!(html, "<details><summary>{}</summary><table class=\"words\">", escape(key));
            rows(&mut html, "", value);
            html += "</table></details>";
        }
    }
    if html.is_empty() { html } else { format!("<section><h2>Configuration</h2>{html}</section>") }
}

/// A row for each value; deeper ones have names with dots.
fn rows(html: &mut String, prefix: &str, value: &Value) {
    for (key, value) in value.as_object().into_iter().flatten() {
        let name = format!("{prefix}{key}");
        if value.is_object() {
            rows(html, &format!("{name}."), value);
        } else {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let (name, value) = (escape(&name), escape(&value));
            let _ = write!(html, "<tr><td>{name}</td><td>{value}</td></tr>");
        }
    }
}

/// Digits in groups of three: `1,234,567`.
fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1 h 02 min`, `2 min 05 s`, `7 s`.
fn duration(seconds: f64) -> String {
    let total = seconds.max(0.0) as u64; // not a number becomes 0
    let (hours, minutes, seconds) = (total / 3600, total / 60 % 60, total % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds} s"),
        (0, _) => format!("{minutes} min {seconds:02} s"),
        _ => format!("{hours} h {minutes:02} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_legible() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([7.9, 125.0, 3725.0].map(duration), ["7 s", "2 min 05 s", "1 h 02 min"]);
    }
}
