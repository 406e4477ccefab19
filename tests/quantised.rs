//! Matrices in blocks of 8 and 4 bits: what is in the file is what FORMAT.md says, it is used where it
//! lies, and damaged files are refused. The oracle reads the file by the words of FORMAT.md.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use half::f16;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype as FileDtype, TensorView};
use teeny_runtime::format::{self, TensorSpec, tensor_specs};
use teeny_runtime::weights::TensorData;
use teeny_runtime::{
    Cpu, Dtype, Error, LoadOptions, Model, ModelConfig, Overflow, Sampler, Session, Weights,
};
use teeny_tests::allocator::peak_of;
use teeny_tests::{
    Random, RandomModel, describe, every_kind, every_option, header_len, random_tokens, resize,
    tokenizer, with_header,
};

const QUANTISED: [Dtype; 2] = [Dtype::Q8, Dtype::Q4];

fn go_on(_: f32) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn map(path: &Path) -> Weights {
    Weights::map(path).expect("a file of our own")
}

fn values(weights: &Weights, name: &str) -> Vec<f32> {
    weights.tensor(name).expect("there").to_f32().expect("enough memory")
}

fn logits(weights: &Weights) -> Vec<f32> {
    let model = Arc::new(Model::load(Cpu::new(), weights).expect("enough memory"));
    let mut session = Session::new(&model, Overflow::Slide).expect("enough memory");
    let tokens = random_tokens(9, weights.config().vocab_size, 1);
    session.prefill(&tokens).expect("valid tokens").to_vec()
}

/// A matrix read from the file by another reader, number by number, as FORMAT.md has it.
fn as_format_md_says(file: &SafeTensors<'_>, spec: &TensorSpec) -> Vec<f32> {
    let q = file.tensor(&spec.name).expect("there");
    let scales = file.tensor(&format!("{}.scale", spec.name)).expect("beside it");
    let (rows, columns) = (spec.shape[0], spec.shape[1]);
    let (groups, blocks) = (rows.div_ceil(16), columns.div_ceil(32));
    assert_eq!(scales.dtype(), FileDtype::F16);
    let scale = |at: usize| f16::from_le_bytes([scales.data()[2 * at], scales.data()[2 * at + 1]]);
    let mut values = Vec::new();
    for row in 0..rows {
        for column in 0..columns {
            let (block, lane) = (row / 16 * blocks + column / 32, row % 16);
            let (piece, rest) = (column % 32 / 4, column % 4);
            values.push(if q.dtype() == FileDtype::I8 {
                assert_eq!(q.shape(), [groups, blocks, 8, 16, 4]);
                assert_eq!(scales.shape(), [groups, blocks, 16]);
                let q = q.data()[((block * 8 + piece) * 16 + lane) * 4 + rest] as i8;
                scale(block * 16 + lane).to_f32() * f32::from(q)
            } else {
                assert_eq!(q.dtype(), FileDtype::U8);
                assert_eq!(q.shape(), [groups, blocks, 4, 16, 4]);
                assert_eq!(scales.shape(), [groups, blocks, 2, 16]);
                let byte = q.data()[((block * 4 + piece / 2) * 16 + lane) * 4 + rest];
                let q = if piece % 2 == 0 { byte & 15 } else { byte >> 4 };
                let minimum = scale((block * 2 + 1) * 16 + lane).to_f32();
                scale(block * 2 * 16 + lane).to_f32() * f32::from(q) + minimum
            });
        }
    }
    values
}

#[test]
fn files_are_what_format_md_says_for_every_configuration() {
    for (i, config) in [every_kind(), every_option()].concat().iter().enumerate() {
        let dtype = QUANTISED[i % 2];
        let model = RandomModel::new(config, dtype, 1);
        let weights = map(&model.path());
        let version = format::format_version(config, Dtype::F32).max("3");
        assert_eq!(weights.metadata()["format_version"], version);
        assert_eq!(weights.dtype(), Some(dtype));
        assert_eq!(weights.n_params(), format::n_params(config));
        assert_eq!(weights.n_bytes(), format::n_bytes(config, dtype));
        let bytes = std::fs::read(model.path()).expect("just written");
        assert_eq!(weights.n_bytes(), bytes.len() - 8 - header_len(&bytes));
        let file = SafeTensors::deserialize(&bytes).expect("valid");
        for spec in tensor_specs(config) {
            let tensor = weights.tensor(&spec.name).expect("there");
            assert_eq!(tensor.shape(), spec.shape);
            let vocabulary = spec.name.contains("embed_tokens") || spec.name.contains("lm_head");
            let expected = match (spec.shape.len(), spec.name.contains("embed_positions")) {
                (2, false) if vocabulary => Dtype::Q8,
                (2, false) => dtype,
                _ => Dtype::F32,
            };
            assert_eq!(tensor.dtype(), expected, "{} {}", spec.name, describe(config));
            if tensor.dtype().is_quantised() {
                let read = values(&weights, &spec.name);
                assert_eq!(read, as_format_md_says(&file, &spec), "{}", spec.name);
            }
        }
    }
}

