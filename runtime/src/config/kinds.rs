//! What a model chooses between: its positional encoding, its norm and its FFN.

/// How a model knows the order of its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PositionalEncoding {
    /// It does not, but for what the causal mask tells.
    None,
    /// Scores fall with distance, by a slope for each head (arXiv:2108.12409).
    Alibi,
    /// Fixed sines and cosines are added to the embedding (arXiv:1706.03762).
    Sinusoidal,
    /// A learned vector for each position is added to the embedding.
    Learned,
    /// A learned linear map of a 16-dimensional sinusoid is added to the embedding.
    LearnedSinusoidal,
    /// Queries and keys are rotated by their position (arXiv:2104.09864).
    Rope,
}

impl PositionalEncoding {
    /// Every encoding.
    pub const ALL: &[PositionalEncoding] = &[
        PositionalEncoding::None,
        PositionalEncoding::Alibi,
        PositionalEncoding::Sinusoidal,
        PositionalEncoding::Learned,
        PositionalEncoding::LearnedSinusoidal,
        PositionalEncoding::Rope,
    ];

    /// Every spelling that a configuration may use, the standard one of each value first.
    pub const SPELLINGS: &[(&str, PositionalEncoding)] = &[
        ("none", PositionalEncoding::None),
        ("alibi", PositionalEncoding::Alibi),
        ("sinusoidal", PositionalEncoding::Sinusoidal),
        ("learned", PositionalEncoding::Learned),
        ("learned_embedding", PositionalEncoding::Learned), // teenyGPT
        ("learned_sinusoidal", PositionalEncoding::LearnedSinusoidal),
        ("rope", PositionalEncoding::Rope),
    ];

    /// Standard spelling, the one that a model file holds.
    pub fn name(self) -> &'static str {
        match self {
            PositionalEncoding::None => "none",
            PositionalEncoding::Alibi => "alibi",
            PositionalEncoding::Sinusoidal => "sinusoidal",
            PositionalEncoding::Learned => "learned",
            PositionalEncoding::LearnedSinusoidal => "learned_sinusoidal",
            PositionalEncoding::Rope => "rope",
        }
    }

    /// The value of any spelling in any case.
    pub fn parse(text: &str) -> Option<PositionalEncoding> {
        parse(Self::SPELLINGS, text)
    }
}

/// Normalisation before attention, before the FFN and (with `final_norm`) before the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Norm {
    /// The identity.
    None,
    /// Mean 0 and variance 1, then a scale and perhaps a shift (arXiv:1607.06450).
    LayerNorm,
    /// Root mean square 1, then a scale (arXiv:1910.07467).
    RmsNorm,
}

impl Norm {
    /// Every norm.
    pub const ALL: &[Norm] = &[Norm::None, Norm::LayerNorm, Norm::RmsNorm];

    /// Every spelling that a configuration may use, the standard one of each value first.
    pub const SPELLINGS: &[(&str, Norm)] = &[
        ("none", Norm::None),
        ("layernorm", Norm::LayerNorm),
        ("classic", Norm::LayerNorm), // teenyGPT
        ("rmsnorm", Norm::RmsNorm),
        ("rms", Norm::RmsNorm), // teenyGPT
    ];

    /// Standard spelling, the one that a model file holds.
    pub fn name(self) -> &'static str {
        match self {
            Norm::None => "none",
            Norm::LayerNorm => "layernorm",
            Norm::RmsNorm => "rmsnorm",
        }
    }

    /// The value of any spelling in any case.
    pub fn parse(text: &str) -> Option<Norm> {
        parse(Self::SPELLINGS, text)
    }
}

/// The feed-forward network of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ffn {
    /// `down(relu(up(x)))` (arXiv:1706.03762).
    Classic,
    /// `down(gelu(up(x)))` with the exact GELU, by erf (arXiv:1606.08415).
    Gelu,
    /// `down(gelu(up(x)))` with the approximation of that GELU by tanh, as GPT-2 has it
    /// (arXiv:1606.08415, section 2).
    GeluTanh,
    /// `down(relu(up(x))²)` (arXiv:2109.08668).
    Relu2,
    /// `down(silu(gate(x)) * up(x))` (arXiv:2002.05202).
    Swiglu,
}

impl Ffn {
    /// Every kind.
    pub const ALL: &[Ffn] = &[Ffn::Classic, Ffn::Gelu, Ffn::GeluTanh, Ffn::Relu2, Ffn::Swiglu];

    /// Every spelling that a configuration may use, the standard one of each value first.
    pub const SPELLINGS: &[(&str, Ffn)] = &[
        ("classic", Ffn::Classic),
        ("gelu", Ffn::Gelu),
        ("gelu_tanh", Ffn::GeluTanh),
        ("gelu_new", Ffn::GeluTanh), // transformers
        ("relu2", Ffn::Relu2),
        ("relu_squared", Ffn::Relu2),
        ("swiglu", Ffn::Swiglu),
        ("swish_glu", Ffn::Swiglu), // teenyGPT
    ];

    /// Standard spelling, the one that a model file holds.
    pub fn name(self) -> &'static str {
        match self {
            Ffn::Classic => "classic",
            Ffn::Gelu => "gelu",
            Ffn::GeluTanh => "gelu_tanh",
            Ffn::Relu2 => "relu2",
            Ffn::Swiglu => "swiglu",
        }
    }

    /// The value of any spelling in any case.
    pub fn parse(text: &str) -> Option<Ffn> {
        parse(Self::SPELLINGS, text)
    }
}

fn parse<T: Copy>(spellings: &[(&str, T)], text: &str) -> Option<T> {
    let found = spellings.iter().find(|(spelling, _)| spelling.eq_ignore_ascii_case(text));
    found.map(|(_, value)| *value)
}
