//! The small enums of telemetry, in the words of the conventions.

use serde::{Serialize, Serializer};

use crate::outcome::FinishReason;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Operation {
    /// Answers messages.
    Chat,
    /// Goes on behind a text or tokens.
    TextCompletion,
    /// Embeds texts.
    Embeddings,
    /// Scores documents for a query. No name of the conventions.
    Rerank,
}

/// The form of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum OutputType {
    /// Text, also where a regular expression or a Lark grammar forms it.
    Text,
    /// JSON, with or without a schema.
    Json,
}

impl Operation {
    /// Its name in the conventions.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::TextCompletion => "text_completion",
            Self::Embeddings => "embeddings",
            Self::Rerank => "rerank",
        }
    }
}

impl OutputType {
    /// Its name in the conventions.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// How many of a request's choices ended for which reason. As text and JSON a list of the reasons that there are:
/// `["stop","length"]`.
///
/// Calls of tools are read from the reply by its owner, after the request has ended: here such a choice ends with
/// [`FinishReason::Stop`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FinishReasons {
    /// [`FinishReason::Stop`].
    pub stop: u32,
    /// [`FinishReason::Length`].
    pub length: u32,
    /// [`FinishReason::Cancelled`].
    pub cancelled: u32,
    /// [`FinishReason::Deadline`].
    pub deadline: u32,
}

impl FinishReasons {
    pub(crate) fn add(&mut self, reason: FinishReason) {
        *match reason {
            FinishReason::Stop | FinishReason::ToolCalls => &mut self.stop,
            FinishReason::Length => &mut self.length,
            FinishReason::Cancelled => &mut self.cancelled,
            FinishReason::Deadline => &mut self.deadline,
        } += 1;
    }

    /// The reasons that there are.
    pub fn iter(&self) -> impl Iterator<Item = FinishReason> {
        let counts = [
            (FinishReason::Stop, self.stop),
            (FinishReason::Length, self.length),
            (FinishReason::Cancelled, self.cancelled),
            (FinishReason::Deadline, self.deadline),
        ];
        counts.into_iter().filter(|(_, count)| *count > 0).map(|(reason, _)| reason)
    }
}

impl std::fmt::Display for FinishReasons {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, reason) in self.iter().enumerate() {
            write!(f, "{}\"{reason}\"", if index == 0 { "[" } else { "," })?;
        }
        f.write_str(if self.iter().next().is_none() { "[]" } else { "]" })
    }
}

impl Serialize for FinishReasons {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter().map(|reason| reason.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finish_reasons_are_a_list() {
        let mut reasons = FinishReasons::default();
        assert_eq!(reasons.to_string(), "[]");
        reasons.add(FinishReason::Length);
        reasons.add(FinishReason::ToolCalls);
        reasons.add(FinishReason::Length);
        assert_eq!(reasons.to_string(), r#"["stop","length"]"#);
        assert_eq!(serde_json::to_string(&reasons).unwrap(), reasons.to_string());
        assert_eq!((reasons.stop, reasons.length), (1, 2));
    }
}
