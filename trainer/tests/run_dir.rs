//! The record of a run: what is in the folder after all that can happen to a run.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use teeny_trainer::report_page::{Record, lr_range_page, page};
use teeny_trainer::run_dir::{Evaluation, RunDir, Step, git_commit, now_utc};

fn step(iteration: u64) -> Step {
    Step {
        iteration,
        loss: 4.0 / iteration as f64,
        lr: 1e-3,
        grad_norm: Some(0.5),
        tokens_per_second: 1e5,
        seconds: iteration as f64 / 10.0,
    }
}

fn evaluation(iteration: u64) -> Evaluation {
    let loss = 4.0 / iteration as f64;
    Evaluation {
        iteration,
        train_loss: loss,
        val_loss: loss + 0.125,
        val_bits_per_byte: 1.5 * loss,
        is_best: true,
        seconds: iteration as f64 / 10.0,
    }
}

/// A run of `n` steps with an evaluation and a sample after every second one.
fn record(run: &mut RunDir, iterations: std::ops::RangeInclusive<u64>) {
    for i in iterations {
        run.step(&step(i)).unwrap();
        if i % 2 == 0 {
            run.evaluation(&evaluation(i)).unwrap();
            run.sample(i, &format!("sample {i}\n\nof two paragraphs")).unwrap();
        }
    }
}

fn open(folder: &Path, continue_after: Option<u64>) -> RunDir {
    RunDir::open(folder, &json!({"device": "cpu"}), continue_after, false).unwrap()
}

fn read(folder: &Path, name: &str) -> String {
    fs::read_to_string(folder.join(name)).unwrap()
}

/// The lines of `metrics.jsonl`, every one of which parses.
fn lines(folder: &Path) -> Vec<Value> {
    let text = read(folder, "metrics.jsonl");
    assert!(text.is_empty() || text.ends_with('\n'));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Type and iteration of each line.
fn outline(folder: &Path) -> Vec<(String, u64)> {
    let of =
        |line: &Value| (line["type"].as_str().unwrap().into(), line["iteration"].as_u64().unwrap());
    lines(folder).iter().map(of).collect()
}

fn entry(kind: &str, iteration: u64) -> (String, u64) {
    (kind.into(), iteration)
}

#[test]
fn a_fresh_run() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/run");
    let info = json!({"device": "cpu", "git_commit": null, "command": ["teeny-train", "--config"],
        "train": {"n_iters": 3, "betas": [0.9, 0.99]}});
    let mut run = RunDir::open(&path, &info, None, false).unwrap();
    assert_eq!(run.path(), path);
    assert!(read(&path, "report.html").contains("running"));
    record(&mut run, 1..=2);
    let third = Step { loss: f64::NAN, grad_norm: None, lr: f64::INFINITY, ..step(3) };
    run.step(&third).unwrap();
    run.event(3, "step skipped: the loss is \"NaN\"").unwrap();
    run.finish("finished", Some(1.25)).unwrap();

    assert_eq!(serde_json::from_str::<Value>(&read(&path, "run.json")).unwrap(), info);
    let lines = lines(&path);
    let expected = ["step", "step", "evaluation", "step", "event", "end"];
    assert!(lines.iter().map(|line| line["type"].as_str().unwrap()).eq(expected));
    assert_eq!(
        lines[1],
        json!({"type": "step", "iteration": 2, "loss": 2.0, "lr": 0.001, "grad_norm": 0.5,
            "tokens_per_second": 1e5, "seconds": 0.2})
    );
    assert_eq!(
        lines[2],
        json!({"type": "evaluation", "iteration": 2, "train_loss": 2.0, "val_loss": 2.125,
            "val_bits_per_byte": 3.0, "is_best": true, "seconds": 0.2})
    );
    assert_eq!([&lines[3]["loss"], &lines[3]["lr"], &lines[3]["grad_norm"]], [&Value::Null; 3]);
    assert_eq!(lines[4]["message"], "step skipped: the loss is \"NaN\"");
    assert_eq!((&lines[5]["outcome"], &lines[5]["test_loss"]), (&json!("finished"), &json!(1.25)));
    assert!(read(&path, "metrics.jsonl").lines().all(|line| line.starts_with("{\"type\":\"")));
    let expected = "=== iteration 2, 27 bytes ===\nsample 2\n\nof two paragraphs\n\n";
    assert_eq!(read(&path, "samples.txt"), expected);
    let page = read(&path, "report.html");
    let parts = ["finished", "3 of 3", "2.1250", "1.2500", "of two paragraphs", "step skipped"];
    for part in parts.into_iter().chain(["teeny-train --config"]) {
        assert!(page.contains(part), "{part}");
    }
    assert!(!page.contains("git commit"), "what is not known is left out");
    let names = fs::read_dir(&path).unwrap().count();
    assert_eq!(names, 4, "temporary files are left over");
}

