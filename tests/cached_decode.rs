//! Decoding with the cache against recomputing: the same bits at every position, on every
//! instruction set, and past the context.

use std::ops::ControlFlow;
use std::sync::Arc;

use teeny_runtime::cpu::Isa;
use teeny_runtime::{
    Batch, Cpu, CpuOptions, Dtype, Ffn, GenerateOptions, KvDtype, Model, ModelConfig, Norm,
    Overflow, PositionalEncoding, Sampler, Session, generate,
};
use teeny_tests::allocator::allocations_of;
use teeny_tests::{RandomModel, describe, every_kind, every_option, random_tokens, small};

fn session(model: &Arc<Model<Cpu>>) -> Session {
    Session::new(model, Overflow::Slide).expect("enough memory")
}

/// Bits, so that NaN equals itself and -0 differs from 0.
fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|l| l.to_bits()).collect()
}

#[test]
fn decode_equals_full_recompute_at_every_position() {
    for config in [every_kind(), every_option()].concat() {
        let file = RandomModel::new(&config, Dtype::F32, 3);
        let model = file.load(Cpu::new());
        let tokens = random_tokens(config.max_seq_len, config.vocab_size, 4);
        let mut cached = session(&model);
        for n in 1..=tokens.len() {
            let decoded = bits(cached.decode(tokens[n - 1]).expect("in the vocabulary"));
            let recomputed =
                bits(session(&model).prefill(&tokens[..n]).expect("in the vocabulary"));
            assert_eq!(decoded, recomputed, "{} at {n}", describe(&config));
        }
    }
}

/// Several times the context, in pieces of every size, whatever the encoding.
#[test]
fn any_split_into_pieces_gives_the_same_bits_past_the_context() {
    for positional_encoding in PositionalEncoding::ALL {
        for max_seq_len in [1, 2, 3, 24, 70] {
            let config = ModelConfig {
                max_seq_len,
                ..small(*positional_encoding, Norm::LayerNorm, Ffn::Swiglu)
            };
            let file = RandomModel::new(&config, Dtype::F32, 5);
            let model = file.load(Cpu::new());
            let tokens = random_tokens(3 * max_seq_len + 150, config.vocab_size, 6);
            let mut one_by_one = session(&model);
            let expected: Vec<_> = tokens
                .iter()
                .map(|token| bits(one_by_one.decode(*token).expect("in the vocabulary")))
                .collect();
            for piece in [2, 7, 64, 65, 100, tokens.len()] {
                let mut pieces = session(&model);
                let mut fed = 0;
                for piece in tokens.chunks(piece) {
                    fed += piece.len();
                    let found = bits(pieces.prefill(piece).expect("in the vocabulary"));
                    let name = positional_encoding.name();
                    assert_eq!(found, expected[fed - 1], "{name} context {max_seq_len} at {fed}");
                }
            }
        }
    }
}

/// A ring of relative positions keeps exactly the window: with one layer, what lies before the
/// window has no way to reach the logits, and what lies in it does.
#[test]
fn the_window_is_exactly_the_context() {
    let relative = [PositionalEncoding::Rope, PositionalEncoding::Alibi, PositionalEncoding::None];
    for positional_encoding in relative {
        let config =
            ModelConfig { n_layer: 1, ..small(positional_encoding, Norm::RmsNorm, Ffn::Gelu) };
        let file = RandomModel::new(&config, Dtype::F32, 7);
        let model = file.load(Cpu::new());
        let window = config.max_seq_len;
        for n in [window, window + 1, 4 * window + 3] {
            let tokens = random_tokens(n, config.vocab_size, 8);
            let expected = bits(session(&model).prefill(&tokens).expect("in the vocabulary"));
            let changed_at = |at: usize| {
                let mut changed = tokens.clone();
                changed[at] = (changed[at] + 1) % config.vocab_size as u32;
                bits(session(&model).prefill(&changed).expect("in the vocabulary"))
            };
            assert_ne!(changed_at(n - window), expected, "the oldest token of the window counts");
            if n > window {
                assert_eq!(changed_at(n - window - 1), expected, "the one before it does not");
            }
        }
    }
}

