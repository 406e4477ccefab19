//! Golden agreement of the optimizers and schedules with PyTorch: `tests/peers/optimizers.py` does
//! twenty steps of each with `torch.optim.AdamW`, `clip_grad_norm_`, `AveragedModel`, the schedulers of
//! `torch.optim.lr_scheduler`, and Muon written from its published description and checked against
//! `torch.optim.Muon`. That script also says where its tolerances come from.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use serde_json::Value;
use tch::{Device, Kind, Tensor};
use teeny_runtime::format::TensorSpec;
use teeny_trainer::optim::{OptimConfig, Optimizer, OptimizerKind};
use teeny_trainer::params::{Params, flat_to_vec};
use teeny_trainer::schedule::{LearningRate, Schedule};

/// What the script has printed.
static ORACLE: LazyLock<Value> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    // Not $PYTHON, which trainer/setup.sh and so tests/run.sh take for an interpreter without torch.
    let python = root.join("trainer/.venv/bin/python");
    let output =
        Command::new(&python).arg(root.join("tests/peers/optimizers.py")).output().unwrap_or_else(
            |error| panic!("{}: {error}; trainer/setup.sh installs it", python.display()),
        );
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} failed: {errors}", python.display());
    serde_json::from_slice(&output.stdout).expect("JSON")
});

fn number(config: &Value, key: &str) -> f64 {
    config[key].as_f64().unwrap_or_else(|| panic!("{key} is a number: {config}"))
}

fn count(config: &Value, key: &str) -> u64 {
    config[key].as_u64().unwrap_or_else(|| panic!("{key} is a count: {config}"))
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("{key} is a text: {value}"))
}

fn items<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().unwrap_or_else(|| panic!("{key} is a list"))
}

fn learning_rate(config: &Value) -> LearningRate {
    LearningRate {
        schedule: match text(config, "schedule") {
            "cosine" => Schedule::Cosine,
            "wsd" => Schedule::Wsd,
            other => panic!("{other} is no schedule"),
        },
        max: number(config, "lr_max"),
        min: number(config, "lr_min"),
        warmup_iters: count(config, "warmup_iters"),
        decay_fraction: number(config, "decay_fraction"),
        n_iters: count(config, "n_iters"),
    }
}

fn optim_config(config: &Value) -> OptimConfig {
    OptimConfig {
        kind: match text(config, "optimizer") {
            "adamw" => OptimizerKind::AdamW,
            "muon" => OptimizerKind::Muon,
            other => panic!("{other} is no optimizer"),
        },
        lr: learning_rate(config),
        muon_lr: number(config, "muon_lr"),
        betas: [0, 1].map(|i| config["betas"][i].as_f64().expect("a number")),
        weight_decay: number(config, "weight_decay"),
        grad_clip: number(config, "grad_clip"),
        ema: number(config, "ema"),
        muon_kind: match config["muon_dtype"].as_str() {
            Some("bfloat16") => Kind::BFloat16,
            Some("float32") | None => Kind::Float,
            Some(other) => panic!("{other} is no type"),
        },
    }
}

/// The tensors of one of the script's models, in the order of their numbers.
fn specs(model: &str) -> Vec<TensorSpec> {
    let spec = |tensor: &Value| TensorSpec {
        name: tensor[0].as_str().expect("a name").to_owned(),
        shape: tensor[1]
            .as_array()
            .expect("a shape")
            .iter()
            .map(|n| n.as_u64().expect("a size") as usize)
            .collect(),
    };
    items(&ORACLE["models"], model).iter().map(spec).collect()
}

/// The script's `wave`: element `k` of tensor `n`.
fn wave(n: usize, k: usize, p: u64) -> f64 {
    let k = k as f64;
    (0.37 * (k + 1.0) * (k + 1.0) + 1.7 * n as f64 + 0.61 * p as f64 * (k + 3.0)).sin()
}

fn initial(n: usize, spec: &TensorSpec) -> Vec<f32> {
    let is_norm = spec.name.contains("norm");
    let value = |w: f64| if is_norm { 1.0 + 0.1 * w } else { 0.5 * w };
    (0..spec.len()).map(|k| value(wave(n, k, 0)) as f32).collect()
}

fn gradient(n: usize, spec: &TensorSpec, t: u64) -> Vec<f32> {
    let scale = [1.0, 0.1, 0.01][(t % 3) as usize];
    let element = |k: usize| {
        let diagonal = match spec.shape[..] {
            [_, columns] if k / columns == k % columns => 2.0,
            _ => 0.0,
        };
        ((wave(n, k, t + 1) + diagonal) * scale) as f32
    };
    (0..spec.len()).map(element).collect()
}

