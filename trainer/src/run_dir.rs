//! The folder with the record of a run.
//!
//! | file | holds | written |
//! |---|---|---|
//! | `run.json` | what was asked for: configuration, device, commit | when the run starts |
//! | `metrics.jsonl` | steps, evaluations, events: an object a line, the key `type` first | at once |
//! | `samples.txt` | texts from the model in training | after each sample |
//! | `report.html` | all of it to look at | after each evaluation |
//! | `events.out.tfevents.*` | the numbers for TensorBoard, if asked for | at once |
//!
//! A run that went back to an earlier step leaves its lines in `metrics.jsonl`, followed by a line
//! of the type `rollback`: whoever reads the file takes the last line of an iteration. A number
//! that is not finite is `null`.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;
use teeny_runtime::format::write_atomically;

use crate::error::{Error, Result};
pub use crate::report_page::{Evaluation, Step};
use crate::report_page::{Note, Record, page};
use crate::tensorboard::EventFile;

/// Samples that the report shows.
const N_SAMPLES: usize = 20;
/// What an event file's name holds; TensorBoard reads every file whose name has `tfevents` in it.
const EVENTS: &str = "events.out.tfevents.";

/// Folder with the record of a run.
pub struct RunDir {
    path: PathBuf,
    metrics: Appended,
    samples: Appended,
    tensorboard: Option<EventFile>,
    record: Record,
}

impl RunDir {
    /// Opens or makes the folder, and writes `info` to `run.json`.
    ///
    /// `continue_after: None` is a fresh run: the files of a former one in the folder become
    /// `<name>.old` and replace those of the run before. `Some(i)` is a run that resumes after
    /// iteration i: what was recorded of later ones is dropped, the rest is read for the report.
    ///
    /// # Errors
    /// A folder or file that cannot be made, read or written.
    pub fn open(
        path: &Path,
        info: &Value,
        continue_after: Option<u64>,
        tensorboard: bool,
    ) -> Result<RunDir> {
        fs::create_dir_all(path).map_err(|e| io("cannot make folder", path, e))?;
        let metrics = path.join("metrics.jsonl");
        let samples = path.join("samples.txt");
        let title = path.canonicalize().unwrap_or(path.to_owned());
        let title = title.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut record = Record { title, info: info.clone(), ..Record::default() };
        match continue_after {
            None => set_aside(path)?,
            Some(last) => {
                read_metrics(&metrics, last, &mut record)?;
                read_samples(&samples, last, &mut record)?;
            }
        }
        let run_json = path.join("run.json");
        let text = format!("{info:#}\n");
        write_atomically(&run_json, |file| file.write_all(text.as_bytes()))?;
        let mut events = tensorboard.then(|| EventFile::create(path)).transpose()?;
        if let (Some(events), Some(last)) = (&mut events, continue_after) {
            events.restart(last + 1)?;
        }
        let (metrics, samples) = (Appended::open(metrics)?, Appended::open(samples)?);
        let mut run =
            RunDir { path: path.to_owned(), metrics, samples, tensorboard: events, record };
        run.write_report()?;
        Ok(run)
    }

