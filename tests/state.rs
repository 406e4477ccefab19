//! Saved sessions: restored ones go on bit for bit, and bytes that anybody may have made are refused.
//! The oracle is the session that was saved.

use std::sync::Arc;

use teeny_runtime::{
    Cpu, Dtype, Error, Ffn, Model, ModelConfig, Norm, Overflow, PositionalEncoding, Session,
};
use teeny_tests::allocator::peak_of;
use teeny_tests::{Random, RandomModel, random_tokens, small};
use xxhash_rust::xxh3::xxh3_64;

fn session(model: &Arc<Model<Cpu>>) -> Session {
    Session::new(model, Overflow::Slide).expect("enough memory")
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn state(session: &Session) -> (usize, Vec<u32>, Vec<u32>) {
    (session.n_tokens(), bits(session.logits()), bits(session.hidden()))
}

/// Both do the same from here on.
#[track_caller]
fn same_future(a: &mut Session, b: &mut Session, seed: u64) {
    assert_eq!(state(a), state(b));
    assert_eq!(a.truncate_limit(), b.truncate_limit());
    let vocab_size = a.model().config().vocab_size;
    if a.n_tokens() > 0 {
        let back = a.truncate_limit();
        let (mut a, mut b) = (a.fork().expect("memory"), b.fork().expect("memory"));
        a.truncate(back).expect("the limit");
        b.truncate(back).expect("the limit");
        assert_eq!(state(&a), state(&b));
    }
    for token in random_tokens(100, vocab_size, seed) {
        let expected = bits(a.decode(token).expect("in the vocabulary"));
        assert_eq!(bits(b.decode(token).expect("in the vocabulary")), expected);
    }
}

#[test]
fn a_restored_session_goes_on_as_the_saved_one() {
    for encoding in PositionalEncoding::ALL {
        for max_seq_len in [24, 65] {
            let config =
                ModelConfig { max_seq_len, ..small(*encoding, Norm::RmsNorm, Ffn::Swiglu) };
            // Heads wider than n_embd / n_head for every other one.
            let head_dim = if max_seq_len == 24 { config.head_dim } else { 14 };
            let config = ModelConfig { head_dim, ..config };
            let file = RandomModel::new(&config, Dtype::Bf16, 31);
            let model = file.load(Cpu::new());
            let again = file.load(Cpu::new());
            let tokens = random_tokens(400, config.vocab_size, 32);
            for (fed, back_to) in
                [(0, 0), (1, 1), (20, 20), (64, 30), (65, 65), (150, 149), (300, 300), (400, 390)]
            {
                let mut original = session(&model);
                if fed > 0 {
                    original.prefill(&tokens[..fed]).expect("in the vocabulary");
                }
                // What has left the context cannot come back.
                if back_to == 0 || back_to >= original.truncate_limit() {
                    original.truncate(back_to).expect("within the limit");
                }
                let saved = original.save().expect("enough memory");
                assert_eq!(saved.len(), original.saved_len());
                let mut restored = session(&again);
                restored.prefill(&tokens[..7]).expect("in the vocabulary");
                restored.restore(&saved).expect("a session of the same file");
                assert_eq!(restored.save().expect("enough memory"), saved);
                same_future(&mut original, &mut restored, 33);
            }
            // A restart that was cancelled is made up for after restoring too.
            let mut original = session(&model);
            original.prefill(&tokens[..20]).expect("in the vocabulary");
            original.cancel_flag().cancel();
            original.prefill(&tokens[..200]).expect_err("cancelled");
            let mut restored = session(&again);
            restored.restore(&original.save().expect("memory")).expect("its own");
            same_future(&mut original, &mut restored, 34);
        }
    }
}

fn one() -> (RandomModel, Arc<Model<Cpu>>) {
    let config = small(PositionalEncoding::Rope, Norm::LayerNorm, Ffn::Classic);
    let file = RandomModel::new(&config, Dtype::F32, 35);
    let model = file.load(Cpu::new());
    (file, model)
}

#[test]
fn files_are_written_whole_and_read_back() {
    let (file, model) = one();
    let path = file.path().with_file_name("bard.session");
    let mut original = session(&model);
    original.prefill(&[1, 2, 3]).expect("in the vocabulary");
    original.save_file(&path).expect("a temporary folder");
    original.prefill(&[4]).expect("in the vocabulary");
    original.save_file(&path).expect("it replaces the first");
    let mut restored = session(&model);
    restored.restore_file(&path).expect("its own");
    same_future(&mut original, &mut restored, 36);
    let entries = std::fs::read_dir(path.parent().expect("a folder")).expect("it is there");
    assert_eq!(entries.count(), 2, "the model and the session, no temporary file");
    let missing = restored.restore_file(&path.with_file_name("none")).expect_err("not there");
    assert!(missing.to_string().contains("cannot read saved session"), "{missing}");
}

#[test]
fn a_session_of_another_model_is_refused() {
    let (file, model) = one();
    let mut original = session(&model);
    original.prefill(&[1, 2, 3]).expect("in the vocabulary");
    let saved = original.save().expect("enough memory");
    let other = RandomModel::new(model.config(), Dtype::F32, 37).load(Cpu::new());
    let mut restored = session(&other);
    let error = restored.restore(&saved).expect_err("other weights");
    assert!(matches!(error, Error::OtherModel), "{error}");
    assert_eq!(restored.n_tokens(), 0);
    drop(file);
    // More tokens than a session that does not slide can have.
    original.prefill(&random_tokens(30, 29, 38)).expect("it slides");
    let mut strict = Session::new(&model, Overflow::Stop).expect("enough memory");
    strict.prefill(&[5]).expect("in the vocabulary");
    let error = strict.restore(&original.save().expect("memory")).expect_err("33 of 24");
    assert!(matches!(error, Error::ContextFull { .. }), "{error}");
    assert_eq!(strict.n_tokens(), 1);
}

#[test]
fn damaged_bytes_change_nothing() {
    let (_file, model) = one();
    let mut original = session(&model);
    original.prefill(&[1, 2, 3, 4, 5]).expect("in the vocabulary");
    let saved = original.save().expect("enough memory");
    let mut target = session(&model);
    target.prefill(&[7, 8]).expect("in the vocabulary");
    let before = state(&target);
    for len in 0..saved.len() {
        assert!(target.restore(&saved[..len]).is_err(), "cut at {len}");
    }
    for at in 0..saved.len() {
        let mut damaged = saved.clone();
        damaged[at] ^= 1 << (at % 8);
        assert!(target.restore(&damaged).is_err(), "byte {at}");
    }
    assert!(target.restore(&[&saved[..], &[0]].concat()).is_err());
    assert_eq!(state(&target), before);
}

/// Numbers that a checksum vouches for: whoever makes the bytes can make that too.
#[test]
fn forged_numbers_are_refused_and_allocate_no_more_than_the_bytes_justify() {
    for encoding in [PositionalEncoding::Rope, PositionalEncoding::Learned] {
        let config = small(encoding, Norm::LayerNorm, Ffn::Classic);
        let file = RandomModel::new(&config, Dtype::F32, 39);
        let model = file.load(Cpu::new());
        let mut original = session(&model);
        original.prefill(&random_tokens(60, 29, 40)).expect("in the vocabulary");
        let saved = original.save().expect("enough memory");
        let mut target = session(&model);
        let mut random = Random::new(41);
        let hostile = [
            0,
            1,
            2,
            23,
            24,
            25,
            60,
            61,
            127,
            128,
            1 << 20,
            1 << 40,
            u64::MAX / 4,
            u64::MAX / 2,
            u64::MAX - 3,
            u64::MAX,
        ];
        let mut restored = 0;
        for _ in 0..20_000 {
            let mut forged = saved.clone();
            for _ in 0..1 + random.below(3) {
                // The five numbers and the tokens after them.
                let at = 24 + 8 * random.below(8);
                let value = hostile[random.below(hostile.len())];
                forged[at..at + 8].copy_from_slice(&value.to_le_bytes());
            }
            if random.below(4) == 0 {
                forged.truncate(8 + random.below(forged.len() - 8));
            }
            let end = forged.len() - 8;
            let checksum = xxh3_64(&forged[..end]);
            forged[end..].copy_from_slice(&checksum.to_le_bytes());
            let (result, peak) = peak_of(|| target.restore(&forged));
            assert!(peak < 4 * saved.len() + (1 << 16), "{peak} for {} bytes", saved.len());
            if result.is_ok() {
                restored += 1;
                target.decode(3).expect("whatever it holds, it is a session");
                let limit = target.truncate_limit();
                target.truncate(limit).expect("the limit");
            }
        }
        // Some forgeries hit on numbers that are right.
        assert!(restored < 2_000, "{restored}");
    }
}
