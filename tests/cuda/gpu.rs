//! What `suite.rs` asks, on a real GPU. Where there is none, each test says so and passes.
//!
//! `cargo test --release -p teeny-cuda-tests --test gpu_test --no-run` builds a program that needs nothing but
//! the driver: `tests/peers/gpu.sh` runs it on another machine, by itself and under compute-sanitizer.

use std::io::Write;

use teeny_cuda_tests::suite;
use teeny_runtime::cuda::device_count;

/// Whether there is a GPU. Written past the test runner's capture, so that it is always seen.
fn gpu(test: &str) -> bool {
    let there = device_count() > 0;
    if !there {
        let _ = writeln!(std::io::stderr(), "SKIPPED {test}: no NVIDIA GPU on this machine");
    }
    there
}

#[test]
fn every_configuration_decodes_as_on_the_cpu() {
    if gpu("every_configuration_decodes_as_on_the_cpu") {
        suite::every_configuration_decodes_as_on_the_cpu(&|_| {});
    }
}

#[test]
fn prompts_in_pieces_of_any_size_agree_with_the_cpu() {
    if gpu("prompts_in_pieces_of_any_size_agree_with_the_cpu") {
        suite::prompts_in_pieces_of_any_size_agree_with_the_cpu(&|_| {});
    }
}

#[test]
fn large_shapes_agree_with_the_cpu() {
    if gpu("large_shapes_agree_with_the_cpu") {
        suite::large_shapes_agree_with_the_cpu();
    }
}

#[test]
fn a_batch_gives_each_session_what_it_would_get_alone() {
    if gpu("a_batch_gives_each_session_what_it_would_get_alone") {
        suite::a_batch_gives_each_session_what_it_would_get_alone();
    }
}

/// Whether the device has drawn is for the emulation to see.
fn always_more() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static CALLS: AtomicU64 = AtomicU64::new(0);
    CALLS.fetch_add(1, Ordering::Relaxed)
}

#[test]
fn drawing_ahead_changes_nothing_but_the_time() {
    if gpu("drawing_ahead_changes_nothing_but_the_time") {
        suite::drawing_ahead_changes_nothing_but_the_time(&always_more);
    }
}

#[test]
fn a_batch_draws_the_tokens_that_its_samplers_draw() {
    if gpu("a_batch_draws_the_tokens_that_its_samplers_draw") {
        suite::a_batch_draws_the_tokens_that_its_samplers_draw(&always_more);
    }
}

#[test]
fn sessions_move_between_devices_and_go_back_and_fork() {
    if gpu("sessions_move_between_devices_and_go_back_and_fork") {
        suite::sessions_move_between_devices_and_go_back_and_fork();
    }
}

#[test]
fn threads_share_a_model() {
    if gpu("threads_share_a_model") {
        suite::threads_share_a_model();
    }
}
