//! Logits to a token: a chain of stages that bias, penalise or leave out candidates, then a draw
//! from the softmax of what is left. The usual chain of [`SamplerOptions`] is penalties, top-k,
//! top-p, min-p, temperature, so that all but the last act on the distribution at temperature 1.
//!
//! | file | holds | may import |
//! |---|---|---|
//! | `mod.rs` | options and stages, checked; recent tokens; the draw | candidates |
//! | `candidates.rs` | what each stage does to the candidates | – |
//!
//! The draw is integer-exact and needs no state but a step counter, so that any device can repeat
//! it: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) keyed by
//! the seed, with the step as counter.

mod candidates;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;

use crate::alloc::reserve;
use crate::backend::DrawOptions;
use crate::error::{Error, Result};
use candidates::Candidates;

/// Most recent tokens that penalties may look at.
pub const MAX_LAST_N: usize = 1 << 20;

/// The usual chain: how tokens are drawn where nobody asks for more.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerOptions {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f32,
    /// Only this many most likely tokens; 0 is off.
    pub top_k: usize,
    /// Only the most likely tokens that together reach this probability; 1 is off.
    pub top_p: f32,
    /// Only tokens of at least this share of the most likely one's probability; 0 is off.
    pub min_p: f32,
    /// Divides positive logits of recent tokens and multiplies negative ones; 1 is off
    /// (CTRL, arXiv:1909.05858).
    pub repeat_penalty: f32,
    /// Subtracted from a recent token's logit once for each time that it occurs; 0 is off.
    pub frequency_penalty: f32,
    /// Subtracted once from the logit of any recent token; 0 is off.
    pub presence_penalty: f32,
    /// How many tokens are recent, up to [`MAX_LAST_N`].
    pub penalty_last_n: usize,
    /// The same seed draws the same tokens from the same logits.
    pub seed: u64,
}

impl Default for SamplerOptions {
    fn default() -> SamplerOptions {
        SamplerOptions {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            penalty_last_n: 64,
            seed: 0,
        }
    }
}

impl SamplerOptions {
    /// The chain: penalties, top-k, top-p, min-p, temperature. A stage that is off, or that changes
    /// nothing because temperature 0 follows, is left out.
    pub fn stages(&self) -> Vec<Stage> {
        let [penalties, top_k, top_p, min_p, temperature] = self.every_stage();
        let draws = self.temperature != 0.0;
        let neutral = (self.repeat_penalty, self.frequency_penalty, self.presence_penalty);
        let there = [
            (penalties, neutral != (1.0, 0.0, 0.0) && self.penalty_last_n > 0),
            (top_k, draws && self.top_k > 0),
            (top_p, draws && self.top_p != 1.0),
            (min_p, draws && self.min_p != 0.0),
            (temperature, self.temperature != 1.0),
        ];
        there.into_iter().filter_map(|(stage, there)| there.then_some(stage)).collect()
    }

    /// All stages, those that are off included.
    fn every_stage(&self) -> [Stage; 5] {
        [
            Stage::Penalties {
                last_n: self.penalty_last_n,
                repeat: self.repeat_penalty,
                frequency: self.frequency_penalty,
                presence: self.presence_penalty,
            },
            Stage::TopK(self.top_k),
            Stage::TopP(self.top_p),
            Stage::MinP(self.min_p),
            Stage::Temperature(self.temperature),
        ]
    }
}

/// One step from all tokens to the one that is drawn. None leaves no candidate at all, but for a
/// bias that forbids every one.
#[derive(Clone, Debug, PartialEq)]
pub enum Stage {
    /// Added to the logits of these tokens; -∞ forbids a token. Those of a token that comes twice
    /// add up.
    LogitBias(Vec<(u32, f32)>),
    /// Makes recent tokens less likely, accepted ones of the prompt included. Tokens that the
    /// logits do not cover have no effect.
    Penalties {
        /// How many tokens are recent, up to [`MAX_LAST_N`].
        last_n: usize,
        /// Divides positive logits and multiplies negative ones; 1 is off (CTRL, arXiv:1909.05858).
        repeat: f32,
        /// Subtracted once for each occurrence; 0 is off. Both as OpenAI's interface defines them.
        frequency: f32,
        /// Subtracted once; 0 is off.
        presence: f32,
    },
    /// Only this many most likely tokens; 0 is off.
    TopK(usize),
    /// Only the most likely tokens that together reach this probability; 1 is off.
    TopP(f32),
    /// Only tokens of at least this share of the most likely one's probability; 0 is off.
    MinP(f32),
    /// Divides the logits; 0 keeps the most likely token only, the first of equals.
    Temperature(f32),
}

