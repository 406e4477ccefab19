//! Files that are cut, have other bytes, or parts that are not understood: a model or an error, never a
//! panic, and no more memory than a model of that size takes.

use std::ops::ControlFlow;
use std::path::Path;

use teeny_runtime::LoadOptions;
use teeny_runtime::import::{ImportOptions, Source};

use super::{Case, folders};

/// Bytes at the start of a file in which every one is tried.
const HEAD: usize = 320;

/// Opens and, where that works, loads. Whether it did.
fn opens(case: &Case) -> bool {
    let source = Source::open(&case.file, &case.options);
    source.is_ok_and(|source| {
        source.load(&LoadOptions::default(), &mut |_| ControlFlow::Continue(())).is_ok()
    })
}

/// Puts these bytes in the place of a file, as a new one: the old one may be mapped.
fn replace(path: &Path, bytes: &[u8]) {
    let new = path.with_extension("new");
    std::fs::write(&new, bytes).expect("a folder that can be written");
    std::fs::rename(&new, path).expect("a folder that can be written");
}

/// Numbers that look random and are the same every time.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

/// Cuts a file at many places and changes bytes of its first part, `header` long, one to three at a time.
fn damage(folder: &Path, file: &str, header: usize) {
    let case = Case::read(folder);
    let path = folder.join(file);
    let whole = std::fs::read(&path).expect("it was made");
    let header = header.min(whole.len());
    let step = (whole.len() / 60).max(1);
    let places = (0..HEAD.min(whole.len())).step_by(7).chain((0..whole.len()).step_by(step));
    // The last bytes may be padding, or a line break.
    for n in places.filter(|n| n + 32 < whole.len()) {
        replace(&path, &whole[..n]);
        assert!(!opens(&case), "{}: {n} of {} bytes", path.display(), whole.len());
    }
    let mut random = Random(header as u64);
    for _ in 0..300 {
        let mut bytes = whole.clone();
        for _ in 0..=random.below(3) {
            let at = random.below(header);
            bytes[at] = match random.below(4) {
                0 => 0xFF,
                1 => 0,
                2 => bytes[at] ^ (1 << random.below(8)),
                _ => random.below(256) as u8,
            };
        }
        replace(&path, &bytes);
        opens(&case);
    }
    replace(&path, &whole);
    assert!(opens(&case), "{}", path.display());
}

/// The most memory that this process has had of its own, where the system tells it.
fn most_memory() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<usize>().ok().map(|n| n << 10)
}

#[test]
fn damaged_files_are_refused_or_opened() {
    for (folder, file, header) in [
        ("gguf-llama3-head-dim", "model.gguf", 12_000),
        ("blocks-q4_1", "model.gguf", 12_000),
        ("llama2c-legacy", "model.bin", 28),
        ("llama2c-v1-untied", "model.bin", 256),
        ("llama2c-v2", "model.bin", 256),
        ("llama2c-v1", "tokenizer.bin", 3000),
        ("llama-plain", "model.safetensors", 3000),
        ("llama-older", "config.json", 2000),
        ("gpt2-plain", "config.json", 2000),
        ("gpt2-bare", "model.safetensors", 3000),
        ("llama-padded-sharded", "model.safetensors.index.json", 3000),
        ("llama-linear", "tokenizer.json", 3000),
        ("nanogpt-bias", "ckpt.safetensors", 3000),
        ("nanogpt-no-bias", "meta.json", 1000),
        ("teenygpt-alibi", "model.safetensors", 3000),
        ("teenygpt-sinusoidal", "config.ini", 300),
    ] {
        let Some(found) = folders(folder).into_iter().find(|path| path.ends_with(folder)) else {
            return;
        };
        // The folder itself is that of other tests.
        let copy = found.with_file_name(format!("damaged-{folder}"));
        std::fs::create_dir_all(&copy).expect("a folder that can be written");
        for entry in std::fs::read_dir(&found).expect("it was made") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_owned();
            if name != "output.safetensors" {
                std::fs::copy(&path, copy.join(name)).expect("a folder that can be written");
            }
        }
        damage(&copy, file, header);
    }
    if let Some(most) = most_memory() {
        assert!(most < 1 << 30, "{most} bytes");
    }
}

