//! What the CUDA backend must do, the same on an emulated GPU (`backend.rs`) and on a real one (`gpu.rs`).
//! The oracle is the CPU backend, whose own is PyTorch (`tests/parity.rs`).

use std::ops::ControlFlow;
use std::sync::Arc;

use teeny_runtime::backend::Backend;
use teeny_runtime::{
    Batch, BatchEntry, Cpu, Cuda, Dtype, Ffn, GenerateOptions, Model, ModelConfig, Norm, Overflow,
    PositionalEncoding, Sampler, SamplerOptions, Session, TextStream, Weights, generate,
};
use teeny_tests::{LLAMA3, RandomModel, describe, every_kind, every_option, random_tokens, small};

/// Called with a number before each device is opened: an emulation may change what it is.
pub type OnDevice<'a> = &'a dyn Fn(usize);

/// A session that goes on without end.
pub fn session<B: Backend>(model: &Arc<Model<B>>) -> Session<B> {
    Session::new(model, Overflow::Slide).expect("enough memory")
}

/// The largest difference, and the largest number.
pub fn difference(found: &[f32], expected: &[f32]) -> (f32, f32) {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).fold((0.0, 0.0), |(worst, size): (f32, f32), (a, b)| {
        // A NaN must not hide in a maximum.
        let distance = if a.is_nan() || b.is_nan() { f32::INFINITY } else { (a - b).abs() };
        (worst.max(distance), size.max(b.abs()))
    })
}

/// Close, relative to the largest number, where that is above one.
#[track_caller]
pub fn assert_close(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    let (worst, size) = difference(found, expected);
    assert!(worst <= tolerance * size.max(1.0), "{what}: off by {worst}, numbers up to {size}");
}

/// So that a NaN equals itself.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Kernels that sum in f32.
pub const F32: f32 = 2e-5;
/// Products on tensor cores, of operands split into two bf16.
pub const SPLIT: f32 = 2e-4;

/// Element types that the kernels read.
const FLOATS: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

/// One token at a time, past the context.
pub fn every_configuration_decodes_as_on_the_cpu(on_device: OnDevice<'_>) {
    for (i, config) in [every_kind(), every_option()].concat().iter().enumerate() {
        let dtype = FLOATS[i % 3];
        on_device(i / 3);
        let file = RandomModel::new(config, dtype, 41);
        let mut cpu = session(&file.load(Cpu::new()));
        let mut cuda = session(&file.load(Cuda::new(0).expect("an emulated device")));
        // Every fourth past the context of 24.
        let n = if i % 4 == 0 { 27 } else { 6 };
        for (pos, token) in random_tokens(n, config.vocab_size, 42).into_iter().enumerate() {
            let what = format!("{} {} at {pos}", dtype.name(), describe(config));
            let expected = cpu.decode(token).expect("in the vocabulary");
            assert_close(cuda.decode(token).expect("a device"), expected, F32, &what);
            assert_close(cuda.hidden(), cpu.hidden(), F32, &what);
        }
    }
}

/// Matrices in blocks become f32 on the device: the same logits as from the same numbers in f32, bit for bit.
pub fn blocks_are_used_as_f32() {
    for (dtype, tie_embeddings) in [(Dtype::Q8, false), (Dtype::Q4, true)] {
        let config = small(PositionalEncoding::Learned, Norm::LayerNorm, Ffn::Swiglu);
        let config = ModelConfig { tie_embeddings, attention_bias: true, ..config };
        let file = RandomModel::new(&config, dtype, 39);
        let in_blocks = Weights::map(&file.path()).expect("a file of our own");
        let mut go_on = |_| ControlFlow::Continue(());
        let wide = in_blocks.convert(Dtype::F32, &mut go_on).expect("enough memory");
        let tokens = random_tokens(12, config.vocab_size, 40);
        let logits = |weights: &Weights| {
            let cuda = Cuda::new(0).expect("an emulated device");
            let model = Arc::new(Model::load(cuda, weights).expect("a device that can run it"));
            bits(session(&model).prefill(&tokens).expect("in the vocabulary"))
        };
        assert_eq!(logits(&in_blocks), logits(&wide), "{}", dtype.name());
        let cpu = Arc::new(Model::load(Cpu::new(), &wide).expect("enough memory"));
        let expected = session(&cpu).prefill(&tokens).expect("in the vocabulary").to_vec();
        let cuda = file.load(Cuda::new(0).expect("an emulated device"));
        let mut cuda = session(&cuda);
        let found = cuda.prefill(&tokens).expect("in the vocabulary");
        assert_close(found, &expected, SPLIT, dtype.name());
    }
}

