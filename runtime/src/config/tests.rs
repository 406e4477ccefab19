//! The section `[model]` in both projects' names, what it refuses, and metadata that nobody vouches
//! for.

use std::collections::HashMap;
use std::path::Path;

use super::*;

fn ini(model: &str) -> Ini {
    Ini::parse(Path::new("c.ini"), &format!("[model]\n{model}\n")).expect("valid INI")
}

fn read(model: &str) -> Result<ModelSection> {
    model_section(&ini(model), 65)
}

/// Of Llama 3.2.
const LLAMA3: RopeScaling = RopeScaling::Llama3 {
    factor: 32.0,
    low_freq_factor: 1.0,
    high_freq_factor: 4.0,
    original_max_seq_len: 8192,
};

/// What a file without any key means.
fn reference() -> ModelConfig {
    ModelConfig {
        vocab_size: 65,
        n_layer: 4,
        n_head: 8,
        n_kv_head: 8,
        n_embd: 256,
        head_dim: 32,
        ffn_dim: 256,
        max_seq_len: 256,
        positional_encoding: PositionalEncoding::Rope,
        rope_theta: 10_000.0,
        rope_scaling: None,
        norm: Norm::LayerNorm,
        norm_eps: 1e-5,
        final_norm: true,
        ffn: Ffn::Swiglu,
        attention_bias: false,
        ffn_bias: false,
        norm_bias: false,
        lm_head_bias: false,
        tie_embeddings: false,
        qk_norm: false,
        logit_softcap: 0.0,
    }
}

#[test]
fn nothing_means_the_reference_configuration() {
    let model = read("").expect("valid");
    assert_eq!(model.config, reference());
    assert_eq!(model.dropout, 0.2);
}

/// The file at the project's root documents the defaults, so it must say the same.
#[test]
fn config_ini_is_the_reference_configuration() {
    let text = include_str!("../../../config.ini");
    let ini = Ini::parse(Path::new("config.ini"), text).expect("valid INI");
    ini.check_sections(SECTIONS).expect("known sections");
    let model = model_section(&ini, 65).expect("valid");
    assert_eq!(model.config, reference());
    assert_eq!(model.dropout, 0.2);
    assert_eq!(n_context(&ini, 256).expect("valid"), 256);
    for key in MODEL_KEYS {
        // Commented-out keys count: they are documented too.
        let documented = |line: &str| {
            line.trim_start_matches('#').trim_start().starts_with(&format!("{} =", key.name))
        };
        assert!(text.lines().any(documented), "{} is not documented", key.name);
    }
}

#[test]
fn every_key_is_read() {
    let model = read(
        "n_layer = 2\nn_head = 6\nn_kv_head = 3\nn_embd = 48\nhead_dim = 10\nffn_dim = 100\nmax_seq_len = 1_000\n\
         dropout = 0\npositional_encoding = rope\nrope_theta = 5e5\nrope_scaling = llama3\n\
         rope_factor = 8\nrope_low_freq_factor = 0.5\nrope_high_freq_factor = 3\n\
         rope_original_max_seq_len = 8_192\nnorm = layernorm\n\
         norm_eps = 1e-6\nfinal_norm = no\nffn = gelu_tanh\nbias = false\nattention_bias = yes\n\
         ffn_bias = on\nnorm_bias = 1\nlm_head_bias = true\ntie_embeddings = TRUE\n\
         qk_norm = yes\nlogit_softcap = 30.5",
    )
    .expect("valid");
    assert_eq!(
        model.config,
        ModelConfig {
            vocab_size: 65,
            n_layer: 2,
            n_head: 6,
            n_kv_head: 3,
            n_embd: 48,
            head_dim: 10,
            ffn_dim: 100,
            max_seq_len: 1000,
            positional_encoding: PositionalEncoding::Rope,
            rope_theta: 5e5,
            rope_scaling: Some(RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 0.5,
                high_freq_factor: 3.0,
                original_max_seq_len: 8192,
            }),
            norm: Norm::LayerNorm,
            norm_eps: 1e-6,
            final_norm: false,
            ffn: Ffn::GeluTanh,
            attention_bias: true,
            ffn_bias: true,
            norm_bias: true,
            lm_head_bias: true,
            tie_embeddings: true,
            qk_norm: true,
            logit_softcap: 30.5,
        }
    );
    assert_eq!(model.dropout, 0.0);
}