/// Absolute encodings forget down to half the context, then count on from there.
#[test]
fn absolute_encodings_restart_from_the_newest_half() {
    let absolute = [
        PositionalEncoding::Learned,
        PositionalEncoding::Sinusoidal,
        PositionalEncoding::LearnedSinusoidal,
    ];
    for positional_encoding in absolute {
        let config = small(positional_encoding, Norm::LayerNorm, Ffn::Classic);
        let file = RandomModel::new(&config, Dtype::F32, 9);
        let model = file.load(Cpu::new());
        let full = config.max_seq_len;
        let tokens = random_tokens(full + 1, config.vocab_size, 10);
        let found = bits(session(&model).prefill(&tokens).expect("in the vocabulary"));
        let newest = &tokens[full - full / 2..];
        assert_eq!(newest.len(), full / 2 + 1);
        let expected = bits(session(&model).prefill(newest).expect("in the vocabulary"));
        assert_eq!(found, expected, "{}", positional_encoding.name());
    }
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    for dtype in Dtype::ALL {
        for config in [every_kind(), every_option()].concat() {
            let file = RandomModel::new(&config, *dtype, 11);
            let tokens = random_tokens(40, config.vocab_size, 12);
            let logits = |isa| {
                let mut session = session(&file.load(Cpu::with_isa(isa)));
                bits(session.prefill(&tokens).expect("in the vocabulary"))
            };
            let expected = logits(Isa::SCALAR);
            for isa in Isa::available() {
                let name = isa.name();
                assert_eq!(logits(isa), expected, "{name} {} {}", dtype.name(), describe(&config));
            }
        }
    }
}

/// A model large enough that operations are split, of sizes that no group of rows and no block divides.
fn wide() -> ModelConfig {
    ModelConfig {
        vocab_size: 203,
        n_layer: 2,
        n_head: 6,
        n_kv_head: 3,
        n_embd: 120,
        head_dim: 20,
        ffn_dim: 300,
        max_seq_len: 150,
        tie_embeddings: true,
        ..small(PositionalEncoding::Rope, Norm::RmsNorm, Ffn::Swiglu)
    }
}

fn options(threads: usize, kv_dtype: KvDtype) -> CpuOptions {
    CpuOptions { threads, kv_dtype, fast: false }
}

/// The specification on one thread, token by token, against every instruction set, number of threads and
/// way of feeding, for each kind of weights and of keys and values, past the context too.
#[test]
fn threads_batches_and_pieces_give_the_same_bits() {
    let config = wide();
    let tokens = random_tokens(175, config.vocab_size, 22);
    for dtype in Dtype::ALL {
        let file = RandomModel::new(&config, *dtype, 21);
        // The storage of keys and values has nothing to do with that of the weights.
        let kv_dtypes = if *dtype == Dtype::Q8 { KvDtype::ALL } else { &[KvDtype::F32] };
        for kv_dtype in kv_dtypes {
            let load = |isa, threads| {
                let cpu = Cpu::with_isa(isa).and_options(options(threads, *kv_dtype));
                file.load(cpu.expect("few threads"))
            };
            let mut reference = session(&load(Isa::SCALAR, 1));
            let expected: Vec<_> = tokens
                .iter()
                .map(|token| bits(reference.decode(*token).expect("in the vocabulary")))
                .collect();
            for (isa, threads) in Isa::available().into_iter().flat_map(|isa| {
                let threads: &[usize] = if isa == Isa::detect() { &[1, 2, 3, 8] } else { &[2] };
                threads.iter().map(move |threads| (isa, *threads))
            }) {
                let name = format!(
                    "{} {} {} threads, keys and values {}",
                    isa.name(),
                    dtype.name(),
                    threads,
                    kv_dtype.name()
                );
                let model = load(isa, threads);
                let mut each = session(&model);
                each.prefill_each(&tokens, &mut |i, logits| {
                    assert_eq!(bits(logits), expected[i], "prompt, {name} at {i}");
                })
                .expect("in the vocabulary");
                // Sessions that are at different places, together.
                let starts = [1, 63, 64, 65, 149, 165];
                let mut sessions: Vec<Session> = starts.iter().map(|_| session(&model)).collect();
                for (session, start) in sessions.iter_mut().zip(starts) {
                    let found = bits(session.prefill(&tokens[..start]).expect("in the vocabulary"));
                    assert_eq!(found, expected[start - 1], "pieces, {name} at {start}");
                }
                let mut batch = Batch::new(&model);
                for step in 0..10 {
                    let at = |i: usize| starts[i] + step;
                    let mut entries: Vec<_> = (sessions.iter_mut().enumerate())
                        .map(|(i, session)| (session, tokens[at(i)]))
                        .collect();
                    batch.decode(&mut entries).expect("in the vocabulary");
                    for (i, session) in sessions.iter().enumerate() {
                        let place = at(i);
                        assert_eq!(
                            bits(session.logits()),
                            expected[place],
                            "batch, {name} at {place}"
                        );
                    }
                }
            }
        }
    }
}

