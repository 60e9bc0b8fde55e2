// From logits to tokens, where the logits are: penalties, filters, the draw, log probabilities. As src/sample, bit by bit:
// the same operations of IEEE 754 in the same order, so that nobody can tell who chose.
//
// A block of threads for each question. What is a sum of src/sample's runs in its order here: blocks of 64 values, in 16
// lanes, and then one thread from block to block; or one thread over keys that were sorted. Selection and sorting are
// exact, so that how they are done does not show; integer atomics count and collect, and what they collect is sorted.
//
// Cost: a question passes over its row once (greedy), twice (top-k), three times (top-p: with an exponential in double
// precision for each logit, min-p without); penalties, bias and mask add two passes. Then some hundreds of keys are sorted
// in shared memory. Where a filter keeps more than 2048 tokens, all candidates are sorted in the scratch. Typical-p on its
// own adds one thread's pass over the vocabulary. A block has one processor to itself: the passes are bound by what that
// reads from the second cache.
#include "common.cuh"

constexpr uint32_t THREADS = 512;
constexpr uint32_t GROUP = 64;         // values that are summed together
constexpr uint32_t LANES = 16;         // running sums of a group
constexpr uint32_t NEAR = 2048;        // keys that are sorted in shared memory
constexpr uint32_t MOST_TOP = 20;      // most likely tokens in a record
constexpr uint32_t LOWEST = 0xff7fffff;  // bits of the lowest float: the logit of a token that is not banned is not below
constexpr uint32_t BANNED = 0xff800000;  // of minus infinity

enum Flags : uint32_t { GIVEN = 1, CHANGED = 2, MASKED = 4, LOGPROBS = 8 };
enum Status : uint32_t { CHOSEN = 1, NOT_FINITE = 2, NO_TOKEN = 3 };

// A query of 32 words, which src/backend/sample_batch.rs writes.
struct SampleQuery {
    uint32_t row, flags, given, top;
    uint32_t top_k;
    float top_p, min_p, typical_p;
    float temperature, repetition, frequency, presence;
    double draw;
    double inverse;  // 1 / temperature, rounded
    double least;    // ln of the weight, over the sum of all where top-p is first, below which no token is kept
    // Where each list starts, and how many entries it has.
    uint32_t bias, biases;    // id, number
    uint32_t mask, words;     // bits
    uint32_t seen, seens;     // id, times in the reply
    uint32_t repeat, repeats; // id, penalty as two words
    uint32_t ban, bans;       // id
    uint32_t unused[4];
};
static_assert(sizeof(SampleQuery) == 128, "as src/backend/sample_batch.rs");

// Likewise: 48 words.
struct Answer {
    uint32_t status, token;
    float max, own;  // of the raw logits
    double total;    // their weights' sum
    uint32_t rank, count;
    uint32_t top[2 * MOST_TOP];  // id, logit
};
static_assert(sizeof(Answer) == 192, "as src/backend/sample_batch.rs");

struct SampleArgs {
    const float *logits;
    const SampleQuery *queries;
    const uint32_t *lists;
    Answer *answers;
    float *rows;     // (questions, vocab): logits that were changed
    uint64_t *keys;  // (questions, vocab)
    uint32_t vocab, stride;
};

struct Shared {
    uint64_t keys[NEAR];
    double weights[NEAR], products[NEAR];
    double powers[64];
    double number;
    uint32_t bins[256];
    float best[THREADS / 32];
    uint32_t at[THREADS / 32], strange[THREADS / 32];
    uint32_t spread[2], index, count, stop;
};
static_assert(sizeof(Shared) <= 52 * 1024, "as src/backend/cuda/sampling.rs");

// ---- weights: as src/sample/softmax.rs