const TEENYGPT: &str = "n_dim=128\nn_attn_heads=4\nn_attn_layers=3\np_dropout=1e-1\n\
    positional_encoding_type=LEARNED_EMBEDDING\nffn_type=SWISH_GLU\nlayer_norm_type=CLASSIC\n\
    n_context_max=64";

#[test]
fn a_config_for_teenygpt_gives_its_model() {
    let expected = ModelConfig {
        n_layer: 3,
        n_head: 4,
        n_kv_head: 4,
        n_embd: 128,
        head_dim: 32,
        ffn_dim: 128,
        max_seq_len: 64,
        positional_encoding: PositionalEncoding::Learned,
        final_norm: false,
        norm_bias: true,
        lm_head_bias: true,
        ..reference()
    };
    let model = read(TEENYGPT).expect("valid");
    assert_eq!(model.config, expected);
    assert_eq!(model.dropout, 0.1);

    let changed = |from: &str, to: &str| read(&TEENYGPT.replace(from, to)).expect(to).config;
    assert_eq!(
        changed("layer_norm_type=CLASSIC", "layer_norm_type=RMS"),
        ModelConfig { norm: Norm::RmsNorm, norm_eps: 1e-8, norm_bias: false, ..expected.clone() }
    );
    assert_eq!(
        changed("layer_norm_type=CLASSIC", "layer_norm_type=none"),
        ModelConfig { norm: Norm::None, norm_bias: false, ..expected.clone() }
    );
    assert_eq!(
        changed("ffn_type=SWISH_GLU", "ffn_type=classic"),
        ModelConfig { ffn: Ffn::Classic, ffn_bias: true, ..expected.clone() }
    );
    for (name, value) in [
        ("NONE", PositionalEncoding::None),
        ("ALIBI", PositionalEncoding::Alibi),
        ("SINUSOIDAL", PositionalEncoding::Sinusoidal),
        ("LEARNED", PositionalEncoding::Learned),
        ("LEARNED_SINUSOIDAL", PositionalEncoding::LearnedSinusoidal),
        ("ROPE", PositionalEncoding::Rope),
    ] {
        assert_eq!(changed("LEARNED_EMBEDDING", name).positional_encoding, value);
    }
}

#[test]
fn what_a_teenygpt_config_says_itself_holds() {
    let model = |more: &str| read(&format!("{TEENYGPT}\n{more}")).expect(more).config;
    assert!(model("final_norm = true").final_norm);
    assert!(!model("lm_head_bias = false").lm_head_bias);
    assert!(!model("bias = false").norm_bias);
    assert_eq!(model("ffn_dim = 512").ffn_dim, 512);
}

#[test]
fn only_teenygpts_names_in_the_file_give_teenygpts_model() {
    // nanoGPT's name
    assert_eq!(read("block_size = 256").expect("valid").config, reference());
    // teenyGPT's values under standard names
    assert_eq!(read("norm = CLASSIC\nffn = SWISH_GLU").expect("valid").config, reference());
    let mut standard = ini("n_embd = 256");
    standard.set("model.n_dim=64").expect("well formed");
    let config = model_section(&standard, 65).expect("valid").config;
    assert_eq!(config, ModelConfig { n_embd: 64, head_dim: 8, ffn_dim: 64, ..reference() });
    let mut teenygpt = ini("n_dim = 256");
    teenygpt.set("model.n_embd=64").expect("well formed");
    assert!(model_section(&teenygpt, 65).expect("valid").config.lm_head_bias);
}

#[test]
fn bias_stands_for_three_keys() {
    let biases = |text: &str| {
        let c = read(text).expect(text).config;
        [c.attention_bias, c.ffn_bias, c.norm_bias, c.lm_head_bias]
    };
    assert_eq!(biases("bias = true"), [true, true, true, false]);
    assert_eq!(biases("bias = true\nffn_bias = false"), [true, false, true, false]);
    assert_eq!(biases("bias = false\nattention_bias = true"), [true, false, false, false]);
    assert_eq!(biases("bias = true\nnorm = rmsnorm"), [true, true, false, false]);
}