#[test]
fn a_former_run_is_kept_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(path.join("notes.txt"), "of the user").unwrap();
    for i in 1..=3 {
        let info = json!({"run": i});
        let mut run = RunDir::open(path, &info, None, true).unwrap();
        record(&mut run, 1..=2 * i);
        run.finish("finished", None).unwrap();
    }
    assert_eq!(outline(path).len(), 6 + 3 + 1);
    let old: Value = serde_json::from_str(&read(path, "run.json.old")).unwrap();
    assert_eq!(old, json!({"run": 2}));
    assert_eq!(read(path, "metrics.jsonl.old").lines().count(), 4 + 2 + 1);
    assert_eq!(read(path, "samples.txt.old").matches("===\n").count(), 2);
    assert!(read(path, "report.html.old").contains("finished"));
    let names =
        || fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    // TensorBoard reads all that is called so, and must not read the former run.
    assert_eq!(names().filter(|name| name.contains("tfevents")).count(), 1);
    assert_eq!(names().filter(|name| name.starts_with("events.out.")).count(), 2);
    assert_eq!(read(path, "notes.txt"), "of the user");
    assert_eq!(names().count(), 4 + 4 + 2 + 1);
}

#[test]
fn a_resumed_run_drops_what_came_after() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let mut run = open(path, None);
    record(&mut run, 1..=3);
    run.event(3, "slow disk").unwrap();
    record(&mut run, 4..=6);
    run.event(6, "a later one").unwrap();
    run.finish("interrupted", None).unwrap();
    let before = read(path, "metrics.jsonl");
    drop(run);

    // Nothing is dropped, nothing changes.
    drop(open(path, Some(6)));
    assert_eq!(read(path, "metrics.jsonl"), before);
    assert!(!path.join("metrics.jsonl.old").exists());

    let mut run = open(path, Some(3));
    let page = read(path, "report.html");
    assert!(page.contains("slow disk") && page.contains("sample 2") && page.contains("running"));
    assert!(!page.contains("a later one") && !page.contains("sample 4"));
    record(&mut run, 4..=4);
    let expected = [("step", 1), ("step", 2), ("evaluation", 2), ("step", 3), ("event", 3)];
    let expected = expected.into_iter().chain([("step", 4), ("evaluation", 4)]);
    assert!(outline(path).into_iter().eq(expected.map(|(kind, i)| entry(kind, i))));
    let samples = read(path, "samples.txt");
    assert!(before.len() > samples.len() && !samples.contains("sample 6"));
    assert_eq!(samples.matches("sample 4").count(), 1);
}

#[test]
fn a_torn_line_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let mut run = open(path, None);
    record(&mut run, 1..=2);
    drop(run);
    let (metrics, samples) = (read(path, "metrics.jsonl"), read(path, "samples.txt"));
    for torn in ["{\"type\":\"step\",\"iteration\":3,\"loss\":1", "{", "\0\0\0\0"] {
        fs::write(path.join("metrics.jsonl"), format!("{metrics}{torn}")).unwrap();
        fs::write(path.join("samples.txt"), format!("{samples}=== iteration 4, 30 byt")).unwrap();
        drop(open(path, Some(9)));
        assert_eq!(read(path, "metrics.jsonl"), metrics);
        assert_eq!(read(path, "samples.txt"), samples);
    }
    // A whole line that lacks nothing but its end is kept, and the next does not join it.
    fs::write(path.join("metrics.jsonl"), metrics.trim_end()).unwrap();
    let mut run = open(path, Some(9));
    run.step(&step(3)).unwrap();
    assert_eq!(outline(path).last(), Some(&entry("step", 3)));
    assert_eq!(outline(path).len(), 4);
}

/// A sample that a full disk cut short costs itself, not those after it.
#[test]
fn a_torn_sample_hides_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let mut run = open(path, None);
    record(&mut run, 1..=6);
    drop(run);
    let samples = read(path, "samples.txt");
    let entries: Vec<_> = samples.split_inclusive("paragraphs\n\n").collect();
    assert_eq!(entries.len(), 3);
    // Torn in its text, in its heading, and before either.
    for torn in [&entries[1][..40], &entries[1][..15], "rubbish"] {
        let damaged = [entries[0], torn, "\n", entries[2]].concat();
        fs::write(path.join("samples.txt"), damaged).unwrap();
        drop(open(path, Some(6)));
        assert_eq!(read(path, "samples.txt"), [entries[0], entries[2]].concat(), "{torn}");
        assert!(read(path, "report.html").contains("sample 6"));
    }
}