// 2^(i / 64)
__device__ const double POWERS[64] = {
    1.0, 1.0108892860517005, 1.0218971486541166, 1.0330248790212284,
    1.0442737824274138, 1.0556451783605572, 1.0671404006768237, 1.0787607977571199,
    1.0905077326652577, 1.102382583307841, 1.1143867425958924, 1.1265216186082418,
    1.1387886347566916, 1.1511892299529827, 1.1637248587775775, 1.1763969916502812,
    1.189207115002721, 1.202156731452703, 1.215247359980469, 1.22848053610687,
    1.241857812073484, 1.255380757024691, 1.2690509571917332, 1.2828700160787783,
    1.2968395546510096, 1.3109612115247644, 1.3252366431597413, 1.339667524053303,
    1.3542555469368927, 1.3690024229745905, 1.383909881963832, 1.3989796725383112,
    1.4142135623730951, 1.42961333839197, 1.4451808069770467, 1.460917794180647,
    1.4768261459394993, 1.4929077282912648, 1.5091644275934228, 1.5255981507445384,
    1.5422108254079407, 1.559004400237837, 1.5759808451078865, 1.593142151342267,
    1.6104903319492543, 1.6280274218573478, 1.645755478153965, 1.6636765803267364,
    1.681792830507429, 1.7001063537185235, 1.718619298122478, 1.7373338352737062,
    1.7562521603732995, 1.7753764925265212, 1.7947090750031072, 1.8142521755003989,
    1.8340080864093424, 1.8539791250833855, 1.8741676341103, 1.8945759815869656,
    1.9152065613971474, 1.9360617934922943, 1.9571441241754002, 1.978456026387951,
};

INLINE double exponential(double x, const double *powers) {
    constexpr double ROUND = 6755399441055744.0;  // 1.5 * 2^52
    constexpr double LN_2_HIGH = 6.931471803691238e-1 / 64.0, LN_2_LOW = 1.9082149292705877e-10 / 64.0;
    constexpr double STEPS = 64.0 * 1.44269504088896340735992468100189214;
    const bool inside = x > -700.0;
    x = inside ? x : 0.0;
    const double shifted = x * STEPS + ROUND, k = shifted - ROUND;
    const double r = x - k * LN_2_HIGH - k * LN_2_LOW;
    const double rest = r + r * r * ((0.5 + r * (1.0 / 6.0)) + r * r * (1.0 / 24.0 + r * (1.0 / 120.0)));
    uint64_t bits, power_bits;
    memcpy(&bits, &shifted, 8);
    double power = powers[bits & 63];
    memcpy(&power_bits, &power, 8);
    power_bits += (bits >> 6) << 52;
    memcpy(&power, &power_bits, 8);
    return inside ? power + power * rest : 0.0;
}

struct Scale {
    float max;
    double temperature, inverse;
    const double *powers;

    // (logit - max) / temperature. A quotient that is off by an ulp at most becomes the one that IEEE 754 wants, since
    // `inverse` is rounded as it should be (Markstein 1990); a division would be a call, and spill registers.
    INLINE double exponent(float logit) const {
        const float below = logit - max;
        if (below < of_bits(LOWEST)) return double(below);
        const double x = double(below);
        double quotient = x * inverse;
        quotient = fma(fma(-quotient, temperature, x), inverse, quotient);
        return fma(fma(-quotient, temperature, x), inverse, quotient);
    }
    INLINE double weight(float logit) const { return exponential(exponent(logit), powers); }

    // A logit that is surely not above those with a weight of e^exponent. It only bounds who is looked at, so that neither
    // the last bits of a logarithm nor those of this show: what is below by 0.001 or a millionth is more than they take.
    INLINE float floor(double exponent) const {
        const double exact = double(max) + temperature * (exponent - 1e-3);
        const float low = float(exact - fabs(exact) * 1e-6), lowest = of_bits(LOWEST);
        return low > lowest ? low : lowest;
    }
};

// ---- keys: as src/sample/filters.rs

