//! How likely a text is: log-probabilities of its tokens, alternatives to them, perplexity.

use std::cmp::Ordering;

use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::session::Session;

/// What a model makes of one token of a text.
#[derive(Clone, Copy, Debug)]
pub struct TokenScore<'a> {
    /// Place of the token in the text.
    pub index: usize,
    /// Natural logarithm of its probability given all tokens before it; `None` for the first token
    /// of an empty session, which nothing precedes.
    pub log_prob: Option<f64>,
    /// The likeliest tokens in its place with their log-probabilities, likeliest first, equal ones
    /// by id; fewer where the vocabulary has fewer, none where `log_prob` is none.
    pub top: &'a [(u32, f64)],
}

/// Sum over a text.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// Tokens that something precedes.
    pub n_scored: usize,
    /// Sum of their log-probabilities.
    pub log_prob: f64,
}

impl Score {
    /// Mean negative log-probability, in nats a token; NaN if nothing was scored.
    pub fn loss(&self) -> f64 {
        -self.log_prob / self.n_scored as f64
    }

    /// exp(loss); NaN if nothing was scored.
    pub fn perplexity(&self) -> f64 {
        libm::exp(self.loss())
    }
}

/// Feeds `tokens` and tells of each how likely it was, with the `top_n` likeliest in its place.
///
/// # Errors
/// As [`Session::prefill`]. Tokens that `on_token` was told of are fed.
pub fn score<B: Backend>(
    session: &mut Session<B>,
    tokens: &[u32],
    top_n: usize,
    on_token: &mut dyn FnMut(TokenScore<'_>),
) -> Result<Score> {
    let mut total = Score::default();
    let mut top = Vec::new();
    let mut tell = |index: usize, logits: Option<&[f32]>| {
        let Some(token) = tokens.get(index) else { return };
        let Some(logits) = logits else {
            return on_token(TokenScore { index, log_prob: None, top: &[] });
        };
        let softmax = LogSoftmax::new(logits);
        let log_prob = softmax.of(logits[*token as usize]);
        total.n_scored += 1;
        total.log_prob += log_prob;
        likeliest(logits, top_n, &softmax, &mut top);
        on_token(TokenScore { index, log_prob: Some(log_prob), top: &top });
    };
    session.check(tokens)?;
    let before = (session.n_tokens() > 0).then(|| session.logits().to_vec());
    let mut first = true;
    session.prefill_each(tokens, &mut |index, logits| {
        // Not before it is known that the session takes the tokens.
        if std::mem::take(&mut first) {
            tell(0, before.as_deref());
        }
        tell(index + 1, Some(logits));
    })?;
    Ok(total)
}

/// Scores every token but the first, each after those before it in its window of `n_context` tokens, as
/// training evaluates: windows do not overlap, and what was in the session is forgotten.
///
/// # Errors
/// [`Error::Argument`] for an `n_context` of 0 or above the model's context; else as
/// [`Session::prefill`].
pub fn score_windows<B: Backend>(
    session: &mut Session<B>,
    tokens: &[u32],
    n_context: usize,
) -> Result<Score> {
    let max_seq_len = session.model().config().max_seq_len;
    if !(1..=max_seq_len).contains(&n_context) {
        return Err(Error::Argument {
            name: "n_context",
            found: n_context.to_string(),
            expected: format!("1 to {max_seq_len}, the model's context"),
        });
    }
    // Targets are not fed, so the session does not check the last one.
    session.model().check_tokens(tokens)?;
    let mut total = Score::default();
    let Some((_, inputs)) = tokens.split_last() else { return Ok(total) };
    for (window, targets) in inputs.chunks(n_context).zip(tokens[1..].chunks(n_context)) {
        session.reset();
        session.prefill_each(window, &mut |index, logits| {
            total.n_scored += 1;
            total.log_prob += LogSoftmax::new(logits).of(logits[targets[index] as usize]);
        })?;
    }
    Ok(total)
}

/// Logits to log-probabilities in double precision, without overflow.
struct LogSoftmax {
    max: f64,
    /// log(Σ exp(logit - max))
    log_sum: f64,
}

impl LogSoftmax {
    fn new(logits: &[f32]) -> LogSoftmax {
        let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let sum: f64 = logits.iter().map(|logit| libm::exp(f64::from(*logit) - max)).sum();
        LogSoftmax { max, log_sum: libm::log(sum) }
    }

    fn of(&self, logit: f32) -> f64 {
        f64::from(logit) - self.max - self.log_sum
    }
}

/// Fills `top` with the `n` largest logits as log-probabilities.
fn likeliest(logits: &[f32], n: usize, softmax: &LogSoftmax, top: &mut Vec<(u32, f64)>) {
    top.clear();
    let n = n.min(logits.len());
    if n == 0 {
        return;
    }
    let order = |a: &(u32, f64), b: &(u32, f64)| -> Ordering {
        b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0))
    };
    top.extend((0..).zip(logits).map(|(token, logit)| (token, softmax.of(*logit))));
    if n < top.len() {
        top.select_nth_unstable_by(n - 1, order);
        top.truncate(n);
    }
    top.sort_unstable_by(order);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probabilities_sum_to_one_and_do_not_overflow() {
        for logits in [vec![0.0f32, 1.0, -3.0], vec![1e30, 1e30, 0.0], vec![-200.0, -201.0, -1e9]] {
            let softmax = LogSoftmax::new(&logits);
            let sum: f64 = logits.iter().map(|l| softmax.of(*l).exp()).sum();
            assert!((sum - 1.0).abs() < 1e-12, "{logits:?} {sum}");
        }
        assert!((LogSoftmax::new(&[5.0; 4]).of(5.0) + 4f64.ln()).abs() < 1e-15);
    }

    #[test]
    fn the_likeliest_come_first_and_equal_ones_by_id() {
        let mut top = Vec::new();
        let plain = LogSoftmax { max: 0.0, log_sum: 0.0 };
        likeliest(&[1.0, 3.0, 2.0, 3.0, -1.0], 3, &plain, &mut top);
        assert_eq!(top, [(1, 3.0), (3, 3.0), (2, 2.0)]);
        likeliest(&[1.0, 3.0], 5, &plain, &mut top);
        assert_eq!(top, [(1, 3.0), (0, 1.0)]);
        likeliest(&[1.0], 0, &plain, &mut top);
        assert!(top.is_empty());
    }

    #[test]
    fn perplexity_of_a_uniform_model_is_the_size_of_its_vocabulary() {
        let score = Score { n_scored: 7, log_prob: -7.0 * 29f64.ln() };
        assert!((score.perplexity() - 29.0).abs() < 1e-9);
        assert!(Score::default().perplexity().is_nan());
    }
}
