use super::*;

/// Known answers of the authors' Random123 distribution (kat_vectors, philox4x32 10).
#[test]
fn philox_gives_the_known_answers() {
    assert_eq!(philox(0, 0), 0x6627_e8d5);
}

fn sampler(options: SamplerOptions) -> Sampler {
    Sampler::new(options).expect("valid options")
}

fn chain(stages: &[Stage]) -> Sampler {
    let mut sampler = Sampler::chain(0);
    for stage in stages {
        sampler.push(stage.clone()).expect("valid stage");
    }
    sampler
}

/// What the stages leave: tokens in order, with their logits.
fn left(sampler: &mut Sampler, logits: &[f32]) -> Vec<(u32, f32)> {
    sampler.run(logits).expect("some are finite");
    let mut left: Vec<_> = sampler.candidates.list.iter().map(|c| (c.token, c.logit)).collect();
    left.sort_by_key(|(token, _)| *token);
    left
}

fn tokens(sampler: &mut Sampler, logits: &[f32]) -> Vec<u32> {
    left(sampler, logits).into_iter().map(|(token, _)| token).collect()
}

/// Numbers for tests (Knuth's LCG).
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }

    fn below(&mut self, n: usize) -> usize {
        self.bits() as usize % n
    }

    /// A number in 0..1.
    fn unit(&mut self) -> f32 {
        (self.bits() >> 8) as f32 / 16_777_216.0
    }
}

#[test]
fn zero_temperature_takes_the_first_of_equal_maxima() {
    for mut s in [
        sampler(SamplerOptions { temperature: 0.0, ..Default::default() }),
        Sampler::greedy(),
        chain(&[Stage::TopP(0.5), Stage::Temperature(0.0), Stage::Temperature(2.0)]),
    ] {
        assert_eq!(s.sample(&[1.0, 3.0, 3.0]).expect("finite"), 1);
        assert_eq!(s.sample(&[f32::NAN, f32::NEG_INFINITY, -5.0]).expect("finite"), 2);
        assert_eq!(s.sample(&[1.0, f32::INFINITY, f32::MAX]).expect("finite"), 1);
        assert_eq!(s.sample(&[-0.0, 0.0]).expect("finite"), 0);
    }
}

#[test]
fn hostile_logits_never_panic() {
    let hostile = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 0.0, -0.0];
    let stages = |i: usize| match i {
        0 => Stage::LogitBias(vec![(1, f32::MIN), (4, f32::MAX), (6, f32::NEG_INFINITY)]),
        1 => Stage::Penalties { last_n: 9, repeat: 0.01, frequency: -100.0, presence: -100.0 },
        2 => Stage::Penalties { last_n: 9, repeat: 100.0, frequency: 100.0, presence: 100.0 },
        3 => Stage::TopK(2),
        4 => Stage::TopP(f32::MIN_POSITIVE),
        5 => Stage::TopP(0.999_999_9),
        6 => Stage::MinP(1.0),
        7 => Stage::Temperature(1e-45),
        8 => Stage::Temperature(1e-3),
        9 => Stage::Temperature(100.0),
        _ => Stage::Temperature(0.0),
    };
    for (a, b, c) in (0..11 * 11 * 11).map(|i| (i % 11, i / 11 % 11, i / 121)) {
        let mut s = chain(&[stages(a), stages(b), stages(c)]);
        for _ in 0..5 {
            let token = s.sample(&hostile).expect("some are finite");
            assert!(![0, 2].contains(&token), "{s}: {token}");
        }
        assert!(s.sample(&[f32::NAN; 7]).is_err());
        assert!(s.sample(&[f32::NEG_INFINITY; 7]).is_err());
        assert!(s.sample(&[]).is_err());
    }
}

