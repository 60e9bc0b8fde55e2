// CUDA's threads on the CPU: each is a fibre, and they run in random order between barriers.
//
// For correctness, not for speed. What it takes that a GPU takes by chance it refuses: shared memory starts as what is
// not a number, copies that are asynchronous arrive at once or when they are waited for, by chance, and so do products, a
// warp's lanes must meet at one place, and threads that wait for each other for ever end the process with a word about
// where.
#pragma once

#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <ucontext.h>
#include <vector>

#define __device__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
using std::isfinite;

namespace emulator {

struct Dim3 {
    unsigned x, y, z;
};

constexpr unsigned WARP = 32;
constexpr size_t STACK = 64 * 1024;
constexpr size_t SLOT = 64;

enum class State { ready, running, at_block, at_warp, done };

struct Copy {
    void *to;
    const void *from;
    unsigned bytes;  // of 16, zeros behind them
};

// What is asynchronous: in groups that are committed and waited for, oldest first.
template <typename T> struct Queue {
    std::vector<T> open;
    std::vector<std::vector<T>> committed;

    void commit() {
        committed.push_back(std::move(open));
        open.clear();
    }
    template <typename Do> void wait(size_t left, Do done) {
        while (committed.size() > left) {
            for (const T &t : committed.front()) done(t);
            committed.erase(committed.begin());
        }
    }
    bool empty() const { return open.empty() && committed.empty(); }
    void clear() {
        open.clear();
        committed.clear();
    }
};

struct Fibre {
    jmp_buf at;
    std::unique_ptr<char[]> stack{new char[STACK]};
    bool started = false;
    State state = State::ready;
    int site = 0;
    unsigned meetings = 0;
    Queue<Copy> copies;
    Queue<std::function<void()>> products;
};

struct Warp {
    unsigned arrived = 0;
    alignas(16) unsigned char slots[2][WARP][SLOT];
};

struct Block {
    std::vector<Fibre> fibres;
    std::vector<unsigned> ready;  // threads in this state, in no order
    std::vector<Warp> warps;
    std::vector<unsigned char> shared;
    unsigned threads = 0, waiting = 0, finished = 0, current = 0;
    Dim3 index{}, grid{};
    void (*body)(const void *) = nullptr;
    const void *args = nullptr;
    jmp_buf scheduler;
    ucontext_t home, start;
    uint64_t seed = 0x2545f4914f6cdd1dull;
};

// Every use of `threadIdx` asks for it: a plain pointer at a fixed place beside the thread is there in one load. There is
// little room for what lies so in a library that is loaded late: pointers, and not the block itself.
inline thread_local Block *of_this_thread __attribute__((tls_model("initial-exec"))) = nullptr;

inline Block &block() { return *of_this_thread; }

inline Block &first_block() {
    static thread_local std::unique_ptr<Block> block{new Block};
    of_this_thread = block.get();
    return *block;
}

[[noreturn]] inline void stop(const char *why) {
    Block &b = block();
    std::fprintf(stderr, "emulated kernel: %s (block %u %u %u, thread %u)\n", why, b.index.x, b.index.y, b.index.z,
                 b.current);
    std::abort();
}

inline uint64_t random(Block &b) {
    b.seed ^= b.seed << 13;
    b.seed ^= b.seed >> 7;
    b.seed ^= b.seed << 17;
    return b.seed;
}

inline void yield() {
    Block &b = block();
    Fibre &f = b.fibres[b.current];
    if (_setjmp(f.at) == 0) _longjmp(b.scheduler, 1);
}

// What a fibre does for good: a thread of each block, since to start a fibre takes two system calls, and to go on none.
[[noreturn]] inline void enter() {
    for (;;) {
        block().body(block().args);
        Block &b = block();
        Fibre &f = b.fibres[b.current];
        if (!f.copies.empty()) stop("a copy was never waited for");
        if (!f.products.empty()) stop("a product was never waited for");
        f.state = State::done;
        b.finished++;
        yield();
    }
}

inline void make_ready(Block &b, unsigned thread) {
    b.fibres[thread].state = State::ready;
    b.ready.push_back(thread);
}

inline unsigned lanes_of(const Block &b, unsigned warp) {
    unsigned first = warp * WARP;
    return b.threads - first < WARP ? b.threads - first : WARP;
}

// Lets threads go on whose barrier is complete.
inline void release(Block &b) {
    if (b.waiting > 0 && b.waiting + b.finished == b.threads) {
        int site = 0;
        for (unsigned t = 0; t < b.threads; t++) {
            const Fibre &f = b.fibres[t];
            if (f.state != State::at_block) continue;
            if (site != 0 && f.site != site) stop("threads wait at different barriers");
            site = f.site;
            make_ready(b, t);
        }
        b.waiting = 0;
    }
}

inline void run_block(Block &b) {
    b.ready.clear();
    for (unsigned t = 0; t < b.threads; t++) {
        Fibre &f = b.fibres[t];
        make_ready(b, t);
        f.meetings = 0;
        f.copies.clear();
        f.products.clear();
    }
    for (Warp &w : b.warps) {
        w.arrived = 0;
        std::memset(w.slots, 0xff, sizeof w.slots);
    }
    std::memset(b.shared.data(), 0xff, b.shared.size());
    b.waiting = b.finished = 0;
    while (b.finished < b.threads) {
        if (b.ready.empty()) stop("threads wait for each other");
        std::swap(b.ready[random(b) % b.ready.size()], b.ready.back());
        b.current = b.ready.back();
        b.ready.pop_back();
        Fibre &f = b.fibres[b.current];
        f.state = State::running;
        if (_setjmp(b.scheduler) == 0) {
            if (f.started) _longjmp(f.at, 1);
            f.started = true;
            getcontext(&b.start);
            b.start.uc_stack.ss_sp = f.stack.get();
            b.start.uc_stack.ss_size = STACK;
            b.start.uc_link = nullptr;
            makecontext(&b.start, enter, 0);
            swapcontext(&b.home, &b.start);
        }
        release(b);
    }
}

inline void run(void (*body)(const void *), const void *args, const unsigned *grid, unsigned threads, size_t shared) {
    Block &b = first_block();
    b.body = body;
    b.args = args;
    b.threads = threads;
    if (b.fibres.size() < threads) b.fibres.resize(threads);
    for (unsigned t = threads; t < b.fibres.size(); t++) b.fibres[t].state = State::done;
    b.warps.resize((threads + WARP - 1) / WARP);
    b.shared.assign(shared + 16, 0xff);
    b.grid = {grid[0], grid[1], grid[2]};
    for (unsigned z = 0; z < grid[2]; z++)
        for (unsigned y = 0; y < grid[1]; y++)
            for (unsigned x = 0; x < grid[0]; x++) {
                b.index = {x, y, z};
                run_block(b);
            }
    std::memset(b.shared.data(), 0, b.shared.size());
}

inline void barrier(int site) {
    Block &b = block();
    Fibre &f = b.fibres[b.current];
    f.state = State::at_block;
    f.site = site;
    b.waiting++;
    yield();
}

// Every lane of the warp brings `value`; what all brought, by lane.
template <typename T> inline const unsigned char (*meet(const T &value, int site))[SLOT] {
    static_assert(sizeof(T) <= SLOT, "too large for a slot");
    Block &b = block();
    unsigned warp = b.current / WARP, lane = b.current % WARP;
    Warp &w = b.warps[warp];
    Fibre &f = b.fibres[b.current];
    auto &slots = w.slots[f.meetings++ % 2];
    std::memcpy(slots[lane], &value, sizeof(T));
    f.site = site;
    if (++w.arrived == lanes_of(b, warp)) {
        w.arrived = 0;
        for (unsigned l = 0; l < lanes_of(b, warp); l++) {
            Fibre &other = b.fibres[warp * WARP + l];
            if (other.site != site) stop("lanes of a warp meet at different places");
            if (l != lane) make_ready(b, warp * WARP + l);
        }
    } else {
        f.state = State::at_warp;
        yield();
    }
    return slots;
}

template <typename T> inline T of_lane(const unsigned char (*slots)[SLOT], unsigned lane) {
    T value;
    std::memcpy(&value, slots[lane], sizeof(T));
    return value;
}

inline void arrive(const Copy &c) {
    std::memset(c.to, 0, 16);
    std::memcpy(c.to, c.from, c.bytes);
}

inline Fibre &current() {
    Block &b = block();
    return b.fibres[b.current];
}

// Arrives at once too, or only when it is waited for.
inline void copy_async(void *to, const void *from, unsigned bytes) {
    current().copies.open.push_back({to, from, bytes});
    if (random(block()) >> 32 & 1) arrive({to, from, bytes});
}

inline void copy_commit() { current().copies.commit(); }

inline void copy_wait(size_t left) { current().copies.wait(left, arrive); }

inline void later(std::function<void()> what) { current().products.open.push_back(std::move(what)); }

inline void later_wait(size_t left) {
    current().products.wait(left, [](const std::function<void()> &what) { what(); });
}

// Done at once, with what comes before it, or when it is waited for.
inline void later_commit() {
    current().products.commit();
    if (random(block()) >> 32 & 1) {
        later_wait(0);
        current().products.committed.assign(1, {});  // it must be waited for nevertheless
    }
}

struct Thread {
    struct {
        operator unsigned() const { return block().current; }
    } x;
};

}  // namespace emulator

