//! Sessions against sessions fed from scratch: rollback, fork, cancelling, every logit. The oracle is
//! always plain prefill, which cached_decode.rs holds against recomputing and parity.rs against
//! PyTorch.

use std::ops::ControlFlow;
use std::sync::Arc;

use teeny_runtime::generate::TextStream;
use teeny_runtime::{
    Cpu, Dtype, EndReason, Error, Ffn, GenerateOptions, Model, ModelConfig, Norm, Overflow,
    PositionalEncoding, Sampler, SamplerOptions, Session, generate,
};
use teeny_tests::allocator::allocations_of;
use teeny_tests::{Random, RandomModel, random_tokens, small};

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn session(model: &Arc<Model<Cpu>>) -> Session {
    Session::new(model, Overflow::Slide).expect("enough memory")
}

/// Logits and hidden state after feeding these tokens at once.
fn fresh(model: &Arc<Model<Cpu>>, tokens: &[u32]) -> (Vec<u32>, Vec<u32>) {
    let mut session = session(model);
    if !tokens.is_empty() {
        session.prefill(tokens).expect("in the vocabulary");
    }
    (bits(session.logits()), bits(session.hidden()))
}

fn state(session: &Session) -> (Vec<u32>, Vec<u32>) {
    (bits(session.logits()), bits(session.hidden()))
}

/// A context of 24 with a ring of 128, and one that is a whole number of pages.
fn configs() -> impl Iterator<Item = ModelConfig> {
    PositionalEncoding::ALL.iter().flat_map(|encoding| {
        [24, 65].map(|max_seq_len| ModelConfig {
            max_seq_len,
            ..small(*encoding, Norm::LayerNorm, Ffn::Swiglu)
        })
    })
}

fn model(config: &ModelConfig) -> (RandomModel, Arc<Model<Cpu>>) {
    let file = RandomModel::new(config, Dtype::F32, 21);
    let model = file.load(Cpu::new());
    (file, model)
}

#[test]
fn truncating_is_never_having_gone_further() {
    for config in configs() {
        let name = config.positional_encoding.name();
        let (_file, model) = model(&config);
        let mut random = Random::new(22);
        let tokens = random_tokens(400, config.vocab_size, 23);
        let mut went_back = 0;
        let mut refused = 0;
        for _ in 0..40 {
            let mut session = session(&model);
            let mut fed: Vec<u32> = Vec::new();
            for _ in 0..6 {
                let more = &tokens[..1 + random.below(90)];
                session.prefill(more).expect("in the vocabulary");
                fed.extend(more);
                let to = random.below(fed.len() + 1);
                let limit = session.truncate_limit();
                let before = state(&session);
                match session.truncate(to) {
                    Ok(()) => {
                        went_back += 1;
                        fed.truncate(to);
                        assert!(to == 0 || to >= limit, "{name} {to} {limit}");
                    }
                    Err(error) => {
                        refused += 1;
                        assert!(to > 0 && to < limit, "{name} {to} {limit}");
                        assert!(error.to_string().contains(&format!("one from {limit} to")));
                        assert_eq!(state(&session), before);
                    }
                }
                assert_eq!(session.n_tokens(), fed.len());
                assert_eq!(state(&session), fresh(&model, &fed), "{name} back to {to}");
            }
        }
        assert!(went_back > 20 && refused > 5, "{name}: {went_back} {refused}");
        let mut session = session(&model);
        session.prefill(&tokens[..5]).expect("in the vocabulary");
        assert!(session.truncate(6).is_err());
    }
}

#[test]
fn forks_go_on_by_themselves_and_share_what_they_can() {
    for config in configs() {
        let name = config.positional_encoding.name();
        let (_file, model) = model(&config);
        for prompt_len in [1, 20, 63, 64, 100, 300] {
            let prompt = random_tokens(prompt_len, config.vocab_size, 24);
            let mut parent = session(&model);
            parent.prefill(&prompt).expect("in the vocabulary");
            let mut forks: Vec<Session> =
                (0..3).map(|_| parent.fork().expect("enough memory")).collect();
            let (bytes, shared) = parent.kv_bytes();
            assert_eq!(bytes, shared, "{name}: nothing is copied yet");
            for (i, fork) in forks.iter_mut().enumerate() {
                assert_eq!(state(fork), state(&parent));
                let own = random_tokens(70, config.vocab_size, 25 + i as u64);
                fork.prefill(&own[..3]).expect("in the vocabulary");
                if prompt_len == 100 && !absolute(&config) {
                    // Of the prompt's two pages the full one is still shared.
                    let (bytes, shared) = fork.kv_bytes();
                    assert_eq!(shared, bytes / 2, "{name}");
                }
                for token in &own[3..] {
                    fork.decode(*token).expect("in the vocabulary");
                }
                let all = [&prompt[..], &own].concat();
                assert_eq!(state(fork), fresh(&model, &all), "{name} {prompt_len}");
            }
            assert_eq!(state(&parent), fresh(&model, &prompt), "{name}: the parent is as it was");
            let next = random_tokens(1, config.vocab_size, 30);
            parent.decode(next[0]).expect("in the vocabulary");
            assert_eq!(state(&parent), fresh(&model, &[&prompt[..], &next].concat()));
        }
    }
}