#[test]
fn bad_configurations_are_refused_with_their_place() {
    for (text, message) in [
        (
            "n_layer = 0",
            "c.ini:2: [model] n_layer: found 0, expected a whole number from 1 to 1024",
        ),
        (
            "n_attn_layers = 1025",
            "c.ini:2: [model] n_attn_layers: found 1025, expected a whole number from 1 to 1024",
        ),
        (
            "n_embd = 65537",
            "c.ini:2: [model] n_embd: found 65537, expected a whole number from 1 to 65536",
        ),
        (
            "\nn_embd = 250",
            "c.ini:3: [model] n_embd: found 250, expected a multiple of n_head = 8, or a head_dim",
        ),
        (
            "n_head = 7",
            "c.ini: [model] n_embd: found 256, expected a multiple of n_head = 7, or a head_dim",
        ),
        (
            "n_dim = 100\nn_attn_heads = 3",
            "c.ini:2: [model] n_dim: found 100, expected a multiple of n_head = 3, or a head_dim",
        ),
        ("n_kv_head = 3", "c.ini:2: [model] n_kv_head: found 3, expected a divisor of n_head = 8"),
        (
            "n_kv_head = 16",
            "c.ini:2: [model] n_kv_head: found 16, expected a divisor of n_head = 8",
        ),
        (
            "n_embd = 24",
            "c.ini:2: [model] n_embd: found 24, expected an even head_dim for rope, not n_embd / n_head = 24 / 8 = 3",
        ),
        ("head_dim = 33", "c.ini:2: [model] head_dim: found 33, expected an even number for rope"),
        (
            "head_dim = 10_000",
            "c.ini:2: [model] head_dim: found 10000, expected at most 8192 for n_head = 8",
        ),
        (
            "head_dim = 0",
            "c.ini:2: [model] head_dim: found 0, expected a whole number from 1 to 65536",
        ),
        (
            "rope_scaling = yarn",
            "c.ini:2: [model] rope_scaling: found \"yarn\", expected none, linear or llama3",
        ),
        (
            "rope_scaling = linear",
            "c.ini: [model] rope_factor: found nothing, expected a number with rope_scaling = linear",
        ),
        (
            "rope_factor = 8",
            "c.ini:2: [model] rope_factor: found 8, expected rope_scaling = linear or llama3 with it",
        ),
        (
            "rope_scaling = linear\nrope_factor = 8\nrope_low_freq_factor = 1",
            "c.ini:4: [model] rope_low_freq_factor: found 1, expected rope_scaling = llama3 with it",
        ),
        (
            "rope_scaling = linear\nrope_factor = 0",
            "c.ini:3: [model] rope_factor: found 0, expected a number from 0.0001 to 1e6",
        ),
        (
            "rope_scaling = llama3\nrope_factor = 8",
            "c.ini: [model] rope_original_max_seq_len: found nothing, expected a whole number with rope_scaling = llama3",
        ),
        (
            "rope_scaling = llama3\nrope_factor = 8\nrope_original_max_seq_len = 0",
            "c.ini:4: [model] rope_original_max_seq_len: found 0, expected a whole number from 1 to 16777216",
        ),
        (
            "rope_scaling = llama3\nrope_factor = 8\nrope_original_max_seq_len = 9\nrope_low_freq_factor = 4",
            "c.ini: [model] rope_high_freq_factor: found 4, expected more than rope_low_freq_factor = 4",
        ),
        (
            "rope_scaling = linear\nrope_factor = 8\npositional_encoding = alibi",
            "c.ini:2: [model] rope_scaling: found linear, expected none: only rope has frequencies to scale, not positional_encoding = alibi",
        ),
        (
            "n_embd = 25\nn_head = 5\npositional_encoding = sinusoidal",
            "c.ini:2: [model] n_embd: found 25, expected an even number for sinusoidal",
        ),
        (
            "max_seq_len = 16_777_217",
            "c.ini:2: [model] max_seq_len: found \"16_777_217\", expected a whole number from 1 to 16777216",
        ),
        ("dropout = 1", "c.ini:2: [model] dropout: found 1, expected a number from 0 and below 1"),
        (
            "p_dropout = -0.1",
            "c.ini:2: [model] p_dropout: found -0.1, expected a number from 0 and below 1",
        ),
        (
            "rope_theta = 0",
            "c.ini:2: [model] rope_theta: found 0, expected a number from 1 to 1e12",
        ),
        (
            "norm_eps = nan",
            "c.ini:2: [model] norm_eps: found nan, expected a number from 1e-12 to 1",
        ),
        ("norm_eps = 0", "c.ini:2: [model] norm_eps: found 0, expected a number from 1e-12 to 1"),
        (
            "norm = layernrom",
            "c.ini:2: [model] norm: found \"layernrom\", expected none, layernorm or rmsnorm (did you mean layernorm?)",
        ),
        (
            "ffn = moe",
            "c.ini:2: [model] ffn: found \"moe\", expected classic, gelu, gelu_tanh, relu2 or swiglu",
        ),
        (
            "positional_encoding = roep",
            "c.ini:2: [model] positional_encoding: found \"roep\", expected none, alibi, sinusoidal, learned, learned_sinusoidal or rope (did you mean rope?)",
        ),
        (
            "norm = rmsnorm\nnorm_bias = true",
            "c.ini:3: [model] norm_bias: found true, expected false: only layernorm has a bias, not norm = rmsnorm",
        ),
        (
            "tie_embeddings = maybe",
            "c.ini:2: [model] tie_embeddings: found \"maybe\", expected true or false",
        ),
        (
            "logit_softcap = 0.05",
            "c.ini:2: [model] logit_softcap: found 0.05, expected 0 or a number from 0.1 to 1000",
        ),
        (
            "logit_softcap = -30",
            "c.ini:2: [model] logit_softcap: found -30, expected a number from 0 to 1000",
        ),
        (
            "logit_softcap = 1e4",
            "c.ini:2: [model] logit_softcap: found 1e4, expected a number from 0 to 1000",
        ),
        (
            "logit_softcap = NaN",
            "c.ini:2: [model] logit_softcap: found NaN, expected a number from 0 to 1000",
        ),
        (
            "qk_norm = rms",
            "c.ini:2: [model] qk_norm: found \"rms\", expected true or false (did you mean yes?)",
        ),
        (
            "n_embed = 256",
            "c.ini:2: [model] n_embed: found an unknown key, expected a key of [model] (did you mean n_embd?)",
        ),
        (
            "n_dim = 64\nn_embd = 64",
            "c.ini:3: [model] n_embd: found the key of c.ini:2 under another name, expected either n_dim or n_embd",
        ),
    ] {
        assert_eq!(read(text).expect_err(text).to_string(), message);
    }
}