    /// Records a step.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn step(&mut self, step: &Step) -> Result<()> {
        self.line("step", &step_fields(step))?;
        if let Some(events) = &mut self.tensorboard {
            let mut values = vec![
                ("loss/step", step.loss),
                ("lr", step.lr),
                ("tokens_per_second", step.tokens_per_second),
            ];
            values.extend(step.grad_norm.map(|norm| ("grad_norm", norm)));
            events.scalars(step.iteration, &values)?;
        }
        self.record.add_step(step.clone());
        Ok(())
    }

    /// Records an evaluation, and makes the report anew.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn evaluation(&mut self, evaluation: &Evaluation) -> Result<()> {
        self.line("evaluation", &evaluation_fields(evaluation))?;
        if let Some(events) = &mut self.tensorboard {
            events.scalars(
                evaluation.iteration,
                &[
                    ("loss/train", evaluation.train_loss),
                    ("loss/val", evaluation.val_loss),
                    ("bits_per_byte/val", evaluation.val_bits_per_byte),
                ],
            )?;
        }
        self.record.add_evaluation(evaluation.clone());
        self.write_report()
    }

    /// Records a text that the model made.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn sample(&mut self, iteration: u64, text: &str) -> Result<()> {
        self.samples.append(&sample_entry(iteration, text))?;
        if let Some(events) = &mut self.tensorboard {
            events.text(iteration, "sample", text)?;
        }
        add_sample(&mut self.record.samples, iteration, text.to_owned());
        Ok(())
    }

    /// Records something out of the ordinary: a skipped step, an interruption.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn event(&mut self, iteration: u64, message: &str) -> Result<()> {
        let seconds = self.record.seconds();
        let fields = [
            ("iteration", iteration.into()),
            ("message", message.into()),
            ("time", now_utc().into()),
        ];
        self.line("event", &fields)?;
        self.record.events.push(Note { iteration, text: message.to_owned(), seconds });
        Ok(())
    }

    /// Training went back: what the report would show of later iterations is forgotten, except
    /// events. The lines stay, followed by one that says so.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn roll_back(&mut self, iteration: u64) -> Result<()> {
        self.line("rollback", &[("iteration", iteration.into()), ("time", now_utc().into())])?;
        if let Some(events) = &mut self.tensorboard {
            events.restart(iteration + 1)?;
        }
        roll_back(&mut self.record, iteration);
        Ok(())
    }

    /// Records how the run ended, as in "finished" or "interrupted", and makes the last report.
    /// `test_loss` is in nats per token.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn finish(&mut self, outcome: &str, test_loss: Option<f64>) -> Result<()> {
        let fields = [
            ("iteration", self.record.iteration().into()),
            ("outcome", outcome.into()),
            ("test_loss", test_loss.into()),
            ("time", now_utc().into()),
        ];
        self.line("end", &fields)?;
        self.metrics.sync()?;
        self.samples.sync()?;
        self.record.outcome = Some(outcome.to_owned());
        self.record.test_loss = test_loss;
        self.write_report()
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn line(&mut self, kind: &str, fields: &[(&str, Value)]) -> Result<()> {
        self.metrics.append(&line(kind, fields))
    }

    fn write_report(&mut self) -> Result<()> {
        self.record.updated = now_utc();
        let page = page(&self.record);
        write_atomically(&self.path.join("report.html"), |file| file.write_all(page.as_bytes()))?;
        Ok(())
    }
}

/// A file that grows by whole entries.
struct Appended {
    file: File,
    path: PathBuf,
    /// Bytes of whole entries.
    len: u64,
    /// Part of an entry could not be taken back, so that the next must not continue its line.
    torn: bool,
}

impl Appended {
    fn open(path: PathBuf) -> Result<Appended> {
        let open = || {
            let file = OpenOptions::new().append(true).create(true).open(&path)?;
            let len = file.metadata()?.len();
            Ok((file, len))
        };
        match open() {
            Ok((file, len)) => Ok(Appended { file, path, len, torn: false }),
            Err(error) => Err(io("cannot open", &path, error)),
        }
    }

    fn append(&mut self, entry: &str) -> Result<()> {
        let newline = if self.torn { "\n" } else { "" };
        // One call an entry: then a kill leaves whole entries, unless it hits the call itself.
        let written = self
            .file
            .write_all(newline.as_bytes())
            .and_then(|()| self.file.write_all(entry.as_bytes()));
        match written {
            Ok(()) => {
                self.len += (newline.len() + entry.len()) as u64;
                self.torn = false;
                Ok(())
            }
            Err(error) => {
                // A full disk takes part of an entry; a reader of lines would stumble over it.
                self.torn = self.file.set_len(self.len).is_err() || self.torn;
                Err(io("cannot write", &self.path, error))
            }
        }
    }

