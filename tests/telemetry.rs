//! Telemetry says what it should, and nothing of what went through: `leaks` sends canaries through every field and
//! every error and searches all that was ever printed or told; `spans` looks for what must be there. That metrics arrive in
//! OpenTelemetry's SDK is a test of `oracle/`.

mod common;
#[path = "telemetry/leaks.rs"]
mod leaks;
#[path = "telemetry/needles.rs"]
mod needles;
#[path = "public_items/mod.rs"]
mod public_items;
#[path = "telemetry/recorder.rs"]
mod recorder;
#[path = "telemetry/spans.rs"]
mod spans;
#[path = "telemetry/types.rs"]
mod types;

amnesic::install_scrubbing_allocator!();

/// Holds no content in a form that a logger could take along: none of these types is `Serialize`.
mod not_serializable {
    use amnesic::testing::{LogitsTap, Scorer, Tokenizer};
    use amnesic::*;

    /// Has one `check` for every type, and a second one for those that are `Serialize`: for them the call below would
    /// be ambiguous and not compile.
    trait Ambiguous<Marker> {
        fn check() {}
    }

    impl<T: ?Sized> Ambiguous<()> for T {}

    struct Serializable;

    impl<T: ?Sized + serde::Serialize> Ambiguous<Serializable> for T {}

    macro_rules! not_serializable {
        ($($type:ty),+ $(,)?) => { $(let _ = <$type as Ambiguous<_>>::check;)+ };
    }

    #[test]
    fn what_holds_content_is_not_serializable() {
        not_serializable!(
            Request,
            Message,
            Tool,
            ToolCall,
            ResponseFormat,
            Reply,
            Choice,
            Piece,
            TokenIds,
            SecretText,
            Logprobs,
            TokenLogprobs<'static>,
            Stream,
            Conversation,
            ConversationStream<'static>,
            Public,
            Session,
            Builder,
            CancelToken,
            Error,
            LogitsTap,
            Tokenizer,
            Scorer,
        );
    }
}
