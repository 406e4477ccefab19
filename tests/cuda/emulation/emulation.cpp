// The scheduler: which fiber runs when, what threads wait for, and what they did wrong.

#include "emulation.h"
#include "fiber.h"
#include "races.h"

#include <algorithm>
#include <csignal>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <set>

#include <unistd.h>

#ifdef WITH_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace emulation {

const Position *position;

namespace {

// Threads whose stacks exist at once, over all blocks under way. One block may have up to 1024.
constexpr size_t THREADS_AT_ONCE = 2048;
// Between two shared arrays; never handed out, and looked at when the block ends.
constexpr size_t ZONE = 64;
// Arrays that a block may declare.
constexpr size_t MOST_SHARED = 64;
constexpr unsigned char UNWRITTEN = 0xFF, ZONE_BYTE = 0xA5;

// Never the same for two blocks, which may use one record of races after the other.
uint64_t barriers = 0;

struct Random {
    uint64_t state;
    uint64_t next() {
        uint64_t z = (state += 0x9e3779b97f4a7c15u);
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        return z ^ z >> 31;
    }
    // Below n.
    unsigned below(unsigned n) { return unsigned((next() >> 32) * n >> 32); }
    bool one_in(unsigned n) { return below(n) == 0; }
};

const char *name_of(Wait wait) {
    switch (wait) {
    case Wait::none: return "nothing";
    case Wait::block_sync: return "block_sync";
    case Wait::warp_sync: return "warp_sync";
    case Wait::shuffle: return "shuffle";
    case Wait::vote: return "vote";
    case Wait::product: return "mma_bf16";
    }
    return "";
}

std::string at(Line line) {
    const char *slash = strrchr(line.file, '/');
    return std::string(slash ? slash + 1 : line.file) + ":" + std::to_string(line.number);
}

std::string triple(Dim d) {
    return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) + ")";
}

struct Block;
struct Warp;

struct Thread {
    Position position;
    Warp *warp = nullptr;
    std::unique_ptr<Fiber> fiber = std::make_unique<Fiber>();
    Wait wait = Wait::none;
    Line line = {"", 0}; // where it waits
    bool done = false;
    bool waited_for_previous = false;
};

struct Warp {
    Block *block = nullptr;
    unsigned first = 0; // thread of the block
    unsigned lanes = 0; // bits: those that exist
    unsigned ready = 0; // those that can run
    unsigned done = 0;
    unsigned arrived = 0; // those that wait for the others of the warp
    unsigned priority = 0;
    bool listed = false; // among the scheduler's `ready` warps
    uint64_t barriers = 0; // warp_syncs so far
    // Two sets in turn: a lane may give its next value while others have yet to read the last.
    unsigned turn = 0;
    alignas(16) unsigned char values[2][32 * LANE_BYTES];
};

struct Shared {
    const void *key;
    std::string name;
    size_t offset, size;
};

struct Block {
    Dim index;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    unsigned arrived = 0, done = 0; // threads, at a block_sync and at their end
    Line line = {"", 0};            // of that block_sync
    std::vector<Shared> shared;
    size_t shared_bytes = 0; // as the kernel counts them
    size_t offset = 0;       // first free byte of memory
    std::vector<unsigned char> memory;
    uint64_t barriers = 0; // grows with each block_sync, and from block to block
    Races races;
};

class Scheduler {
  public:
    explicit Scheduler(const Launch &launch_) : launch(launch_), random{launch_.seed} {}

    std::string run();
    void wait_for_block(Line line);
    const unsigned char *exchange(Wait kind, const void *value, size_t size, Line line);
    void pause();
    void *shared_memory(const void *key, const char *name, size_t size, Line line);
    void *dynamic_memory();
    void watch(const void *address, size_t size, bool write);
    // Ends the kernel from inside a thread.
    [[noreturn]] void fail(const std::string &what);
    std::string here() const;
    const Thread *current() const { return thread; }

  private:
    static void run_thread();
    void end_thread();
    void start(Block &block, unsigned index);
    void finish(Block &block);
    void turn(Warp &warp);
    void list(Warp &warp);
    void leave(Wait wait, Line line);
    void *place(Block &block, const void *key, const char *name, size_t size);
    std::string stuck() const;

    const Launch &launch;
    Random random;
    std::vector<std::unique_ptr<Block>> blocks; // under way
    std::vector<Warp *> ready;
    Thread *thread = nullptr; // the one that runs
    Block *finished = nullptr;
    unsigned redraw = 1;      // one in so many turns gives a warp another priority
    std::string error;
};

