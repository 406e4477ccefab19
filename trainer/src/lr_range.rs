//! The learning-rate range test (Smith, arXiv:1506.01186): the rate grows from step to step, and the
//! losses show where learning begins and where it ends.

/// Steps of the test.
pub const N_STEPS: usize = 200;
/// The first and the last rate.
pub const RANGE: [f64; 2] = [1e-5, 1.0];
/// Weight of the past in the smoothed loss.
const SMOOTHING: f64 = 0.9;
/// How far above the best smoothed loss the test ends, in multiples of the fall so far.
const END: f64 = 0.5;

/// The rate of step `i`.
pub fn rate(i: usize) -> f64 {
    RANGE[0] * (RANGE[1] / RANGE[0]).powf(i as f64 / (N_STEPS - 1) as f64)
}

/// Gathers the losses of the test.
#[derive(Default)]
pub struct LrRange {
    /// Rate and smoothed loss of each step.
    pub points: Vec<(f64, f64)>,
    mean: f64,
}

impl LrRange {
    /// Adds the loss of the next step. Whether the test goes on.
    pub fn push(&mut self, loss: f64) -> bool {
        let i = self.points.len();
        if !loss.is_finite() {
            return false;
        }
        self.mean = SMOOTHING * self.mean + (1.0 - SMOOTHING) * loss;
        // The mean began at zero, which this takes out again.
        let smoothed = self.mean / (1.0 - SMOOTHING.powi(i as i32 + 1));
        self.points.push((rate(i), smoothed));
        let first = self.points[0].1;
        let lowest = self.lowest();
        self.points.len() < N_STEPS && smoothed <= lowest + END * (first - lowest).max(0.1)
    }

    /// The rate at which the loss fell fastest, which is a good `lr_max`; `None` if it never fell.
    pub fn suggestion(&self) -> Option<f64> {
        // Over several steps, or noise would decide.
        const SPAN: usize = 10;
        let falls = self.points.windows(SPAN + 1).map(|w| (w[SPAN / 2].0, w[SPAN].1 - w[0].1));
        falls.min_by(|a, b| a.1.total_cmp(&b.1)).filter(|(_, fall)| *fall < 0.0).map(|(lr, _)| lr)
    }

    fn lowest(&self) -> f64 {
        self.points.iter().map(|point| point.1).fold(f64::INFINITY, f64::min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_grow_from_end_to_end() {
        assert!((rate(0) - RANGE[0]).abs() < 1e-12);
        assert!((rate(N_STEPS - 1) - RANGE[1]).abs() < 1e-9);
        assert!((1..N_STEPS).all(|i| rate(i) > rate(i - 1)));
    }

    #[test]
    fn it_suggests_where_the_loss_falls_and_ends_where_it_rises() {
        // Falls around 1e-3, rises from 1e-1 on.
        let loss = |lr: f64| 4.0 - 2.0 / (1.0 + (1e-3 / lr).powi(2)) + (lr / 0.1).powi(4);
        let mut range = LrRange::default();
        while range.push(loss(rate(range.points.len()))) {}
        let last = range.points.last().expect("points").0;
        assert!((0.05..1.0).contains(&last), "{last}");
        let lr = range.suggestion().expect("it falls");
        assert!((4e-4..4e-3).contains(&lr), "{lr}");
    }

    #[test]
    fn a_loss_that_only_rises_or_is_none_suggests_nothing() {
        let mut range = LrRange::default();
        while range.push(4.0 + range.points.len() as f64) {}
        assert_eq!(range.suggestion(), None);
        let mut range = LrRange::default();
        assert!(!range.push(f64::NAN));
        assert_eq!(range.suggestion(), None);
    }
}
