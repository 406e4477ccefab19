//! Ways of loading a model: from a file, from memory of the program's own, converted, with a shorter
//! context. The oracle is the same model loaded in the plainest way.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use teeny_runtime::format::{self, tensor_specs};
use teeny_runtime::weights::TensorData;
use teeny_runtime::{
    Cpu, Dtype, Error, Ffn, LoadOptions, Model, ModelConfig, Norm, Overflow, PositionalEncoding,
    Session, Weights,
};
use teeny_tests::allocator::peak_of;
use teeny_tests::{RandomModel, describe, every_kind, random_tokens, resize, small, tokenizer};

fn go_on(_: f32) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// A model of several megabytes, so that loading it has a middle.
fn large() -> ModelConfig {
    let mut config = small(PositionalEncoding::Rope, Norm::RmsNorm, Ffn::Swiglu);
    resize(&mut config, 128, 4, 2);
    config.ffn_dim = 1024;
    config
}

fn session(weights: &Weights) -> Session<Cpu> {
    let model = Arc::new(Model::load(Cpu::new(), weights).expect("enough memory"));
    Session::new(&model, Overflow::Slide).expect("enough memory")
}

/// The bits of the logits after a prompt and after each of some further tokens.
fn logits(weights: &Weights) -> Vec<u32> {
    let mut session = session(weights);
    let tokens = random_tokens(60, weights.config().vocab_size, 1);
    let mut bits = Vec::new();
    let mut add = |logits: &[f32]| bits.extend(logits.iter().map(|l| l.to_bits()));
    add(session.prefill(&tokens[..7]).expect("valid tokens"));
    for token in &tokens[7..] {
        add(session.decode(*token).expect("a valid token"));
    }
    bits
}

/// The numbers of every tensor as they are stored.
fn stored(weights: &Weights) -> Vec<String> {
    tensor_specs(weights.config())
        .iter()
        .map(|spec| match weights.tensor(&spec.name).expect("there").data() {
            TensorData::F32(data) => format!("{data:?}"),
            TensorData::F16(data) => format!("{data:?}"),
            TensorData::Bf16(data) => format!("{data:?}"),
            TensorData::Q8(data) => format!("{data:?}"),
            TensorData::Q4(data) => format!("{data:?}"),
        })
        .collect()
}

// ---- memory of the program's own --------------------------------------------------------------

/// Bytes at a chosen distance from a multiple of 64, that count how often they are dropped.
struct Memory {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
    drops: Arc<AtomicUsize>,
}

impl Memory {
    fn new(contents: &[u8], misalignment: usize) -> (Box<Memory>, Arc<AtomicUsize>) {
        let mut bytes = vec![0; contents.len() + 128];
        let start = (64 - bytes.as_ptr() as usize % 64) + misalignment;
        bytes[start..start + contents.len()].copy_from_slice(contents);
        let drops = Arc::new(AtomicUsize::new(0));
        let len = contents.len();
        (Box::new(Memory { bytes, start, len, drops: Arc::clone(&drops) }), drops)
    }
}