/// A folder with another `config.json`, in which `from` is `to`.
fn refused(folder: &str, file: &str, from: &str, to: &str) -> Option<String> {
    let found = folders(folder).into_iter().find(|path| path.ends_with(folder))?;
    let copy = found.with_file_name("refused");
    let _ = std::fs::remove_dir_all(&copy);
    std::fs::create_dir_all(&copy).expect("a folder that can be written");
    for name in ["config.json", "model.safetensors", "tokenizer.json", "model.gguf", "case.json"] {
        let Ok(bytes) = std::fs::read(found.join(name)) else { continue };
        let bytes = if name == file {
            let text = String::from_utf8(bytes).expect("UTF-8");
            assert!(text.contains(from), "{from} in {text}");
            text.replace(from, to).into_bytes()
        } else {
            bytes
        };
        std::fs::write(copy.join(name), bytes).expect("a folder that can be written");
    }
    let source = Source::open(&copy, &ImportOptions::default());
    Some(source.err().map_or("nothing is refused".to_owned(), |error| error.to_string()))
}

#[test]
fn parts_that_are_not_understood_are_named() {
    for (folder, from, to, message) in [
        (
            "llama-plain",
            "LlamaForCausalLM",
            "MixtralForCausalLM",
            "config.json: architectures: found [\"MixtralForCausalLM\"], expected LlamaForCausalLM or \
          GPT2LMHeadModel",
        ),
        (
            "llama-plain",
            "\"silu\"",
            "\"gelu\"",
            "config.json: hidden_act: found \"gelu\", expected silu",
        ),
        (
            "llama-plain",
            "\"hidden_act\"",
            "\"sliding_window\": 16, \"hidden_act\"",
            "config.json: sliding_window: found 16, expected null or nothing",
        ),
        (
            "llama-older",
            "\"llama3\"",
            "\"yarn\"",
            "config.json: rope_scaling: rope_type: found \"yarn\", expected default, linear or llama3",
        ),
        (
            "llama-plain",
            "\"num_hidden_layers\": 2",
            "\"num_hidden_layers\": 1",
            "model.layers.1.input_layernorm.weight: found it, expected no such tensor in this \
          configuration",
        ),
        (
            "llama-plain",
            "\"num_hidden_layers\": 2",
            "\"num_hidden_layers\": 3",
            "model.layers.2.input_layernorm.weight: found nothing, expected a tensor of this name",
        ),
        (
            "llama-plain",
            "\"intermediate_size\": 48",
            "\"intermediate_size\": 64",
            "model.layers.0.mlp.gate_proj.weight: found shape [48, 32], expected [64, 32] from the \
          configuration",
        ),
        (
            "llama-plain",
            "\"tie_word_embeddings\": false",
            "\"tie_word_embeddings\": true",
            "lm_head.weight: found other numbers, expected model.embed_tokens.weight, as \
          tie_word_embeddings says",
        ),
        (
            "llama-plain",
            "\"hidden_act\"",
            "\"quantization_config\": {\"bits\": 4}, \"hidden_act\"",
            "config.json: quantization_config: found {\"bits\":4}, expected null or nothing",
        ),
        (
            "llama-plain",
            "\"hidden_act\"",
            "\"partial_rotary_factor\": 0.5, \"hidden_act\"",
            "config.json: partial_rotary_factor: found 0.5, expected 1",
        ),
        (
            "gpt2-plain",
            "\"scale_attn_weights\": true",
            "\"scale_attn_weights\": false",
            "config.json: scale_attn_weights: found false, expected true",
        ),
        (
            "gpt2-plain",
            "\"gelu_new\"",
            "\"mish\"",
            "config.json: activation_function: found \"mish\", expected gelu_new, gelu_pytorch_tanh, \
          gelu_fast, gelu or relu",
        ),
    ] {
        let Some(found) = refused(folder, "config.json", from, to) else { return };
        assert_eq!(found, format!("model file: {message}"));
    }
}