impl Stage {
    fn check(&self) -> Result<()> {
        match self {
            Stage::LogitBias(biases) => {
                match biases.iter().find(|(_, bias)| bias.is_nan() || *bias == f32::INFINITY) {
                    None => Ok(()),
                    Some((token, bias)) => Err(Error::Argument {
                        name: "logit_bias",
                        found: format!("{bias} for token {token}"),
                        expected: "a finite number, or -inf to forbid the token".into(),
                    }),
                }
            }
            Stage::Penalties { last_n, repeat, frequency, presence } => {
                if *last_n > MAX_LAST_N {
                    return Err(Error::Argument {
                        name: "penalty_last_n",
                        found: last_n.to_string(),
                        expected: format!("0 to {MAX_LAST_N}"),
                    });
                }
                let ok = (0.01..=100.0).contains(repeat);
                number("repeat_penalty", *repeat, ok, "a number from 0.01 to 100")?;
                for (name, value) in
                    [("frequency_penalty", *frequency), ("presence_penalty", *presence)]
                {
                    let ok = (-100.0..=100.0).contains(&value);
                    number(name, value, ok, "a number from -100 to 100")?;
                }
                Ok(())
            }
            Stage::TopK(_) => Ok(()),
            Stage::TopP(p) => {
                number("top_p", *p, *p > 0.0 && *p <= 1.0, "a number above 0, up to 1")
            }
            Stage::MinP(p) => number("min_p", *p, (0.0..=1.0).contains(p), "a number from 0 to 1"),
            Stage::Temperature(t) => {
                number("temperature", *t, (0.0..=100.0).contains(t), "a number from 0 to 100")
            }
        }
    }
}

fn number(name: &'static str, found: f32, ok: bool, expected: &str) -> Result<()> {
    if ok {
        return Ok(());
    }
    Err(Error::Argument { name, found: found.to_string(), expected: expected.to_owned() })
}

impl Stage {
    fn try_clone(&self) -> Result<Stage> {
        match self {
            Stage::LogitBias(biases) => {
                let mut copy = Vec::new();
                reserve(&mut copy, biases.len(), "logit biases")?;
                copy.extend_from_slice(biases);
                Ok(Stage::LogitBias(copy))
            }
            Stage::Penalties { .. }
            | Stage::TopK(_)
            | Stage::TopP(_)
            | Stage::MinP(_)
            | Stage::Temperature(_) => Ok(self.clone()),
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stage::LogitBias(biases) => write!(f, "logit_bias (tokens {})", biases.len()),
            Stage::Penalties { last_n, repeat, frequency, presence } => write!(
                f,
                "penalties (last_n {last_n}, repeat {repeat}, frequency {frequency}, presence \
                 {presence})"
            ),
            Stage::TopK(k) => write!(f, "top_k {k}"),
            Stage::TopP(p) => write!(f, "top_p {p}"),
            Stage::MinP(p) => write!(f, "min_p {p}"),
            Stage::Temperature(t) => write!(f, "temperature {t}"),
        }
    }
}

/// Draws tokens one after the other. Shown, it is its seed and its stages in their order.
#[derive(Debug)]
pub struct Sampler {
    seed: u64,
    stages: Vec<Stage>,
    /// Tokens drawn so far: the counter of the random numbers.
    step: u64,
    /// How many recent tokens the stages look at.
    last_n: usize,
    /// Recent tokens, oldest first, at most `last_n`.
    recent: VecDeque<u32>,
    candidates: Candidates,
}

impl Sampler {
    /// The usual chain.
    ///
    /// # Errors
    /// [`Error::Argument`] for a number out of its range, NaN included, even of a stage that
    /// another number switches off.
    pub fn new(options: SamplerOptions) -> Result<Sampler> {
        for stage in options.every_stage() {
            stage.check()?;
        }
        let mut sampler = Sampler::chain(options.seed);
        for stage in options.stages() {
            sampler.push(stage)?;
        }
        Ok(sampler)
    }

    /// An empty chain, which draws from softmax(logits) until stages are added.
    pub fn chain(seed: u64) -> Sampler {
        Sampler {
            seed,
            stages: Vec::new(),
            step: 0,
            last_n: 0,
            recent: VecDeque::new(),
            candidates: Candidates::default(),
        }
    }

    /// Always takes the most likely token, the first of equals.
    pub fn greedy() -> Sampler {
        Sampler { stages: vec![Stage::Temperature(0.0)], ..Sampler::chain(0) }
    }

    /// Adds a stage at the end of the chain. Penalties see tokens that are accepted from now on.
    ///
    /// # Errors
    /// [`Error::Argument`] for a number out of its range, NaN included. No memory for the recent
    /// tokens.
    pub fn push(&mut self, stage: Stage) -> Result<()> {
        stage.check()?;
        let stage = match stage {
            Stage::LogitBias(biases) => Stage::LogitBias(candidates::merge(biases)),
            Stage::Penalties { last_n, .. } => {
                // At once, so that accepting a token never allocates.
                let more = last_n.saturating_sub(self.recent.len());
                self.recent.try_reserve(more).map_err(|_| Error::OutOfMemory {
                    what: "recent tokens",
                    bytes: more * size_of::<u32>(),
                })?;
                self.last_n = self.last_n.max(last_n);
                stage
            }
            Stage::TopK(_) | Stage::TopP(_) | Stage::MinP(_) | Stage::Temperature(_) => stage,
        };
        self.stages.push(stage);
        Ok(())
    }

