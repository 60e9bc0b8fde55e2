// What an MLP does to the values of its first product, as backend::Activation.
#pragma once

#include "common.cuh"

struct Activation {
    uint32_t kind;
    float alpha, limit;  // of CLAMPED
};

enum ActivationKind : uint32_t {
    SILU = 0,
    GELU = 1,
    GELU_TANH = 2,
    RELU = 3,
    RELU_SQUARED = 4,
    TANH = 5,
    CLAMPED = 6
};

INLINE float activate(Activation of, float x) {
    switch (of.kind) {
        case SILU:
            return x / (1.0f + expf(-x));
        case GELU:
            return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
        case GELU_TANH:
            return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
        case RELU:
            return x > 0.0f || x != x ? x : 0.0f;
        case RELU_SQUARED:
            return x > 0.0f || x != x ? x * x : 0.0f;
        case TANH:
            return tanhf(x);
        default: {
            float bounded = x > of.limit ? of.limit : x;
            return bounded / (1.0f + expf(-of.alpha * bounded));
        }
    }
}

// activation(gate) * up
INLINE float gated(Activation of, float gate, float up) {
    if (of.kind == CLAMPED) {
        float above = up < -of.limit ? -of.limit : up;
        up = (above > of.limit ? of.limit : above) + 1.0f;
    }
    return activate(of, gate) * up;
}
