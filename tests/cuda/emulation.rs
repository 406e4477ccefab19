//! Tests of the emulation itself: kernels that are right pass, and every planted fault is found.

#![allow(unsafe_code)] // calls of the emulated driver

use std::collections::HashSet;
use std::ffi::c_void;
use std::path::PathBuf;
use std::ptr::null_mut;
use std::sync::OnceLock;

use cudarc::driver::sys::{self, CUresult};
use teeny_cuda_tests::{
    Check, Emulator, Replacement, TARGETS, assert_fails, assert_passes, emulated_driver_of,
};

const SUMS_READ: &str = "    block_sync(); // the sums are read, the next call may write them\n";
const SUMS_THERE: &str = "    block_sync(); // the sums are there\n";
const SUM: &str = "v = warp_sum(v);";

/// The probe with one fault in its kernels must fail for some of 20 seeds.
#[track_caller]
fn found(from: &str, to: &str, expected: &str) {
    let replacements: [Replacement<'_>; 1] = [("probe.cu", from, to)];
    let check = Check { replacements: &replacements, ..Check::new("probe") };
    assert_fails(&check.run(20), expected);
}

#[test]
fn sound_kernels_pass_on_every_target() {
    for target in [75, 80] {
        assert_passes(&Check { target, ..Check::new("probe") }.run(20));
    }
}

#[test]
fn sound_kernels_pass_under_sanitizers() {
    let check = Check { sanitizers: "address,undefined", ..Check::new("probe") };
    assert_passes(&check.run(5));
}

#[test]
fn every_seed_has_its_own_order() {
    let output = Check::new("probe").run(20);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text.lines().collect::<HashSet<_>>().len(), 20, "{text}");
    let again = Check::new("probe").run(20);
    assert_eq!(again.stdout, output.stdout, "the order of a seed is not always the same");
}

#[test]
fn missing_barriers_are_found() {
    found(SUMS_READ, "", "normalize: [");
    found(SUMS_THERE, "", "normalize: [");
    found("    warp_sync();\n    out[blockIdx.x * 64", "    out[blockIdx.x * 64", "turn_around: [");
}