impl AsRef<[u8]> for Memory {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.bytes.fill(0xFF);
        self.drops.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn memory_is_used_where_it_lies_or_copied() {
    for dtype in Dtype::ALL {
        let file = RandomModel::new(&every_kind()[0], *dtype, 1);
        let contents = std::fs::read(file.path()).expect("just written");
        let expected = logits(&Weights::map(&file.path()).expect("a file of our own"));
        for misalignment in [0, 4, 8, 60, 1, 2, 3, 6, 63] {
            let (memory, drops) = Memory::new(&contents, misalignment);
            let range = (*memory).as_ref().as_ptr_range();
            let (weights, owner) = Weights::from_owner(memory, &LoadOptions::default(), &mut go_on)
                .expect("a file of our own");
            let embedding = weights.tensor("model.embed_tokens.weight").expect("there");
            let address = match embedding.data() {
                TensorData::F32(data) => data.as_ptr().cast::<u8>(),
                TensorData::F16(data) => data.as_ptr().cast(),
                TensorData::Bf16(data) => data.as_ptr().cast(),
                TensorData::Q8(data) => data.q.as_ptr().cast(),
                TensorData::Q4(data) => data.q.as_ptr(),
            };
            let in_place = misalignment % 4 == 0;
            assert_eq!(range.contains(&address), in_place, "{misalignment}");
            assert_eq!(owner.is_none(), in_place);
            assert_eq!(drops.load(Ordering::Relaxed), 0);
            drop(owner);
            assert_eq!(drops.load(Ordering::Relaxed), usize::from(!in_place));
            assert_eq!(logits(&weights), expected, "{misalignment}");

            // The session is the last to need the memory.
            let mut session = session(&weights);
            drop((weights, embedding));
            assert_eq!(drops.load(Ordering::Relaxed), usize::from(!in_place));
            session.decode(0).expect("a valid token");
            drop(session);
            assert_eq!(drops.load(Ordering::Relaxed), 1);
        }
    }
}

#[test]
fn an_owner_is_dropped_once_whatever_happens() {
    let file = RandomModel::new(&every_kind()[0], Dtype::F32, 1);
    let contents = std::fs::read(file.path()).expect("just written");
    for misalignment in [0, 1] {
        let (memory, drops) = Memory::new(&contents[..contents.len() - 1], misalignment);
        assert!(Weights::from_owner(memory, &LoadOptions::default(), &mut go_on).is_err());
        assert_eq!(drops.load(Ordering::Relaxed), 1);

        let (memory, drops) = Memory::new(&contents, misalignment);
        let options = LoadOptions { dtype: Some(Dtype::Bf16), ..LoadOptions::default() };
        let (weights, owner) =
            Weights::from_owner(memory, &options, &mut go_on).expect("a file of our own");
        assert!(owner.is_some(), "converted weights need it no more");
        drop((weights, owner));
        assert_eq!(drops.load(Ordering::Relaxed), 1);

        // A conversion that has nothing to do copies nothing.
        let (memory, drops) = Memory::new(&contents, misalignment);
        let options = LoadOptions { dtype: Some(Dtype::F32), ..LoadOptions::default() };
        let (weights, owner) =
            Weights::from_owner(memory, &options, &mut go_on).expect("a file of our own");
        assert_eq!(owner.is_some(), misalignment == 1);
        drop((weights, owner));
        assert_eq!(drops.load(Ordering::Relaxed), 1);
    }
}

// ---- conversion -------------------------------------------------------------------------------

#[test]
fn conversion_to_f32_changes_no_logit() {
    for config in every_kind() {
        for dtype in [Dtype::Bf16, Dtype::F16] {
            let file = RandomModel::new(&config, dtype, 2);
            let weights = Weights::map(&file.path()).expect("a file of our own");
            let wide = weights.convert(Dtype::F32, &mut go_on).expect("enough memory");
            assert_eq!(logits(&wide), logits(&weights), "{}", describe(&config));
            assert!(wide.n_bytes() == 2 * weights.n_bytes());
            let again = wide.convert(dtype, &mut go_on).expect("enough memory");
            assert_eq!(stored(&again), stored(&weights), "there and back");
        }
    }
}

/// The oracle is the writer: the same values written in the other element type.
#[test]
fn conversion_rounds_as_the_writer_does() {
    for config in [every_kind().remove(6), large()] {
        let file = RandomModel::new(&config, Dtype::F32, 3);
        let weights = Weights::map(&file.path()).expect("a file of our own");
        for dtype in [Dtype::F16, Dtype::Bf16] {
            let written = file.path().with_file_name("other.safetensors");
            format::write_model(&written, &config, &tokenizer(29), &[], dtype, &mut |spec| {
                weights.tensor(&spec.name).expect("there").to_f32().expect("enough memory")
            })
            .expect("a folder that can be written");
            let expected = Weights::map(&written).expect("a file of our own");
            for map in [true, false] {
                let options = LoadOptions { map, dtype: Some(dtype), max_seq_len: None };
                let found =
                    Weights::load(&file.path(), &options, &mut go_on).expect("enough memory");
                assert_eq!(stored(&found), stored(&expected));
                assert_eq!(logits(&found), logits(&expected));
            }
        }
    }
}

#[test]
fn a_number_too_large_for_the_type_is_refused_by_name() {
    let config = &every_kind()[0];
    let file = RandomModel::new(config, Dtype::F32, 3);
    for (dtype, value, fits) in [
        (Dtype::F16, 65504.0, true),
        (Dtype::F16, -65520.0, false),
        (Dtype::Bf16, 65520.0, true),
        (Dtype::Bf16, f32::MAX, false),
        (Dtype::F16, f32::INFINITY, true),
    ] {
        let mut write = |spec: &format::TensorSpec| vec![value; spec.len()];
        format::write_model(&file.path(), config, &tokenizer(29), &[], Dtype::F32, &mut write)
            .expect("a folder that can be written");
        let weights = Weights::map(&file.path()).expect("a file of our own");
        let result = weights.convert(dtype, &mut go_on);
        assert_eq!(result.is_ok(), fits, "{value} as {dtype:?}");
        if let Err(error) = result {
            let message = error.to_string();
            assert!(message.contains(dtype.name()) && message.contains(".weight"), "{message}");
        }
    }
}

// ---- progress ---------------------------------------------------------------------------------

#[test]
fn progress_goes_from_0_to_1_and_can_stop_at_every_step() {
    let file = RandomModel::new(&large(), Dtype::F32, 4);
    let contents = std::fs::read(file.path()).expect("just written");
    let load = |options: &LoadOptions, way: usize, stop_at: usize| {
        let mut seen = Vec::new();
        let mut progress = |done: f32| {
            seen.push(done);
            if seen.len() > stop_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let result = match way {
            0 => Weights::load(&file.path(), options, &mut progress),
            _ => {
                let (memory, drops) = Memory::new(&contents, way - 1);
                let result = Weights::from_owner(memory, options, &mut progress);
                assert!(result.is_ok() || drops.load(Ordering::Relaxed) == 1);
                result.map(|(weights, _)| weights)
            }
        };
        (result, seen)
    };
    for (map, dtype, way, at_least) in [
        (true, None, 0, 2),
        (false, None, 0, 4),
        (true, Some(Dtype::F16), 0, 3),
        (false, Some(Dtype::F16), 0, 6),
        (true, Some(Dtype::F32), 0, 2),
        (true, None, 1, 2),
        (true, None, 2, 4),
        (true, Some(Dtype::F16), 2, 6),
    ] {
        let options = LoadOptions { map, dtype, max_seq_len: None };
        let (result, seen) = load(&options, way, usize::MAX);
        result.expect("a file of our own");
        assert!(seen.len() >= at_least, "{options:?}: {seen:?}");
        assert!(seen.is_sorted_by(|a, b| a < b), "{options:?}: {seen:?}");
        assert_eq!((seen[0], seen[seen.len() - 1]), (0.0, 1.0));
        for stop_at in 0..seen.len() {
            let (result, found) = load(&options, way, stop_at);
            assert!(matches!(result, Err(Error::Cancelled)), "{options:?} at {stop_at}");
            assert_eq!(found, seen[..=stop_at]);
        }
    }
}

// ---- a shorter context ------------------------------------------------------------------------

/// The oracle is a model with the same weights whose file says so, and whose table of positions, if
/// it has one, has no more rows.
#[test]
fn a_shorter_context_is_a_model_of_that_context() {
    for encoding in PositionalEncoding::ALL {
        let config = small(*encoding, Norm::LayerNorm, Ffn::Swiglu);
        let file = RandomModel::new(&config, Dtype::F32, 5);
        let whole = Weights::map(&file.path()).expect("a file of our own");
        for max_seq_len in [1, 2, 9, 23, 24] {
            let shorter = ModelConfig { max_seq_len, ..config.clone() };
            let path = file.path().with_file_name("shorter.safetensors");
            format::write_model(&path, &shorter, &tokenizer(29), &[], Dtype::F32, &mut |spec| {
                let values = whole.tensor(&spec.name).expect("there").to_f32();
                let mut values = values.expect("enough memory");
                values.truncate(spec.len());
                values
            })
            .expect("a folder that can be written");
            let expected = Weights::map(&path).expect("a file of our own");
            let options = LoadOptions { max_seq_len: Some(max_seq_len), ..LoadOptions::default() };
            let found =
                Weights::load(&file.path(), &options, &mut go_on).expect("a shorter context");
            assert_eq!(found.config(), expected.config());
            assert_eq!(found.n_params(), whole.n_params());
            assert!(logits(&found) == logits(&expected), "{} {max_seq_len}", encoding.name());
        }
        for max_seq_len in [0, 25, usize::MAX] {
            let options = LoadOptions { max_seq_len: Some(max_seq_len), ..LoadOptions::default() };
            let refused = Weights::load(&file.path(), &options, &mut go_on);
            let message = refused.expect_err("not 1 to 24").to_string();
            assert!(message.starts_with("max_seq_len"), "{message}");
        }
    }
}

// ---- fingerprint ------------------------------------------------------------------------------

#[test]
fn a_fingerprint_is_the_model_and_not_how_it_was_loaded() {
    let file = RandomModel::new(&every_kind()[0], Dtype::Bf16, 6);
    let contents = std::fs::read(file.path()).expect("just written");
    let own = Weights::map(&file.path()).expect("a file of our own");
    let fingerprint = own.fingerprint();
    let load = |options: LoadOptions| {
        Weights::load(&file.path(), &options, &mut go_on).expect("a file of our own").fingerprint()
    };
    let default = LoadOptions::default;
    let (memory, _) = Memory::new(&contents, 4);
    let (shared, _) = Weights::from_owner(memory, &default(), &mut go_on).expect("a file of ours");
    for same in [
        own.fingerprint(),
        load(LoadOptions { map: false, ..default() }),
        load(LoadOptions { dtype: Some(Dtype::Bf16), ..default() }),
        load(LoadOptions { max_seq_len: Some(24), ..default() }),
        Weights::from_bytes(&contents).expect("a file of our own").fingerprint(),
        shared.fingerprint(),
        Model::load(Cpu::new(), &own).expect("enough memory").fingerprint(),
    ] {
        assert_eq!(same, fingerprint);
    }
    let mut others = vec![
        fingerprint,
        load(LoadOptions { dtype: Some(Dtype::F32), ..default() }),
        load(LoadOptions { dtype: Some(Dtype::F16), ..default() }),
        load(LoadOptions { max_seq_len: Some(23), ..default() }),
    ];
    let data = 8 + u64::from_le_bytes(contents[..8].try_into().expect("8 bytes")) as usize;
    for at in [data, (data + contents.len()) / 2, contents.len() - 1] {
        let mut changed = contents.clone();
        changed[at] ^= 1;
        others.push(Weights::from_bytes(&changed).expect("still a model").fingerprint());
    }
    let n = others.len();
    others.sort_unstable();
    others.dedup();
    assert_eq!(others.len(), n);
}

// ---- cost -------------------------------------------------------------------------------------

#[test]
fn loading_allocates_no_more_than_it_must() {
    let file = RandomModel::new(&large(), Dtype::F32, 7);
    let contents = std::fs::read(file.path()).expect("just written");
    let small = 300_000;
    assert!(contents.len() > 3_000_000);
    let (_, mapped) = peak_of(|| Weights::map(&file.path()).expect("a file of our own"));
    assert!(mapped < small, "{mapped}");
    let (_, read) = peak_of(|| Weights::read(&file.path()).expect("a file of our own"));
    assert!(read < contents.len() + small, "{read}");
    let (_, copied) = peak_of(|| Weights::from_bytes(&contents).expect("a file of our own"));
    assert!(copied < contents.len() + small, "{copied}");
    let weights = Weights::map(&file.path()).expect("a file of our own");
    let (_, converted) = peak_of(|| weights.convert(Dtype::F16, &mut go_on).expect("it fits"));
    // A piece of a million numbers beside the result.
    assert!(converted < contents.len() / 2 + (4 << 20) + small, "{converted}");
}

/// Four gigabytes of zeros that the disk does not hold either: if loading looked at the tensors,
/// they would be in memory afterwards.
#[test]
#[cfg(target_os = "linux")]
fn loading_a_mapped_file_does_not_look_at_its_data() {
    let mut config = small(PositionalEncoding::Rope, Norm::RmsNorm, Ffn::Swiglu);
    resize(&mut config, 4096, 32, 32);
    (config.n_layer, config.ffn_dim) = (4, 16384);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("sparse.safetensors");
    write_sparse(&path, &config);
    let resident = || {
        let pages = std::fs::read_to_string("/proc/self/statm").expect("Linux");
        let pages = pages.split(' ').nth(1).expect("the second number").to_owned();
        pages.parse::<usize>().expect("a number") * 4096
    };
    let before = resident();
    let weights = Weights::map(&path).expect("a valid file");
    assert!(weights.n_bytes() > 4_000_000_000);
    let model = Model::load(Cpu::new(), &weights).expect("enough memory");
    let grown = resident().saturating_sub(before);
    assert!(grown < 200_000_000, "{grown} bytes");
    assert_eq!(model.n_params(), weights.n_params());
}

/// A model file whose tensors are a hole.
#[cfg(target_os = "linux")]
fn write_sparse(path: &Path, config: &ModelConfig) {
    let mut metadata = serde_json::Map::new();
    metadata.insert("format".into(), format::FORMAT.into());
    metadata.insert("format_version".into(), format::format_version(config, Dtype::F32).into());
    metadata.insert("tokenizer".into(), tokenizer(config.vocab_size).to_json().into());
    for (key, value) in config.to_metadata() {
        metadata.insert(key.into(), value.into());
    }
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), metadata.into());
    let mut end = 0;
    for spec in tensor_specs(config) {
        let start = end;
        end += 4 * spec.len();
        let info = serde_json::json!(
            {"dtype": "F32", "shape": spec.shape, "data_offsets": [start, end]}
        );
        header.insert(spec.name, info);
    }
    let mut header = serde_json::Value::from(header).to_string();
    header.push_str(&" ".repeat(64 - (8 + header.len()) % 64));
    let mut file = std::fs::File::create(path).expect("a folder that can be written");
    file.write_all(&(header.len() as u64).to_le_bytes()).expect("room for a header");
    file.write_all(header.as_bytes()).expect("room for a header");
    file.set_len((8 + header.len() + end) as u64).expect("a file system with holes");
}
