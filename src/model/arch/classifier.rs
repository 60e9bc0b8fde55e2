//! What a checkpoint that classifies texts has behind its layers.

use super::{ClassifierShape, biased};
use crate::backend::Pooling;
use crate::error::Result;
use crate::model::families::{Family, HeadStep};
use crate::weights::json::Json;

const MAX_LABELS: usize = 1 << 16;

/// The classifier of a checkpoint whose `architectures` say that it classifies texts.
pub(super) fn classifier(json: &Json, family: &Family) -> Result<Option<ClassifierShape>> {
    let names = json.field("architectures").and_then(serde_json::Value::as_array);
    let name = names.and_then(|names| names.first()?.as_str());
    if !name.is_some_and(|name| name.ends_with("ForSequenceClassification")) {
        return Ok(None);
    }
    let Some(row) = &family.classifier else {
        let expected = format!("another: the head of this one is not supported for {}", family.model_type);
        return Err(json.wrong("architectures", expected));
    };
    let (field, pooling) = row.pooling;
    let pooling = match json.text(field)? {
        None => pooling,
        Some("cls") => Pooling::First,
        Some("mean") => Pooling::Mean,
        Some(_) => return Err(json.wrong(field, "cls or mean")),
    };
    // transformers writes names of labels, and their number only in old versions
    let labels = match json.object("id2label")? {
        Some(labels) => labels.names().count(),
        None => json.size("num_labels", MAX_LABELS)?.unwrap_or(2),
    };
    if !(1..=MAX_LABELS).contains(&labels) {
        return Err(json.wrong("id2label", format!("from 1 to {MAX_LABELS} labels")));
    }
    let bias = |step: &HeadStep| match *step {
        HeadStep::Dense { bias, .. } => biased(json, bias),
        HeadStep::Norm(_) => Ok(false),
    };
    let biases = row.steps.iter().map(bias).collect::<Result<_>>()?;
    Ok(Some(ClassifierShape { pooling, labels, biases }))
}