/// Not only by one lucky seed.
#[test]
fn most_seeds_find_a_missing_barrier() {
    let replacements: [Replacement<'_>; 1] = [("probe.cu", SUMS_READ, "")];
    let check = Check { replacements: &replacements, ..Check::new("probe") };
    let caught = (1..=20).filter(|&seed| !check.run_from(1, seed).status.success()).count();
    assert!(caught >= 15, "{caught} of 20 seeds");
}

/// By what threads use, in whatever order they run: one seed is enough.
#[test]
fn races_on_shared_memory_are_found() {
    let check = Check { sanitizers: "races", ..Check::new("probe") };
    assert_passes(&check.run(5));
    let swap = "    warp_sync();\n    out[blockIdx.x * 64";
    let faults = [
        (SUMS_READ, "", "writes sums, byte"),
        (SUMS_THERE, "", "a race: the thread"),
        (swap, "    out[blockIdx.x * 64", "dynamic shared memory, byte"),
        // A shuffle is no barrier.
        (swap, "    shuffle(0, 0);\n    out[blockIdx.x * 64", "dynamic shared memory, byte"),
    ];
    for (from, to, expected) in faults {
        let replacements: [Replacement<'_>; 1] = [("probe.cu", from, to)];
        assert_fails(&Check { replacements: &replacements, ..check.clone() }.run(1), expected);
    }
}

#[test]
fn barriers_that_some_threads_do_not_reach_are_found() {
    let half = "    if (threadIdx.x < 128) block_sync(); // the sums are there\n";
    found(SUMS_THERE, half, "the thread waits at the block_sync of probe.cu:");
    let early = "    if (threadIdx.x == 77) return 0;\n    block_sync(); // the sums are there\n";
    found(SUMS_THERE, early, "normalize, block (");
    let ended =
        "    wait_for_previous();\n    release_next();\n    if (threadIdx.x == 200) return;\n";
    found("    wait_for_previous();\n    release_next();\n", ended, "the thread ends while");
    found(SUM, "if (threadIdx.x % 32 < 16) v = warp_sum(v);", "no thread can go on:");
    found(
        SUM,
        "if (threadIdx.x % 32 < 16) v = warp_sum(v); else warp_sync();",
        "other lanes of its warp",
    );
}

#[test]
fn writes_beyond_memory_are_found() {
    found(
        "    out[i] = v;",
        "    out[i + 1] = v;",
        "bytes beyond the end of an array of 20480 bytes",
    );
    let before = "    if (i == 0) out[i - 1ull] = v;\n    out[i] = v;";
    found("    out[i] = v;", before, "bytes before the start of an array of 20480 bytes");
    let store = "sums[threadIdx.x / 32] = v;";
    found(store, "sums[threadIdx.x / 32 + 1] = v;", "beyond the end of sums");
}

#[test]
fn reads_beyond_memory_are_found_under_a_sanitizer() {
    let replacements: [Replacement<'_>; 1] =
        [("probe.cu", "    float v = x[i];", "    float v = x[i + 1];")];
    let check = Check { replacements: &replacements, sanitizers: "address", ..Check::new("probe") };
    assert_fails(&check.run(1), "AddressSanitizer");
}

#[test]
fn limits_are_found() {
    found("KERNEL(256) normalize", "KERNEL(255) normalize", "at most 255");
    let sums = "SHARED(float, sums, 8);";
    found(sums, "SHARED(float, sums, 12289);", "more than 49152");
    let frame = "    volatile float large[20000];\n    large[i % 20000] = 1;\n    float v = x[i];";
    found("    float v = x[i];", frame, "the thread's stack overflows");
    found(
        "KERNEL(128) order(u32 *out, u32 *counter) {\n    wait_for_previous();",
        "KERNEL(128) order(u32 *out, u32 *counter) {",
        "without wait_for_previous",
    );
}

#[test]
fn an_order_of_blocks_that_is_taken_for_granted_is_found() {
    found("if (before[0] + 1 != gridDim.x)", "if (blockIdx.x + 1 != gridDim.x)", "sum_of_blocks");
    found("        *arrived = 0;\n", "", "sum_of_blocks");
}

#[test]
#[should_panic(expected = "not once")]
fn a_fault_that_cannot_be_planted_is_an_error() {
    let replacements: [Replacement<'_>; 1] = [("probe.cu", "wait_for_previous", "")];
    let _ = Check { replacements: &replacements, ..Check::new("probe") }.run(1);
}

// --- the driver

/// PTX as far as the emulated driver reads it.
const PTX: &str = "// .entry hidden(\n.version 8.0\n.target sm_75\n.address_size 64\n\
    .visible .entry turn_around(\n\t.param .u64 turn_around_param_0,\n\t.param .u64 turn_around_param_1\n)\n\
    .maxntid 64, 1, 1\n{\n\tret;\n}\n\
    .visible .entry normalize(.param .u64 a, .param .align 8 .b8 b[16])\n{\n\tret;\n}\n\
    .visible .entry order(.param .u64 a, .param .u64 b)\n.maxntid 64, 1, 1\n{\n\tret;\n}\n\
    .visible .entry sum_of_blocks(.param .u64 a, .param .u64 b, .param .u64 c)\n{\n\tret;\n}\n";

fn library() -> PathBuf {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| emulated_driver_of("probe.cu", &TARGETS, &[])).clone()
}

/// A device with a context and a stream.
struct Device {
    emulator: Emulator,
    stream: sys::CUstream,
}

#[track_caller]
fn ok(result: CUresult) {
    assert_eq!(result, CUresult::CUDA_SUCCESS);
}

impl Device {
    fn open() -> Device {
        let emulator = Emulator::load(&library());
        let mut context = null_mut();
        let mut stream = null_mut();
        // SAFETY: the emulated driver, as its functions are meant to be called.
        unsafe {
            ok(sys::cuInit(0));
            ok(sys::cuDevicePrimaryCtxRetain(&mut context, 0));
            ok(sys::cuCtxSetCurrent(context));
            ok(sys::cuStreamCreate(&mut stream, 1));
        }
        Device { emulator, stream }
    }

    fn allocate(&self, values: &[u32]) -> u64 {
        let mut address = 0;
        // SAFETY: as above.
        unsafe {
            ok(sys::cuMemAlloc_v2(&mut address, size_of_val(values)));
            ok(sys::cuMemcpyHtoD_v2(address, values.as_ptr().cast(), size_of_val(values)));
        }
        address
    }

    fn read(&self, address: u64, n: usize) -> Vec<u32> {
        let mut values = vec![0u32; n];
        // SAFETY: as above.
        ok(unsafe { sys::cuMemcpyDtoH_v2(values.as_mut_ptr().cast(), address, 4 * n) });
        values
    }

    fn load(&self, ptx: &str) -> Result<sys::CUmodule, CUresult> {
        let text = std::ffi::CString::new(ptx).expect("text");
        let mut module = null_mut();
        // SAFETY: as above.
        let result = unsafe { sys::cuModuleLoadData(&mut module, text.as_ptr().cast()) };
        if result == CUresult::CUDA_SUCCESS { Ok(module) } else { Err(result) }
    }

    fn function(&self, module: sys::CUmodule, name: &str) -> Result<sys::CUfunction, CUresult> {
        let text = std::ffi::CString::new(name).expect("text");
        let mut function = null_mut();
        // SAFETY: as above.
        let result = unsafe { sys::cuModuleGetFunction(&mut function, module, text.as_ptr()) };
        if result == CUresult::CUDA_SUCCESS { Ok(function) } else { Err(result) }
    }

    fn launch(
        &self,
        function: sys::CUfunction,
        blocks: u32,
        threads: u32,
        args: &[u64],
    ) -> CUresult {
        let mut parameters: Vec<*mut c_void> =
            args.iter().map(|a| std::ptr::from_ref(a).cast_mut().cast()).collect();
        let parameters = parameters.as_mut_ptr();
        // SAFETY: as above; the kernels take addresses.
        unsafe {
            sys::cuLaunchKernel(
                function,
                blocks,
                1,
                1,
                threads,
                1,
                1,
                256,
                self.stream,
                parameters,
                null_mut(),
            )
        }
    }

    fn wait(&self) -> CUresult {
        // SAFETY: as above.
        unsafe { sys::cuStreamSynchronize(self.stream) }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: as above. The results are those of a lost device in some tests.
        unsafe {
            let _ = sys::cuStreamDestroy_v2(self.stream);
            let _ = sys::cuDevicePrimaryCtxRelease_v2(0);
        }
    }
}

fn turned(values: &[u32]) -> Vec<u32> {
    values.chunks(32).flat_map(|warp| warp.iter().rev().copied()).collect()
}

#[test]
fn kernels_run_by_name_and_graphs_replay_them() {
    let device = Device::open();
    let values: Vec<u32> = (0..128).collect();
    let (x, out) = (device.allocate(&values), device.allocate(&[0; 128]));
    let module = device.load(PTX).expect("PTX for this device");
    let kernel = device.function(module, "turn_around").expect("an entry");
    ok(device.launch(kernel, 2, 64, &[out, x]));
    ok(device.wait());
    assert_eq!(device.read(out, 128), turned(&values));
    assert_eq!(device.emulator.launches("turn_around"), 1);

    let (mut graph, mut executable) = (null_mut(), null_mut());
    // SAFETY: the emulated driver, as its functions are meant to be called.
    unsafe {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        ok(sys::cuStreamBeginCapture_v2(device.stream, mode));
        ok(sys::cuMemsetD8Async(out, 7, 512, device.stream));
        ok(device.launch(kernel, 1, 64, &[out, x]));
        ok(sys::cuStreamEndCapture(device.stream, &mut graph));
        ok(sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0));
        ok(sys::cuGraphDestroy(graph));
        assert_eq!(device.emulator.launches("turn_around"), 1, "captured, not run");
        for _ in 0..3 {
            ok(sys::cuGraphLaunch(executable, device.stream));
        }
        ok(device.wait());
        assert_eq!(device.emulator.launches("turn_around"), 4);
        let read = device.read(out, 128);
        assert_eq!(read[..64], turned(&values)[..64]);
        assert!(read[64..].iter().all(|&x| x == 0x0707_0707));

        // What a capture forbids ends it.
        ok(sys::cuStreamBeginCapture_v2(device.stream, mode));
        let mut address = 0;
        assert_eq!(
            sys::cuMemAlloc_v2(&mut address, 16),
            CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
        );
        assert_eq!(
            sys::cuStreamEndCapture(device.stream, &mut graph),
            CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
        );
        ok(sys::cuGraphExecDestroy(executable));
        ok(sys::cuModuleUnload(module));
        ok(sys::cuMemFree_v2(x));
        assert_eq!(device.emulator.alive(), "1 allocations, 1 streams, 1 contexts");
        ok(sys::cuMemFree_v2(out));
    }
}

#[test]
fn hosts_that_do_not_wait_are_found() {
    let device = Device::open();
    let address = device.allocate(&[1; 64]);
    let mut late = (0, 0);
    for seed in 0..40 {
        device.emulator.set("seed", seed);
        let mut pinned = null_mut();
        // SAFETY: the emulated driver, as its functions are meant to be called; 256 bytes everywhere.
        unsafe {
            ok(sys::cuMemHostAlloc(&mut pinned, 256, 0));
            let numbers = std::slice::from_raw_parts_mut(pinned.cast::<u32>(), 64);
            numbers.fill(2);
            ok(sys::cuMemcpyHtoDAsync_v2(address, pinned, 256, device.stream));
            // Before the copy has read them.
            numbers.fill(3);
            ok(device.wait());
            late.0 += u32::from(device.read(address, 1)[0] == 3);
            ok(sys::cuMemcpyDtoHAsync_v2(pinned, address, 256, device.stream));
            numbers.fill(4);
            // Read before it is there.
            late.1 += u32::from(numbers[0] == 4);
            ok(device.wait());
            ok(sys::cuMemFreeHost(pinned));
        }
    }
    assert!(late.0 > 20 && late.1 > 20, "{late:?} of 40");
    // SAFETY: as above.
    ok(unsafe { sys::cuMemFree_v2(address) });
}

#[test]
fn mistakes_of_the_host_are_refused() {
    let device = Device::open();
    let address = device.allocate(&[1; 64]);
    let module = device.load(PTX).expect("PTX for this device");
    let mut buffer = [0u32; 65];
    let buffer = buffer.as_mut_ptr().cast();
    use CUresult as R;
    // SAFETY: the emulated driver, which checks what real ones may not.
    unsafe {
        assert_eq!(sys::cuMemcpyDtoH_v2(buffer, address, 257), R::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(sys::cuMemcpyDtoH_v2(buffer, address + 4, 256), R::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(sys::cuMemsetD8_v2(address - 1, 0, 4), R::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(sys::cuMemFree_v2(address + 4), R::CUDA_ERROR_INVALID_VALUE);
        ok(sys::cuMemFree_v2(address));
        assert_eq!(sys::cuMemcpyDtoH_v2(buffer, address, 4), R::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(sys::cuMemFree_v2(address), R::CUDA_ERROR_INVALID_VALUE);
        let kernel = device.function(module, "turn_around").expect("an entry");
        assert_eq!(device.launch(kernel, 0, 64, &[0, 0]), R::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(device.launch(kernel, 1, 65, &[0, 0]), R::CUDA_ERROR_INVALID_VALUE);
        let other = std::thread::spawn(|| {
            let mut address = 0;
            sys::cuMemAlloc_v2(&mut address, 16)
        });
        assert_eq!(other.join().expect("no panic"), R::CUDA_ERROR_INVALID_CONTEXT);
        // Entries that are not there, or that are not those of the sources.
        assert_eq!(device.function(module, "hidden"), Err(R::CUDA_ERROR_NOT_FOUND));
        assert_eq!(device.function(module, "exchange"), Err(R::CUDA_ERROR_NOT_FOUND));
        assert_eq!(device.function(module, "normalize"), Err(R::CUDA_ERROR_INVALID_IMAGE));
        assert_eq!(device.function(module, "order"), Err(R::CUDA_ERROR_INVALID_IMAGE));
        ok(sys::cuModuleUnload(module));
    }
    let newer = PTX.replace("sm_75", "sm_86");
    device.emulator.set("capability", 80);
    assert_eq!(device.load(&newer), Err(R::CUDA_ERROR_NO_BINARY_FOR_GPU));
    assert_eq!(device.load("ELF"), Err(R::CUDA_ERROR_INVALID_IMAGE));
    device.emulator.set("driver", 11080);
    assert_eq!(device.load(PTX), Err(R::CUDA_ERROR_UNSUPPORTED_PTX_VERSION));
}

#[test]
fn kernels_that_write_beyond_memory_lose_the_device() {
    let device = Device::open();
    let (x, out) = (device.allocate(&[1; 64]), device.allocate(&[1; 60]));
    let module = device.load(PTX).expect("PTX for this device");
    let kernel = device.function(module, "turn_around").expect("an entry");
    let started = device.launch(kernel, 1, 64, &[out, x]);
    assert_eq!(device.wait(), CUresult::CUDA_ERROR_LAUNCH_FAILED, "{started:?}");
    let mut address = 0;
    // SAFETY: the emulated driver, as its functions are meant to be called.
    unsafe {
        assert_eq!(sys::cuMemAlloc_v2(&mut address, 16), CUresult::CUDA_ERROR_LAUNCH_FAILED);
        for address in [x, out] {
            assert_eq!(sys::cuMemFree_v2(address), CUresult::CUDA_ERROR_LAUNCH_FAILED);
        }
        assert_eq!(sys::cuModuleUnload(module), CUresult::CUDA_ERROR_LAUNCH_FAILED);
    }
    assert_eq!(device.emulator.alive(), "1 streams, 1 contexts", "freed all the same");
}

#[test]
fn settings_and_faults_hold() {
    let device = Device::open();
    let emulator = &device.emulator;
    let (mut number, mut address) = (0, 0);
    use CUresult as R;
    // SAFETY: the emulated driver, as its functions are meant to be called.
    unsafe {
        emulator.set("capability", 86);
        let minor = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR;
        ok(sys::cuDeviceGetAttribute(&mut number, minor, 0));
        assert_eq!(number, 6);
        emulator.set("memory", 1000);
        assert_eq!(sys::cuMemAlloc_v2(&mut address, 1001), R::CUDA_ERROR_OUT_OF_MEMORY);
        ok(sys::cuMemAlloc_v2(&mut address, 600));
        let mut second = 0;
        assert_eq!(sys::cuMemAlloc_v2(&mut second, 600), R::CUDA_ERROR_OUT_OF_MEMORY);
        ok(sys::cuMemFree_v2(address));

        emulator.fail("cuMemAlloc_v2", 2, 2, false);
        ok(sys::cuMemAlloc_v2(&mut address, 16));
        assert_eq!(sys::cuMemAlloc_v2(&mut second, 16), R::CUDA_ERROR_OUT_OF_MEMORY);
        ok(sys::cuMemAlloc_v2(&mut second, 16));
        assert_eq!(emulator.calls("cuMemAlloc_v2"), 6);
        ok(sys::cuMemFree_v2(address));
        ok(sys::cuMemFree_v2(second));

        emulator.fail("*", 1, 719, true);
        assert_eq!(device.wait(), R::CUDA_ERROR_LAUNCH_FAILED);
        assert_eq!(sys::cuMemAlloc_v2(&mut address, 16), R::CUDA_ERROR_LAUNCH_FAILED);
        emulator.reset();
        ok(sys::cuMemAlloc_v2(&mut address, 16));
        ok(sys::cuMemFree_v2(address));
        emulator.set("devices", 0);
        assert_eq!(sys::cuInit(0), R::CUDA_ERROR_NO_DEVICE);
        emulator.reset();
    }
}