/// `info` may have its numbers as texts, as a configuration file does.
#[test]
fn the_number_of_steps_is_found() {
    for n_iters in [json!(5000), json!("5000")] {
        let info = json!({"config": {"train": {"n_iters": n_iters}}});
        let page = page(&Record { info, steps: vec![step(7)], ..Record::default() });
        assert!(page.contains("7 of 5,000"));
    }
}

#[test]
fn going_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let mut run = open(path, None);
    record(&mut run, 1..=4);
    run.event(4, "the loss jumped").unwrap();
    run.roll_back(3).unwrap();
    run.step(&Step { loss: 77.0, ..step(4) }).unwrap();
    run.finish("interrupted", None).unwrap();
    let outline = outline(path);
    let expected = [("evaluation", 4), ("event", 4), ("rollback", 3), ("step", 4), ("end", 4)];
    assert!(outline.ends_with(&expected.map(|(kind, i)| entry(kind, i))));
    let page = read(path, "report.html");
    assert!(page.contains("the loss jumped") && page.contains("went back to iteration 3"));
    // The evaluation of iteration 4 had the best loss, 1.125, but its parameters are gone.
    assert!(page.contains("best 2.1250") && !page.contains("1.1250"));
    assert!(page.contains("<b>77</b>") && !page.contains("sample 4"));
    drop(run);

    // The file says the same to one that reads it.
    drop(open(path, Some(4)));
    let page = read(path, "report.html");
    assert!(page.contains("best 2.1250") && !page.contains("1.1250"));
    assert!(page.contains("<b>77</b>") && page.contains("went back to iteration 3"));
}

#[test]
fn the_page_escapes_every_text() {
    let bad = "<script>alert(\"1\" & '2')</script>{{body}}\u{1b}[0m\0";
    let good = "&lt;script&gt;alert(&quot;1&quot; &amp; &#39;2&#39;)&lt;/script&gt;{{body}}";
    let folder = tempfile::tempdir().unwrap();
    let info = json!({"name": bad, "top": bad, bad: 1, "train": {"text": bad, bad: [bad], "o": {bad: bad}}, "x": {bad: {}}});
    let mut run = RunDir::open(folder.path(), &info, None, false).unwrap();
    run.sample(1, bad).unwrap();
    run.event(1, bad).unwrap();
    run.finish(bad, None).unwrap();
    let clean = page(&Record { title: "x".into(), ..Record::default() });
    for page in [read(folder.path(), "report.html"), lr_range_page(&[(1e-3, 2.0)], 1e-3, &info)] {
        assert_eq!(page.matches("<script").count(), clean.matches("<script").count());
        assert!(page.matches(good).count() >= 5);
        assert!(!page.contains(['\u{1b}', '\0']));
        assert_eq!(page.matches("</html>").count(), 1);
    }
    // The samples are kept as they are.
    assert!(read(folder.path(), "samples.txt").contains(bad));
}

/// No other file and no network: nothing names a place to load from.
#[test]
fn the_page_stands_alone() {
    let page = page(&Record::default());
    for part in ["http:", "https:", "src=", "href=", "url(", "@import", "import(", "fetch("] {
        assert!(!page.contains(part), "{part}");
    }
}

#[test]
fn a_long_run_makes_a_small_page() {
    let steps: Vec<_> = (1..=50_000).map(step).collect();
    let evaluations: Vec<_> = (1..=500).map(|i| evaluation(100 * i)).collect();
    let record = Record { steps, evaluations, ..Record::default() };
    let page = page(&record);
    for d in page.split(" d=\"").skip(1) {
        let points = d.split('"').next().unwrap().matches(['M', 'L']).count();
        assert!(points <= 2000, "{points}");
    }
    assert!(page.len() < 500_000, "{}", page.len());
}

#[test]
fn the_page_of_learning_rates() {
    let points: Vec<_> = (0..=100)
        .map(|i| {
            let x = f64::from(i) / 100.0;
            (1e-6 * 1e6f64.powf(x), if x < 0.8 { 4.0 - 2.0 * x } else { 1e6 * x })
        })
        .collect();
    let page = lr_range_page(&points, points[60].0, &json!({"device": "cpu"}));
    assert!(page.contains("data-x=\"log\""));
    assert!(page.contains(">0.003981<") && page.contains("2.8000"));
    // The divergence is not what the axis is for.
    let high = page.split("data-y1=\"").nth(1).unwrap().split('"').next().unwrap();
    assert!(high.parse::<f64>().unwrap() < 6.0, "{high}");
    // Between two rates that were tried.
    assert!(lr_range_page(&points, 0.004, &Value::Null).contains("2.8000"));
    // Nothing to show is no reason to panic.
    for points in [vec![], vec![(f64::NAN, f64::NAN)], vec![(0.0, 1.0), (-1.0, 2.0)]] {
        assert!(lr_range_page(&points, f64::NAN, &Value::Null).contains("</html>"));
    }
}

