//! How many positions there are, and what is added for them and for the parts of a text.

use super::{MAX_CONTEXT, MAX_VOCAB, PositionTypeShape};
use crate::error::Result;
use crate::model::families::Family;
use crate::model::rope;
use crate::weights::json::Json;

const MAX_BUCKETS: usize = 1 << 10;
const MAX_TYPES: usize = 16;

/// Positions that the model was made for: those of its table, where it has one.
pub(super) fn positions(json: &Json, family: &Family) -> Result<(usize, Option<PositionTypeShape>)> {
    let context = rope::context(json, family.context_is_scaled)?;
    let position_type = position_type(json, family)?;
    match position_type {
        Some(PositionTypeShape { positions: Some(positions), .. }) => Ok((positions, position_type)),
        _ => Ok((context, position_type)),
    }
}

fn position_type(json: &Json, family: &Family) -> Result<Option<PositionTypeShape>> {
    let row = family.names.position_type;
    let types = match row.types {
        "" => None,
        _ => json.count("type_vocab_size", MAX_TYPES)?.or(Some(2)).filter(|&types| types > 0),
    };
    if row.positions.is_empty() {
        return Ok(types.map(|_| PositionTypeShape { skipped: 0, positions: None, types }));
    }
    let field = "max_position_embeddings";
    let rows = json.required_size(field, MAX_CONTEXT)?;
    let skipped = match row.behind_pad {
        true => json.count("pad_token_id", MAX_VOCAB)?.unwrap_or(1) + 1,
        false => 0,
    };
    if rows <= skipped {
        return Err(json.wrong(field, format!("above {skipped}: the table has rows for padding first")));
    }
    Ok(Some(PositionTypeShape { skipped, positions: Some(rows - skipped), types }))
}

/// Buckets of distances.
pub(super) fn buckets(json: &Json, family: &Family) -> Result<Option<usize>> {
    match family.names.relative_bias {
        "" => Ok(None),
        _ => Ok(Some(json.size("relative_attention_num_buckets", MAX_BUCKETS)?.unwrap_or(32))),
    }
}
