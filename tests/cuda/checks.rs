//! Single kernels against plain loops in double precision, written in C++ (`checks/`): odd lengths, rings
//! that wrap, empty splits, many sessions, every target; under the race detector and under sanitizers. And
//! that planted faults are found, or none of this would mean anything.

use teeny_cuda_tests::{Check, Replacement, assert_fails, assert_passes};

/// The check passes for the targets whose code differs, without races and without what sanitizers see.
fn passes(name: &str, targets: &[u32], seeds: u64) {
    for target in targets {
        let check = Check { target: *target, ..Check::new(name) };
        assert_passes(&check.run(seeds));
        assert_passes(&Check { sanitizers: "races", ..check }.run(1));
    }
    assert_passes(&Check { sanitizers: "address,undefined", ..Check::new(name) }.run(1));
}

/// Some of the seeds find the fault.
#[track_caller]
fn found(name: &str, target: u32, seeds: u64, fault: Replacement<'_>) {
    let output = Check { target, replacements: &[fault], ..Check::new(name) }.run(seeds);
    assert_fails(&output, "");
}

#[test]
fn decode_attention() {
    passes("attention", &[80], 3);
}

#[test]
fn faults_in_decode_attention_are_found() {
    for (seeds, from, to) in [
        (
            3,
            "            weigh_page<G>(s);\n            block_sync();\n",
            "            weigh_page<G>(s);\n",
        ),
        // The window, and the ring, off by one.
        (3, "pos + 1 - a.window : 0", "pos + 2 - a.window : 0"),
        (3, "? ring + 1 : 0", "? ring + 1 : ring"),
        // A new maximum does not change the sums before it.
        (3, "sums[g].x *= rescale;", ""),
        // A block that has not arrived yet is taken for one that has.
        (3, "+ 1 == used_splits;", "+ 2 >= used_splits;"),
    ] {
        found("attention", 80, seeds, ("attention.cu", from, to));
    }
}

#[test]
fn causal_attention() {
    passes("prefill", &[80], 3);
}

#[test]
fn faults_in_causal_attention_are_found() {
    for (from, to) in [
        ("        // The next tile takes this one's place.\n        block_sync();\n", ""),
        ("return (u32)distance < window", "return (u32)(distance + 1) <= window"),
    ] {
        found("prefill", 80, 3, ("prefill.cu", from, to));
    }
}

#[test]
fn norms_of_heads() {
    passes("heads", &[80], 3);
}

#[test]
fn faults_in_norms_of_heads_are_found() {
    for (from, to) in [
        ("from, a.k_norm, head_dim", "from, a.q_norm, head_dim"),
        ("normed(x[i + half], i + half,", "normed(x[i + half], i,"),
        ("if (a.k && head < n_kv_head)", "if (a.k && head + 1 < n_kv_head)"),
        ("a.k ? a.k + (u64)r * a.kv_ld", "a.k ? a.k + (u64)r * a.q_ld"),
    ] {
        found("heads", 80, 3, ("rotate.cu", from, to));
    }
}

#[test]
fn activations_and_the_soft_cap() {
    passes("activate", &[80], 3);
}

#[test]
fn faults_in_activations_are_found() {
    for (file, from, to) in [
        ("common.cuh", "y * y", "y"),
        ("activate.cu", "a.cap * tanh_f32(up / a.cap)", "a.cap * tanh_f32(up)"),
        ("device.cuh", "-3.3333282e-1f", "-3.3331e-1f"),
        ("device.cuh", "size < 0.625f", "size < 0.9f"),
        // Of the wrong sign below zero.
        ("device.cuh", "+ 1.0f), x);", "+ 1.0f), 1.0f);"),
    ] {
        found("activate", 80, 3, (file, from, to));
    }
}

#[test]
fn products_of_many_rows() {
    passes("matmul", &[75, 80], 15);
}

#[test]
fn faults_in_products_are_found() {
    for (from, to) in [
        (
            "if (BUFFERS == 1) block_sync(); // the step before has been read",
            "if (BUFFERS == 1) { }",
        ),
        ("if (W_UNITS == UNITS) mma_bf16(d, high[m], w_low);", ""),
        ("if (*shared + 1 != gridDim.z) return false;", "if (*shared != 0) return false;"),
        ("block_sync(); // the part is there, and shared memory no longer read", ""),
    ] {
        found("matmul", 80, 30, ("matmul.cu", from, to));
    }
}