    /// As `clone`, where there may be no memory for it.
    ///
    /// # Errors
    /// No memory.
    pub fn try_clone(&self) -> Result<Sampler> {
        let mut clone = Sampler { step: self.step, ..Sampler::chain(self.seed) };
        for stage in &self.stages {
            clone.push(stage.try_clone()?)?;
        }
        clone.recent.extend(&self.recent);
        Ok(clone)
    }

    /// The chain, first stage first.
    pub fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// Draws a token and accepts it. `logits`: (vocab_size). A NaN counts as impossible, +∞ as the
    /// largest number.
    ///
    /// # Errors
    /// [`Error::Argument`] if no logit is a number above -∞, if biases forbid every token, or if
    /// one is for a token that the logits do not cover. No memory for the candidates. The sampler
    /// is then as before.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32> {
        self.run(logits)?;
        let random = philox(self.seed, self.step);
        // 24 random bits are a number in [0, 1) that f32 holds exactly.
        let token = self.candidates.draw((random >> 8) as f32 * (1.0 / 16_777_216.0));
        self.step = self.step.wrapping_add(1);
        self.accept(token);
        Ok(token)
    }

    /// Leaves the candidates that the stages allow, at least one.
    fn run(&mut self, logits: &[f32]) -> Result<()> {
        let candidates = &mut self.candidates;
        candidates.collect(logits)?;
        for stage in &self.stages {
            match stage {
                Stage::LogitBias(biases) => candidates.logit_bias(biases)?,
                Stage::Penalties { last_n, repeat, frequency, presence } => {
                    let newest = self.recent.len().min(*last_n);
                    let recent = self.recent.range(self.recent.len() - newest..);
                    candidates.penalties(recent, *repeat, *frequency, *presence)?;
                }
                Stage::TopK(k) => candidates.top_k(*k),
                Stage::TopP(p) => candidates.top_p(*p),
                Stage::MinP(p) => candidates.min_p(*p),
                Stage::Temperature(t) => candidates.temperature(*t),
            }
        }
        Ok(())
    }

    /// Tells the sampler of a token that it did not draw, such as one of the prompt.
    pub fn accept(&mut self, token: u32) {
        if self.last_n == 0 {
            return;
        }
        if self.recent.len() >= self.last_n {
            self.recent.pop_front();
        }
        self.recent.push_back(token);
    }

    /// The chain in numbers, if its stages are top-k, top-p, min-p and temperature in this order, each
    /// at most once.
    pub fn chain_as_draw(&self) -> Option<DrawOptions> {
        let mut draw = DrawOptions {
            seed: self.seed,
            step: self.step,
            temperature: 1.0,
            top_p: 1.0,
            min_p: 0.0,
            surely_below: candidates::surely_below(0.0),
            top_k: 0,
        };
        // Place of the last stage in the order.
        let mut last = 0;
        for stage in &self.stages {
            let place = match stage {
                Stage::LogitBias(_) | Stage::Penalties { .. } => return None,
                Stage::TopK(k) => {
                    // So many that all tokens are among them.
                    draw.top_k = u32::try_from(*k).unwrap_or(0);
                    1
                }
                Stage::TopP(p) => {
                    draw.top_p = *p;
                    2
                }
                Stage::MinP(p) => {
                    draw.min_p = *p;
                    draw.surely_below = candidates::surely_below(*p);
                    3
                }
                Stage::Temperature(t) => {
                    draw.temperature = *t;
                    4
                }
            };
            if place <= last {
                return None;
            }
            last = place;
        }
        Some(draw)
    }

    /// As after `n` tokens that were drawn elsewhere, but that none of them counts as recent: for a
    /// chain with penalties they are to be accepted too.
    pub fn skip(&mut self, n: u64) {
        self.step = self.step.wrapping_add(n);
    }

    /// As new, with the same chain: no recent tokens, and the random numbers from the start.
    pub fn reset(&mut self) {
        self.step = 0;
        self.recent.clear();
    }
}

/// With its recent tokens and the place in its random numbers: both draw the same from there.
impl Clone for Sampler {
    fn clone(&self) -> Sampler {
        let mut recent = VecDeque::with_capacity(self.last_n);
        recent.extend(&self.recent);
        Sampler {
            seed: self.seed,
            stages: self.stages.clone(),
            step: self.step,
            last_n: self.last_n,
            recent,
            // Made anew for every token.
            candidates: Candidates::default(),
        }
    }
}

impl fmt::Display for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}: ", self.seed)?;
        if self.stages.is_empty() {
            return f.write_str("no stages");
        }
        for (i, stage) in self.stages.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{stage}")?;
        }
        Ok(())
    }
}

/// The first word of Philox4x32-10 with the key `seed` and the counter `step`.
fn philox(seed: u64, step: u64) -> u32 {
    let mut key = [seed as u32, (seed >> 32) as u32];
    let mut counter = [step as u32, (step >> 32) as u32, 0, 0];
    for _ in 0..10 {
        let a = 0xD251_1F53_u64 * u64::from(counter[0]);
        let b = 0xCD9E_8D57_u64 * u64::from(counter[2]);
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter[0]
}
