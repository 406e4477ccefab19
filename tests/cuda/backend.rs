//! The CUDA backend on an emulated GPU, from the driver's functions down to the kernels: against the CPU
//! backend, whose oracle is PyTorch (`tests/parity.rs`), on every configuration; and its ways to fail.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use teeny_cuda_tests::{Emulator, TARGETS, emulated_driver};
use teeny_runtime::backend::Backend;
use teeny_runtime::{
    Batch, BatchEntry, Cpu, Cuda, Dtype, Error, Ffn, GenerateOptions, Model, ModelConfig, Norm,
    Overflow, PositionalEncoding, Sampler, SamplerOptions, Session, TextStream, generate,
};
use teeny_tests::{RandomModel, describe, every_kind, every_option, random_tokens, small};

/// The driver, with a fault in it if this process is run to find that fault.
fn driver() -> PathBuf {
    static DRIVER: OnceLock<PathBuf> = OnceLock::new();
    let driver = || match std::env::var_os("TEENY_EMULATED_DRIVER") {
        Some(path) => path.into(),
        None => emulated_driver(&[]),
    };
    DRIVER.get_or_init(driver).clone()
}

fn emulator() -> Emulator {
    Emulator::load(&driver())
}

fn session<B: Backend>(model: &Arc<Model<B>>) -> Session<B> {
    Session::new(model, Overflow::Slide).expect("enough memory")
}

/// The largest difference, and the largest number.
fn difference(found: &[f32], expected: &[f32]) -> (f32, f32) {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).fold((0.0, 0.0), |(worst, size): (f32, f32), (a, b)| {
        // A NaN must not hide in a maximum.
        let distance = if a.is_nan() || b.is_nan() { f32::INFINITY } else { (a - b).abs() };
        (worst.max(distance), size.max(b.abs()))
    })
}