// Sorts by falling logit, then by rising id.
INLINE uint64_t key_of(float logit, uint32_t id) {
    const uint32_t bits = bits_of(logit + 0.0f);  // 0 for -0
    const uint32_t rising = bits >> 31 ? ~bits : bits | 0x80000000u;
    return uint64_t(~rising) << 32 | id;
}

INLINE float logit_of(uint64_t key) {
    const uint32_t rising = ~uint32_t(key >> 32);
    return of_bits(rising >> 31 ? rising & 0x7fffffffu : ~rising);
}

// ---- what a block does together; each ends with a barrier

INLINE void begin(Shared &s) {
    for (uint32_t i = threadIdx.x; i < 64; i += blockDim.x) s.powers[i] = POWERS[i];
    __syncthreads();
}

// What the first thread has.
INLINE double shared_number(Shared &s, double number) {
    if (threadIdx.x == 0) s.number = number;
    __syncthreads();
    number = s.number;
    __syncthreads();
    return number;
}

INLINE uint32_t shared_index(Shared &s, uint32_t index) {
    if (threadIdx.x == 0) s.index = index;
    __syncthreads();
    index = s.index;
    __syncthreads();
    return index;
}

struct Seen {
    float mine;      // the largest logit that this thread saw
    float max;       // of all
    uint32_t first;  // the first that has it; NONE if all are banned
    bool finite;
};

INLINE Seen scan(Shared &s, const float *row, uint32_t vocab) {
    float best = of_bits(BANNED);
    uint32_t at = NONE, strange = 0;
#pragma unroll 4
    for (uint32_t id = threadIdx.x; id < vocab; id += blockDim.x) {
        const float logit = row[id];
        strange |= (bits_of(logit) & 0x7f800000u) == 0x7f800000u;
        if (logit > best) {
            best = logit;
            at = id;
        }
    }
    const float mine = best;
    for (unsigned mask = 16; mask > 0; mask /= 2) {
        const float other = __shfl_xor_sync(ALL, best, mask);
        const uint32_t there = __shfl_xor_sync(ALL, at, mask);
        strange |= __shfl_xor_sync(ALL, strange, mask);
        if (other > best || (other == best && there < at)) {
            best = other;
            at = there;
        }
    }
    if (threadIdx.x % 32 == 0) {
        const uint32_t warp = threadIdx.x / 32;
        s.best[warp] = best;
        s.at[warp] = at;
        s.strange[warp] = strange;
    }
    __syncthreads();
    for (uint32_t warp = 0; warp < blockDim.x / 32; warp++) {
        strange |= s.strange[warp];
        if (s.best[warp] > best || (s.best[warp] == best && s.at[warp] < at)) {
            best = s.best[warp];
            at = s.at[warp];
        }
    }
    __syncthreads();
    return {mine, best, at, strange == 0};
}

// The first thread goes through `count` numbers in order, until `step` says that this was enough.
template <typename Value, typename Step>
INLINE void walk(Shared &s, uint32_t count, const Value &value, const Step &step) {
    for (uint32_t base = 0; base < count; base += NEAR) {
        const uint32_t here = count - base < NEAR ? count - base : NEAR;
        for (uint32_t i = threadIdx.x; i < here; i += blockDim.x) s.weights[i] = value(base + i, i);
        __syncthreads();
        if (threadIdx.x == 0) {
            uint32_t i = 0;
            while (i < here && !step(base + i, i, s.weights[i])) i++;
            s.stop = i < here;
        }
        __syncthreads();
        if (s.stop) break;
    }
    __syncthreads();
}

// Where the sum of `count` weights first reaches `wanted`; `count` if it does not.
template <typename Value>
INLINE uint32_t reach(Shared &s, uint32_t count, double wanted, const Value &value) {
    double sum = 0.0;
    uint32_t at = count;
    walk(s, count, value, [&](uint32_t i, uint32_t, double weight) {
        sum += weight;
        if (!(sum >= wanted)) return false;
        at = i;
        return true;
    });
    return shared_index(s, at);
}

