// Work on rows, one value after another: embedding, norms, activations, residuals, copies. Bound by memory; a row's sums
// run in an order that its length alone decides.
#include "activation.cuh"
#include "matrix.cuh"

struct EmbedArgs {
    Matrix table;
    const uint32_t *ids;
    float *out;
    uint32_t cols, out_stride;  // in floats
    float scale;
    uint32_t add;
};

// Blocks: tokens.
KERNEL(embed, 256, EmbedArgs) {
    uint32_t id = a.ids[blockIdx.x];
    float *out = a.out + size_t(blockIdx.x) * a.out_stride;
    for (uint32_t col = threadIdx.x; col < a.cols; col += blockDim.x) {
        float value = value_at(a.table, id, col) * a.scale;
        out[col] = a.add ? out[col] + value : value;
    }
}

struct NormArgs {
    const float *x;
    const float *weight, *bias;  // or none
    uint8_t *out;
    uint32_t x_stride, width, pieces;  // values of a piece, pieces of a row
    uint32_t weight_len, bias_len;
    uint32_t kind;  // 0: none, 1: RMS, 2: layer
    float eps;
    uint32_t add;         // to what is there, times `scale`
    uint32_t out_stride;  // bytes
    uint32_t out_form;    // operands are padded with zeros
    uint32_t pad;
    float scale;
};

// Blocks: (rows, pieces).
KERNEL(norm, 1024, NormArgs) {
    SHARED(shared);
    float *partial = (float *)shared;
    uint32_t first = blockIdx.y * a.width;
    const float *x = a.x + size_t(blockIdx.x) * a.x_stride + first;
    float centre = 0.0f, factor = 1.0f;
    if (a.kind == 2) {
        float sum = 0.0f;
        for (uint32_t i = threadIdx.x; i < a.width; i += blockDim.x) sum += x[i];
        centre = block_sum(sum, partial) / float(a.width);
    }
    if (a.kind != 0) {
        float squares = 0.0f;
        for (uint32_t i = threadIdx.x; i < a.width; i += blockDim.x) {
            float value = x[i] - centre;
            squares = fmaf(value, value, squares);
        }
        factor = 1.0f / sqrtf(block_sum(squares, partial) / float(a.width) + a.eps);
    }
    uint8_t *out = a.out + size_t(blockIdx.x) * a.out_stride;
    for (uint32_t i = threadIdx.x; i < a.width; i += blockDim.x) {
        uint32_t col = first + i;
        float value = (x[i] - centre) * factor;
        if (a.weight != nullptr) value *= a.weight[col % a.weight_len];
        if (a.bias != nullptr) value += a.bias[col % a.bias_len];
        if (a.add) value = fmaf(value, a.scale, ((const float *)out)[col]);
        write_operand(a.out_form, out, col, value);
    }
    for (uint32_t col = a.width + threadIdx.x; a.pad && col < (a.width + 31) / 32 * 32; col += blockDim.x)
        write_operand(a.out_form, out, col, 0.0f);
}

struct ActAndMulArgs {
    const float *gate, *up;  // `up` or none
    uint8_t *out;
    uint32_t cols, gate_stride, up_stride;  // floats
    uint32_t out_stride, out_form;
    Activation activation;
};

// Blocks: rows.
KERNEL(act_and_mul, 256, ActAndMulArgs) {
    const float *gate = a.gate + size_t(blockIdx.x) * a.gate_stride;
    uint8_t *out = a.out + size_t(blockIdx.x) * a.out_stride;
    for (uint32_t col = threadIdx.x; col < (a.cols + 31) / 32 * 32; col += blockDim.x) {
        float value = 0.0f;
        if (col < a.cols) {
            value = a.up == nullptr ? activate(a.activation, gate[col])
                                    : gated(a.activation, gate[col], a.up[size_t(blockIdx.x) * a.up_stride + col]);
        }
        write_operand(a.out_form, out, col, value);
    }
}

struct PointArgs {
    float *x;
    uint32_t cols, stride;
    uint32_t kind;  // 0: activate, 1: scale, 2: scale and soft cap, 3: scale and bounds
    float scale, cap;
    Activation activation;
};

// Blocks: rows.
KERNEL(point, 256, PointArgs) {
    float *x = a.x + size_t(blockIdx.x) * a.stride;
    for (uint32_t col = threadIdx.x; col < a.cols; col += blockDim.x) {
        float value = x[col];
        if (a.kind == 0) {
            value = activate(a.activation, value);
        } else {
            value *= a.scale;
            if (a.kind == 2) value = a.cap * tanhf(value / a.cap);
            if (a.kind == 3) value = value < -a.cap ? -a.cap : value > a.cap ? a.cap : value;
        }
        x[col] = value;
    }
}

struct MoeCombineArgs {
    const float *from;
    const uint32_t *places;  // or none: each row its own
    const float *weights;
    float *out;
    uint32_t cols, from_stride, out_stride, count;
    uint32_t weights_stride, places_stride;
    uint32_t sigmoid, add;
    float scale;
};

