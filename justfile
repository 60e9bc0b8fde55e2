# All checks, as CI runs them.
check:
    .ci/run

# Speed: the default model, the scrub, and a 0.5B checkpoint against the machine's read bandwidth.
bench:
    cargo bench -p amnesic-benches --bench generate
    cargo bench -p amnesic-benches --features testing --bench scrub
    cargo bench -p amnesic-benches --features testing --bench roofline

# Everything that needs a CUDA device, and speed beside other engines there (see docs/devices.md).
gpu:
    tools/gpu_check --bench

# Speed beside llama.cpp and candle, which it builds in the folder `work` (see benches/peers/README.md).
peers work:
    benches/peers/run.py --work {{work}}
