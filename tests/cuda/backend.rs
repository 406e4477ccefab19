//! The CUDA backend on an emulated GPU, from the driver's functions down to the kernels: that it does what
//! `suite.rs` asks, and its ways to fail.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use teeny_cuda_tests::suite::{
    self, SPLIT, assert_close, bits, sampler, session, with_later_parts,
};
use teeny_cuda_tests::{Emulator, TARGETS, emulated_driver};
use teeny_runtime::{
    Batch, Cuda, Dtype, Error, Ffn, GenerateOptions, Model, Norm, Overflow, PositionalEncoding,
    Session, generate,
};
use teeny_tests::{RandomModel, random_tokens, small};

/// The driver, with a fault in it if this process is run to find that fault.
fn driver() -> PathBuf {
    static DRIVER: OnceLock<PathBuf> = OnceLock::new();
    let driver = || match std::env::var_os("TEENY_EMULATED_DRIVER") {
        Some(path) => path.into(),
        None => emulated_driver(&[]),
    };
    DRIVER.get_or_init(driver).clone()
}

fn emulator() -> Emulator {
    Emulator::load(&driver())
}

#[test]
fn every_configuration_decodes_as_on_the_cpu() {
    let emulator = emulator();
    let target = |i: usize| emulator.set("capability", u64::from(TARGETS[i % TARGETS.len()]));
    suite::every_configuration_decodes_as_on_the_cpu(&target);
    assert_eq!(emulator.alive(), "");
}

#[test]
fn blocks_are_used_as_f32() {
    let emulator = emulator();
    suite::blocks_are_used_as_f32();
    assert_eq!(emulator.alive(), "");
}

#[test]
fn prompts_in_pieces_of_any_size_agree_with_the_cpu() {
    let emulator = emulator();
    let target = |i: usize| emulator.set("capability", u64::from(TARGETS[i % TARGETS.len()]));
    suite::prompts_in_pieces_of_any_size_agree_with_the_cpu(&target);
    assert_eq!(emulator.alive(), "");
}

#[test]
fn large_shapes_agree_with_the_cpu() {
    let _emulator = emulator();
    suite::large_shapes_agree_with_the_cpu();
}

#[test]
fn a_batch_gives_each_session_what_it_would_get_alone() {
    let _emulator = emulator();
    suite::a_batch_gives_each_session_what_it_would_get_alone();
}

#[test]
fn drawing_ahead_changes_nothing_but_the_time() {
    let emulator = emulator();
    suite::drawing_ahead_changes_nothing_but_the_time(&|| emulator.launches("sample"));
}

#[test]
fn a_batch_draws_the_tokens_that_its_samplers_draw() {
    let emulator = emulator();
    suite::a_batch_draws_the_tokens_that_its_samplers_draw(&|| emulator.launches("sample"));
}

#[test]
fn sessions_move_between_devices_and_go_back_and_fork() {
    let _emulator = emulator();
    suite::sessions_move_between_devices_and_go_back_and_fork();
}

#[test]
fn threads_share_a_model() {
    let emulator = emulator();
    suite::threads_share_a_model();
    assert_eq!(emulator.alive(), "");
}

/// What a session returns does not depend on the order in which blocks and warps run.
#[test]
fn the_schedule_changes_nothing() {
    let emulator = emulator();
    let alibi = small(PositionalEncoding::Alibi, Norm::LayerNorm, Ffn::Gelu);
    let rope = small(PositionalEncoding::Rope, Norm::LayerNorm, Ffn::Gelu);
    for config in [alibi, with_later_parts(rope)] {
        let file = RandomModel::new(&config, Dtype::F32, 48);
        let tokens = random_tokens(100, config.vocab_size, 49);
        let mut first = None;
        for seed in 1..6 {
            emulator.set("seed", seed);
            let mut session = session(&file.load(Cuda::new(0).expect("an emulated device")));
            session.prefill(&tokens[..60]).expect("a device");
            let mut found = Vec::new();
            for token in &tokens[60..] {
                found.push(bits(session.decode(*token).expect("a device")));
            }
            assert_eq!(*first.get_or_insert_with(|| found.clone()), found, "seed {seed}");
        }
    }
}

