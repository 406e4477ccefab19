//! What the parser and the typed readers accept, and what they say of the rest.

use super::*;

const KEYS: &[Key] = &[
    Key::with_aliases("n_layer", &["n_attn_layers"]),
    Key::with_aliases("n_embd", &["n_dim"]),
    Key::new("lr_max"),
    Key::new("betas"),
    Key::new("bias"),
    Key::new("file"),
    Key::new("color"),
];

fn parse(text: &str) -> Result<Ini> {
    Ini::parse(Path::new("c.ini"), text)
}

fn section(text: &str) -> Result<Section> {
    parse(text)?.section("model", KEYS)
}

#[test]
fn comments_spaces_case_and_line_ends() {
    let text = "\u{feff}# c\r\n; c\r\n\r\n [ Model ] ; c\r\n\tN_Layer=4\r\nn_embd : 1_024 # c\n\
                file = a#b;c = d\tx ;c\nbias=";
    let s = section(text).expect("valid");
    assert_eq!(s.usize("n_layer", 0, 0..=9).expect("in range"), 4);
    assert_eq!(s.usize("n_embd", 0, 0..=9999).expect("in range"), 1024);
    assert_eq!(s.string("file", "").expect("there"), "a#b;c = d\tx");
    assert_eq!(s.optional("bias"), None);
    assert!(s.has("bias") && !s.has("betas"));
}

#[test]
fn bad_files_name_the_line() {
    for (text, message) in [
        (
            "n_layer = 4",
            "c.ini:1: found \"n_layer = 4\", expected a section such as [model] before the first key",
        ),
        ("[model]\n\nn_layer 4", "c.ini:3: [model]: found \"n_layer 4\", expected key = value"),
        ("[model]\n= 4", "c.ini:2: [model]: found \"= 4\", expected key = value"),
        ("[model", "c.ini:1: found \"[model\", expected a section such as [model]"),
        ("[ ]", "c.ini:1: found \"[ ]\", expected a section such as [model]"),
        (
            "[model]\nn_layer=4\nN_LAYER=4",
            "c.ini:3: [model] N_LAYER: found it a second time, after c.ini:2, expected each key once",
        ),
        (
            "[model]\nn_dim=4\n[x]\n[model]\nn_embd=4",
            "c.ini:5: [model] n_embd: found the key of c.ini:2 under another name, expected either n_dim or n_embd",
        ),
        (
            "[model]\nn_layr=4",
            "c.ini:2: [model] n_layr: found an unknown key, expected a key of [model] (did you mean n_layer?)",
        ),
        (
            "[model]\nn_atn_layer=4",
            "c.ini:2: [model] n_atn_layer: found an unknown key, expected a key of [model] (did you mean n_attn_layers?)",
        ),
        (
            "[model]\ntemperature=4",
            "c.ini:2: [model] temperature: found an unknown key, expected one of n_layer, n_embd, lr_max, betas, bias, file or color",
        ),
    ] {
        assert_eq!(section(text).expect_err(text).to_string(), message);
    }
}

#[test]
fn unknown_sections_are_refused() {
    let check = |text: &str| parse(text).expect("valid").check_sections(&["model", "train"]);
    assert!(check("[model]\n[TRAIN]\n").is_ok());
    let message = |text| check(text).expect_err("unknown").to_string();
    assert_eq!(
        message("[model]\n[modle]"),
        "c.ini:2: [modle]: found an unknown section, expected model or train (did you mean model?)"
    );
    assert_eq!(
        message("[optimizer]"),
        "c.ini:1: [optimizer]: found an unknown section, expected model or train"
    );
    let mut ini = parse("").expect("valid");
    ini.set("trian.x=1").expect("well formed");
    let message = ini.check_sections(&["model", "train"]).expect_err("unknown").to_string();
    assert!(message.starts_with("--set: [trian]: found an unknown section"), "{message}");
}

