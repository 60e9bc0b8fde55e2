// Which experts a token goes to: as src/backend/cpu/route.rs.
#include "common.cuh"

enum Scoring : uint32_t { SOFTMAX = 0, CHOSEN = 1, SIGMOID = 2, MIXER = 3 };

struct RouteArgs {
    float *scores;
    const float *correction;  // or none
    uint32_t *experts;
    float *weights;
    uint32_t all, per_token;
    uint32_t scoring, normalized;
    uint32_t groups, chosen_groups, best_of_group;  // one group: all are in it
    float scale, jitter;
};

// The larger value, of equals the first.
INLINE void better(float &value, uint32_t &index, float other, uint32_t at) {
    if (at != NONE && (index == NONE || other > value || (!(value > other) && at < index))) {
        value = other;
        index = at;
    }
}

INLINE uint32_t best_of_warp(float value, uint32_t index) {
    for (unsigned mask = 16; mask > 0; mask /= 2) {
        float other = __shfl_xor_sync(ALL, value, mask);
        uint32_t at = __shfl_xor_sync(ALL, index, mask);
        better(value, index, other, at);
    }
    return index;
}

// Of experts `from` to `end` the best that is not taken.
INLINE uint32_t best(const RouteArgs &a, const float *scores, const uint32_t *taken, uint32_t from, uint32_t end,
                     uint32_t lane) {
    float value = 0.0f;
    uint32_t index = NONE;
    for (uint32_t e = from + lane; e < end; e += 32)
        if (!taken[e]) better(value, index, scores[e] + (a.correction == nullptr ? 0.0f : a.correction[e]), e);
    return best_of_warp(value, index);
}

// Blocks: tokens, a warp each. Shared: a score and a mark for each expert, a sum for each group.
KERNEL(route, 32, RouteArgs) {
    SHARED(shared);
    float *scores = (float *)shared;
    uint32_t *taken = (uint32_t *)(scores + a.all);
    float *sums = (float *)(taken + a.all);
    const uint32_t lane = threadIdx.x, row = blockIdx.x;
    float *given = a.scores + size_t(row) * a.all;
    float most = 0.0f, sum = 0.0f;
    uint32_t seen = NONE;
    for (uint32_t e = lane; e < a.all; e += 32) {
        better(most, seen, given[e], e);
        taken[e] = 0;
    }
    most = given[best_of_warp(most, seen)];
    for (uint32_t e = lane; e < a.all; e += 32) {
        float score = given[e];
        if (a.scoring == SOFTMAX) score = expf(score - most);
        if (a.scoring == SIGMOID) score = 1.0f / (1.0f + expf(-score));
        sum += score;
        scores[e] = score;
    }
    if (a.scoring == SOFTMAX) {
        sum = warp_sum(sum);
        for (uint32_t e = lane; e < a.all; e += 32) scores[e] /= sum;
    }
    __syncwarp();
    if (a.groups > 1) {
        const uint32_t size = a.all / a.groups;
        for (uint32_t group = 0; group < a.groups; group++) {
            float total = 0.0f;
            uint32_t before = NONE;
            for (uint32_t i = 0; i < a.best_of_group; i++) {
                uint32_t next = best(a, scores, taken, group * size, (group + 1) * size, lane);
                total += scores[next] + (a.correction == nullptr ? 0.0f : a.correction[next]);
                __syncwarp();
                if (lane == 0) taken[next] = 1;
                __syncwarp();
                if (before != NONE && lane == 0) taken[before] = 0;
                before = next;
                __syncwarp();
            }
            if (lane == 0) {
                taken[before] = 0;
                sums[group] = total;
            }
            __syncwarp();
        }
        uint64_t open = 0;  // at most 64 groups
        for (uint32_t i = 0; i < a.chosen_groups; i++) {
            float value = 0.0f;
            uint32_t index = NONE;
            for (uint32_t group = lane; group < a.groups; group += 32)
                if (!(open >> group & 1)) better(value, index, sums[group], group);
            open |= 1ull << best_of_warp(value, index);
        }
        for (uint32_t e = lane; e < a.all; e += 32) taken[e] = !(open >> e / size & 1);
        __syncwarp();
    }
    uint32_t *experts = a.experts + size_t(row) * a.per_token;
    float *weights = a.weights + size_t(row) * a.per_token;
    for (uint32_t slot = 0; slot < a.per_token; slot++) {
        uint32_t chosen = best(a, scores, taken, 0, a.all, lane);
        float weight = scores[chosen];
        if (a.scoring == MIXER) {
            float rest = 0.0f, top = weight;
            for (uint32_t e = lane; e < a.all; e += 32) {
                float score = scores[e], size = fabsf(score);
                bool before = false;
                for (uint32_t i = 0; i < slot; i++) before |= experts[i] == e;
                float below = (top - score) / (size > top ? size : top);
                if (!before && !(below > 2.0f * a.jitter)) rest += expf(score - top);
            }
            weight = 1.0f / warp_sum(rest);
        }
        __syncwarp();
        if (lane == 0) {
            experts[slot] = chosen;
            weights[slot] = weight;
            taken[chosen] = 1;
        }
        __syncwarp();
    }
    if (lane == 0) {
        float total = 0.0f, top = weights[0];
        if (a.scoring == CHOSEN) {
            for (uint32_t i = 0; i < a.per_token; i++) top = larger(top, weights[i]);
            for (uint32_t i = 0; i < a.per_token; i++) total += weights[i] = expf(weights[i] - top);
            for (uint32_t i = 0; i < a.per_token; i++) weights[i] /= total;
        }
        total = 0.0f;
        for (uint32_t i = 0; i < a.per_token; i++) total += weights[i];
        for (uint32_t i = 0; i < a.per_token; i++)
            weights[i] = (a.normalized ? weights[i] / (total + 1e-20f) : weights[i]) * a.scale;
    }
}

struct PlaceArgs {
    const uint32_t *experts;
    uint32_t *places, *starts;
    uint32_t pairs, all;
};

// One block. Gives each pair of a token and an expert its row among those of the expert, in the order of the tokens.
KERNEL(place, 1024, PlaceArgs) {
    for (uint32_t e = threadIdx.x; e < a.all; e += blockDim.x) {
        uint32_t count = 0;
        for (uint32_t i = 0; i < a.pairs; i++) count += a.experts[i] == e;
        a.starts[e + 1] = count;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t start = 0;
        for (uint32_t e = 0; e < a.all; e++) {
            uint32_t count = a.starts[e + 1];
            a.starts[e] = start;
            start += count;
        }
        a.starts[a.all] = start;
    }
    __syncthreads();
    for (uint32_t e = threadIdx.x; e < a.all; e += blockDim.x) {
        uint32_t next = a.starts[e];
        for (uint32_t i = 0; i < a.pairs; i++)
            if (a.experts[i] == e) a.places[i] = next++;
    }
}
