//! Makes the receipts of a session.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::SystemTime;

use crate::clock::Clock;
use crate::memory::ledger::NotCovered;
use crate::privacy::receipt::{Chain, DeviceReceipt, ScrubReceipt, Subject, unix_ms};

/// Who is told of every receipt.
pub type OnReceipt = Arc<dyn Fn(&ScrubReceipt) + Send + Sync>;

/// Issues receipts in order.
pub struct Receipts {
    clock: Arc<dyn Clock>,
    chain: Option<Chain>,
    told: Option<OnReceipt>,
    /// Names the session in request ids.
    session: u64,
    opened: SystemTime,
    captures: u64,
}

impl Receipts {
    /// For a session that opens now.
    pub fn new(session: u64, clock: Arc<dyn Clock>, chain: Option<Chain>, told: Option<OnReceipt>) -> Self {
        let opened = clock.wall();
        Self { clock, chain, told, session, opened, captures: 0 }
    }

    /// A receipt of what is overwritten by now.
    pub fn issue(
        &mut self,
        subject: Subject,
        began: SystemTime,
        captures: u64,
        devices: Vec<DeviceReceipt>,
        not_covered: Vec<NotCovered>,
    ) -> ScrubReceipt {
        self.captures += captures;
        let mut receipt = ScrubReceipt {
            subject,
            began_unix_ms: unix_ms(began),
            scrubbed_unix_ms: unix_ms(self.clock.wall()),
            devices,
            not_covered,
            captures,
            link: None,
        };
        if let Some(chain) = &mut self.chain {
            chain.tie(&mut receipt);
        }
        if let Some(told) = &self.told {
            let _ = catch_unwind(AssertUnwindSafe(|| told(&receipt))); // the application's panic is its own
        }
        receipt
    }

    /// The last receipt: the session's.
    pub fn close(
        mut self,
        requests: u64,
        devices: Vec<DeviceReceipt>,
        not_covered: Vec<NotCovered>,
    ) -> ScrubReceipt {
        let subject = Subject::Session { id: self.session, requests };
        self.issue(subject, self.opened, self.captures, devices, not_covered)
    }
}
