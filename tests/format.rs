//! The exported file: what is written is what is read and what FORMAT.md says, and damaged or
//! hostile files are refused with a message, without a panic and without memory.

use std::path::Path;

use safetensors::SafeTensors;
use teeny_runtime::format::{self, tensor_specs};
use teeny_runtime::tokenizer::Tokenizer;
use teeny_runtime::{Cpu, Dtype, Ffn, Model, ModelConfig, Weights};
use teeny_tests::allocator::peak_of;
use teeny_tests::{
    Random, RandomModel, describe, every_kind, every_option, header_len, random_values, tokenizer,
    with_header,
};

// ---- writing and reading ----------------------------------------------------------------------

#[test]
fn every_configuration_comes_back_as_it_was_written() {
    for config in [every_kind(), every_option()].concat() {
        for dtype in Dtype::ALL {
            let file = RandomModel::new(&config, *dtype, 1);
            let weights = Weights::map(&file.path()).expect("a file of our own");
            assert_eq!(weights.config(), &config);
            assert_eq!(weights.tokenizer(), &tokenizer(config.vocab_size));
            let mut random = Random::new(1);
            for spec in in_file_order(&file.path(), &config) {
                let values = random_values(&spec, &mut random);
                let found = weights
                    .tensor(&spec.name)
                    .expect("it was written")
                    .to_f32()
                    .expect("enough memory");
                let largest = values.iter().fold(0.0f32, |largest, v| largest.max(v.abs()));
                for (found, value) in found.iter().zip(&values) {
                    let tolerance = match dtype.of(&spec) {
                        Dtype::F32 => 0.0,
                        // Half a unit in the last place: 8 bits of bf16, 11 of f16.
                        Dtype::F16 | Dtype::Bf16 => value.abs() / 256.0 + 1e-7,
                        // Half a step, a bit more for the rounding of the scale.
                        Dtype::Q8 => largest / 127.0 * 0.55,
                        // A step, because the ends of a range may be cut off.
                        Dtype::Q4 => 2.0 * largest / 15.0,
                    };
                    assert!(
                        (found - value).abs() <= tolerance,
                        "{} {}",
                        spec.name,
                        describe(&config)
                    );
                }
            }
        }
    }
}

/// The specs in the order in which the writer asked for their values.
fn in_file_order(path: &Path, config: &ModelConfig) -> Vec<format::TensorSpec> {
    let bytes = std::fs::read(path).expect("just written");
    let file = SafeTensors::deserialize(&bytes).expect("valid");
    let offset = |name: &str| file.tensor(name).expect("there").data().as_ptr() as usize;
    let mut specs = tensor_specs(config);
    specs.sort_by_key(|spec| offset(&spec.name));
    specs
}

/// The oracle is the safetensors crate: it opens the file, and every tensor is aligned.
#[test]
fn data_is_aligned_to_64_bytes() {
    for config in every_kind() {
        let file = RandomModel::new(&config, Dtype::Bf16, 2);
        let bytes = std::fs::read(file.path()).expect("just written");
        let (header, _) = SafeTensors::read_metadata(&bytes).expect("valid");
        assert_eq!((8 + header) % 64, 0);
    }
    let mut config = every_kind().remove(0);
    (config.n_embd, config.n_head, config.n_kv_head, config.ffn_dim) = (64, 4, 4, 96);
    config.lm_head_bias = true;
    let file = RandomModel::new(&config, Dtype::Bf16, 2);
    let bytes = std::fs::read(file.path()).expect("just written");
    let (header, metadata) = SafeTensors::read_metadata(&bytes).expect("valid");
    for (name, info) in metadata.tensors() {
        assert_eq!((8 + header + info.data_offsets.0) % 64, 0, "{name}");
    }
}