template <typename Value> INLINE double sum_of(Shared &s, uint32_t count, const Value &value) {
    double sum = 0.0;
    walk(s, count, value, [&](uint32_t, uint32_t, double weight) {
        sum += weight;
        return false;
    });
    return shared_number(s, sum);
}

// The sums of groups of weights, into `sums`; and the sum of those.
INLINE double total_of(Shared &s, const float *row, uint32_t vocab, const Scale &scale, double *sums) {
    const uint32_t groups = (vocab + GROUP - 1) / GROUP, half = threadIdx.x / LANES % 2, lane = threadIdx.x % LANES;
    for (uint32_t pair = threadIdx.x / 32; 2 * pair < groups; pair += blockDim.x / 32) {
        const uint32_t group = 2 * pair + half;
        double mine = 0.0, sum = 0.0;
        for (uint32_t i = lane; i < GROUP; i += LANES) {
            const uint32_t id = group * GROUP + i;
            mine += id < vocab ? scale.weight(row[id]) : 0.0;
        }
        for (uint32_t i = 0; i < LANES; i++) sum += __shfl_sync(ALL, mine, half * LANES + i);
        if (lane == 0 && group < groups) sums[group] = sum;
    }
    __syncthreads();
    return sum_of(s, groups, [&](uint32_t i, uint32_t) { return sums[i]; });
}

// Exchanges keys that are `flip` apart where the first is larger: one step of a bitonic sort whose comparisons all point
// the same way (Batcher 1968), so that keys behind the end need not be there.
INLINE void exchange(uint64_t *keys, uint32_t count, uint32_t stride, uint32_t flip) {
    const uint32_t pairs = (count + 2 * stride - 1) / (2 * stride) * stride;
    for (uint32_t i = threadIdx.x; i < pairs; i += blockDim.x) {
        const uint32_t low = 2 * i - (i & (stride - 1)), high = low ^ flip;
        if (high < count) {
            const uint64_t a = keys[low], b = keys[high];
            if (a > b) {
                keys[low] = b;
                keys[high] = a;
            }
        }
    }
    __syncthreads();
}

INLINE void sort(uint64_t *keys, uint32_t count) {
    for (uint32_t half = 1; half < count; half *= 2) {
        exchange(keys, count, half, 2 * half - 1);
        for (uint32_t stride = half / 2; stride > 0; stride /= 2) exchange(keys, count, stride, stride);
    }
}

// The same of keys outside shared memory: steps that stay within NEAR keys are done inside it.
INLINE void sort_far(Shared &s, uint64_t *keys, uint32_t count) {
    for (uint32_t half = NEAR / 2; half < count; half *= 2) {
        if (half >= NEAR) {
            exchange(keys, count, half, 2 * half - 1);
            for (uint32_t stride = half / 2; stride >= NEAR; stride /= 2) exchange(keys, count, stride, stride);
        }
        for (uint32_t base = 0; base < count; base += NEAR) {
            const uint32_t here = count - base < NEAR ? count - base : NEAR;
            for (uint32_t i = threadIdx.x; i < here; i += blockDim.x) s.keys[i] = keys[base + i];
            __syncthreads();
            if (half < NEAR)
                sort(s.keys, here);
            else
                for (uint32_t stride = NEAR / 2; stride > 0; stride /= 2) exchange(s.keys, here, stride, stride);
            for (uint32_t i = threadIdx.x; i < here; i += blockDim.x) keys[base + i] = s.keys[i];
            __syncthreads();
        }
    }
}

// A logit that is not above the `count`-th largest: the threads' largest ones are that many, and of different tokens.
INLINE float floor_of(Shared &s, float mine, uint32_t count) {
    const float lowest = of_bits(LOWEST);
    if (count > blockDim.x) return lowest;
    s.keys[threadIdx.x] = key_of(mine, threadIdx.x);
    __syncthreads();
    sort(s.keys, blockDim.x);
    const float floor = logit_of(s.keys[count - 1]);
    __syncthreads();
    return floor > lowest ? floor : lowest;
}

