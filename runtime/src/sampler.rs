//! Logits to a token, always in the same order: repetition penalty, top-k, top-p, min-p,
//! temperature, draw. The first four act on the distribution at temperature 1.
//!
//! The draw is integer-exact and needs no state but a step counter, so that any device can repeat
//! it: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) keyed by
//! the seed, with the step as counter.

use std::cmp::Ordering;

use crate::cpu::scalar::exp;
use crate::error::{Error, Result};

/// How tokens are drawn.
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
    /// How many recent tokens the penalty looks at.
    pub repeat_last_n: usize,
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
            repeat_last_n: 64,
            seed: 0,
        }
    }
}

impl SamplerOptions {
    fn check(&self) -> Result<()> {
        let refuse = |name, found: f32, expected: &str| {
            Err(Error::Argument { name, found: found.to_string(), expected: expected.to_owned() })
        };
        if !(0.0..=100.0).contains(&self.temperature) {
            return refuse("temperature", self.temperature, "a number from 0 to 100");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return refuse("top_p", self.top_p, "a number above 0, up to 1");
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return refuse("min_p", self.min_p, "a number from 0 to 1");
        }
        if !(0.01..=100.0).contains(&self.repeat_penalty) {
            return refuse("repeat_penalty", self.repeat_penalty, "a number from 0.01 to 100");
        }
        Ok(())
    }
}

/// Draws tokens one after the other.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SamplerOptions,
    /// Tokens drawn so far: the counter of the random numbers.
    step: u64,
    /// Recent tokens, oldest first, as many as the penalty looks at.
    recent: Vec<u32>,
    candidates: Vec<Candidate>,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    token: u32,
    logit: f32,
    /// Proportional to the probability, 1 for the most likely token.
    weight: f32,
}

impl Candidate {
    /// Most likely first; equal ones by id, so that the order never depends on the sort.
    fn order(&self, other: &Candidate) -> Ordering {
        other.logit.total_cmp(&self.logit).then(self.token.cmp(&other.token))
    }
}

impl Sampler {
    /// Checks the options.
    ///
    /// # Errors
    /// [`Error::Argument`] for a number out of its range, NaN included.
    pub fn new(options: SamplerOptions) -> Result<Sampler> {
        options.check()?;
        Ok(Sampler { options, step: 0, recent: Vec::new(), candidates: Vec::new() })
    }

    /// Tells the sampler of a token that it did not draw, such as one of the prompt.
    pub fn accept(&mut self, token: u32) {
        if self.options.repeat_penalty == 1.0 || self.options.repeat_last_n == 0 {
            return;
        }
        if self.recent.len() >= self.options.repeat_last_n {
            self.recent.remove(0);
        }
        self.recent.push(token);
    }