/// Keys and values in fewer bits change the logits a little, and take less memory.
#[test]
fn smaller_keys_and_values_are_close() {
    let config = wide();
    let file = RandomModel::new(&config, Dtype::F32, 23);
    let tokens = random_tokens(100, config.vocab_size, 24);
    let run = |kv_dtype| {
        let mut session =
            session(&file.load(Cpu::with_options(options(1, kv_dtype)).expect("one thread")));
        let logits = session.prefill(&tokens).expect("in the vocabulary").to_vec();
        (logits, session.kv_bytes().0)
    };
    let (exact, bytes) = run(KvDtype::F32);
    for (kv_dtype, tolerance, share) in [(KvDtype::F16, 2e-3, 0.51), (KvDtype::Q8, 2e-2, 0.28)] {
        let (logits, smaller) = run(kv_dtype);
        let error = exact.iter().zip(&logits).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
        let size = exact.iter().map(|a| a.powi(2)).sum::<f32>();
        let error = (error / size).sqrt();
        assert!(error > 0.0 && error < tolerance, "{}: {error}", kv_dtype.name());
        assert!((smaller as f64) < bytes as f64 * share, "{smaller} of {bytes}");
    }
}

#[test]
fn too_many_threads_are_refused() {
    let message = Cpu::with_options(options(257, KvDtype::F32)).expect_err("too many").to_string();
    assert_eq!(message, "threads: found 257, expected 0 to 256");
}

#[test]
fn stop_and_error_refuse_the_token_that_does_not_fit() {
    for positional_encoding in PositionalEncoding::ALL {
        let config = small(*positional_encoding, Norm::LayerNorm, Ffn::Swiglu);
        let file = RandomModel::new(&config, Dtype::F32, 13);
        let model = file.load(Cpu::new());
        for overflow in [Overflow::Stop, Overflow::Error] {
            let mut session = Session::new(&model, overflow).expect("enough memory");
            let tokens = random_tokens(config.max_seq_len, config.vocab_size, 14);
            let message = session.prefill(&[&tokens[..], &[0]].concat()).expect_err("one too many");
            assert_eq!(
                message.to_string(),
                "context full: 25 tokens do not fit in max_seq_len = 24"
            );
            let full = bits(session.prefill(&tokens).expect("it fits exactly"));
            assert_eq!(session.room(), Some(0));
            session.decode(0).expect_err("no room");
            assert_eq!(bits(session.logits()), full, "a refused token changes nothing");
            session.reset();
            assert_eq!(session.room(), Some(config.max_seq_len));
            session.decode(0).expect("room again");
        }
    }
}

#[test]
fn tokens_outside_the_vocabulary_are_refused() {
    let file = RandomModel::new(&every_kind()[0], Dtype::F32, 15);
    let mut session = session(&file.load(Cpu::new()));
    let message = session.prefill(&[1, 29]).expect_err("29 entries").to_string();
    assert_eq!(message, "token: found 29, expected an id below vocab_size = 29");
    assert!(session.prefill(&[]).is_err());
    assert_eq!(session.n_tokens(), 0);
}

/// After `reserve`, neither prompt nor tokens allocate, far past the context too.
#[test]
fn decoding_allocates_nothing() {
    for positional_encoding in PositionalEncoding::ALL {
        let config = small(*positional_encoding, Norm::LayerNorm, Ffn::Swiglu);
        for (dtype, kv_dtype) in
            [(Dtype::Bf16, KvDtype::F32), (Dtype::Q8, KvDtype::Q8), (Dtype::Q4, KvDtype::F16)]
        {
            let file = RandomModel::new(&config, dtype, 16);
            let cpu = Cpu::with_options(options(2, kv_dtype)).expect("two threads");
            let mut session = session(&file.load(cpu));
            let tokens = random_tokens(300, config.vocab_size, 17);
            session.reserve(tokens.len()).expect("enough memory");
            let ((), calls) = allocations_of(|| {
                session.prefill(&tokens[..30]).expect("in the vocabulary");
                for token in &tokens[30..] {
                    session.decode(*token).expect("in the vocabulary");
                }
            });
            assert_eq!(calls, 0, "{} {}", positional_encoding.name(), dtype.name());
        }
    }
}

/// What generating allocates does not grow with the number of tokens.
#[test]
fn generating_allocates_nothing_per_token() {
    let config = small(PositionalEncoding::Rope, Norm::LayerNorm, Ffn::Swiglu);
    let file = RandomModel::new(&config, Dtype::F32, 18);
    let model = file.load(Cpu::new());
    let calls = |max_tokens| {
        let mut session = session(&model);
        let mut sampler = Sampler::new(Default::default()).expect("the defaults");
        let options = GenerateOptions {
            max_tokens,
            stop: vec!["never\n".into()],
            ..GenerateOptions::default()
        };
        let mut text = |_: &str| ControlFlow::Continue(());
        let (done, calls) =
            allocations_of(|| generate(&mut session, &mut sampler, &[1, 2], &options, &mut text));
        assert_eq!(done.expect("usable logits").tokens, max_tokens);
        calls
    };
    assert_eq!(calls(100), calls(1000));
}