/// The same model with the parts that came later: norms of queries and keys, ReLU squared, and logits within
/// a cap that bends them.
pub fn with_later_parts(config: ModelConfig) -> ModelConfig {
    ModelConfig { qk_norm: true, logit_softcap: 2.0, ffn: Ffn::Relu2, ..config }
}

/// Prompts in pieces: up to eight rows, more, many; past the context several times, so that the ring is
/// overwritten, on every target.
pub fn prompts_in_pieces_of_any_size_agree_with_the_cpu(on_device: OnDevice<'_>) {
    let later = [PositionalEncoding::None, PositionalEncoding::Rope, PositionalEncoding::Alibi];
    for (i, encoding) in PositionalEncoding::ALL.iter().chain(&later).enumerate() {
        let mut config = ModelConfig {
            max_seq_len: 70,
            n_head: 4,
            n_kv_head: 2,
            n_embd: [40, 64, 132, 256, 392, 48][i % 6],
            head_dim: [10, 24, 33, 64, 44, 12][i % 6],
            ..small(*encoding, Norm::LayerNorm, Ffn::Swiglu)
        };
        if i >= PositionalEncoding::ALL.len() {
            config = with_later_parts(config);
        }
        if i == 3 {
            config.ffn = Ffn::GeluTanh;
        }
        on_device(i);
        let file = RandomModel::new(&config, FLOATS[i % 3], 43);
        let tokens = random_tokens(210, config.vocab_size, 44);
        let cuda = file.load(Cuda::new(0).expect("an emulated device"));
        let mut cpu = session(&file.load(Cpu::new()));
        let mut expected = Vec::new();
        cpu.prefill_each(&tokens, &mut |_, logits| expected.push(logits.to_vec()))
            .expect("in the vocabulary");
        for piece in [9, 65, 210].into_iter().skip(i % 2) {
            let mut cuda = session(&cuda);
            let mut fed = 0;
            for piece in tokens.chunks(piece) {
                fed += piece.len();
                let found = cuda.prefill(piece).expect("a device");
                let what = format!("{} pieces at {fed}", describe(&config));
                assert_close(found, &expected[fed - 1], SPLIT, &what);
            }
        }
        if i % 2 == 0 {
            continue;
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
}

/// Wide models, whose norms do not fit in shared memory and whose sums several warps share; long contexts,
/// whose attention is split; heads from 16 to 264.
pub fn large_shapes_agree_with_the_cpu() {
    let base = small(PositionalEncoding::Rope, Norm::RmsNorm, Ffn::Swiglu);
    let shapes = [
        ModelConfig {
            n_embd: 1600,
            head_dim: 16,
            n_head: 100,
            n_kv_head: 4,
            n_layer: 1,
            ffn_dim: 40,
            ..base.clone()
        },
        ModelConfig {
            n_embd: 512,
            head_dim: 128,
            n_head: 4,
            n_kv_head: 2,
            n_layer: 1,
            ffn_dim: 2000,
            ..base.clone()
        },
        ModelConfig {
            max_seq_len: 3000,
            n_layer: 1,
            head_dim: 40,
            rope_scaling: Some(LLAMA3),
            ..base.clone()
        },
        // Heads wider than any that prompts have a kernel for.
        with_later_parts(ModelConfig {
            n_embd: 528,
            head_dim: 264,
            n_head: 2,
            n_kv_head: 1,
            n_layer: 1,
            ..base.clone()
        }),
        ModelConfig {
            positional_encoding: PositionalEncoding::Alibi,
            n_embd: 192,
            head_dim: 96,
            n_head: 2,
            n_kv_head: 1,
            max_seq_len: 300,
            ..base
        },
    ];
    let dtypes = [Dtype::F32, Dtype::Bf16, Dtype::F16, Dtype::F16, Dtype::Bf16];
    for ((config, dtype), n) in shapes.iter().zip(dtypes).zip([12, 12, 300, 40, 330]) {
        let file = RandomModel::new(config, dtype, 45);
        let tokens = random_tokens(n, config.vocab_size, 46);
        let mut cpu = session(&file.load(Cpu::new()));
        let mut cuda = session(&file.load(Cuda::new(0).expect("an emulated device")));
        for piece in tokens.chunks(320) {
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

/// Sessions of different lengths in one pass: few, more than eight, and more than one pass takes.
pub fn a_batch_gives_each_session_what_it_would_get_alone() {
    for (encoding, n, later) in [
        (PositionalEncoding::Rope, 3, false),
        (PositionalEncoding::Learned, 13, false),
        (PositionalEncoding::Alibi, 300, false),
        (PositionalEncoding::None, 5, true),
        (PositionalEncoding::Rope, 14, true),
    ] {
        let mut config =
            ModelConfig { n_layer: 1, ..small(encoding, Norm::LayerNorm, Ffn::Swiglu) };
        if later {
            config = with_later_parts(config);
        }
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
        for step in 0..if n > 100 { 2 } else { 26 } {
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
}

/// The usual chain, with these numbers.
pub fn sampler(seed: u64, temperature: f32, top_k: usize) -> Sampler {
    let options = SamplerOptions { temperature, top_k, seed, ..SamplerOptions::default() };
    Sampler::new(options).expect("good options")
}

/// Text, and what the session and the sampler are afterwards.
#[derive(Debug, PartialEq)]
pub struct After {
    text: String,
    tokens: usize,
    n_tokens: usize,
    next: u32,
    logits: Vec<u32>,
}

/// Generates with the device drawing ahead, or with the host drawing every token.
pub fn generated(
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
pub fn drawing_ahead_changes_nothing_but_the_time(draws: &dyn Fn() -> u64) {
    let encodings =
        [PositionalEncoding::Rope, PositionalEncoding::Sinusoidal, PositionalEncoding::Learned];
    let kinds = encodings.map(|encoding| small(encoding, Norm::RmsNorm, Ffn::Swiglu));
    let later = with_later_parts(kinds[0].clone());
    for (kind, config) in kinds.into_iter().chain([later]).enumerate() {
        let file = RandomModel::new(&config, Dtype::F32, 54);
        let model = file.load(Cuda::new(0).expect("an emulated device"));
        for (i, (temperature, top_k)) in
            [(0.0, 0), (0.8, 5), (1.0, 0), (1.7, 40)].into_iter().enumerate()
        {
            // All ways of drawing with the first kind of model, one with each of the others.
            if kind > 0 && i != kind {
                continue;
            }
            let mut stop = Vec::new();
            for (feed_last, cancel_after) in [(false, 0), (true, 0), (false, 11), (true, 5)] {
                let options = GenerateOptions {
                    max_tokens: 60,
                    stop: stop.clone(),
                    feed_last,
                    ..GenerateOptions::default()
                };
                let sampler = || sampler(55 + i as u64, temperature, top_k);
                let before = draws();
                let ahead = generated(&model, true, sampler(), &options, cancel_after);
                assert!(draws() > before, "the device draws");
                let host = generated(&model, false, sampler(), &options, cancel_after);
                let what = format!("{} {temperature} {top_k} {stop:?}", describe(&config));
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
pub fn a_batch_draws_the_tokens_that_its_samplers_draw(draws: &dyn Fn() -> u64) {
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
        let before = draws();
        let drawn = Batch::new(&model).generate(&mut entries, 40).expect("a device");
        assert!(draws() > before, "the device draws");
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

/// Saved on one device and restored on the other, at any length; going back; forks.
pub fn sessions_move_between_devices_and_go_back_and_fork() {
    for encoding in [PositionalEncoding::Rope, PositionalEncoding::Learned] {
        let config =
            ModelConfig { max_seq_len: 100, ..small(encoding, Norm::LayerNorm, Ffn::Swiglu) };
        let file = RandomModel::new(&config, Dtype::F32, 59);
        let (cpu, cuda) = (file.load(Cpu::new()), file.load(Cuda::new(0).expect("a device")));
        let tokens = random_tokens(370, config.vocab_size, 60);
        for n in [1, 100, 164, 165, 330] {
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
            for token in &tokens[n..n + 20] {
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

/// Sessions of one model on several threads at the same time.
pub fn threads_share_a_model() {
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
}