#[test]
fn batches_refuse_what_they_cannot_feed() {
    let _emulator = emulator();
    let config = small(PositionalEncoding::Rope, Norm::LayerNorm, Ffn::Classic);
    let file = RandomModel::new(&config, Dtype::F32, 57);
    let model = file.load(Cuda::new(0).expect("an emulated device"));
    let other = file.load(Cuda::new(0).expect("an emulated device"));
    let mut batch = Batch::new(&model);
    let message = |result: Result<(), Error>| result.expect_err("refused").to_string();
    assert_eq!(message(batch.decode(&mut [])), "sessions: found none, expected at least one");
    let (mut one, mut two) = (session(&model), session(&other));
    assert_eq!(
        message(batch.decode(&mut [(&mut one, 1), (&mut two, 1)])),
        "session: found one of another model, expected sessions of the batch's model"
    );
    let mut two = session(&model);
    assert_eq!(
        message(batch.decode(&mut [(&mut one, 1), (&mut two, 29)])),
        "token: found 29, expected an id below vocab_size = 29"
    );
    let mut full = Session::new(&model, Overflow::Stop).expect("enough memory");
    full.prefill(&random_tokens(24, 29, 58)).expect("it fits");
    assert_eq!(
        message(batch.decode(&mut [(&mut one, 1), (&mut full, 1)])),
        "context full: 25 tokens do not fit in max_seq_len = 24"
    );
    assert_eq!((one.n_tokens(), full.n_tokens()), (0, 24));
}

/// From the second step of a kind on a step is one graph, and no memory is allocated for a token.
#[test]
fn a_step_is_one_graph_and_allocates_nothing() {
    let emulator = emulator();
    let config = small(PositionalEncoding::Rope, Norm::RmsNorm, Ffn::Swiglu);
    for config in [config.clone(), with_later_parts(config)] {
        let file = RandomModel::new(&config, Dtype::Bf16, 61);
        let model = file.load(Cuda::new(0).expect("an emulated device"));
        let mut session = session(&model);
        session.reserve(100).expect("enough memory");
        session.decode(1).expect("a device");
        session.decode(2).expect("a device");
        let counts = || {
            ["allocations", "pinned_allocations", "graph_launches", "copies"]
                .map(|name| emulator.get(name))
        };
        let before = counts();
        for token in 0..20 {
            session.decode(token).expect("a device");
        }
        let after = counts();
        // One copy brings the token, two bring logits and hidden state.
        assert_eq!([0, 0, 20, 60], std::array::from_fn(|i| after[i] - before[i]));
        assert_eq!(emulator.calls("cuLaunchKernel"), 0);
        drop((session, model));
        assert_eq!(emulator.alive(), "");
    }
}

#[test]
fn without_a_usable_device_the_message_says_what_is_missing() {
    let emulator = emulator();
    let message = |index| match Cuda::new(index) {
        Ok(_) => panic!("it should have been refused"),
        Err(error) => error.to_string(),
    };
    emulator.set("devices", 0);
    assert_eq!(message(0), "device cuda:0: found no device, expected a device of this number");
    emulator.set("devices", 1);
    assert_eq!(
        message(1),
        "device cuda:1: found 1 device, cuda:0, expected a device of this number"
    );
    emulator.set("driver", 11_080);
    assert_eq!(
        message(0),
        "device cuda:0: found a driver for CUDA 11.8, expected one for CUDA 12.0 or newer: driver 525"
    );
    emulator.set("driver", 12_000);
    emulator.set("capability", 70);
    assert_eq!(
        message(0),
        "device cuda:0: found compute capability 7.0, expected 7.5 or newer (Turing)"
    );
    assert_eq!(emulator.alive(), "");
    // Newer devices than any that we have PTX for run the newest.
    emulator.set("capability", 121);
    Cuda::new(0).expect("a device of the future");
}

/// Whichever allocation fails: an error that names the memory, nothing leaks, and what was there goes on.
#[test]
fn out_of_memory_is_an_error_wherever_it_happens() {
    let emulator = emulator();
    let config = small(PositionalEncoding::Rope, Norm::LayerNorm, Ffn::Swiglu);
    let file = RandomModel::new(&config, Dtype::F32, 62);
    let tokens = random_tokens(200, config.vocab_size, 63);
    let run = || -> Result<Vec<u32>, Error> {
        let weights = teeny_runtime::Weights::map(&file.path())?;
        let model = Arc::new(Model::load(Cuda::new(0)?, &weights)?);
        let mut session = Session::new(&model, Overflow::Slide)?;
        session.prefill(&tokens)?;
        let mut fork = session.fork()?;
        fork.decode(1)?;
        Ok(bits(fork.logits()))
    };
    let expected = run().expect("enough memory");
    for function in ["cuMemAlloc_v2", "cuMemHostAlloc"] {
        emulator.reset();
        run().expect("enough memory");
        let n = emulator.calls(function);
        assert!(n > 0);
        for i in 1..=n {
            emulator.reset();
            emulator.fail(function, i, 2, false);
            let error = run().expect_err("one allocation was refused").to_string();
            assert!(error.starts_with("out of memory: cannot allocate"), "{error}");
            assert_eq!(emulator.alive(), "", "{function} {i}");
        }
    }
    // In a session that goes on: what fails leaves it as it was.
    emulator.reset();
    let model = file.load(Cuda::new(0).expect("an emulated device"));
    let mut session = session(&model);
    session.prefill(&tokens[..64]).expect("one page");
    let before = bits(session.logits());
    emulator.set("memory", emulator.get("live_bytes"));
    let error = session.decode(1).expect_err("a second page").to_string();
    assert!(error.contains("for keys and values in GPU memory"), "{error}");
    assert_eq!((session.n_tokens(), bits(session.logits())), (64, before));
    emulator.set("memory", 1 << 30);
    session.prefill(&tokens[64..]).expect("enough memory");
    let mut fork = session.fork().expect("enough memory");
    assert_close(fork.decode(1).expect("a device"), &floats(&expected), SPLIT, "after the failure");
}

