//! Recorded steps against the same steps run eagerly by libtorch; what needs a GPU says where it is
//! skipped.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::io::Write;
use std::net::TcpListener;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tch::{Device, Kind, Tensor};
use teeny_trainer::cuda_graph::{CudaGraph, synchronize};
use teeny_trainer::distributed::{ProcessGroup, World};
use teeny_trainer::{Error, Result};

const GPU: Device = Device::Cuda(0);

/// The GPU's turn, since its random generator belongs to the whole process; `None` without one.
fn gpu(test: &str) -> Option<MutexGuard<'static, ()>> {
    static TURN: Mutex<()> = Mutex::new(());
    if !tch::Cuda::is_available() {
        // Past the test runner, which keeps what a successful test prints.
        let _ = writeln!(std::io::stderr(), "SKIPPED {test}: no CUDA device");
        return None;
    }
    Some(TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
}

#[test]
fn without_such_a_device_recording_fails_before_any_work() {
    let absent = if tch::Cuda::is_available() { 99 } else { 0 };
    let mut runs = 0;
    let mut work = || {
        runs += 1;
        Ok(())
    };
    let message = CudaGraph::record(absent, 3, &mut work).unwrap_err().to_string();
    let start = format!("cannot record a CUDA graph on device {absent}: ");
    assert!(message.starts_with(&start) && !message.contains('\n'), "{message}");
    // "this libtorch has no CUDA", "Found no NVIDIA driver", "no CUDA-capable device", "no CUDA
    // device 99": by which build and machine.
    let reason = &message[start.len()..];
    assert!(reason.contains("CUDA") || reason.contains("NVIDIA driver"), "{message}");
    assert_eq!(runs, 0);

    let message = synchronize(absent).unwrap_err().to_string();
    let start = format!("cannot wait for the CUDA device {absent}: ");
    assert!(message.starts_with(&start), "{message}");
    let message = CudaGraph::record(usize::MAX, 0, &mut || Ok(())).unwrap_err().to_string();
    assert!(message.contains("too large"), "{message}");
}

/// Forward, backward through libtorch's own autograd thread, dropout, and an update in place.
fn step(theta: &Tensor, x: &Tensor, loss: &mut Tensor) -> Result<()> {
    let y = x.matmul(theta).dropout(0.5, true).relu().square().mean(Kind::Float);
    let gradient = Tensor::run_backward(&[&y], &[theta], false, false);
    tch::no_grad(|| {
        let _ = theta.shallow_clone().g_sub_(&(&gradient[0] * 0.1));
        loss.copy_(&y.detach());
    });
    Ok(())
}

#[test]
fn a_replay_is_the_eager_step_with_the_seed_set_before_it() {
    let Some(_turn) = gpu("a_replay_is_the_eager_step_with_the_seed_set_before_it") else { return };
    tch::manual_seed(1);
    let start = Tensor::randn([64, 32], (Kind::Float, GPU));
    let x = Tensor::randn([16, 64], (Kind::Float, GPU));
    let seeds = [100, 101, 100, 7, 8];

    let eager = start.copy().set_requires_grad(true);
    let mut loss = Tensor::zeros([], (Kind::Float, GPU));
    let mut expected = Vec::new();
    for seed in seeds {
        tch::manual_seed(seed);
        step(&eager, &x, &mut loss).unwrap();
        expected.push(loss.double_value(&[]));
    }

    let theta = start.copy().set_requires_grad(true);
    let graph = CudaGraph::record(0, 3, &mut || step(&theta, &x, &mut loss)).unwrap();
    let replay = |seeds: &[i64]| -> Vec<f64> {
        tch::no_grad(|| theta.shallow_clone().copy_(&start));
        let one = |&seed: &i64| {
            tch::manual_seed(seed);
            graph.replay().unwrap();
            loss.double_value(&[])
        };
        seeds.iter().map(one).collect()
    };
    let got = replay(&seeds);
    for (got, expected) in got.iter().zip(&expected) {
        // cuBLAS may choose another kernel under capture; another mask differs by far more.
        assert!((got - expected).abs() < 1e-5 * expected, "{got}, {expected}");
    }
    assert!((&theta - &eager).abs().max().double_value(&[]) < 1e-5);
    assert_eq!(replay(&seeds), got, "the same seeds, the same bits");
    // Dropout really was in it: another seed, another loss; no seed, the generator goes on.
    let other = replay(&[9])[0];
    assert!((other - got[0]).abs() > 1e-4 * got[0], "{other}, {}", got[0]);
    tch::no_grad(|| theta.shallow_clone().copy_(&start));
    graph.replay().unwrap();
    assert!((loss.double_value(&[]) - other).abs() > 1e-4 * other);
    synchronize(0).unwrap();
}

#[test]
fn a_recording_that_fails_leaves_eager_work_possible() {
    let Some(_turn) = gpu("a_recording_that_fails_leaves_eager_work_possible") else { return };
    let x = Tensor::ones([8], (Kind::Float, GPU));
    // Waiting for the device is what a capture forbids.
    let refused = CudaGraph::record(0, 1, &mut || {
        let total = x.dropout(0.5, true).sum(Kind::Float);
        total.f_double_value(&[]).map(drop).map_err(|error| Error::Setup(error.to_string()))
    });
    assert!(refused.is_err());
    // An error of the work's own, and a panic, both while recording.
    for panics in [false, true] {
        let mut runs = 0;
        let mut work = || {
            runs += 1;
            let _ = x.dropout(0.5, true);
            assert!(!(panics && runs == 2), "planted");
            if runs == 2 { Err(Error::Setup("planted".to_owned())) } else { Ok(()) }
        };
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            CudaGraph::record(0, 1, &mut work).map(drop)
        }));
        assert_eq!(result.is_err(), panics);
        assert!(panics || matches!(result, Ok(Err(Error::Setup(text))) if text == "planted"));
    }
    assert_eq!((&x * 2.0).sum(Kind::Float).double_value(&[]), 16.0);
    assert!(x.dropout(0.5, true).sum(Kind::Float).double_value(&[]).is_finite());
    let mut y = Tensor::zeros([8], (Kind::Float, GPU));
    let graph = CudaGraph::record(0, 1, &mut || {
        let _ = y.g_add_(&x);
        Ok(())
    })
    .unwrap();
    graph.replay().unwrap();
    // Once in the warm-up, once in the replay, and not while recording.
    assert_eq!(y.sum(Kind::Float).double_value(&[]), 16.0);
}

#[test]
fn a_graph_may_hold_reductions() {
    let Some(_turn) = gpu("a_graph_may_hold_reductions") else { return };
    // One process, since NCCL wants a GPU for each.
    let world = World {
        rank: 0,
        local_rank: 0,
        size: 1,
        master_addr: "127.0.0.1".to_owned(),
        master_port: TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port(),
        launcher_has_store: false,
    };
    let group = ProcessGroup::connect(&world, GPU, Duration::from_secs(60)).unwrap();
    let mut x = Tensor::zeros([1000], (Kind::Float, GPU));
    let graph = CudaGraph::record(0, 11, &mut || {
        let _ = x.g_add_scalar_(1.0);
        group.all_reduce_mean(&mut x)
    })
    .unwrap();
    for _ in 0..5 {
        graph.replay().unwrap();
    }
    assert_eq!(x.mean(Kind::Float).double_value(&[]), 16.0);
    group.broadcast(&mut x, 0).unwrap();
    group.barrier().unwrap();
}