#[test]
fn options_out_of_range_are_refused_by_name() {
    let default = SamplerOptions::default;
    for (options, name) in [
        (SamplerOptions { temperature: -1.0, ..default() }, "temperature"),
        (SamplerOptions { temperature: f32::NAN, ..default() }, "temperature"),
        (SamplerOptions { top_p: 0.0, ..default() }, "top_p"),
        (SamplerOptions { min_p: 1.5, ..default() }, "min_p"),
        (SamplerOptions { min_p: 1.5, temperature: 0.0, ..default() }, "min_p"),
        (SamplerOptions { repeat_penalty: 0.0, ..default() }, "repeat_penalty"),
        (SamplerOptions { frequency_penalty: f32::INFINITY, ..default() }, "frequency_penalty"),
        (SamplerOptions { presence_penalty: f32::NAN, ..default() }, "presence_penalty"),
        (SamplerOptions { penalty_last_n: usize::MAX, ..default() }, "penalty_last_n"),
    ] {
        let message = Sampler::new(options).expect_err("out of range").to_string();
        assert!(message.starts_with(name), "{message}");
    }
    for bias in [f32::NAN, f32::INFINITY] {
        let mut s = Sampler::greedy();
        let refused = s.push(Stage::LogitBias(vec![(3, 1.0), (7, bias)]));
        let message = refused.expect_err("no bias").to_string();
        assert!(message.starts_with("logit_bias") && message.contains("token 7"), "{message}");
        assert_eq!(s.stages().len(), 1);
    }
}

#[test]
fn a_chain_says_what_it_is() {
    let shown = |options| sampler(options).to_string();
    let default = SamplerOptions::default;
    assert_eq!(shown(default()), "seed 0: top_k 40, top_p 0.95, min_p 0.05, temperature 0.8");
    assert_eq!(
        shown(SamplerOptions { seed: 7, presence_penalty: 0.5, temperature: 0.0, ..default() }),
        "seed 7: penalties (last_n 64, repeat 1, frequency 0, presence 0.5), temperature 0"
    );
    let off = SamplerOptions { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..default() };
    assert_eq!(shown(off), "seed 0: no stages");
    let nothing_recent = SamplerOptions { repeat_penalty: 2.0, penalty_last_n: 0, ..default() };
    assert_eq!(shown(nothing_recent), shown(default()));
    assert_eq!(Sampler::greedy().to_string(), "seed 0: temperature 0");
}

/// Frequencies of many draws agree with the softmax to four standard deviations.
#[test]
fn draws_follow_the_distribution() {
    let logits = [0.0f32, 1.0, 2.0, -1.0];
    for temperature in [0.7, 1.0] {
        let mut s = Sampler::chain(7);
        if temperature != 1.0 {
            s.push(Stage::Temperature(temperature)).expect("valid stage");
        }
        let weights = logits.map(|l| f64::from(l / temperature).exp());
        let total: f64 = weights.iter().sum();
        let n = 100_000;
        let mut counts = [0usize; 4];
        for _ in 0..n {
            counts[s.sample(&logits).expect("finite") as usize] += 1;
        }
        for (count, weight) in counts.iter().zip(weights) {
            let p = weight / total;
            let deviation =
                (*count as f64 - p * f64::from(n)) / (p * (1.0 - p) * f64::from(n)).sqrt();
            assert!(deviation.abs() < 4.0, "{counts:?}");
        }
    }
}

/// Tokens that the sampler drew before it was a chain (release 0.1's first commits), so that texts
/// with a seed stay what they were.
#[test]
fn the_usual_chain_draws_what_it_always_has() {
    let default = SamplerOptions::default;
    for (options, expected) in [
        (default(), GOLDEN[0]),
        (SamplerOptions { seed: 1, repeat_penalty: 1.3, ..default() }, GOLDEN[1]),
        (SamplerOptions { top_k: 0, top_p: 1.0, min_p: 0.0, ..default() }, GOLDEN[2]),
        (SamplerOptions { top_k: 0, top_p: 0.5, min_p: 0.0, seed: 9, ..default() }, GOLDEN[3]),
        (SamplerOptions { top_k: 0, top_p: 1.0, min_p: 0.2, seed: 9, ..default() }, GOLDEN[4]),
        (SamplerOptions { temperature: 0.0, repeat_penalty: 1.5, ..default() }, GOLDEN[5]),
        (
            SamplerOptions { temperature: 1.0, top_k: 5, repeat_penalty: 0.8, ..default() },
            GOLDEN[6],
        ),
    ] {
        let mut random = Random(3);
        let mut s = sampler(options.clone());
        let drawn: [u32; 12] = std::array::from_fn(|_| {
            let logits: Vec<f32> = (0..1000).map(|_| 20.0 * random.unit() - 12.0).collect();
            s.sample(&logits).expect("finite")
        });
        assert_eq!(drawn, expected, "{options:?}");
    }
}