fn floats(bits: &[u32]) -> Vec<f32> {
    bits.iter().map(|bits| f32::from_bits(*bits)).collect()
}

/// A device that is lost in any call: an error that names it, then the same from every other call, no end of
/// the process and no leak.
#[test]
fn a_lost_device_is_an_error_from_then_on() {
    const LAUNCH_FAILED: i32 = 719;
    let emulator = emulator();
    let config = small(PositionalEncoding::Alibi, Norm::LayerNorm, Ffn::Swiglu);
    let file = RandomModel::new(&config, Dtype::F32, 64);
    let run = |session: &mut Session<Cuda>| -> Result<(), Error> {
        session.prefill(&random_tokens(70, 29, 65))?;
        for token in 0..5 {
            session.decode(token)?;
        }
        let options = GenerateOptions { max_tokens: 20, ..GenerateOptions::default() };
        generate(session, &mut sampler(1, 0.8, 5), &[1], &options, &mut |_| {
            ControlFlow::Continue(())
        })?;
        session.save()?;
        session.fork()?.decode(1)?;
        Ok(())
    };
    let mut calls = 1;
    loop {
        emulator.reset();
        let model = file.load(Cuda::new(0).expect("an emulated device"));
        let mut session = session(&model);
        emulator.fail("*", calls, LAUNCH_FAILED, true);
        let result = run(&mut session);
        if emulator.get("lost") == 0 {
            result.expect("all calls were made");
            break;
        }
        let error = result.expect_err("the device was lost").to_string();
        assert!(error.starts_with("device cuda:0: cannot "), "{error}");
        let again = session.decode(1).expect_err("it is still lost").to_string();
        assert!(again.contains("CUDA_ERROR_LAUNCH_FAILED"), "{again}");
        let refused =
            Session::new(&model, Overflow::Slide).and_then(|mut s| s.decode(1).map(|_| ()));
        refused.expect_err("it is still lost");
        drop((session, model));
        assert_eq!(emulator.alive(), "", "lost in call {calls}");
        // Every call at the start, then some of the many.
        calls += 1 + calls / 20;
    }
    assert!(calls > 100, "{calls} calls");
}

/// Faults in the kernels that have no check of their own (`checks.rs` has the others) change what comes out:
/// this test's program, run with a driver that has the fault, fails.
#[test]
fn planted_faults_show() {
    let faults = [
        // Normed rows are read before they are all there.
        ("linear.cu", "        block_sync();\n        x = normed_x;", "        x = normed_x;"),
        // The ring is off by one where keys are stored.
        ("common.cuh", "row.slot % PAGE * kv.head_ld", "(row.slot + 1) % PAGE * kv.head_ld"),
    ];
    for fault in faults {
        let driver = teeny_cuda_tests::emulated_driver_of("all.cu", &[90], &[fault]);
        let test = std::env::current_exe().expect("this program");
        let output = std::process::Command::new(test)
            .args(["--exact", "the_newest_target_decodes_as_the_cpu", "--include-ignored"])
            .env("TEENY_EMULATED_DRIVER", driver)
            .output()
            .expect("it starts");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            said.contains("1 failed") && said.contains("off by"),
            "{fault:?} goes unseen: {said}"
        );
    }
}

/// For [`planted_faults_show`], whose drivers have one target.
#[test]
#[ignore = "a part of every_configuration_decodes_as_on_the_cpu"]
fn the_newest_target_decodes_as_the_cpu() {
    let _emulator = emulator();
    suite::every_configuration_decodes_as_on_the_cpu(&|_| {});
}