#[track_caller]
fn assert_close(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    let (worst, size) = difference(found, expected);
    assert!(worst <= tolerance * size.max(1.0), "{what}: off by {worst}, numbers up to {size}");
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Kernels that sum in f32.
const F32: f32 = 2e-5;
/// Products on tensor cores, of operands split into two bf16.
const SPLIT: f32 = 2e-4;

#[test]
fn every_configuration_decodes_as_on_the_cpu() {
    let emulator = emulator();
    for (i, config) in [every_kind(), every_option()].concat().iter().enumerate() {
        let dtype = Dtype::ALL[i % Dtype::ALL.len()];
        emulator.set("capability", u64::from(TARGETS[i / 3 % TARGETS.len()]));
        let file = RandomModel::new(config, dtype, 41);
        let mut cpu = session(&file.load(Cpu::new()));
        let mut cuda = session(&file.load(Cuda::new(0).expect("an emulated device")));
        // Past the context of 24.
        for (pos, token) in random_tokens(31, config.vocab_size, 42).into_iter().enumerate() {
            let what = format!("{} {} at {pos}", dtype.name(), describe(config));
            let expected = cpu.decode(token).expect("in the vocabulary");
            assert_close(cuda.decode(token).expect("a device"), expected, F32, &what);
            assert_close(cuda.hidden(), cpu.hidden(), F32, &what);
        }
    }
    assert_eq!(emulator.alive(), "");
}

/// Prompts in pieces: up to eight rows, more, many; past the context several times, so that the ring is
/// overwritten, on every target.
#[test]
fn prompts_in_pieces_of_any_size_agree_with_the_cpu() {
    let emulator = emulator();
    for (i, encoding) in PositionalEncoding::ALL.iter().enumerate() {
        let config = ModelConfig {
            max_seq_len: 70,
            n_head: 4,
            n_kv_head: 2,
            n_embd: [40, 64, 132, 256, 392, 48][i % 6],
            ..small(*encoding, Norm::LayerNorm, Ffn::Swiglu)
        };
        emulator.set("capability", u64::from(TARGETS[i % TARGETS.len()]));
        let file = RandomModel::new(&config, Dtype::ALL[i % 3], 43);
        let tokens = random_tokens(330, config.vocab_size, 44);
        let cuda = file.load(Cuda::new(0).expect("an emulated device"));
        let mut cpu = session(&file.load(Cpu::new()));
        let mut expected = Vec::new();
        cpu.prefill_each(&tokens, &mut |_, logits| expected.push(logits.to_vec()))
            .expect("in the vocabulary");
        for piece in [2, 7, 9, 70, 101, 330] {
            let mut cuda = session(&cuda);
            let mut fed = 0;
            for piece in tokens.chunks(piece) {
                fed += piece.len();
                let found = cuda.prefill(piece).expect("a device");
                let what = format!("{} pieces at {fed}", describe(&config));
                assert_close(found, &expected[fed - 1], SPLIT, &what);
            }
        }
        let mut cuda = session(&cuda);
        cuda.prefill_each(&tokens, &mut |at, logits| {
            assert_close(
                logits,
                &expected[at],
                SPLIT,
                &format!("{} each, {at}", describe(&config)),
            );
        })
        .expect("a device");
    }
    assert_eq!(emulator.alive(), "");
}

/// Wide models, whose norms do not fit in shared memory and whose sums several warps share; long contexts,
/// whose attention is split; heads from 16 to 128.
#[test]
fn large_shapes_agree_with_the_cpu() {
    let emulator = emulator();
    let base = small(PositionalEncoding::Rope, Norm::RmsNorm, Ffn::Swiglu);
    let shapes = [
        ModelConfig {
            n_embd: 1600,
            n_head: 100,
            n_kv_head: 4,
            n_layer: 1,
            ffn_dim: 40,
            ..base.clone()
        },
        ModelConfig {
            n_embd: 512,
            n_head: 4,
            n_kv_head: 2,
            n_layer: 1,
            ffn_dim: 2000,
            ..base.clone()
        },
        ModelConfig { max_seq_len: 3000, n_layer: 1, ..base.clone() },
        ModelConfig {
            positional_encoding: PositionalEncoding::Alibi,
            n_embd: 192,
            n_head: 2,
            n_kv_head: 1,
            max_seq_len: 300,
            ..base
        },
    ];
    for (config, dtype) in shapes.iter().zip([Dtype::F32, Dtype::Bf16, Dtype::F16, Dtype::Bf16]) {
        let file = RandomModel::new(config, dtype, 45);
        let tokens = random_tokens(400, config.vocab_size, 46);
        let mut cpu = session(&file.load(Cpu::new()));
        let mut cuda = session(&file.load(Cuda::new(0).expect("an emulated device")));
        for piece in tokens.chunks(390) {
            let expected = cpu.prefill(piece).expect("in the vocabulary");
            assert_close(
                cuda.prefill(piece).expect("a device"),
                expected,
                SPLIT,
                &describe(config),
            );
        }
        for rows in [1, 3, 8, 1] {
            let more = random_tokens(rows, config.vocab_size, 47);
            let expected = cpu.prefill(&more).expect("in the vocabulary");
            assert_close(
                cuda.prefill(&more).expect("a device"),
                expected,
                SPLIT,
                &describe(config),
            );
        }
    }
}

/// What a session returns does not depend on the order in which blocks and warps run.
#[test]
fn the_schedule_changes_nothing() {
    let emulator = emulator();
    let config = small(PositionalEncoding::Alibi, Norm::LayerNorm, Ffn::Gelu);
    let file = RandomModel::new(&config, Dtype::F32, 48);
    let tokens = random_tokens(100, config.vocab_size, 49);
    let mut first = None;
    for seed in 1..6 {
        emulator.set("seed", seed);
        let mut session = session(&file.load(Cuda::new(0).expect("an emulated device")));
        session.prefill(&tokens[..60]).expect("a device");
        let mut found = Vec::new();
        for token in &tokens[60..] {
            found.push(bits(session.decode(*token).expect("a device")));
        }
        assert_eq!(*first.get_or_insert_with(|| found.clone()), found, "seed {seed}");
    }
}

/// Sessions of different lengths in one pass: few, more than eight, and more than one pass takes.
#[test]
fn a_batch_gives_each_session_what_it_would_get_alone() {
    let emulator = emulator();
    for (encoding, n) in [
        (PositionalEncoding::Rope, 3),
        (PositionalEncoding::Learned, 13),
        (PositionalEncoding::Alibi, 300),
    ] {
        let config = ModelConfig { n_layer: 1, ..small(encoding, Norm::LayerNorm, Ffn::Swiglu) };
        let file = RandomModel::new(&config, Dtype::F32, 50);
        let (cpu, cuda) = (file.load(Cpu::new()), file.load(Cuda::new(0).expect("a device")));
        let mut alone: Vec<_> = (0..n).map(|_| session(&cpu)).collect();
        let mut together: Vec<_> = (0..n).map(|_| session(&cuda)).collect();
        for (i, (alone, together)) in alone.iter_mut().zip(&mut together).enumerate() {
            let prompt = random_tokens(1 + 5 * i % 40, config.vocab_size, 51 + i as u64);
            alone.prefill(&prompt).expect("in the vocabulary");
            together.prefill(&prompt).expect("a device");
        }
        let mut batch = Batch::new(&cuda);
        let mut cpu_batch = Batch::new(&cpu);
        for step in 0..if n > 100 { 2 } else { 30 } {
            let tokens = random_tokens(n, config.vocab_size, 52 + step);
            let mut entries: Vec<_> = together.iter_mut().zip(tokens.iter().copied()).collect();
            batch.decode(&mut entries).expect("a device");
            if step % 2 == 0 {
                let mut entries: Vec<_> = alone.iter_mut().zip(tokens.iter().copied()).collect();
                cpu_batch.decode(&mut entries).expect("in the vocabulary");
            } else {
                for (session, token) in alone.iter_mut().zip(&tokens) {
                    session.decode(*token).expect("in the vocabulary");
                }
            }
            for (i, (alone, together)) in alone.iter().zip(&together).enumerate() {
                let what = format!("{} session {i} step {step}", encoding.name());
                assert_eq!(together.n_tokens(), alone.n_tokens());
                assert_close(together.logits(), alone.logits(), SPLIT, &what);
                assert_close(together.hidden(), alone.hidden(), SPLIT, &what);
            }
        }
    }
    drop(emulator);
}

fn sampler(seed: u64, temperature: f32, top_k: usize) -> Sampler {
    let options = SamplerOptions { temperature, top_k, seed, ..SamplerOptions::default() };
    Sampler::new(options).expect("good options")
}

/// Text, and what the session and the sampler are afterwards.
#[derive(Debug, PartialEq)]
struct After {
    text: String,
    tokens: usize,
    n_tokens: usize,
    next: u32,
    logits: Vec<u32>,
}

/// Generates with the device drawing ahead, or with the host drawing every token.
fn generated(
    model: &Arc<Model<Cuda>>,
    ahead: bool,
    mut sampler: Sampler,
    options: &GenerateOptions,
    cancel_after: usize,
) -> After {
    let mut session = session(model);
    let prompt = random_tokens(7, model.config().vocab_size, 53);
    let mut text = String::new();
    let tokens = if ahead {
        let mut pieces = 0;
        let done = generate(&mut session, &mut sampler, &prompt, options, &mut |piece| {
            text += piece;
            pieces += 1;
            if pieces == cancel_after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        done.expect("a device").tokens
    } else {
        let mut stream = TextStream::new(prompt, options.clone());
        let mut pieces = 0;
        while let Some(piece) = stream.next(&mut session, &mut sampler).expect("a device") {
            text += &String::from_utf8_lossy(piece);
            pieces += 1;
            if pieces == cancel_after {
                break;
            }
        }
        pieces
    };
    let n_tokens = session.n_tokens();
    let logits = bits(session.logits());
    let next = sampler.sample(session.logits()).expect("logits");
    After { text, tokens, n_tokens, next, logits }
}

/// Drawing on the device gives the tokens that the host would draw, and whatever ends the text, the session is
/// as if nothing had run ahead.
#[test]
fn drawing_ahead_changes_nothing_but_the_time() {
    let emulator = emulator();
    for encoding in
        [PositionalEncoding::Rope, PositionalEncoding::Sinusoidal, PositionalEncoding::Learned]
    {
        let config = small(encoding, Norm::RmsNorm, Ffn::Swiglu);
        let file = RandomModel::new(&config, Dtype::F32, 54);
        let model = file.load(Cuda::new(0).expect("an emulated device"));
        for (i, (temperature, top_k)) in
            [(0.0, 0), (0.8, 5), (1.0, 0), (1.7, 40)].into_iter().enumerate()
        {
            let mut stop = Vec::new();
            for (feed_last, cancel_after) in [(false, 0), (true, 0), (false, 11), (true, 5)] {
                let options = GenerateOptions {
                    max_tokens: 60,
                    stop: stop.clone(),
                    feed_last,
                    ..GenerateOptions::default()
                };
                let sampler = || sampler(55 + i as u64, temperature, top_k);
                let before = emulator.launches("sample");
                let ahead = generated(&model, true, sampler(), &options, cancel_after);
                assert!(emulator.launches("sample") > before, "the device draws");
                let host = generated(&model, false, sampler(), &options, cancel_after);
                let what = format!("{} {temperature} {top_k} {stop:?}", encoding.name());
                // A piece may be more than one token where a stop text was held back.
                let tokens = if stop.is_empty() { host.tokens } else { ahead.tokens };
                assert_eq!(ahead, After { tokens, ..host }, "{what}");
                // The next round ends in the midst of this text.
                stop = vec![ahead.text.chars().skip(17).take(2).collect()];
            }
        }
    }
}

/// Many sessions, each with a sampler of its own, for many steps; against one after the other by the host.
#[test]
fn a_batch_draws_the_tokens_that_its_samplers_draw() {
    let emulator = emulator();
    for n in [1, 5, 20] {
        let config = small(PositionalEncoding::Rope, Norm::LayerNorm, Ffn::Classic);
        let file = RandomModel::new(&config, Dtype::Bf16, 56);
        let model = file.load(Cuda::new(0).expect("an emulated device"));
        let mut sessions: Vec<_> = (0..n).map(|_| session(&model)).collect();
        let mut samplers: Vec<_> = (0..n).map(|i| sampler(i as u64, 0.9, 7)).collect();
        let mut entries = Vec::new();
        for (i, (session, sampler)) in sessions.iter_mut().zip(&mut samplers).enumerate() {
            entries.push(BatchEntry { session, sampler, token: i as u32 });
        }
        let before = emulator.launches("sample");
        let drawn = Batch::new(&model).generate(&mut entries, 40).expect("a device");
        assert!(emulator.launches("sample") >= before + 40);
        for (i, entry) in entries.iter_mut().enumerate() {
            assert_eq!(entry.token, drawn[39 * n + i]);
        }
        // The same steps, drawn on the host from the same products.
        let mut again: Vec<_> = (0..n).map(|_| session(&model)).collect();
        let mut samplers_again: Vec<_> = (0..n).map(|i| sampler(i as u64, 0.9, 7)).collect();
        let mut tokens: Vec<u32> = (0..n as u32).collect();
        for step in 0..40 {
            let mut fed: Vec<_> = again.iter_mut().zip(tokens.iter().copied()).collect();
            Batch::new(&model).decode(&mut fed).expect("a device");
            for (i, (session, sampler)) in again.iter().zip(&mut samplers_again).enumerate() {
                tokens[i] = sampler.sample(session.logits()).expect("logits");
                assert_eq!(tokens[i], drawn[step * n + i], "session {i} of {n}, step {step}");
            }
        }
        for (a, b) in sessions.iter().zip(&again) {
            assert_eq!((a.n_tokens(), bits(a.logits())), (b.n_tokens(), bits(b.logits())));
        }
        for (a, b) in samplers.iter_mut().zip(&mut samplers_again) {
            assert_eq!(
                a.sample(&[0.0; 29]).expect("logits"),
                b.sample(&[0.0; 29]).expect("logits")
            );
        }
    }
}

#[test]
fn batches_refuse_what_they_cannot_feed() {
    let _emulator = emulator();
    let config = small(PositionalEncoding::Rope, Norm::LayerNorm, Ffn::Classic);
    let file = RandomModel::new(&config, Dtype::F32, 57);
    let model = file.load(Cuda::new(0).expect("an emulated device"));
    let other = file.load(Cuda::new(0).expect("an emulated device"));
    let mut batch = Batch::new(&model);
    let message = |result: Result<(), Error>| result.expect_err("refused").to_string();
    assert_eq!(message(batch.decode(&mut [])), "sessions: found none, expected at least one");
    let (mut one, mut two) = (session(&model), session(&other));
    assert_eq!(
        message(batch.decode(&mut [(&mut one, 1), (&mut two, 1)])),
        "session: found one of another model, expected sessions of the batch's model"
    );
    let mut two = session(&model);
    assert_eq!(
        message(batch.decode(&mut [(&mut one, 1), (&mut two, 29)])),
        "token: found 29, expected an id below vocab_size = 29"
    );
    let mut full = Session::new(&model, Overflow::Stop).expect("enough memory");
    full.prefill(&random_tokens(24, 29, 58)).expect("it fits");
    assert_eq!(
        message(batch.decode(&mut [(&mut one, 1), (&mut full, 1)])),
        "context full: 25 tokens do not fit in max_seq_len = 24"
    );
    assert_eq!((one.n_tokens(), full.n_tokens()), (0, 24));
}

/// Saved on one device and restored on the other, at any length; going back; forks.
#[test]
fn sessions_move_between_devices_and_go_back_and_fork() {
    let _emulator = emulator();
    for encoding in [PositionalEncoding::Rope, PositionalEncoding::Learned] {
        let config =
            ModelConfig { max_seq_len: 100, ..small(encoding, Norm::LayerNorm, Ffn::Swiglu) };
        let file = RandomModel::new(&config, Dtype::F32, 59);
        let (cpu, cuda) = (file.load(Cpu::new()), file.load(Cuda::new(0).expect("a device")));
        let tokens = random_tokens(700, config.vocab_size, 60);
        for n in [1, 63, 100, 163, 164, 165, 300, 640] {
            let what = format!("{} of {n}", encoding.name());
            let (mut on_cpu, mut on_cuda) = (session(&cpu), session(&cuda));
            on_cpu.prefill(&tokens[..n]).expect("in the vocabulary");
            on_cuda.prefill(&tokens[..n]).expect("a device");
            let (mut to_cuda, mut to_cpu) = (session(&cuda), session(&cpu));
            to_cuda.restore(&on_cpu.save().expect("enough memory")).expect("our own bytes");
            to_cpu.restore(&on_cuda.save().expect("enough memory")).expect("our own bytes");
            assert_eq!(bits(to_cuda.logits()), bits(on_cpu.logits()), "{what}");
            // Once more, and back where it came from, with all that the ring of the other can hold.
            let saved = to_cuda.save().expect("enough memory");
            assert_eq!(saved, on_cpu.save().expect("enough memory"), "{what}");
            let mut fork = on_cuda.fork().expect("enough memory");
            for token in &tokens[n..n + 40] {
                let expected = on_cpu.decode(*token).expect("in the vocabulary").to_vec();
                assert_close(to_cuda.decode(*token).expect("a device"), &expected, SPLIT, &what);
                assert_close(to_cpu.decode(*token).expect("a device"), &expected, SPLIT, &what);
                let own = bits(on_cuda.decode(*token).expect("a device"));
                assert_eq!(bits(fork.decode(*token).expect("a device")), own, "{what}");
            }
            for session in [&mut to_cuda, &mut fork] {
                let back = session.truncate_limit().max(n);
                session.truncate(back).expect("within the limit");
                on_cpu.truncate(back).expect("within the limit");
                assert_close(session.logits(), on_cpu.logits(), SPLIT, &what);
                let again = on_cpu.decode(3).expect("in the vocabulary").to_vec();
                assert_close(session.decode(3).expect("a device"), &again, SPLIT, &what);
            }
        }
    }
}

/// From the second step of a kind on a step is one graph, and no memory is allocated for a token.
#[test]
fn a_step_is_one_graph_and_allocates_nothing() {
    let emulator = emulator();
    let config = small(PositionalEncoding::Rope, Norm::RmsNorm, Ffn::Swiglu);
    let file = RandomModel::new(&config, Dtype::Bf16, 61);
    let model = file.load(Cuda::new(0).expect("an emulated device"));
    let mut session = session(&model);
    session.reserve(100).expect("enough memory");
    session.decode(1).expect("a device");
    session.decode(2).expect("a device");
    let counts = || {
        ["allocations", "pinned_allocations", "graph_launches", "copies"]
            .map(|name| emulator.get(name))
    };
    let before = counts();
    for token in 0..20 {
        session.decode(token).expect("a device");
    }
    let after = counts();
    // One copy brings the token, two bring logits and hidden state.
    assert_eq!([0, 0, 20, 60], std::array::from_fn(|i| after[i] - before[i]));
    assert_eq!(emulator.calls("cuLaunchKernel"), 0);
    drop((session, model));
    assert_eq!(emulator.alive(), "");
}

#[test]
fn without_a_usable_device_the_message_says_what_is_missing() {
    let emulator = emulator();
    let message = |index| match Cuda::new(index) {
        Ok(_) => panic!("it should have been refused"),
        Err(error) => error.to_string(),
    };
    emulator.set("devices", 0);
    assert_eq!(message(0), "device cuda:0: found no device, expected a device of this number");
    emulator.set("devices", 1);
    assert_eq!(
        message(1),
        "device cuda:1: found 1 device, cuda:0, expected a device of this number"
    );
    emulator.set("driver", 11_080);
    assert_eq!(
        message(0),
        "device cuda:0: found a driver for CUDA 11.8, expected one for CUDA 12.0 or newer: driver 525"
    );
    emulator.set("driver", 12_000);
    emulator.set("capability", 70);
    assert_eq!(
        message(0),
        "device cuda:0: found compute capability 7.0, expected 7.5 or newer (Turing)"
    );
    assert_eq!(emulator.alive(), "");
    // Newer devices than any that we have PTX for run the newest.
    emulator.set("capability", 121);
    Cuda::new(0).expect("a device of the future");
}

/// Whichever allocation fails: an error that names the memory, nothing leaks, and what was there goes on.
#[test]
fn out_of_memory_is_an_error_wherever_it_happens() {
    let emulator = emulator();
    let config = small(PositionalEncoding::Rope, Norm::LayerNorm, Ffn::Swiglu);
    let file = RandomModel::new(&config, Dtype::F32, 62);
    let tokens = random_tokens(200, config.vocab_size, 63);
    let run = || -> Result<Vec<u32>, Error> {
        let weights = teeny_runtime::Weights::map(&file.path())?;
        let model = Arc::new(Model::load(Cuda::new(0)?, &weights)?);
        let mut session = Session::new(&model, Overflow::Slide)?;
        session.prefill(&tokens)?;
        let mut fork = session.fork()?;
        fork.decode(1)?;
        Ok(bits(fork.logits()))
    };
    let expected = run().expect("enough memory");
    for function in ["cuMemAlloc_v2", "cuMemHostAlloc"] {
        emulator.reset();
        run().expect("enough memory");
        let n = emulator.calls(function);
        assert!(n > 0);
        for i in 1..=n {
            emulator.reset();
            emulator.fail(function, i, 2, false);
            let error = run().expect_err("one allocation was refused").to_string();
            assert!(error.starts_with("out of memory: cannot allocate"), "{error}");
            assert_eq!(emulator.alive(), "", "{function} {i}");
        }
    }
    // In a session that goes on: what fails leaves it as it was.
    emulator.reset();
    let model = file.load(Cuda::new(0).expect("an emulated device"));
    let mut session = session(&model);
    session.prefill(&tokens[..64]).expect("one page");
    let before = bits(session.logits());
    emulator.set("memory", emulator.get("live_bytes"));
    let error = session.decode(1).expect_err("a second page").to_string();
    assert!(error.contains("for keys and values in GPU memory"), "{error}");
    assert_eq!((session.n_tokens(), bits(session.logits())), (64, before));
    emulator.set("memory", 1 << 30);
    session.prefill(&tokens[64..]).expect("enough memory");
    let mut fork = session.fork().expect("enough memory");
    assert_close(fork.decode(1).expect("a device"), &floats(&expected), SPLIT, "after the failure");
}

fn floats(bits: &[u32]) -> Vec<f32> {
    bits.iter().map(|bits| f32::from_bits(*bits)).collect()
}

/// A device that is lost in any call: an error that names it, then the same from every other call, no end of
/// the process and no leak.
#[test]
fn a_lost_device_is_an_error_from_then_on() {
    const LAUNCH_FAILED: i32 = 719;
    let emulator = emulator();
    let config = small(PositionalEncoding::Alibi, Norm::LayerNorm, Ffn::Swiglu);
    let file = RandomModel::new(&config, Dtype::F32, 64);
    let run = |session: &mut Session<Cuda>| -> Result<(), Error> {
        session.prefill(&random_tokens(70, 29, 65))?;
        for token in 0..5 {
            session.decode(token)?;
        }
        let options = GenerateOptions { max_tokens: 20, ..GenerateOptions::default() };
        generate(session, &mut sampler(1, 0.8, 5), &[1], &options, &mut |_| {
            ControlFlow::Continue(())
        })?;
        session.save()?;
        session.fork()?.decode(1)?;
        Ok(())
    };
    let mut calls = 1;
    loop {
        emulator.reset();
        let model = file.load(Cuda::new(0).expect("an emulated device"));
        let mut session = session(&model);
        emulator.fail("*", calls, LAUNCH_FAILED, true);
        let result = run(&mut session);
        if emulator.get("lost") == 0 {
            result.expect("all calls were made");
            break;
        }
        let error = result.expect_err("the device was lost").to_string();
        assert!(error.starts_with("device cuda:0: cannot "), "{error}");
        let again = session.decode(1).expect_err("it is still lost").to_string();
        assert!(again.contains("CUDA_ERROR_LAUNCH_FAILED"), "{again}");
        let refused =
            Session::new(&model, Overflow::Slide).and_then(|mut s| s.decode(1).map(|_| ()));
        refused.expect_err("it is still lost");
        drop((session, model));
        assert_eq!(emulator.alive(), "", "lost in call {calls}");
        // Every call at the start, then some of the many.
        calls += 1 + calls / 20;
    }
    assert!(calls > 100, "{calls} calls");
}

/// Sessions of one model on several threads at the same time.
#[test]
fn threads_share_a_model() {
    let emulator = emulator();
    let config = small(PositionalEncoding::Rope, Norm::LayerNorm, Ffn::Swiglu);
    let file = RandomModel::new(&config, Dtype::F32, 66);
    let model = file.load(Cuda::new(0).expect("an emulated device"));
    let tokens = random_tokens(50, config.vocab_size, 67);
    let run = || {
        let mut session = session(&model);
        session.prefill(&tokens[..20]).expect("a device");
        for token in &tokens[20..] {
            session.decode(*token).expect("a device");
        }
        bits(session.logits())
    };
    let expected = run();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(run)).collect();
        for thread in threads {
            assert_eq!(thread.join().expect("no panic"), expected);
        }
    });
    drop(model);
    assert_eq!(emulator.alive(), "");
}