// The keys of all logits from `floor` on, in any order; the first NEAR of them in shared memory too.
INLINE uint32_t collect(Shared &s, const float *row, uint32_t vocab, float floor, uint64_t *keys) {
    if (threadIdx.x == 0) s.count = 0;
    __syncthreads();
#pragma unroll 4
    for (uint32_t id = threadIdx.x; id < vocab; id += blockDim.x) {
        const float logit = row[id];
        if (logit >= floor) {
            const uint32_t at = atomicAdd(&s.count, 1u);
            const uint64_t key = key_of(logit, id);
            keys[at] = key;
            if (at < NEAR) s.keys[at] = key;
        }
    }
    __syncthreads();
    const uint32_t count = s.count;
    __syncthreads();
    return count;
}

// Of more than NEAR keys one below which there are at most NEAR, and at least half of that: digit by digit, from the first
// in which any differ.
INLINE uint64_t bound_of(Shared &s, const uint64_t *keys, uint32_t count) {
    const uint64_t any = keys[0];
    uint64_t spread = 0;
    for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) spread |= keys[i] ^ any;
    if (threadIdx.x < 2) s.spread[threadIdx.x] = 0;
    __syncthreads();
    atomicOr(&s.spread[0], uint32_t(spread));
    atomicOr(&s.spread[1], uint32_t(spread >> 32));
    __syncthreads();
    spread = uint64_t(s.spread[1]) << 32 | s.spread[0];
    uint32_t above = 63;  // the last bit that is not known yet
    while (above > 7 && spread >> above == 0) above--;
    uint64_t bound = above == 63 ? 0 : any >> above >> 1 << 1 << above;
    for (uint32_t below = 0;;) {
        const uint32_t shift = above > 7 ? above - 7 : 0;
        for (uint32_t i = threadIdx.x; i < 256; i += blockDim.x) s.bins[i] = 0;
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) {
            const uint64_t key = keys[i];
            if ((key ^ bound) >> above >> 1 == 0) atomicAdd(&s.bins[key >> shift & 255], 1u);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            uint32_t digit = 0;
            while (below + s.bins[digit] <= NEAR) below += s.bins[digit++];
            s.index = digit;
            s.count = below;
        }
        __syncthreads();
        below = s.count;
        bound |= uint64_t(s.index) << shift;
        __syncthreads();
        if (below >= NEAR / 2 || shift == 0) return bound;
        above = shift - 1;
    }
}

// Sorts the first of `count` keys into shared memory, where they are already if they fit; returns how many.
INLINE uint32_t first_of(Shared &s, const uint64_t *keys, uint32_t count) {
    if (count > NEAR) {
        const uint64_t bound = bound_of(s, keys, count);
        if (threadIdx.x == 0) s.count = 0;
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) {
            const uint64_t key = keys[i];
            if (key < bound) s.keys[atomicAdd(&s.count, 1u)] = key;
        }
        __syncthreads();
        count = s.count;
        __syncthreads();
    }
    sort(s.keys, count);
    return count;
}

// ---- kernels