// Blocks: rows. Sums in the order of the choice.
KERNEL(moe_combine, 256, MoeCombineArgs) {
    uint32_t row = blockIdx.x;
    float *out = a.out + size_t(row) * a.out_stride;
    for (uint32_t col = threadIdx.x; col < a.cols; col += blockDim.x) {
        float sum = 0.0f;
        for (uint32_t slot = 0; slot < a.count; slot++) {
            uint32_t place = a.places == nullptr ? row : a.places[size_t(row) * a.places_stride + slot];
            float weight = a.weights[size_t(row) * a.weights_stride + slot];
            if (a.sigmoid) weight = 1.0f / (1.0f + expf(-weight));
            sum = fmaf(a.from[size_t(place) * a.from_stride + col], weight, sum);
        }
        out[col] = a.add ? fmaf(sum, a.scale, out[col]) : sum;
    }
}

struct CopyArgs {
    const float *x;
    const uint32_t *rows;  // of x, or none: each its own
    float *out;
    uint32_t cols, x_stride, out_stride, out_first;
};

// Blocks: rows of `out`.
KERNEL(copy_rows, 256, CopyArgs) {
    uint32_t from = a.rows == nullptr ? blockIdx.x : a.rows[blockIdx.x];
    const float *x = a.x + size_t(from) * a.x_stride;
    float *out = a.out + size_t(blockIdx.x) * a.out_stride + a.out_first;
    for (uint32_t col = threadIdx.x; col < a.cols; col += blockDim.x) out[col] = x[col];
}

struct CutArgs {
    const float *x;
    uint8_t *pieces;
    float *out;
    uint32_t rows, from, to, ins;  // values of a head in x, in out, and those that are multiplied
    uint32_t x_stride, out_stride;
    uint32_t pieces_stride, pieces_form;
};

// Blocks: (rows, heads). What is multiplied becomes an operand, (heads, rows) of them; the rest is copied.
KERNEL(cut, 128, CutArgs) {
    uint32_t row = blockIdx.x, head = blockIdx.y;
    const float *x = a.x + size_t(row) * a.x_stride + size_t(head) * a.from;
    uint8_t *piece = a.pieces + (size_t(head) * a.rows + row) * a.pieces_stride;
    float *out = a.out + size_t(row) * a.out_stride + size_t(head) * a.to;
    for (uint32_t i = threadIdx.x; i < (a.ins + 31) / 32 * 32; i += blockDim.x)
        write_operand(a.pieces_form, piece, i, i < a.ins ? x[i] : 0.0f);
    for (uint32_t i = threadIdx.x; i < a.from - a.ins; i += blockDim.x) out[i] = x[a.ins + i];
}

struct OrderArgs {
    const uint8_t *x;
    const uint32_t *places, *starts;
    uint8_t *out;
    unsigned long long *read_bytes;  // of weights, by the experts that have tokens
    uint64_t bytes_each;
    uint32_t row_bytes, count, places_stride, experts;
};

// Blocks: (tokens, choices). Copies each token to its experts' rows.
KERNEL(order, 128, OrderArgs) {
    uint32_t row = blockIdx.x, slot = blockIdx.y;
    const uint32_t *from = (const uint32_t *)(a.x + size_t(row) * a.row_bytes);
    uint32_t place = a.places[size_t(row) * a.places_stride + slot];
    uint32_t *to = (uint32_t *)(a.out + size_t(place) * a.row_bytes);
    for (uint32_t i = threadIdx.x; i < a.row_bytes / 4; i += blockDim.x) to[i] = from[i];
    if (row == 0 && slot == 0 && threadIdx.x == 0) {
        uint64_t used = 0;
        for (uint32_t e = 0; e < a.experts; e++) used += a.starts[e + 1] > a.starts[e];
        *a.read_bytes += used * a.bytes_each;
    }
}

struct PoolArgs {
    const float *x;
    const uint32_t *texts;  // first row and the one behind the last of each
    float *out;
    uint32_t cols, x_stride, out_stride;
    uint32_t kind;  // 0: first, 1: last, 2: mean, 3: mean over root, 4: largest, 5: weighted
    uint32_t from;
};

// Blocks: texts. Sums run over the rows in order.
KERNEL(pool, 256, PoolArgs) {
    uint32_t first = a.texts[2 * blockIdx.x], end = a.texts[2 * blockIdx.x + 1];
    for (uint32_t col = threadIdx.x; col < a.cols; col += blockDim.x) {
        auto value = [&](uint32_t row) { return a.x[size_t(row) * a.x_stride + col]; };
        float result = value(a.kind == 1 ? end - 1 : first);
        if (a.kind >= 2) {
            float weights = 0.0f, sum = 0.0f;
            for (uint32_t row = first; row < end; row++) {
                float weight = a.kind == 5 ? float(a.from + row - first) : 1.0f;
                weights += weight;
                if (a.kind == 4)
                    result = larger(result, value(row));
                else
                    sum += value(row) * weight;
            }
            if (a.kind == 2 || a.kind == 5) result = sum / weights;
            if (a.kind == 3) result = sum / sqrtf(weights);
        }
        a.out[size_t(blockIdx.x) * a.out_stride + col] = result;
    }
}
