//! Positional encodings as slopes, rotations and sinusoids.
//!
//! Angles are computed in f64 by `libm`, the same bits on every machine, and rounded once: a
//! position may grow without bound, and its rotation stays exact to single precision.

use std::f64::consts::{LN_2, PI};

use crate::config::{ModelConfig, RopeScaling};

/// Slope of each head's linear bias (ALiBi, arXiv:2108.12409, section 3, and the authors' code for
/// head counts that are no power of two). (n_head)
pub fn alibi_slopes(n_head: usize) -> Vec<f32> {
    // 2^(-8 h / n) for h = 1, 2, .. n
    let geometric = |n: usize, step: usize, count: usize| {
        (0..count).map(move |h| {
            let exponent = -8.0 * (1 + h * step) as f64 / n as f64;
            libm::exp(exponent * LN_2) as f32
        })
    };
    if n_head.is_power_of_two() {
        return geometric(n_head, 1, n_head).collect();
    }
    // The slopes of the nearest smaller power of two, then every other one of twice as many.
    let power = n_head.next_power_of_two() / 2;
    geometric(power, 1, power).chain(geometric(2 * power, 2, n_head - power)).collect()
}

/// Angular frequencies base^(-2i/width) for i below width/2, shared by rotations and sinusoids.
#[derive(Clone, Debug)]
pub struct Frequencies(Vec<f64>);

impl Frequencies {
    /// Frequencies for vectors of `width` numbers.
    pub fn new(base: f64, width: usize) -> Frequencies {
        let step = -2.0 * libm::log(base) / width as f64;
        Frequencies((0..width / 2).map(|i| libm::exp(step * i as f64)).collect())
    }

    /// The rotations of a model with RoPE: for the width of a head, scaled as the model says.
    pub fn of_rope(c: &ModelConfig) -> Frequencies {
        let mut frequencies = Frequencies::new(f64::from(c.rope_theta), c.head_dim);
        if let Some(scaling) = c.rope_scaling {
            frequencies.0.iter_mut().for_each(|frequency| *frequency = scaled(*frequency, scaling));
        }
        frequencies
    }

    /// Cosine and sine of each pair's angle at `pos` (RoPE, arXiv:2104.09864). `out`: (width/2, 2)
    pub fn rotation(&self, pos: usize, out: &mut [f32]) {
        for (out, frequency) in out.chunks_exact_mut(2).zip(&self.0) {
            let (sin, cos) = libm::sincos(pos as f64 * frequency);
            out[0] = cos as f32;
            out[1] = sin as f32;
        }
    }

    /// The encoding of "Attention is all you need" (arXiv:1706.03762, section 3.5): sines at even
    /// places, cosines at odd ones. `out`: (width)
    pub fn sinusoid(&self, pos: usize, out: &mut [f32]) {
        for (out, frequency) in out.chunks_exact_mut(2).zip(&self.0) {
            let (sin, cos) = libm::sincos(pos as f64 * frequency);
            out[0] = sin as f32;
            out[1] = cos as f32;
        }
    }
}

/// By what a scaling divides each frequency of RoPE. (head_dim/2)
#[cfg(feature = "import")]
pub(crate) fn scaling_factors(theta: f64, head_dim: usize, scaling: RopeScaling) -> Vec<f64> {
    let frequencies = Frequencies::new(theta, head_dim).0;
    frequencies.into_iter().map(|frequency| frequency / scaled(frequency, scaling)).collect()
}

/// A frequency of RoPE in a model for longer texts.
fn scaled(frequency: f64, scaling: RopeScaling) -> f64 {
    match scaling {
        RopeScaling::Linear { factor } => frequency / f64::from(factor),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_seq_len } => {
            let (low, high) = (f64::from(low_freq_factor), f64::from(high_freq_factor));
            let turns = original_max_seq_len as f64 * frequency / (2.0 * PI);
            // 0 for low frequencies, 1 for high ones
            let unscaled = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            (1.0 - unscaled) * frequency / f64::from(factor) + unscaled * frequency
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::model_section;
    use crate::ini::Ini;

    #[test]
    fn slopes_of_a_power_of_two_halve() {
        assert_eq!(
            alibi_slopes(8),
            [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625]
        );
    }

    /// Values of `transformers.models.bloom.modeling_bloom.build_alibi_tensor` for six heads.
    #[test]
    fn slopes_of_other_counts_interleave() {
        let expected = [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125];
        for (found, expected) in alibi_slopes(6).iter().zip(expected) {
            assert!((found - expected).abs() < 1e-7, "{found} {expected}");
        }
    }

    /// Frequencies of `ROPE_INIT_FUNCTIONS` in transformers 4.57.6, which computes them in f32.
    #[test]
    fn scaled_frequencies_are_those_of_transformers() {
        let model = |scaling: RopeScaling| {
            let ini = Ini::parse(Path::new("c.ini"), "[model]\nhead_dim=16\nrope_theta=5e5");
            let section = model_section(&ini.expect("valid INI"), 65).expect("valid");
            ModelConfig { rope_scaling: Some(scaling), ..section.config }
        };
        for (scaling, expected) in [
            (
                // Of Llama 3.2.
                RopeScaling::Llama3 {
                    factor: 32.0,
                    low_freq_factor: 1.0,
                    high_freq_factor: 4.0,
                    original_max_seq_len: 8192,
                },
                [
                    1.0,
                    0.193922758102417,
                    0.03760603070259094,
                    0.00729266507551074,
                    0.000429556705057621,
                    8.570255886297673e-06,
                    1.6619674170215148e-06,
                    3.2229328894572973e-07,
                ],
            ),
            (
                RopeScaling::Linear { factor: 2.5 },
                [
                    0.4000000059604645,
                    0.07756910473108292,
                    0.015042412094771862,
                    0.0029170659836381674,
                    0.0005656853900291026,
                    0.00010969927825499326,
                    2.127318293787539e-05,
                    4.125354280404281e-06,
                ],
            ),
        ] {
            let Frequencies(found) = Frequencies::of_rope(&model(scaling));
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(expected) {
                assert!((found / expected - 1.0).abs() < 1e-6, "{found} {expected}");
            }
        }
    }

    #[test]
    fn rotations_stay_exact_far_out() {
        let frequencies = Frequencies::new(10000.0, 4);
        let mut out = [0.0; 4];
        frequencies.rotation(10_000_000, &mut out);
        let expected = [(1e7f64).cos(), (1e7f64).sin(), (1e5f64).cos(), (1e5f64).sin()];
        for (found, expected) in out.iter().zip(expected) {
            assert!((*found as f64 - expected).abs() < 1e-6, "{found} {expected}");
        }
    }
}