#[test]
fn the_context_of_training_is_read_alone() {
    let read = |train: &str| {
        let text = format!("[train]\nunknown = 1\n{train}");
        n_context(&Ini::parse(Path::new("c.ini"), &text).expect("valid INI"), 256)
    };
    assert_eq!(read("").expect("default"), 256);
    assert_eq!(read("n_context = 64").expect("valid"), 64);
    assert_eq!(read("block_size = 256").expect("valid"), 256);
    assert_eq!(
        read("block_size = 257").expect_err("too long").to_string(),
        "c.ini:3: [train] block_size: found 257, expected a whole number up to max_seq_len = 256 in \
         [model]"
    );
}

#[test]
fn metadata_round_trip() {
    for positional_encoding in PositionalEncoding::ALL {
        for norm in Norm::ALL {
            for ffn in Ffn::ALL {
                let config = ModelConfig {
                    positional_encoding: *positional_encoding,
                    norm: *norm,
                    ffn: *ffn,
                    rope_theta: 1e12,
                    norm_eps: 1e-12,
                    n_kv_head: 2,
                    norm_bias: *norm == Norm::LayerNorm,
                    ..reference()
                };
                let rope = *positional_encoding == PositionalEncoding::Rope;
                for (qk_norm, logit_softcap, head_dim, scaling) in [
                    (false, 0.0, 32, None),
                    (true, 0.1, 2, Some(RopeScaling::Linear { factor: 1.1 })),
                    (false, 1000.0, 8192, Some(LLAMA3)),
                ] {
                    let rope_scaling = scaling.filter(|_| rope);
                    let config = ModelConfig {
                        qk_norm,
                        logit_softcap,
                        head_dim,
                        rope_scaling,
                        ..config.clone()
                    };
                    let metadata: HashMap<_, _> = config.to_metadata().into_iter().collect();
                    let get = |key: &str| metadata.get(key).map(String::as_str);
                    assert_eq!(ModelConfig::from_metadata(get).expect("own output"), config);
                }
            }
        }
    }
}

#[test]
fn names_parse_to_their_values() {
    for value in PositionalEncoding::ALL {
        assert_eq!(PositionalEncoding::parse(&value.name().to_uppercase()), Some(*value));
    }
    for value in Norm::ALL {
        assert_eq!(Norm::parse(value.name()), Some(*value));
    }
    for value in Ffn::ALL {
        assert_eq!(Ffn::parse(value.name()), Some(*value));
    }
    assert_eq!(Ffn::parse("relu_squared"), Some(Ffn::Relu2));
    assert_eq!(Norm::parse(""), None);
}