fn absolute(config: &ModelConfig) -> bool {
    match config.positional_encoding {
        PositionalEncoding::None | PositionalEncoding::Alibi | PositionalEncoding::Rope => false,
        PositionalEncoding::Sinusoidal
        | PositionalEncoding::Learned
        | PositionalEncoding::LearnedSinusoidal => true,
    }
}

#[test]
fn prefill_each_gives_the_logits_of_every_token() {
    for config in configs() {
        let (_file, model) = model(&config);
        let tokens = random_tokens(150, config.vocab_size, 26);
        let mut one_by_one = session(&model);
        let expected: Vec<Vec<u32>> = tokens
            .iter()
            .map(|token| bits(one_by_one.decode(*token).expect("in the vocabulary")))
            .collect();
        for pieces in [vec![150], vec![1, 149], vec![30, 100, 20]] {
            let mut session = session(&model);
            let mut found = Vec::new();
            let mut at = 0;
            for len in pieces {
                session
                    .prefill_each(&tokens[at..at + len], &mut |i, logits| {
                        assert_eq!(i + at, found.len());
                        found.push(bits(logits));
                    })
                    .expect("in the vocabulary");
                at += len;
            }
            assert!(found == expected, "{}", config.positional_encoding.name());
            assert_eq!(state(&session), state(&one_by_one));
        }
    }
}

/// Cancels itself when it has seen so many tokens.
fn cancelled_after(session: &mut Session, tokens: &[u32], after: usize) -> Error {
    let flag = session.cancel_flag().clone();
    session
        .prefill_each(tokens, &mut |i, _| {
            if i + 1 == after {
                flag.cancel();
            }
        })
        .expect_err("cancelled")
}

#[test]
fn a_cancelled_prefill_has_fed_just_what_it_says() {
    for config in configs() {
        let name = config.positional_encoding.name();
        let (_file, model) = model(&config);
        let tokens = random_tokens(500, config.vocab_size, 27);
        for after in [1, 10, 70, 130, 200] {
            let mut session = session(&model);
            let error = cancelled_after(&mut session, &tokens, after);
            assert!(matches!(error, Error::Cancelled), "{error}");
            let fed = session.n_tokens();
            assert!(fed >= after && fed < tokens.len(), "{name} {after} {fed}");
            assert_eq!(state(&session), fresh(&model, &tokens[..fed]), "{name}");
            session.prefill(&tokens[fed..]).expect("noticed once only");
            assert_eq!(state(&session), fresh(&model, &tokens), "{name}");
        }
        // Asked for before: nothing is fed, and a restart that did not happen is made up for.
        let mut session = session(&model);
        session.prefill(&tokens[..20]).expect("in the vocabulary");
        session.cancel_flag().cancel();
        assert!(matches!(session.prefill(&tokens[20..]), Err(Error::Cancelled)));
        assert_eq!(session.n_tokens(), 20);
        assert_eq!(state(&session), fresh(&model, &tokens[..20]));
        let mut fork = session.fork().expect("enough memory");
        fork.truncate(7).expect("within the context");
        assert_eq!(state(&fork), fresh(&model, &tokens[..7]), "{name}");
        session.decode(tokens[20]).expect("in the vocabulary");
        assert_eq!(state(&session), fresh(&model, &tokens[..21]), "{name}");
        // Taken back, in both ways.
        session.cancel_flag().cancel();
        assert!(session.cancel_flag().take() && !session.cancel_flag().take());
        session.prefill(&tokens[21..]).expect("taken back");
        session.cancel_flag().cancel();
        session.reset();
        session.prefill(&tokens).expect("taken back");
        assert_eq!(state(&session), fresh(&model, &tokens), "{name}");
    }
}