#[test]
fn the_table_in_format_md_names_every_tensor() {
    let text = include_str!("../runtime/FORMAT.md");
    let table: Vec<(&str, &str)> = text
        .lines()
        .filter_map(|line| {
            let mut cells = line.trim_matches('|').split(" | ").map(str::trim);
            let name = cells.next()?.strip_prefix("`")?.strip_suffix("`")?;
            let shape = cells.next()?.strip_prefix("(")?.strip_suffix(")")?;
            Some((name, shape))
        })
        .collect();
    let mut seen = std::collections::HashSet::new();
    for config in [every_kind(), every_option()].concat() {
        let size = |word: &str| match word {
            "vocab_size" => config.vocab_size,
            "n_embd" => config.n_embd,
            "kv_dim" => config.kv_dim(),
            "ffn_dim" => config.ffn_dim,
            "max_seq_len" => config.max_seq_len,
            "head_dim" => config.head_dim(),
            "16" => 16,
            other => panic!("FORMAT.md speaks of {other}"),
        };
        for spec in tensor_specs(&config) {
            let general = spec.name.replace(".0.", ".N.").replace(".1.", ".N.");
            let row = table.iter().find(|(name, _)| *name == general);
            let (name, shape) = row.unwrap_or_else(|| panic!("FORMAT.md lacks {general}"));
            let shape: Vec<usize> = shape.split(", ").map(size).collect();
            assert_eq!(shape, spec.shape, "{name}");
            seen.insert(*name);
        }
        for (key, _) in config.to_metadata() {
            assert!(text.contains(&format!("`{key}`")), "FORMAT.md lacks the key {key}");
        }
    }
    assert_eq!(seen.len(), table.len(), "every row of the table occurs");
}

#[test]
fn a_failed_write_leaves_the_old_file() {
    let config = &every_kind()[0];
    let file = RandomModel::new(config, Dtype::F32, 3);
    let before = std::fs::read(file.path()).expect("just written");
    let vocabulary = tokenizer(config.vocab_size);
    let mut wrong = |_: &format::TensorSpec| vec![0.0; 3];
    format::write_model(&file.path(), config, &vocabulary, &[], Dtype::F32, &mut wrong)
        .expect_err("three values for every tensor");
    let taken = [("n_layer".to_owned(), "7".to_owned())];
    let mut zeros = |spec: &format::TensorSpec| vec![0.0; spec.len()];
    format::write_model(&file.path(), config, &vocabulary, &taken, Dtype::F32, &mut zeros)
        .expect_err("a key of the format itself");
    assert_eq!(std::fs::read(file.path()).expect("still there"), before);
    let folder = file.path();
    let left = std::fs::read_dir(folder.parent().expect("a folder")).expect("readable").count();
    assert_eq!(left, 1, "no temporary file is left");
}

/// A program that has the old file mapped keeps the old weights.
#[test]
fn replacing_a_file_does_not_touch_who_has_it_open() {
    let config = &every_kind()[0];
    let file = RandomModel::new(config, Dtype::F32, 4);
    let old = Weights::map(&file.path()).expect("a file of our own");
    let name = "model.embed_tokens.weight";
    let before = old.tensor(name).expect("there").to_f32().expect("enough memory");
    teeny_tests::write_random(&file.path(), config, Dtype::F32, 5);
    assert_eq!(old.tensor(name).expect("there").to_f32().expect("enough memory"), before);
    let new = Weights::map(&file.path()).expect("a file of our own");
    assert_ne!(new.tensor(name).expect("there").to_f32().expect("enough memory"), before);
}

#[test]
fn the_three_ways_to_load_agree() {
    let file = RandomModel::new(&every_kind()[0], Dtype::F16, 6);
    let bytes = std::fs::read(file.path()).expect("just written");
    let name = "lm_head.weight";
    let of = |weights: teeny_runtime::Result<Weights>| {
        weights
            .expect("a file of our own")
            .tensor(name)
            .expect("there")
            .to_f32()
            .expect("enough memory")
    };
    let mapped = of(Weights::map(&file.path()));
    assert_eq!(of(Weights::read(&file.path())), mapped);
    assert_eq!(of(Weights::from_bytes(&bytes)), mapped);
}

// ---- damaged and hostile files ----------------------------------------------------------------

