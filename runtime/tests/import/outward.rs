//! Models of ours as folders of Hugging Face's: transformers opens them and gives the same logits.

use serde_json::Value;
use teeny_runtime::import::{ImportOptions, Source, write_hugging_face};
use teeny_runtime::{Dtype, Weights};

use super::{Case, TOLERANCE, folders, load, models, python, session, text};

const MODELS: [&str; 9] = [
    "llama-plain",
    "llama-tied-f16",
    "llama-bf16-biases",
    "llama-llama3-head-dim",
    "llama-linear",
    "llama-bytes",
    "llama-sentencepiece",
    "gguf-plain",
    "llama2c-v2",
];

#[test]
fn transformers_gives_our_logits_and_tokens() {
    let Some(root) = models() else { return };
    let (mut written, mut arguments) = (Vec::new(), vec!["open".to_owned()]);
    for name in MODELS {
        let folder = folders(name).into_iter().find(|path| path.ends_with(name)).expect("made");
        let case = Case::read(&folder);
        let weights = load(&case.open(), case.dtype);
        let output = root.join(format!("outward-{name}"));
        write_hugging_face(&weights, &output, None).expect("a folder that can be written");
        let tokens = weights.tokenizer().encode("HELLO WORLD, HOW ARE YOU?").expect("known text");
        let ids: Vec<String> = tokens.iter().map(u32::to_string).collect();
        arguments.extend([text(&output).to_owned(), ids.join(",")]);
        written.push((name, weights, tokens, output));
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let answers = python(&arguments).expect("it has made the models");
    assert_eq!(answers.lines().count(), MODELS.len(), "{answers}");
    for ((name, weights, tokens, output), answer) in written.into_iter().zip(answers.lines()) {
        let answer: Value = serde_json::from_str(answer).expect("JSON");
        let mut session = session(&weights);
        for (token, theirs) in tokens.iter().zip(answer["logits"].as_array().expect("a list")) {
            let ours = session.decode(*token).expect("room");
            let theirs = theirs.as_array().expect("a list");
            assert_eq!(ours.len(), theirs.len(), "{name}");
            for (ours, theirs) in ours.iter().zip(theirs) {
                let theirs = theirs.as_f64().expect("a number") as f32;
                let off = (ours - theirs).abs();
                assert!(off <= TOLERANCE * theirs.abs().max(1.0), "{name}: {ours} {theirs}");
            }
        }
        let text = weights.tokenizer().decode(&tokens).expect("its own tokens");
        assert_eq!(answer["text"].as_str().expect("a text").as_bytes(), text, "{name}");
        let again = answer["ids"].as_array().expect("a list").iter();
        let again: Vec<u32> = again.map(|id| id.as_u64().expect("an id") as u32).collect();
        assert_eq!(again, tokens, "{name}");
        // And back.
        let back = Source::open(&output, &ImportOptions::default()).expect("a Llama");
        let back = load(&back, None);
        assert_eq!(back.config(), weights.config(), "{name}");
        let encode = |weights: &Weights| weights.tokenizer().encode("HELLO WORLD").expect("known");
        assert_eq!(encode(&back), encode(&weights), "{name}");
    }
}

#[test]
fn what_llama_is_not_is_named() {
    let Some(root) = models() else { return };
    let folder = folders("gpt2-plain").remove(0);
    let weights = load(&Case::read(&folder).open(), None);
    let refused = |dtype| {
        let result = write_hugging_face(&weights, &root.join("outward-refused"), dtype);
        result.expect_err("GPT-2 is no Llama").to_string()
    };
    assert_eq!(
        refused(None),
        "model file: positional_encoding: found learned, expected rope, as Llama has it"
    );
    let folder = folders("llama-plain").remove(0);
    let weights = load(&Case::read(&folder).open(), None);
    let refused = |folder: &str, dtype| {
        let result = write_hugging_face(&weights, &root.join(folder), dtype);
        result.expect_err("it cannot be").to_string()
    };
    assert_eq!(
        refused("outward-refused", Some(Dtype::Q4)),
        "dtype: found q4, expected f32, f16 or bf16: transformers does not read these blocks"
    );
    assert!(refused("llama-plain", None).contains("a folder with something in it"));
}