/// A flat tensor in the layout of `params` of what `values` gives for each tensor and its number.
fn flat(
    params: &Params,
    specs: &[TensorSpec],
    values: impl Fn(usize, &TensorSpec) -> Vec<f32>,
) -> Tensor {
    let mut all = vec![0.0; params.len()];
    for (i, spec) in specs.iter().enumerate() {
        let range = params.range(&spec.name).expect("a tensor of the model");
        all[range].copy_from_slice(&values(i + 1, spec));
    }
    Tensor::from_slice(&all)
}

/// Every value after the steps of a case, by tensor; the averaged ones if there is an average.
fn train(case: &Value) -> HashMap<String, Vec<f32>> {
    let specs = specs(text(case, "model"));
    let config = optim_config(&case["config"]);
    let mut params = Params::new(specs.clone(), Device::Cpu);
    let start = flat(&params, &specs, initial);
    params.set_flat(&start);
    let mut optimizer = Optimizer::new(&params, &config);
    for t in 0..count(&ORACLE, "n_steps") {
        let grad = flat(&params, &specs, |n, spec| gradient(n, spec, t));
        let scalars = Tensor::from_slice(&optimizer.scalars(t, 1.0));
        let norm = optimizer.update(&params, &grad, &scalars).double_value(&[]);
        let expected = grad.norm().double_value(&[]);
        assert!((norm - expected).abs() < 1e-4 * expected, "length of gradient {t}: {norm}");
    }
    let found = flat_to_vec(optimizer.ema.as_ref().unwrap_or(&params.theta));
    params.entries().map(|(spec, range)| (spec.name.clone(), found[range].to_vec())).collect()
}

/// Where a case is furthest from `expected`: the difference, and a name for it.
fn furthest(found: &HashMap<String, Vec<f32>>, expected: &Value) -> (f64, String) {
    let expected = expected.as_object().expect("tensors");
    assert_eq!(found.len(), expected.len());
    let mut worst = (0.0, String::new());
    for (name, values) in expected {
        let values = values.as_array().expect("values");
        assert_eq!(found[name].len(), values.len(), "{name}");
        for (k, (found, expected)) in found[name].iter().zip(values).enumerate() {
            let expected = expected.as_f64().expect("a number");
            let difference = (f64::from(*found) - expected).abs();
            // A NaN is further than anything.
            if difference.is_nan() || difference > worst.0 {
                worst = (difference, format!("{name}[{k}]: found {found}, expected {expected}"));
            }
            if difference.is_nan() {
                return worst;
            }
        }
    }
    worst
}

fn agree(is_meant: impl Fn(&Value) -> bool, n_cases: usize) {
    tch::set_num_threads(1);
    let cases: Vec<&Value> = items(&ORACLE, "cases").iter().filter(|c| is_meant(c)).collect();
    assert_eq!(cases.len(), n_cases);
    for case in cases {
        let tolerance = number(case, "tolerance");
        let (worst, place) = furthest(&train(case), &case["values"]);
        assert!(worst <= tolerance, "{}: off by {worst:.1e}, {place}", text(case, "name"));
    }
}

fn muon_dtype(case: &Value) -> Option<&str> {
    case["config"]["muon_dtype"].as_str()
}

#[test]
fn adamw_agrees_with_pytorch() {
    agree(|case| muon_dtype(case).is_none(), 6);
}

#[test]
fn muon_agrees_with_its_reference() {
    agree(|case| muon_dtype(case) == Some("float32"), 8);
}

#[test]
fn muon_in_bf16_agrees_with_its_reference_and_with_pytorch() {
    agree(|case| muon_dtype(case) == Some("bfloat16"), 8);
}

/// The tolerance of bf16 would let f32 pass: that the configuration is heeded shows here.
#[test]
fn muon_in_bf16_is_not_muon_in_f32() {
    let find = |name: &str| {
        let mut cases = items(&ORACLE, "cases").iter();
        cases.find(|case| text(case, "name") == name).expect("the script has this case")
    };
    let found = train(find("muon wsd bfloat16 decay"));
    let (worst, _) = furthest(&found, &find("muon wsd float32 decay")["values"]);
    assert!(worst > 1e-3, "{worst:.1e}");
}

#[test]
fn schedules_are_those_of_pytorch() {
    let cases = items(&ORACLE, "schedules");
    assert!(cases.len() > 10);
    for case in cases {
        let config = &case["config"];
        let lr = learning_rate(config);
        let rates = items(case, "rates");
        assert_eq!(rates.len() as u64, lr.n_iters);
        for (i, expected) in rates.iter().enumerate() {
            let expected = expected.as_f64().expect("a number");
            let found = lr.at(i as u64);
            assert!((found - expected).abs() < 1e-12, "{config}, step {i}: {found}, {expected}");
        }
    }
}
