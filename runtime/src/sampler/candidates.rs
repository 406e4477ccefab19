//! The tokens that may still be drawn, and what each stage does to them. Their logits are always
//! finite, and there is always at least one.

use std::cmp::Ordering;

use crate::alloc::reserve;
use crate::cpu::scalar::exp;
use crate::error::{Error, Result};

#[derive(Debug)]
pub(super) struct Candidates {
    pub(super) list: Vec<Candidate>,
    /// Whether the most likely come first.
    sorted: bool,
    /// What the logits are still to be divided by. Dividing differences of logits instead rounds
    /// less, so it waits for a stage that needs the logits themselves.
    temperature: f32,
    /// For stages that look tokens up; all zero between them. (vocab_size)
    marks: Vec<u32>,
    vocab_size: usize,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) token: u32,
    pub(super) logit: f32,
    /// Proportional to the probability, 1 for the most likely token.
    pub(super) weight: f32,
}

impl Candidate {
    /// Most likely first; equal ones by id, so that the order never depends on the sort.
    fn order(&self, other: &Candidate) -> Ordering {
        other.logit.total_cmp(&self.logit).then(self.token.cmp(&other.token))
    }
}

impl Default for Candidates {
    fn default() -> Candidates {
        Candidates {
            list: Vec::new(),
            sorted: false,
            temperature: 1.0,
            marks: Vec::new(),
            vocab_size: 0,
        }
    }
}

impl Candidates {
    /// Begins with every token whose logit is a number above -∞.
    pub(super) fn collect(&mut self, logits: &[f32]) -> Result<()> {
        self.list.clear();
        reserve(&mut self.list, logits.len(), "candidates")?;
        for (token, logit) in logits.iter().enumerate() {
            if *logit > f32::NEG_INFINITY {
                let logit = finite(*logit);
                self.list.push(Candidate { token: token as u32, logit, weight: 0.0 });
            }
        }
        self.sorted = false;
        self.temperature = 1.0;
        self.vocab_size = logits.len();
        if self.list.is_empty() {
            return Err(Error::Argument {
                name: "logits",
                found: format!("{} values, every one NaN or -inf", logits.len()),
                expected: "at least one finite number: are the model's weights damaged?".into(),
            });
        }
        Ok(())
    }

    /// `biases`: as [`merge`] makes them.
    pub(super) fn logit_bias(&mut self, biases: &[(u32, f32)]) -> Result<()> {
        // They are in the order of the tokens.
        if let Some((token, _)) = biases.last().filter(|last| last.0 as usize >= self.vocab_size) {
            return Err(Error::Argument {
                name: "logit_bias",
                found: format!("token {token}"),
                expected: format!("an id below vocab_size = {}", self.vocab_size),
            });
        }
        self.settle();
        let marks = marks(&mut self.marks, self.vocab_size)?;
        for (i, (token, _)) in biases.iter().enumerate() {
            marks[*token as usize] = i as u32 + 1;
        }
        self.list.retain_mut(|candidate| {
            let mark = marks[candidate.token as usize] as usize;
            let bias = if mark == 0 { 0.0 } else { biases[mark - 1].1 };
            candidate.logit = finite(candidate.logit + bias);
            bias > f32::NEG_INFINITY
        });
        for (token, _) in biases {
            marks[*token as usize] = 0;
        }
        if self.list.is_empty() {
            return Err(Error::Argument {
                name: "logit_bias",
                found: "-inf for every token that is possible".into(),
                expected: "one that may be drawn".into(),
            });
        }
        Ok(())
    }