Scheduler *scheduler;
std::mutex one_kernel;

// Blocks keep their stacks for later launches.
std::vector<std::unique_ptr<Block>> spare_blocks;

std::set<Memory *> &memories() {
    static std::set<Memory *> all;
    return all;
}
std::mutex memories_lock;

// --- stack overflow

struct sigaction previous_action;

void on_fault(int signal, siginfo_t *info, void *) {
    const Thread *thread = scheduler ? scheduler->current() : nullptr;
    if (thread && thread->fiber->guards(info->si_addr)) {
        std::string message = scheduler->here() + ": the thread's stack overflows\n";
        if (write(2, message.data(), message.size()) < 0) _exit(2);
        _exit(1);
    }
    // Not ours: happens again with the action of before.
    sigaction(signal, &previous_action, nullptr);
}

void watch_for_faults() {
    // The handler cannot run on the stack that is full.
    stack_t stack;
    if (sigaltstack(nullptr, &stack) == 0 && (stack.ss_flags & SS_DISABLE)) {
        constexpr size_t size = 64 * 1024;
        stack = {};
        stack.ss_sp = malloc(size); // lives as long as the thread
        stack.ss_size = size;
        sigaltstack(&stack, nullptr);
    }
    static bool installed = false;
    if (installed) return;
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &previous_action);
    installed = true;
}

// --- the life of a block

void Scheduler::start(Block &block, unsigned index) {
    Dim grid = launch.grid;
    block.index = {index % grid.x, index / grid.x % grid.y, index / grid.x / grid.y};
    block.arrived = block.done = 0;
    block.barriers = ++barriers;
    block.shared.clear();
    block.shared_bytes = 0;
    block.offset = 0;
    block.memory.assign(launch.shared_limit + MOST_SHARED * (ZONE + 32), UNWRITTEN);
    unsigned n_threads = launch.threads, n_warps = (n_threads + 31) / 32;
    if (block.threads.size() != n_threads) {
        std::vector<Thread> threads(n_threads);
        // Stacks are what costs time to make.
        for (size_t i = 0; i < std::min<size_t>(n_threads, block.threads.size()); i++)
            threads[i].fiber = std::move(block.threads[i].fiber);
        block.threads = std::move(threads);
        block.warps.resize(n_warps);
    }
    for (unsigned w = 0; w < n_warps; w++) {
        Warp &warp = block.warps[w];
        warp.block = &block;
        warp.first = 32 * w;
        unsigned n = std::min(32u, n_threads - warp.first);
        warp.lanes = warp.ready = n == 32 ? ~0u : (1u << n) - 1;
        warp.done = warp.arrived = 0;
        warp.priority = unsigned(random.next());
        warp.listed = false;
        for (unsigned lane = 0; lane < n; lane++) {
            Thread &t = block.threads[warp.first + lane];
            t.position = {Dim(warp.first + lane, 0, 0), block.index, Dim(n_threads), grid};
            t.warp = &warp;
            t.wait = Wait::none;
            t.done = t.waited_for_previous = false;
            t.fiber->prepare(run_thread);
        }
        list(warp);
    }
    if (launch.dynamic_shared) place(block, nullptr, "dynamic shared memory", launch.dynamic_shared);
}

void Scheduler::run_thread() {
    scheduler->launch.body();
    scheduler->end_thread();
}

void Scheduler::end_thread() {
    Warp &warp = *thread->warp;
    Block &block = *warp.block;
    if (!thread->waited_for_previous) fail("the thread ends without wait_for_previous");
    if (block.arrived) fail("the thread ends while others wait at a block_sync");
    if (warp.arrived) fail("the thread ends while other lanes of its warp wait for it");
    thread->done = true;
    warp.done |= 1u << (thread->position.thread.x & 31);
    if (++block.done == launch.threads) finished = &block;
    thread->fiber->leave(true);
    abort();
}

void Scheduler::finish(Block &block) {
    for (const Shared &s : block.shared) {
        const unsigned char *zone = &block.memory[s.offset + s.size];
        for (size_t i = 0; i < ZONE && error.empty(); i++)
            if (zone[i] != ZONE_BYTE)
                error = std::string(launch.name) + ", block " + triple(block.index) +
                        ": a write beyond the end of " + s.name + ", " + std::to_string(s.size) +
                        " bytes of shared memory";
    }
}

// --- what threads do

void Scheduler::list(Warp &warp) {
    if (warp.listed) return;
    warp.listed = true;
    ready.push_back(&warp);
}