#[test]
fn the_last_override_wins_under_any_name() {
    let mut ini = parse("[model]\nn_dim = 4").expect("valid");
    ini.set("model.n_embd = 5").expect("well formed");
    ini.set("MODEL.n_dim=6").expect("well formed");
    ini.set("model.file=a=b.c").expect("well formed");
    let s = ini.section("model", KEYS).expect("valid");
    assert_eq!(s.usize("n_embd", 0, 1..=9).expect("in range"), 6);
    assert_eq!(s.string("file", "").expect("there"), "a=b.c");
    assert!(s.uses_alias("n_embd") && !s.uses_alias("file"));
    let error = s.usize("n_embd", 0, 7..=9).expect_err("out of range").to_string();
    assert_eq!(error, "--set: [model] n_dim: found 6, expected a whole number from 7 to 9");
    for bad in ["", "n_layer=4", "model.n_layer", ".n_layer=4", "model.=4", "=", "."] {
        let error = ini.set(bad).expect_err(bad).to_string();
        let expected = "expected section.key=value, such as model.n_layer=6";
        assert_eq!(error, format!("--set: found {}, {expected}", shown(bad)));
    }
}

/// What a reader says of a value, without the place.
fn complaint<T: std::fmt::Debug>(value: &str, read: impl Fn(&Section) -> Result<T>) -> String {
    let s = section(&format!("[model]\nlr_max={value}\nn_layer={value}\nbetas={value}\n"))
        .expect("valid");
    let message = read(&s).expect_err(value).to_string();
    message.split_once("found ").expect("every message has it").1.to_owned()
}

#[test]
fn whole_numbers_are_digits() {
    let read = |s: &Section| s.usize("n_layer", 0, 1..=1024);
    for bad in ["0", "1025", "-1", "+1", "4.0", "1e3", "0x10", "99999999999999999999999", "inf"] {
        let expected = "expected a whole number from 1 to 1024";
        assert_eq!(complaint(bad, read), format!("{}, {expected}", shown(bad)));
    }
    for bad in ["", "four", "4 4", "_4", "4_", "4__4", "٤"] {
        let expected = "expected a whole number from 1 to 1024";
        assert_eq!(complaint(bad, read), format!("{}, {expected}", shown(bad)));
    }
    let s = section("[model]\nn_layer=18_446_744_073_709_551_615").expect("valid");
    assert_eq!(s.u64("n_layer", 0).expect("fits"), u64::MAX);
    assert_eq!(
        complaint("18446744073709551616", |s| s.u64("n_layer", 0)),
        "18446744073709551616, expected a whole number from 0 to 18446744073709551615"
    );
}

#[test]
fn numbers_are_finite_and_in_range() {
    let s = section("[model]\nlr_max=1e-3").expect("valid");
    assert_eq!(s.f64("lr_max", 0.0, 1e-3..=1e-3).expect("in range"), 1e-3);
    assert_eq!(s.f64("bias", 7.0, 0.0..).expect("default"), 7.0);
    for bad in ["nan", "NaN", "inf", "-inf", "1e999", "0,5", "1e", "", "--1"] {
        let message = complaint(bad, |s| s.f64("lr_max", 0.0, ..));
        assert_eq!(message, format!("{}, expected a number", shown(bad)));
    }
    let text = |range: (Bound<f64>, Bound<f64>)| complaint("-9", |s| s.f64("lr_max", 0.0, range));
    use Bound::{Excluded, Included, Unbounded};
    for (range, expected) in [
        ((Included(0.0), Included(1e12)), "a number from 0 to 1e12"),
        ((Included(1e-5), Excluded(1.0)), "a number from 1e-5 and below 1"),
        ((Excluded(0.0), Included(1.0)), "a number above 0 and up to 1"),
        ((Excluded(0.0), Excluded(1.0)), "a number above 0 and below 1"),
        ((Included(0.0), Unbounded), "a number of at least 0"),
        ((Excluded(0.0), Unbounded), "a number above 0"),
        ((Unbounded, Included(-10.0)), "a number up to -10"),
        ((Unbounded, Excluded(-10.5)), "a number below -10.5"),
    ] {
        assert_eq!(text(range), format!("-9, expected {expected}"));
    }
}