/// Sizes that end in the middle of groups and blocks.
fn odd() -> ModelConfig {
    let mut config = every_kind().remove(0);
    resize(&mut config, 66, 3, 1);
    (config.n_layer, config.ffn_dim, config.vocab_size) = (1, 50, 21);
    config
}

#[test]
fn data_is_aligned_and_what_is_missing_to_whole_blocks_is_zero() {
    for dtype in QUANTISED {
        let model = RandomModel::new(&odd(), dtype, 2);
        let weights = map(&model.path());
        for spec in tensor_specs(&odd()).iter().filter(|spec| spec.shape.len() == 2) {
            let tensor = weights.tensor(&spec.name).expect("there");
            let (rows, columns) = (spec.shape[0], spec.shape[1]);
            let mut row = vec![0.0; columns.next_multiple_of(32)];
            let missing = rows..rows.next_multiple_of(16);
            match tensor.data() {
                TensorData::Q8(data) => {
                    assert!((data.q.as_ptr() as usize).is_multiple_of(64));
                    data.read_row(0, 0, &mut row);
                    assert!(row[columns..].iter().all(|w| *w == 0.0));
                    for r in missing {
                        data.read_row(r, 0, &mut row);
                        assert!(row.iter().all(|w| *w == 0.0));
                    }
                }
                TensorData::Q4(mut data) => {
                    assert!((data.q.as_ptr() as usize).is_multiple_of(64));
                    for r in missing {
                        data.read_row(r, 0, &mut row);
                        assert!(row.iter().all(|w| *w == 0.0));
                    }
                    // Scales and minima of 1 show the numbers themselves.
                    let ones = vec![f16::ONE; data.scales.len()];
                    data.scales = &ones;
                    data.read_row(0, 0, &mut row);
                    assert!(row[columns..].iter().all(|q| *q == 1.0));
                }
                TensorData::F32(_) | TensorData::F16(_) | TensorData::Bf16(_) => {
                    panic!("{} is in blocks", spec.name)
                }
            }
        }
    }
}

// ---- conversion -------------------------------------------------------------------------------

/// The bytes of every tensor and of its scales.
fn stored(path: &Path) -> HashMap<String, Vec<u8>> {
    let bytes = std::fs::read(path).expect("just written");
    let file = SafeTensors::deserialize(&bytes).expect("valid");
    file.tensors().into_iter().map(|(name, view)| (name, view.data().to_vec())).collect()
}

/// Written at once, converted in memory, converted from file to file: the same numbers. And from those
/// to f32 and f16, and back.
#[test]
fn every_way_to_quantise_gives_the_same_numbers() {
    for config in [every_kind().remove(9), odd(), large()] {
        let original = RandomModel::new(&config, Dtype::F32, 3);
        let weights = map(&original.path());
        let other = original.path().with_file_name("other.safetensors");
        let third = original.path().with_file_name("third.safetensors");
        for dtype in QUANTISED {
            let mut source = |spec: &TensorSpec| values(&weights, &spec.name);
            let vocabulary = tokenizer(config.vocab_size);
            format::write_model(&other, &config, &vocabulary, &[], dtype, &mut source)
                .expect("a folder that can be written");
            let written = map(&other);
            weights.write(&third, dtype).expect("a folder that can be written");
            assert!(stored(&other) == stored(&third));
            let in_memory = weights.convert(dtype, &mut go_on).expect("enough memory");
            let options = LoadOptions { dtype: Some(dtype), map: false, max_seq_len: None };
            let loaded = Weights::load(&original.path(), &options, &mut go_on).expect("as well");
            for spec in tensor_specs(&config) {
                let expected = values(&written, &spec.name);
                assert!(values(&in_memory, &spec.name) == expected, "{}", spec.name);
                assert!(values(&loaded, &spec.name) == expected, "{}", spec.name);
            }
            assert_eq!(in_memory.n_bytes(), written.n_bytes());
            assert_eq!(logits(&in_memory), logits(&written));

            let wide = written.convert(Dtype::F32, &mut go_on).expect("enough memory");
            assert_eq!(wide.dtype(), Some(Dtype::F32));
            // What has the type already is not rounded again.
            written.write(&third, dtype).expect("a folder that can be written");
            assert!(std::fs::read(&third).expect("there") == std::fs::read(&other).expect("there"));
            let again = written.convert(dtype, &mut go_on).expect("enough memory");
            for spec in tensor_specs(&config) {
                assert!(values(&wide, &spec.name) == values(&written, &spec.name), "{}", spec.name);
                assert!(
                    values(&again, &spec.name) == values(&written, &spec.name),
                    "{}",
                    spec.name
                );
            }
        }
    }
}