void Scheduler::leave(Wait wait, Line line) {
    Thread *self = thread;
    self->wait = wait;
    self->line = line;
    self->fiber->leave();
    self->wait = Wait::none;
}

void Scheduler::pause() {
    if (!random.one_in(4)) return;
    thread->warp->ready |= 1u << (thread->position.thread.x & 31);
    leave(Wait::none, {"", 0});
}

void Scheduler::wait_for_block(Line line) {
    Warp &warp = *thread->warp;
    Block &block = *warp.block;
    if (block.done) fail("the thread waits at the block_sync of " + at(line) + ", but others have ended");
    if (++block.arrived == 1) block.line = line;
    if (block.line.number != line.number)
        fail("the thread waits at the block_sync of " + at(line) + ", others at that of " + at(block.line));
    if (block.arrived < launch.threads) return leave(Wait::block_sync, line);
    block.arrived = 0;
    block.barriers = ++barriers;
    for (Warp &w : block.warps) {
        w.ready = w.lanes;
        list(w);
    }
    unsigned bit = 1u << (thread->position.thread.x & 31);
    if (random.one_in(2)) return leave(Wait::none, line);
    warp.ready &= ~bit;
}

const unsigned char *Scheduler::exchange(Wait kind, const void *value, size_t size, Line line) {
    Warp &warp = *thread->warp;
    unsigned lane = thread->position.thread.x & 31, bit = 1u << lane;
    if (warp.lanes != ~0u) fail(std::string(name_of(kind)) + " in a warp of fewer than 32 threads");
    if (warp.done) fail("the thread waits at the " + std::string(name_of(kind)) + " of " + at(line) +
                        ", but other lanes of its warp have ended");
    if (warp.arrived) {
        Thread &other = warp.block->threads[warp.first + unsigned(__builtin_ctz(warp.arrived))];
        if (other.wait != kind || other.line.number != line.number)
            fail("the thread waits at the " + std::string(name_of(kind)) + " of " + at(line) +
                 ", other lanes of its warp at the " + name_of(other.wait) + " of " + at(other.line));
    }
    unsigned char *values = warp.values[warp.turn];
    if (size) memcpy(values + lane * LANE_BYTES, value, size);
    warp.arrived |= bit;
    if (warp.arrived != ~0u) {
        leave(kind, line);
        return values;
    }
    // The last one.
    warp.arrived = 0;
    if (kind == Wait::warp_sync) warp.barriers++;
    warp.turn ^= 1;
    warp.ready = ~bit;
    list(warp);
    return values;
}

void *Scheduler::place(Block &block, const void *key, const char *name, size_t size) {
    Shared s = {key, name, block.offset, size};
    block.shared_bytes += (size + 15) / 16 * 16;
    // The zone begins right behind the array, and what follows is aligned again.
    block.offset += (size + ZONE + 15) / 16 * 16;
    memset(&block.memory[s.offset + size], ZONE_BYTE, ZONE);
    block.shared.push_back(s);
    return &block.memory[s.offset];
}

void *Scheduler::shared_memory(const void *key, const char *name, size_t size, Line line) {
    Block &block = *thread->warp->block;
    for (const Shared &s : block.shared)
        if (s.key == key) return &block.memory[s.offset];
    if (block.shared_bytes + size > launch.shared_limit)
        fail("with " + std::string(name) + " (" + at(line) + ") the block has " +
             std::to_string(block.shared_bytes + size) + " bytes of shared memory, more than " +
             std::to_string(launch.shared_limit));
    if (block.shared.size() == MOST_SHARED) fail("too many shared arrays");
    return place(block, key, name, size);
}

void *Scheduler::dynamic_memory() {
    Block &block = *thread->warp->block;
    if (!launch.dynamic_shared) fail("dynamic shared memory, of which the launch gives none");
    return &block.memory[block.shared[0].offset];
}

void Scheduler::watch(const void *address, size_t size, bool write) {
    if (!thread) return;
    Block &block = *thread->warp->block;
    auto at_byte = static_cast<const unsigned char *>(address);
    if (at_byte < block.memory.data() || at_byte + size > block.memory.data() + block.offset) return;
    size_t offset = size_t(at_byte - block.memory.data());
    Access now = {thread->position.thread.x, block.barriers, thread->warp->barriers};
    const Access *other = block.races.find(offset, size, now, write);
    if (!other) return;
    std::string what = "shared memory";
    for (const Shared &s : block.shared)
        if (offset >= s.offset && offset < s.offset + s.size)
            what = s.name + ", byte " + std::to_string(offset - s.offset);
    fail(std::string("a race: the thread ") + (write ? "writes" : "reads") + " " + what +
         ", which thread " + std::to_string(other->thread) + " used since the last barrier of both");
}

