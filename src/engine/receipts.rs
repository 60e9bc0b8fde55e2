//! Makes the receipts of a session.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::SystemTime;

use crate::clock::Clock;
use crate::error::ErrorKind;
use crate::memory::ledger::NotCovered;
use crate::privacy::lockdown;
use crate::privacy::receipt::attest::{self, AttestError, Attester};
use crate::privacy::receipt::chain::Chain;
use crate::privacy::receipt::environment::{Environment, Evidence, FileRole, Nonce};
use crate::privacy::receipt::signature::Signer;
use crate::privacy::receipt::{DeviceReceipt, Outcome, ReceiptHash, ScrubReceipt, Subject, VERSION, unix_ms};

/// Who is told of every receipt.
pub type OnReceipt = Arc<dyn Fn(&ScrubReceipt) + Send + Sync>;

/// What a receipt says beside what was overwritten.
#[derive(Clone, Debug)]
pub struct About {
    pub subject: Subject,
    pub outcome: Outcome,
    /// The caller's.
    pub nonce: Option<Nonce>,
    pub began: SystemTime,
    /// Copies that the debug sampler sealed.
    pub captures: u64,
}

impl About {
    /// Something that ended as it should.
    pub fn completed(subject: Subject, nonce: Option<Nonce>, began: SystemTime) -> Self {
        Self { subject, outcome: Outcome::Completed, nonce, began, captures: 0 }
    }

    /// A request that was refused.
    pub fn refused(subject: Subject, nonce: Option<Nonce>, began: SystemTime, error: ErrorKind) -> Self {
        let outcome = Outcome::Refused { error: error.to_string() };
        Self { outcome, ..Self::completed(subject, nonce, began) }
    }

    /// Something that was accepted and ended with this error, if there was one.
    pub fn failing(self, error: Option<ErrorKind>) -> Self {
        match error {
            None => self,
            Some(error) => Self { outcome: Outcome::Failed { error: error.to_string() }, ..self },
        }
    }

    /// Whether it is a request.
    pub fn is_request(&self) -> bool {
        matches!(self.subject, Subject::Request { .. } | Subject::Publish { .. })
    }
}

/// What a session's receipts are to be tied to, as the application wants it.
#[derive(Default)]
pub struct Ties {
    pub chain: Option<ReceiptHash>,
    pub told: Option<OnReceipt>,
    pub signer: Option<Arc<dyn Signer>>,
    pub attester: Option<Arc<dyn Attester>>,
    pub nonce: Option<Nonce>,
}

/// Issues receipts in order.
pub struct Receipts {
    clock: Arc<dyn Clock>,
    chain: Option<Chain>,
    told: Option<OnReceipt>,
    signer: Option<Arc<dyn Signer>>,
    environment: Environment,
    evidence: Arc<Evidence>,
    /// Names the session in request ids.
    session: u64,
    opened: SystemTime,
    captures: u64,
}

impl Receipts {
    /// For a session that opens now. Asks the attester for its quote.
    ///
    /// # Errors
    /// There is none.
    pub fn new(
        session: u64,
        clock: Arc<dyn Clock>,
        ties: Ties,
        mut environment: Environment,
        mut evidence: Evidence,
    ) -> Result<Self, AttestError> {
        let Ties { chain, told, signer, attester, nonce } = ties;
        environment.nonce = nonce;
        if let Some((attester, signer)) = attester.zip(signer.as_deref()) {
            let data = attest::report_data(signer, nonce);
            let quote = catch_unwind(AssertUnwindSafe(|| attester.attest(&data)));
            let quote = quote.unwrap_or(Err(AttestError::Panicked))?;
            environment.quote_sha256 = Some(ReceiptHash::of(&quote.document.0));
            evidence.quote = Some(quote);
        }
        environment.weights_sha256 = evidence.digest(FileRole::Weights);
        environment.configuration_sha256 = evidence.digest(FileRole::Configuration);
        environment.tokenizer_sha256 = evidence.digest(FileRole::Tokenizer);
        // what is signed is a receipt's hash, and that is a part of its link
        let chain = chain.or(signer.is_some().then_some(ReceiptHash::START)).map(Chain::after);
        let opened = clock.wall();
        let evidence = Arc::new(evidence);
        Ok(Self { clock, chain, told, signer, environment, evidence, session, opened, captures: 0 })
    }

    /// What the hashes in its receipts are of.
    pub fn evidence(&self) -> &Arc<Evidence> {
        &self.evidence
    }

    /// A receipt of what is overwritten by now.
    pub fn issue(
        &mut self,
        about: About,
        devices: Vec<DeviceReceipt>,
        not_covered: Vec<NotCovered>,
    ) -> ScrubReceipt {
        let About { subject, outcome, nonce, began, captures } = about;
        let is_session = matches!(subject, Subject::Session { .. });
        self.captures += captures;
        let mut receipt = ScrubReceipt {
            version: VERSION,
            subject,
            outcome: Some(outcome),
            nonce,
            began_unix_ms: unix_ms(began),
            scrubbed_unix_ms: unix_ms(self.clock.wall()),
            devices,
            not_covered,
            captures,
            environment: Some(Box::new(Environment {
                lockdown: lockdown::state(),
                ..self.environment.clone()
            })),
            evidence: is_session.then(|| Box::new((*self.evidence).clone())),
            link: None,
            signature: None,
        };
        if let Some(chain) = &mut self.chain {
            chain.tie(&mut receipt, self.signer.as_deref());
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
        error: Option<ErrorKind>,
    ) -> ScrubReceipt {
        let subject = Subject::Session { id: self.session, requests };
        let captures = self.captures;
        let about = About { captures, ..About::completed(subject, None, self.opened) }.failing(error);
        self.issue(about, devices, not_covered)
    }
}