// Blocks: questions. What comes before the temperature: as `change` in src/sample/mod.rs.
KERNEL(adjust, 512, SampleArgs) {
    const SampleQuery &q = a.queries[blockIdx.x];
    if (!(q.flags & CHANGED)) return;
    const float *from = a.logits + size_t(q.row) * a.stride;
    float *row = a.rows + size_t(blockIdx.x) * a.vocab;
    const float banned = of_bits(BANNED);
    for (uint32_t id = threadIdx.x; id < a.vocab; id += blockDim.x) row[id] = from[id];
    // An id may come twice, in order: so each thread goes through the list for its own ids.
    for (uint32_t i = 0; i < q.biases; i++) {
        const uint32_t id = a.lists[q.bias + 2 * i];
        const float value = of_bits(a.lists[q.bias + 2 * i + 1]);
        if (id % blockDim.x == threadIdx.x) row[id] = value <= -100.0f ? banned : row[id] + value;
    }
    if (q.flags & MASKED)
        for (uint32_t id = threadIdx.x; id < a.vocab; id += blockDim.x) {
            const uint32_t word = id / 32 < q.words ? a.lists[q.mask + id / 32] : 0;
            if (!(word >> id % 32 & 1)) row[id] = banned;
        }
    __syncthreads();
    const float lowest = of_bits(LOWEST), highest = -lowest;
    for (uint32_t i = threadIdx.x; i < q.seens; i += blockDim.x) {  // each id once
        const uint32_t id = a.lists[q.seen + 2 * i], times = a.lists[q.seen + 2 * i + 1];
        const float logit = row[id];
        if (logit == banned) continue;
        float value = logit < 0.0f ? logit * q.repetition : logit / q.repetition;
        if (times > 0) {
            value -= q.frequency * float(times);
            value -= q.presence;
        }
        row[id] = value < lowest ? lowest : value > highest ? highest : value;
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < q.repeats; i += blockDim.x) {  // each id once
        const uint32_t id = a.lists[q.repeat + 3 * i];
        const uint64_t bits = uint64_t(a.lists[q.repeat + 3 * i + 2]) << 32 | a.lists[q.repeat + 3 * i + 1];
        double penalty;
        memcpy(&penalty, &bits, 8);
        if (row[id] == banned) continue;
        const float value = float(double(row[id]) - penalty);
        row[id] = value < lowest ? lowest : value > highest ? highest : value;
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < q.bans; i += blockDim.x) row[a.lists[q.ban + i]] = banned;
}

// A draw from all tokens: as Scale::draw.
INLINE uint32_t draw_of_all(Shared &s, const float *row, uint32_t vocab, const Scale &scale, double draw,
                            double *sums) {
    double left = draw * total_of(s, row, vocab, scale, sums);
    uint32_t group = NONE;
    walk(s, (vocab + GROUP - 1) / GROUP, [&](uint32_t i, uint32_t) { return sums[i]; },
         [&](uint32_t i, uint32_t, double sum) {
             if (left < sum) {
                 group = i;
                 return true;
             }
             left -= sum;
             return false;
         });
    group = shared_index(s, group);
    if (group != NONE) {
        const uint32_t first = group * GROUP, rest = vocab - first;
        uint32_t last = 0;
        walk(s, rest < GROUP ? rest : GROUP, [&](uint32_t i, uint32_t) { return scale.weight(row[first + i]); },
             [&](uint32_t i, uint32_t, double weight) {
                 left -= weight;
                 if (weight > 0.0) last = i;
                 return left < 0.0;
             });
        return shared_index(s, first + last);
    }
    // Rounding may leave a trace of the sum: it belongs to the last token that has any weight.
    if (threadIdx.x == 0) s.count = 0;
    __syncthreads();
    for (uint32_t id = threadIdx.x; id < vocab; id += blockDim.x)
        if (scale.weight(row[id]) > 0.0) atomicMax(&s.count, id);
    __syncthreads();
    return s.count;
}

// What filters kept: `count` sorted keys.
struct FilteredRow {
    uint64_t *keys;
    uint32_t count;
};