fn large() -> ModelConfig {
    let mut config = every_kind().remove(0);
    // More than one piece of a million numbers, that ends within a group.
    resize(&mut config, 300, 3, 3);
    (config.n_layer, config.ffn_dim) = (1, 4001);
    config
}

#[test]
fn logits_stay_near() {
    for config in every_kind().iter().step_by(3) {
        let original = RandomModel::new(config, Dtype::F32, 4);
        let weights = map(&original.path());
        let expected = logits(&weights);
        let largest = expected.iter().fold(0.0f32, |largest, l| largest.max(l.abs()));
        for (dtype, allowed) in [(Dtype::Q8, 0.03), (Dtype::Q4, 0.4)] {
            let quantised = weights.convert(dtype, &mut go_on).expect("enough memory");
            for (found, expected) in logits(&quantised).iter().zip(&expected) {
                let off = (found - expected).abs() / largest;
                assert!(off < allowed, "{} {off} {}", dtype.name(), describe(config));
            }
        }
    }
}

#[test]
fn numbers_that_blocks_cannot_hold_are_refused_by_name() {
    let config = odd();
    let original = RandomModel::new(&config, Dtype::F32, 5);
    let path = original.path().with_file_name("wrong.safetensors");
    let vocabulary = tokenizer(config.vocab_size);
    let wrong_name = "model.layers.0.mlp.up_proj.weight";
    for (value, fits) in [
        (f32::NAN, [false, false]),
        (f32::INFINITY, [false, false]),
        (1e7, [false, false]),
        (70_000.0, [true, false]),
        (60_000.0, [true, true]),
    ] {
        let mut source = |spec: &TensorSpec| {
            let mut values = vec![0.5; spec.len()];
            if spec.name == wrong_name {
                values[spec.len() / 2] = value;
                // A whole block, so that the minimum is as large.
                values[spec.len() - spec.shape[1]..].fill(value);
            }
            values
        };
        format::write_model(&path, &config, &vocabulary, &[], Dtype::F32, &mut source)
            .expect("f32 holds it");
        let weights = map(&path);
        for (dtype, fits) in QUANTISED.into_iter().zip(fits) {
            let target = original.path();
            let before = std::fs::read(&target).expect("there");
            for result in [
                weights.convert(dtype, &mut go_on).map(|_| ()),
                weights.write(&target, dtype),
                format::write_model(&target, &config, &vocabulary, &[], dtype, &mut source),
            ] {
                assert_eq!(result.is_ok(), fits, "{value} {}", dtype.name());
                let Err(error) = result else { continue };
                assert!(matches!(error, Error::Argument { name: "dtype", .. }));
                let message = error.to_string();
                assert!(message.contains(dtype.name()), "{message}");
                assert!(message.contains(wrong_name), "{message}");
                assert!(std::fs::read(&target).expect("there") == before);
            }
        }
    }
    let left = std::fs::read_dir(path.parent().expect("a folder")).expect("readable").count();
    assert_eq!(left, 2, "no temporary file is left");
}