#[test]
fn every_key_of_the_metadata_is_checked() {
    let with = |key: &str, value: Option<&str>| {
        let mut metadata: HashMap<_, _> = reference().to_metadata().into_iter().collect();
        let slot = metadata.get_mut(key).expect("a key of the metadata");
        match value {
            Some(value) => *slot = value.to_owned(),
            None => drop(metadata.remove(key)),
        }
        let read = ModelConfig::from_metadata(|key| metadata.get(key).map(String::as_str));
        read.expect_err(key).to_string()
    };
    for (key, _) in reference().to_metadata() {
        let prefix = format!("model file: metadata key {key}: found ");
        assert!(with(key, None).starts_with(&format!("{prefix}nothing, expected ")), "{key}");
        for bad in ["", "x", "-1", " 1", "NaN", "inf", "18446744073709551616", "RoPE", "True"] {
            let message = with(key, Some(bad));
            assert!(message.starts_with(&prefix), "{key} = {bad:?}: {message}");
        }
    }
    let later = ModelConfig {
        qk_norm: true,
        logit_softcap: 30.0,
        head_dim: 64,
        rope_scaling: Some(LLAMA3),
        ..reference()
    };
    let with_later = |key: &str, value: &str| {
        let mut metadata: HashMap<_, _> = later.to_metadata().into_iter().collect();
        assert!(metadata.insert(key, value.to_owned()).is_some(), "{key}");
        let read = ModelConfig::from_metadata(|key| metadata.get(key).map(String::as_str));
        read.expect_err(key).to_string()
    };
    for (key, _) in later.to_metadata().into_iter().skip(reference().to_metadata().len()) {
        for bad in ["", "x", "-1", " 1", "NaN", "inf", "1e30", "0.00001", "True"] {
            let message = with_later(key, bad);
            let prefix = format!("model file: metadata key {key}: found ");
            assert!(message.starts_with(&prefix), "{key} = {bad:?}: {message}");
        }
    }
    for (key, value, message) in [
        ("n_layer", "1025", "1025, expected a whole number from 1 to 1024"),
        ("n_head", "+8", "+8, expected a whole number"),
        ("n_head", "0", "0, expected a whole number from 1 to 1024"),
        ("n_kv_head", "0", "0, expected a whole number from 1 to 1024"),
        ("n_kv_head", "5", "5, expected a divisor of n_head = 8"),
        ("vocab_size", "16777216", "16777216, expected a whole number from 1 to 16777215"),
        (
            "ffn_dim",
            "18446744073709551615",
            "18446744073709551615, expected a whole number from 1 to 1048576",
        ),
        ("rope_theta", "1e30", "1000000000000000000000000000000, expected a number from 1 to 1e12"),
        ("norm", "LayerNorm", "\"LayerNorm\", expected none, layernorm or rmsnorm"),
        ("final_norm", "1", "1, expected true or false"),
    ] {
        assert_eq!(
            with(key, Some(value)),
            format!("model file: metadata key {key}: found {message}")
        );
    }
}

#[test]
fn the_largest_sizes_do_not_overflow() {
    let largest = ModelConfig {
        vocab_size: *limits::VOCAB_SIZE.end(),
        n_layer: *limits::N_LAYER.end(),
        n_head: *limits::N_HEAD.end(),
        n_kv_head: *limits::N_HEAD.end(),
        n_embd: *limits::N_EMBD.end(),
        head_dim: limits::N_EMBD.end() / limits::N_HEAD.end(),
        ffn_dim: *limits::FFN_DIM.end(),
        max_seq_len: *limits::MAX_SEQ_LEN.end(),
        positional_encoding: PositionalEncoding::Learned,
        attention_bias: true,
        ffn_bias: true,
        norm_bias: true,
        lm_head_bias: true,
        qk_norm: true,
        ..reference()
    };
    if usize::BITS == 64 {
        largest.validate().expect("within the limits");
        assert!(crate::format::n_params(&largest) > 1 << 40);
    } else {
        largest.validate().expect_err("more than can be addressed");
    }
    let all = ModelConfig {
        n_embd: usize::MAX,
        n_head: usize::MAX,
        head_dim: usize::MAX,
        ..largest.clone()
    };
    all.validate().expect_err("out of range");
    let wide = ModelConfig { head_dim: *limits::N_EMBD.end(), ..largest };
    assert_eq!(
        wide.validate().expect_err("too many queries").to_string(),
        "model file: metadata key head_dim: found 65536, expected at most 64 for n_head = 1024"
    );
}