    pub(super) fn penalties<'a>(
        &mut self,
        recent: impl Iterator<Item = &'a u32> + Clone,
        repeat: f32,
        frequency: f32,
        presence: f32,
    ) -> Result<()> {
        self.settle();
        let counts = marks(&mut self.marks, self.vocab_size)?;
        for token in recent.clone() {
            if let Some(count) = counts.get_mut(*token as usize) {
                *count += 1;
            }
        }
        for candidate in &mut self.list {
            let count = counts[candidate.token as usize];
            if count > 0 {
                let scale = if candidate.logit > 0.0 { 1.0 / repeat } else { repeat };
                let logit = finite(candidate.logit * scale);
                candidate.logit = finite(logit - (count as f32 * frequency + presence));
            }
        }
        for token in recent {
            if let Some(count) = counts.get_mut(*token as usize) {
                *count = 0;
            }
        }
        Ok(())
    }

    pub(super) fn top_k(&mut self, k: usize) {
        if k == 0 || k >= self.list.len() {
            return;
        }
        if !self.sorted {
            self.list.select_nth_unstable_by(k - 1, Candidate::order);
        }
        self.list.truncate(k);
    }

    pub(super) fn top_p(&mut self, p: f32) {
        if p >= 1.0 {
            return;
        }
        let total = self.weigh();
        let mut sum = 0.0;
        let reached = self.list.iter().position(|candidate| {
            sum += candidate.weight;
            sum >= p * total
        });
        self.list.truncate(reached.map_or(self.list.len(), |last| last + 1));
    }

    pub(super) fn min_p(&mut self, p: f32) {
        if p == 0.0 {
            return;
        }
        let (max, temperature) = (self.best().logit, self.temperature);
        // The best one's share is exactly 1.
        let surely_below = surely_below(p);
        self.list.retain(|candidate| {
            let x = (candidate.logit - max) / temperature;
            x >= surely_below && exp(x) >= p
        });
    }

    pub(super) fn temperature(&mut self, temperature: f32) {
        if temperature == 0.0 {
            let best = self.best();
            self.list.clear();
            self.list.push(best);
        } else {
            self.settle();
            self.temperature = temperature;
        }
    }

    /// The candidate that the cumulative weight reaches at `place`, in [0, 1), of the total.
    pub(super) fn draw(&mut self, place: f32) -> u32 {
        let target = place * self.weigh();
        let mut sum = 0.0;
        for candidate in &self.list {
            sum += candidate.weight;
            if sum > target {
                return candidate.token;
            }
        }
        self.list[self.list.len() - 1].token
    }

    /// Sorts and gives every candidate its weight; returns their sum.
    pub(super) fn weigh(&mut self) -> f32 {
        if !self.sorted {
            self.list.sort_unstable_by(Candidate::order);
            self.sorted = true;
        }
        let max = self.list[0].logit;
        let mut total = 0.0;
        for candidate in &mut self.list {
            candidate.weight = exp((candidate.logit - max) / self.temperature);
            total += candidate.weight;
        }
        total
    }

    fn best(&self) -> Candidate {
        let first = self.list[0];
        if self.sorted {
            return first;
        }
        self.list.iter().fold(first, |best, other| match other.order(&best) {
            Ordering::Less => *other,
            Ordering::Equal | Ordering::Greater => best,
        })
    }

    /// Divides by the temperature, for a stage that is about to change the logits.
    fn settle(&mut self) {
        if self.temperature != 1.0 {
            for candidate in &mut self.list {
                candidate.logit = finite(candidate.logit / self.temperature);
            }
            self.temperature = 1.0;
        }
        self.sorted = false;
    }
}

/// Most candidates are so far below the largest logit that they need no exponential for min-p.
pub(super) fn surely_below(p: f32) -> f32 {
    p.ln() - 0.01
}

/// A logit that is no NaN, as one that can be sorted: finite, and the zeros equal.
fn finite(logit: f32) -> f32 {
    logit.clamp(f32::MIN, f32::MAX) + 0.0
}

/// One bias for each token, in the order of the tokens.
pub(super) fn merge(mut biases: Vec<(u32, f32)>) -> Vec<(u32, f32)> {
    // A stable sort would allocate; by the bias too, the sum still does not depend on the sort.
    biases.sort_unstable_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
    biases.dedup_by(|later, sum| {
        let same = later.0 == sum.0;
        if same {
            let forbidden = sum.1.min(later.1) == f32::NEG_INFINITY;
            sum.1 = if forbidden { f32::NEG_INFINITY } else { finite(sum.1 + later.1) };
        }
        same
    });
    biases
}

/// Zeros for `vocab_size` tokens.
fn marks(marks: &mut Vec<u32>, vocab_size: usize) -> Result<&mut [u32]> {
    if marks.len() < vocab_size {
        reserve(marks, vocab_size - marks.len(), "candidates")?;
        marks.resize(vocab_size, 0);
    }
    Ok(marks)
}
