//! Nothing but tests: see `tests/models/candle.rs`.