#[test]
fn odd_numbers_make_no_odd_page() {
    let odd = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, f64::MIN, 0.0, -0.0, 5e-324];
    let steps = (1..).zip(odd).map(|(iteration, x)| Step {
        iteration,
        loss: x,
        lr: x,
        grad_norm: Some(x),
        tokens_per_second: x,
        seconds: x,
    });
    let page = page(&Record { steps: steps.collect(), ..Record::default() });
    for d in page.split(" d=\"").skip(1) {
        let d = d.split('"').next().unwrap();
        assert!(!d.contains("NaN") && !d.contains("inf"), "{d}");
    }
}

#[test]
fn a_full_disk_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["metrics.jsonl", "samples.txt"] {
        let path = folder.path().join(file.split('.').next().unwrap());
        fs::create_dir(&path).unwrap();
        // Linux has a device that is always full.
        std::os::unix::fs::symlink("/dev/full", path.join(file)).unwrap();
        for continue_after in [None, Some(3)] {
            let mut run = open(&path, continue_after);
            let error = match file {
                "metrics.jsonl" => run.step(&step(1)),
                _ => run.sample(1, "text"),
            };
            let error = error.unwrap_err().to_string();
            assert!(error.contains(file) && error.contains("No space left"), "{error}");
        }
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    for path in [file.clone(), file.join("run"), PathBuf::from("/proc/run")] {
        for tensorboard in [false, true] {
            let error = RunDir::open(&path, &Value::Null, None, tensorboard).err().unwrap();
            let error = error.to_string();
            assert!(error.contains(path.to_str().unwrap()), "{error}");
        }
    }
    // The folder vanishes under the run: the report has nowhere to go.
    let path = folder.path().join("run");
    let mut run = open(&path, None);
    fs::remove_dir_all(&path).unwrap();
    let error = run.evaluation(&evaluation(1)).unwrap_err().to_string();
    assert!(error.contains("report.html"), "{error}");
}

#[test]
fn event_files_of_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let mut run = RunDir::open(path, &Value::Null, None, true).unwrap();
    record(&mut run, 1..=4);
    run.roll_back(2).unwrap();
    drop(run);
    drop(RunDir::open(path, &Value::Null, Some(2), true).unwrap());
    let mut files: Vec<_> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_str().unwrap().contains("/events.out.tfevents."))
        .collect();
    files.sort();
    assert_eq!(files.len(), 2);
    // version, four steps, two evaluations with a sample, rollback; version, restart.
    for (file, expected) in files.iter().zip([10, 2]) {
        assert_eq!(events(&fs::read(file).unwrap()), expected);
    }
}