/// Any tensor may be in any type: here each file gives every third of them.
#[test]
fn mixtures_are_read() {
    let config = every_kind().remove(6);
    let original = RandomModel::new(&config, Dtype::F32, 6);
    let weights = map(&original.path());
    let mut files = vec![std::fs::read(original.path()).expect("just written")];
    for dtype in QUANTISED {
        let path = original.path().with_file_name(dtype.name());
        weights.write(&path, dtype).expect("a folder that can be written");
        files.push(std::fs::read(path).expect("just written"));
    }
    let (_, header) = SafeTensors::read_metadata(&files[2]).expect("valid");
    let files: Vec<_> = files.iter().map(|f| SafeTensors::deserialize(f).expect("valid")).collect();
    let mut parts: Vec<(String, TensorView<'_>)> = Vec::new();
    let mut from = HashMap::new();
    for (i, spec) in tensor_specs(&config).into_iter().enumerate() {
        parts.push((spec.name.clone(), files[i % 3].tensor(&spec.name).expect("there")));
        let scale = format!("{}.scale", spec.name);
        parts.extend(files[i % 3].tensor(&scale).ok().map(|view| (scale, view)));
        from.insert(spec.name, i % 3);
    }
    let bytes = safetensors::serialize(parts, header.metadata().clone()).expect("valid");
    let mixed = Weights::from_bytes(&bytes).expect("each part is as it must be");
    assert_eq!(mixed.dtype(), None);
    assert!(logits(&mixed).iter().all(|logit| logit.is_finite()));
    let whole = [weights.clone(), map(&original.path().with_file_name("q8")), {
        map(&original.path().with_file_name("q4"))
    }];
    for (name, file) in &from {
        assert_eq!(values(&mixed, name), values(&whole[*file], name), "{name}");
    }
    for dtype in Dtype::ALL {
        let same = mixed.convert(*dtype, &mut go_on).expect("enough memory");
        assert_eq!(same.dtype(), Some(*dtype));
    }
}

#[test]
fn a_fingerprint_covers_scales_too() {
    for dtype in QUANTISED {
        let bytes = std::fs::read(RandomModel::new(&odd(), dtype, 7).path()).expect("written");
        let of = |bytes: &[u8]| Weights::from_bytes(bytes).expect("valid").fingerprint();
        let (header, metadata) = SafeTensors::read_metadata(&bytes).expect("valid");
        let mut all = vec![of(&bytes)];
        for part in ["", ".scale"] {
            let info = metadata.info(&format!("model.layers.0.mlp.up_proj.weight{part}"));
            let mut changed = bytes.clone();
            changed[8 + header + info.expect("there").data_offsets.0] ^= 1;
            all.push(of(&changed));
        }
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 3);
    }
}

// ---- damaged and hostile files ----------------------------------------------------------------

/// Loads a file and prepares to run it; returns its error. Memory stays within a multiple of the file.
fn load(bytes: &[u8]) -> Result<(), String> {
    let (result, peak) = peak_of(|| {
        let weights = Weights::from_bytes(bytes)?;
        Model::load(Cpu::new(), &weights)?.activations().map(|_| ())
    });
    let allowed = 64 * bytes.len() + 65_536;
    assert!(peak <= allowed, "{peak} bytes for a file of {}", bytes.len());
    result.map_err(|e: Error| e.to_string())
}

fn tiny(dtype: Dtype) -> Vec<u8> {
    let mut config = every_kind().remove(0);
    resize(&mut config, 2, 1, 1);
    (config.n_layer, config.ffn_dim, config.vocab_size) = (1, 2, 3);
    std::fs::read(RandomModel::new(&config, dtype, 8).path()).expect("just written")
}

#[test]
fn cut_and_flipped_files_are_refused_or_harmless() {
    for dtype in QUANTISED {
        let bytes = tiny(dtype);
        load(&bytes).expect("the whole file is good");
        for n in (0..bytes.len()).step_by(3) {
            assert!(load(&bytes[..n]).expect_err("cut").contains("found"));
        }
        for at in 0..8 + header_len(&bytes) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            let _ = load(&flipped);
        }
        let mut random = Random::new(9);
        for _ in 0..2000 {
            let mut changed = bytes.clone();
            for _ in 0..=random.below(4) {
                let at = random.below(8 + header_len(&bytes));
                changed[at] = b"0123456789{}[]\",:-IU"[random.below(20)];
            }
            let _ = load(&changed);
        }
    }
}