const GOLDEN: [[u32; 12]; 7] = [
    [223, 164, 420, 912, 359, 799, 175, 514, 451, 42, 692, 849],
    [766, 771, 122, 815, 914, 734, 257, 463, 786, 495, 333, 954],
    [747, 79, 420, 150, 908, 875, 56, 502, 310, 658, 149, 641],
    [297, 80, 122, 228, 634, 734, 370, 556, 107, 128, 528, 749],
    [427, 758, 148, 150, 564, 935, 874, 215, 109, 495, 635, 697],
    [893, 621, 420, 111, 44, 677, 572, 615, 122, 650, 172, 300],
    [696, 499, 420, 940, 517, 47, 826, 670, 670, 548, 710, 863],
];

/// Hugging Face transformers, tests/generation/test_logits_process.py: `test_top_k_dist_warper`,
/// `test_top_p_dist_warper`, `test_min_p_dist_warper`, `test_repetition_penalty_dist_process`.
#[test]
fn stages_agree_with_transformers() {
    let ramp: Vec<f32> = (0u8..10).map(f32::from).collect();
    assert_eq!(tokens(&mut chain(&[Stage::TopK(3)]), &ramp), [7, 8, 9]);
    let two_ramps: Vec<f32> =
        (0u8..10).map(|i| f32::from(if i < 5 { i + 10 } else { i })).collect();
    assert_eq!(tokens(&mut chain(&[Stage::TopK(3)]), &two_ramps), [2, 3, 4]);

    let mut top_p = chain(&[Stage::TopP(0.8)]);
    // Their case of a sum that is exactly p; they allow either side of it in other versions.
    let mut edge = chain(&[Stage::TopP(0.799_999_95)]);
    assert_eq!(tokens(&mut edge, &[0.3f32, 0.1, 0.1, 0.5].map(f32::ln)), [0, 3]);
    assert_eq!(tokens(&mut top_p, &[0.15f32, 0.3, 0.3, 0.25].map(f32::ln)), [1, 2, 3]);
    let mut top_p = chain(&[Stage::TopP(0.9)]);
    let steep: Vec<f32> = ramp.iter().map(|l| l - 5.0).collect();
    assert_eq!(tokens(&mut top_p, &steep).len(), 3);

    let mut min_p = chain(&[Stage::MinP(0.05)]);
    assert_eq!(tokens(&mut min_p, &[0.9f32, 0.0274, 0.047, 0.0274].map(f32::ln)), [0, 2]);
    assert_eq!(tokens(&mut min_p, &[0.15f32, 0.3, 0.3, 0.25].map(f32::ln)), [0, 1, 2, 3]);
    assert_eq!(tokens(&mut min_p, &[0.97f32, 0.01, 0.01, 0.01].map(f32::ln)), [0]);

    let penalties = Stage::Penalties { last_n: 2, repeat: 2.0, frequency: 0.0, presence: 0.0 };
    for (recent, logits_before, logits_after) in
        [([0, 1], [-0.1, 0.1], [-0.2, 0.05]), ([5, 0], [0.4, 0.1], [0.2, 0.05])]
    {
        let mut s = chain(std::slice::from_ref(&penalties));
        let mut logits = [0.1; 10];
        for (token, logit) in recent.iter().zip(logits_before) {
            s.accept(*token);
            logits[*token as usize] = logit;
        }
        let after = left(&mut s, &logits);
        assert_eq!(recent.map(|token| after[token as usize].1), logits_after);
        assert_eq!(after[7], (7, 0.1));
    }
}

