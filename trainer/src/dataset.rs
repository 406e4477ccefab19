//! Which windows of the text a step and an evaluation see, and the text as tensors on the device.

use tch::{Device, Kind, Tensor};
use teeny_runtime::dataset::{Chunks, SplitMix64};

/// How the windows of a step are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampling {
    /// Each at a random place, as teenyGPT and nanoGPT do.
    Random,
    /// The text cut into windows, all of which come once in random order before any comes again. Each
    /// time round it is cut elsewhere.
    Epochs,
}

impl Sampling {
    /// Its name in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            Sampling::Random => "random",
            Sampling::Epochs => "epochs",
        }
    }

    /// Every spelling that a configuration may use.
    pub const SPELLINGS: &[(&str, Sampling)] =
        &[("random", Sampling::Random), ("epochs", Sampling::Epochs)];
}

/// What random numbers are drawn for; part of their seed, so that no two uses share them.
#[derive(Clone, Copy)]
pub enum Purpose {
    /// The windows and dropout masks of a training step.
    Step,
    /// An estimate of the training loss: the same windows every time, so that estimates can be
    /// compared.
    Evaluation,
    /// The order of an epoch.
    Epoch,
}

/// Chooses the windows of training steps. What step `i` of a seed sees depends on nothing else, so a
/// run can be resumed at any step.
pub struct Windows {
    seed: u64,
    sampling: Sampling,
    n_context: usize,
    chunk_len: usize,
    n_chunks: usize,
    /// The epoch that `starts` holds.
    epoch: Option<u64>,
    starts: Vec<i64>,
}

impl Windows {
    /// Windows of `n_context` tokens and the one that follows, in pieces that are at least so long.
    pub fn new(chunks: &Chunks, sampling: Sampling, seed: u64, n_context: usize) -> Windows {
        Windows {
            seed,
            sampling,
            n_context,
            chunk_len: chunks.chunk_len(),
            n_chunks: chunks.n_chunks(),
            epoch: None,
            starts: Vec::new(),
        }
    }

    /// Places of the first tokens of the windows of step `i`, which has `n`. `(n)`
    pub fn of_step(&mut self, i: u64, n: usize) -> Vec<i64> {
        match self.sampling {
            Sampling::Random => {
                let mut rng = SplitMix64::new(mix(self.seed, Purpose::Step, i));
                (0..n).map(|_| self.random(&mut rng)).collect()
            }
            Sampling::Epochs => {
                let per_epoch = self.per_epoch() as u64;
                let first = i * n as u64;
                (first..first + n as u64)
                    .map(|count| {
                        self.enter(count / per_epoch);
                        self.starts[(count % per_epoch) as usize]
                    })
                    .collect()
            }
        }
    }

    /// The same random places at every call. `(n)`
    pub fn of_estimate(&self, n: usize) -> Vec<i64> {
        let mut rng = SplitMix64::new(mix(self.seed, Purpose::Evaluation, 0));
        (0..n).map(|_| self.random(&mut rng)).collect()
    }

    /// Windows that an epoch sees, the same number however it is cut.
    pub fn per_epoch(&self) -> usize {
        self.per_chunk() * self.n_chunks
    }

    fn per_chunk(&self) -> usize {
        (self.chunk_len.saturating_sub(self.n_context) / self.n_context).max(1)
    }

    fn random(&self, rng: &mut SplitMix64) -> i64 {
        let chunk = rng.below(self.n_chunks);
        (chunk * self.chunk_len + rng.below(self.chunk_len - self.n_context)) as i64
    }

    /// Cuts and shuffles the text for an epoch.
    fn enter(&mut self, epoch: u64) {
        if self.epoch == Some(epoch) {
            return;
        }
        let mut rng = SplitMix64::new(mix(self.seed, Purpose::Epoch, epoch));
        let per_chunk = self.per_chunk();
        // The last window and the token after it must be there.
        let slack = self.chunk_len - (per_chunk * self.n_context + 1);
        let phase = rng.below(slack.min(self.n_context - 1) + 1);
        self.starts = (0..self.n_chunks)
            .flat_map(|chunk| (0..per_chunk).map(move |window| (chunk, window)))
            .map(|(chunk, window)| {
                (chunk * self.chunk_len + phase + window * self.n_context) as i64
            })
            .collect();
        rng.shuffle(&mut self.starts);
        self.epoch = Some(epoch);
    }
}

