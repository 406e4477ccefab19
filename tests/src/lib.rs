//! What the tests share: model configurations, files of random weights, and the programs.

pub mod allocator;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use teeny_runtime::backend::Backend;
use teeny_runtime::format::{self, TensorSpec};
use teeny_runtime::tokenizer::{CharTokenizer, Tokenizer};
use teeny_runtime::{
    Dtype, Ffn, Model, ModelConfig, Norm, PositionalEncoding, RopeScaling, Weights,
};

/// Token ids of the small models are below this.
pub const VOCAB_SIZE: usize = 29;

/// A small model with sizes that are no multiples of a vector register.
pub fn small(positional_encoding: PositionalEncoding, norm: Norm, ffn: Ffn) -> ModelConfig {
    ModelConfig {
        vocab_size: VOCAB_SIZE,
        n_layer: 2,
        n_head: 3,
        n_kv_head: 3,
        n_embd: 30,
        head_dim: 10,
        ffn_dim: 37,
        max_seq_len: 24,
        positional_encoding,
        rope_theta: 10000.0,
        rope_scaling: None,
        norm,
        norm_eps: 1e-5,
        final_norm: true,
        ffn,
        attention_bias: false,
        ffn_bias: false,
        norm_bias: false,
        lm_head_bias: false,
        tie_embeddings: false,
        qk_norm: false,
        logit_softcap: 0.0,
    }
}

/// Gives a model another width and other heads, of `n_embd / n_head`.
pub fn resize(c: &mut ModelConfig, n_embd: usize, n_head: usize, n_kv_head: usize) {
    (c.n_embd, c.n_head, c.n_kv_head, c.head_dim) = (n_embd, n_head, n_kv_head, n_embd / n_head);
}

/// Llama 3.1's frequencies for an original context that the small models go beyond.
pub const LLAMA3: RopeScaling = RopeScaling::Llama3 {
    factor: 8.0,
    low_freq_factor: 1.0,
    high_freq_factor: 4.0,
    original_max_seq_len: 12,
};

/// Every positional encoding × norm × ffn.
pub fn every_kind() -> Vec<ModelConfig> {
    let mut configs = Vec::new();
    for positional_encoding in PositionalEncoding::ALL {
        for norm in Norm::ALL {
            for ffn in Ffn::ALL {
                configs.push(small(*positional_encoding, *norm, *ffn));
            }
        }
    }
    configs
}