/// OpenAI's definition: logit[j] -= count[j] * frequency + (count[j] > 0) * presence.
#[test]
fn frequency_counts_and_presence_does_not() {
    let stage = Stage::Penalties { last_n: 4, repeat: 1.0, frequency: 0.5, presence: 0.25 };
    let mut s = chain(&[stage]);
    // The first falls out of the four newest; the last is beyond the logits.
    for token in [3, 0, 0, 1, 9] {
        s.accept(token);
    }
    let after: Vec<f32> = left(&mut s, &[2.0; 4]).iter().map(|(_, logit)| *logit).collect();
    assert_eq!(after, [2.0 - 1.25, 2.0 - 0.75, 2.0, 2.0]);
}

#[test]
fn the_penalty_sees_only_recent_tokens() {
    let options = SamplerOptions {
        temperature: 0.0,
        repeat_penalty: 2.0,
        penalty_last_n: 1,
        ..Default::default()
    };
    let mut s = sampler(options);
    let logits = [3.0, 2.0, -4.0];
    let drawn: Vec<u32> = (0..4).map(|_| s.sample(&logits).expect("finite")).collect();
    assert_eq!(drawn, [0, 1, 0, 1]);
}

#[test]
fn biases_add_up_forbid_and_are_checked() {
    let mut s = chain(&[Stage::LogitBias(vec![(2, 1.0), (0, f32::NEG_INFINITY), (2, 0.5)])]);
    assert_eq!(left(&mut s, &[9.0, 1.0, 1.0]), [(1, 1.0), (2, 2.5)]);
    let message = s.sample(&[9.0, 1.0]).expect_err("no token 2").to_string();
    assert!(message.contains("logit_bias") && message.contains("token 2"), "{message}");
    let message = s.sample(&[1.0, f32::NAN, f32::NAN]).expect_err("none left").to_string();
    assert!(message.starts_with("logit_bias"), "{message}");
    let mut least = chain(&[Stage::LogitBias(vec![(0, f32::MIN), (0, f32::MIN)])]);
    assert_eq!(left(&mut least, &[0.0]), [(0, f32::MIN)]);
    // A failure leaves no trace.
    assert_eq!(left(&mut s, &[9.0, 1.0, 1.0]), [(1, 1.0), (2, 2.5)]);
}

#[test]
fn a_clone_goes_on_alike_and_reset_begins_again() {
    let options = SamplerOptions { repeat_penalty: 1.5, penalty_last_n: 3, ..Default::default() };
    let mut s = sampler(options);
    let logits = [0.1, 0.2, 0.3, 0.4, 0.5];
    let draw = |s: &mut Sampler| -> Vec<u32> {
        (0..20).map(|_| s.sample(&logits).expect("finite")).collect()
    };
    let first = draw(&mut s);
    let mut clone = s.clone();
    let second = draw(&mut s);
    assert_eq!(draw(&mut clone), second);
    assert_ne!(first, second);
    s.reset();
    assert_eq!(draw(&mut s), first);
}

#[test]
fn recent_tokens_are_bounded() {
    let mut s = Sampler::greedy();
    let penalties =
        |last_n| Stage::Penalties { last_n, repeat: 1.1, frequency: 0.0, presence: 0.0 };
    s.push(penalties(3)).expect("valid stage");
    s.push(penalties(100)).expect("valid stage");
    let capacity = s.recent.capacity();
    (0..100_000).for_each(|token| s.accept(token));
    assert_eq!((s.recent.len(), s.recent.capacity()), (100, capacity));
    assert!(s.push(penalties(MAX_LAST_N + 1)).is_err());
}