/// The tokens of a split on the device.
pub struct Corpus {
    /// `(n_chunks * chunk_len)`, bytes where the vocabulary permits, else i32.
    tokens: Tensor,
    chunk_len: usize,
    n_chunks: usize,
    /// 0 to n_context, `(n_context + 1)` i64.
    steps: Tensor,
}

impl Corpus {
    /// Takes a split over to the device, for windows of `n_context` tokens.
    pub fn new(chunks: &Chunks, n_context: usize, device: Device) -> Corpus {
        let tokens = chunks.tokens();
        let tokens = if tokens.iter().all(|token| *token < 256) {
            Tensor::from_slice(&tokens.iter().map(|token| *token as u8).collect::<Vec<_>>())
        } else {
            Tensor::from_slice(&tokens.iter().map(|token| *token as i32).collect::<Vec<_>>())
        };
        Corpus {
            tokens: tokens.to_device(device),
            chunk_len: chunks.chunk_len(),
            n_chunks: chunks.n_chunks(),
            steps: Tensor::arange(n_context as i64 + 1, (Kind::Int64, device)),
        }
    }

    /// Inputs and targets, both `(B, n_context)` i64, of the windows that begin at `starts`, `(B)` i64
    /// on the device; the targets are the inputs one token on.
    pub fn windows(&self, starts: &Tensor) -> (Tensor, Tensor) {
        let places = starts.unsqueeze(1) + &self.steps;
        let windows = self.tokens.index_select(0, &places.view([-1])).to_kind(Kind::Int64);
        let n = self.steps.size()[0];
        let windows = windows.view([-1, n]);
        (windows.narrow(1, 0, n - 1), windows.narrow(1, 1, n - 1))
    }

    /// Every window that does not overlap another, from the first token of each piece on: places of
    /// those that are complete, and of the shorter ones at the ends with their length.
    pub fn all_windows(&self) -> (Vec<i64>, Vec<(i64, i64)>) {
        let n_context = self.steps.size()[0] as usize - 1;
        let (mut complete, mut ends) = (Vec::new(), Vec::new());
        for chunk in 0..self.n_chunks {
            let start = chunk * self.chunk_len;
            // Each token but the first of a piece is a target once.
            let n_targets = self.chunk_len - 1;
            complete.extend((0..n_targets / n_context).map(|i| (start + i * n_context) as i64));
            let rest = n_targets % n_context;
            if rest > 0 {
                ends.push(((start + n_targets - rest) as i64, rest as i64));
            }
        }
        (complete, ends)
    }

    /// Inputs and targets, both `(1, len)` i64, of one shorter window.
    pub fn window(&self, start: i64, len: i64) -> (Tensor, Tensor) {
        let window = self.tokens.narrow(0, start, len + 1).to_kind(Kind::Int64).unsqueeze(0);
        (window.narrow(1, 0, len), window.narrow(1, 1, len))
    }

    /// Tokens that are predicted from those before them.
    pub fn n_targets(&self) -> usize {
        self.n_chunks * self.chunk_len.saturating_sub(1)
    }
}

