//! Nothing but tests: see `tests/candle.rs`.