#define threadIdx (emulator::Thread{})
#define blockIdx (emulator::block().index)
#define gridDim (emulator::block().grid)
#define blockDim (emulator::Dim3{emulator::block().threads, 1, 1})
#define __syncthreads() emulator::barrier(__LINE__)
#define __syncwarp() ((void)emulator::meet(0, __LINE__))

template <typename T> inline T emulated_shuffle_xor(T value, unsigned mask, int site) {
    unsigned lane = emulator::block().current % 32;
    return emulator::of_lane<T>(emulator::meet(value, site), lane ^ mask);
}

template <typename T> inline T emulated_shuffle(T value, unsigned from, int site) {
    return emulator::of_lane<T>(emulator::meet(value, site), from);
}

#define __shfl_xor_sync(all, value, mask) emulated_shuffle_xor(value, mask, __LINE__)
#define __shfl_sync(all, value, from) emulated_shuffle(value, from, __LINE__)

// Threads change places at barriers only, so that these are not interrupted.
inline uint32_t atomicAdd(uint32_t *at, uint32_t value) {
    uint32_t before = *at;
    *at += value;
    return before;
}

inline void atomicOr(uint32_t *at, uint32_t value) { *at |= value; }
inline void atomicMax(uint32_t *at, uint32_t value) { *at = value > *at ? value : *at; }

struct uint2 {
    uint32_t x, y;
};
struct float2 {
    float x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};

#define SHARED(name) \
    unsigned char *name = (unsigned char *)((uintptr_t(emulator::block().shared.data()) + 15) / 16 * 16)

#define KERNEL(name, threads, Args)                                                                       \
    static void name##_body(const Args &a);                                                               \
    static void name##_enter(const void *a) { name##_body(*(const Args *)a); }                            \
    extern "C" unsigned emulated_bytes_##name() { return sizeof(Args); }                                  \
    extern "C" void emulated_##name(const void *a, const unsigned *grid, unsigned block, size_t shared) { \
        emulator::run(name##_enter, a, grid, block, shared);                                              \
    }                                                                                                     \
    static void name##_body(const Args &a)
