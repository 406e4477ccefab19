//! The sampler on the device draws the tokens that the sampler on the CPU draws: the latter writes
//! cases with their tokens into a file, `checks/sample.cpp` runs the kernel on them.

use std::fs;
use std::process::{Command, Output};

use teeny_cuda_tests::{Check, Replacement, assert_fails, assert_passes};
use teeny_runtime::backend::DrawOptions;
use teeny_runtime::sampler::{Sampler, Stage};
use tempfile::NamedTempFile;

/// What the kernel writes where no token is possible.
const NO_TOKEN: u32 = u32::MAX;

/// Numbers for tests (Knuth's LCG).
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }

    fn below(&mut self, n: usize) -> usize {
        ((u64::from(self.bits()) * n as u64) >> 32) as usize
    }

    /// A number in 0..1.
    fn unit(&mut self) -> f32 {
        (self.bits() >> 8) as f32 / 16_777_216.0
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

/// Kinds of logits.
#[derive(Clone, Copy, Debug)]
enum Logits {
    /// As models give them.
    Bell,
    /// A few values, many times each.
    Ties,
    Equal,
    /// What float formats have to offer.
    Hostile,
    /// As Hostile with few possible tokens.
    Rare,
    Ascending,
    /// Every 4096th token and those next to it are the best: one thread of the kernel has them all.
    Comb,
    /// Zeros of both signs and their neighbours: all as likely, so that their order shows.
    Zeros,
    /// Infinity, which counts as the largest number, that number, and its neighbour.
    Huge,
    /// Not one is possible.
    None,
}

impl Logits {
    const ALL: [Logits; 10] = [
        Logits::Bell,
        Logits::Ties,
        Logits::Equal,
        Logits::Hostile,
        Logits::Rare,
        Logits::Ascending,
        Logits::Comb,
        Logits::Zeros,
        Logits::Huge,
        Logits::None,
    ];

    fn make(self, random: &mut Random, vocab_size: usize) -> Vec<f32> {
        let hostile = [
            f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::MAX,
            f32::MIN,
            f32::MIN_POSITIVE,
            1e-45,
            -1e-45,
            0.0,
            -0.0,
            1.0,
            -80.0,
        ];
        let few: Vec<f32> = (0..3).map(|_| random.one_of(&hostile)).collect();
        let impossible = [f32::NAN, f32::NEG_INFINITY, -f32::NAN];
        let scale = random.one_of(&[0.01, 1.0, 6.0, 100.0, 1e37]);
        let equal = random.one_of(&hostile[3..]);
        let bell = |random: &mut Random| scale * ((0..6).map(|_| random.unit()).sum::<f32>() - 3.0);
        let logit = |token: usize| match self {
            Logits::Bell => bell(random),
            Logits::Ties => (random.below(5) as f32 - 2.0) * scale,
            Logits::Equal => equal,
            Logits::Hostile => {
                if random.below(2) == 0 {
                    random.one_of(&hostile)
                } else {
                    random.one_of(&few)
                }
            }
            Logits::Rare => {
                if random.below(vocab_size / 3 + 1) == 0 {
                    random.one_of(&hostile)
                } else {
                    random.one_of(&impossible)
                }
            }
            Logits::Ascending => token as f32 * (scale / vocab_size as f32),
            Logits::Comb => bell(random) + if token % 4096 < 4 { 5.0 * scale } else { 0.0 },
            Logits::Zeros => random.one_of(&[0.0, -0.0, 1e-45, -1e-45]),
            Logits::Huge => {
                random.one_of(&[f32::INFINITY, f32::INFINITY, f32::MAX, f32::MAX.next_down()])
            }
            Logits::None => random.one_of(&impossible),
        };
        (0..vocab_size).map(logit).collect()
    }
}

/// A sampler with those of the four stages that `which` has a bit for, at some place in its random
/// numbers.
fn sampler(random: &mut Random, which: usize, vocab_size: usize) -> Sampler {
    let word = |random: &mut Random| u64::from(random.bits()) << 32 | u64::from(random.bits());
    let seed = match random.below(3) {
        0 => random.below(10) as u64,
        _ => word(random),
    };
    let mut sampler = Sampler::chain(seed);
    match random.below(4) {
        0 => {}
        1 => sampler.skip(u64::from(u32::MAX)),
        2 => sampler.skip(u64::MAX),
        _ => sampler.skip(word(random)),
    }
    if random.below(16) == 0 {
        // Shares that are so small that `exp` cannot tell them apart, but min-p does.
        for stage in [Stage::TopK(1000), Stage::MinP(1e-45), Stage::Temperature(100.0)] {
            sampler.push(stage).expect("in range");
        }
        return sampler;
    }
    let unit = random.unit().max(1e-3);
    let some = 1 + random.below(vocab_size.min(1024));
    let top_k = [some, some, 0, 1, 2, 40, vocab_size - 1, vocab_size, vocab_size + 1, 1024];
    let top_p = [unit, unit, 1.0, 0.95, 0.999_999_9, 0.5, 1e-3, f32::MIN_POSITIVE, 1e-45];
    let min_p = [unit, unit, 0.05, 0.0, 1.0, 0.999_999_9, 1e-6, 1e-37, 1e-45];
    let temperature = [2.0 * unit, 2.0 * unit, 0.8, 1.0, 100.0, 1e-3, 1e-30, 1e-45, 0.0, 0.0];
    let stages = [
        Stage::TopK(random.one_of(&top_k)),
        Stage::TopP(random.one_of(&top_p)),
        Stage::MinP(random.one_of(&min_p)),
        Stage::Temperature(random.one_of(&temperature)),
    ];
    for (i, stage) in stages.into_iter().enumerate() {
        if which >> i & 1 == 1 {
            sampler.push(stage).expect("in range");
        }
    }
    sampler
}

/// What the kernel is made for; sample.cu says the same.
fn can_draw(draw: &DrawOptions, vocab_size: usize) -> bool {
    draw.temperature == 0.0 || (1..=1024).contains(&draw.top_k) || vocab_size <= 1024
}

/// Appends a pass in the format of `checks/sample.cpp`. `kinds`: of the logits, (rows)
fn pass(
    out: &mut Vec<u8>,
    random: &mut Random,
    combination: &mut usize,
    vocab_size: usize,
    kinds: &[Logits],
    steps: usize,
) {
    let word = |out: &mut Vec<u8>, x: u32| out.extend(x.to_ne_bytes());
    for x in [vocab_size, kinds.len(), steps] {
        word(out, x as u32);
    }
    for kind in kinds {
        let logits = kind.make(random, vocab_size);
        *combination += 1;
        let (mut sampler, draw) = loop {
            let sampler = sampler(random, *combination, vocab_size);
            let draw = sampler.chain_as_draw().expect("a usual chain");
            if can_draw(&draw, vocab_size) {
                break (sampler, draw);
            }
            *combination += 1;
        };
        out.extend(draw.seed.to_ne_bytes());
        out.extend(draw.step.to_ne_bytes());
        for x in [draw.temperature, draw.top_p, draw.min_p, draw.surely_below] {
            word(out, x.to_bits());
        }
        word(out, draw.top_k);
        for _ in 0..steps {
            word(out, sampler.sample(&logits).unwrap_or(NO_TOKEN));
        }
        for x in logits {
            word(out, x.to_bits());
        }
    }
}

/// Passes of one row of every kind, and passes of several rows.
fn cases() -> Vec<u8> {
    let mut out = Vec::new();
    let mut random = Random(1);
    let mut combination = 0;
    for (vocab_size, times) in [
        (1, 10),
        (2, 10),
        (29, 20),
        (32, 10),
        (65, 30),
        (128, 10),
        (129, 20),
        (256, 10),
        (513, 8),
        (1000, 8),
        (1024, 4),
        (1025, 4),
        (4099, 4),
        (50257, 4),
    ] {
        for _ in 0..times {
            for kind in Logits::ALL {
                pass(&mut out, &mut random, &mut combination, vocab_size, &[kind], 2);
            }
            let kinds: [Logits; 5] = std::array::from_fn(|_| random.one_of(&Logits::ALL));
            let rows = 2 + random.below(4);
            pass(&mut out, &mut random, &mut combination, vocab_size, &kinds[..rows], 3);
        }
    }
    out
}

/// Runs the check on the cases for some seeds of the scheduling, with a fault in the kernel.
fn run(replacements: &[Replacement<'_>], seeds: u64) -> Output {
    let cases_file = NamedTempFile::new().expect("a folder to write to");
    fs::write(cases_file.path(), cases()).expect("space on the disk");
    let program = Check { replacements, ..Check::new("sample") }.build();
    let output = Command::new(program)
        .args([seeds.to_string(), "1".to_owned()])
        .arg(cases_file.path())
        .output();
    output.expect("a program that can be run")
}

#[test]
fn the_device_draws_what_the_cpu_draws() {
    assert_passes(&run(&[], 3));
}

#[test]
fn faults_show() {
    for (from, to) in [
        // The last exchange of the sort races with its result.
        ("    block_sync(); // `sorted` may still be read\n", ""),
        // Top-p keeps one too many where a sum is just the share.
        (">= d.top_p *", "> d.top_p *"),
        // Keys beyond a bin are forgotten when it is divided.
        ("        above = cut->above;\n", ""),
        // As many zeros of the other sign come first.
        ("logit) + 0.0f;", "logit);"),
        // The order of equal logits.
        ("u64 key = ~token;", "u64 key = token;"),
    ] {
        assert_fails(&run(&[("sample.cu", from, to)], 3), "wanted");
    }
    let forgotten = [("sample.cu", "        *a.arrived = 0;\n", "")];
    assert_fails(&run(&forgotten, 1), "the counters are wrong");
}