/// Loads a file as a program would; returns its error. Memory stays within a multiple of the file.
fn load(bytes: &[u8]) -> Result<(), String> {
    let (result, peak) = peak_of(|| {
        let weights = Weights::from_bytes(bytes)?;
        Model::load(Cpu::new(), &weights)?.activations().map(|_| ())
    });
    let allowed = 64 * bytes.len() + 65_536;
    assert!(peak <= allowed, "{peak} bytes for a file of {}", bytes.len());
    result.map_err(|e: teeny_runtime::Error| e.to_string())
}

fn tiny() -> (ModelConfig, Vec<u8>) {
    let mut config = every_kind().remove(0);
    (config.n_layer, config.n_head, config.n_kv_head) = (1, 1, 1);
    (config.n_embd, config.ffn_dim, config.vocab_size) = (2, 2, 3);
    let file = RandomModel::new(&config, Dtype::F32, 7);
    (config, std::fs::read(file.path()).expect("just written"))
}

#[test]
fn a_file_cut_at_any_byte_is_refused() {
    let (_, bytes) = tiny();
    load(&bytes).expect("the whole file is good");
    for n in 0..bytes.len() {
        let message = load(&bytes[..n]).expect_err("cut");
        assert!(message.contains("found"), "{message}");
    }
    load(&[&bytes[..], &[0]].concat()).expect_err("one byte too many");
}

#[test]
fn any_flipped_bit_of_the_header_is_refused_or_harmless() {
    let (config, bytes) = tiny();
    let mut refused = 0;
    for at in 0..8 + header_len(&bytes) {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            match load(&flipped) {
                Err(_) => refused += 1,
                // Spaces, the vocabulary's letters and numbers such as rope_theta may change.
                Ok(()) => {
                    let weights = Weights::from_bytes(&flipped).expect("it loaded before");
                    assert_eq!(weights.config().n_embd, config.n_embd);
                }
            }
        }
    }
    assert!(refused > 8 * 1000, "only {refused} flips were refused");
}

