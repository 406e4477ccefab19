//! Programs on an emulated GPU: teeny-run, a program in C that has loaded libteeny.so, and gpu_decode. The
//! emulated driver is what the loader finds under the driver's name.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use teeny_cuda_tests::emulated_driver;
use teeny_runtime::{Dtype, Ffn, Norm, PositionalEncoding};
use teeny_tests::{RandomModel, library, program, small};

/// The program, with the emulated driver where the loader looks.
fn with_gpu(program: &Path) -> Command {
    let mut command = Command::new(program);
    let driver = emulated_driver(&[]);
    command.env("LD_LIBRARY_PATH", driver.parent().expect("a folder"));
    command
}

fn text(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

fn model() -> RandomModel {
    let config = small(PositionalEncoding::Rope, Norm::RmsNorm, Ffn::Swiglu);
    RandomModel::new(&config, Dtype::F32, 71)
}

fn teeny_run(gpu: bool, arguments: &[&str]) -> Output {
    let teeny_run = program("teeny-run");
    let mut command = if gpu { with_gpu(&teeny_run) } else { Command::new(teeny_run) };
    command.args(arguments).output().expect("it starts")
}

#[test]
fn teeny_run_writes_on_a_gpu_what_it_writes_on_the_cpu() {
    let file = model();
    let path = file.path();
    let path = path.to_str().expect("UTF-8");
    let run = |gpu, device| {
        let arguments = ["-m", path, "-p", "ABC", "-n", "60", "-s", "5", "--stats", "-d", device];
        let output = teeny_run(gpu, &arguments);
        let (out, err) = text(&output);
        assert!(output.status.success(), "{err}");
        (out, err)
    };
    let (expected, cpu) = run(false, "cpu");
    assert!(cpu.contains("device   cpu, "), "{cpu}");
    for device in ["cuda", "cuda:0", "auto"] {
        let (found, stats) = run(true, device);
        assert_eq!(found, expected, "{device}");
        assert!(stats.contains("device   cuda:0, Emulated GPU 0, sm_90\n"), "{stats}");
    }
    let (found, stats) = run(false, "auto");
    assert_eq!(found, expected);
    assert!(stats.contains("device   cpu, "), "auto without a driver is the CPU: {stats}");
}

#[test]
fn teeny_run_says_what_is_missing() {
    let file = model();
    let path = file.path();
    let path = path.to_str().expect("UTF-8");
    for (gpu, device, expected) in [
        (
            false,
            "cuda",
            "device cuda:0: found no NVIDIA driver (libcuda), expected an NVIDIA GPU with driver 525 or \
             newer; --device cpu works anywhere",
        ),
        (true, "cuda:7", "device cuda:7: found 1 device, cuda:0, expected a device of this number"),
        (true, "gpu", "found \"gpu\", expected cpu, cuda, cuda:N or auto"),
    ] {
        let output = teeny_run(gpu, &["-m", path, "-p", "A", "-n", "1", "-d", device]);
        let (out, err) = text(&output);
        assert_eq!((output.status.code(), out.as_str()), (Some(2), ""), "{err}");
        assert!(err.contains(expected), "{err}");
    }
}

const PROGRAM_IN_C: &str = r#"
#include <stdio.h>
#include <string.h>
#include "teeny.h"

static int32_t print(void *user_data, const char *text, size_t len) {
    (void)user_data;
    return fwrite(text, 1, len, stdout) != len;
}

int main(int argc, char **argv) {
    teeny_model_options options;
    teeny_model *model = NULL;
    teeny_session *session = NULL;
    teeny_generate_options generate;
    if (argc != 3 || teeny_model_options_init(&options, sizeof options) != TEENY_OK) {
        return 9;
    }
    options.device = argv[2];
    teeny_status status = teeny_model_load(argv[1], &options, &model);
    if (status == TEENY_OK) {
        status = teeny_session_new(model, NULL, &session);
    }
    if (status == TEENY_OK) {
        teeny_generate_options_init(&generate, sizeof generate);
        generate.max_tokens = 50;
        generate.stop = NULL;
        status = teeny_session_generate(session, NULL, "AB", 2, &generate, print, NULL);
    }
    if (status == TEENY_OK) {
        printf("\n%zu\n", teeny_session_position(session));
    }
    if (status != TEENY_OK) {
        fprintf(stderr, "%s %s\n", teeny_status_name(status), teeny_last_error());
    }
    teeny_session_free(session);
    teeny_model_free(model);
    return (int)status;
}
"#;

/// Compiled in a folder of its own.
fn program_in_c(folder: &Path) -> PathBuf {
    let source = folder.join("gpu.c");
    std::fs::write(&source, PROGRAM_IN_C).expect("space on the disk");
    let library = library();
    let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ffi/include");
    let program = folder.join("gpu");
    let output = Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-O1"])
        .arg(format!("-I{}", include.display()))
        .args([&source, Path::new("-o"), &program])
        .arg(format!("-L{}", library.display()))
        .arg(format!("-Wl,-rpath,{}", library.display()))
        .arg("-lteeny")
        .output()
        .expect("a C compiler");
    assert!(output.status.success(), "{}", text(&output).1);
    program
}

#[test]
fn a_program_in_c_runs_on_a_gpu() {
    let file = model();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let program = program_in_c(folder.path());
    let run = |mut command: Command, device: &str| {
        let output = command.arg(file.path()).arg(device).output().expect("it starts");
        let (out, err) = text(&output);
        (output.status.code(), out, err)
    };
    let (code, expected, err) = run(Command::new(&program), "cpu");
    assert_eq!(code, Some(0), "{err}");
    for device in ["cuda", "cuda:0", "auto"] {
        let (code, found, err) = run(with_gpu(&program), device);
        assert_eq!((code, &found), (Some(0), &expected), "{device}: {err}");
    }
    let (_, _, err) = run(Command::new(&program), "cuda");
    assert!(err.contains("TEENY_UNSUPPORTED device cuda:0: found no NVIDIA driver"), "{err}");
    let mut lost = with_gpu(&program);
    lost.env("EMULATOR_FAIL", "cuGraphLaunch:2:719:lasting");
    let (_, _, err) = run(lost, "cuda");
    assert!(err.contains("TEENY_DEVICE device cuda:0: cannot "), "{err}");
    let mut small = with_gpu(&program);
    small.env("EMULATOR_MEMORY", "100000");
    let (_, _, err) = run(small, "cuda");
    assert!(err.contains("TEENY_OUT_OF_MEMORY out of memory: cannot allocate"), "{err}");
}

/// What the measuring scripts ask of it, at a small scale.
#[test]
fn gpu_decode_reports_what_the_scripts_read() {
    let file = model();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let report = folder.path().join("report.json");
    let gpu_decode = Path::new(env!("CARGO_BIN_EXE_gpu_decode"));
    let run = |arguments: &[&str]| {
        let mut command = with_gpu(gpu_decode);
        command.arg(file.path()).args(["--device", "cuda:0", "--json"]).arg(&report);
        let output = command.args(arguments).output().expect("it starts");
        assert!(output.status.success(), "{}", text(&output).1);
        let json = std::fs::read(&report).expect("a report");
        serde_json::from_slice::<serde_json::Value>(&json).expect("JSON")
    };
    let found = run(&["--steps", "9", "--runs", "2", "--batch", "3", "--prefill", "20"]);
    assert_eq!(found["runs"].as_array().map(Vec::len), Some(2));
    assert_eq!(found["tokens"].as_array().map(Vec::len), Some(9));
    assert_eq!(found["batch_sampled_tokens"][2].as_array().map(Vec::len), Some(9));
    assert_eq!(found["batch_tokens"][0], found["tokens"]);
    assert!(found["prefill_s"].as_f64().is_some_and(|s| s > 0.0));
    let tokens = folder.path().join("tokens");
    let bytes: Vec<u8> = (0..12u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(&tokens, bytes).expect("space on the disk");
    let found = run(&["--tokens", tokens.to_str().expect("UTF-8")]);
    for key in ["logits_file", "prefill_logits_file"] {
        let path = found[key].as_str().expect("a path");
        assert_eq!(std::fs::metadata(path).expect("a file").len(), 12 * 29 * 4);
    }
}