/// The masked CRC32C of a TFRecord, bit by bit, unlike the one that is tested.
fn masked_crc(bytes: &[u8]) -> [u8; 4] {
    let mut crc = !0u32;
    for i in 0..8 * bytes.len() {
        let bit = u32::from(bytes[i / 8] >> (i % 8) & 1) ^ (crc & 1);
        crc = (crc >> 1) ^ (bit * 0x82f6_3b78);
    }
    let crc = !crc;
    crc.rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// How many records an event file has. All of them are whole.
fn events(mut bytes: &[u8]) -> usize {
    let mut n = 0;
    while !bytes.is_empty() {
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        assert_eq!(bytes[8..12], masked_crc(&bytes[..8]), "length of record {n}");
        let (data, rest) = bytes[12..].split_at(length);
        assert_eq!(rest[..4], masked_crc(data), "data of record {n}");
        bytes = &rest[4..];
        n += 1;
    }
    n
}

/// Writes fail in the middle of an entry, as on a full disk; then there is room again. The limit on
/// the size of files stands in for the disk, in a process of its own.
#[test]
fn files_stay_legible_when_a_full_disk_has_room_again() {
    const FOLDER: &str = "TEENY_TEST_FULL_DISK";
    let Some(folder) = std::env::var_os(FOLDER) else {
        let folder = tempfile::tempdir().unwrap();
        // The signal that comes with the error would end the process.
        let output = Command::new("bash")
            .args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "files_stay_legible_when_a_full_disk_has_room_again"])
            .env(FOLDER, folder.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        return;
    };
    let folder = Path::new(&folder);
    // Ten such steps or samples are below the 4 KiB of the limit, and fifty are not.
    let mut failed = [0, 0];
    let mut write = |run: &mut RunDir, from: u64| {
        for i in from..from + 50 {
            failed[0] += u64::from(run.step(&step(i)).is_err());
            failed[1] += u64::from(run.sample(i, &format!("sample {i} ").repeat(9)).is_err());
        }
        failed
    };
    let info = json!({});
    let process = std::process::id().to_string();
    let limit = |size: &str| {
        let size = format!("--fsize={size}:");
        let status = Command::new("prlimit").args(["--pid", &process, &size]).status().unwrap();
        assert!(status.success());
    };
    // A resumed run: what was there before is to stay too.
    let mut run = RunDir::open(folder, &info, None, false).unwrap();
    run.step(&step(1)).unwrap();
    run.sample(1, "the first").unwrap();
    drop(run);
    // The page is larger than the limit that follows.
    let mut run = RunDir::open(folder, &info, Some(1), true).unwrap();
    limit("4096");
    let first = write(&mut run, 2);
    assert!(first.iter().all(|n| (1..50).contains(n)), "{first:?}");
    limit("unlimited");
    assert_eq!(write(&mut run, 52), first, "no more failures");
    drop(run);

    let steps: Vec<_> = outline(folder).into_iter().map(|(_, iteration)| iteration).collect();
    assert!(
        steps.is_sorted() && steps.starts_with(&[1, 2, 3]) && steps.ends_with(&[100, 101]),
        "{steps:?}"
    );
    let file = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.to_str().unwrap().contains("tfevents"));
    // The version, the restart, and what was written without an error.
    let expected = 2 + 200 - first.iter().sum::<u64>();
    assert_eq!(events(&fs::read(file.unwrap()).unwrap()) as u64, expected);
    let samples = read(folder, "samples.txt");
    drop(RunDir::open(folder, &info, Some(101), false).unwrap());
    assert_eq!(read(folder, "samples.txt"), samples, "nothing was torn");
    assert!(samples.contains("the first") && samples.contains("sample 2 "));
    assert!(samples.matches("=== iteration").count() > 50);
}

fn git(folder: &Path, arguments: &[&str]) -> String {
    let names =
        ["GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"];
    let output = Command::new("git")
        .args(arguments)
        .current_dir(folder)
        .envs(names.map(|name| (name, "test@example.org")))
        .env_remove("GIT_DIR")
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The oracle is git itself.
#[test]
fn the_commit_is_what_git_says() {
    if Command::new("git").arg("--version").output().is_err() {
        eprintln!("skipped: there is no git");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let top = folder.path().join("top");
    fs::create_dir_all(top.join("a/b")).unwrap();
    assert_eq!(git_commit(&top), None);
    git(&top, &["init", "-q", "-b", "main"]);
    assert_eq!(git_commit(&top), None, "before the first commit");
    let mut seen = Vec::new();
    let mut check = |place: &Path| {
        let expected = git(place, &["rev-parse", "HEAD"]);
        assert_eq!(git_commit(place).as_deref(), Some(&*expected));
        seen.push(expected);
    };
    let commit =
        |place: &Path, message| git(place, &["commit", "-q", "--allow-empty", "-m", message]);
    commit(&top, "first");
    check(&top);
    check(&top.join("a/b"));
    git(&top, &["pack-refs", "--all"]);
    assert!(!top.join(".git/refs/heads/main").exists());
    check(&top);
    commit(&top, "second"); // now the branch is both loose and packed
    check(&top);
    let worktree = folder.path().join("worktree");
    git(&top, &["worktree", "add", "-q", "-b", "topic/x", worktree.to_str().unwrap()]);
    commit(&worktree, "third");
    check(&worktree);
    git(&top, &["pack-refs", "--all"]);
    check(&worktree);
    check(&top);
    git(&worktree, &["checkout", "-q", "--detach", "HEAD~1"]);
    check(&worktree);
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 3, "the commits differ, or the test shows nothing");

    fs::write(top.join(".git/HEAD"), "ref: HEAD\n").unwrap();
    assert_eq!(git_commit(&top), None, "a reference to itself");
    fs::write(top.join(".git/HEAD"), "damaged\n").unwrap();
    assert_eq!(git_commit(&top), None);
}

#[test]
fn the_time_is_iso_8601() {
    let now = now_utc();
    let shape: String = now.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(shape, "0000-00-00T00:00:00Z");
    assert!(now.as_str() > "2026" && now.as_str() < "2200");
}