    fn sync(&self) -> Result<()> {
        match self.file.sync_all() {
            Ok(()) => Ok(()),
            // What is no file on a disk, as a pipe, has nothing to sync.
            Err(error) if error.kind() == ErrorKind::InvalidInput => Ok(()),
            Err(error) => Err(io("cannot write", &self.path, error)),
        }
    }
}

fn io(action: &'static str, path: &Path, source: std::io::Error) -> Error {
    Error::Runtime(teeny_runtime::Error::Io { action, path: path.to_owned(), source })
}

/// `{"type":kind,..}` and a newline. A map of serde_json would sort the keys.
fn line(kind: &str, fields: &[(&str, Value)]) -> String {
    let mut text = format!("{{\"type\":\"{kind}\"");
    for (key, value) in fields {
        text.push_str(&format!(",\"{key}\":{value}"));
    }
    text.push_str("}\n");
    text
}

fn step_fields(step: &Step) -> [(&'static str, Value); 6] {
    [
        ("iteration", step.iteration.into()),
        ("loss", step.loss.into()),
        ("lr", step.lr.into()),
        ("grad_norm", step.grad_norm.into()),
        ("tokens_per_second", step.tokens_per_second.into()),
        ("seconds", step.seconds.into()),
    ]
}

fn evaluation_fields(evaluation: &Evaluation) -> [(&'static str, Value); 6] {
    [
        ("iteration", evaluation.iteration.into()),
        ("train_loss", evaluation.train_loss.into()),
        ("val_loss", evaluation.val_loss.into()),
        ("val_bits_per_byte", evaluation.val_bits_per_byte.into()),
        ("is_best", evaluation.is_best.into()),
        ("seconds", evaluation.seconds.into()),
    ]
}

/// Renames the files of a former run.
fn set_aside(folder: &Path) -> Result<()> {
    let moved =
        |from: &Path, to: &Path| fs::rename(from, to).map_err(|e| io("cannot rename", from, e));
    for name in ["run.json", "metrics.jsonl", "samples.txt", "report.html"] {
        let file = folder.join(name);
        // A pipe or a device that someone put there is to be written to, not to be kept.
        if is_file(&file) {
            moved(&file, &folder.join(format!("{name}.old")))?;
        }
    }
    // These have other names each time. The old ones must lose `tfevents` from theirs, or
    // TensorBoard would go on to read them.
    let old = |name: &str| name.starts_with("events.out.") && name.ends_with(".old");
    let names = file_names(folder)?;
    if names.iter().any(|name| name.starts_with(EVENTS)) {
        for name in names.iter().filter(|name| old(name)) {
            let file = folder.join(name);
            fs::remove_file(&file).map_err(|e| io("cannot remove", &file, e))?;
        }
        for name in &names {
            if let Some(rest) = name.strip_prefix(EVENTS) {
                moved(&folder.join(name), &folder.join(format!("events.out.{rest}.old")))?;
            }
        }
    }
    Ok(())
}

fn file_names(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).map_err(|e| io("cannot list folder", folder, e))?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

/// Whether there is a file with contents; a link to one counts.
fn is_file(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file())
}

/// Reads what `metrics.jsonl` has up to iteration `last` into `record`, and drops the rest, and
/// whatever is no line of ours: a kill or a power failure may have torn it.
fn read_metrics(path: &Path, last: u64, record: &mut Record) -> Result<()> {
    if !is_file(path) {
        return Ok(());
    }
    let bytes = fs::read(path).map_err(|e| io("cannot read", path, e))?;
    let mut kept = Vec::with_capacity(bytes.len());
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        // Without its newline the last line may be complete all the same.
        let Ok(value) = serde_json::from_slice::<Value>(line) else { continue };
        let Some(iteration) = value["iteration"].as_u64().filter(|i| *i <= last) else { continue };
        kept.extend(line.strip_suffix(b"\n").unwrap_or(line));
        kept.push(b'\n');
        replay(&value, iteration, record);
    }
    if kept != bytes {
        write_atomically(path, |file| file.write_all(&kept))?;
    }
    Ok(())
}

