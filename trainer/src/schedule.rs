//! Learning rates: a warm-up, then half a cosine, or a plateau and a straight line down.

/// How the learning rate falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// Half a cosine from the largest to the smallest rate, as PyTorch's `CosineAnnealingLR` with
    /// `T_max` steps after the warm-up.
    Cosine,
    /// Warm-up, stable, decay (arXiv:2404.06395): the largest rate until a straight line leads to the
    /// smallest.
    Wsd,
}

impl Schedule {
    /// Its name in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            Schedule::Cosine => "cosine",
            Schedule::Wsd => "wsd",
        }
    }

    /// Every spelling that a configuration may use.
    pub const SPELLINGS: &[(&str, Schedule)] =
        &[("cosine", Schedule::Cosine), ("wsd", Schedule::Wsd)];
}

/// A schedule with its numbers. Steps are counted from 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningRate {
    /// How the rate falls.
    pub schedule: Schedule,
    /// The largest.
    pub max: f64,
    /// The smallest, which step `n_iters` would have.
    pub min: f64,
    /// Steps in which the rate rises in a straight line: `max * (i + 1) / warmup_iters`.
    pub warmup_iters: u64,
    /// Share of all steps in which [`Schedule::Wsd`] falls.
    pub decay_fraction: f64,
    /// All steps.
    pub n_iters: u64,
}

impl LearningRate {
    /// The rate of step `i`.
    pub fn at(&self, i: u64) -> f64 {
        if i < self.warmup_iters {
            return self.max * (i + 1) as f64 / self.warmup_iters as f64;
        }
        let share = match self.schedule {
            Schedule::Cosine => {
                let n = self.n_iters.saturating_sub(self.warmup_iters).max(1);
                let phase = std::f64::consts::PI * (i - self.warmup_iters) as f64 / n as f64;
                (1.0 + phase.cos()) / 2.0
            }
            Schedule::Wsd => {
                let length = (self.decay_fraction * self.n_iters as f64).round().max(1.0);
                (self.n_iters.saturating_sub(i) as f64 / length).min(1.0)
            }
        };
        self.min + (self.max - self.min) * share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cosine(warmup_iters: u64) -> LearningRate {
        let (max, min) = (1e-2, 1e-4);
        let schedule = Schedule::Cosine;
        LearningRate { schedule, max, min, warmup_iters, decay_fraction: 0.3, n_iters: 20 }
    }

    #[test]
    fn the_cosine_is_that_of_cosine_annealing() {
        // torch 2.11.0: `CosineAnnealingLR(opt, T_max=20, eta_min=1e-4)` from 1e-2,
        // `opt.param_groups[0]["lr"]`.
        for (i, expected) in [
            (0, 0.01),
            (1, 0.009939057285945933),
            (7, 0.00729725297371076),
            (19, 0.0001609427140540686),
        ] {
            assert!((cosine(0).at(i) - expected).abs() < 1e-12);
        }
        assert_eq!(cosine(0).at(20), 1e-4);
    }

    #[test]
    fn the_warm_up_ends_at_the_largest_rate() {
        for i in 0..4 {
            let expected = 1e-2 * (i + 1) as f64 / 4.0;
            assert!((cosine(4).at(i) - expected).abs() < 1e-12, "{i}");
        }
        assert_eq!(cosine(4).at(4), 1e-2);
        assert!((cosine(4).at(20) - 1e-4).abs() < 1e-12);
    }

    #[test]
    fn wsd_falls_in_a_straight_line() {
        let wsd = LearningRate { schedule: Schedule::Wsd, min: 0.0, ..cosine(2) };
        let rates: Vec<f64> = (0..=20).map(|i| wsd.at(i) / 1e-2).collect();
        assert!((rates[0] - 0.5).abs() < 1e-12);
        assert!(rates[1..=14].iter().all(|rate| (rate - 1.0).abs() < 1e-12), "{rates:?}");
        for (i, rate) in rates.iter().enumerate().skip(14) {
            assert!((rate - (20 - i) as f64 / 6.0).abs() < 1e-12, "{i}: {rate}");
        }
    }

    #[test]
    fn a_rate_of_zero_stays_there() {
        let zero = LearningRate { max: 0.0, min: 0.0, ..cosine(3) };
        assert!((0..=20).all(|i| zero.at(i) == 0.0));
    }
}
