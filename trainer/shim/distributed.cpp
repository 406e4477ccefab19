// Process groups: torch's own c10d, whose processes find each other through a store over TCP and
// reduce by NCCL between GPUs and by Gloo between CPUs.
#include "shim.h"

#include "guard.h"

#ifdef TEENY_C10D

#define USE_C10D_GLOO
#include <c10/util/Logging.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#ifdef TEENY_NCCL
#define USE_C10D_NCCL
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif

struct teeny_group {
    c10::intrusive_ptr<c10d::Backend> backend;
    int device;
};

namespace {

using std::chrono::milliseconds;

// While it lives, c10d logs nothing: each failure comes back as an exception, and its log would
// print a backtrace before the message. TORCH_CPP_LOG_LEVEL, where it is set, has its way.
class Quiet {
public:
    Quiet() {
        c10::initLogging(); // reads that variable
        before_ = FLAGS_caffe2_log_level;
        if (std::getenv("TORCH_CPP_LOG_LEVEL") == nullptr) {
            FLAGS_caffe2_log_level = c10::GLOG_FATAL;
        }
    }
    ~Quiet() { FLAGS_caffe2_log_level = before_; }
    Quiet(const Quiet &) = delete;
    Quiet &operator=(const Quiet &) = delete;

private:
    int before_;
};

std::string key(int rank) {
    return "rank " + std::to_string(rank);
}

// Returns when all processes have come, so that a missing one is named, and never waited for by
// NCCL, which knows no timeout while it connects.
void wait_for_all(c10d::Store &store, const teeny_group_options &options, milliseconds timeout) {
    TORCH_CHECK(
        store.add(key(options.rank), 1) == 1,
        "another process has rank ", options.rank, " already");
    std::vector<std::string> keys;
    for (int rank = 0; rank < options.size; ++rank) {
        keys.push_back(key(rank));
    }
    try {
        store.wait(keys, timeout);
    } catch (const c10::Error &) {
        std::string missing;
        for (const auto &name : keys) {
            if (!store.check({name})) {
                missing += (missing.empty() ? "" : ", ") + name;
            }
        }
        if (missing.empty()) {
            throw;
        }
        TORCH_CHECK(
            false, "not all ", options.size, " processes came within ", options.timeout_ms,
            " ms; missing: ", missing);
    }
}

c10::intrusive_ptr<c10d::Backend> connect(const teeny_group_options &options) {
    const milliseconds timeout(options.timeout_ms);
    c10d::TCPStoreOptions tcp;
    tcp.port = options.port;
    tcp.isServer = options.serve != 0;
    tcp.numWorkers = options.size;
    tcp.waitWorkers = false; // wait_for_all says more
    tcp.timeout = timeout;
    tcp.multiTenant = true;
    c10::intrusive_ptr<c10d::Store> store = c10::make_intrusive<c10d::PrefixStore>(
        options.prefix, c10::make_intrusive<c10d::TCPStore>(options.host, tcp));
    wait_for_all(*store, options, timeout);
    if (options.device < 0) {
        return c10::make_intrusive<c10d::ProcessGroupGloo>(
            store, options.rank, options.size,
            c10d::ProcessGroupGloo::Options::create_default(timeout));
    }
#ifdef TEENY_NCCL
    auto nccl = c10d::ProcessGroupNCCL::Options::create();
    nccl->timeout = timeout;
    auto group =
        c10::make_intrusive<c10d::ProcessGroupNCCL>(store, options.rank, options.size, nccl);
    // One GPU a process, for good: its barrier then need not guess.
    group->setBoundDeviceId(at::Device(at::kCUDA, static_cast<at::DeviceIndex>(options.device)));
    return group;
#else
    TORCH_CHECK(false, TEENY_WITHOUT_NCCL);
#endif
}

} // namespace

char *teeny_group_connect(const teeny_group_options *options, teeny_group **out) {
    return teeny::guarded([&] {
        const Quiet quiet;
        *out = new teeny_group{connect(*options), options->device};
    });
}

char *teeny_group_all_reduce(teeny_group *group, void *tensor) {
    return teeny::guarded([&] {
        std::vector<at::Tensor> tensors{*static_cast<at::Tensor *>(tensor)};
        group->backend->allreduce(tensors)->wait();
    });
}

char *teeny_group_broadcast(teeny_group *group, void *tensor, std::int32_t root) {
    return teeny::guarded([&] {
        std::vector<at::Tensor> tensors{*static_cast<at::Tensor *>(tensor)};
        c10d::BroadcastOptions options;
        options.rootRank = root;
        group->backend->broadcast(tensors, options)->wait();
    });
}

char *teeny_group_barrier(teeny_group *group) {
    return teeny::guarded([&] {
        c10d::BarrierOptions options;
        if (group->device >= 0) {
            options.device_ids = {group->device};
        }
        group->backend->barrier(options)->wait();
    });
}

void teeny_group_free(teeny_group *group) {
    if (group->device >= 0) {
        // NCCL complains of a group that was not shut down; Gloo knows no such thing.
        teeny_shim_free_message(teeny::guarded([&] { group->backend->shutdown(); }));
    }
    teeny_shim_free_message(teeny::guarded([&] { delete group; }));
}

#else // a system for which libtorch is built without c10d

char *teeny_group_connect(const teeny_group_options *, teeny_group **) {
    return teeny::message("libtorch has no process groups on this system");
}

char *teeny_group_all_reduce(teeny_group *, void *) {
    return teeny::message("no process group");
}

char *teeny_group_broadcast(teeny_group *, void *, std::int32_t) {
    return teeny::message("no process group");
}

char *teeny_group_barrier(teeny_group *) {
    return teeny::message("no process group");
}

void teeny_group_free(teeny_group *) {}

#endif