#[test]
fn each_hostile_header_is_refused_by_name() {
    let (_, bytes) = tiny();
    let swap = |from: &str, to: &str| {
        let changed = with_header(&bytes, |header| {
            assert!(header.contains(from), "{from} is in {header}");
            header.replacen(from, to, 1)
        });
        load(&changed).expect_err(to)
    };
    let max = usize::MAX.to_string();
    for (from, to, named) in [
        (r#""format":"teeny""#, r#""format":"other""#, "metadata key format: found \"other\""),
        (r#""format":"teeny","#, "", "metadata key format: found nothing"),
        (r#""format_version":"1""#, r#""format_version":"5""#, "format_version"),
        (r#""format_version":"1""#, r#""format_version":"01""#, "format_version"),
        // What a reader of version 1 would not see, or not know.
        (
            r#""n_layer":"1""#,
            r#""n_layer":"1","logit_softcap":"30""#,
            "found \"1\", expected \"2\"",
        ),
        (r#""n_layer":"1""#, r#""n_layer":"1","qk_norm":"true""#, "found \"1\", expected \"2\""),
        (r#""ffn":"classic""#, r#""ffn":"relu2""#, "found \"1\", expected \"2\""),
        (r#""n_layer":"1""#, r#""n_layer":"1","logit_softcap":"-1""#, "logit_softcap"),
        (r#""n_layer":"1""#, r#""n_layer":"-1""#, "n_layer"),
        (r#""n_layer":"1""#, r#""n_layer":"0""#, "n_layer"),
        (r#""n_layer":"1""#, &format!(r#""n_layer":"{max}""#), "n_layer"),
        (r#""n_layer":"1""#, r#""n_layer":"1000""#, "n_layer"),
        (r#""n_layer":"1""#, r#""n_layer":"2""#, "model.layers.1"),
        (r#""n_embd":"2""#, &format!(r#""n_embd":"{max}""#), "n_embd"),
        (r#""n_embd":"2""#, r#""n_embd":"65536""#, "expected [3, 65536]"),
        (r#""ffn_dim":"2""#, &format!(r#""ffn_dim":"{max}""#), "ffn_dim"),
        (r#""n_head":"1""#, r#""n_head":"0""#, "n_head"),
        (r#""n_kv_head":"1""#, r#""n_kv_head":"2""#, "n_kv_head"),
        (r#""vocab_size":"3""#, r#""vocab_size":"4""#, "[4, 2]"),
        (r#""max_seq_len":"24""#, &format!(r#""max_seq_len":"{max}""#), "max_seq_len"),
        (r#""max_seq_len":"24""#, r#""max_seq_len":"0""#, "max_seq_len"),
        (r#""norm_eps":"#, r#""norm_epz":"#, "norm_eps"),
        (r#""rope_theta":"10000""#, r#""rope_theta":"NaN""#, "rope_theta"),
        (r#""ffn":"classic""#, r#""ffn":"moe""#, "ffn: found \"moe\""),
        (r#""tokenizer":"#, r#""tokenizar":"#, "tokenizer: found nothing"),
        (r#"\"chars\":\"A"#, r#"\"chars\":\"AA"#, "twice"),
        (r#"\"chars\":\"A"#, r#"\"chars\":\"xyA"#, "vocab_size = 3"),
        (r#""dtype":"F32""#, r#""dtype":"I32""#, "I32"),
        (r#""dtype":"F32""#, r#""dtype":"X""#, "header"),
        (r#""shape":[3, 2]"#, r#""shape":[2, 3]"#, "[2, 3]"),
        (r#""shape":[3, 2]"#, r#""shape":[18446744073709551615, 2]"#, "header"),
        (r#""shape":[3, 2]"#, r#""shape":[18446744073709551616, 2]"#, "header"),
        (r#""data_offsets":[0,"#, r#""data_offsets":[8,"#, "header"),
        (r#""data_offsets":[0,"#, r#""data_offsets":[-8,"#, "header"),
        (r#""data_offsets":[0,"#, r#""data_offsets":[18446744073709551608,"#, "header"),
        ("model.embed_tokens.weight", "lm_head.weight", "header"),
        ("model.embed_tokens.weight", "model.embed_token.weight", "model.embed_tokens.weight"),
        ("{\"__metadata__\"", "{\"__metadata__\":{},\"__metadata__\"", "header"),
        ("{\"__metadata__\":{", "{\"__metadata__\":{\"format\":\"teeny\",", "twice"),
        ("{", " {", "first byte 0x20"),
        ("{", "[", "first byte 0x5b"),
        ("}", "", "metadata key tokenizer: found no JSON"),
    ] {
        let message = swap(from, to);
        assert!(message.contains(named), "{from} -> {to}: {message}");
    }
}

/// A reader that keeps tensors in a map would not see it.
/// Only the parts that came later make a file one that older readers refuse, and each of them does.
#[test]
fn the_version_is_the_lowest_that_has_all_parts() {
    let base = every_kind().remove(0);
    for (config, version) in [
        (base.clone(), "1"),
        (ModelConfig { ffn: Ffn::Relu2, ..base.clone() }, "2"),
        (ModelConfig { qk_norm: true, ..base.clone() }, "2"),
        (ModelConfig { logit_softcap: 30.0, ..base.clone() }, "2"),
    ] {
        let file = RandomModel::new(&config, Dtype::F32, 6);
        let weights = Weights::map(&file.path()).expect("our own");
        assert_eq!(weights.metadata()["format_version"], version, "{}", describe(&config));
        assert_eq!(*weights.config(), config);
        for key in ["qk_norm", "logit_softcap"] {
            let there = config.to_metadata().iter().any(|(name, _)| *name == key);
            assert_eq!(weights.metadata().contains_key(key), there);
        }
    }
    // A newer version says nothing about what must be in the file.
    let (config, bytes) = tiny();
    let (one, two) = (r#""format_version":"1""#, r#""format_version":"2""#);
    load(&with_header(&bytes, |header| header.replacen(one, two, 1)))
        .expect("a model of version 1");
    assert!(!config.qk_norm);
}

#[test]
fn a_tensor_that_is_listed_twice_is_refused() {
    let (_, bytes) = tiny();
    let twice = with_header(&bytes, |header| {
        let start = header.find("\"model.embed_tokens.weight\"").expect("there");
        let end = start + header[start..].find('}').expect("its end") + 1;
        format!("{}{},{}", &header[..start], &header[start..end], &header[start..])
    });
    SafeTensors::deserialize(&twice).expect("the safetensors crate merges the two");
    let message = load(&twice).expect_err("twice");
    assert!(message.contains("the name \"model.embed_tokens.weight\" twice"), "{message}");
}

#[test]
fn data_that_is_not_aligned_to_its_elements_is_refused() {
    let (_, bytes) = tiny();
    let end = 8 + header_len(&bytes);
    let length = ((end - 8 + 1) as u64).to_le_bytes();
    let shifted = [&length, &bytes[8..end], b" ", &bytes[end..]].concat();
    let message = load(&shifted).expect_err("every tensor is one byte off");
    assert!(message.contains("expected a multiple of 4"), "{message}");
}

/// A file that claims far more than it holds: sizes, header length, nesting, context.
#[test]
fn no_number_in_a_file_makes_us_allocate() {
    let (_, bytes) = tiny();
    for length in [0, 1, bytes.len() as u64, 99_999_999, 100_000_001, u64::MAX - 7, u64::MAX] {
        let mut changed = bytes.clone();
        changed[..8].copy_from_slice(&length.to_le_bytes());
        load(&changed).expect_err("a wrong header length");
    }
    for nesting in ["[".repeat(100_000), "{\"a\":".repeat(100_000)] {
        let nested = [&(nesting.len() as u64).to_le_bytes(), nesting.as_bytes()].concat();
        load(&nested).expect_err("no header");
    }
    // The largest context that is allowed costs nothing until it is used.
    let huge = with_header(&bytes, |header| {
        header.replacen(r#""max_seq_len":"24""#, r#""max_seq_len":"16777216""#, 1)
    });
    load(&huge).expect("a long context is no crime");
    let (_, peak) = peak_of(|| {
        let weights = Weights::from_bytes(&huge).expect("it loaded before");
        let model = std::sync::Arc::new(Model::load(Cpu::new(), &weights).expect("tiny"));
        let overflow = teeny_runtime::Overflow::Slide;
        let mut session = teeny_runtime::Session::new(&model, overflow).expect("tiny");
        session.prefill(&[0, 1, 2]).expect("in the vocabulary");
    });
    assert!(peak < 65_536 + 64 * huge.len(), "{peak}");
}

#[test]
fn foreign_and_missing_files_are_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("x.safetensors");
    let missing = Weights::map(&path).expect_err("not there").to_string();
    assert!(missing.starts_with("cannot open model") && missing.contains("x.safetensors"));
    assert!(Weights::map(folder.path()).expect_err("a folder").to_string().contains("folder"));
    for content in
        [&b""[..], b"x", b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0", b"PK\x03\x04 a zip", &[0; 64]]
    {
        std::fs::write(&path, content).expect("a temporary file");
        let message = Weights::map(&path).expect_err("foreign").to_string();
        assert!(message.starts_with("model file: header: found"), "{message}");
        assert!(Weights::read(&path).is_err());
    }
    // A safetensors file of somebody else: no metadata of ours.
    let data = [0u8; 4];
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1], &data);
    let other = safetensors::serialize([("w", view.expect("valid"))], None).expect("valid");
    let message = load(&other).expect_err("foreign");
    assert!(message.contains("metadata key format: found nothing"), "{message}");
}

#[test]
fn random_bytes_and_mixtures_never_panic() {
    let (_, bytes) = tiny();
    let mut random = Random::new(9);
    for _ in 0..20_000 {
        let mut changed = bytes.clone();
        for _ in 0..=random.below(4) {
            let at = random.below(changed.len());
            match random.below(4) {
                0 => changed[at] = random.bits() as u8,
                1 => changed[at] = b"0123456789{}[]\",:-"[random.below(18)],
                2 => {
                    changed.remove(at);
                }
                _ => changed.insert(at, random.bits() as u8),
            }
        }
        let _ = load(&changed);
    }
}

#[test]
fn tokenizers_from_files_round_trip() {
    let (_, bytes) = tiny();
    let weights = Weights::from_bytes(&bytes).expect("a file of our own");
    let again = Tokenizer::from_json(&weights.tokenizer().to_json()).expect("own output");
    assert_eq!(&again, weights.tokenizer());
}