/// The options that [`every_kind`] leaves at one value.
pub fn every_option() -> Vec<ModelConfig> {
    let base = small(PositionalEncoding::Rope, Norm::LayerNorm, Ffn::Swiglu);
    let with = |change: &dyn Fn(&mut ModelConfig)| {
        let mut config = base.clone();
        change(&mut config);
        config
    };
    vec![
        with(&|c| c.final_norm = false),
        with(&|c| c.attention_bias = true),
        with(&|c| c.ffn_bias = true),
        with(&|c| c.norm_bias = true),
        with(&|c| c.lm_head_bias = true),
        with(&|c| c.tie_embeddings = true),
        with(&|c| (c.tie_embeddings, c.lm_head_bias) = (true, true)),
        with(&|c| c.rope_theta = 500.0),
        with(&|c| c.norm_eps = 0.1),
        with(&|c| (c.norm, c.norm_eps) = (Norm::RmsNorm, 0.1)),
        with(&|c| resize(c, 30, 5, 1)),
        with(&|c| resize(c, 32, 8, 2)),
        with(&|c| {
            c.positional_encoding = PositionalEncoding::Alibi;
            resize(c, 36, 6, 3);
        }),
        with(&|c| (c.ffn, c.ffn_bias) = (Ffn::Classic, true)),
        with(&|c| (c.ffn, c.ffn_bias) = (Ffn::Gelu, true)),
        with(&|c| {
            (c.attention_bias, c.ffn_bias, c.norm_bias, c.lm_head_bias) = (true, true, true, true);
        }),
        with(&|c| (c.n_layer, c.ffn_dim) = (1, 1)),
        with(&|c| resize(c, 128, 1, 1)),
        with(&|c| (c.ffn, c.ffn_bias) = (Ffn::Relu2, true)),
        with(&|c| c.qk_norm = true),
        // Logits reach about 3: a cap that bends most of them, and one that bends few.
        with(&|c| c.logit_softcap = 1.5),
        with(&|c| (c.logit_softcap, c.lm_head_bias) = (30.0, true)),
        with(&|c| (c.qk_norm, c.attention_bias) = (true, true)),
        with(&|c| (c.qk_norm, c.norm, c.norm_eps) = (true, Norm::RmsNorm, 0.1)),
        with(&|c| {
            (c.qk_norm, c.logit_softcap) = (true, 2.0);
            resize(c, 32, 8, 2);
            (c.ffn, c.tie_embeddings) = (Ffn::Relu2, true);
        }),
        with(&|c| {
            (c.qk_norm, c.positional_encoding) = (true, PositionalEncoding::Alibi);
            resize(c, 36, 6, 3);
        }),
        with(&|c| {
            (c.qk_norm, c.positional_encoding) = (true, PositionalEncoding::None);
            resize(c, 35, 5, 1);
            (c.norm, c.logit_softcap) = (Norm::None, 0.5);
        }),
        with(&|c| (c.ffn, c.ffn_bias) = (Ffn::GeluTanh, true)),
        // Heads wider than n_embd / n_head, and narrower.
        with(&|c| c.head_dim = 64),
        with(&|c| (c.head_dim, c.attention_bias) = (6, true)),
        with(&|c| {
            (c.head_dim, c.qk_norm, c.n_kv_head) = (24, true, 1);
            (c.norm, c.ffn, c.tie_embeddings) = (Norm::RmsNorm, Ffn::GeluTanh, true);
        }),
        with(&|c| {
            (c.n_embd, c.n_head, c.n_kv_head, c.head_dim) = (32, 5, 5, 7);
            (c.positional_encoding, c.qk_norm) = (PositionalEncoding::Alibi, true);
        }),
        with(&|c| (c.positional_encoding, c.head_dim) = (PositionalEncoding::Learned, 1)),
        with(&|c| c.rope_scaling = Some(RopeScaling::Linear { factor: 2.5 })),
        with(&|c| c.rope_scaling = Some(LLAMA3)),
        with(&|c| {
            (c.rope_scaling, c.head_dim, c.rope_theta) = (Some(LLAMA3), 34, 50.0);
            (c.norm, c.attention_bias, c.qk_norm) = (Norm::RmsNorm, true, true);
        }),
        with(&|c| {
            (c.qk_norm, c.positional_encoding) = (true, PositionalEncoding::Learned);
            resize(c, 128, 1, 1);
        }),
    ]
}

/// A name for messages.
pub fn describe(c: &ModelConfig) -> String {
    format!(
        "{} {} {} heads {}/{} of {} width {} ffn {} biases {}{}{}{} tied {} final norm {} qk norm {} cap {} \
         scaling {:?}",
        c.positional_encoding.name(),
        c.norm.name(),
        c.ffn.name(),
        c.n_head,
        c.n_kv_head,
        c.head_dim,
        c.n_embd,
        c.ffn_dim,
        u8::from(c.attention_bias),
        u8::from(c.ffn_bias),
        u8::from(c.norm_bias),
        u8::from(c.lm_head_bias),
        c.tie_embeddings,
        c.final_norm,
        c.qk_norm,
        c.logit_softcap,
        c.rope_scaling
    )
}

/// Numbers from -1 to 1, the same for the same seed (a 64-bit linear congruential generator).
pub struct Random(u64);

impl Random {
    /// A sequence of its own for each seed.
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1))
    }

    /// The next 32 bits.
    pub fn bits(&mut self) -> u32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }

    /// The next number in -1..1.
    pub fn number(&mut self) -> f32 {
        (self.bits() >> 8) as f32 / 8_388_608.0 - 1.0
    }

    /// The next index below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.bits() as usize % n
    }
}

/// A vocabulary of `n` characters.
pub fn tokenizer(n: usize) -> Tokenizer {
    let chars: String = ('A'..).take(n).collect();
    Tokenizer::Char(CharTokenizer::from_text(&chars))
}

/// Random weights of a size that keeps activations near one.
pub fn random_values(spec: &TensorSpec, random: &mut Random) -> Vec<f32> {
    let (mean, spread) = match spec.shape.as_slice() {
        [_] if spec.name.ends_with("norm.weight") => (1.0, 0.3),
        [_] => (0.0, 0.3),
        _ if spec.name.contains("embed_tokens") => (0.0, 1.0),
        [_, width] => (0.0, (3.0 / *width as f32).sqrt()),
        _ => (0.0, 1.0),
    };
    (0..spec.len()).map(|_| mean + spread * random.number()).collect()
}