// top-k, top-p, min-p: as Filters::keep. Each keeps a part of the front; what was sorted is enough if the last filter cut
// inside it. Without any of them all keys are left, in no order.
INLINE FilteredRow keep(Shared &s, const float *row, uint32_t vocab, const SampleQuery &q, const Scale &scale, float mine,
                 uint64_t *keys) {
    const bool by_top_k = q.top_k > 0 && q.top_k < vocab, by_top_p = q.top_p < 1.0f, by_min_p = q.min_p > 0.0f;
    float floor = of_bits(LOWEST);
    double wanted = 0.0;
    if (by_top_k) {
        floor = floor_of(s, mine, q.top_k);
    } else if (by_top_p) {
        const double total = total_of(s, row, vocab, scale, (double *)keys);
        wanted = double(q.top_p) * total;
        floor = scale.floor(q.least + double(logf(float(total))));
    } else if (by_min_p) {
        floor = scale.floor(q.least);
    }
    const uint32_t count = collect(s, row, vocab, floor, keys);
    if (!by_top_k && !by_top_p && !by_min_p) return {count > NEAR ? keys : s.keys, count};
    uint32_t there = first_of(s, keys, count);
    uint64_t *sorted = s.keys;
    for (;;) {
        auto weight = [&](uint32_t i, uint32_t) { return scale.weight(logit_of(sorted[i])); };
        uint32_t kept = there;
        bool cut = false;
        if (by_top_k && kept >= q.top_k) {
            kept = q.top_k;
            cut = true;
        }
        if (by_top_p && (!by_top_k || cut || there == count)) {
            if (by_top_k) wanted = double(q.top_p) * sum_of(s, kept, weight);
            const uint32_t at = reach(s, kept, wanted, weight);
            if (at < kept) {
                kept = at + 1;
                cut = true;
            }
        }
        if (by_min_p && (!by_top_k || cut || there == count)) {
            uint32_t low = 0, high = kept;
            while (low < high) {
                const uint32_t middle = (low + high) / 2;
                if (weight(middle, 0) >= double(q.min_p))
                    low = middle + 1;
                else
                    high = middle;
            }
            cut |= low < kept;
            kept = low;
        }
        if (cut || there == count) return {sorted, kept};
        sort_far(s, keys, count);
        sorted = keys;
        there = count;
    }
}

// typical-p: as `typical` in src/sample/filters.rs. `sorted` is whether the keys are; else all are there, and sums run over
// the row.
INLINE FilteredRow typical(Shared &s, const float *row, uint32_t vocab, float mass, const Scale &scale, FilteredRow from, bool sorted,
                    uint64_t *keys) {
    double total = 0.0, moment = 0.0;
    walk(s, sorted ? from.count : vocab,
         [&](uint32_t i, uint32_t slot) {
             const float logit = sorted ? logit_of(from.keys[i]) : row[i];
             const double weight = scale.weight(logit);
             s.products[slot] = weight > 0.0 ? weight * scale.exponent(logit) : 0.0;
             return weight;
         },
         [&](uint32_t, uint32_t slot, double weight) {
             total += weight;
             moment += s.products[slot];
             return false;
         });
    total = shared_number(s, total);
    const double expected = shared_number(s, moment) / total;
    uint64_t *to = from.count > NEAR ? keys : s.keys;
    for (uint32_t i = threadIdx.x; i < from.count; i += blockDim.x) {
        const uint64_t key = from.keys[i];
        const float distance = float(fabs(scale.exponent(logit_of(key)) - expected));
        to[i] = uint64_t(bits_of(distance)) << 32 | uint32_t(key);
    }
    __syncthreads();
    uint32_t there = first_of(s, keys, from.count), kept;
    to = s.keys;
    for (;;) {
        kept = reach(s, there, double(mass) * total,
                     [&](uint32_t i, uint32_t) { return scale.weight(row[uint32_t(to[i])]); });
        if (kept < there) {
            kept++;
            break;
        }
        if (there == from.count) break;
        sort_far(s, keys, from.count);
        to = keys;
        there = from.count;
    }
    for (uint32_t i = threadIdx.x; i < kept; i += blockDim.x) {
        const uint32_t id = uint32_t(to[i]);
        to[i] = key_of(row[id], id);
    }
    __syncthreads();
    if (to == keys)
        sort_far(s, keys, kept);
    else
        sort(s.keys, kept);
    return {to, kept};
}