std::string Scheduler::here() const {
    return std::string(launch.name) + ", block " + triple(thread->position.block) + ", thread " +
           std::to_string(thread->position.thread.x);
}

void Scheduler::fail(const std::string &what) {
    error = here() + ": " + what;
    thread->fiber->leave(true);
    abort();
}

// --- the schedule

// Runs some lanes of a warp, each until it waits.
void Scheduler::turn(Warp &warp) {
    unsigned lanes = warp.ready;
    if (random.one_in(4)) {
        unsigned some = lanes & unsigned(random.next());
        if (some) lanes = some;
    }
    // An odd step visits each of the 32 once.
    unsigned lane = random.below(32), step = 2 * random.below(16) + 1;
    for (unsigned i = 0; i < 32; i++, lane = (lane + step) & 31) {
        unsigned bit = 1u << lane;
        if (!(lanes & warp.ready & bit)) continue;
        lanes &= ~bit;
        warp.ready &= ~bit;
        thread = &warp.block->threads[warp.first + lane];
        position = &thread->position;
        thread->fiber->resume();
        thread = nullptr;
        if (!error.empty()) return;
    }
}

// Why no thread can run.
std::string Scheduler::stuck() const {
    for (const auto &block : blocks) {
        std::map<std::string, std::vector<unsigned>> groups;
        for (const Thread &t : block->threads) {
            std::string what = t.done ? std::string("ended")
                                      : "wait at the " + std::string(name_of(t.wait)) + " of " + at(t.line);
            groups[what].push_back(t.position.thread.x);
        }
        if (block->done == launch.threads) continue;
        std::string message = std::string(launch.name) + ", block " + triple(block->index) +
                              ": no thread can go on:";
        for (const auto &[what, threads] : groups)
            message += " " + std::to_string(threads.size()) + " threads " + what + " (the first is thread " +
                       std::to_string(threads[0]) + ");";
        message.pop_back();
        return message;
    }
    return "";
}

std::string Scheduler::run() {
    unsigned n_blocks = launch.grid.x * launch.grid.y * launch.grid.z;
    std::vector<unsigned> order(n_blocks);
    std::iota(order.begin(), order.end(), 0u);
    for (unsigned i = n_blocks; i > 1; i--) std::swap(order[i - 1], order[random.below(i)]);
    size_t most = std::max<size_t>(1, THREADS_AT_ONCE / launch.threads);
    size_t at_once = 1 + random.below(unsigned(std::min<size_t>(most, n_blocks)));
    // From warps that take turns to warps that stand still until all others wait.
    redraw = 1u << (2 * random.below(4));

    size_t next = 0;
    auto start_next = [&](std::unique_ptr<Block> block) {
        start(*block, order[next++]);
        blocks.push_back(std::move(block));
    };
    while (next < n_blocks && blocks.size() < at_once) {
        std::unique_ptr<Block> block;
        if (spare_blocks.empty()) block = std::make_unique<Block>();
        else {
            block = std::move(spare_blocks.back());
            spare_blocks.pop_back();
        }
        start_next(std::move(block));
    }
    while (error.empty() && !blocks.empty()) {
        if (ready.empty()) {
            error = stuck();
            break;
        }
        size_t chosen = 0;
        for (size_t i = 1; i < ready.size(); i++)
            if (ready[i]->priority > ready[chosen]->priority) chosen = i;
        Warp &warp = *ready[chosen];
        turn(warp);
        if (random.one_in(redraw)) warp.priority = unsigned(random.next());
        if (!warp.ready) {
            warp.listed = false;
            // Others may have joined the list, but none moved.
            ready[chosen] = ready.back();
            ready.pop_back();
        }
        if (!finished || !error.empty()) continue;
        finish(*finished);
        auto it = std::find_if(blocks.begin(), blocks.end(), [&](auto &b) { return b.get() == finished; });
        std::unique_ptr<Block> block = std::move(*it);
        blocks.erase(it);
        finished = nullptr;
        if (next < n_blocks) start_next(std::move(block));
        else spare_blocks.push_back(std::move(block));
    }
    for (auto &block : blocks) spare_blocks.push_back(std::move(block));
    return error;
}

} // namespace

void wait_for_block(Line line) { scheduler->wait_for_block(line); }

const unsigned char *exchange(Wait kind, const void *value, size_t size, Line line) {
    return scheduler->exchange(kind, value, size, line);
}