/// Writes a model of random weights.
pub fn write_random(path: &Path, config: &ModelConfig, dtype: Dtype, seed: u64) {
    let mut random = Random::new(seed);
    format::write_model(path, config, &tokenizer(config.vocab_size), &[], dtype, &mut |spec| {
        random_values(spec, &mut random)
    })
    .expect("a valid configuration and a folder that can be written");
}

/// A file of random weights in a folder of its own, which vanishes with the value.
pub struct RandomModel {
    folder: tempfile::TempDir,
}

impl RandomModel {
    /// Writes the file.
    pub fn new(config: &ModelConfig, dtype: Dtype, seed: u64) -> RandomModel {
        let model = RandomModel { folder: tempfile::tempdir().expect("a temporary folder") };
        write_random(&model.path(), config, dtype, seed);
        model
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("model.safetensors")
    }

    /// The model on the given backend.
    pub fn load<B: Backend>(&self, backend: B) -> Arc<Model<B>> {
        let weights = Weights::map(&self.path()).expect("a file of our own");
        Arc::new(Model::load(backend, &weights).expect("enough memory"))
    }
}

/// Bytes of the header of a model file.
pub fn header_len(bytes: &[u8]) -> usize {
    u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize
}

/// A model file with another header, padded and its length put right.
pub fn with_header(bytes: &[u8], change: impl Fn(&str) -> String) -> Vec<u8> {
    let end = 8 + header_len(bytes);
    let mut header = change(std::str::from_utf8(&bytes[8..end]).expect("JSON"));
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &bytes[end..]].concat()
}

/// A sequence of `n` random tokens.
pub fn random_tokens(n: usize, vocab_size: usize, seed: u64) -> Vec<u32> {
    let mut random = Random::new(seed);
    (0..n).map(|_| random.below(vocab_size) as u32).collect()
}

/// The path of one of the project's programs, built first if it is not up to date, with the profile
/// of the tests and in the same folder.
pub fn program(name: &str) -> PathBuf {
    let package = match name {
        "teeny-run" | "teeny-convert" => "teeny-runtime",
        "teeny-train" => "teeny-trainer",
        other => panic!("{other} is no program of this project"),
    };
    build(package, &["--bin", name]).join(name)
}

/// The folder with `libteeny.so` and `libteeny.a`, built as [`program`] does.
pub fn library() -> PathBuf {
    build("teeny-ffi", &["--lib"])
}

/// The same with the feature `fault-injection`, in a target folder of its own: where the others are,
/// it would take their place.
pub fn library_with_faults() -> PathBuf {
    build_in("fault-injection", "teeny-ffi", &["--lib", "--features", "fault-injection"])
}

/// Builds a target of a package; returns the folder that it is in.
fn build(package: &str, target: &[&str]) -> PathBuf {
    build_in("", package, target)
}

/// As [`build`], in a folder inside of the target folder.
fn build_in(subfolder: &str, package: &str, target: &[&str]) -> PathBuf {
    static BUILDING: Mutex<()> = Mutex::new(());
    // target/PROFILE/deps/this-test
    let test = std::env::current_exe().expect("this test");
    let profile = test.ancestors().nth(2).expect("target/PROFILE");
    let target_dir = profile.parent().expect("target").join(subfolder);
    let folder = target_dir.join(profile.file_name().expect("PROFILE"));
    let _one_at_a_time = BUILDING.lock();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--package", package]).args(target);
    cargo.arg("--target-dir").arg(target_dir);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    if !subfolder.is_empty() {
        // Nobody ships it: all cores may compile it.
        cargo.env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let built = cargo.current_dir(root).status().expect("cargo starts");
    assert!(built.success(), "cargo builds {package}");
    if package == "teeny-ffi" {
        // What is linked against libteeny.so looks for the name that is in it.
        // Made once, because programs of other tests may be using it.
        let link = folder.join("libteeny.so.1");
        if !link.exists() {
            std::os::unix::fs::symlink("libteeny.so", &link).expect("a link in the target folder");
        }
    }
    folder
}