// Blocks: questions. Looks whether the model's logits are finite, and chooses a token.
KERNEL(sample_tokens, 512, SampleArgs) {
    SHARED(shared);
    Shared &s = *(Shared *)shared;
    const SampleQuery &q = a.queries[blockIdx.x];
    Answer &answer = a.answers[blockIdx.x];
    uint64_t *keys = a.keys + size_t(blockIdx.x) * a.vocab;
    const float *row = a.logits + size_t(q.row) * a.stride;
    begin(s);
    Seen seen = scan(s, row, a.vocab);
    uint32_t status = seen.finite ? CHOSEN : NOT_FINITE, token = 0;
    if (seen.finite && (q.flags & GIVEN)) token = q.given;
    if (seen.finite && !(q.flags & GIVEN)) {
        if (q.flags & CHANGED) {
            row = a.rows + size_t(blockIdx.x) * a.vocab;
            seen = scan(s, row, a.vocab);
        }
        const bool by_typical = q.typical_p < 1.0f;
        const bool sorted = (q.top_k > 0 && q.top_k < a.vocab) || q.top_p < 1.0f || q.min_p > 0.0f;
        const Scale scale = {seen.max, double(q.temperature), q.inverse, s.powers};
        if (seen.first == NONE) {
            status = NO_TOKEN;
        } else if (q.temperature == 0.0f) {
            token = seen.first;
        } else if (!sorted && !by_typical) {
            token = draw_of_all(s, row, a.vocab, scale, q.draw, (double *)keys);
        } else {
            FilteredRow kept = keep(s, row, a.vocab, q, scale, seen.mine, keys);
            if (by_typical) kept = typical(s, row, a.vocab, q.typical_p, scale, kept, sorted, keys);
            auto weight = [&](uint32_t i, uint32_t) { return scale.weight(logit_of(kept.keys[i])); };
            double left = q.draw * sum_of(s, kept.count, weight);
            // Rounding may leave a trace of the sum: it belongs to the last token that has any weight.
            walk(s, kept.count, weight, [&](uint32_t i, uint32_t, double weight) {
                left -= weight;
                if (weight > 0.0) token = uint32_t(kept.keys[i]);
                return left < 0.0;
            });
        }
    }
    if (threadIdx.x == 0) {
        answer.status = status;
        answer.token = token;
    }
}

// Blocks: questions. What the model thought of the token: as Sampler::logprobs; the logarithm is the host's.
KERNEL(rate, 512, SampleArgs) {
    SHARED(shared);
    Shared &s = *(Shared *)shared;
    const SampleQuery &q = a.queries[blockIdx.x];
    Answer &answer = a.answers[blockIdx.x];
    if (!(q.flags & LOGPROBS) || answer.status != CHOSEN) return;
    uint64_t *keys = a.keys + size_t(blockIdx.x) * a.vocab;
    const float *row = a.logits + size_t(q.row) * a.stride;
    const uint32_t token = answer.token;
    const float own = row[token];
    begin(s);
    const Seen seen = scan(s, row, a.vocab);
    const double total = total_of(s, row, a.vocab, Scale{seen.max, 1.0, 1.0, s.powers}, (double *)keys);
    if (threadIdx.x == 0) s.count = 0;
    __syncthreads();
    uint32_t before = 0;
    for (uint32_t id = threadIdx.x; id < a.vocab; id += blockDim.x)
        before += row[id] > own || (row[id] == own && id < token);
    atomicAdd(&s.count, before);
    __syncthreads();
    if (threadIdx.x == 0) {
        answer.max = seen.max;
        answer.own = own;
        answer.total = total;
        answer.rank = 1 + s.count;
    }
    __syncthreads();
    const uint32_t count = q.top < a.vocab ? q.top : a.vocab;
    if (threadIdx.x == 0) answer.count = count;
    if (count == 0) return;
    first_of(s, keys, collect(s, row, a.vocab, floor_of(s, seen.mine, count), keys));
    for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) {
        answer.top[2 * i] = uint32_t(s.keys[i]);
        answer.top[2 * i + 1] = bits_of(logit_of(s.keys[i]));
    }
}