fn drawn(model: &Arc<Model<Cpu>>, prompt: &[u32], max_tokens: usize) -> String {
    let mut sampler = Sampler::new(SamplerOptions::default()).expect("the defaults");
    let mut text = String::new();
    let options = GenerateOptions { max_tokens, ..GenerateOptions::default() };
    generate(&mut session(model), &mut sampler, prompt, &options, &mut |piece| {
        text.push_str(piece);
        ControlFlow::Continue(())
    })
    .expect("usable logits");
    text
}

#[test]
fn a_stream_gives_the_text_of_generate_and_leaves_the_session_with_it() {
    for config in configs() {
        let (_file, model) = model(&config);
        let prompt = random_tokens(5, config.vocab_size, 28);
        let expected = drawn(&model, &prompt, 90);
        let mut sampler = Sampler::new(SamplerOptions::default()).expect("the defaults");
        let mut one = session(&model);
        let mut text = String::new();
        let mut end = Vec::new();
        // In three goes: each goes on where the one before has ended.
        for (prompt, max_tokens) in [(&prompt[..], 30), (&[], 0), (&[], 60)] {
            let options =
                GenerateOptions { max_tokens, feed_last: true, ..GenerateOptions::default() };
            let mut stream = TextStream::new(prompt.to_vec(), options);
            while let Some(piece) = stream.next(&mut one, &mut sampler).expect("usable logits") {
                text.push_str(std::str::from_utf8(piece).expect("whole characters"));
                let so_far = model.tokenizer().encode(&text).expect("its own text");
                assert_eq!(one.n_tokens(), 5 + so_far.len(), "it holds what was handed out");
            }
            assert!(stream.next(&mut one, &mut sampler).expect("the end").is_none());
            end.push(stream.end_reason());
        }
        assert_eq!(text, expected);
        assert_eq!(end, [Some(EndReason::Length); 3]);
        let all = [&prompt[..], &model.tokenizer().encode(&text).expect("its own text")].concat();
        assert_eq!(state(&one), fresh(&model, &all));
    }
}

#[test]
fn a_stop_text_stays_in_the_session_and_cancelling_ends_the_stream() {
    let config = small(PositionalEncoding::Rope, Norm::LayerNorm, Ffn::Swiglu);
    let (_file, model) = model(&config);
    let text = drawn(&model, &[1, 2, 3], 60);
    let stop: String = text.chars().skip(40).take(3).collect();
    let at = text.find(&stop).expect("it is in it");
    let options = GenerateOptions {
        max_tokens: 60,
        stop: vec![stop.clone()],
        feed_last: true,
        ..GenerateOptions::default()
    };
    let mut sampler = Sampler::new(SamplerOptions::default()).expect("the defaults");
    let mut one = session(&model);
    let mut stream = TextStream::new(vec![1, 2, 3], options.clone());
    let mut found = Vec::new();
    while let Some(piece) = stream.next(&mut one, &mut sampler).expect("usable logits") {
        found.extend_from_slice(piece);
    }
    assert_eq!(String::from_utf8_lossy(&found), text[..at]);
    assert_eq!(stream.end_reason(), Some(EndReason::StopText));
    assert_eq!(one.n_tokens(), 3 + text[..at].chars().count() + 3);

    let mut sampler = Sampler::new(SamplerOptions::default()).expect("the defaults");
    let mut one = session(&model);
    let mut stream = TextStream::new(vec![1, 2, 3], options);
    assert!(stream.next(&mut one, &mut sampler).expect("usable logits").is_some());
    one.cancel_flag().cancel();
    assert!(stream.next(&mut one, &mut sampler).expect("no failure").is_none());
    assert_eq!(stream.end_reason(), Some(EndReason::Cancelled));
    assert!(!one.cancel_flag().take(), "it was noticed");

    let mut stream = TextStream::new(Vec::new(), GenerateOptions::default());
    let error = stream.next(&mut session(&model), &mut sampler).expect_err("nothing to go on from");
    assert!(error.to_string().starts_with("prompt: found no text"), "{error}");
    assert_eq!(stream.end_reason(), Some(EndReason::Failed));
}

/// Each session needs no activations of its own, and a fork no copy of the prompt.
#[test]
fn many_sessions_allocate_little() {
    let config = ModelConfig {
        max_seq_len: 256,
        ..small(PositionalEncoding::Rope, Norm::LayerNorm, Ffn::Swiglu)
    };
    let (_file, model) = model(&config);
    let mut parent = session(&model);
    parent.prefill(&random_tokens(200, config.vocab_size, 29)).expect("in the vocabulary");
    let (forks, calls) = allocations_of(|| {
        (0..20).map(|_| parent.fork().expect("enough memory")).collect::<Vec<_>>()
    });
    assert_eq!(forks.len(), 20);
    assert!(calls <= 20 * 8 + 10, "{calls}");
}