    /// Draws a token and accepts it. `logits`: (vocab_size). A NaN counts as impossible, +∞ as the
    /// largest number.
    ///
    /// # Errors
    /// [`Error::Argument`] if no logit is a number above -∞.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32> {
        self.collect(logits);
        if self.candidates.is_empty() {
            return Err(Error::Argument {
                name: "logits",
                found: format!("{} values, every one NaN or -inf", logits.len()),
                expected: "at least one finite number: are the model's weights damaged?".into(),
            });
        }
        let random = philox(self.options.seed, self.step);
        self.step += 1;
        let token = if self.options.temperature == 0.0 {
            // `collect` left at least one.
            self.candidates.iter().min_by(|a, b| a.order(b)).map_or(0, |best| best.token)
        } else {
            self.truncate();
            self.draw(random)
        };
        self.accept(token);
        Ok(token)
    }

    /// Fills the candidates with every possible token, penalties applied.
    fn collect(&mut self, logits: &[f32]) {
        self.candidates.clear();
        for (token, logit) in logits.iter().enumerate() {
            if *logit > f32::NEG_INFINITY {
                let logit = logit.min(f32::MAX);
                self.candidates.push(Candidate { token: token as u32, logit, weight: 0.0 });
            }
        }
        let penalty = self.options.repeat_penalty;
        if penalty == 1.0 {
            return;
        }
        for candidate in &mut self.candidates {
            if self.recent.contains(&candidate.token) {
                let scale = if candidate.logit > 0.0 { 1.0 / penalty } else { penalty };
                candidate.logit = (candidate.logit * scale).clamp(f32::MIN, f32::MAX);
            }
        }
    }

    /// Sorts the candidates and keeps those that top-k, top-p and min-p allow, at least one.
    fn truncate(&mut self) {
        let SamplerOptions { top_k, top_p, min_p, .. } = self.options;
        let candidates = &mut self.candidates;
        if 0 < top_k && top_k < candidates.len() {
            candidates.select_nth_unstable_by(top_k - 1, Candidate::order);
            candidates.truncate(top_k);
        }
        candidates.sort_unstable_by(Candidate::order);
        let max = candidates[0].logit;
        let mut total = 0.0;
        for candidate in candidates.iter_mut() {
            candidate.weight = exp(candidate.logit - max);
            total += candidate.weight;
        }
        if top_p < 1.0 {
            let mut sum = 0.0;
            let reached = candidates.iter().position(|candidate| {
                sum += candidate.weight;
                sum >= top_p * total
            });
            candidates.truncate(reached.map_or(candidates.len(), |last| last + 1));
        }
        let kept = candidates.partition_point(|candidate| candidate.weight >= min_p);
        candidates.truncate(kept.max(1));
    }

    /// Draws from the sorted candidates at the temperature.
    fn draw(&mut self, random: u32) -> u32 {
        let max = self.candidates[0].logit;
        let mut total = 0.0;
        for candidate in &mut self.candidates {
            candidate.weight = exp((candidate.logit - max) / self.options.temperature);
            total += candidate.weight;
        }
        // 24 random bits are a number in [0, 1) that f32 holds exactly.
        let target = (random >> 8) as f32 * (1.0 / 16_777_216.0) * total;
        let mut sum = 0.0;
        for candidate in &self.candidates {
            sum += candidate.weight;
            if sum > target {
                return candidate.token;
            }
        }
        self.candidates[self.candidates.len() - 1].token
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the authors' Random123 distribution (kat_vectors, philox4x32 10).
    #[test]
    fn philox_gives_the_known_answers() {
        assert_eq!(philox(0, 0), 0x6627_e8d5);
    }

    fn sampler(options: SamplerOptions) -> Sampler {
        Sampler::new(options).expect("valid options")
    }

    #[test]
    fn zero_temperature_takes_the_first_of_equal_maxima() {
        let mut s = sampler(SamplerOptions { temperature: 0.0, ..Default::default() });
        assert_eq!(s.sample(&[1.0, 3.0, 3.0]).expect("finite"), 1);
        assert_eq!(s.sample(&[f32::NAN, f32::NEG_INFINITY, -5.0]).expect("finite"), 2);
        assert_eq!(s.sample(&[1.0, f32::INFINITY, f32::MAX]).expect("finite"), 1);
    }

    #[test]
    fn hostile_logits_never_panic() {
        let hostile = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 0.0, -0.0];
        for temperature in [0.0, 1e-40, 1e-3, 1.0, 100.0] {
            for repeat_penalty in [1.0, 0.01, 100.0] {
                let options = SamplerOptions { temperature, repeat_penalty, ..Default::default() };
                let mut s = sampler(options);
                for _ in 0..20 {
                    let token = s.sample(&hostile).expect("some are finite");
                    assert!(![0, 2].contains(&token), "{token}");
                }
                assert!(s.sample(&[f32::NAN, f32::NEG_INFINITY]).is_err());
                assert!(s.sample(&[]).is_err());
            }
        }
    }

    #[test]
    fn options_out_of_range_are_refused_by_name() {
        let default = SamplerOptions::default;
        for (options, name) in [
            (SamplerOptions { temperature: -1.0, ..default() }, "temperature"),
            (SamplerOptions { temperature: f32::NAN, ..default() }, "temperature"),
            (SamplerOptions { top_p: 0.0, ..default() }, "top_p"),
            (SamplerOptions { min_p: 1.5, ..default() }, "min_p"),
            (SamplerOptions { repeat_penalty: 0.0, ..default() }, "repeat_penalty"),
        ] {
            let message = Sampler::new(options).expect_err("out of range").to_string();
            assert!(message.starts_with(name), "{message}");
        }
    }

    /// Frequencies of many draws agree with the softmax to four standard deviations.
    #[test]
    fn draws_follow_the_distribution() {
        let logits = [0.0f32, 1.0, 2.0, -1.0];
        let off = SamplerOptions {
            temperature: 0.7,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: 7,
            ..Default::default()
        };
        let weights = logits.map(|l| (f64::from(l) / 0.7).exp());
        let total: f64 = weights.iter().sum();
        let mut s = sampler(off);
        let n = 100_000;
        let mut counts = [0usize; 4];
        for _ in 0..n {
            counts[s.sample(&logits).expect("finite") as usize] += 1;
        }
        for (count, weight) in counts.iter().zip(weights) {
            let p = weight / total;
            let deviation =
                (*count as f64 - p * f64::from(n)) / (p * (1.0 - p) * f64::from(n)).sqrt();
            assert!(deviation.abs() < 4.0, "{counts:?}");
        }
    }

    #[test]
    fn truncation_keeps_what_it_says() {
        // Probabilities 0.4, 0.3, 0.2, 0.1
        let logits = [0.1f32, 0.4, 0.2, 0.3].map(f32::ln);
        let kept = |top_k, top_p, min_p| {
            let mut s = sampler(SamplerOptions { top_k, top_p, min_p, ..Default::default() });
            s.collect(&logits);
            s.truncate();
            s.candidates.iter().map(|c| c.token).collect::<Vec<_>>()
        };
        assert_eq!(kept(0, 1.0, 0.0), [1, 3, 2, 0]);
        assert_eq!(kept(2, 1.0, 0.0), [1, 3]);
        assert_eq!(kept(0, 0.69, 0.0), [1, 3]);
        assert_eq!(kept(0, 0.71, 0.0), [1, 3, 2]);
        assert_eq!(kept(0, 1.0, 0.49), [1, 3, 2]);
        assert_eq!(kept(1, 1e-6, 1.0), [1]);
    }

    #[test]
    fn the_penalty_sees_only_recent_tokens() {
        let options = SamplerOptions {
            temperature: 0.0,
            repeat_penalty: 2.0,
            repeat_last_n: 1,
            ..Default::default()
        };
        let mut s = sampler(options);
        let logits = [3.0, 2.0, -4.0];
        let drawn: Vec<u32> = (0..4).map(|_| s.sample(&logits).expect("finite")).collect();
        assert_eq!(drawn, [0, 1, 0, 1]);
    }
}