#[test]
fn each_hostile_header_is_refused_by_name() {
    let swap = |bytes: &[u8], from: &str, to: &str| {
        let changed = with_header(bytes, |header| {
            assert!(header.contains(from), "{from} is in {header}");
            header.replacen(from, to, 1)
        });
        load(&changed).expect_err(to)
    };
    let embedding = "\"model.embed_tokens.weight\":{\"dtype\":\"I8\",\"shape\":[1, 1, 8, 16, 4]";
    let scale = "\"model.embed_tokens.weight.scale\":{\"dtype\":\"F16\",\"shape\":[1, 1, 16]";
    for (from, to, named) in [
        (r#""format_version":"3""#, r#""format_version":"2""#, "found \"2\", expected \"3\""),
        (r#""format_version":"3""#, r#""format_version":"1""#, "found \"1\", expected \"3\""),
        // Shapes of as many bytes.
        (embedding, &embedding.replace("[1, 1, 8, 16, 4]", "[1, 1, 4, 32, 4]"), "[1, 1, 8, 16, 4]"),
        (embedding, &embedding.replace("[1, 1, 8, 16, 4]", "[512]"), "[1, 1, 8, 16, 4]"),
        // As it would be for 4 bits, half of the bytes; as plain numbers.
        (embedding, &embedding.replace("I8", "U8"), "expected [1, 1, 4, 16, 4]"),
        (embedding, &embedding.replace("I8", "F8_E4M3"), "F32, F16 or BF16, or I8 or U8"),
        (embedding, &embedding.replace("I8", "F32"), "header"),
        (scale, &scale.replace("[1, 1, 16]", "[1, 16, 1]"), "weight.scale: found shape [1, 16, 1]"),
        (scale, &scale.replace("F16", "BF16"), "weight.scale: found BF16, expected F16"),
        (scale, &scale.replace("F16", "I16"), "weight.scale: found I16, expected F16"),
        (scale, &scale.replace("F16", "F32"), "header"),
        (scale, &scale.replace("weight.scale", "weight.scalf"), "weight.scale: found nothing"),
        (r#""n_embd":"2""#, r#""n_embd":"65""#, "expected [1, 3, 8, 16, 4]"),
        (r#""vocab_size":"3""#, r#""vocab_size":"17""#, "expected [2, 1, 8, 16, 4]"),
        (r#""n_embd":"2""#, r#""n_embd":"65536""#, "expected [1, 2048, 8, 16, 4]"),
    ] {
        let message = swap(&tiny(Dtype::Q8), from, to);
        assert!(message.contains(named), "{from} -> {to}: {message}");
    }
    // A model of other size within the same blocks is another model, and no damage can be seen.
    let wider =
        with_header(&tiny(Dtype::Q8), |h| h.replacen("\"ffn_dim\":\"2\"", "\"ffn_dim\":\"16\"", 1));
    load(&wider).expect("the padding becomes weights");

    // Vectors and positions are never in blocks, and what is not in blocks has no scales.
    let message = {
        let bytes = tiny(Dtype::F32);
        let extra =
            "{\"lm_head.weight.scale\":{\"dtype\":\"F16\",\"shape\":[0],\"data_offsets\":[0,0]},";
        load(&with_header(&bytes, |header| header.replacen('{', extra, 1)))
            .expect_err("superfluous")
    };
    assert!(message.contains("lm_head.weight.scale: found it, expected no scales"), "{message}");
    let mut config = every_option().pop().expect("learned positions");
    config.max_seq_len = 16;
    let file = RandomModel::new(&config, Dtype::F32, 8);
    let bytes = std::fs::read(file.path()).expect("just written");
    let positions = "\"model.embed_positions.weight\":{\"dtype\":\"F32\",\"shape\":[16, 128]";
    let message = swap(&bytes, positions, &positions.replace("F32", "I8").replace("128", "512"));
    assert!(message.ends_with("found I8, expected F32, F16 or BF16"), "{message}");
}

/// Scales are not looked at when a file is mapped. One that is no number makes logits of which the
/// samplers say so.
#[test]
fn a_scale_that_is_no_number_ends_in_an_error() {
    for dtype in QUANTISED {
        for wrong in [f16::NAN, f16::INFINITY] {
            let mut bytes = tiny(dtype);
            let (header, metadata) = SafeTensors::read_metadata(&bytes).expect("valid");
            let (from, to) =
                metadata.info("model.embed_tokens.weight.scale").expect("there").data_offsets;
            for scale in bytes[8 + header + from..8 + header + to].chunks_exact_mut(2) {
                scale.copy_from_slice(&wrong.to_le_bytes());
            }
            let weights = Weights::from_bytes(&bytes).expect("nothing is wrong with the header");
            let logits = logits(&weights);
            assert!(logits.iter().all(|logit| logit.is_nan()), "{logits:?}");
            let mut sampler = Sampler::new(Default::default()).expect("defaults");
            let message = sampler.sample(&logits).expect_err("no logit is a number").to_string();
            assert!(message.contains("damaged"), "{message}");
        }
    }
}