/// Every stage on its own terms, in f64 and without any cleverness.
fn naive(stage: &Stage, left: &mut Vec<(u32, f64)>, recent: &[u32]) {
    let order = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    left.sort_by(order);
    let softmax = |left: &[(u32, f64)]| -> Vec<f64> {
        let weights: Vec<f64> = left.iter().map(|(_, l)| (l - left[0].1).exp()).collect();
        let total: f64 = weights.iter().sum();
        weights.iter().map(|weight| weight / total).collect()
    };
    match stage {
        Stage::LogitBias(biases) => {
            for (token, bias) in biases {
                left.iter_mut().filter(|l| l.0 == *token).for_each(|l| l.1 += f64::from(*bias));
            }
            left.retain(|l| l.1.is_finite());
        }
        Stage::Penalties { last_n, repeat, frequency, presence } => {
            let newest = &recent[recent.len().saturating_sub(*last_n)..];
            for (token, logit) in left.iter_mut().filter(|l| newest.contains(&l.0)) {
                let count = newest.iter().filter(|t| *t == token).count() as f64;
                let repeat = f64::from(*repeat);
                *logit = if *logit > 0.0 { *logit / repeat } else { *logit * repeat };
                *logit -= count * f64::from(*frequency) + f64::from(*presence);
            }
        }
        Stage::TopK(k) => left.truncate(if *k == 0 { left.len() } else { *k }),
        Stage::TopP(p) => {
            let probabilities = softmax(left);
            let mut sum = 0.0;
            let before = probabilities.iter().take_while(|probability| {
                let short = sum < f64::from(*p);
                sum += **probability;
                short
            });
            left.truncate(before.count());
        }
        Stage::MinP(p) => {
            let probabilities = softmax(left);
            let kept = probabilities.iter().filter(|q| **q >= f64::from(*p) * probabilities[0]);
            left.truncate(kept.count());
        }
        Stage::Temperature(0.0) => left.truncate(1),
        Stage::Temperature(t) => left.iter_mut().for_each(|l| l.1 /= f64::from(*t)),
    }
    left.sort_by(order);
}

/// Chains of random stages over random logits against [`naive`]. Logits are multiples of 1/8 and
/// penalties and temperatures powers of two, so that both have the same ties; where a cumulative
/// probability is too close to the threshold for f32 to tell, the case is left out, and few are.
#[test]
fn every_stage_does_what_a_naive_one_does() {
    let mut random = Random(1);
    let mut close = 0;
    for case in 0..4000 {
        let vocab_size = 1 + random.below(60);
        let logits: Vec<f32> = (0..vocab_size)
            .map(|_| match random.below(20) {
                0 => f32::NAN,
                1 => f32::NEG_INFINITY,
                _ => (random.below(160) as f32 - 100.0) / 8.0,
            })
            .collect();
        let stages: Vec<Stage> = (0..1 + random.below(4))
            .map(|_| match random.below(7) {
                0 => Stage::LogitBias(
                    (0..random.below(5))
                        .map(|_| (random.below(vocab_size) as u32, random.below(9) as f32 - 4.0))
                        .collect(),
                ),
                1 => Stage::LogitBias(vec![(random.below(vocab_size) as u32, f32::NEG_INFINITY)]),
                2 => Stage::Penalties {
                    last_n: random.below(20),
                    repeat: [0.5, 1.0, 2.0][random.below(3)],
                    frequency: random.below(5) as f32 / 4.0 - 0.5,
                    presence: random.below(5) as f32 / 4.0 - 0.5,
                },
                3 => Stage::TopK(random.below(vocab_size + 3)),
                4 => Stage::TopP(random.unit().max(1e-3)),
                5 => Stage::MinP(random.unit() * random.unit()),
                _ => Stage::Temperature([0.0, 0.5, 1.0, 2.0, 4.0][random.below(5)]),
            })
            .collect();
        let recent: Vec<u32> =
            (0..random.below(40)).map(|_| random.below(vocab_size + 2) as u32).collect();

        let mut s = chain(&stages);
        recent.iter().for_each(|token| s.accept(*token));
        let mut expected: Vec<(u32, f64)> =
            (0..).zip(logits.iter().map(|l| f64::from(*l))).collect();
        expected.retain(|l| l.1.is_finite());
        for stage in &stages {
            if !expected.is_empty() {
                naive(stage, &mut expected, &recent);
            }
        }
        if expected.is_empty() {
            assert!(s.run(&logits).is_err(), "case {case}: {s}");
            continue;
        }
        s.run(&logits).expect("some are left");
        let total = s.candidates.weigh();
        let found = &s.candidates.list;
        let found_tokens: Vec<u32> = found.iter().map(|c| c.token).collect();
        let expected_tokens: Vec<u32> = expected.iter().map(|l| l.0).collect();
        if found_tokens != expected_tokens {
            let common = found_tokens.len().min(expected_tokens.len());
            assert!(
                common.abs_diff(found_tokens.len().max(expected_tokens.len())) == 1
                    && found_tokens[..common] == expected_tokens[..common],
                "case {case}: {stages:?} over {logits:?}, recent {recent:?}: {found_tokens:?}, \
                 expected {expected_tokens:?}"
            );
            close += 1;
            continue;
        }
        let weights: Vec<f64> = expected.iter().map(|l| (l.1 - expected[0].1).exp()).collect();
        let expected_total: f64 = weights.iter().sum();
        for (found, weight) in found.iter().zip(&weights) {
            let found = f64::from(found.weight / total);
            let expected = weight / expected_total;
            assert!((found - expected).abs() < 1e-5, "case {case}: {found} for {expected}");
        }
    }
    assert!(close < 5, "{close} cases differ at a threshold");
}

