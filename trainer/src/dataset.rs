//! Random batches of a split as tensors on the device.

use tch::{Device, Tensor};
use teeny_runtime::dataset::{Dataset, Split, SplitMix64};

use crate::error::Result;

/// What a batch is drawn for; part of its seed, so that no two uses share their windows.
#[derive(Clone, Copy)]
pub enum Purpose {
    /// A training step.
    Step,
    /// An evaluation: the same batches every time, so that evaluations can be compared.
    Evaluation,
}

/// Draws batches. Holds no state: batch `i` of a seed is always the same, so a run can be resumed
/// at any step.
pub struct Batches<'a> {
    dataset: &'a Dataset,
    seed: u64,
    n_batch: usize,
    n_context: usize,
    device: Device,
}

impl<'a> Batches<'a> {
    /// Batches of `n_batch` windows of `n_context` tokens with their successors.
    pub fn new(
        dataset: &'a Dataset,
        seed: u64,
        n_batch: usize,
        n_context: usize,
        device: Device,
    ) -> Batches<'a> {
        Batches { dataset, seed, n_batch, n_context, device }
    }

    /// Inputs and targets, both `(n_batch, n_context)` i64; the targets are the inputs one token on.
    ///
    /// # Errors
    /// The split has no window of that length, see `Dataset::check_context`.
    pub fn get(&self, split: Split, purpose: Purpose, i: u64) -> Result<(Tensor, Tensor)> {
        let chunks = self.dataset.chunks(split);
        let mut rng = SplitMix64::new(mix(self.seed, purpose, i));
        let mut tokens = Vec::with_capacity(self.n_batch * (self.n_context + 1));
        for _ in 0..self.n_batch {
            let window = chunks.random_window(self.n_context + 1, &mut rng)?;
            tokens.extend(window.iter().map(|token| i64::from(*token)));
        }
        let windows = Tensor::from_slice(&tokens)
            .view([self.n_batch as i64, self.n_context as i64 + 1])
            .to_device(self.device);
        let n = self.n_context as i64;
        Ok((windows.narrow(1, 0, n), windows.narrow(1, 1, n)))
    }
}

/// One seed from a run's seed, a purpose and a count, all bits of which depend on all of theirs.
pub fn mix(seed: u64, purpose: Purpose, i: u64) -> u64 {
    let purpose: u64 = match purpose {
        Purpose::Step => 1,
        Purpose::Evaluation => 2,
    };
    let scramble = |x: u64| SplitMix64::new(x).next_u64();
    [purpose, i].iter().fold(seed, |hash, part| scramble(hash ^ scramble(*part)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_differ_by_each_part() {
        let mut seen = std::collections::HashSet::new();
        for seed in 0..10 {
            for i in 0..10 {
                assert!(seen.insert(mix(seed, Purpose::Step, i)));
                assert!(seen.insert(mix(seed, Purpose::Evaluation, i)));
            }
        }
    }
}
