//! The table of architectures: what a `model_type` means. A new family is a row, its names and a fixture.
//!
//! [`schema`] has the types of a row. The rows are in three tables: [`dense`], [`moe`] and [`encoders`].

mod dense;
mod encoders;
mod moe;
mod schema;

pub use self::schema::{
    Bias, Causal, EmbedScale, Experts, Family, HeadNorm, HeadStep, Inner, KvHeads, LogitsScale,
    MixtureLayers, MixtureRow, Names, NormPlacement, Places, Qkv, RopeLayers, Scale, Score, Shared, Window,
};

/// All rows: the three tables, one behind the other.
pub const FAMILIES: &[Family] = &joined();

const fn joined() -> [Family; dense::TABLE.len() + moe::TABLE.len() + encoders::TABLE.len()] {
    let mut all = [dense::LLAMA; _];
    let tables = [dense::TABLE, moe::TABLE, encoders::TABLE];
    let (mut table, mut at) = (0, 0);
    // a const function has no iterators
    while table < tables.len() {
        let mut row = 0;
        while row < tables[table].len() {
            all[at] = tables[table][row];
            (row, at) = (row + 1, at + 1);
        }
        table += 1;
    }
    all
}

/// The row for `model_type`.
pub fn find(model_type: &str) -> Option<&'static Family> {
    FAMILIES.iter().find(|family| family.model_type == model_type)
}