#[test]
fn the_usual_chain_is_a_draw() {
    let default = SamplerOptions::default;
    let mut s = sampler(SamplerOptions { seed: 7, ..default() });
    s.sample(&[0.0, 1.0]).expect("finite");
    let draw = s.chain_as_draw().expect("no penalties");
    let below = 0.05f32.ln() - 0.01;
    let expected = DrawOptions {
        seed: 7,
        step: 1,
        temperature: 0.8,
        top_p: 0.95,
        min_p: 0.05,
        surely_below: below,
        top_k: 40,
    };
    assert_eq!(draw, expected);

    let off = DrawOptions {
        seed: 0,
        step: 0,
        temperature: 1.0,
        top_p: 1.0,
        min_p: 0.0,
        surely_below: f32::NEG_INFINITY,
        top_k: 0,
    };
    assert_eq!(chain(&[]).chain_as_draw(), Some(off));
    let greedy = Some(DrawOptions { temperature: 0.0, ..off });
    assert_eq!(Sampler::greedy().chain_as_draw(), greedy);
    let all = chain(&[Stage::TopK(usize::MAX), Stage::Temperature(2.0)]).chain_as_draw();
    assert_eq!(all, Some(DrawOptions { temperature: 2.0, ..off }));
}

#[test]
fn other_chains_are_no_draw() {
    let penalties = sampler(SamplerOptions { repeat_penalty: 1.1, ..Default::default() });
    assert_eq!(penalties.chain_as_draw(), None);
    for stages in [
        &[Stage::LogitBias(vec![])][..],
        &[Stage::TopK(3), Stage::TopK(3)],
        &[Stage::TopP(0.5), Stage::TopK(3)],
        &[Stage::Temperature(1.0), Stage::MinP(0.5)],
        &[Stage::TopK(3), Stage::MinP(0.5), Stage::TopP(0.5)],
    ] {
        assert_eq!(chain(stages).chain_as_draw(), None, "{stages:?}");
    }
}

#[test]
fn skipped_draws_are_those_of_another() {
    let mut drawing = Sampler::chain(5);
    let mut skipping = drawing.clone();
    let logits = [0.0; 1000];
    for n in [0, 1, 7] {
        for _ in 0..n {
            drawing.sample(&logits).expect("finite");
        }
        skipping.skip(n);
        let drawn = drawing.sample(&logits).expect("finite");
        assert_eq!(skipping.sample(&logits).expect("finite"), drawn);
    }
}
