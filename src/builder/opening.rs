//! How the threads of a session are started, whatever its worker does: those that read, and the one that owns the device.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use super::Builder;
use crate::backend::KvType;
use crate::client::Client;
use crate::clock::Clock;
use crate::engine::intake::IntakeMessage;
use crate::engine::message::WorkerMessage;
use crate::engine::readers::{Arrived, Notify, Readers};
use crate::engine::receipts::Receipts;
use crate::engine::shell::{self, Shell, Work};
use crate::engine::status::Shared;
use crate::error::{Error, Result};
use crate::identity::Identity;
use crate::privacy::trace::Telemetry;
use crate::privacy::{Alias, ScrubReceipt};

/// What the threads of a session and its handle share, before any of them runs.
pub struct Opening {
    pub shared: Arc<Shared>,
    pub clock: Arc<dyn Clock>,
    pub telemetry: Arc<Telemetry>,
    /// Where the worker is told something.
    pub worker: Sender<WorkerMessage>,
    messages: Receiver<WorkerMessage>,
}

impl Builder {
    /// What begins with a session: its telemetry, its receipts, for which the attester is asked, and where its threads meet.
    pub(super) fn opening(
        &mut self,
        device: &str,
        model_type: Alias,
        kv_cache: KvType,
    ) -> Result<(Opening, Receipts)> {
        let (model, session) = (self.model_name.unwrap_or(model_type), getrandom::u64().unwrap_or(0));
        let environment = self.environment(device, model, kv_cache);
        let evidence = self.recording.take().map(|recording| self.evidence(recording)).transpose()?;
        let (clock, ties) = (self.clock.clone(), std::mem::take(&mut self.ties));
        let receipts = Receipts::new(session, clock.clone(), ties, environment, evidence.unwrap_or_default());
        let receipts = receipts.map_err(Error::Attestation)?;
        let (prices, on_event) = (self.prices, self.on_event.take());
        let telemetry = Arc::new(Telemetry { model, session, prices, on_event, clock: clock.clone() });
        let (worker, messages) = channel();
        Ok((Opening { shared: Arc::default(), clock, telemetry, worker, messages }, receipts))
    }
}

impl Opening {
    /// What its worker holds whatever it does.
    pub fn shell(&self, receipts: Receipts) -> Shell {
        Shell::new(self.shared.clone(), self.clock.clone(), receipts)
    }

    /// Starts the threads that `read` requests, up to so many at once, has them rehearse, and starts the worker's. Conversations
    /// depend on `identity`, where a session has any.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn start<W: Work + Send + 'static>(
        self,
        read: impl Fn(IntakeMessage, Arrived) -> Notify + Send + Sync + 'static,
        max_requests: usize,
        worker: W,
        identity: Option<Identity>,
    ) -> Result<(Client, JoinHandle<ScrubReceipt>)> {
        let Self { shared, clock, telemetry, worker: to_worker, messages } = self;
        let readers = Arc::new(Readers::start(read, shared.clone(), clock, max_requests)?);
        readers.rehearse()?;
        let thread = shell::start(worker, messages)?;
        let identity = identity.map(Arc::new);
        Ok((Client { readers, worker: to_worker, shared, keys: Arc::default(), telemetry, identity }, thread))
    }
}
