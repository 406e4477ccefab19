//! Several processes, each a copy of this program, sum and send tensors on the CPU.
//!
//! The expected values are computed by each process alone, from the seeds of all.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};
use teeny_trainer::distributed::{ProcessGroup, World};

/// What a copy of this program does, of the functions below.
const ROLE: &str = "TEENY_TEST_ROLE";
/// Longer than any of this takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Says so past the test runner, which keeps what a successful test prints.
fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

/// The command for a copy of this program that runs only `peer`.
fn copy(role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(PEER_ARGUMENTS).env(ROLE, role);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

const PEER_ARGUMENTS: [&str; 4] = ["--ignored", "--exact", "--nocapture", "peer"];

/// A copy with the variables that torchrun would set.
fn start(role: &str, rank: usize, size: usize, port: u16) -> Child {
    copy(role)
        .env("RANK", rank.to_string())
        .env("LOCAL_RANK", rank.to_string())
        .env("WORLD_SIZE", size.to_string())
        .env("MASTER_ADDR", "127.0.0.1")
        .env("MASTER_PORT", port.to_string())
        .spawn()
        .unwrap()
}

/// Whether it succeeded, and what it printed. Killed when it takes too long.
fn finish(mut child: Child) -> (bool, String) {
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
            let text = child.wait_with_output().unwrap();
            panic!("hangs: {text:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// All of them succeed; what each printed.
fn all_succeed(children: Vec<Child>) -> Vec<String> {
    let results: Vec<_> = children.into_iter().map(finish).collect();
    for (rank, (success, text)) in results.iter().enumerate() {
        assert!(success, "process {rank}: {text}");
    }
    results.into_iter().map(|(_, text)| text).collect()
}

#[test]
#[ignore = "the part of one process, which the other tests start several of"]
fn peer() {
    let Ok(role) = std::env::var(ROLE) else {
        return skipped("not started by another test");
    };
    tch::set_num_threads(1);
    let world = World::from_env().unwrap().expect("started by another test");
    match role.as_str() {
        "reduce" => reduce(&world, Device::Cpu),
        "reduce on GPUs" => reduce(&world, Device::Cuda(world.local_rank)),
        "leave" => leave(&world),
        "join" => match connect(&world, Duration::from_secs(6)) {
            Ok(_) => println!("joined"),
            Err(error) => println!("refused: {error}"),
        },
        other => panic!("no role {other}"),
    }
}

fn connect(world: &World, timeout: Duration) -> teeny_trainer::Result<ProcessGroup> {
    ProcessGroup::connect(world, Device::Cpu, timeout)
}

/// Values of process `rank`, the same in whatever process they are made.
fn values(rank: usize, count: i64, kind: Kind) -> Tensor {
    tch::manual_seed(1000 + rank as i64);
    Tensor::randn([count], (Kind::Double, Device::Cpu)).to_kind(kind)
}

fn reduce(world: &World, device: Device) {
    let connect = || ProcessGroup::connect(world, device, Duration::from_secs(60)).unwrap();
    let values = |rank, count, kind| values(rank, count, kind).to_device(device);
    let group = connect();
    let size = world.size;
    // One value; an odd number; as many as a small model has.
    for count in [1, 1001, 300_000] {
        for (kind, tolerance) in
            [(Kind::Float, 1e-6), (Kind::Double, 1e-15), (Kind::Half, 2e-3), (Kind::BFloat16, 2e-2)]
        {
            let mut got = values(world.rank, count, kind);
            group.all_reduce_mean(&mut got).unwrap();
            let expected = (0..size)
                .map(|rank| values(rank, count, kind).to_kind(Kind::Double))
                .reduce(|a, b| a + b)
                .unwrap()
                / size as f64;
            let error = (got.to_kind(Kind::Double) - &expected).abs().max().double_value(&[]);
            assert!(error <= tolerance * 4.0, "{kind:?} of {count}: off by {error}");
            if size == 2 && kind == Kind::Float {
                // A sum of two rounds in one way only.
                let exact = (values(0, count, kind) + values(1, count, kind)) / 2.0;
                assert!(got.equal(&exact), "{count}");
            }
            // The same bits everywhere, or the processes' models would part.
            let mut first = got.copy();
            group.broadcast(&mut first, 0).unwrap();
            assert!(first.equal(&got), "{kind:?} of {count} differs between processes");
        }
    }
    for root in 0..size {
        for kind in [Kind::Float, Kind::BFloat16, Kind::Int64, Kind::Uint8] {
            let of = |rank: usize| (values(rank, 77, Kind::Float) * 40.0 + 100.0).to_kind(kind);
            let mut got = of(world.rank);
            group.broadcast(&mut got, root).unwrap();
            assert!(got.equal(&of(root)), "{kind:?} from {root}");
        }
    }

    // Parameters are leaves that require gradients, and views of one another.
    let mut leaf = values(world.rank, 12, Kind::Float).set_requires_grad(true);
    group.broadcast(&mut leaf, 1).unwrap();
    assert!(leaf.detach().equal(&values(1, 12, Kind::Float)) && leaf.requires_grad());
    let flat = values(world.rank, 12, Kind::Float);
    group.all_reduce_mean(&mut flat.narrow(0, 4, 4).view([2, 2])).unwrap();
    assert!(flat.narrow(0, 0, 4).equal(&values(world.rank, 12, Kind::Float).narrow(0, 0, 4)));
    assert!(!flat.equal(&values(world.rank, 12, Kind::Float)));

    // What is refused leaves the group in order.
    let text = |result: teeny_trainer::Result<()>| result.unwrap_err().to_string();
    let mut across = Tensor::zeros([3, 4], (Kind::Float, device)).tr();
    assert!(text(group.all_reduce_mean(&mut across)).contains("not contiguous"));
    assert!(text(group.broadcast(&mut across, 0)).contains("not contiguous"));
    let mut whole = Tensor::zeros([3], (Kind::Int64, device));
    assert!(text(group.all_reduce_mean(&mut whole)).contains("Int64"));
    assert!(text(group.broadcast(&mut whole, size)).contains(&format!("rank {size}")));
    assert!(text(group.broadcast(&mut Tensor::new(), 0)).contains("undefined"));

    // Nobody leaves the barrier before the last has come.
    group.barrier().unwrap();
    let start = Instant::now();
    if world.rank == size - 1 {
        std::thread::sleep(Duration::from_millis(1000));
    }
    group.barrier().unwrap();
    assert!(start.elapsed() > Duration::from_millis(250), "{:?}", start.elapsed());

    // A second group, beside the first and after it.
    let mut sum = Tensor::from(world.rank as f32 + 1.0).to_device(device);
    connect().all_reduce_mean(&mut sum).unwrap();
    drop(group);
    connect().all_reduce_mean(&mut sum).unwrap();
    assert_eq!(sum.double_value(&[]), (size as f64 + 1.0) / 2.0);
    println!("rank {} of {size} is done", world.rank);
}

fn leave(world: &World) {
    let group = connect(world, Duration::from_secs(20)).unwrap();
    if world.rank == 1 {
        // As a process that was killed: nothing is closed in order.
        std::process::abort();
    }
    let start = Instant::now();
    let error = group.all_reduce_mean(&mut values(0, 100_000, Kind::Float)).unwrap_err();
    println!("after {} s: {error}", start.elapsed().as_secs());
}

#[test]
fn two_and_three_processes_reduce_and_send() {
    for size in [2, 3] {
        let port = free_port();
        let children = (0..size).map(|rank| start("reduce", rank, size, port)).collect();
        for (rank, text) in all_succeed(children).iter().enumerate() {
            assert!(text.contains(&format!("rank {rank} of {size} is done")), "{text}");
        }
    }
}

#[test]
fn processes_of_mpirun_find_each_other() {
    let port = free_port();
    let children = ["0", "1"].map(|rank| {
        copy("reduce")
            .env("OMPI_COMM_WORLD_RANK", rank)
            .env("OMPI_COMM_WORLD_LOCAL_RANK", rank)
            .env("OMPI_COMM_WORLD_SIZE", "2")
            .env("MASTER_PORT", port.to_string())
            .spawn()
            .unwrap()
    });
    all_succeed(children.into());
}

#[test]
fn torchrun_starts_the_processes() {
    let torchrun = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/torchrun");
    if !torchrun.exists() {
        skipped(&format!("there is no {}", torchrun.display()));
        return;
    }
    let child = Command::new(torchrun)
        .args(["--no-python", "--nproc-per-node", "2", "--master-port"])
        .arg(free_port().to_string())
        .arg(std::env::current_exe().unwrap())
        .args(PEER_ARGUMENTS)
        .env(ROLE, "reduce")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (success, text) = finish(child);
    assert!(success, "{text}");
    for rank in 0..2 {
        assert!(text.contains(&format!("rank {rank} of 2 is done")), "{text}");
    }
}

#[test]
fn a_process_that_never_comes_is_named_instead_of_waited_for() {
    let world = |rank, size| World {
        rank,
        local_rank: rank,
        size,
        master_addr: "127.0.0.1".to_owned(),
        master_port: free_port(),
        launcher_has_store: false,
    };
    let start = Instant::now();
    let error = connect(&world(0, 3), Duration::from_secs(1)).unwrap_err().to_string();
    assert!(error.starts_with("cannot join the other processes as rank 0 of 3"), "{error}");
    assert!(error.contains("within 1000 ms; missing: rank 1, rank 2"), "{error}");
    // Without rank 0 there is nothing to connect to.
    let error = connect(&world(1, 2), Duration::from_secs(1)).unwrap_err().to_string();
    assert!(error.contains("127.0.0.1") && error.contains("timed out"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    let nowhere = World { master_addr: "no.such.host.invalid".to_owned(), ..world(1, 2) };
    let error = connect(&nowhere, Duration::from_secs(1)).unwrap_err().to_string();
    assert!(error.contains("no.such.host.invalid"), "{error}");
}

#[test]
fn a_rank_that_two_processes_have_is_refused() {
    let port = free_port();
    let children = [0, 1, 1].map(|rank| start("join", rank, 3, port));
    let texts = all_succeed(children.into()).concat();
    assert!(texts.contains("another process has rank 1 already"), "{texts}");
    assert!(texts.contains("missing: rank 2"), "{texts}");
    assert!(!texts.contains("joined"), "{texts}");
}

#[test]
fn a_process_that_dies_ends_the_others_with_an_error() {
    let port = free_port();
    let survivor = start("leave", 0, 2, port);
    let victim = start("leave", 1, 2, port);
    let (success, text) = finish(survivor);
    assert!(success && text.contains("rank 0 of 2 processes cannot average a tensor: "), "{text}");
    assert!(!finish(victim).0);
}

#[test]
fn two_gpus_reduce_and_send() {
    if tch::Cuda::device_count() < 2 {
        skipped("NCCL between two processes needs two GPUs");
        return;
    }
    let port = free_port();
    let children = [0, 1].map(|rank| start("reduce on GPUs", rank, 2, port));
    all_succeed(children.into());
}

#[test]
fn gpus_are_asked_for_only_where_there_are_some() {
    if tch::Cuda::is_available() {
        skipped("there is a CUDA device");
        return;
    }
    let world = World {
        rank: 0,
        local_rank: 0,
        size: 1, // nobody to wait for
        master_addr: "127.0.0.1".to_owned(),
        master_port: free_port(),
        launcher_has_store: false,
    };
    let error = ProcessGroup::connect(&world, Device::Cuda(0), Duration::from_secs(5)).unwrap_err();
    println!("{error}");
    assert!(error.to_string().contains("GPU"), "{error}");
}