/// One seed from a run's seed, a purpose and a count, all bits of which depend on all of theirs.
pub fn mix(seed: u64, purpose: Purpose, i: u64) -> u64 {
    let purpose: u64 = match purpose {
        Purpose::Step => 1,
        Purpose::Evaluation => 2,
        Purpose::Epoch => 3,
    };
    let scramble = |x: u64| SplitMix64::new(x).next_u64();
    [purpose, i].iter().fold(seed, |hash, part| scramble(hash ^ scramble(*part)))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use teeny_runtime::dataset::{Dataset, DatasetConfig, Split};

    use super::*;

    #[test]
    fn seeds_differ_by_each_part() {
        let mut seen = HashSet::new();
        for seed in 0..10 {
            for i in 0..10 {
                assert!(seen.insert(mix(seed, Purpose::Step, i)));
                assert!(seen.insert(mix(seed, Purpose::Evaluation, i)));
                assert!(seen.insert(mix(seed, Purpose::Epoch, i)));
            }
        }
    }

    /// Pieces of 50 tokens, each of which says where it is.
    fn dataset() -> Dataset {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let text: String =
            (0..200).map(|i| char::from_u32(0x4e00 + i).expect("a letter")).collect();
        std::fs::write(file.path(), text).expect("written");
        let config = DatasetConfig {
            input_file: file.path().to_owned(),
            tokens_per_chunk: 50,
            fraction_train: 0.5,
            fraction_val: 0.5,
            ..DatasetConfig::default()
        };
        Dataset::load(&config).expect("a text")
    }

    #[test]
    fn an_epoch_sees_every_window_once_and_never_crosses_pieces() {
        let dataset = dataset();
        let chunks = dataset.chunks(Split::Train);
        for n_context in [1, 7, 16, 24, 25, 26, 49] {
            let mut windows = Windows::new(chunks, Sampling::Epochs, 3, n_context);
            let per_epoch = windows.per_epoch();
            let mut phases = HashSet::new();
            for epoch in 0..20 {
                let starts = windows.of_step(epoch, per_epoch);
                let distinct: HashSet<i64> = starts.iter().copied().collect();
                assert_eq!(distinct.len(), per_epoch, "{n_context}");
                let phase = starts.iter().map(|start| start % 50).min().expect("one");
                phases.insert(phase);
                for start in starts {
                    let within = start as usize % 50;
                    assert!(within + n_context < 50, "{n_context}: {start}");
                    assert_eq!((within as i64 - phase) % n_context as i64, 0);
                }
            }
            assert!(
                phases.len() > 1 || n_context == 1 || n_context == 49,
                "{n_context}: {phases:?}"
            );
        }
    }

    #[test]
    fn steps_of_any_size_go_through_epochs_in_order() {
        let dataset = dataset();
        let chunks = dataset.chunks(Split::Train);
        let windows = || Windows::new(chunks, Sampling::Epochs, 3, 7);
        let (mut a, mut b) = (windows(), windows());
        let by_five: Vec<i64> = (0..12).flat_map(|i| a.of_step(i, 5)).collect();
        // Backwards, as after a resumption.
        let mut by_six: Vec<Vec<i64>> = (0..10).rev().map(|i| b.of_step(i, 6)).collect();
        by_six.reverse();
        assert_eq!(by_five, by_six.concat());
    }

    #[test]
    fn windows_are_text_and_what_follows() {
        let dataset = dataset();
        let chunks = dataset.chunks(Split::Train);
        let corpus = Corpus::new(chunks, 4, Device::Cpu);
        let (inputs, targets) = corpus.windows(&Tensor::from_slice(&[0i64, 51]));
        let at = |i: usize| i64::from(chunks.tokens()[i]);
        assert_eq!(
            inputs,
            Tensor::from_slice(
                &[[0, 1, 2, 3], [51, 52, 53, 54]].concat().into_iter().map(at).collect::<Vec<_>>()
            )
            .view([2, 4])
        );
        assert_eq!(
            targets,
            Tensor::from_slice(
                &[[1, 2, 3, 4], [52, 53, 54, 55]].concat().into_iter().map(at).collect::<Vec<_>>()
            )
            .view([2, 4])
        );
    }

    #[test]
    fn every_token_but_the_first_of_a_piece_is_a_target_once() {
        let dataset = dataset();
        for n_context in [1, 4, 7, 48, 49] {
            let corpus = Corpus::new(dataset.chunks(Split::Val), n_context, Device::Cpu);
            let (complete, ends) = corpus.all_windows();
            let mut targets: Vec<i64> = complete
                .iter()
                .flat_map(|start| (1..=n_context as i64).map(move |i| start + i))
                .chain(ends.iter().flat_map(|(start, len)| (1..=*len).map(move |i| start + i)))
                .collect();
            targets.sort_unstable();
            let expected: Vec<i64> = (0..100).filter(|i| i % 50 != 0).collect();
            assert_eq!(targets, expected, "{n_context}");
            assert_eq!(corpus.n_targets(), expected.len());
        }
    }
}