void pause() { scheduler->pause(); }

void watch(const void *address, size_t size, bool write) {
    if (scheduler) scheduler->watch(address, size, write);
}

void waited_for_previous() { const_cast<Thread *>(scheduler->current())->waited_for_previous = true; }

void *shared_memory(const void *key, const char *name, size_t size, Line line) {
    return scheduler->shared_memory(key, name, size, line);
}

void *dynamic_shared_memory() { return scheduler->dynamic_memory(); }

std::string run(const Launch &launch) {
    std::string name = launch.name;
    if (!launch.threads || launch.threads > launch.bound)
        return name + ": blocks of " + std::to_string(launch.threads) + " threads, at most " +
               std::to_string(launch.bound) + " are allowed";
    if (!launch.grid.x || !launch.grid.y || !launch.grid.z || launch.grid.x >= 1u << 31 ||
        launch.grid.y >= 1u << 16 || launch.grid.z >= 1u << 16)
        return name + ": a grid of " + triple(launch.grid) + " blocks";
    if (launch.dynamic_shared > launch.shared_limit)
        return name + ": " + std::to_string(launch.dynamic_shared) + " bytes of shared memory, more than " +
               std::to_string(launch.shared_limit);

    std::lock_guard<std::mutex> guard(one_kernel);
    watch_for_faults();
    std::string error;
    {
        Scheduler own(launch);
        scheduler = &own;
        error = own.run();
        scheduler = nullptr;
    }
    if (!error.empty()) return error;
    std::lock_guard<std::mutex> memories_guard(memories_lock);
    for (Memory *memory : memories()) {
        std::string damage = memory->damage();
        if (damage.empty()) continue;
        // Said once.
        memory->restore();
        if (error.empty()) error = name + ": " + damage;
    }
    return error;
}

// --- global memory

namespace {

constexpr size_t BORDER = 256;

// Zones are poisoned for AddressSanitizer, except while we look at them ourselves.
struct Unpoisoned {
    unsigned char *data;
    size_t size;
    Unpoisoned(unsigned char *data_, size_t size_) : data(data_), size(size_) {
#ifdef WITH_ASAN
        __asan_unpoison_memory_region(data - BORDER, size + 2 * BORDER);
#endif
    }
    ~Unpoisoned() {
#ifdef WITH_ASAN
        __asan_poison_memory_region(data - BORDER, BORDER);
        __asan_poison_memory_region(data + size, BORDER);
#endif
    }
};

} // namespace

Memory::Memory(size_t size) : size_(size) {
    size_t all = (size + 2 * BORDER + 255) / 256 * 256;
    unsigned char *memory = static_cast<unsigned char *>(aligned_alloc(256, all));
    if (!memory) {
        perror("global memory");
        abort();
    }
    data_ = memory + BORDER;
    memset(data_, UNWRITTEN, size);
    restore();
    std::lock_guard<std::mutex> guard(memories_lock);
    memories().insert(this);
}

Memory::~Memory() {
    std::string error = damage();
    if (!error.empty()) {
        fprintf(stderr, "%s\n", error.c_str());
        _exit(1);
    }
    std::lock_guard<std::mutex> guard(memories_lock);
    memories().erase(this);
    memset(data_, UNWRITTEN, size_);
#ifdef WITH_ASAN
    __asan_unpoison_memory_region(data_ - BORDER, size_ + 2 * BORDER);
#endif
    free(data_ - BORDER);
}

void Memory::restore() {
    Unpoisoned zones(data_, size_);
    memset(data_ - BORDER, ZONE_BYTE, BORDER);
    memset(data_ + size_, ZONE_BYTE, BORDER);
}

std::string Memory::damage() const {
    static const std::vector<unsigned char> zone(BORDER, ZONE_BYTE);
    Unpoisoned zones(data_, size_);
    if (!memcmp(data_ - BORDER, zone.data(), BORDER) && !memcmp(data_ + size_, zone.data(), BORDER)) return "";
    std::string what = " of an array of " + std::to_string(size_) + " bytes in global memory";
    for (size_t i = 1; i <= BORDER; i++)
        if (data_[-ptrdiff_t(i)] != ZONE_BYTE)
            return "a write " + std::to_string(i) + " bytes before the start" + what;
    for (size_t i = 0; i < BORDER; i++)
        if (data_[size_ + i] != ZONE_BYTE)
            return "a write " + std::to_string(i + 1) + " bytes beyond the end" + what;
    return "";
}

} // namespace emulation