#[test]
fn lists_with_and_without_brackets() {
    let read = |s: &Section| s.f64_list("betas", [0.0; 2], 0.0..1.0);
    for good in ["0.9, 0.95", "[0.9,0.95]", "[ 9e-1 , .95 ]"] {
        let s = section(&format!("[model]\nbetas={good}")).expect("valid");
        assert_eq!(read(&s).expect(good), [0.9, 0.95]);
    }
    for bad in
        ["0.9", "0.9, 0.95, 0.99", "[0.9, 0.95", "0.9, 0.95]", "0.9 0.95", "", "0.9,", "0.9, 1"]
    {
        let expected = "2 numbers with commas between them, each from 0 and below 1";
        assert_eq!(complaint(bad, read), format!("{}, expected {expected}", shown(bad)));
    }
}

#[test]
fn booleans_and_choices_in_any_case() {
    for (good, value) in [("true", true), ("No", false), ("ON", true), ("0", false)] {
        let s = section(&format!("[model]\nbias={good}")).expect("valid");
        assert_eq!(s.bool("bias", !value).expect(good), value);
    }
    let s = section("[model]\nbias=ture\ncolor=redd\nfile=x").expect("valid");
    assert_eq!(
        s.bool("bias", false).expect_err("bad").to_string(),
        "c.ini:2: [model] bias: found \"ture\", expected true or false (did you mean true?)"
    );
    let colors = [("red", 1), ("crimson", 1), ("blue", 2)];
    assert_eq!(
        s.one_of("color", &colors, 1).expect_err("bad").to_string(),
        "c.ini:3: [model] color: found \"redd\", expected red or blue (did you mean red?)"
    );
    assert_eq!(
        s.one_of("file", &colors, 1).expect_err("bad").to_string(),
        "c.ini:4: [model] file: found \"x\", expected red or blue"
    );
    assert_eq!(s.one_of("betas", &colors, 2).expect("default"), 2);
}

#[test]
fn absent_keys_name_the_file_alone() {
    let s = section("[model]\nfile=").expect("valid");
    let message = s.require("n_layer", "a number").expect_err("absent").to_string();
    assert_eq!(message, "c.ini: [model] n_layer: found nothing, expected a number");
    let message = s.string("file", "x").expect_err("empty").to_string();
    assert_eq!(message, "c.ini:2: [model] file: found nothing, expected a value");
    assert_eq!(s.string("color", "x").expect("default"), "x");
}

#[test]
fn a_part_leaves_other_keys_alone() {
    let ini = parse("[model]\nn_dim=4\nwhatever=1").expect("valid");
    let s = ini.section_part("model", &KEYS[1..2]).expect("known keys");
    assert_eq!(s.usize("n_embd", 0, 1..=9).expect("in range"), 4);
}

#[test]
fn suggestions_are_near_or_absent() {
    let keys = ["n_head", "n_kv_head", "rope", "none", "f16"];
    for (found, expected) in [
        ("n_haed", Some("n_head")),
        ("N_HEAD", Some("n_head")),
        ("nkv_head", Some("n_kv_head")),
        ("ropes", Some("rope")),
        ("fp16", Some("f16")),
        ("xy", None),
        ("", None),
        ("positional", None),
    ] {
        assert_eq!(nearest(found, keys), expected, "{found}");
    }
    assert_eq!(nearest(&"n".repeat(100_000), keys), None);
}

#[test]
fn unreadable_files_are_named() {
    let missing = Ini::read(Path::new("/nonexistent/c.ini")).expect_err("missing").to_string();
    assert!(missing.starts_with("cannot read configuration file /nonexistent/c.ini: "));
}
