//! A short text from the model in training, to see what it has learned.

use tch::{Kind, Tensor};
use teeny_runtime::tokenizer::Tokenizer;

use crate::model::Gpt;

/// Softens or sharpens the choice of each token, as in teeny-run.
const TEMPERATURE: f64 = 0.8;

/// `length` tokens after `prompt`, which must not be empty. Each token runs the model over the
/// newest `n_context` tokens anew: simple, and fast enough for a few lines.
pub fn sample(
    model: &Gpt,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    length: usize,
    n_context: usize,
) -> String {
    let device = model.params.theta.device();
    let mut tokens: Vec<i64> = prompt.iter().map(|token| i64::from(*token)).collect();
    tch::no_grad(|| {
        for _ in 0..length {
            let window = &tokens[tokens.len().saturating_sub(n_context)..];
            let input = Tensor::from_slice(window).unsqueeze(0).to_device(device);
            let logits = model.logits(&input, false).select(1, window.len() as i64 - 1).squeeze();
            let probabilities = (logits / TEMPERATURE).softmax(-1, Kind::Float);
            tokens.push(probabilities.multinomial(1, false).int64_value(&[0]));
        }
    });
    let tokens: Vec<u32> = tokens.iter().map(|token| *token as u32).collect();
    tokenizer
        .decode(&tokens)
        .map_or(String::new(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
}