/// Does to `record` what the line did when it was written.
fn replay(line: &Value, iteration: u64, record: &mut Record) {
    let number = |key: &str| line[key].as_f64().unwrap_or(f64::NAN);
    match line["type"].as_str().unwrap_or_default() {
        "step" => record.add_step(Step {
            iteration,
            loss: number("loss"),
            lr: number("lr"),
            grad_norm: line["grad_norm"].as_f64(),
            tokens_per_second: number("tokens_per_second"),
            seconds: number("seconds"),
        }),
        "evaluation" => record.add_evaluation(Evaluation {
            iteration,
            train_loss: number("train_loss"),
            val_loss: number("val_loss"),
            val_bits_per_byte: number("val_bits_per_byte"),
            is_best: line["is_best"].as_bool().unwrap_or(false),
            seconds: number("seconds"),
        }),
        "event" => {
            let text = line["message"].as_str().unwrap_or_default().to_owned();
            record.events.push(Note { iteration, text, seconds: record.seconds() });
        }
        "rollback" => roll_back(record, iteration),
        // An end that was none, or a line of a later version.
        _ => {}
    }
}

fn roll_back(record: &mut Record, iteration: u64) {
    let seconds = record.seconds();
    record.forget_after(iteration);
    let text = format!("went back to iteration {iteration}");
    record.events.push(Note { iteration, text, seconds });
}

fn add_sample(samples: &mut VecDeque<(u64, String)>, iteration: u64, text: String) {
    if samples.len() == N_SAMPLES {
        samples.pop_front();
    }
    samples.push_back((iteration, text));
}

/// An entry of `samples.txt`. The length makes sure that no text can look like a heading.
fn sample_entry(iteration: u64, text: &str) -> String {
    format!("=== iteration {iteration}, {} bytes ===\n{text}\n\n", text.len())
}

/// Splits the first entry of `samples.txt` off: its iteration, its text and what follows.
fn split_sample(bytes: &[u8]) -> Option<(u64, &str, &[u8])> {
    let heading = bytes.split(|byte| *byte == b'\n').next()?;
    let body = bytes.get(heading.len() + 1..)?;
    let heading = std::str::from_utf8(heading).ok()?;
    let heading = heading.strip_prefix("=== iteration ")?.strip_suffix(" bytes ===")?;
    let (iteration, length) = heading.split_once(", ")?;
    let length: usize = length.parse().ok()?;
    let text = std::str::from_utf8(body.get(..length)?).ok()?;
    let rest = body[length..].strip_prefix(b"\n\n")?;
    Some((iteration.parse().ok()?, text, rest))
}

/// What follows the first line, from the next heading on.
fn next_heading(bytes: &[u8]) -> &[u8] {
    let start = b"\n=== iteration ";
    let next = bytes.windows(start.len()).position(|window| window == start);
    next.map_or(&[], |i| &bytes[i + 1..])
}

/// Reads the samples up to iteration `last`, and drops later ones and one that is torn.
fn read_samples(path: &Path, last: u64, record: &mut Record) -> Result<()> {
    if !is_file(path) {
        return Ok(());
    }
    let bytes = fs::read(path).map_err(|e| io("cannot read", path, e))?;
    let (mut rest, mut kept) = (&bytes[..], String::new());
    while !rest.is_empty() {
        let Some((iteration, text, next)) = split_sample(rest) else {
            // Torn, by a full disk for one; what was written after that is whole.
            rest = next_heading(rest);
            continue;
        };
        rest = next;
        if iteration <= last {
            kept.push_str(&sample_entry(iteration, text));
            // Of a run that went back, the later text is the one that counts.
            record.samples.retain(|(earlier, _)| *earlier < iteration);
            add_sample(&mut record.samples, iteration, text.to_owned());
        }
    }
    if kept.as_bytes() != bytes {
        write_atomically(path, |file| file.write_all(kept.as_bytes()))?;
    }
    Ok(())
}

