//! A way to run a sampler without a session, for tests.

use std::time::{Instant, SystemTime};

use super::{Capture, CaptureError, Captured, DebugSampler};
use crate::outcome::RequestId;

impl DebugSampler {
    /// Does what a session does when its `count`-th request has ended: none if it was not drawn.
    pub fn request_ended(
        &mut self,
        now: Instant,
        count: u64,
        prompt_ids: &[u32],
        reply_ids: &[u32],
        reply_text: &[u8],
    ) -> Option<Result<Captured, CaptureError>> {
        let permit = self.wants(now)?;
        let capture = Capture {
            request: RequestId { session: 0, count },
            at: SystemTime::UNIX_EPOCH,
            model: None,
            choice: 0,
            finish_reason: None,
            prompt_ids,
            reply_ids,
            reply_text,
        };
        Some(self.capture(permit, &capture))
    }
}
