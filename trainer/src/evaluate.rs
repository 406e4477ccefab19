//! The loss on a split: the mean over every target that has a token before it.

use tch::{Kind, Tensor};

use crate::dataset::Corpus;
use crate::model::Gpt;

/// Mean loss in nats of every token of the split but the first of each piece, in windows that do not
/// overlap, without dropout. `n_micro` windows go through the model at a time.
pub fn exact_loss(model: &Gpt, corpus: &Corpus, n_micro: i64) -> f64 {
    let (complete, ends) = corpus.all_windows();
    let device = model.params.theta.device();
    tch::no_grad(|| {
        // In double precision: a large split has millions of targets.
        let mut sum = Tensor::zeros([], (Kind::Double, device));
        for starts in complete.chunks(n_micro.max(1) as usize) {
            let (tokens, targets) = corpus.windows(&Tensor::from_slice(starts).to_device(device));
            sum += model.loss(&tokens, &targets, false, true).to_kind(Kind::Double);
        }
        for (start, len) in ends {
            let (tokens, targets) = corpus.window(start, len);
            sum += model.loss(&tokens, &targets, false, true).to_kind(Kind::Double);
        }
        sum.double_value(&[]) / corpus.n_targets() as f64
    })
}

/// Mean loss in nats of the windows that begin at `starts`, without dropout.
pub fn estimated_loss(model: &Gpt, corpus: &Corpus, starts: &[i64], n_micro: i64) -> f64 {
    let device = model.params.theta.device();
    tch::no_grad(|| {
        let mut sum = Tensor::zeros([], (Kind::Double, device));
        for part in starts.chunks(n_micro.max(1) as usize) {
            let (tokens, targets) = corpus.windows(&Tensor::from_slice(part).to_device(device));
            let loss = model.loss(&tokens, &targets, false, false).to_kind(Kind::Double);
            sum += loss * (part.len() as f64 / starts.len() as f64);
        }
        sum.double_value(&[])
    })
}