/// HEAD of the git repository that `folder` is in, in hexadecimal; `None` if there is none. Reads
/// the files (gitrepository-layout(5)) rather than asking git, which need not be there.
pub fn git_commit(folder: &Path) -> Option<String> {
    let folder = folder.canonicalize().ok()?;
    let (top, dot_git) = folder
        .ancestors()
        .map(|folder| (folder, folder.join(".git")))
        .find(|(_, dot_git)| dot_git.exists())?;
    // In a worktree and in a submodule it is a file that says where the folder is.
    let git = if dot_git.is_dir() {
        dot_git
    } else {
        top.join(fs::read_to_string(dot_git).ok()?.trim().strip_prefix("gitdir: ")?)
    };
    // A worktree has a HEAD of its own, and shares the branches.
    let common = match fs::read_to_string(git.join("commondir")) {
        Ok(common) => git.join(common.trim()),
        Err(_) => git.clone(),
    };
    let packed = fs::read_to_string(common.join("packed-refs")).unwrap_or_default();
    let mut value = fs::read_to_string(git.join("HEAD")).ok()?;
    // A reference may name another; git gives up after five too.
    for _ in 0..5 {
        let Some(name) = value.trim().strip_prefix("ref: ").map(str::to_owned) else { break };
        let loose = [&git, &common].map(|git| fs::read_to_string(git.join(&name)).ok());
        let packed = || {
            let mut refs = packed.lines().filter_map(|line| line.split_once(' '));
            refs.find(|(_, known)| *known == name).map(|(commit, _)| commit.to_owned())
        };
        value = loose.into_iter().flatten().next().or_else(packed)?;
    }
    let commit = value.trim();
    // SHA-1 or SHA-256.
    let valid = matches!(commit.len(), 40 | 64) && commit.bytes().all(|b| b.is_ascii_hexdigit());
    valid.then(|| commit.to_owned())
}

/// The time now in UTC as ISO 8601, to the second: `2026-07-01T09:30:00Z`.
pub fn now_utc() -> String {
    utc(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
}

/// `seconds` since 1970 as ISO 8601. The date is Howard Hinnant's `civil_from_days`
/// (howardhinnant.github.io/date_algorithms.html): years begin in March, such that the leap day is
/// their last, and an era is the 400 years after which the calendar repeats.
fn utc(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400 + 719_468, seconds % 86_400); // days since 0000-03-01
    let (era, day) = (days / 146_097, days % 146_097);
    let year_of_era = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153; // from March
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As GNU date 9.1 prints them.
    #[test]
    fn dates() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_709_208_000, "2024-02-29T12:00:00Z"),
            (1_767_225_599, "2025-12-31T23:59:59Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (32_503_680_000, "3000-01-01T00:00:00Z"),
        ] {
            assert_eq!(utc(seconds), expected);
        }
    }

    #[test]
    fn samples_split_at_their_length() {
        let texts = ["=== iteration 9, 1 bytes ===\nx\n\n", "", "\n\n", "ends in é"];
        let file: String = (0..).zip(texts).map(|(i, text)| sample_entry(i, text)).collect();
        let mut rest = file.as_bytes();
        for (i, text) in (0..).zip(texts) {
            let (iteration, found, next) = split_sample(rest).expect("an entry");
            assert_eq!((iteration, found), (i, text));
            rest = next;
        }
        assert!(rest.is_empty() && split_sample(rest).is_none());
        for torn in 0..sample_entry(7, "text").len() {
            assert!(split_sample(&sample_entry(7, "text").as_bytes()[..torn]).is_none());
        }
        assert!(split_sample(b"=== iteration 7, 99999999999999999999 bytes ===\n").is_none());
        assert!(split_sample(b"=== iteration 7, 18446744073709551615 bytes ===\n").is_none());
    }
}