/// Tokens that a `tokenizer.model` does not hold would be read as text.
#[test]
fn tokens_added_to_a_model_of_sentencepiece_are_refused() {
    let found = folders("llama-").into_iter().find(|path| path.ends_with("llama-sentencepiece"));
    let Some(found) = found else { return };
    let added = found.join("added_tokens.json");
    let refused = |ids: &str| {
        std::fs::write(&added, ids).expect("a folder that can be written");
        let source = Source::open(&found, &ImportOptions::default());
        std::fs::remove_file(&added).expect("it is there");
        source.err().map(|error| error.to_string())
    };
    assert_eq!(refused(r#"{"<s>": 1}"#), None);
    let error = refused(r#"{"<|im_start|>": 32000}"#).expect("more than there are");
    assert!(
        error.contains("pieces and an added token 32000, expected a tokenizer.json"),
        "{error}"
    );
}

/// 1,000 tensors over the same bytes would be a thousand times the file.
#[test]
fn tensors_of_gguf_have_bytes_of_their_own() {
    let Some(found) = folders("gguf-").into_iter().find(|path| path.ends_with("gguf-biases"))
    else {
        return;
    };
    let mut bytes = std::fs::read(found.join("model.gguf")).expect("it was made");
    // Behind the name: the number of dimensions, one dimension, the kind, and the place.
    let place = |bytes: &[u8], name: &str| {
        let name = name.as_bytes();
        let at = bytes.windows(name.len()).position(|part| part == name).expect("there");
        at + name.len() + 4 + 8 + 4..at + name.len() + 4 + 8 + 4 + 8
    };
    let from = place(&bytes, "blk.0.attn_k.bias");
    let to = place(&bytes, "blk.1.attn_k.bias");
    bytes.copy_within(from, to.start);
    let path = found.join("overlap.gguf");
    replace(&path, &bytes);
    let error = Source::open(&path, &ImportOptions::default()).expect_err("overlap").to_string();
    assert_eq!(
        error,
        "model file: blk.1.attn_k.bias: found bytes that blk.0.attn_k.bias has too, expected bytes of its \
         own"
    );
}

/// Blocks that are taken as they are, with a scale that is no number.
#[test]
fn blocks_with_infinite_scales_are_refused() {
    for (kind, size) in [("q8_0", 34), ("q4_0", 18), ("q4_1", 20)] {
        let Some(found) =
            folders("blocks-").into_iter().find(|path| path.ends_with(format!("blocks-{kind}")))
        else {
            return;
        };
        let mut bytes = std::fs::read(found.join("model.gguf")).expect("it was made");
        // The last block of the output projection, which is the last tensor.
        let at = bytes.len() - size;
        bytes[at..at + 2].copy_from_slice(&[0x00, 0x7C]);
        let path = found.join("infinite.gguf");
        replace(&path, &bytes);
        let source = Source::open(&path, &ImportOptions::default()).expect("as before");
        let error = source
            .load(&LoadOptions::default(), &mut |_| ControlFlow::Continue(()))
            .expect_err("no number")
            .to_string();
        assert!(error.contains("which has no inf as in lm_head.weight"), "{kind}: {error}");
    }
}

/// Bytes of a GGUF file replaced by as many others.
#[test]
fn parts_of_gguf_that_are_not_understood_are_named() {
    let Some(found) = folders("gguf-").into_iter().find(|path| path.ends_with("gguf-biases"))
    else {
        return;
    };
    let whole = std::fs::read(found.join("model.gguf")).expect("it was made");
    let path = found.join("refused.gguf");
    for (from, to, message) in [
        ("GGUF\x03", "GGUF\x04", "version: found 4, expected 2 or 3"),
        (
            "\x05\0\0\0\0\0\0\0llama",
            "\x05\0\0\0\0\0\0\0gemma",
            "general.architecture: found \"gemma\", expected llama",
        ),
        (
            "llama.rope.freq_base",
            "llama.rope.freq_bass",
            "llama.rope.freq_bass: found 10000, expected a key that is understood",
        ),
        (
            "llama.context_length",
            "llama.contest_length",
            "llama.context_length: found nothing, expected a whole number",
        ),
        (
            "gpt-2",
            "gpt-9",
            "tokenizer.ggml.pre: found \"gpt-9\", expected gpt-2, phi-2, mpt, olmo, jais, trillion, \
          smollm, starcoder, refact, command-r, codeshell, llama-bpe, llama3, llama-v3, falcon3, \
          pixtral, dbrx or smaug-bpe",
        ),
        ("gpt2", "bert", "tokenizer.ggml.model: found \"bert\", expected gpt2, llama or t5"),
        (
            "output_norm",
            "output_nork",
            "output_norm.weight: found nothing, expected a tensor of this name",
        ),
        (
            "blk.1.attn_v.bias",
            "blk.1.attn_w.bias",
            "blk.1.attn_v.bias: found nothing, expected it, as blk.0.attn_q.bias is there",
        ),
        (
            "\x0d\0\0\0\0\0\0\0output.weight",
            "\x0d\0\0\0\0\0\0\0outpux.weight",
            "outpux.weight: found it, expected no such tensor in this configuration",
        ),
    ] {
        let (from, to) = (from.as_bytes(), to.as_bytes());
        let at = whole.windows(from.len()).position(|bytes| bytes == from).expect("there");
        let mut bytes = whole.clone();
        bytes[at..at + to.len()].copy_from_slice(to);
        replace(&path, &bytes);
        let error = Source::open(&path, &ImportOptions::default()).expect_err(message);
        assert_eq!(error.to_string(), format!("model file: {message}"));
    }
}
